"""``embed``: which labels belong to which images, in any format."""

from __future__ import annotations

import shutil
from pathlib import Path

import embedding_fakes as fakes
import engine_fakes
import numpy as np
import pytest
import tifffile
from embedding_fakes import rows, run, segment, vectors

from cellseg.errors import ConfigError, DataError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return fakes.write_images(tmp_path / "images")


def test_labels_beside_the_images(images: Path, tmp_path: Path) -> None:
    """Those of a data set to train on, as its reader finds them."""
    segment(images, tmp_path / "labels")
    for file in (tmp_path / "labels").glob("*.csv"):
        file.unlink()
    run(tmp_path, tmp_path / "emb")
    run(tmp_path, tmp_path / "same", labels="labels")
    assert rows(tmp_path / "emb") == rows(tmp_path / "same")
    for image in images.iterdir():
        mask = tifffile.imread(tmp_path / "labels" / image.name)
        tifffile.imwrite(images / f"{image.stem}_mask.tif", mask)
        image.rename(images / f"{image.stem}_img.tif")
    suffixes = {"image_suffix": "_img", "label_suffix": "_mask"}
    run(images, tmp_path / "pairs", reading=suffixes)
    assert rows(tmp_path / "emb") == rows(tmp_path / "pairs")
    run(images, tmp_path / "named", reading=suffixes, labels=images)
    assert rows(tmp_path / "emb") == rows(tmp_path / "named")


def test_one_image_and_its_labels_need_not_share_a_name(images: Path, tmp_path: Path) -> None:
    segment(images / "a.tif", tmp_path / "out")
    (tmp_path / "out" / "a.tif").rename(tmp_path / "other.tif")
    run(images / "a.tif", tmp_path / "emb", labels=tmp_path / "other.tif")
    assert {row["image"] for row in rows(tmp_path / "emb")} == {"a"}
    segment(images, tmp_path / "all")
    run(images / "a.tif", tmp_path / "of", labels=tmp_path / "all")
    assert rows(tmp_path / "emb") == rows(tmp_path / "of")


@pytest.mark.parametrize("format", ["tiff", "hdf5", "ome-zarr"])
def test_a_plate_in_any_format(tmp_path: Path, format: str) -> None:
    pixels = engine_fakes.discs((90, 140))[0, 0]
    plate = fakes.write_plate(tmp_path / "plate.zarr", ["B/03", "C/11"], pixels)
    segment(plate, tmp_path / "out", format=(format,))
    run(plate, tmp_path / "emb", labels=tmp_path / "out")
    manifest = rows(tmp_path / "emb")
    places = {(r["image"], r["plate"], r["well"], r["field"]) for r in manifest}
    assert places == {
        (f"{well}/{field}", "plate", well, field) for well in ("B/03", "C/11") for field in "01"
    }
    count = len(manifest) // 4
    assert [row["id"] for row in manifest] == [*range(1, count + 1)] * 4
    both = vectors(tmp_path / "emb")
    np.testing.assert_array_equal(both[: 2 * count], both[2 * count :])


def test_labels_inside_a_plate_by_name(tmp_path: Path) -> None:
    pixels = engine_fakes.discs((90, 140))[0, 0]
    plate = fakes.write_plate(tmp_path / "plate.zarr", ["B/03", "C/11"], pixels)
    with pytest.raises(DataError, match="no image has usable labels") as error:
        run(plate, tmp_path / "emb")
    assert "has no label image" in str(error.value)
    segment(plate, None)
    run(plate, tmp_path / "emb")
    assert rows(tmp_path / "emb")[0]["well"] == "B/03"
    segment(plate, None, label_name="nuclei")
    with pytest.raises(DataError) as several:
        run(plate, tmp_path / "again")
    assert several.value.hint == "Choose one: --label cells"
    assert not (tmp_path / "again").exists()
    run(plate, tmp_path / "again", reading={"label": "nuclei"})
    assert rows(tmp_path / "again") == rows(tmp_path / "emb")
    one = plate / "C" / "11" / "1"
    run(one, tmp_path / "one", reading={"label": "nuclei"})
    np.testing.assert_array_equal(
        vectors(tmp_path / "one"), vectors(tmp_path / "emb")[-len(rows(tmp_path / "one")) :]
    )


def test_fields_of_a_broken_plate_that_are_left_out_do_not_matter(tmp_path: Path) -> None:
    pixels = engine_fakes.discs((90, 140))[0, 0]
    plate = fakes.write_plate(tmp_path / "p.zarr", ["B/03", "B/04"], pixels)
    segment(plate, None)
    shutil.rmtree(plate / "B" / "04" / "1" / "labels")
    assert run(plate, tmp_path / "emb", exclude=("B/04/1",)).images == 3


def test_label_files_without_axes_have_those_of_the_images(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 99, (5, 40, 50)).astype(np.uint8)
    labels = np.zeros((5, 40, 50), np.uint16)
    labels[1:3, 5:9, 7:20] = 4
    for folder, array in (("images", pixels), ("found", labels)):
        (tmp_path / folder).mkdir()
        tifffile.imwrite(
            tmp_path / folder / "v.tif", array, photometric="minisblack", metadata=None
        )
    run(
        tmp_path / "images",
        tmp_path / "emb",
        labels=tmp_path / "found",
        reading={"axes": "ZYX"},
    )
    (row,) = rows(tmp_path / "emb")
    assert (row["id"], row["area"], row["z_min"], row["z_max"]) == (4, 104, 1, 3)


def test_a_label_name_for_label_files_is_refused(images: Path, tmp_path: Path) -> None:
    plate = fakes.write_plate(tmp_path / "p.zarr", ["B/03"], engine_fakes.discs((90, 140))[0, 0])
    segment(plate, tmp_path / "out")
    with pytest.raises(ConfigError, match="--label does nothing"):
        run(plate, tmp_path / "emb", labels=tmp_path / "out", reading={"label": "cells"})
