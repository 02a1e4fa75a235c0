"""The encoders. Light: what one needs is imported when it is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellseg.errors import ConfigError, WeightsError
from cellseg.events import Emit, Event
from cellseg.options import flag
from cellseg.specs import BaseWeights
from cellseg_fewshot.encoder_names import EncoderName

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cellseg_fewshot.views import Encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSettings:
    """Which encoder, and how it answers; each as in the options of the same name."""

    name: EncoderName | None = None
    checkpoint: Path | None = None
    precision: str = "32-true"
    pred_iou_thresh: float | None = None
    stability_score_thresh: float | None = None
    points_per_batch: int | None = None


def _ignored(event: Event) -> None:
    """Where nobody looks."""


def open_encoder(settings: EncoderSettings, device: torch.device, emit: Emit = _ignored) -> Encoder:
    """The encoder that a training starts from.

    Args:
        settings: the name or the file; without both, ``filters``. Of a file it is seen from its
            tensors what it holds.
        device: where to compute.
        emit: gets the progress of a download.

    Raises:
        ConfigError: settings that exclude each other, or that do nothing with this encoder; a file
            that holds another encoder than the one named; a package that is not installed.
        DeviceError: the device cannot compute in this precision.
        WeightsError: weights cannot be had or read.
    """
    name = settings.name
    if settings.checkpoint is not None:
        return _of_file(settings, settings.checkpoint, device)
    if name is None or name == "filters":
        return _filters(settings, None, device)
    if name.startswith("sam2"):
        from cellseg_fewshot.encoders.sam2 import Sam2Encoder

        return Sam2Encoder.published(settings, device, emit)
    from cellseg_fewshot.encoders.sam import SamEncoder

    return SamEncoder.published(settings, device, emit)


def describe_encoder(encoder: Encoder) -> dict[str, Any]:
    """What a model keeps of an encoder beside its tensors, as JSON can hold it."""
    description: dict[str, Any] = getattr(encoder, "description", {"kind": "filters"})
    return description


def base_weights(encoder: Encoder) -> tuple[BaseWeights, ...]:
    """The published weights, or the file, that an encoder is from; none for ``filters``."""
    bases: tuple[BaseWeights, ...] = getattr(encoder, "bases", ())
    return bases


def restore_encoder(
    description: Mapping[str, Any],
    state: Mapping[str, Tensor],
    settings: EncoderSettings,
    device: torch.device,
    emit: Emit = _ignored,
) -> Encoder:
    """The encoder of a stored model. Published weights are downloaded if they are not there.

    Args:
        description: what ``describe_encoder`` gave.
        state: what ``Encoder.state`` gave.
        settings: how it computes and answers; name and checkpoint are those of the model.
        device: where to compute.
        emit: gets the progress of a download.

    Raises:
        ConfigError: settings that do nothing with this encoder, or a package is not installed.
        DeviceError: the device cannot compute in this precision.
        WeightsError: weights cannot be had, or do not fit.
    """
    if settings.name is not None or settings.checkpoint is not None:
        raise ConfigError(
            "--encoder and --checkpoint: a model brings its encoder.", hint="Leave them out."
        )
    kind = description.get("kind")
    if kind == "filters":
        return _filters(settings, state, device)
    if kind == "sam":
        from cellseg_fewshot.encoders.sam import SamEncoder

        return SamEncoder.restored(description, state, settings, device, emit)
    if kind == "sam2":
        from cellseg_fewshot.encoders.sam2 import Sam2Encoder

        return Sam2Encoder.restored(description, state, settings, device, emit)
    raise WeightsError(
        f"The model has an encoder of the kind {kind!r}, which this cellseg does not know.",
        hint="Update cellseg, or train again.",
    )


def _filters(
    settings: EncoderSettings, state: Mapping[str, Tensor] | None, device: torch.device
) -> Encoder:
    """The encoder without weights: new, or of a model."""
    idle = [
        flag(name)
        for name in ("pred_iou_thresh", "stability_score_thresh", "points_per_batch")
        if getattr(settings, name) is not None
    ]
    if settings.precision != "32-true":
        idle.append("--precision")
    if idle:
        raise ConfigError(
            f"{' and '.join(idle)}: nothing to do with the encoder filters.",
            hint="Leave out what is only for encoders with weights, such as sam_vit_b_01ec64.",
        )
    from cellseg_fewshot.encoders.filters import FilterEncoder

    return FilterEncoder.create(device) if state is None else FilterEncoder.restore(state, device)


def _of_file(settings: EncoderSettings, path: Path, device: torch.device) -> Encoder:
    """The encoder whose weights are in a file."""
    if settings.name == "filters":
        raise ConfigError(
            f"--checkpoint {path}: does nothing with --encoder filters, which needs no weights."
        )
    if path.is_dir():
        raise ConfigError(
            f"--checkpoint {path}: is a folder, not a file with weights.",
            hint="Give the file in it, such as weights.safetensors.",
        )
    from cellseg.torch.sam.weights import read_tensors
    from cellseg.torch.sam2.weights import holds_sam2
    from cellseg_fewshot.encoders.sam import SamEncoder
    from cellseg_fewshot.encoders.sam2 import Sam2Encoder

    values = read_tensors(path)
    second = holds_sam2(values)
    if settings.name is not None and second != settings.name.startswith("sam2"):
        held = "SAM 2" if second else "another model than SAM 2"
        raise ConfigError(
            f"--checkpoint {path}: holds {held}, not --encoder {settings.name}.",
            hint="Leave out --encoder: the file says what it holds.",
        )
    if second:
        return Sam2Encoder.of_file(settings, path, values, device)
    return SamEncoder.of_file(settings, path, device)
