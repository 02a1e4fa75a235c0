"""``cellseg augment``, and training on what it writes."""

from __future__ import annotations

import json

import pytest


@pytest.mark.parametrize("format", ["tif", "ome-zarr", "hdf5", "original"])
def test_training_reads_the_copies_and_keeps_them_with_their_image(
    cellseg, data, tmp_path, format
) -> None:
    out, run = tmp_path / "out", tmp_path / "run"
    line = ("augment", data, "-o", out, "--copies", 2, "--format", format, "--json")
    made = cellseg(*line)
    assert made.code == 0, made.err
    assert made.json["copies"] == 6 and made.json["output"] == str(out)
    done = cellseg("train", out, "-o", run, "--backend", "otsu", "--epochs", 1, "--seed", 3)
    assert done.code == 0, done.err
    splits = json.loads((run / "splits.json").read_text())
    sides = [{name.partition("_aug")[0] for name in splits[side]} for side in ("train", "val")]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 3
    assert len(splits["train"]) + len(splits["val"]) == 9
    assert cellseg("check-data", out).code == 0


def test_it_says_what_it_did_and_what_is_next(cellseg, data, tmp_path) -> None:
    out = tmp_path / "out"
    dry = cellseg("augment", data, "-o", out, "--dry-run")
    assert dry.code == 0 and dry.out.startswith("Would write") and not out.exists()
    done = cellseg("augment", data, "-o", out)
    assert "9 copies and 3 originals as tif" in done.out and f"cellseg train {out}" in done.out
    assert "Augmenting: image 3/3" in done.err
    again = cellseg("augment", data, "-o", out)
    assert again.code == 4 and "not empty" in again.err


def test_options_come_from_flags_and_a_config_file(cellseg, data, tmp_path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("copies: 2\nflip_probability: 1.0\ninclude_originals: false\n")
    line = ("augment", data, "-o", tmp_path / "out", "--config", config, "--dry-run", "--json")
    assert cellseg(*line).json["copies"] == 6 and cellseg(*line).json["originals"] == 0
    assert cellseg(*line, "--copies", 1).json["copies"] == 3
    assert cellseg(*line, "--include-originals").json["originals"] == 3
    wrong = cellseg(*line, "--gain-noise-range", 2)
    assert wrong.code == 3 and "--gain-noise-range" in wrong.err
    config.write_text("copis: 2\n")
    assert "Did you mean 'copies'?" in cellseg(*line).err
