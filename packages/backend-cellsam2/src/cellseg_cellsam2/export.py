"""Write a model for other software: SAM 2 itself."""

from __future__ import annotations

from pathlib import Path

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from cellseg import ConfigError, Emit, ExportJob, WeightsError
from cellseg.events import Note
from cellseg.files import replacing
from cellseg.torch.sam2.model import build
from cellseg.torch.sam2.sizes import PUBLISHED, RANDOM
from cellseg_cellsam2.export_options import Sam2Options
from cellseg_cellsam2.stored import load


def export_sam2(job: ExportJob[Sam2Options], emit: Emit) -> Path:
    """Write a checkpoint of SAM 2.1, for its own predictors and for ``--checkpoint``.

    Low-rank updates are part of the weights. What SAM 2 does not have, the heads of divisions and
    of the heatmap, is not.

    Raises:
        ConfigError: SAM 2 has no network of this size.
        WeightsError: sam2 does not read what was written; nothing is left behind.
        StorageError: the target cannot be written.
    """
    model, description = load(job.model)
    if model.size in RANDOM:
        raise ConfigError(
            f"SAM 2 has no network like {model.size!r}, which is cellseg's own.",
            hint=f"Fine-tune one of its sizes: {', '.join(PUBLISHED)}.",
        )
    write_sam2(model.sam, job.target, check_as=model.size if job.options.check else None)
    emit(
        Note(
            f"sam2 reads it as checkpoint of {model.size}. A pixel of the images was"
            f" {description.scale:g} pixels of a square of {description.side} in training"
            " (image_size). Divisions and the heatmap are not part of it."
        )
    )
    return job.target


def write_sam2(sam: nn.Module, target: Path, *, check_as: str | None) -> None:
    """Write what ``sam2.build_sam`` reads.

    Args:
        sam: a ``SAM2Base``, without low-rank updates.
        target: a file.
        check_as: one of ``cellseg.torch.sam2.sizes.SIZES``, to load it back with; None does not.

    Raises:
        WeightsError: what sam2 loads is not the model; nothing is left behind.
        StorageError: the target cannot be written.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in sam.state_dict().items()}
    with replacing(target) as temporary:
        with temporary.open("wb") as file:  # torch refuses names that are a suffix only
            torch.save({"model": state}, file)
        if check_as is not None:
            _check(temporary, state, check_as)


def _check(path: Path, state: dict[str, Tensor], size: str) -> None:
    """Have sam2 load a file, and compare all that it then has."""
    from sam2.build_sam import _load_checkpoint

    network = build(size)
    try:
        _load_checkpoint(network, str(path))
    except RuntimeError as error:
        reason = str(error).splitlines()[0] if str(error) else "other tensors than it expects"
        raise WeightsError(f"sam2 cannot read what was written: {reason}") from error
    found = network.state_dict()
    if found.keys() != state.keys() or not all(torch.equal(found[n], v) for n, v in state.items()):
        raise WeightsError("sam2 reads other weights than were written.")
