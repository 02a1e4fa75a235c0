"""What suits which model: the options of prediction that nobody gave, as numbers. Light."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from cellseg_microsam.predict_options import USED, MicrosamPredictOptions, Mode

_AIS: Mapping[str, tuple[float, float, float]] = {
    "vit_t_lm": (0.5, 0.5, 2.0),
    "vit_b_lm": (0.4, 0.5, 2.0),
    "vit_l_lm": (0.4, 0.4, 1.6),
    "vit_t_em_organelles": (0.4, 0.5, 1.2),
    "vit_b_em_organelles": (0.3, 0.4, 1.2),
    "vit_l_em_organelles": (0.3, 0.4, 1.2),
}
"""Of micro-SAM's generalists: distance from the centre, from the boundary, smoothing of both."""
_AMG: Mapping[str, tuple[float, float]] = {
    "vit_t_lm": (0.6, 0.65),
    "vit_b_lm": (0.65, 0.7),
    "vit_l_lm": (0.65, 0.73),
    "vit_t_em_organelles": (0.75, 0.75),
    "vit_b_em_organelles": (0.75, 0.75),
    "vit_l_em_organelles": (0.8, 0.8),
}
"""Of the same: predicted IoU, and stability."""
_SMALL = 100
"""Pixels of the smallest objects of the generalists, for ais and amg."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """How to segment: every option a number, each as in ``MicrosamPredictOptions``."""

    mode: Mode
    min_size: int
    nms_threshold: float
    prompts_per_batch: int
    foreground_threshold: float
    center_distance_threshold: float
    boundary_distance_threshold: float
    foreground_smoothing: float
    distance_smoothing: float
    multimask: bool
    refine_with_boxes: bool
    points_per_side: int
    pred_iou_thresh: float
    stability_score_thresh: float
    stability_score_offset: float

    def changed(self, **values: Any) -> Resolved:
        """The same with other values."""
        return replace(self, **values)

    @property
    def stored(self) -> dict[str, object]:
        """What a model's bundle keeps: the mode, and the options that it uses, without those that
        suit a computer rather than a model."""
        values = asdict(self)
        used = {name: values[name] for name in USED[self.mode] if name != "prompts_per_batch"}
        return {"segmentation_mode": self.mode, **used}


def resolve(
    options: MicrosamPredictOptions, mode: Mode, model_type: str, device: str = "cpu"
) -> Resolved:
    """What was given, and for what was not, what suits the model.

    The values of the generalists are those with which micro-SAM itself applies them (Archit et
    al. 2025, doi:10.1038/s41592-024-02580-4). Other models get the defaults of the methods.

    Args:
        options: as given.
        mode: one of the ways to segment; decides the defaults.
        model_type: what the model is, or was trained from; any name.
        device: its type, such as ``cuda``: GPUs answer more prompts at once.
    """
    center, boundary, smoothing = 0.5, 0.5, 0.0
    min_size = 0
    if mode == "ais":
        center, boundary, smoothing = _AIS.get(model_type, (0.5, 0.5, 1.6))
    if mode == "apg":
        min_size = 25
    elif mode != "prompts" and model_type in _AIS:
        min_size = _SMALL
    iou, stability = _AMG.get(model_type, (0.88, 0.95))
    defaults: dict[str, Any] = {
        "min_size": min_size,
        "nms_threshold": 0.7 if mode == "amg" else 0.9,
        "prompts_per_batch": 64 if device == "cuda" else 4,
        "center_distance_threshold": center,
        "boundary_distance_threshold": boundary,
        "foreground_smoothing": 1.0 if mode == "ais" else 0.0,
        "distance_smoothing": smoothing,
        "pred_iou_thresh": iou,
        "stability_score_thresh": stability,
    }
    values: dict[str, Any] = {"mode": mode}
    for name in Resolved.__dataclass_fields__.keys() - {"mode"}:
        given = getattr(options, name)
        values[name] = defaults[name] if given is None else given
    return Resolved(**values)
