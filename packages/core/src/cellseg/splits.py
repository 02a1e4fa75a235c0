"""Which images train, validate and test: whole images, wells, fields or movies, never patches.

Two patches of one image look alike, so a split by patch measures memory, not skill. Where there
are too few images to keep some back, each is cut in two blocks with a gap between them
(``--split blocks``). So no voxel of a source is ever on both sides; only blocks of one image are.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cellseg.data import Dataset, Sample
from cellseg.errors import ConfigError, DataError
from cellseg.files import write_atomic
from cellseg.options import Options, flag
from cellseg.parts import AxisChoice, Place, blocks, meet, place


class SplitOptions(Options):
    """How to keep some images for validation."""

    panels: ClassVar = {
        "Splits": (
            "split",
            "val_fraction",
            "test_fraction",
            "folds",
            "fold",
            "split_axis",
            "val_gap",
            "splits",
        )
    }

    split: Literal["train-val", "k-fold", "full", "blocks"] = "train-val"
    """How to divide the images: keep a share for validation, use one fold of several for it, or
    train on all. Images of one source (a well field, a movie) stay together. With train-val,
    and blocks, data that is already divided stays as it is. blocks is for few large images or
    volumes: each is cut in two, and the smaller part validates."""
    val_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the sources that validate, for --split train-val; for --split blocks, the share of
    each image, at the end of its axis."""
    test_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the sources that neither train nor validate, for --split train-val and k-fold: kept
    to judge the finished model once. With k-fold they are the same for each fold."""
    folds: int = Field(default=5, ge=2)
    """How many folds, for --split k-fold."""
    fold: int = Field(default=0, ge=0)
    """Which fold validates, from 0, for --split k-fold."""
    split_axis: AxisChoice = "auto"
    """The axis across which --split blocks cuts; auto takes the longest of each image, in
    voxels."""
    val_gap: int = Field(default=16, ge=0)
    """Voxels along that axis between the two parts that are used for neither, for --split blocks:
    what lies on either side of a border looks alike, and the same objects reach across it."""
    splits: Path | None = None
    """A splits.json to follow, such as that of another run, instead of dividing anew."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> SplitOptions:
        if self.fold >= self.folds:
            raise ValueError(
                f"--fold {self.fold} does not exist: --folds {self.folds} has 0 to {self.folds - 1}"
            )
        defaults = {name: field.default for name, field in SplitOptions.model_fields.items()}
        belongs = {
            "val_fraction": ("train-val", "blocks"),
            "test_fraction": ("train-val", "k-fold"),
            "folds": ("k-fold",),
            "fold": ("k-fold",),
            "split_axis": ("blocks",),
            "val_gap": ("blocks",),
        }
        for name, kinds in belongs.items():
            if getattr(self, name) != defaults[name] and self.split not in kinds:
                raise ValueError(
                    f"{flag(name)} goes with --split {' or '.join(kinds)}, not {self.split}"
                )
        if self.splits is not None:
            for name in ("split", *belongs):
                if getattr(self, name) != defaults[name]:
                    raise ValueError(f"--splits and {flag(name)} exclude each other")
        return self


class Splits(BaseModel):
    """The names of the samples that train, validate and test; stored as splits.json.

    ``volume[z:0-79]`` is a part of the sample ``volume``: its first 80 planes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: tuple[str, ...]
    val: tuple[str, ...] = ()
    """Empty where all images train."""
    test: tuple[str, ...] = ()
    """What neither trains nor validates, to be judged once in the end. Files may leave it out."""

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            StorageError: it cannot be written.
        """
        without = set() if self.test else {"test"}
        write_atomic(path, self.model_dump_json(indent=2, exclude=without) + "\n")

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
                hint='It looks like {"train": ["name", ...], "val": ["name", ...]}; "test" may be '
                "added.",
            ) from error


def make_splits(samples: Dataset, options: SplitOptions, seed: int) -> Splits:
    """Divide ``samples`` by ``Sample.group``; names keep the order of ``samples``.

    The groups are ranked by a hash of the seed and their name, so that the result depends on
    neither the order of the files nor the Python version, and the same names and seed always give
    the same splits. With ``options.splits``, that file says it all. With ``train-val`` and
    ``blocks``, samples that come with a ``split`` of their own keep it; only where all are for
    training, ``train-val`` divides them. With ``blocks``, each other sample gives a part to either
    side, and the seed does not matter. With ``test_fraction``, the groups of the lowest rank are
    kept for the test; which groups validate with ``train-val`` does not change by that.

    Raises:
        ConfigError: more folds than groups; or groups to keep for a test, where the samples say
            themselves what validates.
        DataError: there are no samples, or only one group to divide; nothing is left to train on,
            or with blocks to validate on; only some samples have a ``split``; names that the splits
            file has and the samples do not, or the reverse; a group on both sides, other than by
            parts of one image that have no voxel in common; an image too short for blocks.
    """
    if options.splits is not None:
        splits = Splits.load(options.splits)
        _places(samples, splits, str(options.splits))
        return splits
    groups = sorted({sample.group for sample in samples})
    if not groups:
        raise DataError("There are no images to divide into splits.")
    if options.split == "full":
        return divided(samples)
    if options.split == "blocks":
        whole = [sample for sample in samples if sample.split is not None]
        cut = [sample for sample in samples if sample.split is None]
        pairs = list(blocks(cut, options.split_axis, options.val_fraction, options.val_gap))
        splits = Splits(
            train=(*_named(whole, "train"), *(kept.name for kept, _ in pairs)),
            val=(*_named(whole, "val"), *(held.name for _, held in pairs)),
        )
        _places(samples, splits, "The data")
        if not splits.val:
            raise DataError(
                "All images come as training images: none is left for validation.",
                hint="Give other images with --val FOLDER, say which parts validate with --splits "
                "FILE, or train without validation: --split full",
            )
        return splits
    declared = {sample.split for sample in samples}
    if options.split == "train-val" and ("val" in declared or len(declared) > 1):
        if options.test_fraction:
            raise ConfigError(
                "--test-fraction: the data says itself which images train and which validate.",
                hint="Name the images of the test in a file, under test: --splits FILE",
            )
        return _declared(samples)
    ranked = ranked_groups(samples, seed)
    if len(ranked) == 1:
        raise DataError(
            f"There is only one source image, {groups[0]!r}: none is left for validation.",
            hint="Give other images with --val FOLDER, validate on a part of this one with --split "
            "blocks, or train without validation: --split full",
        )
    rest, test = _without_test(ranked, options.test_fraction)
    if options.split == "k-fold":
        if options.folds > len(rest):
            kept = f", beside {len(test)} for the test" if test else ""
            raise ConfigError(
                f"--folds {options.folds} is more than there are source images "
                f"({len(rest)}{kept}).",
                hint=f"Use --folds {len(rest)} to leave out one at a time.",
            )
        return divided(samples, rest[options.fold :: options.folds], test)
    count = round(options.val_fraction * len(ranked))
    return divided(samples, rest[: min(max(count, 1), len(rest) - 1)], test)


def ranked_groups(samples: Dataset, seed: int) -> list[str]:
    """The groups of ``samples`` in an order that only the seed and their names decide."""
    return sorted({sample.group for sample in samples}, key=lambda group: _rank(group, seed))


def divided(samples: Dataset, val: Iterable[str] = (), test: Iterable[str] = ()) -> Splits:
    """Splits by groups: those in neither ``val`` nor ``test`` train."""
    validates, tests = frozenset(val), frozenset(test)
    return Splits(
        train=tuple(s.name for s in samples if s.group not in validates | tests),
        val=tuple(s.name for s in samples if s.group in validates),
        test=tuple(s.name for s in samples if s.group in tests),
    )


def select(samples: Dataset, splits: Splits) -> tuple[list[Sample], list[Sample]]:
    """The samples that train and those that validate, in the order of ``samples``.

    Parts of samples come as samples of their own, still lazy.

    Raises:
        DataError: the names in ``splits`` are not those of ``samples``, or a group is on two
            sides, other than by parts of one image that have no voxel in common.
    """
    train, val, _ = _places(samples, splits, "The splits file")
    return [one.cut("train") for one in train], [one.cut("val") for one in val]


def held_out(samples: Dataset, splits: Splits) -> list[Sample]:
    """The samples that neither train nor validate, in the order of ``samples``; as ``select``.

    Raises:
        DataError: as ``select``.
    """
    return [one.cut("test") for one in _places(samples, splits, "The splits file")[2]]


def weighted(samples: Dataset) -> list[Sample]:
    """Those that are trained on: all but the samples of weight 0.

    Raises:
        DataError: a weight is negative or not finite, or none is above 0.
    """
    for sample in samples:
        if not (math.isfinite(sample.weight) and sample.weight >= 0):
            raise DataError(
                f"{sample.name} has the weight {sample.weight:g}.",
                hint="Weights are numbers from 0 on; 0 trains on nothing of it.",
            )
    chosen = [sample for sample in samples if sample.weight > 0]
    if samples and not chosen:
        raise DataError(
            "All training images have the weight 0, so there is nothing to train on.",
            hint="Give one of them a weight above 0.",
        )
    return chosen


def _rank(group: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{group}".encode(errors="surrogatepass")).digest()


def _without_test(ranked: list[str], fraction: float) -> tuple[list[str], list[str]]:
    """The groups that are divided further, and those that are kept for the test.

    Raises:
        DataError: less than two groups would be left.
    """
    if not fraction:
        return ranked, []
    count = max(round(fraction * len(ranked)), 1)
    if len(ranked) - count < 2:
        raise DataError(
            f"--test-fraction {fraction:g} keeps {count} of {len(ranked)} source images for the "
            f"test, so {len(ranked) - count} would be left to train and to validate on.",
            hint="Two are needed at least: lower it, or give more images.",
        )
    return ranked[:-count], ranked[-count:]


def _named(samples: Dataset, split: str) -> tuple[str, ...]:
    return tuple(sample.name for sample in samples if sample.split == split)


def _declared(samples: Dataset) -> Splits:
    """The splits that the data itself comes with."""
    silent = [sample.name for sample in samples if sample.split is None]
    if silent:
        raise DataError(
            f"Some images come as training or validation images, but not {_listed(silent)}.",
            hint="Say which is which with --splits FILE, or cut the others in two with --split "
            "blocks; in a collection also with split: train.",
        )
    splits = Splits(
        train=tuple(sample.name for sample in samples if sample.split != "val"),
        val=tuple(sample.name for sample in samples if sample.split == "val"),
    )
    if not splits.train:
        raise DataError("The data has only validation images.", hint="Use --split full.")
    _places(samples, splits, "The data")
    return splits


_SIDES = ("train", "val", "test")


def _places(samples: Dataset, splits: Splits, where: str) -> tuple[list[Place], ...]:
    """What trains, validates and tests, in the order of ``samples``, if all of it is right."""
    sides = [splits.train, splits.val, splits.test]
    twice = _sorted_repeats(name for side in sides for name in side)
    if twice:
        raise DataError(f"{where} names more than once: {_listed(twice)}.")
    by_name = {sample.name: sample for sample in samples}
    found = [[(name, place(name, by_name)) for name in side] for side in sides]
    unknown = sorted(name for side in found for name, here in side if here is None)
    if unknown:
        raise DataError(
            f"{where} names images that are not in the data: {_listed(unknown)}.",
            hint="Names are as cellseg check-data prints them; name[z:0-79] is a part of one.",
        )
    places = tuple([here for _, here in side if here is not None] for side in found)
    missing = sorted(set(by_name) - {here.sample.name for side in places for here in side})
    if missing:
        raise DataError(
            f"{where} leaves out images that are in the data: {_listed(missing)}.",
            hint="Add them to train, val or test, or divide anew without --splits.",
        )
    if not places[0]:
        raise DataError(f"{where} leaves no image to train on.")
    for (one, ours), (other, theirs) in combinations(zip(_SIDES, places, strict=True), 2):
        torn = _torn(ours, theirs)
        if torn:
            raise DataError(
                f"{where} has images of one source in both {one} and {other}: {_listed(torn)}.",
                hint="Images of one movie, well field or volume look alike: keep them on one side, "
                "or give parts of one that do not overlap, such as name[z:0-79] and "
                "name[z:96-119].",
            )
    rank = {name: number for number, name in enumerate(by_name)}
    for side in places:
        side.sort(key=lambda here: (rank[here.sample.name], here.axis, here.start))
    return places


def _torn(train: Sequence[Place], val: Sequence[Place]) -> list[str]:
    """The groups on both sides, but for separate parts of one image or of all frames of a movie."""
    sides: tuple[dict[str, list[Place]], dict[str, list[Place]]]
    sides = defaultdict(list), defaultdict(list)
    for side, places in zip(sides, (train, val), strict=True):
        for here in places:
            side[here.sample.group].append(here)
    torn = []
    for group in sorted(sides[0].keys() & sides[1].keys()):
        ours, theirs = sides[0][group], sides[1][group]
        images = {here.sample.name for here in (*ours, *theirs)}
        frames = all(here.sample.frame is not None for here in (*ours, *theirs))
        regions = [{here.region for here in side} for side in (ours, theirs)]
        apart = not any(meet(one, other) for one in regions[0] for other in regions[1])
        if not apart or (len(images) > 1 and not frames):
            torn.append(group)
    return torn


def _sorted_repeats(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    repeats: set[str] = set()
    for name in names:
        (repeats if name in seen else seen).add(name)
    return sorted(repeats)


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
