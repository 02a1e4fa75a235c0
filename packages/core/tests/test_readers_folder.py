from __future__ import annotations

import pickle
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

from cellseg.errors import ConfigError, DataError
from cellseg.plugins import Plugins
from cellseg.readers import describe, open_dataset, reader_for

DATA = Path(__file__).parents[3] / "../shared/data"
plugins = Plugins()


def ramp(*shape: int, dtype: str = "uint16") -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def pairs(root: Path, names: str = "ab", shape: tuple[int, int] = (20, 30)) -> Path:
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
        for name in names:
            tifffile.imwrite(root / kind / f"{name}.tif", ramp(*shape))
    return root


def read(path: Path, labelled: bool = True, **options: object):
    return open_dataset(plugins, path, "auto", options, labelled)


def test_pairs_are_matched_by_name_in_stable_order(tmp_path: Path) -> None:
    pairs(tmp_path, "bca")
    samples = read(tmp_path)
    assert [s.name for s in samples] == ["a", "b", "c"]
    assert samples[0].image.shape == (1, 1, 20, 30)
    assert samples[0].labels.shape == (1, 20, 30)
    assert np.array_equal(samples[0].labels[:, 3:5, 4:9][0], ramp(20, 30)[3:5, 4:9])
    assert samples[0].path == tmp_path / "images/a.tif"


def test_each_unmatched_file_is_reported(tmp_path: Path) -> None:
    pairs(tmp_path, "abcd")
    (tmp_path / "labels/a.tif").unlink()
    (tmp_path / "labels/c.tif").unlink()
    (tmp_path / "images/d.tif").unlink()
    with pytest.raises(DataError) as error:
        read(tmp_path)
    for name in ("images/a.tif", "images/c.tif", "labels/d.tif"):
        assert name in str(error.value)
    assert "b.tif" not in str(error.value)
    assert "\n" not in str(error.value)


def test_extension_may_differ_and_suffixes_are_cut(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x_img.tif", ramp(8, 9))
    (tmp_path / "x_mask.png").write_bytes(imagecodecs.png_encode(ramp(8, 9)))
    (sample,) = read(tmp_path, image_suffix="_img", label_suffix="_mask")
    assert sample.name == "x"
    assert np.array_equal(sample.image[:][0], sample.labels[:])
    (sample,) = read(tmp_path, labelled=False, image_suffix="_img", label_suffix="_mask")
    assert sample.labels is None
    tifffile.imwrite(tmp_path / "stray.tif", ramp(8, 9))
    with pytest.raises(DataError, match=r"stray\.tif"):
        read(tmp_path, image_suffix="_img", label_suffix="_mask")


def test_labels_with_only_a_label_suffix(tmp_path: Path) -> None:
    for name in ("x.tif", "x_mask.tif", "y.tif", "y_mask.tif"):
        tifffile.imwrite(tmp_path / name, ramp(8, 9))
    assert [s.name for s in read(tmp_path, label_suffix="_mask")] == ["x", "y"]
    assert [s.name for s in read(tmp_path, labelled=False, label_suffix="_mask")] == ["x", "y"]


def test_named_folders(tmp_path: Path) -> None:
    pairs(tmp_path / "in")
    (tmp_path / "in/images").rename(tmp_path / "in/raw")
    (tmp_path / "in/labels").rename(tmp_path / "truth")
    samples = open_dataset(
        plugins,
        tmp_path / "in",
        "folder",
        {"images": "raw", "labels": str(tmp_path / "truth")},
        True,
    )
    assert len(samples) == 2
    with pytest.raises(DataError, match="no folder labels/") as error:
        open_dataset(plugins, tmp_path / "in", "folder", {"images": "raw"}, True)
    assert "--labels" in error.value.hint
    with pytest.raises(DataError, match="no such folder") as error:
        open_dataset(plugins, tmp_path / "in", "folder", {"images": "pictures"}, True)
    assert "raw" in error.value.hint


def test_one_name_twice_and_images_beside_labels(tmp_path: Path) -> None:
    pairs(tmp_path)
    (tmp_path / "images/a.png").write_bytes(imagecodecs.png_encode(ramp(20, 30)))
    with pytest.raises(DataError, match="one name: 'a'"):
        read(tmp_path)
    with pytest.raises(DataError, match="in one folder"):
        read(tmp_path, images="labels")


def test_unlabelled_folder_and_single_file(tmp_path: Path) -> None:
    pairs(tmp_path)
    assert len(read(tmp_path, labelled=False)) == 2
    assert len(read(tmp_path / "labels", labelled=False)) == 2
    file = tmp_path / "one.png"
    file.write_bytes(imagecodecs.png_encode(ramp(5, 6, 3, dtype="uint8")))
    (sample,) = read(file, labelled=False)
    assert reader_for(plugins, file).name == "folder"
    assert sample.image.shape == (3, 1, 5, 6)
    assert sample.channels == ("red", "green", "blue")


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_png_of_any_kind_and_alpha_is_dropped(tmp_path: Path, dtype: str, samples: int) -> None:
    pixels = ramp(6, 7, samples, dtype=dtype) * 3
    file = tmp_path / "a.png"
    file.write_bytes(imagecodecs.png_encode(pixels.squeeze()))
    (sample,) = read(file, labelled=False)
    colours = samples - (samples in (2, 4))
    assert sample.image.dtype == dtype
    assert np.array_equal(sample.image[:][:, 0], np.moveaxis(pixels, -1, 0)[:colours])
    assert ("alpha dropped" in describe([sample])[0]) == (samples in (2, 4))


def test_jpeg_header_and_pixels(tmp_path: Path) -> None:
    pixels = np.full((16, 24, 3), 200, np.uint8)
    (tmp_path / "a.jpg").write_bytes(imagecodecs.jpeg_encode(pixels))
    (tmp_path / "b.JPEG").write_bytes(imagecodecs.jpeg_encode(pixels[..., 0].copy()))
    a, b = read(tmp_path, labelled=False)
    assert a.image.shape == (3, 1, 16, 24) and b.image.shape == (1, 1, 16, 24)
    assert abs(int(a.image[0:1, 0:1, 3:4, 5:6].item()) - 200) < 3


def test_labels_that_are_none(tmp_path: Path) -> None:
    pairs(tmp_path, "abcd")
    (tmp_path / "labels/a.tif").unlink()
    (tmp_path / "labels/a.png").write_bytes(imagecodecs.png_encode(ramp(20, 30, 3, dtype="uint8")))
    tifffile.imwrite(tmp_path / "labels/b.tif", ramp(20, 30, dtype="float32"))
    tifffile.imwrite(tmp_path / "labels/c.tif", ramp(20, 31))
    (tmp_path / "labels/d.tif").unlink()
    (tmp_path / "labels/d.jpg").write_bytes(imagecodecs.jpeg_encode(np.zeros((20, 30), np.uint8)))
    with pytest.raises(DataError) as error:
        read(tmp_path)
    text = str(error.value)
    assert "a.png: holds colours" in text
    assert "b.tif: labels are float32" in text
    assert "labels/c.tif" in text and "images/c.tif" in text
    assert "20 x 31 (YX)" in text and "20 x 30 (YX)" in text
    assert "d.jpg: labels cannot be JPEG" in text


def test_damaged_files_are_named_together(tmp_path: Path) -> None:
    pairs(tmp_path, "abc")
    (tmp_path / "images/a.tif").write_bytes(b"")
    (tmp_path / "images/b.tif").write_bytes((tmp_path / "images/c.tif").read_bytes()[:-50])
    with pytest.raises(DataError) as error:
        read(tmp_path)
    assert "a.tif: is empty" in str(error.value) and "b.tif: is cut short" in str(error.value)


@pytest.mark.parametrize("cut", [0, 5, 30, 60, 200])
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_truncated_png_and_jpeg(tmp_path: Path, cut: int, kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)
    encode = imagecodecs.png_encode if kind == "png" else imagecodecs.jpeg_encode
    file = tmp_path / f"a.{kind}"
    file.write_bytes(encode(pixels)[:cut])
    with pytest.raises(DataError, match=f"a.{kind}"):
        _ = read(file, labelled=False)[0].image[:]


def test_samples_are_picklable_and_survive_a_rewritten_file(tmp_path: Path) -> None:
    pairs(tmp_path)
    (tmp_path / "images/a.tif").unlink()
    tifffile.imwrite(tmp_path / "images/a.tif", ramp(20, 30), compression="zlib")
    before = read(tmp_path)[0]
    again = pickle.loads(pickle.dumps(before))
    assert np.array_equal(again.image[:], before.image[:])
    (tmp_path / "images/a.tif").unlink()
    tifffile.imwrite(tmp_path / "images/a.tif", ramp(20, 30) + 1, compression="zlib")
    assert np.array_equal(read(tmp_path)[0].image[:][0, 0], ramp(20, 30) + 1)
    (tmp_path / "images/a.tif").unlink()
    with pytest.raises(DataError, match=r"a\.tif"):
        _ = again.image[:]


def test_options_are_checked(tmp_path: Path) -> None:
    pairs(tmp_path)
    with pytest.raises(ConfigError) as error:
        read(tmp_path, lables="x")
    assert error.value.hint == "Did you mean 'labels'?"
    with pytest.raises(ConfigError, match="--axes"):
        read(tmp_path, axes="ZZYX")
    with pytest.raises(ConfigError, match="--channels"):
        read(tmp_path, channels="0,,1")
    with pytest.raises(ConfigError, match="--label-suffix"):
        read(tmp_path, label_suffix="_mask.tif")


def test_no_images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "images/a.czi").write_bytes(b"x")
    with pytest.raises(DataError, match="holds no images that a reader recognises"):
        read(tmp_path)
    with pytest.raises(DataError) as error:
        open_dataset(plugins, tmp_path, "folder", {}, True)
    assert ".czi" in error.value.hint
    with pytest.raises(DataError, match="no such file"):
        reader_for(plugins, tmp_path / "nowhere")


@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data beside the repository")
def test_real_folders() -> None:
    counts = {"dsb2018_fluo": (40, 1603), "usiigaci_phase": (6, None), "c2c12_phase": (10, None)}
    for folder, (count, objects) in counts.items():
        samples = read(DATA / folder)
        assert len(samples) == count
        if objects:
            assert sum(len(np.unique(s.labels[:])) - 1 for s in samples) == objects
        for sample in samples:
            whole = tifffile.imread(sample.path)
            block = sample.image[:, :, 11:90, 7:200]
            assert np.array_equal(block[0, 0], whole[11:90, 7:200])
