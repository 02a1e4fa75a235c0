"""Encoded planes that answer points, as Segment Anything and SAM 2 have them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from cellseg.errors import DataError, DeviceError, WeightsError
from cellseg.specs import BaseWeights
from cellseg.torch.frames import Frame
from cellseg.torch.mask_generation import Decode, propose_masks
from cellseg.torch.mask_pooling import pool_masks
from cellseg.torch.masks import FoundMask
from cellseg_fewshot.encoders import EncoderSettings
from cellseg_fewshot.views import FeatureMap, Shown, View

_PRECISIONS = {"32-true": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Asking:
    """How points are answered, every option a number."""

    pred_iou_thresh: float
    stability_score_thresh: float
    points_per_batch: int

    @classmethod
    def of(
        cls, settings: EncoderSettings, device: torch.device, thresholds: tuple[float, float]
    ) -> Asking:
        """What is given, and for what is not, what suits the encoder: ``thresholds`` of the
        predicted IoU and of the stability, and the number of points for the device."""
        iou, stability = settings.pred_iou_thresh, settings.stability_score_thresh
        return cls(
            thresholds[0] if iou is None else iou,
            thresholds[1] if stability is None else stability,
            settings.points_per_batch or (64 if device.type == "cuda" else 4),
        )


def arithmetic(settings: EncoderSettings, device: torch.device) -> torch.dtype:
    """Of the image encoder.

    Raises:
        DeviceError: the device cannot compute in it.
        WeightsError: there is no such arithmetic, as a model may say.
    """
    if settings.precision not in _PRECISIONS:
        raise WeightsError(
            f"The model's precision {settings.precision!r} is not known.",
            hint="Update cellseg, or train again.",
        )
    if settings.precision == "fp16" and device.type == "cpu":
        raise DeviceError(
            "--precision fp16: a CPU does not compute in it.",
            hint="Use a GPU, or learn with --precision bf16.",
        )
    return _PRECISIONS[settings.precision]


def as_batch(planes: Sequence[NDArray[np.float32]]) -> Tensor:
    """Planes ``(c, y, x)`` of one shape as ``(n, c, y, x)`` float32.

    Raises:
        DataError: they have neither 1 nor 3 channels.
    """
    for plane in planes:
        if plane.shape[0] not in (1, 3):
            raise DataError(
                f"Segment Anything takes images of 1 or 3 channels, not {plane.shape[0]}.",
                hint="Choose them with --channels, or use --encoder filters.",
            )
    return torch.from_numpy(np.stack(planes).astype(np.float32, copy=False))


def covering(embedding: Tensor, frame: Frame) -> FeatureMap:
    """The part of an embedding ``(d, grid, grid)`` of the square that shows the image in it."""
    cell = frame.side / embedding.shape[-1]
    y, x = (ceil(length / cell) for length in frame.scaled)
    down, across = frame.factor
    return FeatureMap(embedding[:, :y, :x].float(), (cell / down, cell / across))


@dataclass(frozen=True, slots=True)
class AskedView:
    """A ``View`` of one encoded plane."""

    frame: Frame
    features: FeatureMap
    decode: Decode
    asking: Asking

    @property
    def size(self) -> tuple[int, int]:
        """Of the plane, ``(y, x)``."""
        return self.frame.size

    @torch.no_grad()
    def describe(self, masks: Sequence[FoundMask]) -> Tensor:
        """The mean of the features under each mask, ``(n, d)`` float32 on the CPU."""
        return pool_masks(masks, self.features.values, self.features.step).float().cpu()

    @torch.no_grad()
    def answer(self, points: NDArray[np.float32]) -> list[FoundMask]:
        """Three masks for each point ``(n, 2)``, y and x, without those that the model thinks
        little of, those that change with the threshold, and exact repetitions. Scores are the IoU
        that the model predicts, cut to 0 to 1."""
        proposals = propose_masks(
            self.decode,
            self.frame,
            in_square(points, self.frame),
            points_per_batch=self.asking.points_per_batch,
            pred_iou_thresh=self.asking.pred_iou_thresh,
            stability_score_thresh=self.asking.stability_score_thresh,
        )
        found: dict[tuple[object, ...], FoundMask] = {}
        for one in proposals.select():
            key = (one.corner, one.mask.shape, one.mask.tobytes())
            found.setdefault(key, replace(one, score=min(max(one.score, 0.0), 1.0)))
        return list(found.values())


class AskedEncoder(ABC):
    """What both encoders do alike; subclasses say how the model is called.

    Args:
        name: what users call it.
        side: pixels along a side of the square that the model sees.
        asking: how points are answered.
        dtype: of the arithmetic of the image encoder.
        device: where the model is.
        bases: where the weights are from.
    """

    judges, scales = False, True

    def __init__(
        self,
        *,
        name: str,
        side: int,
        asking: Asking,
        dtype: torch.dtype,
        device: torch.device,
        bases: tuple[BaseWeights, ...],
    ) -> None:
        self.name, self.side, self.bases = name, side, bases
        self.asking, self.dtype, self.device = asking, dtype, device
        self.calls = 0
        self.field = 0
        """Pixels along a side of a plane that fills the square; 0 where all planes do."""

    def expect(self, side: int) -> None:
        """See planes smaller than this at the scale of those that are so large."""
        self.field = side

    @abstractmethod
    def frame(self, size: tuple[int, int], field: int = 0) -> Frame:
        """The place of a plane of ``size`` in the square; ``field`` as in ``Frame.fit``."""

    @abstractmethod
    def prepare(self, images: Tensor, frame: Frame) -> Tensor:
        """Images ``(n, 1 or 3, y, x)``, 0..1, as the model takes them: ``(n, 3, side, side)``."""

    @abstractmethod
    def see(self, prepared: Tensor) -> list[tuple[Tensor, Decode]]:
        """For each image its embedding ``(d, grid, grid)`` float32, and what answers points."""

    @torch.no_grad()
    def view(
        self, planes: Sequence[NDArray[np.float32]], larger: Sequence[float] | None = None
    ) -> list[View]:
        """See planes ``(c, y, x)`` of one shape, 0..1, each encoded once, in one batch; objects of
        all sizes alike.

        Raises:
            DataError: they have neither 1 nor 3 channels.
        """
        if not planes:
            return []
        frame = self.frame((planes[0].shape[1], planes[0].shape[2]), self.field)
        seen = self.see(self.prepare(as_batch(planes).to(self.device), frame))
        self.calls += len(planes)
        return [
            AskedView(frame, covering(embedding, frame), decode, self.asking)
            for embedding, decode in seen
        ]

    @torch.no_grad()
    def encode_crops(self, crops: Sequence[NDArray[np.float32]]) -> list[FeatureMap]:
        """The features of crops ``(c, s, s)``, each brought to the square, in one batch.

        Raises:
            DataError: they have neither 1 nor 3 channels.
        """
        if not crops:
            return []
        frames = [self.frame((crop.shape[1], crop.shape[2])) for crop in crops]
        prepared = [
            self.prepare(as_batch([crop]).to(self.device), frame)
            for crop, frame in zip(crops, frames, strict=True)
        ]
        seen = self.see(torch.cat(prepared))
        self.calls += len(crops)
        return [
            covering(embedding, frame) for (embedding, _), frame in zip(seen, frames, strict=True)
        ]

    def fit(  # noqa: B027
        self, shown: Sequence[tuple[NDArray[np.float32], Sequence[Shown]]], seed: int
    ) -> None:
        """Nothing to learn."""

    def autocast(self) -> torch.autocast:
        """The arithmetic of the image encoder."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def in_square(points: NDArray[np.float32], frame: Frame) -> Tensor:
    """Points ``(n, 2)`` of the plane, y and x, as Segment Anything names those of the square: x and
    y, with the middle of the first pixel at 0."""
    return torch.from_numpy(points * np.asarray(frame.factor, np.float32) - 0.5).flip(1).float()
