"""Where the sequences of a Cell Tracking Challenge data set are, and which file is which frame.

From names alone; no file is opened. The layout: images in ``NN``, the tracking truth in
``NN_GT/TRA`` and the segmentation truth in ``NN_GT/SEG``, silver truth in ``NN_ST/SEG``, results in
``NN_RES``. Around them may be ``train``, ``val`` and ``test``, and in these ``CTC``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from cellseg.errors import DataError

Kind: TypeAlias = Literal["image", "man_track", "man_seg", "mask"]
GOLD, SILVER = "_GT", "_ST"
TRUTH_TABLE, RESULT_TABLE = "man_track.txt", "res_track.txt"
_SUFFIXES = (".tif", ".tiff")
_SPLITS = ("train", "val", "test")
_STANDARD = re.compile(r"t\d{3,}", re.IGNORECASE)
"""Names of the frames in the challenge."""
_NUMBERED = {
    "image": re.compile(r"(?:.*\D)?(\d+)"),
    "man_track": re.compile(r"man_track_?(\d+)"),
    "man_seg": re.compile(r"man_seg_?(\d+)(?:_(\d+))?"),
    "mask": re.compile(r"mask_?(\d+)"),
}


@dataclass(frozen=True, slots=True)
class Sequence:
    """The folders of one sequence; None where one is not there."""

    name: str
    """``01``, or ``train/01`` in a tree."""
    images: Path | None = None
    gold: Path | None = None
    """``NN_GT``."""
    silver: Path | None = None
    """``NN_ST``."""
    split: str | None = None
    """``train``, ``val`` or ``test`` where the tree says so."""

    @property
    def where(self) -> Path:
        """How messages call it."""
        found = self.images or self.gold or self.silver
        assert found is not None
        return found

    @property
    def table(self) -> Path | None:
        """Its ``man_track.txt``, whether it is there or not; None without a truth."""
        return None if self.gold is None else self.gold / "TRA" / TRUTH_TABLE


def sequences(path: Path) -> list[Sequence]:
    """All sequences of a data set, a tree of them, or one by its images or its truth; sorted."""
    if not path.is_dir():
        return []
    one = _named(path)
    if one is not None:
        return [one]
    found = list(_inside(path)) + list(_inside(path / "CTC"))
    for split in _SPLITS:
        for place in (path / split, path / split / "CTC"):
            found += [
                replace(one, name=f"{split}/{one.name}", split=split) for one in _inside(place)
            ]
    return found


def single(path: Path) -> Sequence:
    """The sequence whose images are in a folder, whatever it is called."""
    return _around(with_name(path))


def is_ctc(path: Path) -> bool:
    """A sequence, a data set of them, or a tree of these, with images."""
    return any(one.images is not None for one in sequences(path))


def numbered(folder: Path, kind: Kind) -> dict[tuple[int, int | None], Path]:
    """The TIFF files of a folder by frame and, for truth of single planes, by plane; sorted.

    Raises:
        DataError: two files have one number, or an image has none.
    """
    found: dict[tuple[int, int | None], Path] = {}
    for file in sorted(_tiffs(folder)):
        match = _NUMBERED[kind].fullmatch(file.stem)
        if match is None and kind == "image":
            raise DataError(
                f"{file}: its name has no number of a frame at its end.",
                hint="Frames of a sequence are called t000.tif, t001.tif, and so on.",
            )
        if match is None:
            continue
        plane = match.group(2) if kind == "man_seg" else None
        key = (int(match.group(1)), None if plane is None else int(plane))
        if key in found:
            raise DataError(
                f"{found[key]} and {file.name} are both frame {key[0]}.", hint="Keep one of them."
            )
        found[key] = file
    return dict(sorted(found.items(), key=lambda item: (item[0][0], item[0][1] or 0)))


def frames(folder: Path, kind: Kind) -> dict[int, Path]:
    """The TIFF files of a folder by frame, sorted; nothing but whole frames.

    Raises:
        DataError: two files have one number, or an image has none.
    """
    return {frame: file for (frame, _), file in numbered(folder, kind).items()}


def _tiffs(folder: Path) -> Iterator[Path]:
    """The TIFF files of a folder, in any order; none where there is no such folder."""
    for name in os.listdir(folder) if folder.is_dir() else ():
        if name.lower().endswith(_SUFFIXES) and not name.startswith("."):
            yield folder / name


def _named(path: Path) -> Sequence | None:
    """The sequence that a folder with images or gold truth belongs to."""
    real = with_name(path)
    if real.name.endswith(GOLD) and real.name != GOLD:
        return _around(real.with_name(real.name.removesuffix(GOLD)))
    if _holds_frames(real):
        return _around(real)
    return None


def with_name(path: Path) -> Path:
    """The path itself, unless it is one like ``.``, which does not say what a folder is called."""
    return path if path.name not in ("", "..") else path.resolve()


def _around(images: Path) -> Sequence:
    """The sequence of a folder of images, which need not be there, and of the truth beside it."""
    if not images.name:  # the root of the file system
        return Sequence("")
    gold, silver = (images.with_name(images.name + end) for end in (GOLD, SILVER))
    return Sequence(
        images.name,
        images if any(_tiffs(images)) else None,
        gold if gold.is_dir() else None,
        silver if silver.is_dir() else None,
    )


def _holds_frames(folder: Path) -> bool:
    """Whether a folder has the images of a sequence: by its truth, or by all names."""
    if not folder.name or not folder.is_dir():
        return False
    if any(folder.with_name(folder.name + end).is_dir() for end in (GOLD, SILVER)):
        return any(_tiffs(folder))
    files = list(_tiffs(folder)) if folder.name.isdecimal() else []
    return bool(files) and all(_STANDARD.fullmatch(file.stem) for file in files)


def _inside(folder: Path) -> Iterator[Sequence]:
    """The sequences whose folders are directly in ``folder``."""
    if not folder.is_dir():
        return
    names = set()
    with os.scandir(folder) as entries:  # tells files from folders without looking at each
        children = [folder / e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
    for child in children:
        end = next((e for e in (GOLD, SILVER) if child.name.endswith(e)), "")
        name = child.name.removesuffix(end)
        if name and (_holds_truth(child) if end else _holds_frames(child)):
            names.add(name)
    for name in sorted(names):
        yield _around(folder / name)


def _holds_truth(folder: Path) -> bool:
    return (folder / "TRA").is_dir() or (folder / "SEG").is_dir()
