"""Augmented copies of whole images, as data sets of their own."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
import tifffile

from cellseg.data import Sample
from cellseg.errors import ConfigError, DataError, InterruptedRunError
from cellseg.normalise import Normaliser, Statistics
from cellseg.options import parse
from cellseg.outputs.pairs import Pair, write_pair
from cellseg.plugins import Plugins
from cellseg.readers import open_dataset
from cellseg.readers.origins import FILE
from cellseg.workflows.augment import Augmented, augment
from cellseg.workflows.augment_settings import AugmentSettings

plugins = Plugins([])
CHANCES = [name for name in AugmentSettings.model_fields if name.endswith("_probability")]
OFF: dict[str, object] = dict.fromkeys(CHANCES, 0.0)
FORMATS = ("tif", "ome-zarr", "hdf5")


def scene(
    shape: tuple[int, ...] = (1, 1, 40, 48), dtype: str = "uint16", seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """An image ``(c, z, y, x)``, black in a corner, and square objects."""
    rng = np.random.default_rng(seed)
    top = 250 if dtype == "uint8" else 4000
    image = rng.integers(20, top // 2, shape).astype(dtype)
    labels = np.zeros(shape[1:], np.uint16)
    for number, (y, x) in enumerate([(6, 8), (6, 30), (24, 10), (25, 31)], 1):
        labels[:, y : y + 9, x : x + 9] = 3 * number
        image[:, :, y : y + 9, x : x + 9] += np.dtype(dtype).type(top // 2 - 1)
    image[:, :, -6:] = 0
    return image, labels


def source(folder: Path, count: int = 3, format: str = "tif", **kwargs: Any) -> Path:
    """A data set of such scenes."""
    folder.mkdir()
    for number in range(count):
        image, labels = scene(seed=number, **kwargs)
        write_pair(Pair(f"cell{number}", image, labels), folder, format)  # type: ignore[arg-type]
    return folder


def run(data: Path, out: Path, **options: object) -> Augmented:
    return augment(plugins, data, out, parse(AugmentSettings, options))


def opened(folder: Path, **options: object) -> dict[str, Sample]:
    samples = open_dataset(plugins, folder, "auto", options, labelled=True)
    return {sample.name: sample for sample in samples}


def pixels(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    whole = tuple(slice(0, n) for n in sample.image.shape)
    assert sample.labels is not None
    return np.asarray(sample.image[whole]), np.asarray(sample.labels[whole[1:]])


def digests(folder: Path) -> dict[str, str]:
    return {
        name: hashlib.sha256(b"".join(part.tobytes() for part in pixels(sample))).hexdigest()
        for name, sample in opened(folder).items()
    }


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("shape", "dtype", "channels", "spacing"),
    [
        ((1, 1, 33, 50), "uint8", (), (1.0, 1.0, 1.0)),
        ((2, 1, 700, 40), "uint16", ("DAPI", "GFP"), (1.0, 0.25, 0.5)),
        ((1, 5, 40, 30), "float32", ("membrane",), (2.0, 0.5, 0.5)),
        ((3, 4, 30, 30), "int16", (), (1.5, 0.5, 0.5)),
    ],
)
def test_every_format_gives_images_and_labels_back(
    tmp_path: Path,
    format: str,
    shape: tuple[int, ...],
    dtype: str,
    channels: tuple[str, ...],
    spacing: tuple[float, float, float],
) -> None:
    rng = np.random.default_rng(0)
    image = (rng.random(shape) * 200).astype(dtype)
    image[:, :, : shape[2] // 2] = 0  # whole chunks of it
    labels = rng.integers(0, 70_000, shape[1:]).astype(np.uint32)
    (tmp_path / "data").mkdir()
    pair = Pair("a b#1.x", image, labels, spacing, channels)
    write_pair(pair, tmp_path / "data", format)  # type: ignore[arg-type]
    (tmp_path / "data" / FILE).write_text('{"samples": {"a b#1.x": {"source": "c"}}}')
    (sample,) = opened(tmp_path / "data").values()
    seen, found = pixels(sample)
    assert sample.name == "a b#1.x" and sample.image.dtype == dtype
    np.testing.assert_array_equal(seen, image)
    np.testing.assert_array_equal(found, labels)
    assert sample.spacing[3 - sum(n > 1 for n in shape[1:]) :] == pytest.approx(
        spacing[3 - sum(n > 1 for n in shape[1:]) :]
    )
    assert sample.channels == (channels if format != "hdf5" else ())


@pytest.mark.parametrize("format", FORMATS)
def test_a_data_set_of_copies_is_read_without_being_told(tmp_path: Path, format: str) -> None:
    data = source(tmp_path / "data")
    made = run(data, tmp_path / "out", copies=2, format=format)
    assert (made.originals, made.copies, made.format) == (3, 6, format)
    samples = opened(tmp_path / "out")
    assert sorted(samples) == sorted(
        f"cell{i}{s}" for i in range(3) for s in ("", "_aug1", "_aug2")
    )
    before = opened(data)
    for name, sample in samples.items():
        original = before[name.partition("_")[0]]
        image, labels = pixels(sample)
        assert image.dtype == np.uint16 and sample.image.shape == original.image.shape
        assert set(np.unique(labels)) <= {0, 3, 6, 9, 12}
        same = np.array_equal(image, pixels(original)[0])
        assert same == (name == original.name), "an original is as it was, a copy is not"


def test_originals_may_be_left_out(tmp_path: Path) -> None:
    run(source(tmp_path / "data"), tmp_path / "out", copies=1, include_originals=False)
    assert sorted(opened(tmp_path / "out")) == ["cell0_aug1", "cell1_aug1", "cell2_aug1"]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_pixels_keep_their_type_and_scale(tmp_path: Path, dtype: str) -> None:
    data = source(tmp_path / "data", 2, dtype=dtype)
    run(data, tmp_path / "out", copies=4)
    before, after = opened(data), opened(tmp_path / "out")
    for name, sample in after.items():
        original, image = pixels(before[name.partition("_")[0]])[0], pixels(sample)[0]
        assert image.dtype == dtype
        assert image.mean() == pytest.approx(original.mean(), rel=0.5)
        assert image.std() == pytest.approx(original.std(), rel=0.7)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_whole_pixels_come_back_exactly(tmp_path: Path, dtype: str) -> None:
    data = source(tmp_path / "data", 1, dtype=dtype)
    run(data, tmp_path / "out", copies=3, **{**OFF, "flip_probability": 1.0})
    image, labels = pixels(opened(data)["cell0"])
    flipped = [a[..., ::-1, ::-1] for a in (image, labels)]
    for number in (1, 2, 3):
        seen, found = pixels(opened(tmp_path / "out")[f"cell0_aug{number}"])
        np.testing.assert_allclose(seen, flipped[0], rtol=1e-5 if dtype == "float32" else 0)
        np.testing.assert_array_equal(found, flipped[1])


def test_bright_pixels_do_not_wrap_around(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    image = np.full((1, 1, 40, 40), 250, np.uint8)
    image[..., :20] = 5
    write_pair(Pair("a", image, (image[0] > 9).astype(np.uint8)), folder, "tif")
    options = {**OFF, "brightness_probability": 1.0, "brightness_range": 2.0}
    run(folder, tmp_path / "out", copies=6, **options)
    for sample in opened(tmp_path / "out").values():
        seen = pixels(sample)[0]
        left, right = np.unique(seen[..., :20]), np.unique(seen[..., 20:])
        assert len(left) == len(right) == 1 and left[0] <= right[0]


@pytest.mark.parametrize("name", [name for name in CHANCES if name != "swap_depth_probability"])
def test_each_option_does_something(tmp_path: Path, name: str) -> None:
    data = source(tmp_path / "data", 1)
    run(data, tmp_path / "out", copies=2, **{**OFF, name: 1.0})
    found = digests(tmp_path / "out")
    assert found["cell0"] != found["cell0_aug1"]


def test_the_depth_is_swapped_in_cubes_alone(tmp_path: Path) -> None:
    options = {**OFF, "swap_depth_probability": 1.0}
    cube = source(tmp_path / "cube", 1, shape=(1, 48, 48, 48))
    run(cube, tmp_path / "out", copies=1, **options)
    image, seen = pixels(opened(cube)["cell0"])[0], opened(tmp_path / "out")["cell0_aug1"]
    swapped = [np.swapaxes(image, 1, axis) for axis in (2, 3)]
    assert any(np.array_equal(pixels(seen)[0], one) for one in swapped)
    flat = source(tmp_path / "flat", 1)
    with pytest.raises(ConfigError, match="as deep as high and wide; cell0 has 1 x 40 x 48"):
        run(flat, tmp_path / "none", **options)


@pytest.mark.parametrize("slices", ["same", "each"])
def test_all_slices_of_a_stack_undergo_the_same_change(tmp_path: Path, slices: str) -> None:
    plane, truth = scene()
    folder = tmp_path / "data"
    folder.mkdir()
    write_pair(Pair("a", np.repeat(plane, 4, 1), np.repeat(truth, 4, 0)), folder, "tif")
    options = {name: 1.0 for name in CHANCES if "noise" not in name and "swap" not in name}
    run(folder, tmp_path / "out", copies=2, augment_slices=slices, **{**OFF, **options})
    for number in (1, 2):
        image, labels = pixels(opened(tmp_path / "out")[f"a_aug{number}"])
        same = all(
            np.abs(image[:, z].astype(float) - image[:, 0]).max() <= 1
            and np.array_equal(labels[z], labels[0])
            for z in range(4)
        )
        assert same == (slices == "same")


def test_a_copy_depends_on_seed_name_and_number_alone(tmp_path: Path) -> None:
    data = source(tmp_path / "data")
    run(data, tmp_path / "a", copies=2)
    run(data, tmp_path / "b", copies=3, workers=2, format="hdf5")
    alone = tmp_path / "alone"
    for kind in ("images", "labels"):
        (alone / kind).mkdir(parents=True)
        (alone / kind / "cell1.tif").write_bytes((data / kind / "cell1.tif").read_bytes())
    run(alone, tmp_path / "c", copies=2, include_originals=False)
    run(data, tmp_path / "d", copies=2, seed=1)
    a, b, c, d = (digests(tmp_path / name) for name in "abcd")
    assert a.items() <= b.items() and c.items() <= a.items()
    assert len(set(b.values())) == 12, "all of them differ"
    assert {n for n in a if a[n] == d[n]} == {"cell0", "cell1", "cell2"}


def test_the_same_request_gives_the_same_files(tmp_path: Path) -> None:
    data = source(tmp_path / "data", 1)
    for format in FORMATS:
        run(data, tmp_path / f"a-{format}", format=format)
        run(data, tmp_path / f"b-{format}", format=format)
        ours, theirs = (
            {f.relative_to(root): f.read_bytes() for f in root.rglob("*") if f.is_file()}
            for root in (tmp_path / f"a-{format}", tmp_path / f"b-{format}")
        )
        assert ours == theirs and ours


def test_original_is_the_format_of_the_images(tmp_path: Path) -> None:
    for format in FORMATS:
        data = source(tmp_path / f"in-{format}", 1, format)
        assert run(data, tmp_path / f"out-{format}", format="original").format == format
        assert len(opened(tmp_path / f"out-{format}")) == 4
    both = tmp_path / "both.yaml"
    both.write_text("datasets: [{path: in-tif}, {path: in-hdf5}]")
    with pytest.raises(ConfigError, match="several formats: hdf5, tif"):
        run(both, tmp_path / "none", format="original")


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_png_comes_back_as_png(tmp_path: Path, colours: int, dtype: str) -> None:
    data = source(tmp_path / "data", 1, shape=(colours, 1, 40, 48), dtype=dtype)
    image, _ = scene((colours, 1, 40, 48), dtype)
    (data / "images" / "cell0.tif").unlink()
    written = np.moveaxis(image[:, 0], 0, -1)[..., ::-1]
    cv2.imwrite(str(data / "images" / "cell0.png"), written)
    made = run(data, tmp_path / "out", format="original", copies=1)
    assert made.format == "png"
    assert sorted(p.name for p in (tmp_path / "out/images").iterdir()) == [
        "cell0.png",
        "cell0_aug1.png",
    ]
    np.testing.assert_array_equal(pixels(opened(tmp_path / "out")["cell0"])[0], image)


def test_what_a_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    folder = source(tmp_path / "png", 1, shape=(2, 1, 40, 48))
    with h5py.File(tmp_path / "half.h5", "w") as file:
        file["raw"], file["label"] = np.ones((40, 40), np.float16), np.eye(40, dtype=np.uint8)
    with pytest.raises(DataError, match="OME-TIFF has no pixels of type float16") as error:
        run(tmp_path / "half.h5", tmp_path / "out")
    assert "--format ome-zarr or hdf5" in (error.value.hint or "")
    run(tmp_path / "half.h5", tmp_path / "out", format="original", copies=1)
    assert opened(tmp_path / "out")["half_aug1"].image.dtype == np.float16
    (folder / "images" / "cell0.tif").rename(folder / "images" / "cell0.tiff")
    cv2.imwrite(str(folder / "images" / "cell0.jpg"), np.zeros((40, 48), np.uint8))
    (folder / "images" / "cell0.tiff").unlink()
    with pytest.raises(ConfigError, match="a format that cellseg does not write"):
        run(folder, tmp_path / "none", format="original")


def test_images_that_are_too_large_to_deform_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    image = np.zeros((1, 1, 2, 32_800), np.uint8)
    image[..., ::7] = 9
    write_pair(Pair("wide", image, image[0]), folder, "tif")
    with pytest.raises(DataError, match=r"wide has 2 x 32800 pixels.*up to 32766") as error:
        run(folder, tmp_path / "out")
    assert "--affine-probability 0 --elastic-probability 0" in (error.value.hint or "")
    run(folder, tmp_path / "out", affine_probability=0, elastic_probability=0, copies=1)
    assert len(opened(tmp_path / "out")) == 2


def test_what_would_do_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="all probabilities are 0"):
        parse(AugmentSettings, OFF)


def test_nothing_is_left_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = source(tmp_path / "data")
    with pytest.raises(InterruptedRunError):
        augment(plugins, data, tmp_path / "out", interrupted=lambda: True)
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        file["raw"] = np.full((40, 40), np.nan, np.float32)
        file["label"] = np.eye(40, dtype=np.uint8)
    with pytest.raises(DataError, match="NaN"):
        run(tmp_path / "bad.h5", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.h5", "data"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(DataError, match="exists and is not empty"):
        run(data, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "x"


def test_a_dry_run_checks_and_counts_but_writes_nothing(tmp_path: Path) -> None:
    data = source(tmp_path / "data")
    made = run(data, tmp_path / "out", copies=4, dry_run=True)
    assert (made.originals, made.copies) == (3, 12)
    assert made.bytes == 15 * 40 * 48 * (2 + 2)
    assert not (tmp_path / "out").exists()
    assert made.lines()[0].startswith("Would write")
    (data / "labels" / "cell0.tif").unlink()
    with pytest.raises(DataError, match="no partner"):
        run(data, tmp_path / "out", dry_run=True)


def test_copies_of_copies_are_refused(tmp_path: Path) -> None:
    run(source(tmp_path / "data", 1), tmp_path / "a", copies=1)
    with pytest.raises(DataError, match="would be called cell0_aug1") as error:
        run(tmp_path / "a", tmp_path / "b", copies=1)
    assert "augmented before" in (error.value.hint or "")


def test_labels_of_any_integers_keep_their_ids(tmp_path: Path) -> None:
    image, labels = scene()
    ids = np.where(labels > 0, labels.astype(np.int64) + 4_000_000_000, 0)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"], file["label"] = image[0, 0], ids[0]
    run(tmp_path / "a.h5", tmp_path / "out", copies=1, **{**OFF, "rotate90_probability": 1.0})
    for name in ("a", "a_aug1"):
        found = pixels(opened(tmp_path / "out")[name])[1]
        assert found.dtype == np.uint32
        np.testing.assert_array_equal(np.sort(found, None), np.sort(ids, None))
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["raw"], file["label"] = image[0, 0], -ids[0]
    with pytest.raises(DataError, match="labels go from 0 to"):
        run(tmp_path / "b.h5", tmp_path / "none")


def test_a_name_that_is_no_file_name_is_changed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for group in ("x/one.ome", "x/two"):
            file[f"{group}/raw"], file[f"{group}/label"] = (part[0] for part in scene())
    for format in FORMATS:
        run(tmp_path / "a.h5", tmp_path / format, copies=1, format=format)
        names = ["x_one_ome", "x_one_ome_aug1", "x_two", "x_two_aug1"]
        assert sorted(opened(tmp_path / format)) == names


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "int64", "uint64"])
def test_normalising_is_undone(dtype: str) -> None:
    limits = np.array([-7, 0, 255]) if dtype in ("int16", "int64") else np.array([0, 9, 250])
    image = np.resize(limits, (2, 1, 30, 30)).astype(dtype)
    image[1] = 5
    normaliser = Normaliser(method="min-max", inverted=(True,))
    statistics = normaliser.statistics(image)
    again = normaliser.restore(normaliser.apply(image, statistics), statistics, image.dtype)
    assert again.dtype == dtype
    np.testing.assert_allclose(again, image, rtol=0, atol=1e-4 if dtype == "float32" else 0)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64", "uint64"])
def test_what_a_type_cannot_hold_is_clipped(dtype: str) -> None:
    block = np.array([-1e30, 0.4, 0.6, 1e30], np.float32).reshape(1, 1, 2, 2)
    statistics = Statistics(shift=(0.0,), scale=(1.0,))
    found = Normaliser().restore(block, statistics, np.dtype(dtype)).ravel()
    limits = np.iinfo(dtype)
    assert found[0] == limits.min and found[1:3].tolist() == [0, 1]
    assert int(found[3]) >= int(limits.max) - 2**11


def test_tiff_files_are_read_by_others(tmp_path: Path) -> None:
    image, labels = scene((2, 3, 30, 40))
    pair = Pair("a", image, labels, (2.0, 0.5, 0.5), ("DAPI", "GFP"))
    write_pair(pair, tmp_path, "tif")
    with tifffile.TiffFile(tmp_path / "images" / "a.tif") as file:
        assert file.is_ome and file.series[0].axes == "CZYX"
        np.testing.assert_array_equal(file.asarray(), image)
