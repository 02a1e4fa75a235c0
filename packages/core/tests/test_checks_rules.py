from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cellseg.checks.findings import CODES, DataReport, FileVerdict, Finding, worst
from cellseg.checks.limits import Limits
from cellseg.checks.samples import examine
from cellseg.checks.sets import about_the_set, compared
from cellseg.data import Sample
from cellseg.errors import DataError

LIMITS = Limits()


class Damaged:
    """An array that is found to be damaged when it is read."""

    dtype = np.dtype(np.uint16)

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __getitem__(self, key: tuple[slice, ...], /) -> Any:
        raise DataError("a.tif: strip 3 is damaged.", hint="Copy it again.")


def cells(seed: int = 0, size: int = 96, name: str = "") -> Sample:
    """Nine bright squares, numbered 1 to 9, on noise: nothing is wrong with it."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((1, size, size), np.uint16)
    for i in range(9):
        y, x = 32 * (i // 3) + 5 + seed % 5, 32 * (i % 3) + 5
        labels[0, y : y + 12, x : x + 14] = i + 1
    image = rng.integers(100, 200, (1, 1, size, size)) + 500 * (labels > 0)
    return Sample(name=name or f"cells{seed}", image=image.astype(np.uint16), labels=labels)


def found(sample: Sample, limits: Limits = LIMITS) -> dict[str, Finding]:
    verdict = examine(sample, limits).verdict
    assert len({finding.code for finding in verdict.findings}) == len(verdict.findings)
    return {finding.code: finding for finding in verdict.findings}


def relabelled(change: Callable[[Any], Any]) -> dict[str, Finding]:
    sample = cells()
    assert sample.labels is not None
    return found(replace(sample, labels=change(sample.labels[:, :, :].copy())))


def repainted(change: Callable[[Any], Any]) -> dict[str, Finding]:
    sample = cells()
    return found(replace(sample, image=change(sample.image[:, :, :, :].copy())))


def test_good_data_is_ok() -> None:
    verdict = examine(cells(), LIMITS).verdict
    assert verdict.verdict == "ok" and verdict.findings == ()
    assert verdict.figures["objects"] == 9
    assert verdict.figures["median_extent"] == (1, 12, 14)
    assert verdict.figures["polarity"] == ("bright",)
    assert "9 objects" in verdict.lines()[0]


def with_values(labels: Any, values: dict[int, int]) -> Any:
    for old, new in values.items():
        labels[labels == old] = new
    return labels


def speckled(labels: Any) -> Any:
    return np.random.default_rng(0).integers(0, 255, labels.shape).astype(np.uint8)


def like_jpeg(labels: Any) -> Any:
    """Ids as grey values with noise at the seams, as lossy compression leaves them."""
    rng = np.random.default_rng(0)
    grey = (labels * 25).astype(np.int64)
    seams = (grey != np.roll(grey, 3, 1)) | (grey != np.roll(grey, 3, 2))
    return np.where(seams, rng.integers(0, 255, labels.shape), grey).astype(np.uint8)


LABELS: list[tuple[str, str, Callable[[Any], Any]]] = [
    ("labels-binary", "error", lambda a: ((a > 0) * 255).astype(np.uint8)),
    ("labels-binary", "error", lambda a: (a > 0).astype(np.uint8)),
    ("labels-classes", "error", lambda a: np.where(a > 0, 1 + (a > 4), 0).astype(np.uint8)),
    ("labels-picture", "error", speckled),
    ("labels-picture", "error", like_jpeg),
    ("labels-not-integers", "error", lambda a: (a * 0.1).astype(np.float32)),
    ("labels-negative", "error", lambda a: with_values(a.astype(np.int16), {3: -1})),
    ("labels-too-large", "error", lambda a: with_values(a.astype(np.int64), {3: 2**32})),
    ("labels-too-large", "error", lambda a: with_values(a.astype(np.uint64), {3: 2**63 + 5})),
    ("ids-gaps", "note", lambda a: with_values(a, {3: 77})),
    ("ids-cut", "warning", lambda a: with_values(a, {3: 4})),
    ("no-objects", "warning", np.zeros_like),
    ("background", "warning", lambda a: with_values(a, {0: 10})),
    ("shape", "error", lambda a: a[:, :-1]),
]


@pytest.mark.parametrize(("code", "level", "change"), LABELS)
def test_labels(code: str, level: str, change: Callable[[Any], Any]) -> None:
    findings = relabelled(change)
    assert findings[code].level == level
    assert level == "note" or findings[code].hint, "a warning says what to do"
    assert "\n" not in findings[code].line()
    worse = {other: finding.level for other, finding in findings.items() if other != code}
    assert "error" not in worse.values(), "only the thing itself is an error"


def test_one_object_is_no_mask() -> None:
    """An image with a single cell, even of id 255, even torn in two, is labelled well enough."""
    one = relabelled(lambda a: np.where(a == 1, 255, 0).astype(np.uint8))
    assert worst(one.values()) == "ok"
    two = relabelled(lambda a: np.where(np.isin(a, (1, 2)), 255, 0).astype(np.uint8))
    assert worst(two.values()) == "warning"


def test_swapped_width_and_height_are_recognised() -> None:
    sample = cells()
    assert sample.labels is not None
    labels = sample.labels[:, :, :]
    wide = replace(sample, image=sample.image[:, :, :64, :], labels=labels[:, :, :64])
    assert "transpose" in found(wide)["shape"].hint


def test_cut_ids_are_named() -> None:
    findings = relabelled(lambda a: with_values(a, {3: 4, 7: 9}))
    assert "2 of 7 ids" in findings["ids-cut"].message and "ids 4, 9" in findings["ids-cut"].message
    assert "specks" not in findings["ids-cut"].message

    def speck(labels: Any) -> Any:
        labels[0, 0, 0] = 5
        return labels

    assert "1 of them only by specks" in relabelled(speck)["ids-cut"].message


def test_touching_objects_are_not_pieces() -> None:
    labels = np.zeros((1, 20, 20), np.uint8)
    labels[0, 4:16, 4:10], labels[0, 4:16, 10:16] = 1, 2
    image = (100 * labels + np.arange(20, dtype=np.uint8))[np.newaxis].astype(np.uint8)
    codes = found(Sample(name="a", image=image, labels=labels)).keys()
    assert not codes & {"ids-cut", "labels-binary", "labels-classes"}


def test_tiny_objects_count_only_away_from_the_rim() -> None:
    def add(y: int) -> Callable[[Any], Any]:
        def change(labels: Any) -> Any:
            labels[0, y : y + 2, 28:31] = 10
            return labels

        return change

    assert "(ids 10)" in relabelled(add(28))["tiny-objects"].message
    assert "tiny-objects" not in relabelled(add(0))


def test_objects_larger_than_a_patch() -> None:
    assert "larger-than-patch" not in found(cells(), Limits(patch_size=14))
    finding = found(cells(), Limits(patch_size=13))["larger-than-patch"]
    assert finding.level == "warning" and "9 of 9" in finding.message
    assert "--patch-size 32" in finding.hint
    deep = np.zeros((12, 30, 30), np.uint8)
    deep[2:10, 5:15, 5:15] = 1
    image = np.random.default_rng(0).normal(deep, 0.1)[np.newaxis]
    sample = Sample(name="deep", image=image, labels=deep)
    assert not found(sample), "training on slices sees it"
    assert "--patch-depth 32" in found(sample, Limits(patch_depth=4))["larger-than-patch"].hint


def set_to(value: float) -> Callable[[Any], Any]:
    def change(image: Any) -> Any:
        image = image.astype(np.float32)
        image[0, 0, 3, 3:5] = value
        return image

    return change


IMAGES: list[tuple[str, str, Callable[[Any], Any]]] = [
    ("not-finite", "error", set_to(np.nan)),
    ("not-finite", "error", set_to(np.inf)),
    ("constant", "error", np.ones_like),
    ("constant", "warning", lambda a: np.concatenate([a, np.ones_like(a)])),
    ("saturated", "warning", lambda a: np.minimum(a, 600)),
]


@pytest.mark.parametrize(("code", "level", "change"), IMAGES)
def test_images(code: str, level: str, change: Callable[[Any], Any]) -> None:
    findings = repainted(change)
    assert findings.keys() == {code} and findings[code].level == level and findings[code].hint


def test_an_empty_image_without_objects_is_only_a_warning() -> None:
    empty = Sample(
        name="empty", image=np.zeros((1, 1, 9, 9), np.uint8), labels=np.zeros((1, 9, 9), np.uint8)
    )
    assert worst(found(empty).values()) == "warning"


def test_damaged_files_do_not_stop_the_check() -> None:
    whole = cells()
    broken = replace(whole, image=Damaged((1, 1, 96, 96)))
    verdict = examine(broken, LIMITS).verdict
    assert [f.code for f in verdict.findings] == ["unreadable"]
    assert verdict.findings[0].message == "a.tif: strip 3 is damaged."
    assert verdict.findings[0].hint == "Copy it again."
    assert verdict.figures["objects"] == 9, "its labels are looked at all the same"
    broken = replace(whole, labels=Damaged((1, 96, 96)))
    assert [f.code for f in examine(broken, LIMITS).verdict.findings] == ["unreadable"]


def across(*samples: tuple[Sample, str]) -> tuple[dict[str, list[str]], dict[str, Finding]]:
    """Codes of each file, and the findings about the set."""
    examined = [examine(sample, LIMITS, split) for sample, split in samples]
    files = {v.name: [f.code for f in v.findings] for v in compared(examined)}
    return files, {finding.code: finding for finding in about_the_set(examined, LIMITS)}


def test_duplicates() -> None:
    one, two = cells(1), cells(2)
    again = replace(one, name="again")
    files, _ = across((one, "train"), (two, "val"), (again, "train"))
    assert files == {"cells1": [], "cells2": [], "again": ["duplicate"]}
    files, _ = across((one, "train"), (two, "train"), (again, "val"))
    assert files["again"] == ["duplicate-across-splits"]
    other = replace(again, labels=two.labels)
    examined = [examine(one, LIMITS, "val"), examine(other, LIMITS, "train")]
    assert "labelled in another way" in compared(examined)[1].findings[0].message


def test_a_duplicate_hides_behind_no_other() -> None:
    """With three equal images, the one on the other side is found wherever it stands."""
    trio = [replace(cells(1), name=name) for name in "abc"]
    for sides in (("train", "train", "val"), ("train", "val", "train"), ("val", "train", "train")):
        files, _ = across(*zip(trio, sides, strict=True))
        assert "duplicate-across-splits" in files["b"] + files["c"], sides


def test_blank_images_are_no_duplicates() -> None:
    blank = Sample(
        name="a", image=np.zeros((1, 1, 9, 9), np.uint8), labels=np.zeros((1, 9, 9), np.uint8)
    )
    files, _ = across((blank, "train"), (replace(blank, name="b"), "val"), (cells(), "train"))
    assert "duplicate-across-splits" not in files["b"]


def test_labels_of_another_image() -> None:
    files, _ = across((cells(1), ""), (replace(cells(2), labels=cells(1).labels), ""))
    assert files["cells2"] == ["labels-repeated"]


def test_a_good_set_has_no_findings() -> None:
    assert across((cells(1), "train"), (cells(2), "val"))[1] == {}


def test_mixed_polarity() -> None:
    dark = replace(cells(3), image=1000 - cells(3).image[:, :, :, :])
    _, about = across((cells(1), ""), (cells(2), ""), (dark, ""))
    assert about["polarity-mixed"].level == "warning"
    assert (
        "bright" in about["polarity-mixed"].message and "cells3" in about["polarity-mixed"].message
    )


def test_channels_that_differ() -> None:
    image = cells(2).image[:, :, :, :]
    _, about = across(
        (cells(1), ""), (cells(3), ""), (replace(cells(2), image=np.repeat(image, 3, 0)), "")
    )
    assert about["channels-differ"].level == "error"
    assert "but not cells2" in about["channels-differ"].message
    named = [replace(cells(i), channels=("DAPI" if i else "GFP",)) for i in range(3)]
    _, about = across(*((sample, "") for sample in named))
    assert "but not cells0" in about["channels-differ"].message


def test_voxel_sizes_that_differ() -> None:
    def sized(i: int, size: float) -> tuple[Sample, str]:
        return replace(cells(i), spacing=(1.0, size, size)), ""

    assert not across(sized(0, 0.5), sized(1, 0.5), sized(2, 0.6), sized(3, 1.0))[1]
    _, about = across(sized(0, 0.5), sized(1, 0.5), sized(2, 0.1))
    assert "but not cells2" in about["spacing-differs"].message


def test_flat_images_among_volumes() -> None:
    deep = cells(1)
    assert deep.labels is not None
    deep = replace(
        deep,
        image=np.repeat(deep.image[:, :, :, :], 3, 1),
        labels=np.repeat(deep.labels[:, :, :], 3, 0),
    )
    _, about = across((deep, ""), (cells(2), ""))
    assert about["dimensions-differ"].level == "warning"


def test_a_set_without_objects() -> None:
    empty = [
        replace(cells(i), labels=np.zeros((1, 96, 96), np.uint8), name=str(i)) for i in range(2)
    ]
    assert across(*((sample, "") for sample in empty))[1]["no-objects"].level == "error"


def test_objects_longer_than_the_halo() -> None:
    examined = [examine(cells(), LIMITS)]
    short = Limits(halo=13, tile_size=64)
    (finding,) = about_the_set(examined, short)
    assert finding.code == "larger-than-halo" and "--halo 16" in finding.hint
    assert not list(about_the_set(examined, Limits(halo=14, tile_size=64)))
    assert not list(about_the_set(examined, Limits(halo=13, tile_size=96))), (
        "one tile has no border"
    )


def test_a_report_is_for_people_and_programs(tmp_path: Any) -> None:
    bad = FileVerdict(
        "b", tmp_path / "b.tif", "val", (Finding("constant", "error", "Empty.", "x"),)
    )
    report = DataReport(tmp_path, "folder", (examine(cells(), LIMITS).verdict, bad))
    assert not report.ok
    told = report.to_dict()
    assert told["files"][1]["findings"][0] == {
        "code": "constant", "level": "error", "message": "Empty.", "hint": "x",
    }  # fmt: skip
    assert [file["verdict"] for file in told["files"]] == ["ok", "error"]
    assert report.lines()[1:3] == ["error    b (val)", "         error [constant] Empty. x"]
    assert "Mend the errors" in report.lines()[-1]
    assert replace(report, files=report.files[:1]).ok
    whole = replace(report, files=report.files[:1], findings=bad.findings)
    assert whole.lines()[-1] == (
        "1 file: 1 ok, 0 warnings, 0 errors. 1 error in the data set as a whole. "
        "Mend the errors before training."
    )


def test_every_code_has_a_meaning() -> None:
    assert {code for code, _, _ in LABELS + IMAGES} <= CODES.keys()
    assert all((meaning and meaning.islower()) or meaning for meaning in CODES.values())
