"""What ``cellseg doctor`` says of this backend. Light; heavy imports are in the function."""

from __future__ import annotations

from collections.abc import Iterator

from cellseg.diagnosis import needed, optional, writable
from cellseg.specs import Finding
from cellseg.torch.sam.diagnosis import segment_anything
from cellseg.torch.sam.published import models_folder


def checks() -> Iterator[Finding]:
    """Segment Anything, micro-SAM and what single options need; where models are kept."""
    yield from segment_anything()
    yield needed("micro-sam", "micro_sam")
    yield needed("torch-em", "torch_em")
    yield needed("bioimage-cpp", "bioimage_cpp")
    yield optional("bitsandbytes", "bitsandbytes", "--peft qlora")
    elsewhere = "Choose another folder: export MICROSAM_CACHEDIR=FOLDER"
    yield writable("models", models_folder(), elsewhere)
