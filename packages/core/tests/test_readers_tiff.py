from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from cellseg.errors import DataError
from cellseg.plugins import Plugins
from cellseg.readers import describe, open_dataset

plugins = Plugins()
rng = np.random.default_rng(0)
STACK = rng.integers(0, 2000, (4, 50, 70)).astype(np.uint16)
COLOUR = rng.integers(0, 255, (50, 70, 3)).astype(np.uint8)


def read(path: Path, labelled: bool = False, **options: object):
    return open_dataset(plugins, path, "tiff", options, labelled)


def write(path: Path, pixels: Any, **how: Any) -> Path:
    tifffile.imwrite(path, pixels, **how)
    return path


def pages(path: Path, pixels: Any, **how: Any) -> Path:
    """Pages with nothing that says what they are along."""
    with tifffile.TiffWriter(path) as file:
        for page in pixels:
            file.write(page, contiguous=False, metadata=None, **how)
    return path


ZYX = {"metadata": {"axes": "ZYX"}}
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (STACK[0], {}),
    "stack": (STACK, ZYX),
    "deflate": (STACK, ZYX | {"compression": "zlib", "rowsperstrip": 7}),
    "tiled": (STACK, ZYX | {"compression": "lzw", "predictor": True, "tile": (16, 32)}),
    "tiled, uncompressed": (STACK, ZYX | {"tile": (16, 32)}),
    "big endian": (STACK, ZYX | {"byteorder": ">"}),
    "big endian, deflate": (STACK, ZYX | {"byteorder": ">", "compression": "zlib"}),
    "bigtiff": (STACK, ZYX | {"bigtiff": True}),
    "volume tiles": (
        np.concatenate([STACK] * 5),
        ZYX | {"volumetric": True, "tile": (16, 16, 32), "photometric": "minisblack"},
    ),
    "float": (STACK[0].astype(np.float32), {"compression": "zlib", "predictor": 3}),
    "rgb": (COLOUR, {"photometric": "rgb"}),
    "rgb tiles": (COLOUR, {"photometric": "rgb", "compression": "zlib", "tile": (16, 32)}),
    "rgb planes": (
        np.moveaxis(COLOUR, -1, 0),
        {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib"},
    ),
    "one bit": (STACK[0] > 1000, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_block_of_any_layout_and_any_truncation(tmp_path: Path, kind: str) -> None:
    pixels, how = KINDS[kind]
    file = write(tmp_path / "a.tif", pixels, **how)
    (sample,) = read(file)
    whole = sample.image[:]
    expected = tifffile.imread(file)
    if kind.startswith("rgb"):
        expected = expected if expected.shape[0] == 3 else np.moveaxis(expected, -1, 0)
        assert np.array_equal(whole[:, 0], expected)
    else:
        assert np.array_equal(whole[0].squeeze(), expected)
    assert whole.dtype == sample.image.dtype and whole.dtype.isnative
    draw = np.random.default_rng(1)
    for _ in range(20):
        ends = [sorted(draw.integers(0, n + 1, 2).tolist()) for n in whole.shape]
        key = tuple(slice(a, b) for a, b in ends)
        assert np.array_equal(sample.image[key], whole[key])
    data = file.read_bytes()
    cut = tmp_path / "cut.tif"
    for length in {0, 1, 4, 8, 9, len(data) - 1, *draw.integers(0, len(data), 25).tolist()}:
        cut.write_bytes(data[:length])
        with pytest.raises(DataError, match=r"cut\.tif"):
            _ = read(cut)[0].image[:]


def test_a_truncated_stack_of_pages_is_not_a_shorter_stack(tmp_path: Path) -> None:
    for how in ({}, {"compression": "zlib"}):
        data = pages(tmp_path / "a.tif", STACK, **how).read_bytes()
        cut = tmp_path / "cut.tif"
        for part in np.linspace(0.05, 0.99, 20):
            cut.write_bytes(data[: int(part * len(data))])
            with pytest.raises(DataError, match=r"cut\.tif"):
                _ = read(cut, axes="ZYX")[0].image[:]


def test_ambiguous_stack_needs_axes(tmp_path: Path) -> None:
    file = pages(tmp_path / "a.tif", STACK)
    with pytest.raises(DataError, match="ambiguous") as error:
        read(file)
    assert "--axes ZYX, TYX or CYX" in error.value.hint
    assert read(file, axes="ZYX")[0].image.shape == (1, 4, 50, 70)
    assert read(file, axes="cyx")[0].image.shape == (4, 1, 50, 70)
    movie = read(file, axes="TYX")
    assert [s.name for s in movie] == ["a#0", "a#1", "a#2", "a#3"]
    assert [s.frame for s in movie] == [0, 1, 2, 3]
    assert {s.group for s in movie} == {"a"}
    assert np.array_equal(movie[2].image[:][0, 0], STACK[2])
    assert describe(movie) == [
        "a: 4 frames of axes TYX, 1 x 50 x 70 (z, y, x), uint16, 1 x 1 x 1 µm, 1 channel"
    ]
    with pytest.raises(DataError, match="names 5 axes"):
        read(file, axes="TCZYX")


def test_ome_axes_spacing_and_channels(tmp_path: Path) -> None:
    pixels = rng.integers(0, 99, (3, 2, 5, 20, 30)).astype(np.uint8)
    about = {
        "axes": "TCZYX",
        "PhysicalSizeX": 250,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.5,
        "PhysicalSizeZ": 2.0,
        "Channel": {"Name": ["DAPI", "GFP"], "EmissionWavelength": [461.0, 509.0]},
    }
    for how in ({}, {"compression": "zlib"}):
        file = write(tmp_path / "m.ome.tif", pixels, metadata=about, ome=True, **how)
        samples = read(file)
        assert samples[1].name == "m#1"
        assert samples[1].spacing == (2.0, 0.5, 0.25)
        assert samples[1].channels == ("DAPI", "GFP")
        assert np.array_equal(samples[1].image[:], pixels[1])
        for choice in ("GFP", "509", "1"):
            (sample, *_) = read(file, channels=choice)
            assert sample.channels == ("GFP",)
            assert np.array_equal(sample.image[:, 1:3], pixels[0, 1:2, 1:3])
        swapped = read(file, channels="GFP, DAPI")[2]
        assert np.array_equal(swapped.image[:], pixels[2, ::-1])
        assert np.array_equal(swapped.image[1:2], pixels[2, :1])


def test_unknown_channel(tmp_path: Path) -> None:
    about = {"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP", "Cy5", "BF"]}}
    file = write(tmp_path / "m.ome.tif", STACK, metadata=about, ome=True)
    with pytest.raises(DataError, match=r"no channel 'Dapi'.*DAPI, GFP") as error:
        read(file, channels="Dapi")
    assert error.value.hint == "By index: 0 to 3." or "DAPI" in error.value.hint
    with pytest.raises(DataError, match="no channel '4'"):
        read(file, channels="4")
    picked = read(file, channels="3,0,1")[0]
    assert picked.channels == ("BF", "DAPI", "GFP")
    assert np.array_equal(picked.image[:][:, 0], STACK[[3, 0, 1]])


@pytest.mark.parametrize("unit, size", [("um", 0.5), ("\\u00B5m", 0.5), ("nm", 0.0005)])
def test_imagej_spacing(tmp_path: Path, unit: str, size: float) -> None:
    file = write(
        tmp_path / "a.tif",
        STACK,
        imagej=True,
        resolution=(2.0, 4.0),
        metadata={"axes": "ZYX", "unit": unit, "spacing": 3.0},
    )
    (sample,) = read(file)
    assert sample.spacing == pytest.approx((6 * size, size / 2, size))
    assert sample.image.shape == (1, 4, 50, 70)


@pytest.mark.parametrize(
    "resolution, unit, expected",
    [((1, 1), "NONE", 1.0), ((20000, 20000), "CENTIMETER", 0.5), ((72, 72), "INCH", 1.0)],
)
def test_resolution_tags(tmp_path: Path, resolution: Any, unit: str, expected: float) -> None:
    file = write(tmp_path / "a.tif", STACK[0], resolution=resolution, resolutionunit=unit)
    assert read(file)[0].spacing == pytest.approx((1.0, expected, expected))


def test_alpha_of_a_tiff_is_dropped(tmp_path: Path) -> None:
    pixels = np.concatenate([COLOUR, COLOUR[..., :1]], axis=-1)
    file = write(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    (sample,) = read(file)
    assert sample.image.shape[0] == 3
    assert np.array_equal(sample.image[:][:, 0], np.moveaxis(COLOUR, -1, 0))
    assert "alpha dropped" in describe([sample])[0]


def test_labels_of_a_stack_follow_the_image(tmp_path: Path) -> None:
    image = pages(tmp_path / "a.tif", STACK)
    pages(tmp_path / "t.tif", STACK)
    (sample,) = read(image, True, axes="ZYX", labels="t.tif")
    assert np.array_equal(sample.labels[:], STACK)
    frames = read(image, True, axes="TYX", labels=str(tmp_path / "t.tif"))
    assert np.array_equal(frames[3].labels[:][0], STACK[3])
    image = write(tmp_path / "b.ome.tif", STACK[:, None].repeat(2, 1), metadata={"axes": "ZCYX"})
    (sample,) = read(image, True, labels="t.tif")
    assert sample.image.shape == (2, 4, 50, 70) and sample.labels.shape == (4, 50, 70)
    with pytest.raises(DataError, match="which file holds its labels"):
        read(image, True)
    with pytest.raises(DataError, match="no such file"):
        read(image, True, labels="no.tif")


def test_several_images_in_one_file(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(STACK[0])
        file.write(STACK[1, :10])
    with pytest.raises(DataError, match="holds 2 images"):
        read(tmp_path / "a.tif")


def test_bad_slices_are_refused(tmp_path: Path) -> None:
    (sample,) = read(write(tmp_path / "a.tif", STACK, **ZYX))
    with pytest.raises(TypeError):
        sample.image[:, :, ::2]
    with pytest.raises(TypeError):
        sample.image[0]  # type: ignore[index]
    assert sample.image[:, 2:2].shape == (1, 0, 50, 70)


@pytest.mark.parametrize("how", [{}, {"tile": (256, 256), "compression": "zlib"}])
def test_memory_stays_near_one_patch(tmp_path: Path, how: dict[str, Any]) -> None:
    """A sparse file of 2 GB, and a tiled one of 128 MB: a patch takes patch-sized memory."""
    if how:
        zeros = np.zeros((8192, 8192), np.uint16)
        file = write(tmp_path / "big.tif", zeros, **how)
        del zeros
    else:
        tifffile.imwrite(tmp_path / "big.tif", shape=(1, 32768, 32768), dtype="uint16")
        file = tmp_path / "big.tif"
    (sample,) = read(file)
    patch = 512 * 512 * 2
    _ = sample.image[:, :, :512, :512]
    tracemalloc.start()
    for corner in (0, 700, 4000, 7000):
        block = sample.image[:, :, corner : corner + 512, corner : corner + 512]
        assert block.nbytes == patch
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * patch
