"""Broken images among good ones: the good ones are done, and all that is broken is told."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import broken_plates as plates
import embedding_fakes as fakes
import numpy as np
import pytest
import tifffile
from engine_fakes import digest, discs

from cellseg.errors import ConfigError, DataError, PartialError, UnreadableImagesError
from cellseg.events import Event, Failed, Note, Progress
from cellseg.options import parse
from cellseg.readers import open_dataset
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings
from cellseg.workflows.predict_summary import PredictSummary

TILES = {"tile_size": 64, "halo": 16}


def run(
    images: Path, out: Path, events: list[Event] | None = None, **values: object
) -> PredictSummary:
    given = {"backend": "look", "output": out, **TILES, **values}
    seen: list[Event] = [] if events is None else events
    return predict(fakes.plugins(), images, parse(PredictSettings, given), emit=seen.append)


def written(out: Path) -> set[str]:
    return {path.relative_to(out).with_suffix("").as_posix() for path in out.rglob("*.tif")}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What comes out of the whole plate."""
    folder = tmp_path_factory.mktemp("whole")
    run(plates.whole_plate(folder / "plate.zarr"), folder / "out")
    return digest(folder / "out")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_plate_with_every_fault(tmp_path: Path, expected: dict[str, str], workers: int) -> None:
    plate, out, events = plates.broken_plate(tmp_path / "plate.zarr"), tmp_path / "out", []
    with pytest.raises(PartialError, match=r"8 image\(s\) failed .* 7 are") as error:
        run(plate, out, events, workers=workers)
    assert error.value.failed.keys() == plates.FAULTS.keys()
    for name, fault in plates.FAULTS.items():
        assert fault in error.value.failed[name]
        assert name in error.value.failed[name]
    assert "all 2 tiles" in error.value.failed["C/02/0"]
    failed = [event.item for event in events if isinstance(event, Failed)]
    if workers > 1:  # they tell of them in the order in which they are done
        failed.sort(key=list(plates.FAULTS).index)
    assert failed == list(plates.FAULTS)
    assert written(out) == set(plates.WHOLE)
    assert json.loads((out / ".cellseg" / "failed.json").read_text()) == error.value.failed
    plates.mended(plate)
    events.clear()
    assert run(plate, out, events, workers=workers, resume=True).images == 17
    progress = [event.step for event in events if isinstance(event, Progress)]
    assert len(progress) == 2 * 10  # only what was missing: 10 fields of 2 tiles
    assert digest(out) == expected
    assert not (out / ".cellseg" / "failed.json").exists()


def test_a_dry_run_lists_what_cannot_be_used(tmp_path: Path) -> None:
    plate = plates.broken_plate(tmp_path / "plate.zarr")
    summary = run(plate, tmp_path / "out", dry_run=True)
    assert set(summary.unreadable) == {"A/02", "A/03", "B/01/1", "B/02/0", "B/02/1"}
    assert any("5 image(s) cannot be used" in line for line in summary.lines())
    assert summary.to_dict()["unreadable"] == summary.unreadable
    assert not (tmp_path / "out").exists()


def test_shares_of_a_broken_plate(tmp_path: Path, expected: dict[str, str]) -> None:
    plate, out = plates.broken_plate(tmp_path / "plate.zarr"), tmp_path / "out"
    for shard in ("1/2", "2/2"):
        with pytest.raises(PartialError):
            run(plate, out, shard=shard)
    plates.mended(plate)
    run(plate, out, shard="1/2", resume=True)
    run(plate, out, shard="2/2", resume=True)
    assert digest(out) == expected


def test_training_still_refuses_the_plate_and_says_how_to_leave_wells_out(tmp_path: Path) -> None:
    plate = plates.broken_plate(tmp_path / "plate.zarr")
    with pytest.raises(DataError, match=r"5 images cannot be used: .*A/02.*B/02/1") as error:
        open_dataset(fakes.plugins(), plate, "auto", {}, labelled=False)
    assert isinstance(error.value, UnreadableImagesError)
    assert "--wells" in str(error.value.hint)
    good = {"wells": "A/01,B/03,C/*"}
    assert len(open_dataset(fakes.plugins(), plate, "auto", good, labelled=False)) == 9


def test_nothing_readable_is_an_error_at_once(tmp_path: Path) -> None:
    plate = plates.whole_plate(tmp_path / "plate.zarr")
    for well in plates.WELLS:
        (plate / well / ".zattrs").write_text("{")
    with pytest.raises(DataError, match="9 images cannot be used"):
        run(plate, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def folder_of(path: Path, **images: np.ndarray) -> Path:
    path.mkdir()
    for name, pixels in images.items():
        tifffile.imwrite(path / f"{name}.tif", pixels)
    return path


def cells(seed: int) -> np.ndarray:
    return discs((70, 80), seed=seed)[0, 0]


def test_pixels_that_are_not_finite_fail_their_image_alone(tmp_path: Path) -> None:
    wrong = cells(1).astype(np.float32)
    wrong[3, 4] = np.inf
    images = folder_of(tmp_path / "images", a=cells(0), b=wrong, c=cells(2))
    with pytest.raises(PartialError, match=r"1 image\(s\) failed .* 2 are: b: 1 pixels are NaN"):
        run(images, tmp_path / "out")
    assert written(tmp_path / "out") == {"a", "c"}


def test_all_pixels_nan_everywhere_is_a_data_error(tmp_path: Path) -> None:
    nan = np.full((70, 80), np.nan, np.float32)
    images = folder_of(tmp_path / "images", a=nan, b=nan)
    with pytest.raises(DataError, match=r"a: 5600 pixels are NaN.*; b: 5600"):
        run(images, tmp_path / "out")


def test_one_image_with_other_channels_than_the_rest(tmp_path: Path, monkeypatch) -> None:
    from cellseg.bundle import Bundle
    from cellseg.normalise import Normaliser

    bundle = Bundle(backend="look", channels=1, normaliser=Normaliser())
    monkeypatch.setattr(Bundle, "find", lambda path: (tmp_path, bundle))
    two = np.stack([cells(1), cells(2)])
    images = folder_of(tmp_path / "images", a=cells(0), c=cells(3))
    tifffile.imwrite(images / "b.tif", two, metadata={"axes": "CYX"}, photometric="minisblack")
    given = {"model": tmp_path, "backend": None}
    with pytest.raises(PartialError) as error:
        run(images, tmp_path / "out", **given)
    assert list(error.value.failed) == ["b"]
    assert "has 2 channel(s)" in error.value.failed["b"]
    assert written(tmp_path / "out") == {"a", "c"}
    for name in "ac":
        (images / f"{name}.tif").unlink()
    with pytest.raises(DataError, match=r"b: the image has 2 channel\(s\)") as whole:
        run(images, tmp_path / "other", **given)
    assert "--channels" in str(whole.value.hint)


def test_a_movie_with_a_broken_frame_fails_as_a_whole(tmp_path: Path) -> None:
    """Without one of its frames, the numbers of all later ones would be wrong."""
    frames = tmp_path / "images" / "01"
    frames.mkdir(parents=True)
    other = tmp_path / "images" / "02"
    other.mkdir()
    for number in range(3):
        tifffile.imwrite(frames / f"t{number:03}.tif", cells(number))
        tifffile.imwrite(other / f"t{number:03}.tif", cells(number))
    (frames / "t001.tif").write_bytes(b"II*\0")
    with pytest.raises(PartialError, match=r"t001.tif") as error:
        run(tmp_path / "images", tmp_path / "out")
    assert list(error.value.failed) == ["01"]
    assert written(tmp_path / "out") == {"02"}


def test_images_counted_by_number_must_all_be_readable(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", a=cells(0), b=cells(1), c=cells(2))
    (images / "b.tif").write_bytes(b"II*\0")
    with pytest.raises(DataError, match="--batch-xy counts images, and some cannot be used"):
        run(images, tmp_path / "out", batch_xy="3")
    assert not (tmp_path / "out").exists()


def test_other_images_than_before_are_refused_on_a_resume(tmp_path: Path) -> None:
    images, out = folder_of(tmp_path / "images", a=cells(0), c=cells(1)), tmp_path / "out"
    (images / "b.tif").write_bytes(b"II*\0")
    with pytest.raises(PartialError):
        run(images, out)
    before, known = digest(out), out / ".cellseg" / "images.json"
    text = known.read_text()
    known.write_text(text[:20])
    with pytest.raises(ConfigError, match=r"images.json cannot be read"):
        run(images, out, resume=True)
    known.write_text(text)
    tifffile.imwrite(images / "c.tif", discs((64, 64))[0, 0])
    with pytest.raises(ConfigError, match=r"began with 1 frame\(s\) of 1 x 70 x 80 in c"):
        run(images, out, resume=True)
    (images / "c.tif").write_bytes(b"II*\0")
    with pytest.raises(DataError, match="c: could be read when this prediction began"):
        run(images, out, resume=True)
    tifffile.imwrite(images / "c.tif", cells(1))
    (images / "b.tif").unlink()  # taken away instead of mended
    assert run(images, out, resume=True).images == 2
    assert digest(out) == before
    tifffile.imwrite(images / "d.tif", cells(4))
    with pytest.raises(ConfigError, match="began without the image d"):
        run(images, out, resume=True)


def test_a_hundred_tiles_that_fail_alike_are_told_once(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", a=cells(0))
    wrong = discs((700, 700))[0, 0].astype(np.float32)
    wrong[0, 0] = np.nan
    tifffile.imwrite(images / "b.tif", wrong)
    events: list[Event] = []
    with pytest.raises(PartialError, match=r"all 121 tiles") as error:
        run(images, tmp_path / "out", events, retries=0)
    assert [event.item for event in events if isinstance(event, Failed)] == ["b"]
    assert len(str(error.value)) < 300


def test_memory_that_runs_out_while_reading_or_writing_fails_one_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cellseg.engine import worker
    from cellseg.readers.view import View

    images = folder_of(tmp_path / "images", a=cells(0), b=discs((140, 181))[0, 0])
    read = View.__getitem__

    def short(view: View, key: tuple[slice, ...]) -> np.ndarray:
        if view.shape[-1] == 181:
            raise MemoryError
        return read(view, key)

    with monkeypatch.context() as patched:
        patched.setattr(View, "__getitem__", short)
        with pytest.raises(PartialError, match=r"b.*the memory does not suffice"):
            run(images, tmp_path / "out", tile_size=256)
    assert written(tmp_path / "out") == {"a"}
    assembled = worker.assembled

    def too_big(item, *others):
        if item.name == "b":
            raise MemoryError
        return assembled(item, *others)

    with monkeypatch.context() as patched:
        patched.setattr(worker, "assembled", too_big)
        with pytest.raises(PartialError, match=r"b: the memory .* put its tiles together"):
            run(images, tmp_path / "two")
    assert written(tmp_path / "two") == {"a"}
    events: list[Event] = []
    run(images, tmp_path / "two", events, resume=True)
    assert written(tmp_path / "two") == {"a", "b"}
    assert not [event for event in events if isinstance(event, Progress)]  # its tiles were kept
    assert not [event for event in events if isinstance(event, Note) and "once more" in event.text]


def test_an_image_that_is_gone_in_a_worker_fails_there_alone(tmp_path: Path) -> None:
    from cellseg.data import Tiling
    from cellseg.engine.items import Recipe, make_items, reopened, sendable
    from cellseg.readers import reader_for

    images = folder_of(tmp_path / "images", a=cells(0), b=cells(1), c=cells(2))
    reader = reader_for(fakes.plugins(), images)
    values = {"reader": reader, "images": images, "reader_options": reader.options()}
    recipe = cast(Recipe, SimpleNamespace(**values, tiling=Tiling(), volumetric=False))
    items = make_items(reader.open(images, reader.options(), False), recipe.tiling, False)
    sent = pickle.loads(pickle.dumps(sendable([replace(one, index=9) for one in items])))
    (images / "a.tif").unlink()
    tifffile.imwrite(images / "b.tif", cells(1)[:-1])
    here = reopened(recipe, sent)
    assert [(one.index, one.name) for one in here] == [(9, "a"), (9, "b"), (9, "c")]
    everything = (slice(None),) * 4
    for gone in here[:2]:
        with pytest.raises(DataError, match=f"{gone.name}: cannot be read any more"):
            gone.frames[0].image[everything]
    assert np.array_equal(here[2].frames[0].image[everything][0, 0], cells(2))


def test_frames_of_several_shapes_fail_their_movie_alone(tmp_path: Path) -> None:
    for movie, last in (("01", cells(9)), ("02", cells(9)[:-2])):
        (tmp_path / "images" / movie).mkdir(parents=True)
        for number, pixels in enumerate((cells(0), cells(1), last)):
            tifffile.imwrite(tmp_path / "images" / movie / f"t{number:03}.tif", pixels)
    with pytest.raises(PartialError, match=r"02.*differs from") as error:
        run(tmp_path / "images", tmp_path / "out")
    assert list(error.value.failed) == ["02"]
    assert written(tmp_path / "out") == {"01"}
