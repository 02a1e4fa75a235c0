"""Which images a job works on, where some of them cannot be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cellseg.bundle import Bundle
from cellseg.data import Dataset, Sample
from cellseg.engine.failures import named
from cellseg.engine.items import Item, item_name
from cellseg.errors import DataError
from cellseg.options import flag
from cellseg.workflows.models import check_images


def usable(
    samples: Dataset, images: Path, bundle: Bundle | None, problems: dict[str, str]
) -> list[Sample]:
    """Those samples that the model takes; a movie counts as a whole.

    Args:
        samples: what can be read.
        images: the path that was given.
        bundle: of the model.
        problems: gets why others cannot be used, by the names of images.

    Raises:
        DataError: there is none.
    """
    wrong: dict[str, str] = {}
    for sample in samples:
        try:
            check_images([sample], images, bundle)
        except DataError as problem:
            wrong.setdefault(item_name(sample), str(problem))
    kept = [sample for sample in samples if item_name(sample) not in wrong]
    if not kept:
        check_images(samples, images, bundle)
    problems |= wrong
    return kept


def refuse_nothing(items: Sequence[Item], problems: Mapping[str, str]) -> None:
    """Raise a DataError where no image is left."""
    if not items:
        raise DataError(named(problems))


def refuse_numbers(name: str, chosen: object, problems: Mapping[str, str]) -> None:
    """Raise a DataError where an option chooses images by numbers, and some cannot be counted."""
    if problems and any(letter.isdigit() for letter in str(chosen)):
        raise DataError(
            f"{flag(name)} counts images, and some cannot be used: {named(problems)}",
            hint=f"Mend them, or leave {flag(name)} out.",
        )
