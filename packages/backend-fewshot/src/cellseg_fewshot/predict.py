"""Find what is similar to the examples."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray

from cellseg import PredictJob, Predictor, Segmentation, Tile
from cellseg.errors import ConfigError, WeightsError
from cellseg.painting import paint
from cellseg.torch.devices import memory_errors, resolve_device
from cellseg.torch.masks import FoundMask, ranked, suppress, suppress_masks
from cellseg_fewshot.candidates import Asking, find_candidates
from cellseg_fewshot.encoders import EncoderSettings, restore_encoder
from cellseg_fewshot.looking import CROPS, box
from cellseg_fewshot.magnification import magnification_of
from cellseg_fewshot.memory import Candidates, Memory
from cellseg_fewshot.predict_options import FewshotPredictOptions
from cellseg_fewshot.priors import cut_off, measure
from cellseg_fewshot.stored import Stored
from cellseg_fewshot.views import Encoder, View

_CROP_POINTS, _CROP_AREA, _CROP_THRESHOLD, _CROP_OVERLAP = 128, 30, 0.5, 0.7
_HINT = "Use smaller tiles (--tile-size), fewer points (--points-per-batch), or --device cpu."


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding(Asking):
    """All options, resolved."""

    threshold: float
    size_prior: bool
    shape_prior: bool
    iou: float
    containment: float
    magnification: float | None
    """How many times larger objects are than the examples; None to estimate it for each tile."""
    own_areas: tuple[bool, bool]
    """Which of ``areas`` are those of the examples, and change with the magnification."""

    def at(self, magnification: float) -> Finding:
        """The same where objects are so many times larger."""
        if magnification == 1:
            return self
        grown = [round(area * magnification**2) for area in self.areas]
        return replace(
            self,
            areas=(
                grown[0] if self.own_areas[0] else self.areas[0],
                grown[1] if self.own_areas[1] else self.areas[1],
            ),
            diameters=tuple(one * magnification for one in self.diameters),
        )


def load(job: PredictJob[FewshotPredictOptions]) -> Predictor:
    """A predictor of single planes.

    In the mode dense each tile is encoded once. A tile without any contrast is background, and is
    not encoded.

    Raises:
        WeightsError: there is no model, or it is damaged, or its encoder's weights cannot be had.
        ConfigError: options that do nothing with this model.
        DeviceError: the device is not there.
    """
    if job.model is None:
        raise WeightsError(
            "fewshot finds nothing without examples, or a model that has seen some.",
            hint="Give objects to look for: --examples FILE",
        )
    stored = Stored.load(job.model)
    options = job.options
    finding = resolve(options, stored.memory)
    settings = EncoderSettings(
        pred_iou_thresh=options.pred_iou_thresh,
        stability_score_thresh=options.stability_score_thresh,
        points_per_batch=options.points_per_batch,
        precision=stored.precision,
    )
    encoder = restore_encoder(stored.encoder, stored.state, settings, resolve_device(job.device))
    return predictor(encoder, stored.memory, finding, named=len(stored.classes) > 0)


def predictor(encoder: Encoder, memory: Memory, finding: Finding, named: bool) -> Predictor:
    """What segments tiles, with an encoder that is open.

    Args:
        encoder: which one.
        memory: what to look for.
        finding: how.
        named: whether the classes have names; objects of others get no class.
    """

    def predict(tiles: Sequence[Tile]) -> Sequence[Segmentation]:
        seeing = [bool(tile.image.min() < tile.image.max()) for tile in tiles]
        planes = [
            np.ascontiguousarray(tile.image[:, 0], np.float32)
            for tile, sees in zip(tiles, seeing, strict=True)
            if sees
        ]
        # Several tiles may be too many for the memory: then the caller tries fewer.
        advice = memory_errors(_HINT) if len(tiles) == 1 else nullcontext()
        with torch.inference_mode(), advice:
            larger = [_magnification(plane, memory, finding) for plane in planes]
            seen = encoder.view(planes, larger) if planes else []
            views = iter(zip(seen, planes, larger, strict=True))
            found = [
                find_objects(encoder, *next(views), memory, finding)
                if sees
                else Segmentation(np.zeros(tile.image.shape[1:], np.uint32))
                for tile, sees in zip(tiles, seeing, strict=True)
            ]
        return found if named else [replace(one, classes={}) for one in found]

    return predict


def _magnification(plane: NDArray[np.float32], memory: Memory, finding: Finding) -> float:
    if finding.magnification is not None:
        return finding.magnification
    return 1.0 if memory.blobs is None else magnification_of(plane, memory.blobs)


def find_objects(
    encoder: Encoder,
    view: View,
    plane: NDArray[np.float32],
    magnification: float,
    memory: Memory,
    finding: Finding,
) -> Segmentation:
    """The objects in one plane.

    Args:
        encoder: encodes crops, in the mode crop.
        view: of the plane.
        plane: ``(c, y, x)``.
        magnification: how many times larger objects are than the examples.
        memory: what to look for.
        finding: how.

    Returns:
        Labels ``(1, y, x)`` by falling score, with the score and the class of each.
    """
    memory, finding = memory.at(magnification), finding.at(magnification)
    masks = find_candidates(view, plane, finding, memory.peaks)
    shape = (1, *view.size)
    if not masks:
        return Segmentation(np.zeros(shape, np.uint32))
    if memory.mode == "crop":
        from cellseg_fewshot.crop import describe_crops

        masks = _apart(masks)  # each of them is encoded
        descriptors = describe_crops(encoder, plane, masks, memory.occupancy, CROPS)
    else:
        descriptors = view.describe(masks)
    candidates = Candidates(
        descriptors.cpu().numpy(),
        measure(masks),
        np.array([one.score for one in masks]),
        cut_off(masks, view.size),
    )
    scores = memory.scores(candidates, finding.size_prior, finding.shape_prior)
    best, which = scores.max(1), scores.argmax(1)
    passed = [
        (replace(mask, score=float(score)), memory.kinds[kind])
        for mask, score, kind in zip(masks, best, which, strict=True)
        if score >= finding.threshold
    ]
    found, kinds = [mask for mask, _ in passed], [kind for _, kind in passed]
    order = ranked(found)
    kept = suppress_masks([found[i] for i in order], finding.iou, finding.containment)
    chosen = [order[i] for i in kept]
    return _painted([found[i] for i in chosen], [kinds[i] for i in chosen], shape)


def resolve(options: FewshotPredictOptions, memory: Memory) -> Finding:
    """Options with all that was not given decided.

    Raises:
        ConfigError: options that do nothing with this memory.
    """
    crop = memory.mode == "crop"
    if crop and options.similarity_peaks:
        raise ConfigError(
            "--similarity-peaks: a model of the mode crop knows no features of a whole tile.",
            hint="Leave it out, or learn with --mode dense.",
        )
    size = not crop if options.size_prior is None else options.size_prior
    shape = not crop if options.shape_prior is None else options.shape_prior
    least, most = options.min_mask_area, options.max_mask_area
    if least is None:
        least = _CROP_AREA if crop else memory.areas[0] // 2
    if most is None:
        most = 0 if crop else 2 * memory.areas[1]
    threshold = options.similarity_threshold
    if threshold is None:
        threshold = _CROP_THRESHOLD if crop else memory.threshold(size, shape)
    per_side = options.points_per_side
    if per_side is None and crop:
        per_side = _CROP_POINTS
    blobs = not crop if options.blobs is None else options.blobs
    if crop and per_side == 0 and not blobs:
        raise ConfigError(
            "--points-per-side 0: nothing is left to ask for candidates with a model of the mode"
            " crop.",
            hint="Leave it out, or add --blobs.",
        )
    if crop and options.magnification is not None:
        raise ConfigError(
            "--magnification: a model of the mode crop finds objects of any size.",
            hint="Leave it out.",
        )
    return Finding(
        magnification=1.0 if crop else options.magnification,
        own_areas=(
            not crop and options.min_mask_area is None,
            not crop and options.max_mask_area is None,
        ),
        points_per_side=per_side,
        peaks=not crop and options.similarity_peaks is not False,
        blobs=blobs,
        areas=(least, most),
        diameters=memory.diameters,
        threshold=threshold,
        size_prior=size,
        shape_prior=shape,
        iou=options.nms_threshold,
        containment=options.containment_threshold,
    )


def _apart(masks: Sequence[FoundMask]) -> list[FoundMask]:
    """Masks of which no two have boxes that overlap much: as Segment Anything's own tool proposes
    them, the better one stays (arXiv:2304.02643, appendix B)."""
    boxes = torch.tensor(
        [(x, y, x + one.mask.shape[1] - 1, y + one.mask.shape[0] - 1)
         for one in masks for y, x in [one.corner]]
    )  # fmt: skip
    kept = suppress(boxes, torch.tensor([one.score for one in masks]), _CROP_OVERLAP)
    return [masks[index] for index in sorted(kept.tolist())]


def _painted(
    masks: Sequence[FoundMask], kinds: Sequence[int], shape: tuple[int, int, int]
) -> Segmentation:
    """Masks in the order of ``ranked`` as labels, each with its class."""
    painted = paint(
        [one.mask[None] for one in masks],
        [(0, *one.corner) for one in masks],
        [one.score for one in masks],
        shape,
    )
    classes: dict[int, int] = {}
    for one, kind in zip(masks, kinds, strict=True):
        label = len(classes) + 1  # the order is that in which they were painted
        if (painted.labels[0][box(one)][one.mask] == label).any():
            classes[label] = kind
    return replace(painted, classes=classes)
