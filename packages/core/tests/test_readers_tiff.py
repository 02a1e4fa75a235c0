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


ZYX: dict[str, Any] = {"metadata": {"axes": "ZYX"}, "photometric": "minisblack"}
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
        ZYX | {"volumetric": True, "tile": (16, 16, 32)},
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
    refused = 0
    lengths = {0, 1, 4, 8, 9, len(data) - 1, *draw.integers(0, len(data), 25).tolist()}
    for length in lengths:
        cut.write_bytes(data[:length])
        try:
            assert np.array_equal(read(cut)[0].image[:], whole)  # only unused tags are gone
        except DataError as error:
            assert "cut.tif" in str(error) and "\n" not in str(error)
            refused += 1
    assert refused >= len(lengths) - 2


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
    with pytest.raises(DataError, match="TCZYX does not fit"):
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


def test_stated_axes_may_leave_out_or_name_axes_of_length_1(tmp_path: Path) -> None:
    file = write(tmp_path / "m.ome.tif", STACK[None], metadata={"axes": "TZYX"}, ome=True)
    for axes in ("TCZYX", "TZYX", "ZYX", "CZYX"):
        (sample,) = read(file, axes=axes)
        assert np.array_equal(sample.image[:][0], STACK), axes
    assert len(read(file, axes="TYX")) == 4
    with pytest.raises(DataError, match="does not fit"):
        read(file, axes="CYXZS")


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


def test_parts_of_one_image_in_several_files(tmp_path: Path) -> None:
    uuid = "urn:uuid:00000000-0000-0000-0000-00000000000"
    planes = "".join(
        f'<TiffData FirstC="{c}" IFD="0" PlaneCount="1"><UUID FileName="{c}.ome.tif">{uuid}{c}'
        "</UUID></TiffData>"
        for c in range(2)
    )
    for c in range(2):
        xml = (
            f'<?xml version="1.0" encoding="UTF-8"?><OME UUID="{uuid}{c}" '
            'xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
            '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="70" SizeY="50" '
            f'SizeC="2" SizeZ="1" SizeT="1">{planes}</Pixels></Image></OME>'
        )
        write(tmp_path / f"{c}.ome.tif", STACK[c], description=xml, metadata=None)
    with pytest.raises(DataError, match="spread over several files"):
        read(tmp_path / "0.ome.tif")
    (tmp_path / "1.ome.tif").unlink()
    with pytest.raises(DataError, match=r"0\.ome\.tif"):
        read(tmp_path / "0.ome.tif")


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    for name in ("tiff", "hdf5", "zarr", "ome-zarr", "plate"):
        for content in (b"", b"nonsense" * 99):
            (tmp_path / "a.tif").write_bytes(content)
            with pytest.raises(DataError, match=r"a\.tif"):
                open_dataset(plugins, tmp_path / "a.tif", name, {}, False)
        with pytest.raises(DataError):
            open_dataset(plugins, tmp_path, name, {}, False)


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
