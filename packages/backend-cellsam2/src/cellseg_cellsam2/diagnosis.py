"""What ``cellseg doctor`` says of this backend. Light; heavy imports are in the function."""

from __future__ import annotations

from collections.abc import Iterator

from cellseg.diagnosis import needed
from cellseg.specs import Finding
from cellseg.torch.sam2.diagnosis import sam2


def checks() -> Iterator[Finding]:
    """SAM 2, and the package for --lora."""
    yield from sam2()
    yield needed("peft", "peft")
