"""Errors cellseg raises on purpose.

Each carries a message that names the file or flag at fault, an optional hint with the next
command to type, and the exit code of the command line. The CLI turns them into one line in one
place; anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class CellsegError(Exception):
    """Base class: ``except CellsegError`` catches everything below."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if hint is not None:
            self.add_note(hint)  # which a traceback shows: in Python nobody prints the hint


class UsageError(CellsegError, ValueError):
    """The command was put together wrongly: a flag missing, or two that exclude each other."""

    exit_code = 2


class ConfigError(CellsegError, ValueError):
    """An option, a config file or a preset is invalid or unknown."""

    exit_code = 3


class DataError(CellsegError, ValueError):
    """An image, a label image, a run directory or a data set cannot be used as asked."""

    exit_code = 4


class UnreadableImagesError(DataError):
    """Some images of a data set cannot be used; it carries those that can.

    Args:
        message: tells all problems.
        samples: those that can be used (``cellseg.data.Sample``), in the order of the reader.
        problems: what is wrong, by the name of an image or by its path.
        hint: what to do.
    """

    def __init__(
        self,
        message: str,
        samples: Sequence[Any],
        problems: Mapping[str, str],
        *,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.samples = samples
        self.problems = problems


class PluginError(CellsegError):
    """A plugin is installed but broken: it cannot be imported, or breaks a rule."""

    exit_code = 5


class UnknownPluginError(PluginError, LookupError):
    """Nobody provides the trainer, predictor, exporter or reader asked for."""


class WeightsError(CellsegError):
    """Weights are missing, unreadable, or not what their checksum says."""

    exit_code = 6


class DeviceError(CellsegError, RuntimeError):
    """A device is missing, or its memory does not suffice."""

    exit_code = 7


class StorageError(CellsegError, OSError):
    """The output cannot be written: the disk is full, or permission is missing."""

    exit_code = 7


class DivergedError(CellsegError, ArithmeticError):
    """Training produced NaN, infinity or a loss that explodes."""

    exit_code = 8


class PartialError(CellsegError):
    """The work is done, but some items failed; the message lists them.

    Args:
        message: lists the first of them.
        failed: all of them, and why.
        hint: what to do.
    """

    exit_code = 9

    def __init__(
        self, message: str, failed: Mapping[str, str] | None = None, *, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.failed = dict(failed or {})


class InterruptedRunError(CellsegError):
    """The user or the scheduler stopped the work; its state is saved."""

    exit_code = 130
