"""Memory of devices and of the machine: telling that it is used up, and giving some back."""

from __future__ import annotations

import sys

_SAID = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "_status_alloc_failed",
)
"""How libraries say it, without a class of errors for it."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the device or of the machine is used up."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _SAID)


def memory_is_to_blame(error: BaseException | None) -> bool:
    """Whether an error, or one of those that it was raised from, says so."""
    while error is not None:
        if out_of_memory(error):
            return True
        error = error.__cause__
    return False


def free_memory() -> None:
    """Give back what PyTorch holds of the device without using it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
