"""Checking labels that carry classes, or that are not known everywhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cellseg.checks.findings import Finding
from cellseg.checks.labels import measure_labels
from cellseg.checks.limits import Limits
from cellseg.checks.samples import examine
from cellseg.checks.sets import about_the_set
from cellseg.classes import SHIFT, UNKNOWN, encoded
from cellseg.data import Sample

LIMITS = Limits()


def cells(seed: int = 0, size: int = 96) -> Sample:
    """Nine bright squares, numbered 1 to 9, on noise: nothing is wrong with it."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((1, size, size), np.uint16)
    for i in range(9):
        y, x = 32 * (i // 3) + 5 + seed % 5, 32 * (i % 3) + 5
        labels[0, y : y + 12, x : x + 14] = i + 1
    image = rng.integers(100, 200, (1, 1, size, size)) + 500 * (labels > 0)
    return Sample(name=f"cells{seed}", image=image.astype(np.uint16), labels=labels)


def found(sample: Sample) -> dict[str, Finding]:
    return {finding.code: finding for finding in examine(sample, LIMITS).verdict.findings}


def classed(seed: int = 0) -> Sample:
    """Objects 1 to 6 are cells 1 to 6; 7 to 9 are clefts 1 to 3."""
    sample = cells(seed)
    ids = np.asarray(sample.labels).astype(np.int64)
    labels = np.where(ids > 6, encoded((ids - 6).clip(0), 2), encoded(ids, 1))
    return replace(sample, labels=labels, classes=("background", "cell", "cleft"))


def test_ids_with_classes_are_nothing_strange() -> None:
    verdict = examine(classed(), LIMITS).verdict
    assert verdict.findings == ()
    assert verdict.figures["objects"] == 9
    assert verdict.figures["classes"] == ("background", "cell", "cleft")
    assert verdict.figures["class_objects"] == (0, 6, 3)
    assert "9 objects (6 cell, 3 cleft)" in verdict.lines()[0]
    assert "unknown" not in verdict.figures and "not known" not in verdict.lines()[0]


def test_what_is_not_known_is_no_object() -> None:
    sample = classed()
    labels = np.asarray(sample.labels).copy()
    labels[0, :, 90:] = UNKNOWN
    verdict = examine(replace(sample, labels=labels), LIMITS).verdict
    assert verdict.findings == () and verdict.figures["objects"] == 9
    assert verdict.figures["unknown"] == pytest.approx(6 / 96)
    assert "6.2% not known" in verdict.lines()[0]
    plain = examine(replace(sample, labels=labels, classes=()), LIMITS).verdict
    assert plain.figures["objects"] == 9 and plain.figures["unknown"] == pytest.approx(6 / 96)
    labels[:] = UNKNOWN
    assert found(replace(sample, labels=labels))["no-objects"].level == "warning"


def test_what_is_not_known_tells_no_polarity() -> None:
    """Bright cells, dark background, and something brighter that is not labelled."""
    sample = cells()
    image, labels = np.asarray(sample.image).copy(), np.asarray(sample.labels).astype(np.uint32)
    image[0][labels == 0] = 3000
    image[0, :, 30:] = np.where(labels[:, 30:] > 0, image[0, :, 30:], 20)
    labels[(labels == 0) & (image[0] == 3000)] = UNKNOWN
    verdict = examine(replace(sample, image=image, labels=labels), LIMITS).verdict
    assert verdict.figures["polarity"] == ("bright",)
    known = examine(replace(sample, image=image), LIMITS).verdict
    assert known.figures["polarity"] != ("bright",)
    image[0][labels == UNKNOWN], image[0][labels == 0] = 0, 400
    verdict = examine(replace(sample, image=image, labels=labels), LIMITS).verdict
    assert verdict.figures["polarity"] == ("bright",)


@pytest.mark.parametrize("budget", [2**22, 2**9])
def test_what_is_not_known_is_counted_once(budget: int) -> None:
    labels = np.asarray(classed().labels).repeat(20, axis=0)
    unknown = np.random.default_rng(0).random(labels.shape) < 0.1
    labels[unknown] = UNKNOWN
    assert measure_labels(labels, budget).unknown == np.count_nonzero(unknown)


def test_faults_of_ids_with_classes_are_told_by_name() -> None:
    sample = classed()
    labels = np.asarray(sample.labels).copy()
    labels[labels == (2 << SHIFT) + 3] = (2 << SHIFT) + 40
    labels[0, 0:3, 0:3] = (1 << SHIFT) + 2
    told = found(replace(sample, labels=labels))
    assert "3 ids of cleft, up to 40" in told["ids-gaps"].message
    assert "of cell" not in told["ids-gaps"].message
    assert "(ids cell 2)" in told["ids-cut"].message
    labels[0, 60:75, :30] = (5 << SHIFT) + 1
    told = found(replace(sample, labels=labels))
    assert told["class-unnamed"].level == "error"
    assert "class 5, but the classes end at 2 (background, cell, cleft)" in (
        told["class-unnamed"].message
    )


def test_images_with_other_classes() -> None:
    other = replace(classed(2), classes=("background", "cleft", "cell"))
    examined = [examine(sample, LIMITS) for sample in (classed(0), classed(1), other)]
    told = {finding.code: finding for finding in about_the_set(examined, LIMITS)}
    assert told["classes-differ"].level == "error"
    assert "but not cells2" in told["classes-differ"].message
    assert not list(about_the_set(examined[:2], LIMITS))
