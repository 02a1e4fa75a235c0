"""``evaluate``: finding pairs in all kinds of containers, pooled and mean scores, output."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from cellseg.classes import UNKNOWN
from cellseg.errors import ConfigError, DataError, StorageError
from cellseg.events import Event, Progress
from cellseg.options import parse
from cellseg.plugins import Plugins
from cellseg.workflows.evaluate import Evaluation, evaluate, evaluate_arrays
from cellseg.workflows.evaluate_settings import EvaluateSettings

DATA = Path(__file__).parents[3] / "../shared/data"
Labels = NDArray[Any]


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return Plugins()


def squares(*ids: int) -> Labels:
    """An image with one square of 4 x 4 for each id, in a row; id 0 leaves a gap."""
    labels = np.zeros((8, 8 * max(len(ids), 1)), np.uint16)
    for at, label in enumerate(ids):
        labels[2:6, 8 * at + 2 : 8 * at + 6] = label
    return labels


def write(folder: Path, **images: Labels) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, labels in images.items():
        kind = "rgb" if labels.shape[-1] == 3 else "minisblack"
        tifffile.imwrite(folder / f"{name}.tif", labels, photometric=kind)
    return folder


def run(prediction: Path, truth: Path, **settings: object) -> Evaluation:
    return evaluate(Plugins(), prediction, truth, parse(EvaluateSettings, settings))


def test_folders_are_matched_by_name(tmp_path: Path, plugins: Plugins) -> None:
    truth = write(tmp_path / "truth", a=squares(1, 2, 3), b=squares(4, 5))
    found = write(tmp_path / "found", b=squares(9, 0), a=squares(7, 8, 6))
    events: list[Event] = []
    result = evaluate(plugins, found, truth, emit=events.append)
    assert [image.name for image in result.images] == ["a", "b"]
    assert result.images[0].scores["f1@0.50"] == 1
    assert result.images[1].scores["recall@0.50"] == 0.5
    assert result.images[1].prediction == found / "b.tif"
    assert result.images[1].truth == truth / "b.tif"
    assert [image.name for image in result.worst_first] == ["b", "a"]
    assert events == [Progress(1, 2), Progress(2, 2)]


def test_pooled_is_a_ratio_of_sums_and_mean_a_mean_of_ratios(tmp_path: Path) -> None:
    truth = write(tmp_path / "truth", a=squares(1, 2, 3), b=squares(4))
    found = write(tmp_path / "found", a=squares(1, 2, 3), b=squares(0))
    result = run(found, truth)
    assert result.pooled["recall@0.50"] == 3 / 4
    assert result.mean["recall@0.50"] == 1 / 2
    assert result.pooled["n_true"] == 4 and result.mean["n_true"] == 2


def test_images_without_objects_are_left_out_of_the_mean(tmp_path: Path) -> None:
    truth = write(tmp_path / "truth", a=squares(1, 2), blank=squares(0), dirt=squares(0))
    found = write(tmp_path / "found", a=squares(1, 2), blank=squares(0), dirt=squares(1))
    result = run(found, truth)
    by_name = {image.name: image for image in result.images}
    assert by_name["blank"].empty and not by_name["dirt"].empty
    assert by_name["blank"].scores["f1@0.50"] == by_name["dirt"].scores["f1@0.50"] == 0
    assert result.mean["f1@0.50"] == 1 / 2
    assert result.pooled["precision@0.50"] == 2 / 3
    assert result.worst_first[-1].name == "blank"
    assert result.mean["are"] == 0  # dirt has none: its truth has no voxel to look at
    assert any("no objects" in line for line in result.lines())


def test_nothing_anywhere(tmp_path: Path) -> None:
    truth = write(tmp_path / "truth", a=squares(0))
    result = run(write(tmp_path / "found", a=squares(0)), truth)
    assert result.pooled["f1@0.50"] == 0
    assert result.to_dict()["mean"]["f1@0.50"] is None  # type: ignore[index]
    assert result.lines()


def test_every_file_without_a_partner_is_named(tmp_path: Path) -> None:
    truth = write(tmp_path / "truth", a=squares(1), lost=squares(1), gone=squares(1))
    found = write(tmp_path / "found", a=squares(1), extra=squares(1))
    with pytest.raises(DataError) as error:
        run(found, truth)
    for name in ("3 label images", "lost", "gone", "extra"):
        assert name in str(error.value)
    with pytest.raises(DataError, match="lost"):
        run(found, truth, allow_missing_truth=True)
    (truth / "lost.tif").unlink()
    (truth / "gone.tif").unlink()
    with pytest.raises(DataError) as error:
        run(found, truth)
    assert "--allow-missing-truth" in str(error.value.hint)
    assert len(run(found, truth, allow_missing_truth=True).images) == 1


def test_suffixes_and_subfolders(tmp_path: Path) -> None:
    truth, found = tmp_path / "truth", tmp_path / "found"
    write(truth / "labels" / "B" / "03", f0_mask=squares(1))
    write(truth / "images", f0=squares(0))
    write(found / "B" / "03", f0_cp=squares(1), f0_flow=squares(2))
    result = run(found, truth, prediction_suffix="_cp", truth_suffix="_mask")
    assert [image.name for image in result.images] == ["B/03/f0"]


def test_two_files_of_any_name(tmp_path: Path) -> None:
    truth = write(tmp_path, truth=squares(1, 2)) / "truth.tif"
    found = write(tmp_path / "found", found=squares(2, 1)) / "found.tif"
    assert run(found, truth).images[0].scores["f1@0.95"] == 1
    with pytest.raises(DataError, match="truth without a prediction: truth"):
        run(found.parent, truth)


def test_frames_of_a_movie_are_images(tmp_path: Path) -> None:
    movie = np.stack([squares(1, 2), squares(0, 2), squares(1, 0)])
    tifffile.imwrite(tmp_path / "truth.tif", movie, imagej=True, metadata={"axes": "TYX"})
    tifffile.imwrite(
        tmp_path / "found.tif", np.stack([squares(1, 2)] * 3), photometric="minisblack"
    )
    result = run(tmp_path / "found.tif", tmp_path / "truth.tif", axes="TYX")
    assert [image.name for image in result.images] == ["truth#0", "truth#1", "truth#2"]
    assert [image.scores["tp@0.50"] for image in result.images] == [2, 1, 1]
    assert result.pooled["precision@0.50"] == 4 / 6


def test_volumes(tmp_path: Path) -> None:
    volume = np.stack([squares(1, 2)] * 4)
    half = volume.copy()
    half[2:] = 0
    write(tmp_path, truth=volume, found=half)
    result = run(tmp_path / "found.tif", tmp_path / "truth.tif", axes="ZYX")
    assert len(result.images) == 1
    assert result.pooled["pq@0.50"] == 0.5  # an IoU of exactly one half


def test_hdf5_by_key(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "truth.h5", "w") as file:
        file["volume/gt"] = squares(1, 2)
    with h5py.File(tmp_path / "found.h5", "w") as file:
        file["labels"] = squares(1, 0)
    result = run(tmp_path / "found.h5", tmp_path / "truth.h5", truth_key="volume/gt")
    assert result.pooled["recall@0.50"] == 0.5
    with pytest.raises(DataError) as error:
        run(tmp_path / "found.h5", tmp_path / "truth.h5")
    assert "--truth-key" in str(error.value.hint) and "volume/gt" in str(error.value.hint)


def test_zarr_arrays_with_empty_chunks(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    for name, labels in {"truth": squares(1, 0, 2), "found": squares(1, 0, 0)}.items():
        array = zarr.create_array(
            tmp_path / f"{name}.zarr", shape=labels.shape, chunks=(4, 4), dtype="uint32"
        )
        array[:] = labels
    assert run(tmp_path / "found.zarr", tmp_path / "truth.zarr").pooled["recall@0.50"] == 0.5


def test_shapes_that_differ_name_both_files(tmp_path: Path) -> None:
    truth = write(tmp_path / "truth", a=squares(1, 2))
    found = write(tmp_path / "found", a=squares(1, 2)[:-1])
    with pytest.raises(DataError) as error:
        run(found, truth)
    assert str(found / "a.tif") in str(error.value) and str(truth / "a.tif") in str(error.value)
    assert "7 x 16" in str(error.value) and "8 x 16" in str(error.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (squares(1).astype(np.float32), "float32"),
        (np.stack([squares(1)] * 3, -1).astype(np.uint8), "3 channels"),
        (squares(1).astype(np.int32) - 1, "label -1"),
    ],
)
def test_what_is_no_label_image_is_named(tmp_path: Path, labels: Labels, message: str) -> None:
    truth = write(tmp_path / "truth", a=squares(1))
    found = write(tmp_path / "found", a=labels)
    with pytest.raises(DataError, match=message) as error:
        run(found, truth)
    assert str(found / "a.tif") in str(error.value)


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    truth = write(tmp_path / "truth", a=squares(1))
    found = write(tmp_path / "found", a=squares(1))
    (found / "a.tif").write_bytes((found / "a.tif").read_bytes()[:-40])
    with pytest.raises(DataError, match=r"found.*a\.tif"):
        run(found, truth)
    with pytest.raises(DataError, match=r"nowhere.*prediction"):
        run(tmp_path / "nowhere", truth)
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match="bare"):
        run(tmp_path / "bare", truth)


def test_min_size_and_ignored_label(tmp_path: Path) -> None:
    labels = squares(1, 2, 255)
    labels[0, 0] = 3
    truth = write(tmp_path / "truth", a=labels)
    found = write(tmp_path / "found", a=squares(1, 2, 9))
    assert run(found, truth).pooled["n_true"] == 4
    scores = run(found, truth, min_size=2, ignore_label=255).pooled
    assert scores["n_true"] == scores["n_pred"] == scores["tp@0.95"] == 2
    settings = EvaluateSettings(min_size=2, ignore_label=255)
    assert evaluate_arrays(squares(1, 2, 9), labels, settings) == scores


def test_voxels_that_nobody_labelled_are_not_scored() -> None:
    truth = squares(1, 2, 7).astype(np.uint32)
    known = evaluate_arrays(squares(1, 2), squares(1, 2), EvaluateSettings())
    truth[truth == 7] = UNKNOWN
    scores = evaluate_arrays(squares(1, 2, 9), truth, EvaluateSettings())
    assert scores["n_true"] == scores["n_pred"] == known["n_true"] == 2
    assert scores["are"] == 0


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.5", (0.5,)),
        ("0.75, 0.5", (0.5, 0.75)),
        ("0.5:0.7:0.05", (0.5, 0.55, 0.6, 0.65, 0.7)),
        ("0.5:0.95:0.05", (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)),
    ],
)
def test_thresholds(text: str, values: tuple[float, ...]) -> None:
    assert EvaluateSettings(thresholds=text).iou_thresholds == values


@pytest.mark.parametrize(
    "text",
    ["", "half", "0", "1.5", "0.5,0.5", "0.555", "0.5:0.9", "0.9:0.5:0.1", "0.5:0.9:0", "nan"],
)
def test_impossible_thresholds(text: str) -> None:
    with pytest.raises(ConfigError, match="--thresholds"):
        parse(EvaluateSettings, {"thresholds": text})


def test_json_and_csv(tmp_path: Path) -> None:
    truth = write(tmp_path / "truth", a=squares(1, 2), b=squares(0))
    found = write(tmp_path / "found", a=squares(1, 0), b=squares(1))
    result = run(found, truth, thresholds="0.5,0.75")
    told = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert told["settings"]["thresholds"] == "0.5,0.75"
    assert told["pooled"]["mSA@0.50,0.75"] == pytest.approx(1 / 3)
    assert told["images"][1]["scores"]["are_recall"] is None
    result.write_csv(tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["kind"], row["name"]) for row in rows] == [
        ("image", "a"),
        ("image", "b"),
        ("pooled", ""),
        ("mean", ""),
    ]
    assert float(rows[2]["f1@0.50"]) == result.pooled["f1@0.50"]
    assert rows[1]["are_recall"] == ""
    (tmp_path / "file").write_text("")
    with pytest.raises((StorageError, OSError)):
        result.write_csv(tmp_path / "file" / "scores.csv")


def test_lines_show_the_worst_images(tmp_path: Path) -> None:
    images = {f"i{n:02}": squares(1, 2) for n in range(24)}
    truth = write(tmp_path / "truth", **images)
    images["i17"] = squares(1, 0)
    lines = run(write(tmp_path / "found", **images), truth).lines()
    assert lines[0] == "24 images, 48 true objects, 47 predicted"
    worst = next(i for i, line in enumerate(lines) if "worst first" in line) + 1
    assert lines[worst].startswith("i17")
    assert "4 more" in lines[-1]
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.skipif(not DATA.is_dir(), reason="real data ../shared/data is not there")
def test_real_data_equals_stardist(tmp_path: Path) -> None:
    stardist = pytest.importorskip("stardist.matching")
    truths, found = [], []
    for file in sorted((DATA / "dsb2018_fluo" / "labels").glob("*.tif"))[:6]:
        truths.append(tifffile.imread(file))
        found.append(np.roll(truths[-1], (1, 2), (0, 1)))
        found[-1][found[-1] % 7 == 1] = 0
        write(tmp_path / "found", **{file.stem: found[-1]})
        write(tmp_path / "truth", **{file.stem: truths[-1]})
    result = run(tmp_path / "found", tmp_path / "truth")
    theirs = stardist.matching_dataset(truths, found, 0.5, show_progress=False)
    assert result.pooled["f1@0.50"] == pytest.approx(theirs.f1)
    assert result.pooled["pq@0.50"] == pytest.approx(theirs.panoptic_quality, rel=1e-5)


@pytest.mark.skipif(not DATA.is_dir(), reason="real data ../shared/data is not there")
def test_a_whole_data_set_against_itself() -> None:
    folder = DATA / "dsb2018_fluo"
    result = run(folder / "labels", folder)
    assert len(result.images) == 40 and result.pooled["n_true"] == 1603
    assert result.pooled["mSA@0.50:0.95"] == result.mean["ctc_seg"] == 1


@pytest.mark.skipif(not DATA.is_dir(), reason="real data ../shared/data is not there")
def test_ome_zarr_and_plates() -> None:
    image = DATA / "ome_zarr" / "idr0062_6001240_level2_ngio.zarr"
    result = run(image, image / "labels" / "nuclei_gt", prediction_key="nuclei_gt")
    assert result.pooled["n_true"] == result.pooled["tp@0.95"] == 61
    plate = DATA / "ome_zarr" / "dsb2018_plate.zarr"
    result = run(plate, plate, truth_key="nuclei_gt")
    assert [image.scores["n_true"] for image in result.images] == [9, 9, 28, 55, 9, 41]
    assert result.images[0].name.count("/") == 2
    with pytest.raises(DataError) as error:
        run(plate, plate, truth_key="cells")
    assert "cells" in str(error.value)


@pytest.mark.parametrize("kind", ["tiff", "hdf5", "ome-zarr"])
@pytest.mark.parametrize("name", ["a", "B/03/0"])
def test_what_predict_writes_is_read_back(tmp_path: Path, kind: Any, name: str) -> None:
    from cellseg.outputs.formats import output_for
    from cellseg.outputs.result import Result
    from cellseg.outputs.write import write as write_output

    write((tmp_path / "truth" / name).parent, **{Path(name).name: squares(1, 2)})
    labels = squares(2, 0)[None].astype(np.uint32)
    result = Result(name=name, frames=[labels], objects=[])
    write_output(result, output_for(kind, tmp_path / "out", name, "cellseg"))
    scores = run(tmp_path / "out", tmp_path / "truth")
    assert [image.name for image in scores.images] == [name]
    assert scores.pooled["recall@0.50"] == 0.5
