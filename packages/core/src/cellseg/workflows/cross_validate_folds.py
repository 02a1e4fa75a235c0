"""The folds of a cross-validation, and its folder: what was asked for, and what is done.

DIR/
    cross_validation.json   what was asked for, the folds included: written before any work
    splits/fold-0.json      what trains, validates and is held out
    fold-0/                 the run of the first fold; as any run, cellseg resume included
    scores/fold-0.json      what its model is worth on the images that it never saw
    scores/before-0.json    the same of the model that it started from
    results.json, results.csv, report.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellseg.data import Dataset
from cellseg.errors import ConfigError, DataError, UsageError
from cellseg.files import make_folder, remove, remove_leftovers, write_atomic
from cellseg.locks import LOCK
from cellseg.options import flag
from cellseg.splits import Splits, divided, ranked_groups
from cellseg.workflows.evaluate_text import plain
from cellseg.workflows.judge import Judged

FILE = "cross_validation.json"
RESULTS = "results.json"
_MAY_CHANGE = ("backend_version", "cellseg_version")
"""What is written down, and need not be the same when it goes on."""


def folds_of(samples: Dataset, folds: int, val_fraction: float, seed: int) -> list[Splits]:
    """Divide samples into folds, by ``Sample.group``.

    The groups of a fold are those that validate in ``cellseg train --split k-fold`` with the same
    seed; here they are the test, and of the other groups the share ``val_fraction`` validates. Each
    group validates about as often as any other.

    Args:
        samples: all images.
        folds: how many.
        val_fraction: share of the groups that are not held out, above 0 and below 1.
        seed: decides which group is where, with nothing but the names.

    Returns:
        For each fold its train, val and test; each sample is in exactly one test.

    Raises:
        DataError: there are no samples, or too few groups to train, to validate and to hold out.
        ConfigError: more folds than groups.
    """
    ranked = ranked_groups(samples, seed)
    if len(ranked) < 3:
        raise DataError(
            f"There are {len(ranked)} source image(s): each fold needs one to train on, one to "
            "validate and one that is held out.",
            hint="Give more images; parts of one image are too much alike to judge a model by.",
        )
    if folds > len(ranked):
        raise ConfigError(
            f"--folds {folds} is more than there are source images ({len(ranked)}).",
            hint=f"Use --folds {len(ranked)} to leave out one at a time.",
        )
    found = []
    for fold in range(folds):
        # Those of the next folds come first, so that all take turns.
        rest = [name for step in range(1, folds) for name in ranked[(fold + step) % folds :: folds]]
        if len(rest) < 2:
            raise ConfigError(
                f"--folds {folds} leaves {len(rest)} of {len(ranked)} source images to train and "
                "to validate on.",
                hint=f"Two are needed: use --folds {len(ranked)}.",
            )
        count = min(max(round(val_fraction * len(rest)), 1), len(rest) - 1)
        found.append(divided(samples, rest[:count], ranked[fold::folds]))
    return found


@dataclass(frozen=True)
class Folder:
    """A cross-validation on disk."""

    path: Path
    runs: str = "fold-{}"
    """What the run directories are called; ``{}`` is the number of the fold."""

    @property
    def request(self) -> Path:
        """What was asked for."""
        return self.path / FILE

    @property
    def results(self) -> Path:
        """All scores, once all folds are done."""
        return self.path / RESULTS

    @property
    def table(self) -> Path:
        """The same as a table."""
        return self.path / "results.csv"

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    def run(self, fold: int) -> Path:
        """The run directory of a fold."""
        return self.path / self.runs.format(fold)

    def untrained(self, fold: int) -> Path:
        """Where the model that a fold starts from is, while it is judged."""
        return self.path / f"before-{fold}"

    def splits(self, fold: int) -> Path:
        """The splits of a fold."""
        return self.path / "splits" / f"fold-{fold}.json"

    def check_startable(self, resume: bool) -> None:
        """Refuse to mix up an earlier cross-validation with a new one.

        Raises:
            UsageError: there is one, and nobody said to go on; or there is none to go on with.
            DataError: there is something else.
        """
        if self.request.is_file():
            if not resume:
                raise UsageError(
                    f"{self.path} holds a cross-validation already.",
                    hint="Go on with the same command and --resume, or choose another --output.",
                )
            return
        if resume:
            raise UsageError(
                f"There is no cross-validation to resume in {self.path}.",
                hint="Leave out --resume to start one.",
            )
        left = list(self.path.iterdir()) if self.path.is_dir() else []
        taken = self.path.exists() and not self.path.is_dir()
        left = [path for path in left if path.name != LOCK]
        if taken or any(not path.name.startswith(".part-") for path in left):
            raise DataError(
                f"{self.path} exists and is not empty.", hint="Choose another --output."
            )

    def start(self, request: Mapping[str, Any], folds: Sequence[Splits], resume: bool) -> None:
        """Remember the request, or check that it is the one remembered.

        Raises:
            ConfigError: it differs; the message names the first difference.
            StorageError: the folder cannot be written.
        """
        for place in (self.path, self.path / "scores", self.path / "splits"):
            remove_leftovers(place)
        if resume:
            _check_same(self.path, _read(self.request), json.loads(json.dumps(request)))
        make_folder(self.path)
        if not resume:
            write_atomic(self.request, json.dumps(request, indent=2) + "\n")
        for fold, splits in enumerate(folds):
            splits.save(self.splits(fold))

    def forget(self) -> None:
        """Remove what ``start`` wrote, as if it had not been called."""
        for path in (self.request, self.path / "splits"):
            remove(path)
        for folder in (self.path / "scores", self.path):
            with suppress(OSError):  # it is not empty, or not there
                folder.rmdir()

    def keep(self, kind: str, fold: int, judged: Judged) -> None:
        """Remember the scores of a fold.

        Args:
            kind: ``fold`` of the trained model, ``before`` of the one that it started from.
            fold: which.
            judged: the scores.

        Raises:
            StorageError: they cannot be written.
        """
        values = {
            "scores": plain(judged.scores),
            "mean": plain(judged.mean),
            "images": {name: plain(scores) for name, scores in judged.per_image.items()},
        }
        write_atomic(self._scores(kind, fold), json.dumps(values, indent=2) + "\n")

    def kept(self, kind: str, fold: int) -> Judged | None:
        """The scores of a fold, if they are there.

        Raises:
            DataError: the file is damaged.
        """
        file = self._scores(kind, fold)
        return judged_from(_read(file)) if file.is_file() else None

    def _scores(self, kind: str, fold: int) -> Path:
        return self.path / "scores" / f"{kind}-{fold}.json"


def judged_from(values: Mapping[str, Any]) -> Judged:
    """Scores as JSON has them, where what cannot be measured is None."""

    def numbers(scores: Mapping[str, Any]) -> dict[str, float]:
        return {n: float("nan") if v is None else float(v) for n, v in scores.items()}

    return Judged(
        scores=numbers(values["scores"]),
        per_image={name: numbers(scores) for name, scores in values["images"].items()},
        mean=numbers(values["mean"]),
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_bytes()))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error


def _check_same(path: Path, known: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for group in ("settings", "reader_options", "options"):
        before, now = known.get(group, {}), wanted[group]
        for name in {**before, **now}:
            if before.get(name) != now.get(name):
                raise ConfigError(
                    f"{path}: this cross-validation began with {flag(name)} {before.get(name)}, "
                    f"not with {now.get(name)}.",
                    hint="Go on with the options that it began with, or choose another --output.",
                )
    for name in wanted:
        if name == "folds" and len(known.get(name, ())) == len(wanted[name]):
            what = "other images, or other names of them"
        elif name == "folds":
            what = f"--folds {len(known.get(name, ()))}"
        else:
            what = f"{name} {known.get(name)}"
        if name not in _MAY_CHANGE and known.get(name) != wanted[name]:
            raise ConfigError(
                f"{path}: this cross-validation began with {what}.",
                hint="Go on with what it began with, or choose another --output.",
            )
