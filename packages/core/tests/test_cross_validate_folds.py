"""How a cross-validation divides images into folds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cellseg.data import Sample
from cellseg.errors import ConfigError, DataError
from cellseg.splits import SplitOptions, make_splits
from cellseg.workflows.cross_validate_folds import folds_of


def image(name: str, source: str = "") -> Sample:
    return Sample(name=name, image=np.zeros((1, 1, 2, 2), np.uint8), source=source)


@pytest.mark.parametrize("number", [3, 4, 7, 20])
@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds(number: int, folds: int) -> None:
    samples = [image(f"m{i}#{t}", f"m{i}") for i in range(number) for t in range(2)]
    if folds > number or number - math.ceil(number / folds) < 2:
        with pytest.raises(ConfigError, match=f"--folds {folds}"):
            folds_of(samples, folds, 0.2, 0)
        return
    made = folds_of(samples, folds, 0.25, 7)
    shuffled = folds_of(samples[::2] + samples[1::2], folds, 0.25, 7)
    assert [set(one.val) for one in made] == [set(one.val) for one in shuffled]
    held = [name for splits in made for name in splits.test]
    assert sorted(held) == sorted(sample.name for sample in samples)
    for splits in made:
        sides = [
            {n.split("#")[0] for n in side} for side in (splits.train, splits.val, splits.test)
        ]
        assert all(sides) and sum(map(len, sides)) == len(set().union(*sides)) == number
    validated = [name for splits in made for name in splits.val]
    most = max(validated.count(name) for name in validated)
    assert most <= math.ceil(len(validated) / len(samples)) + 1, "all take turns in validating"


def test_too_few_images_for_folds() -> None:
    with pytest.raises(DataError, match="2 source image"):
        folds_of([image("a"), image("b")], 2, 0.2, 0)


def test_the_folds_are_pinned() -> None:
    """A new release must not move images from one fold to another, nor apart from k-fold's."""
    samples = [image(f"image{i:03}") for i in range(6)]
    made = folds_of(samples, 3, 0.2, 0)
    for fold, splits in enumerate(made):
        options = SplitOptions(split="k-fold", folds=3, fold=fold)
        assert make_splits(samples, options, 0).val == splits.test
    assert [splits.test for splits in made] == [
        ("image001", "image004"),
        ("image002", "image003"),
        ("image000", "image005"),
    ]
