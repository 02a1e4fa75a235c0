"""What ``cellseg doctor`` says of this backend. Light; heavy imports are in the function."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from cellseg.diagnosis import needed, optional
from cellseg.specs import Finding
from cellseg.torch.sam.diagnosis import segment_anything
from cellseg.torch.sam2.diagnosis import sam2
from cellseg_fewshot.encoder_names import ENCODERS


def checks() -> Iterator[Finding]:
    """Which encoders there are, and what --refine needs."""
    yield needed("higra", "higra")
    yield from segment_anything(mobile=False)
    if find_spec("sam2") is None:
        what = f"the encoders {', '.join(name for name in ENCODERS if name.startswith('sam2'))}"
        install = 'SAM2_BUILD_CUDA=0 uv pip install "cellseg-fewshot[sam2]"'
        yield optional("sam2", "sam2", what, install)
    else:
        yield from sam2()
    yield optional("peft", "peft", "--refine", 'uv pip install "cellseg-fewshot[refine]"')
    here = [name for name in ENCODERS if name == "filters" or find_spec(_package(name))]
    yield Finding("ok", "encoders", f"{len(here)} of {len(ENCODERS)}: {', '.join(here)}")


def _package(encoder: str) -> str:
    return "sam2" if encoder.startswith("sam2") else "segment_anything"
