"""Check a data set before training on it: every file gets a verdict, and none stops the check."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field, model_validator

from cellseg.checks.findings import DataReport, Figure, FileVerdict, Finding
from cellseg.checks.limits import Limits
from cellseg.data import Sample
from cellseg.errors import DataError
from cellseg.events import Emit, Progress
from cellseg.locations import Location
from cellseg.plugins import Plugins
from cellseg.splits import SplitOptions, make_splits

__all__ = ["CheckSettings", "DataReport", "check"]


class CheckSettings(SplitOptions, Limits):
    """How to read and split the images, and what to measure the objects against."""

    panels: ClassVar = {"Data": ("val", "reader", "seed")}

    val: Location | None = None
    """Validation images with labels; without it, the images are divided as training would."""
    reader: str = "auto"
    """How to read the images; auto finds out from the path."""
    seed: int = Field(default=0, ge=0)
    """Seed of the splits, as for training."""

    @model_validator(mode="after")
    def _one_source_of_validation(self) -> CheckSettings:
        if self.val is not None and self.splits is not None:
            raise ValueError("--val and --splits exclude each other: both say what to validate on")
        if self.val is not None and self.split != "train-val":
            raise ValueError(f"--val and --split {self.split} exclude each other")
        if self.val is not None and self.test_fraction:
            raise ValueError("--val and --test-fraction exclude each other")
        return self


def check(
    plugins: Plugins,
    path: Path,
    settings: CheckSettings | None = None,
    reader_options: Mapping[str, object] | None = None,
    *,
    emit: Emit = lambda event: None,
) -> DataReport:
    """Look at all images and labels of ``path``, block by block, and say what is wrong.

    Args:
        plugins: where to find the reader.
        path: images with labels, as some reader understands them.
        settings: how to split, and what to measure against.
        reader_options: options of the reader, by name.
        emit: gets a ``Progress`` for each image.

    Returns:
        A report whose ``ok`` is False where training would be wrong.

    Raises:
        DataError: no reader understands ``path``.
        ConfigError: more folds than source images, or an unknown reader option.
    """
    from cellseg.checks.opening import open_each
    from cellseg.checks.samples import examine
    from cellseg.checks.sets import about_the_set, compared
    from cellseg.readers import reader_for

    settings, options = settings or CheckSettings(), reader_options or {}
    reader = reader_for(plugins, path, settings.reader).name
    opened = open_each(plugins, path, settings.reader, options)
    refused = list(opened.refused)
    given: list[Sample] = []
    if settings.val is not None:
        validation = open_each(plugins, settings.val, settings.reader, options)
        given, refused = validation.samples, refused + validation.refused
    findings: list[Finding] = []
    sides = [""] * len(opened.samples)
    if settings.val is not None:
        sides = ["train"] * len(opened.samples)
    elif opened.samples:
        sides, findings = _sides(opened.samples, settings, bool(refused))
    samples = list(zip(opened.samples + given, sides + ["val"] * len(given), strict=True))
    examined = []
    for step, (sample, side) in enumerate(samples, start=1):
        examined.append(examine(sample, settings, side))
        emit(Progress(step, len(samples)))
    findings += about_the_set(examined, settings)
    files = [*compared(examined), *refused]
    return DataReport(path, reader, tuple(files), tuple(findings), _totals(files))


def _sides(
    samples: list[Sample], settings: CheckSettings, refused: bool
) -> tuple[list[str], list[Finding]]:
    """``train``, ``val``, ``test`` or nothing for each sample, and what hinders the division."""
    try:
        splits = make_splits(samples, settings, settings.seed)
    except DataError as error:
        nowhere = [""] * len(samples)
        if refused:  # the names are incomplete; what is wrong is said already
            return nowhere, []
        alone = len({sample.group for sample in samples}) == 1 and settings.splits is None
        alone = alone and settings.split != "blocks"
        finding = Finding(
            "one-source" if alone else "splits",
            "warning" if alone else "error",
            str(error),
            error.hint or "",
        )
        return nowhere, [finding]
    names = {"test": splits.test, "val": splits.val, "train": splits.train}
    side_of = {name: side for side, each in names.items() for name in each}
    return [side_of.get(sample.name, "") for sample in samples], []


def _totals(files: list[FileVerdict]) -> dict[str, Figure]:
    counts = [count for file in files if isinstance(count := file.figures.get("objects"), int)]
    return {"images": len(files), "objects": sum(counts)}
