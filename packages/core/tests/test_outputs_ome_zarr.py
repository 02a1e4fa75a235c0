"""OME-Zarr labels open in ngio, as labels of their image and on their own."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from cellseg.data import Segmentation
from cellseg.engine.plan import Plan
from cellseg.engine.tile import tile_labels
from cellseg.errors import DataError
from cellseg.ome.write import write_into, write_new
from cellseg.outputs.result import Result


def result(labels, movie=False, spacing=(2.0, 0.5, 0.25)):
    objects = []
    for frame in labels:
        plan = Plan(frame.shape, frame.shape, (0, 0, 0))
        objects.append(tile_labels(Segmentation(frame), plan, 0).objects)
    return Result(
        name="img",
        frames=list(labels),
        objects=objects,
        movie=movie,
        spacing=spacing,
        block=(1, 256, 256),
    )


def squares(shape):
    labels = np.zeros(shape, np.uint32)
    for number, x in enumerate(range(0, shape[-1] - 20, 40)):
        labels[..., 10:30, x : x + 20] = number + 1
    return labels


def container(path, shape, axes, version):
    import ngio

    return ngio.create_ome_zarr_from_array(
        store=str(path),
        array=np.ones(shape, np.uint16),
        pixelsize=0.5,
        axes_names=list(axes),
        levels=3,
        ngff_version=version,
    )


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(
    ("axes", "shape", "frames"),
    [
        ("yx", (601, 700), (1, 1, 601, 700)),
        ("cyx", (2, 600, 700), (1, 1, 600, 700)),
        ("czyx", (2, 5, 300, 333), (1, 5, 300, 333)),
        ("tczyx", (3, 2, 4, 100, 120), (3, 4, 100, 120)),
    ],
)
def test_into_the_image(tmp_path, version, axes, shape, frames):
    import ngio

    path = tmp_path / "img.zarr"
    container(path, shape, axes, version)
    labels = squares(frames)
    write_into(result(labels, movie="t" in axes), path, "cells")
    opened = ngio.open_ome_zarr_container(str(path))
    assert opened.list_labels() == ["cells"]
    label = opened.get_label("cells")
    assert label.axes == tuple(axes.replace("c", ""))
    wanted = labels.reshape(label.shape)
    assert (label.get_as_numpy() == wanted).all()
    assert label.dtype == "uint32"
    image = opened.get_image()
    assert label.pixel_size.x == image.pixel_size.x
    assert label.meta.version == version
    paths = opened.levels_paths if hasattr(opened, "levels_paths") else ["0", "1", "2"]
    for level in paths:
        low, seen = opened.get_label("cells", path=level), opened.get_image(path=level)
        assert low.shape[-2:] == seen.shape[-2:]
        assert set(np.unique(low.get_as_numpy())) == set(np.unique(labels))
        assert low.pixel_size.x == seen.pixel_size.x
    half = opened.get_label("cells", path="1").get_as_numpy()
    if shape[-1] % 2 == 0 and shape[-2] % 2 == 0:
        assert (half == wanted[..., ::2, ::2]).all()
    write_into(result(labels * 2, movie="t" in axes), path, "cells")
    write_into(result(labels, movie="t" in axes), path, "more")
    assert sorted(ngio.open_ome_zarr_container(str(path)).list_labels()) == ["cells", "more"]
    assert opened.get_label("cells").get_as_numpy().max() == 2 * labels.max()
    assert sorted(p.name for p in (path / "labels").iterdir() if "part" in p.name) == []


def test_labels_of_another_shape_are_refused(tmp_path):
    path = tmp_path / "img.zarr"
    container(path, (60, 70), "yx", "0.4")
    with pytest.raises(DataError, match="do not fit"):
        write_into(result(squares((1, 1, 60, 71))), path, "cells")
    assert not (path / "labels").exists() or not (path / "labels" / "cells").exists()


def test_real_plate_and_labels_that_are_there(tmp_path, real_data):
    import ngio

    source = real_data / "ome_zarr"
    shutil.copytree(source / "dsb2018_plate.zarr", tmp_path / "plate.zarr")
    field = tmp_path / "plate.zarr" / "B" / "03" / "0"
    shape = ngio.open_ome_zarr_container(str(field)).get_image().shape
    write_into(result(squares((1, 1, *shape[-2:]))), field, "cells")
    opened = ngio.open_ome_zarr_container(str(field))
    assert sorted(opened.list_labels()) == ["cells", "nuclei_gt"]
    assert opened.get_label("nuclei_gt").get_as_numpy().max() > 0
    assert opened.get_label("cells").get_as_numpy().max() > 1


@pytest.mark.parametrize("shape", [(1, 1, 90, 100), (1, 6, 90, 100), (3, 1, 700, 1300)])
def test_on_their_own(tmp_path, shape):
    import ngio

    labels = squares(shape)
    given = result(labels, movie=shape[0] > 1)
    write_new(given, tmp_path / "a.ome.zarr", "cells")
    opened = ngio.open_ome_zarr_container(str(tmp_path / "a.ome.zarr"))
    assert opened.list_labels() == ["cells"]
    label = opened.get_label("cells")
    assert (label.get_as_numpy() == labels.reshape(label.shape)).all()
    assert (opened.get_image().get_as_numpy() == labels.reshape(label.shape)).all()
    assert (label.pixel_size.y, label.pixel_size.x) == (0.5, 0.25)
    attributes = json.loads((tmp_path / "a.ome.zarr" / "labels" / "cells" / ".zattrs").read_text())
    assert attributes["image-label"]["version"] == "0.4"
    assert len(attributes["multiscales"][0]["datasets"]) == (3 if shape[-1] > 1024 else 1)


def test_consolidated_metadata_is_renewed(tmp_path):
    import zarr

    path = tmp_path / "img.zarr"
    container(path, (60, 70), "yx", "0.5")
    zarr.consolidate_metadata(str(path))
    write_into(result(squares((1, 1, 60, 70))), path, "cells")
    group = zarr.open_group(str(path), mode="r", use_consolidated=True)
    assert group["labels/cells/0"].shape == (60, 70)
