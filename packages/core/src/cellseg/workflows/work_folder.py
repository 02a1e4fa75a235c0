"""Where a prediction keeps its unfinished work: always in a file system, never at an address."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from cellseg.locations import is_remote
from cellseg.workflows.predict_settings import PredictSettings

WORK = ".cellseg"
_LONGEST = 60


def work_folder(images: Path, settings: PredictSettings) -> Path:
    """The work folder of a prediction, by where its results go.

    Beside results on this computer; else in ``--work``, or among the user's caches, in a folder
    for each address.
    """
    output, label = settings.output, settings.label_name
    goal = output if output is not None else images.resolve()
    if settings.work is None and not is_remote(goal):
        return goal / WORK if output is not None else goal.parent / f".{goal.name}.{label}{WORK}"
    about = str(goal.absolute()) + (f" {label}" if output is None else "")
    return _base(settings) / f"{_slug(goal)}-{hashlib.sha256(about.encode()).hexdigest()[:12]}"


def work_notes(images: Path, settings: PredictSettings) -> list[str]:
    """Where unfinished work is, if nobody said so."""
    goal = settings.output if settings.output is not None else images
    if settings.work is not None or not is_remote(goal):
        return []
    return [
        f"Unfinished work is kept in {work_folder(images, settings)} until {goal} is whole; --work "
        "chooses another folder."
    ]


def _base(settings: PredictSettings) -> Path:
    if settings.work is not None:
        return settings.work
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("cellseg")) / "work"


def _slug(goal: Path) -> str:
    """A name that people recognise."""
    words = re.sub(r"[^A-Za-z0-9.]+", "-", str(goal).partition("://")[2] or goal.name)
    return words.strip("-.")[-_LONGEST:].strip("-.") or "work"
