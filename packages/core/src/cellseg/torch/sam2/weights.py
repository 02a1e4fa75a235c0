"""Weights of SAM 2.1, of its publisher and of files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn  # noqa: TID253

from cellseg.download.published import fetch_weights
from cellseg.errors import WeightsError
from cellseg.events import Emit
from cellseg.specs import BaseWeights
from cellseg.torch.sam.weights import read_tensors
from cellseg.torch.sam2.model import build
from cellseg.torch.sam2.sizes import PUBLISHED

_TRUNK = "image_encoder.trunk."
_SIZES = {
    (96, 12): "sam2.1_hiera_tiny",
    (96, 16): "sam2.1_hiera_small",
    (112, 24): "sam2.1_hiera_base_plus",
    (144, 48): "sam2.1_hiera_large",
    (16, 5): "nano",
    (32, 7): "micro",
}
"""Width and number of blocks of the image encoder."""


def load_published(name: str, emit: Emit, side: int | None = None) -> tuple[nn.Module, BaseWeights]:
    """A published size, downloaded if it is not there yet.

    Args:
        name: a key of ``PUBLISHED``.
        emit: gets the progress of a download.
        side: as in ``build``.

    Raises:
        ConfigError: the package sam2 is not installed.
        WeightsError: it cannot be downloaded, or does not fit.
    """
    model = build(name, side)  # before a download that would be of no use
    path, base = fetch_weights(PUBLISHED[name], PUBLISHED[name].files[0], emit)
    fill(model, tensors_of(read_tensors(path)), str(path))
    return model, base


def holds_sam2(values: Mapping[str, Any]) -> bool:
    """Whether the tensors of a file are those of SAM 2."""
    return any(name.startswith(_TRUNK) for name in tensors_of(values))


def tensors_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a file of SAM 2, which has them under ``model``, or at the top."""
    inner = values.get("model")
    return {str(n): v for n, v in (inner if isinstance(inner, Mapping) else values).items()}


def size_of(tensors: Mapping[str, Tensor], path: Path) -> str:
    """The name of the size that tensors have, among ``SIZES``.

    Raises:
        WeightsError: they have none of them; ``path`` is where they are from.
    """
    blocks = {n.split(".")[3] for n in tensors if n.startswith(f"{_TRUNK}blocks.")}
    first = tensors.get(f"{_TRUNK}patch_embed.proj.weight")
    width = 0 if first is None else len(first)
    if (width, len(blocks)) not in _SIZES:
        raise WeightsError(
            f"{path} holds a SAM 2 of {len(blocks)} blocks of width {width}, which is none of the"
            " published sizes.",
            hint=f"There are: {', '.join(PUBLISHED)}.",
        )
    return _SIZES[width, len(blocks)]


def fill(model: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Put weights into a model.

    Raises:
        WeightsError: they do not fit; ``what`` is what messages call them.
    """
    try:
        model.load_state_dict(dict(tensors))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise WeightsError(
            f"{what} does not fit SAM 2.1: {reason}",
            hint="Weights of SAM 2.0 are of another network: take those of SAM 2.1.",
        ) from error
