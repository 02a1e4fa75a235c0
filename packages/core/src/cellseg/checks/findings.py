"""What a check of a data set says: one verdict a file, each with a code, a reason and a cure.

Light: the command line and other programs read these without numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from cellseg.texts import counted

Level: TypeAlias = Literal["note", "warning", "error"]
Verdict: TypeAlias = Literal["ok", "warning", "error"]
Figure: TypeAlias = int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]

CODES: Mapping[str, str] = {
    "unreadable": "the file, or a part of it, cannot be read",
    "unmatched": "an image without labels, or labels without an image",
    "shape": "image and labels differ in size",
    "not-finite": "pixels that are NaN or infinite",
    "constant": "all pixels of the image, or of a channel, are equal",
    "saturated": "many pixels at the brightest value",
    "labels-colours": "labels with colours or channels: a picture",
    "labels-not-integers": "labels stored as floating point: perhaps a probability map",
    "labels-negative": "ids below 0",
    "labels-too-large": "ids beyond uint32",
    "labels-binary": "all objects share one id: a mask (0/255), not a label image",
    "labels-classes": "a few ids for many objects: classes, not instances",
    "classes-differ": "images with other object classes",
    "class-unnamed": "ids of a class that has no name",
    "labels-picture": "thousands of specks: a photograph, or labels saved as JPEG",
    "labels-repeated": "two different images have the same labels",
    "ids-cut": "ids whose object is in several pieces",
    "ids-gaps": "ids that are not 1, 2, 3, …; harmless",
    "no-objects": "nothing is labelled",
    "background": "one object covers most of the image, as if the background had an id",
    "tiny-objects": "objects too small to learn from, away from the image's rim",
    "larger-than-patch": "objects that no training patch can show whole",
    "larger-than-halo": "objects longer than the halo of a prediction tile",
    "duplicate": "the same pixels twice in one split",
    "duplicate-across-splits": "the same pixels in training and validation",
    "one-source": "nothing is left to validate on",
    "splits": "the data cannot be divided as asked",
    "channels-differ": "images with other numbers or names of channels",
    "spacing-differs": "images whose voxel size differs more than twofold",
    "dimensions-differ": "flat images and volumes in one set",
    "polarity-mixed": "objects bright in some images and dark in others",
    "frames-missing": "frames of a movie without an image or without labels",
    "frames-differ": "frames of one movie that differ in size",
    "track-span": "tracks that end before they begin",
    "track-parent": "tracks whose parent is no other track",
    "track-order": "tracks that begin before their parent has ended",
    "track-unlisted": "ids in the labels that are in no line of the table of tracks",
    "track-absent": "tracks of the table that no frame shows",
    "track-ends": "tracks that begin or end in other frames than the labels show",
    "track-gaps": "tracks that are missing in frames between their first and their last",
    "single-daughter": "tracks that continue another one as its only daughter",
    "many-daughters": "divisions into three or more",
}
"""Every code that a finding can have, with its meaning."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is worth knowing."""

    code: str
    """A key of ``CODES``."""
    level: Level
    """``error`` where training would be wrong, ``warning`` where it may be, else ``note``."""
    message: str
    hint: str = ""
    """What to do."""

    def to_dict(self) -> dict[str, str]:
        """Plain values for JSON."""
        return {
            "code": self.code,
            "level": self.level,
            "message": self.message,
            "hint": self.hint,
        }

    def line(self) -> str:
        """The finding for people."""
        return f"{self.level} [{self.code}] {self.message}" + (f" {self.hint}" if self.hint else "")


@dataclass(frozen=True, slots=True)
class FileVerdict:
    """What was found out about one image and its labels."""

    name: str
    """The sample's name, or the file's where it could not become a sample."""
    path: Path | None = None
    split: str = ""
    """``train``, ``val``, or empty where it is in neither or a part of it in each."""
    findings: tuple[Finding, ...] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """What was measured: ``shape`` (c, z, y, x), ``dtype``, ``objects``, sizes, ``polarity``; with
    classes their names, ``classes``, background first, and how many objects each has,
    ``class_objects``; where labels are not known everywhere, ``unknown``, their share of the
    voxels, 0 to 1."""

    @property
    def verdict(self) -> Verdict:
        """The worst of the findings; notes are fine."""
        return worst(self.findings)

    def adding(self, *findings: Finding) -> FileVerdict:
        """The same file, with more found."""
        return replace(self, findings=(*self.findings, *findings))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "path": None if self.path is None else str(self.path),
            "split": self.split,
            "verdict": self.verdict,
            "findings": [finding.to_dict() for finding in self.findings],
            "figures": {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in self.figures.items()
            },
        }

    def lines(self) -> list[str]:
        """A line for the file and one for each finding."""
        head = f"{self.verdict:<8} {self.name}"
        if self.split:
            head += f" ({self.split})"
        told = _described(self.figures)
        return [head + (f": {told}" if told else "")] + [
            f"         {finding.line()}" for finding in self.findings
        ]


@dataclass(frozen=True, slots=True)
class DataReport:
    """The verdict on a data set."""

    path: Path
    reader: str
    files: tuple[FileVerdict, ...]
    findings: tuple[Finding, ...] = ()
    """About the set as a whole."""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """How many ``images`` and ``objects`` in all."""

    @property
    def ok(self) -> bool:
        """False where training on this data would be wrong."""
        return not any(f.level == "error" for f in self.all_findings())

    def all_findings(self) -> list[Finding]:
        """Those about the set, then those of each file."""
        return [*self.findings, *(finding for file in self.files for finding in file.findings)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the whole report."""
        return {
            "path": str(self.path),
            "reader": self.reader,
            "ok": self.ok,
            "findings": [finding.to_dict() for finding in self.findings],
            "figures": {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in self.figures.items()
            },
            "files": [file.to_dict() for file in self.files],
        }

    def lines(self) -> list[str]:
        """The report for people: a line for each file, what is wrong under it, and a summary."""
        lines = [line for file in self.files for line in file.lines()]
        lines += [finding.line() for finding in self.findings]
        count = {level: 0 for level in ("ok", "warning", "error")}
        for file in self.files:
            count[file.verdict] += 1
        told = f"{counted(len(self.files), 'file')}: {count['ok']} ok, " + (
            f"{counted(count['warning'], 'warning')}, {counted(count['error'], 'error')}."
        )
        errors = sum(finding.level == "error" for finding in self.findings)
        if errors:
            told += f" {counted(errors, 'error')} in the data set as a whole."
        if self.ok:
            return [*lines, f"{told} This data can be trained on."]
        return [*lines, f"{told} Mend the errors before training."]


def worst(findings: Iterable[Finding]) -> Verdict:
    """``error`` before ``warning`` before ``ok``."""
    levels = {finding.level for finding in findings}
    return "error" if "error" in levels else "warning" if "warning" in levels else "ok"


def listed(names: Sequence[object], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(str(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _described(figures: Mapping[str, Figure]) -> str:
    parts = []
    shape = figures.get("shape")
    if isinstance(shape, tuple):
        parts.append("x".join(str(n) for n in shape) + f" {figures.get('dtype', '')}".rstrip())
    if "objects" in figures:
        parts.append(counted(int(str(figures["objects"])), "object") + _by_class(figures))
    if "unknown" in figures:
        parts.append(f"{float(str(figures['unknown'])):.1%} not known")
    polarity = figures.get("polarity")
    if isinstance(polarity, tuple):
        parts.append("/".join(str(one) for one in polarity))
    return ", ".join(parts)


def _by_class(figures: Mapping[str, Figure]) -> str:
    names, counts = figures.get("classes"), figures.get("class_objects")
    if not (isinstance(names, tuple) and isinstance(counts, tuple)):
        return ""
    pairs = list(zip(names, counts, strict=True))[1:]
    return f" ({', '.join(f'{count} {name}' for name, count in pairs)})"
