"""What an experiment found."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cellseg.errors import ConfigError, DataError
from cellseg.files import write_atomic
from cellseg.metrics.significance import Paired, paired_test
from cellseg.workflows.cross_validate_results import Spread

TESTED = ("f1@0.50", "mSA@0.50:0.95")
"""The scores that are tested against those of the start model."""


@dataclass(frozen=True, kw_only=True)
class FoldResult:
    """One training, and what its model does to images that it never saw."""

    fold: int
    """From 0; the only one of ``train_val_split`` and ``full_dataset`` is 0."""
    run: Path
    """The run directory, ``models/fold_0``; ``cellseg predict --model`` takes it."""
    train: tuple[str, ...]
    """Names of the images that it learned from."""
    val: tuple[str, ...]
    """Those that chose the best weights and the box threshold."""
    test: tuple[str, ...]
    """Those that it is judged by; none with ``full_dataset``."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Over all objects of the test images, named as ``cellseg evaluate`` does; empty where there
    are none."""
    per_image: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """The same of each test image."""
    start_scores: Mapping[str, float] = field(default_factory=dict)
    """``scores`` of the model before it was trained, with ``preeval``."""
    start_per_image: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """``per_image`` of it."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """The source of each test image."""


@dataclass(frozen=True, kw_only=True)
class ExperimentResults:
    """All folds of an experiment, and what they say together."""

    path: Path
    """The folder of the experiment."""
    strategy: str
    individual: tuple[FoldResult, ...]

    @property
    def aggregated(self) -> dict[str, Spread]:
        """Mean and spread of each score over the folds; empty with ``full_dataset``."""
        return _spreads([one.scores for one in self.individual])

    @property
    def aggregated_start(self) -> dict[str, Spread]:
        """The same of the models before they were trained, with ``preeval``."""
        return _spreads([one.start_scores for one in self.individual])

    @property
    def tests(self) -> dict[str, Paired]:
        """What training changed, image by image (``paired_test``), with ``preeval``; images
        without a true object are left out."""
        if not any(one.start_per_image for one in self.individual):
            return {}
        after, before = self._of_images("per_image"), self._of_images("start_per_image")
        return {name: _test(name, after, before, self._groups) for name in TESTED}

    def compare(self, other: ExperimentResults, metric: str = TESTED[0]) -> Paired:
        """Test a score of this experiment against that of another one, image by image.

        Args:
            other: an experiment on the same images; of two with ``k_fold`` and one ``seed``, each
                image was judged by models that learned from the same others.
            metric: a score that images have.

        Returns:
            How much higher this one's scores are (``cellseg.metrics.significance.paired_test``).

        Raises:
            ConfigError: they were judged by other images, or do not have the score.
        """
        mine, theirs = self._of_images("per_image"), other._of_images("per_image")
        if not mine or mine.keys() != theirs.keys():
            raise ConfigError(
                f"{self.path} and {other.path} were not judged by the same images.",
                hint="Give both the same images, strategy, k_folds and seed.",
            )
        return _test(metric, mine, theirs, self._groups)

    def to_dict(self) -> dict[str, Any]:
        """What ``aggregated_results.json`` holds: plain values, NaN as None."""
        plain: dict[str, Any] = _plain(
            {
                "strategy": self.strategy,
                "folds": len(self.individual),
                "scores": {name: asdict(one) for name, one in self.aggregated.items()},
                "start_scores": {n: asdict(one) for n, one in self.aggregated_start.items()},
                "tests": {name: asdict(one) for name, one in self.tests.items()},
                "remark": self.remark,
            }
        )
        return plain

    @property
    def remark(self) -> str:
        """What is to be known when the scores are read; empty where there is nothing."""
        if self.strategy == "full_dataset":
            return "All images were trained on: there are none to judge the model by."
        if len(self.individual) == 1:
            return "One division of the images: there is no spread."
        return ""

    def __str__(self) -> str:
        """The main scores, in a few words."""
        said = [
            f"{name} {found.mean:.3f}" + ("" if math.isnan(found.sd) else f" ± {found.sd:.3f}")
            for name in TESTED
            if (found := self.aggregated.get(name)) is not None
        ]
        return f"{self.path}: " + (", ".join(said) or self.remark)

    def save(self) -> None:
        """Write ``individual_results.json`` and ``aggregated_results.json``.

        Raises:
            StorageError: they cannot be written.
        """
        folder = self.path / "results"
        individual = [_plain(asdict(one)) for one in self.individual]
        for name, content in (("individual", individual), ("aggregated", self.to_dict())):
            text = json.dumps(content, indent=2) + "\n"
            write_atomic(folder / f"{name}_results.json", text)

    @classmethod
    def load(cls, folder: str | Path) -> ExperimentResults:
        """Read the results of a finished experiment.

        Args:
            folder: of the experiment.

        Raises:
            DataError: there are none.
        """
        folder = Path(folder)
        try:
            read = {
                name: json.loads((folder / "results" / f"{name}_results.json").read_text())
                for name in ("individual", "aggregated")
            }
            individual = tuple(fold_from(one) for one in read["individual"])
            return cls(path=folder, strategy=read["aggregated"]["strategy"], individual=individual)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{folder}: holds no results of an experiment.",
                hint="Run it to its end: ExperimentRunner(config).run()",
            ) from error

    @property
    def _groups(self) -> dict[str, str]:
        return {name: group for one in self.individual for name, group in one.groups.items()}

    def _of_images(self, which: str) -> dict[str, Mapping[str, float]]:
        return {n: s for one in self.individual for n, s in getattr(one, which).items()}


def fold_from(values: Mapping[str, Any]) -> FoldResult:
    """A fold from what JSON held of it."""

    def images(name: str) -> dict[str, dict[str, float]]:
        return {image: _numbers(one) for image, one in values[name].items()}

    return FoldResult(
        fold=int(values["fold"]),
        run=Path(values["run"]),
        train=tuple(values["train"]),
        val=tuple(values["val"]),
        test=tuple(values["test"]),
        scores=_numbers(values["scores"]),
        per_image=images("per_image"),
        start_scores=_numbers(values["start_scores"]),
        start_per_image=images("start_per_image"),
        groups=dict(values["groups"]),
    )


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: math.nan if one is None else float(one) for name, one in values.items()}


def _plain(value: Any) -> Any:
    """As JSON has it: NaN and infinity are None, paths are texts."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _spreads(folds: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    names = dict.fromkeys(name for one in folds for name in one)
    return {name: Spread.of([one.get(name, math.nan) for one in folds]) for name in names}


def _test(
    metric: str,
    mine: Mapping[str, Mapping[str, float]],
    theirs: Mapping[str, Mapping[str, float]],
    groups: Mapping[str, str],
) -> Paired:
    for scores in (*mine.values(), *theirs.values()):
        if metric not in scores:
            known = ", ".join(name for name in scores if "@" in name)
            raise ConfigError(f"Images have no score {metric!r}.", hint=f"Known: {known}.")
    ours, others = (
        {n: one[metric] if one["n_true"] else math.nan for n, one in side.items()}
        for side in (mine, theirs)
    )
    return paired_test(ours, others, groups)
