"""The folder that results go into."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from cellseg.errors import UsageError


def output_folder(output: Path | None, files: Container[str], why: str) -> Path:
    """The folder that ``--output`` names.

    Args:
        output: as the user gives it.
        files: extensions, in small letters, by which a file is told from a folder.
        why: what the message says of a file, such as "each movie gets its files there".

    Raises:
        UsageError: it is missing, or names a file.
    """
    if output is None:
        raise UsageError("Where to? --output is missing.", hint="Give --output FOLDER.")
    refuse_file(output, files, why)
    return output


def refuse_file(output: Path, files: Container[str], why: str, more: str = "") -> None:
    """Raise a UsageError if a folder is wanted and ``output`` looks like a file; ``more`` is added
    to the command that its hint suggests."""
    if output.suffix.lower() in files and not output.is_dir():
        raise UsageError(
            f"--output {output}: give a folder, not a file; {why}.",
            hint=f"--output {output.with_suffix('')}{more}",
        )
