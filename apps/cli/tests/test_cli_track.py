"""``cellseg track``, from the command line."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from cellseg.synthetic_movies import make_movie


@pytest.fixture
def stack(tmp_path):
    labels = make_movie(3, 5, (64, 64), draw_images=False).labels.astype(np.uint16)
    tifffile.imwrite(tmp_path / "cells.tif", labels, imagej=True, metadata={"axes": "TYX"})
    return tmp_path / "cells.tif"


def test_it_links_and_says_what_it_found(cellseg, stack, tmp_path) -> None:
    done = cellseg("track", stack, "-o", tmp_path / "out", "--no-report")
    assert done.code == 0, done.err
    assert "tracks with" in done.out and f"Written: {tmp_path / 'out' / 'cells.tif'}" in done.out
    assert "Linking: frame 5/5" in done.err and "5 frames of 1 x 64 x 64" in done.err
    again = cellseg("track", stack, "-o", tmp_path / "out", "--no-report")
    assert again.code == 2 and "--overwrite" in again.err
    values = cellseg("track", stack, "-o", tmp_path / "b", "--no-report", "--json").json
    assert values["frames"] == 5 and values["tracks"] > 0
    assert str(tmp_path / "b" / "cells_tracks.csv") in values["outputs"]


def test_options_come_from_flags_and_a_config_file_too(cellseg, stack, tmp_path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"output: {tmp_path / 'out'}\nreport: false\nmax_distance: 0.1\n")
    moved = cellseg("track", stack, "--config", config, "--json").json
    still = cellseg(
        "track", stack, "--config", config, "--max-distance", 30, "--overwrite", "--json"
    ).json
    assert moved["tracks"] > still["tracks"]
    wrong = cellseg("track", stack, "--config", config, "--method", "overlap")
    assert wrong.code == 3 and "--max-distance does nothing" in wrong.err


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (("--max-gab", 1), 2, "--max-gap"),
        (("--max-gap", -1), 3, "--max-gap"),
        (("--min-overlap", 0.5), 3, "does nothing with --method laptrack"),
        ((), 2, "--output is missing"),
    ],
)
def test_wrong_lines_are_explained(cellseg, stack, line, code, said) -> None:
    done = cellseg("track", stack, *line)
    assert done.code == code and said in done.err and "Traceback" not in done.err


def test_a_path_with_nothing_is_explained(cellseg, tmp_path) -> None:
    done = cellseg("track", tmp_path / "none", "-o", tmp_path / "out")
    assert done.code == 4 and "no such file or folder" in done.err
    (tmp_path / "empty").mkdir()
    done = cellseg("track", tmp_path / "empty", "-o", tmp_path / "out")
    assert done.code == 4 and "Traceback" not in done.err
