"""What an exporter tells the user when it is done."""

from __future__ import annotations

from cellseg.events import Emit, Note
from cellseg.torch.export_options import BioimageioOptions


def tell_difference(worst: float, emit: Emit) -> None:
    """How far the results of what was written are from the original's at most."""
    emit(Note(f"What was written gives the original's results within {worst:.2g}."))


def tell_missing(options: BioimageioOptions, emit: Emit) -> None:
    """What bioimage.io asks for beyond what makes a valid package."""
    missing = [f"--{name}" for name in ("author", "licence") if not getattr(options, name)]
    if missing:
        emit(Note(f"To be published on bioimage.io, it still needs {' and '.join(missing)}."))
