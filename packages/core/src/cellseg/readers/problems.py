"""Errors of damaged files, and problems of many files told in one error.

Nobody wants to mend a folder file by file, one error at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cellseg.errors import CellsegError, DataError


class Problems:
    """The DataErrors met so far.

    with problems.kept():
        open one file
    ...
    problems.refuse()
    """

    def __init__(self) -> None:
        self._met: list[DataError] = []

    def add(self, problem: DataError) -> None:
        """Note one problem."""
        self._met.append(problem)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep a DataError for later instead of stopping at it."""
        try:
            yield
        except DataError as problem:
            self.add(problem)

    def refuse(self) -> None:
        """Raise one DataError for all that were met, if any."""
        if len(self._met) == 1:
            raise self._met[0]
        if self._met:
            hints = [problem.hint for problem in self._met if problem.hint]
            lines = "; ".join(str(problem).rstrip(".") for problem in self._met)
            raise DataError(
                f"{len(self._met)} images cannot be used: {lines}.",
                hint=hints[0] if hints else None,
            ) from self._met[0]


@contextmanager
def damaged(where: str) -> Iterator[None]:
    """Turn what a decoder says about a damaged file into one line that names the file."""
    try:
        yield
    except (CellsegError, MemoryError):
        raise
    except FileNotFoundError as error:
        missing = "there is no such file" if error.filename == where else str(error)
        raise DataError(f"{where}: {missing}.") from error
    except Exception as error:  # decoders raise many kinds; none of them becomes data
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{where}: cannot be read: {reason}") from error
