"""Segment Anything (Kirillov et al., arXiv:2304.02643) and micro-SAM's generalists as encoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from cellseg.errors import ConfigError, WeightsError
from cellseg.events import Emit
from cellseg.specs import BaseWeights
from cellseg.torch.frames import Frame
from cellseg.torch.mask_generation import Decode
from cellseg.torch.reading import built_within
from cellseg.torch.sam.architecture import Architecture
from cellseg.torch.sam.model import SegmentAnything
from cellseg.torch.sam.weights import load_checkpoint, load_published
from cellseg_fewshot.encoder_names import registered
from cellseg_fewshot.encoders import EncoderSettings
from cellseg_fewshot.encoders.asked import AskedEncoder, Asking, arithmetic

_THRESHOLDS = (0.88, 0.95)
"""Segment Anything's own, of the predicted IoU and of the stability (arXiv:2304.02643, appendix
B)."""
_GENERALISTS = {
    "vit_b_lm": (0.65, 0.7),
    "vit_l_lm": (0.65, 0.73),
    "vit_b_em_organelles": (0.75, 0.75),
    "vit_l_em_organelles": (0.8, 0.8),
}
"""Those with which micro-SAM applies its generalists (doi:10.1038/s41592-024-02580-4)."""


class SamEncoder(AskedEncoder):
    """An ``Encoder``.

    Args:
        model: any of its sizes.
        name: what users call it.
        origin: the name of the published weights; None for others, which a model then keeps.
        asking: how points are answered.
        dtype: of the arithmetic of the image encoder.
        device: where to compute.
        bases: where the weights are from.
    """

    def __init__(
        self,
        model: SegmentAnything,
        *,
        name: str,
        origin: str | None,
        asking: Asking,
        dtype: torch.dtype,
        device: torch.device,
        bases: tuple[BaseWeights, ...] = (),
    ) -> None:
        super().__init__(
            name=name,
            side=model.architecture.side,
            asking=asking,
            dtype=dtype,
            device=device,
            bases=bases,
        )
        self.model = model.eval().requires_grad_(False).to(device)
        self.origin = origin
        self.adapters: dict[str, Tensor] = {}
        """What refinement added to the weights, of which it is part already."""

    @classmethod
    def published(
        cls, settings: EncoderSettings, device: torch.device, emit: Emit, name: str | None = None
    ) -> SamEncoder:
        """With published weights, downloaded if they are not there.

        Args:
            settings: with the name, unless ``name`` is given.
            device: where to compute.
            emit: gets the progress of a download.
            name: one of ``ENCODERS``.

        Raises:
            DeviceError: the device cannot compute in this precision.
            WeightsError: they cannot be had.
        """
        name = name or settings.name
        assert name is not None
        dtype = arithmetic(settings, device)
        loaded = load_published(registered(name), emit)
        return cls(
            loaded.model,
            name=name,
            origin=name,
            asking=Asking.of(settings, device, _thresholds(name)),
            dtype=dtype,
            device=device,
            bases=() if loaded.base is None else (loaded.base,),
        )

    @classmethod
    def of_file(cls, settings: EncoderSettings, path: Path, device: torch.device) -> SamEncoder:
        """With weights of a file.

        Raises:
            ConfigError: it holds another size than the settings name.
            DeviceError: the device cannot compute in this precision.
            WeightsError: it is missing or damaged, or holds no such model.
        """
        dtype = arithmetic(settings, device)
        loaded = load_checkpoint(path)
        named = settings.name
        if named is not None and registered(named)[:5] != loaded.name:
            raise ConfigError(
                f"--checkpoint {path}: holds a {loaded.name}, not --encoder {named}.",
                hint="Leave out --encoder: the file says what it holds.",
            )
        return cls(
            loaded.model,
            name=named or path.name,
            origin=None,
            asking=Asking.of(settings, device, _thresholds(named or path.name)),
            dtype=dtype,
            device=device,
            bases=() if loaded.base is None else (loaded.base,),
        )

    @classmethod
    def restored(
        cls,
        description: Mapping[str, Any],
        state: Mapping[str, Tensor],
        settings: EncoderSettings,
        device: torch.device,
        emit: Emit,
    ) -> SamEncoder:
        """The one of a stored model; adapters become part of the weights.

        Raises:
            DeviceError: the device cannot compute in this precision.
            WeightsError: published weights cannot be had, or the tensors do not fit.
        """
        name, origin = str(description["name"]), description["origin"]
        if origin is not None:
            encoder = cls.published(settings, device, emit, origin)
            encoder.field = int(description["field"])
            if state:
                from cellseg_fewshot.adapters import apply_adapters

                encoder.adapters = dict(state)
                apply_adapters(encoder.model.sam, encoder.adapters)
            return encoder
        dtype = arithmetic(settings, device)
        try:
            held = sum(tensor.nbytes for tensor in state.values())
            with built_within("The model's encoder", held):
                model = SegmentAnything(Architecture.of(description["architecture"]))
            model.load_state_dict(dict(state))
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise WeightsError(
                f"The model's encoder does not fit its description: {reason}",
                hint="Train again, or copy the whole model directory.",
            ) from error
        encoder = cls(
            model,
            name=name,
            origin=None,
            asking=Asking.of(settings, device, _thresholds(name)),
            dtype=dtype,
            device=device,
            bases=tuple(BaseWeights(**base) for base in description["bases"]),
        )
        encoder.field = int(description["field"])
        return encoder

    @property
    def description(self) -> dict[str, Any]:
        """What ``restored`` needs beside the tensors."""
        return {
            "kind": "sam",
            "name": self.name,
            "origin": self.origin,
            "architecture": self.model.architecture.to_dict(),
            "bases": [asdict(base) for base in self.bases],
            "field": self.field,
        }

    def state(self) -> Mapping[str, Tensor]:
        """The adapters of published weights, or all weights of others."""
        return self.adapters if self.origin is not None else self.model.state_dict()

    def frame(self, size: tuple[int, int], field: int = 0) -> Frame:
        """As large as it fits into the square; with a field, at the scale of a plane so large."""
        frame: Frame = self.model.frame(size, field)
        return frame

    def prepare(self, images: Tensor, frame: Frame) -> Tensor:
        """As ``SegmentAnything.prepare``."""
        return self.model.prepare(images, frame)

    def embed(self, prepared: Tensor) -> Tensor:
        """Embeddings ``(n, d, grid, grid)`` float32 of what ``prepare`` gives."""
        with self.autocast():
            return self.model.encode(prepared).float()

    def see(self, prepared: Tensor) -> list[tuple[Tensor, Decode]]:
        """For each image its embedding, and what answers points."""
        embeddings = self.embed(prepared)
        return [(one, partial(self._decode, one[None])) for one in embeddings]

    def _decode(self, embedding: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Three masks for each point ``(n, 2)`` of the square, x and y."""
        points = points.to(embedding.device)
        return self.model.answer(
            embedding,
            points=points[:, None],
            labels=torch.ones(len(points), 1, device=points.device),
            multimask=True,
        )


def _thresholds(name: str | None) -> tuple[float, float]:
    """Of the predicted IoU and of the stability, that suit a model."""
    return _GENERALISTS.get(name or "", _THRESHOLDS)
