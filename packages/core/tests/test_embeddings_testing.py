"""The conformance tests catch embedders whose vectors are not where the image is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import embedding_fakes as fakes
import numpy as np
import pytest

import cellseg as cs
from cellseg.testing import BackendTests

TRAINED = (Path(), cs.Trained())
Change = Callable[[cs.Features, cs.Tile], cs.Features]


class Look(BackendTests):
    __test__ = False
    backend = "look"


def check(change: Change | None, batch: Callable[[Any], Any] = lambda found: found) -> None:
    """Run the test on an embedder that sees each cell's mean, through ``change``."""

    def embed(job: cs.PredictJob[Any]) -> cs.Embedder:
        options = fakes.LookOptions(steps=(1.0, 4.0, 4.0))

        def described(tiles: Sequence[cs.Tile]) -> Sequence[cs.Features]:
            found = [fakes.look(tile, options) for tile in tiles]
            assert change is not None
            found = [change(one, tile) for one, tile in zip(found, tiles, strict=True)]
            return list(batch(found))

        return described

    cards = {card.name: card for card in fakes.cellseg_predictors()}
    card = replace(cards["look"], embed=None if change is None else embed)
    Look().test_features_lie_where_the_image_is(TRAINED, card)


def test_a_sound_embedder_passes() -> None:
    check(lambda found, tile: found)


def test_a_backend_without_one_is_skipped() -> None:
    with pytest.raises(pytest.skip.Exception, match="no vectors"):
        check(None)


def squeezed(found: cs.Features, tile: cs.Tile) -> cs.Features:
    """The whole grid laid over the image, though its end is padding."""
    rows = found.values.shape[2]
    padded = np.pad(found.values, [(0, 0), (0, 0), (0, rows), (0, 0)])
    return cs.Features(padded, (1.0, tile.image.shape[2] / padded.shape[2], found.step[2]))


FAULTS: dict[str, Change] = {
    "squeezed": squeezed,
    "swapped axes": lambda f, t: cs.Features(f.values.swapaxes(2, 3).copy(), f.step),
    "upside down": lambda f, t: cs.Features(f.values[:, :, ::-1].copy(), f.step),
    "blind": lambda f, t: cs.Features(np.zeros_like(f.values), f.step),
    "double": lambda f, t: cs.Features(f.values.astype(np.float64), f.step),  # type: ignore[arg-type]
    "nan": lambda f, t: cs.Features(f.values * np.nan, f.step),
    "short": lambda f, t: cs.Features(f.values[:, :, :-1], f.step),
    "flat": lambda f, t: cs.Features(f.values[0], f.step),
    "noisy": lambda f, t: cs.Features(
        f.values + np.random.default_rng().normal(size=f.values.shape).astype(np.float32), f.step
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_an_embedder_is_found(fault: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check(FAULTS[fault])


def test_a_batch_that_mixes_its_tiles_is_found() -> None:
    with pytest.raises(AssertionError):
        check(lambda found, tile: found, lambda found: found[::-1])
