"""Whether Triton's kernels compile for this computer's GPU, and compute the same as PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch  # noqa: TID253

from cellseg.diagnosis import installed
from cellseg.specs import Finding


def version() -> str:
    """Of Triton, which has several distributions."""
    return next(
        (v for name in ("triton", "triton-windows", "pytorch-triton") if (v := installed(name))),
        "installed",
    )


def compared(what: str, difference: Callable[[torch.device], float], most: float) -> Finding:
    """A finding about kernels: on an NVIDIA GPU they are compiled, run and compared.

    Args:
        what: the kernels.
        difference: runs them on a tiny tensor on the device, and returns how far they are from what
            PyTorch computes.
        most: what it may be.
    """
    if find_spec("triton") is None:
        return Finding("ok", what, "no Triton; PyTorch alone does the same, slower on a GPU")
    if not torch.cuda.is_available():
        return Finding("ok", what, "for NVIDIA GPUs; here PyTorch does the same on the CPU")
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        found = difference(device)
    except Exception as error:  # compilers fail in many ways; all are the finding
        first = (str(error).splitlines() or [""])[0]
        advice = (
            "Triton needs a C compiler and the Python headers: install gcc and python3-dev, or"
            " uv pip uninstall triton, and PyTorch alone does the same, slower."
        )
        return Finding(
            "problem", what, f"fail on {device}: {type(error).__name__}: {first}", advice
        )
    if not found <= most:
        advice = "Update Triton and torch together: uv pip install --upgrade torch triton"
        value = f"compute something else than PyTorch on {device}, by {found:.2g}"
        return Finding("problem", what, value, advice)
    return Finding("ok", what, f"Triton {version()} compiles them for {device}; checked")
