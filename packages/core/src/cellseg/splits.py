"""Which images train and which validate: whole images, wells, fields or movies, never patches.

Two patches of one image look alike, so a split by patch measures memory, not skill.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cellseg.data import Dataset, Sample
from cellseg.errors import ConfigError, DataError
from cellseg.files import write_atomic
from cellseg.options import Options, flag


class SplitOptions(Options):
    """How to keep some images for validation."""

    panels: ClassVar = {"Splits": ("split", "val_fraction", "folds", "fold", "splits")}

    split: Literal["train-val", "k-fold", "full"] = "train-val"
    """How to divide the images: keep a share for validation, use one fold of several for it, or
    train on all. Images of one source (a well field, a movie) stay together. With train-val,
    data that is already divided stays as it is."""
    val_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the sources that validate, for --split train-val."""
    folds: int = Field(default=5, ge=2)
    """How many folds, for --split k-fold."""
    fold: int = Field(default=0, ge=0)
    """Which fold validates, from 0, for --split k-fold."""
    splits: Path | None = None
    """A splits.json to follow, such as that of another run, instead of dividing anew."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> SplitOptions:
        if self.fold >= self.folds:
            raise ValueError(
                f"--fold {self.fold} does not exist: --folds {self.folds} has 0 to {self.folds - 1}"
            )
        defaults = {name: field.default for name, field in SplitOptions.model_fields.items()}
        belongs = {"val_fraction": "train-val", "folds": "k-fold", "fold": "k-fold"}
        for name, split in belongs.items():
            if getattr(self, name) != defaults[name] and self.split != split:
                raise ValueError(f"{flag(name)} goes with --split {split}, not {self.split}")
        if self.splits is not None:
            for name in ("split", *belongs):
                if getattr(self, name) != defaults[name]:
                    raise ValueError(f"--splits and {flag(name)} exclude each other")
        return self


class Splits(BaseModel):
    """The names of the samples that train and of those that validate; stored as splits.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: tuple[str, ...]
    val: tuple[str, ...] = ()
    """Empty where all images train."""

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            StorageError: it cannot be written.
        """
        write_atomic(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Splits:
        """Read a ``splits.json``.

        Raises:
            DataError: it is missing, or is none.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise DataError(f"{path}: there is no such file.") from None
        except (OSError, ValidationError) as error:
            reason = (
                "; ".join(
                    f"{'.'.join(str(part) for part in item['loc']) or 'file'}: {item['msg']}"
                    for item in error.errors()
                )
                if isinstance(error, ValidationError)
                else error.strerror
            )
            raise DataError(
                f"{path}: not a splits file: {reason}.",
                hint='It looks like {"train": ["name", ...], "val": ["name", ...]}.',
            ) from error


def make_splits(samples: Dataset, options: SplitOptions, seed: int) -> Splits:
    """Divide ``samples`` by ``Sample.group``; names keep the order of ``samples``.

    The groups are ranked by a hash of the seed and their name, so that the result depends on
    neither the order of the files nor the Python version, and the same names and seed always give
    the same splits. With ``options.splits``, that file says it all. With ``train-val``, samples
    that come with a ``split`` of their own keep it.

    Raises:
        ConfigError: more folds than groups.
        DataError: there are no samples, or only one group to divide; names that the splits file
            has and the samples do not, or the reverse; a group on both sides.
    """
    if options.splits is not None:
        splits = Splits.load(options.splits)
        _check(samples, splits, str(options.splits))
        return splits
    groups = sorted({sample.group for sample in samples})
    if not groups:
        raise DataError("There are no images to divide into splits.")
    if options.split == "full":
        return _divided(samples, frozenset())
    if options.split == "train-val" and any(sample.split == "val" for sample in samples):
        return _declared(samples)
    ranked = sorted(groups, key=lambda group: _rank(group, seed))
    if len(ranked) == 1:
        raise DataError(
            f"There is only one source image, {groups[0]!r}: none is left for validation.",
            hint="Give other images with --val FOLDER, or train without validation: --split full",
        )
    if options.split == "k-fold":
        if options.folds > len(ranked):
            raise ConfigError(
                f"--folds {options.folds} is more than there are source images ({len(ranked)}).",
                hint=f"Use --folds {len(ranked)} to leave out one at a time.",
            )
        return _divided(samples, frozenset(ranked[options.fold :: options.folds]))
    count = round(options.val_fraction * len(ranked))
    return _divided(samples, frozenset(ranked[: min(max(count, 1), len(ranked) - 1)]))


def select(samples: Dataset, splits: Splits) -> tuple[list[Sample], list[Sample]]:
    """The samples that train and those that validate, in the order of ``samples``.

    Raises:
        DataError: the names in ``splits`` are not those of ``samples``, or a group is on both
            sides.
    """
    _check(samples, splits, "The splits file")
    train, val = frozenset(splits.train), frozenset(splits.val)
    return [s for s in samples if s.name in train], [s for s in samples if s.name in val]


def _rank(group: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{group}".encode(errors="surrogatepass")).digest()


def _divided(samples: Dataset, val: frozenset[str]) -> Splits:
    return Splits(
        train=tuple(sample.name for sample in samples if sample.group not in val),
        val=tuple(sample.name for sample in samples if sample.group in val),
    )


def _declared(samples: Dataset) -> Splits:
    """The splits that the data itself comes with."""
    silent = [sample.name for sample in samples if sample.split is None]
    if silent:
        raise DataError(
            f"Some images come as training or validation images, but not {_listed(silent)}.",
            hint="Say which is which with --splits FILE.",
        )
    splits = Splits(
        train=tuple(sample.name for sample in samples if sample.split != "val"),
        val=tuple(sample.name for sample in samples if sample.split == "val"),
    )
    if not splits.train:
        raise DataError("The data has only validation images.", hint="Use --split full.")
    _check(samples, splits, "The data")
    return splits


def _check(samples: Dataset, splits: Splits, where: str) -> None:
    names = [sample.name for sample in samples]
    given = [*splits.train, *splits.val]
    twice = _sorted_repeats(given)
    if twice:
        raise DataError(f"{where} names more than once: {_listed(twice)}.")
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise DataError(
            f"{where} names images that are not in the data: {_listed(unknown)}.",
            hint="Names are as cellseg check-data prints them.",
        )
    missing = sorted(set(names) - set(given))
    if missing:
        raise DataError(
            f"{where} leaves out images that are in the data: {_listed(missing)}.",
            hint="Add them to train or val, or divide anew without --splits.",
        )
    if not splits.train:
        raise DataError(f"{where} leaves no image to train on.")
    val = frozenset(splits.val)
    sides: dict[str, set[bool]] = {}
    for sample in samples:
        sides.setdefault(sample.group, set()).add(sample.name in val)
    torn = sorted(group for group, both in sides.items() if len(both) == 2)
    if torn:
        raise DataError(
            f"{where} has images of one source in both train and val: {_listed(torn)}.",
            hint="Images of one movie, well field or volume look alike: keep them on one side.",
        )


def _sorted_repeats(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    repeats: set[str] = set()
    for name in names:
        (repeats if name in seen else seen).add(name)
    return sorted(repeats)


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
