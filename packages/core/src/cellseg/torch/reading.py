"""Reading files of weights that anybody may have written: nothing in them is executed.

The one place where cellseg opens what ``torch.save`` or safetensors wrote.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253
from torch.overrides import TorchFunctionMode  # noqa: TID253

from cellseg.errors import CellsegError, WeightsError
from cellseg.limits import MEGABYTE, size_text

DAMAGED = (
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    EOFError,
    TypeError,
    AttributeError,
    AssertionError,
    MemoryError,
    zipfile.BadZipFile,
)
"""What torch raises when a file is damaged, beside its own error."""
_HINT = "Copy the whole model directory again, or train again."
_SLACK = 16 * MEGABYTE
_FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}
_LEFT_OUT = ("generator", "pin_memory", "out")
"""Arguments that mean nothing on the device meta."""
_MOST_TENSORS = 1_000_000


class UnsafeWeightsError(WeightsError):
    """A file holds more than tensors and plain values, and reading it could run code."""

    def __init__(self, path: Path, held: list[str]) -> None:
        listed = ", ".join(held[:3]) + (", ..." if len(held) > 3 else "")
        super().__init__(
            f"{path} holds more than tensors, which is not read because it could run code:"
            f" {listed}.",
            hint="Save the state dict alone: torch.save(model.state_dict(), FILE).",
        )
        self.path, self.held = path, held


def read_file(path: Path) -> Any:
    """What a file of weights holds, on the CPU: of safetensors, or of ``torch.save``.

    Raises:
        WeightsError: it is missing or damaged, asks for more memory than it has bytes, or holds
            more than tensors and plain values.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with torch_errors(path):
            values = torch.load(path, map_location="cpu", weights_only=True)
        refuse_inflated(values, path)
        return values
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing.", hint="Give a file with weights.") from None
    except CellsegError:
        raise
    except (*DAMAGED, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read: {first_line(error)}") from error


@contextmanager
def torch_errors(path: Path) -> Iterator[None]:
    """Around ``torch.load(path, weights_only=True)``: refuse archives that inflate beforehand, and
    say what a file holds that could run code.

    Raises:
        WeightsError: it is such a file.
    """
    _refuse_bomb(path)
    try:
        yield
    except pickle.UnpicklingError as error:
        held = unsafe_globals(path)
        if held:
            raise UnsafeWeightsError(path, held) from error
        raise WeightsError(
            f"{path} is damaged, was not written by torch.save, or holds more than tensors, which"
            " is not read because it could run code.",
            hint="Save the state dict alone: torch.save(model.state_dict(), FILE).",
        ) from error


def unsafe_globals(path: Path) -> list[str]:
    """The names of all that a file would call beyond what tensors need; nothing is executed."""
    from torch.serialization import get_unsafe_globals_in_checkpoint

    try:
        return sorted(get_unsafe_globals_in_checkpoint(path))
    except (*DAMAGED, pickle.UnpicklingError):
        return []


def refuse_inflated(values: Any, path: Path) -> None:
    """Raise a WeightsError for tensors that promise more than the file has, or hold no numbers.

    Args:
        values: what was read.
        path: the file.
    """
    size = path.stat().st_size
    for tensor in _tensors(values):
        if tensor.layout is not torch.strided or tensor.is_meta:
            raise WeightsError(f"{path} holds a tensor that is sparse or empty of numbers.")
        asked = tensor.numel() * tensor.element_size()
        if asked > size:
            raise WeightsError(
                f"{path} has {size_text(size)}, but a tensor in it asks for {size_text(asked)}."
            )


def first_line(error: BaseException) -> str:
    """What an error says first, or what it is called where it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@contextmanager
def built_for(weights: Path) -> Iterator[None]:
    """Around building a network that a description beside ``weights`` asks for.

    Raises:
        WeightsError: it is none, or far larger than its weights.
    """
    with built_within(str(weights), weights.stat().st_size if weights.is_file() else 0):
        yield


@contextmanager
def built_within(where: str, size: int) -> Iterator[None]:
    """Like ``built_for``, for weights of ``size`` bytes that messages call ``where``."""
    try:
        with _Budget(where, 8 * size + 256 * MEGABYTE):
            yield
    except CellsegError:
        raise
    except (*DAMAGED, ArithmeticError) as error:
        raise WeightsError(
            f"{where}: what is said of its network cannot be built: {first_line(error)}", hint=_HINT
        ) from error


class _Budget(TorchFunctionMode):  # type: ignore[misc]  # untyped where torch is left out
    """Adds up what is allocated for new tensors, before it is."""

    def __init__(self, where: str, most: int) -> None:
        super().__init__()
        self.where, self.most = where, most
        self.bytes, self.tensors = 0, 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func in _FACTORIES:
            plain = {k: v for k, v in options.items() if k not in _LEFT_OUT}
            shape = func(*args, **{**plain, "device": "meta"})
            self.bytes += shape.numel() * shape.element_size()
            self.tensors += 1
            if self.bytes > self.most or self.tensors > _MOST_TENSORS:
                raise WeightsError(
                    f"{self.where} has far fewer numbers than the network that is described beside"
                    " it.",
                    hint=_HINT,
                )
        return func(*args, **options)


def _refuse_bomb(path: Path) -> None:
    """torch stores tensors as they are: a ZIP archive that inflates is none of its own."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            inflated = sum(member.file_size for member in archive.infolist())
    except (*DAMAGED, NotImplementedError) as error:
        raise WeightsError(f"{path} is damaged: {first_line(error)}") from error
    size = path.stat().st_size
    if inflated > size + _SLACK:
        raise WeightsError(
            f"{path} has {size_text(size)}, and would unpack to {size_text(inflated)}, which no"
            " file of torch.save does."
        )


def _tensors(values: Any) -> Iterator[Tensor]:
    """All tensors in mappings and sequences, each container once."""
    waiting, seen = [values], set[int]()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, Mapping) else value
