from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from cellseg.errors import DataError
from cellseg.plugins import Plugins
from cellseg.readers import describe, open_dataset, reader_for

DATA = Path(__file__).parents[3] / "../shared/data/ome_zarr"
real = pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data beside the repository")
plugins = Plugins()
UNITS = {"t": "second", "z": "micrometer", "y": "nanometer", "x": "micrometer"}


def multiscales(axes: str, scale: list[float], paths: list[str]) -> dict:
    kinds = {"t": "time", "c": "channel"}
    described = [
        {"name": a, "type": kinds.get(a, "space")} | ({"unit": UNITS[a]} if a in UNITS else {})
        for a in axes
    ]
    datasets = [
        {
            "path": path,
            "coordinateTransformations": [{"type": "scale", "scale": scale}],
        }
        for path in paths
    ]
    return {"multiscales": [{"axes": described, "datasets": datasets, "version": "0.4"}]}


def write(path: Path, pixels: np.ndarray, axes: str, zarr_format: int = 2, **more) -> zarr.Group:
    """An OME-Zarr image of one level, 0.4 (format 2) or 0.5 (format 3)."""
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    chunks = (1, *(min(n, 16) for n in pixels.shape[1:]))
    group.create_array("0", data=pixels, chunks=chunks)
    about = multiscales(axes, [0.5] * len(axes), ["0"]) | more
    group.attrs.update(about if zarr_format == 2 else {"ome": about})
    return group


def add_label(path: Path, name: str, pixels: np.ndarray, axes: str, zarr_format: int = 2) -> None:
    write(path / "labels" / name, pixels, axes, zarr_format)
    labels = zarr.open_group(path / "labels", mode="a", zarr_format=zarr_format)
    old = labels.attrs.asdict()
    names = (old if zarr_format == 2 else old.get("ome", {})).get("labels", [])
    about = {"labels": [*names, name]}
    labels.attrs.update(about if zarr_format == 2 else {"ome": about})


def read(path: Path, labelled: bool = True, **options: object):
    return open_dataset(plugins, path, "auto", options, labelled)


PIXELS = np.random.default_rng(0).integers(1, 999, (2, 3, 40, 50)).astype(np.uint16)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_image_and_its_only_label(tmp_path: Path, zarr_format: int) -> None:
    path = tmp_path / "a.ome.zarr"
    omero = {"channels": [{"label": "DNA", "wavelength_id": "A01_C01"}, {"label": "ER"}]}
    write(path, PIXELS, "czyx", zarr_format, omero=omero)
    add_label(path, "cells", PIXELS[0], "zyx", zarr_format)
    (sample,) = read(path)
    assert (sample.name, sample.path) == ("a", path)
    assert sample.channels == ("DNA", "ER")
    assert sample.spacing == (0.5, 0.0005, 0.5)
    assert np.array_equal(sample.image[:, 1:, 3:30], PIXELS[:, 1:, 3:30])
    assert np.array_equal(pickle.loads(pickle.dumps(sample)).labels[:], PIXELS[0])
    by_wavelength = read(path, channels="A01_C01")[0]
    assert np.array_equal(by_wavelength.image[:], PIXELS[:1])
    add_label(path, "nuclei", PIXELS[1], "zyx", zarr_format)
    with pytest.raises(DataError, match="2 label images: cells, nuclei") as error:
        read(path)
    assert "--label cells" in error.value.hint
    assert np.array_equal(read(path, label="nuclei")[0].labels[:], PIXELS[1])
    with pytest.raises(DataError, match="no label image 'nuclie'"):
        read(path, label="nuclie")
    assert read(path, labelled=False)[0].labels is None


def test_a_folder_of_images_and_a_movie(tmp_path: Path) -> None:
    write(tmp_path / "b.zarr", PIXELS, "tzyx")
    write(tmp_path / "a.zarr", PIXELS[0], "cyx")
    samples = read(tmp_path, labelled=False)
    assert [s.name for s in samples] == ["a", "b#0", "b#1"]
    assert samples[0].image.shape == (3, 1, 40, 50)
    assert samples[2].group == "b" and samples[2].frame == 1
    assert np.array_equal(samples[2].image[:][0], PIXELS[1])
    assert describe(samples)[1].startswith("b: 2 frames of axes TZYX, 3 x 40 x 50")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_missing_chunk_is_an_error_unless_allowed(tmp_path: Path, zarr_format: int) -> None:
    path = tmp_path / "a.zarr"
    write(path, PIXELS, "czyx", zarr_format)
    chunk = path / ("0/1.0.1.1" if zarr_format == 2 else "0/c/1/0/1/1")
    chunk.unlink()
    (sample,) = read(path, labelled=False)
    assert np.array_equal(sample.image[:1], PIXELS[:1])
    assert np.array_equal(sample.image[:, :, :16], PIXELS[:, :, :16])
    with pytest.raises(DataError, match=r"a\.zarr/0: the chunk .*1.0.1.1 is missing") as error:
        sample.image[:]
    assert "--allow-missing-chunks" in error.value.hint
    (sample,) = read(path, labelled=False, allow_missing_chunks=True)
    assert sample.image[1:, :, 16:32, 16:32].max() == 0


def test_missing_chunks_of_labels_are_background(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    write(path, PIXELS, "czyx")
    labels = PIXELS[0].copy()
    labels[:, 16:32] = 0
    add_label(path, "cells", labels, "zyx")
    assert not (path / "labels/cells/0/0.1.0").exists()
    assert np.array_equal(read(path)[0].labels[:], labels)


@pytest.mark.parametrize("size", [0, 10])
def test_a_damaged_chunk(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.zarr"
    write(path, PIXELS, "czyx")
    chunk = path / "0/0.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:size])
    with pytest.raises(DataError, match=r"a\.zarr/0: cannot be read"):
        _ = read(path, labelled=False)[0].image[:]


def test_damaged_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    write(path, PIXELS, "czyx")
    (path / "0/.zarray").write_text("{")
    with pytest.raises(DataError, match=r"\.zarray: cannot be read"):
        read(path, labelled=False)
    shutil.rmtree(path / "0")
    with pytest.raises(DataError, match="level 0 is missing"):
        read(path, labelled=False)
    (path / ".zattrs").write_text("")
    with pytest.raises(DataError, match=r"\.zattrs: cannot be read"):
        read(path, labelled=False)


def test_labels_of_another_shape(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    write(path, PIXELS, "czyx")
    add_label(path, "cells", PIXELS[0, :, :20], "zyx")
    with pytest.raises(DataError, match=r"labels/cells and .*a\.zarr/0 differ in shape"):
        read(path)


def test_sharded_images(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    pixels = PIXELS[:, :, :32, :48]
    group.create_array("s", data=pixels, chunks=(1, 1, 8, 8), shards=(1, 3, 16, 16))
    group.attrs["ome"] = multiscales("czyx", [1] * 4, ["s"])
    (sample,) = read(tmp_path / "a.zarr", labelled=False)
    assert np.array_equal(sample.image[:, 1:2, 5:30, 5:20], pixels[:, 1:2, 5:30, 5:20])
    (tmp_path / "a.zarr/s/c/0/0/1/2").unlink()
    with pytest.raises(DataError, match="c/0/0/1/2 is missing"):
        sample.image[:]


def plate(path: Path, wells: list[str], fields: int = 2) -> Path:
    root = zarr.open_group(path, mode="w", zarr_format=2)
    root.attrs["plate"] = {"wells": [{"path": well} for well in wells]}
    for well in wells:
        for field in range(fields):
            write(path / well / str(field), PIXELS[0, :1] + field, "cyx")
        images = [{"path": str(f), "acquisition": f} for f in range(fields)]
        zarr.open_group(path / well, mode="a", zarr_format=2).attrs["well"] = {"images": images}
    return path


def test_plate_wells_fields_and_acquisitions(tmp_path: Path) -> None:
    path = plate(tmp_path / "p.zarr", ["B/03", "B/04", "C/03"])
    assert reader_for(plugins, path).name == "plate"
    samples = read(path, labelled=False)
    assert [s.name for s in samples][:3] == ["B/03/0", "B/03/1", "B/04/0"]
    assert samples[1].group == "B/03" and samples[1].path == path / "B/03/1"
    chosen = read(path, labelled=False, wells="B/*,C03", acquisition=1)
    assert [s.name for s in chosen] == ["B/03/1", "B/04/1", "C/03/1"]
    assert np.array_equal(chosen[0].image[:][:, 0], PIXELS[0, :1] + 1)
    with pytest.raises(DataError, match="no well 'D/01'") as error:
        read(path, labelled=False, wells="D/01")
    assert "B/03" in error.value.hint
    with pytest.raises(DataError, match="no acquisition 7"):
        read(path, labelled=False, acquisition=7)
    with pytest.raises(DataError) as error:
        read(path)
    assert str(error.value).count("has no label image") == 6
    shutil.rmtree(path / "B/04")
    with pytest.raises(DataError, match="B/04: this well of the plate is missing"):
        read(path, labelled=False)


def test_a_container_of_series(tmp_path: Path) -> None:
    root = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    root.attrs["bioformats2raw.layout"] = 3
    for series in ("0", "1", "10", "2"):
        write(tmp_path / "a.zarr" / series, PIXELS, "czyx")
    assert [s.name for s in read(tmp_path / "a.zarr", labelled=False)] == [
        "a/0",
        "a/1",
        "a/2",
        "a/10",
    ]


@real
def test_the_idr_image_whose_labels_ngio_does_not_list() -> None:
    (old,) = read(DATA / "idr0062_6001240_labels_v0.5.zarr", channels="Dapi")
    (new,) = read(DATA / "idr0062_6001240_level2_ngio.zarr", channels="Dapi")
    assert old.image.shape == (1, 236, 68, 67)
    assert old.labels.dtype == np.int8
    assert len(np.unique(old.labels[:])) == 62
    assert np.array_equal(old.labels[:], new.labels[:])
    assert np.array_equal(old.image[:], new.image[:])
    assert old.spacing == pytest.approx((0.5002, 1.4416, 1.4416), abs=1e-4) == new.spacing


@real
def test_the_real_plate() -> None:
    samples = read(DATA / "dsb2018_plate.zarr", channels="DAPI")
    counts = [len(np.unique(s.labels[:])) - 1 for s in samples]
    assert counts == [9, 9, 28, 55, 9, 41]
    assert samples[0].spacing == (1.0, 0.65, 0.65)


def test_metadata_is_read_without_zarr_or_ngio(tmp_path: Path) -> None:
    import subprocess
    import sys

    write(tmp_path / "a.zarr", PIXELS, "czyx")
    code = (
        "import sys; from pathlib import Path; from cellseg.plugins import Plugins;"
        "from cellseg.readers import open_dataset;"
        f"s = open_dataset(Plugins([]), Path({str(tmp_path)!r}), 'auto', {{}}, False);"
        "assert not {'zarr', 'ngio'} & set(sys.modules), 'too early';"
        "s[0].image[:]; assert 'ngio' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert json.loads((tmp_path / "a.zarr/.zattrs").read_text())


def test_a_view_tells_its_chunks(tmp_path: Path) -> None:
    """Whoever reads a whole image can read each chunk once."""
    array = zarr.create_array(
        tmp_path / "a.zarr" / "raw", shape=(2, 6, 40, 50), chunks=(1, 3, 16, 20), dtype="u2"
    )
    array[...] = 1
    (sample,) = open_dataset(Plugins(), tmp_path / "a.zarr", "zarr", {"axes": "CZYX"}, False)
    assert sample.image.chunks == (1, 3, 16, 20)  # type: ignore[attr-defined]
