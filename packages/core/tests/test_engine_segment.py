"""What stands between core and a predictor."""

from __future__ import annotations

import numpy as np

from cellseg.data import Segmentation, Tile
from cellseg.engine.segment import Segmenter


def test_out_of_memory_takes_fewer_tiles_at_once_first():
    seen = []

    def predictor(tiles):
        seen.append(len(tiles))
        if len(tiles) > 2:
            raise MemoryError
        return [Segmentation(np.ones(t.image.shape[1:], np.uint8)) for t in tiles]

    segmenter = Segmenter(predictor, "fake", (0, 8, 8), False, 0.5)
    tiles = [Tile(image=np.zeros((1, 1, 70, 70), np.float32))] * 7
    for _ in range(2):
        assert len(segmenter(tiles)) == 7
    assert seen == [7, 3, 1, 1, 1, 1, 1, 1, 1] + [1] * 7
    assert [note[:13] for note in segmenter.notes] == ["Out of memory"] * 2
