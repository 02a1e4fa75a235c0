"""Errors of damaged files, and problems of many files told in one error.

Nobody wants to mend a folder file by file, one error at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cellseg.data import Sample
from cellseg.errors import CellsegError, DataError, UnreadableImagesError


class Problems:
    """The DataErrors met so far, each with the name of the image (or the path) at fault.

    with problems.kept(name):
        open one file
    ...
    problems.refuse(samples)
    """

    def __init__(self) -> None:
        self._met: list[DataError] = []
        self._named: dict[str, str] = {}

    def add(self, problem: DataError, name: str) -> None:
        """Note one problem, or all those that one error tells of."""
        self._met.append(problem)
        several = problem.problems if isinstance(problem, UnreadableImagesError) else None
        for at, text in (several or {name: str(problem)}).items():
            self._named[at] = f"{self._named[at]}; {text}" if at in self._named else text

    @contextmanager
    def kept(self, name: str) -> Iterator[None]:
        """Keep a DataError for later instead of stopping at it."""
        try:
            yield
        except DataError as problem:
            self.add(problem, name)

    @property
    def named(self) -> dict[str, str]:
        """What is wrong, by the name or path of an image."""
        return dict(self._named)

    def refuse(self, samples: Sequence[Sample] = (), hint: str | None = None) -> None:
        """Raise one error for all that were met, if any.

        Args:
            samples: what can be used all the same, in their order.
            hint: what to do, where no problem has a hint of its own.

        Raises:
            UnreadableImagesError: there are problems, and samples beside them.
            DataError: there are problems, and nothing else.
        """
        if not self._met:
            return
        hints = [problem.hint for problem in self._met if problem.hint]
        advice = hints[0] if hints else hint
        message = str(self._met[0])
        if len(self._met) > 1:
            lines = "; ".join(str(problem).rstrip(".") for problem in self._met)
            message = f"{len(self._met)} images cannot be used: {lines}."
        if samples:
            raise UnreadableImagesError(
                message, samples, dict(self._named), hint=advice
            ) from self._met[0]
        if len(self._met) == 1 and advice == self._met[0].hint:
            raise self._met[0]
        raise DataError(message, hint=advice) from self._met[0]


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
