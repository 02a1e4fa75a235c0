"""Prompts reach the tiles that see them, and what they show comes out once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from engine_fakes import digest, plugins, read, same_objects

from cellseg.bundle import Bundle
from cellseg.data import Prompt, Segmentation, Tile
from cellseg.engine.segment import Segmenter
from cellseg.errors import ConfigError, DataError, InterruptedRunError
from cellseg.options import parse
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings

HERE = Path(__file__).parent
CENTRES = [(20, 25), (64, 64), (64, 110), (100, 63), (120, 127), (150, 20)]
"""y, x of discs; most of them lie across the borders of tiles of 64 pixels."""


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.syspath_prepend(HERE)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    np.save(folder / "a.npy", rng.integers(0, 99, (1, 1, 170, 180), np.uint8))
    np.save(folder / "b.npy", rng.integers(0, 99, (1, 1, 50, 60), np.uint8))
    np.save(folder / "v.npy", rng.integers(0, 99, (1, 3, 100, 90), np.uint8))
    for frame in range(2):
        np.save(folder / f"m#{frame:03d}.npy", rng.integers(0, 99, (1, 1, 170, 70), np.uint8))
    return folder


@pytest.fixture
def prompts(tmp_path):
    rows = ["image,frame,z,y,x"]
    rows += [f"a,,,{y},{x}" for y, x in CENTRES]
    rows += ["v,,1,64,60", "v,,2,20,20", "m,1,,66,30"]
    path = tmp_path / "prompts.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def run(images, out, interrupted=lambda: False, options=None, **values):
    given = {"backend": "prompted", "reader": "npy", "output": out, **values}
    return predict(
        plugins(),
        images,
        parse(PredictSettings, given),
        options=options or {},
        emit=lambda event: None,
        interrupted=interrupted,
    )


def disc(shape, y, x):
    rows, columns = np.indices(shape)
    return (rows - y) ** 2 + (columns - x) ** 2 <= 49


def expected(shape, centres):
    labels = np.zeros(shape, np.uint32)
    for number, centre in enumerate(centres, 1):
        labels[disc(shape, *centre)] = number
    return labels


@pytest.mark.parametrize("tile", [{}, {"tile_size": 32, "halo": 16}, {"tile_size": 1024}])
def test_each_object_comes_out_once_and_whole(images, prompts, tmp_path, tile):
    summary = run(images, tmp_path / "out", prompts=prompts, **tile)
    assert summary.objects == len(CENTRES) + 3
    assert same_objects(read(tmp_path / "out" / "a.tif"), expected((170, 180), CENTRES))
    assert not read(tmp_path / "out" / "b.tif").any()
    volume = read(tmp_path / "out" / "v.tif")
    assert not volume[0].any()
    assert same_objects(volume[1], expected((100, 90), [(64, 60)]))
    assert same_objects(volume[2], expected((100, 90), [(20, 20)]))
    movie = read(tmp_path / "out" / "m.tif")
    assert not movie[0].any()
    assert same_objects(movie[1], expected((170, 70), [(66, 30)]))


def test_processes_and_interruptions_do_not_matter(images, prompts, tmp_path):
    run(images, tmp_path / "one", prompts=prompts)
    run(images, tmp_path / "two", prompts=prompts, workers=2)
    left = iter([False] * 12)
    with pytest.raises(InterruptedRunError):
        run(images, tmp_path / "out", lambda: next(left, True), prompts=prompts)
    moved = tmp_path / "moved.csv"
    prompts.rename(moved)
    run(images, tmp_path / "out", prompts=moved, resume=True)
    assert digest(tmp_path / "one") == digest(tmp_path / "two") == digest(tmp_path / "out")


def test_a_resume_with_other_prompts_is_refused(images, prompts, tmp_path):
    left = iter([False] * 12)
    with pytest.raises(InterruptedRunError):
        run(images, tmp_path / "out", lambda: next(left, True), prompts=prompts)
    prompts.write_text(prompts.read_text() + "a,,,3,3\n")
    with pytest.raises(ConfigError, match="--prompts sha256:"):
        run(images, tmp_path / "out", prompts=prompts, resume=True)


def test_a_folder_with_a_file_for_each_image(images, tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "a.csv").write_text("y,x\n" + "".join(f"{y},{x}\n" for y, x in CENTRES))
    (folder / "b.csv").write_text("y0,x0,y1,x1\n10,12,19,30\n")
    run(images, tmp_path / "out", prompts=folder)
    (folder / ".DS_Store").write_bytes(b"\0")
    (folder / "README.md").write_text("no prompts")
    run(images, tmp_path / "out", prompts=folder, resume=True)
    assert same_objects(read(tmp_path / "out" / "a.tif"), expected((170, 180), CENTRES))
    boxed = read(tmp_path / "out" / "b.tif")
    assert boxed[10:19, 12:30].all()
    work = tmp_path / "out" / ".cellseg" / "request.json"
    before = work.read_text()
    (folder / "b.csv").rename(folder / "m.csv")
    with pytest.raises((ConfigError, DataError)):
        run(images, tmp_path / "out", prompts=folder, resume=True)
    assert work.read_text() == before


def test_prompts_that_are_not_of_these_images(images, prompts, tmp_path):
    prompts.write_text("image,y,x\nother,5,5\n")
    with pytest.raises(DataError, match="other"):
        run(images, tmp_path / "out", prompts=prompts)
    prompts.write_text("image,y,x\nb,5,500\n")
    with pytest.raises(DataError, match="outside"):
        run(images, tmp_path / "out", prompts=prompts)
    with pytest.raises(DataError, match=r"gone\.csv"):
        run(images, tmp_path / "out", prompts=tmp_path / "gone.csv")
    assert not (tmp_path / "out").exists()


def test_halves_of_a_tile_have_their_prompts(images, prompts, tmp_path):
    run(images, tmp_path / "one", prompts=prompts)
    run(images, tmp_path / "halved", prompts=prompts, options={"fits": 6000})
    for name in ("a", "v", "m"):
        one, two = (read(tmp_path / way / f"{name}.tif") for way in ("one", "halved"))
        assert same_objects(one, two)


def test_a_half_gets_what_lies_in_it():
    seen = []

    def predictor(tiles):
        if tiles[0].image.shape[3] > 70:
            raise MemoryError
        seen.append((tiles[0].image.shape[3], tiles[0].prompts))
        return [Segmentation(np.zeros(tiles[0].image.shape[1:], np.uint8))]

    prompts = (
        Prompt(points=((0.5, 10.5, 20.5),), positive=(True,), name="left"),
        Prompt(points=((0.5, 9.5, 90.5), (0.5, 9.5, 2.5)), positive=(True, False), name="right"),
        Prompt(box=((0, 0, 40), (1, 20, 80)), name="middle"),
    )
    segmenter = Segmenter(predictor, "fake", (0, 8, 8), False, 0.5)
    segmenter([Tile(image=np.zeros((1, 1, 64, 100), np.float32), prompts=prompts)])
    (left, first), (right, second) = seen
    assert (left, right) == (58, 58)
    assert [p.name for p in first] == ["left"] and first[0] == prompts[0]
    assert [p.name for p in second] == ["right", "middle"]
    assert second[0].points == ((0.5, 9.5, 48.5),) and second[0].positive == (True,)
    assert second[1].box == ((0, 0, 0), (1, 20, 38))
    seen.clear()
    segmenter([Tile(image=np.zeros((1, 1, 64, 100), np.float32))])
    assert [found for _, found in seen] == [None, None]


def test_what_was_calibrated_is_for_objects_that_are_found(images, prompts, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    Bundle(backend="prompted", predict={"fault": "type", "levels": True}).save(model)
    given = {"backend": None, "model": model, "prompts": prompts}
    run(images, tmp_path / "out", options={"levels": True}, **given)
    assert same_objects(read(tmp_path / "out" / "a.tif"), expected((170, 180), CENTRES))
    asked = json.loads((tmp_path / "out" / ".cellseg" / "request.json").read_text())
    assert (asked["option fault"], asked["option levels"]) == ("", True)
