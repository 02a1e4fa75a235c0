"""What ``cellseg doctor`` says of SAM 2. Light; heavy imports are in the function."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from cellseg.diagnosis import installed, needed
from cellseg.specs import Finding

_INSTALL = 'SAM2_BUILD_CUDA=0 uv pip install "cellseg-core[sam2]"'


def sam2() -> Iterator[Finding]:
    """Whether the package is there, and describes the sizes of SAM 2.1."""
    found = needed("sam2", "sam2", _INSTALL)
    if found.state != "ok":
        yield found
        return
    from cellseg.torch.sam2.model import described

    described("sam2.1_hiera_tiny")
    extension = "with" if find_spec("sam2._C") else "without"
    value = f"{installed('sam2')}, {extension} its CUDA extension, which cellseg does not need"
    yield Finding("ok", "sam2", value)
