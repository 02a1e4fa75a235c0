"""OME-Zarr at addresses: what is read is what a local copy holds, and few requests are made."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import remote_sites
import zarr
from remote_sites import Site, counted, upload, web_site
from test_readers_ome_zarr import add_label, multiscales, write

from cellseg.errors import DataError, UsageError
from cellseg.locations import location
from cellseg.plugins import Plugins
from cellseg.readers import open_dataset, reader_for

PIXELS = np.random.default_rng(0).integers(1, 255, (2, 3, 20, 24), dtype=np.uint8)
LABELS = (PIXELS[0] > 100).astype(np.uint32)
plugins = Plugins()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one image of format 0.4, one of 0.5, one in shards, a container of two series,
    and a plate of six fields."""
    root = tmp_path_factory.mktemp("images")
    for name, zarr_format in (("old.zarr", 2), ("new.ome.zarr", 3)):
        write(root / "folder" / name, PIXELS, "czyx", zarr_format)
        add_label(root / "folder" / name, "cells", LABELS, "zyx", zarr_format)
    group = zarr.open_group(root / "sharded.zarr", mode="w", zarr_format=3)
    group.create_array("s", data=PIXELS, chunks=(1, 1, 8, 8), shards=(1, 3, 16, 16))
    group.attrs["ome"] = multiscales("czyx", [1] * 4, ["s"])
    series = zarr.open_group(root / "series.zarr", mode="w", zarr_format=2)
    series.attrs["bioformats2raw.layout"] = 3
    for number in range(2):
        write(root / "series.zarr" / str(number), PIXELS + number, "czyx")
    plate = zarr.open_group(root / "plate.zarr", mode="w", zarr_format=2)
    wells = ["A/1", "B/2", "B/3"]
    plate.attrs["plate"] = {"wells": [{"path": well} for well in wells]}
    for well in wells:
        for field in range(2):
            image = root / "plate.zarr" / well / str(field)
            write(image, PIXELS[:, 0] + field, "cyx")
            add_label(image, "cells", LABELS[0], "yx")
        about = {"images": [{"path": "0"}, {"path": "1"}]}
        zarr.open_group(root / "plate.zarr" / well, mode="a", zarr_format=2).attrs["well"] = about
    return root


@pytest.fixture(scope="module")
def bucket(images: Path) -> Iterator[str]:
    with remote_sites.s3_server():
        yield upload(images, "images")


@pytest.fixture(scope="module")
def site(images: Path) -> Iterator[Site]:
    with web_site(images) as site:
        yield site


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cellseg.remote.PAUSE", 0.0)


NAMES = (
    "folder/old.zarr", "folder/new.ome.zarr", "sharded.zarr", "series.zarr", "plate.zarr",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("store", ["s3", "http"])
def test_images_are_those_of_a_local_copy(
    store: str, name: str, images: Path, bucket: str, site: Site
) -> None:
    where = location(f"{bucket if store == 's3' else site.address}/{name}")
    labelled = name not in ("sharded.zarr", "series.zarr")
    ours = open_dataset(plugins, where, "auto", {}, labelled)
    theirs = open_dataset(plugins, images / name, "auto", {}, labelled)
    assert [one.name for one in ours] == [one.name for one in theirs]
    for far, near in zip(ours, theirs, strict=True):
        assert str(far.path) == f"{where}{str(near.path).removeprefix(str(images / name))}"
        assert (far.spacing, far.source, far.channels) == (near.spacing, near.source, near.channels)
        far = pickle.loads(pickle.dumps(far))
        assert np.array_equal(far.image[:], near.image[:])
        depth = slice(0, 1)
        part = (slice(1, 2), depth, slice(5, 20), slice(7, 20))
        assert np.array_equal(far.image[part], near.image[part])
        if labelled:
            assert far.labels is not None and near.labels is not None
            assert np.array_equal(far.labels[:], near.labels[:])


def test_a_folder_of_images(bucket: str, site: Site) -> None:
    names = [one.name for one in open_dataset(plugins, location(f"{bucket}/folder"), "auto", {}, 0)]
    assert names == ["new", "old"]
    with pytest.raises(DataError, match="no such file") as caught:  # nothing is listed by http
        open_dataset(plugins, location(f"{site.address}/folder"), "auto", {}, False)
    assert "up to .zarr" in str(caught.value.hint)


def test_a_collection_of_data_sets(images: Path, site: Site, tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(
        "classes: [background, cell]\n"
        "datasets:\n"
        f"  - {{path: {site.address}/folder/old.zarr, name: far, class_name: cell}}\n"
        f"  - {{path: {images}/folder/new.ome.zarr, name: near, class_name: cell}}\n"
    )
    far, near = open_dataset(plugins, tmp_path / "all.yaml", "auto", {}, True)
    assert far.labels is not None and near.labels is not None
    assert np.array_equal(far.labels[:], near.labels[:])
    assert str(far.path) == f"{site.address}/folder/old.zarr"


def test_a_plate_needs_few_requests(bucket: str) -> None:
    with counted() as requests:
        samples = open_dataset(plugins, location(f"{bucket}/plate.zarr"), "auto", {}, False)
    assert len(samples) == 6
    # The plate twice (what is it? open it), 3 wells, 6 images and the array in each.
    assert len(requests.made) == len(requests.of("GET")) <= 2 * 2 + 3 + 6 + 6
    with counted() as requests:
        _ = [sample.image[:] for sample in samples]
    chunks = 6 * 2 * 2 * 2
    assert len(requests.made) == len(requests.of("GET")) == chunks
    with counted() as requests:
        _ = samples[0].image[:1, :, :16, :16]
    assert requests.of("GET", "/A/1/0/0/0.0.0") and len(requests.made) == 1


def test_metadata_that_changed_is_seen(bucket: str, images: Path, tmp_path: Path) -> None:
    write(tmp_path / "first.zarr", PIXELS, "czyx")
    write(tmp_path / "second.zarr", PIXELS[:, :, :10], "czyx")
    for name, height in (("first", 20), ("second", 10)):
        where = upload(tmp_path / f"{name}.zarr", "changing.zarr")
        (sample,) = open_dataset(plugins, location(where), "auto", {}, False)
        assert np.array_equal(sample.image[:], PIXELS[:, :, :height])


def test_what_is_not_there(bucket: str, site: Site) -> None:
    def problem(address: str) -> DataError:
        with pytest.raises(DataError) as caught:
            open_dataset(plugins, location(address), "auto", {}, False)
        return caught.value

    assert "s3://no-such/a.zarr" in str(problem("s3://no-such/a.zarr"))
    assert "no such bucket" in str(problem("s3://no-such/a.zarr"))
    assert f"{bucket}/no.zarr: there is no such" in str(problem(f"{bucket}/no.zarr"))
    assert f"{site.address}/no.zarr: there is no" in str(problem(f"{site.address}/no.zarr"))
    refused = problem("http://127.0.0.1:9/a.zarr")
    assert "http://127.0.0.1:9/a.zarr" in str(refused) and "no connection" in str(refused)
    with pytest.raises(UsageError, match="'tiff' reads must be on this computer"):
        reader_for(plugins, location(f"{bucket}/folder/old.zarr"), "tiff")


def test_missing_and_damaged_chunks(bucket: str, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images / "folder/old.zarr", tmp_path / "bad.zarr")
    (tmp_path / "bad.zarr/0/0.0.1.1").unlink()
    chunk = tmp_path / "bad.zarr/0/1.0.1.1"
    chunk.write_bytes(chunk.read_bytes()[:30])
    where = upload(tmp_path / "bad.zarr")
    (sample,) = open_dataset(plugins, location(where), "auto", {}, False)
    assert np.array_equal(sample.image[:, :, :16], PIXELS[:, :, :16])
    with pytest.raises(DataError, match=r"bad.zarr/0: the chunk 0\.0\.1\.1 is missing") as caught:
        sample.image[:1]
    assert "--allow-missing-chunks" in str(caught.value.hint)
    with pytest.raises(DataError, match=r"s3://bucket/bad.zarr/0/1\.0\.1\.1: is cut short"):
        sample.image[1:]
    lenient = {"allow_missing_chunks": True}
    (sample,) = open_dataset(plugins, location(where), "auto", lenient, False)
    assert not sample.image[:1, 1:2, 16:, 16:].any()


def test_a_chunk_that_unpacks_to_too_much(bucket: str, tmp_path: Path) -> None:
    group = write(tmp_path / "bomb.zarr", PIXELS, "czyx")
    large = zarr.open_group(tmp_path / "large.zarr", mode="w", zarr_format=2)
    large.create_array("0", data=np.ones((1, 3, 1600, 1600), np.uint8), chunks=(1, 3, 1600, 1600))
    shutil.copy(tmp_path / "large.zarr/0/0.0.0.0", tmp_path / "bomb.zarr/0/0.0.0.0")
    assert group["0"].chunks == (1, 3, 16, 16)
    (sample,) = open_dataset(plugins, location(upload(tmp_path / "bomb.zarr")), "auto", {}, False)
    with pytest.raises(DataError, match=r"s3://bucket/bomb\.zarr/0/0\.0\.0\.0: .*unpacks to 7"):
        sample.image[:]


def test_the_labels_of_others_may_lack_chunks(bucket: str, tmp_path: Path) -> None:
    write(tmp_path / "few.zarr", PIXELS, "czyx", 3)
    labels = np.zeros_like(LABELS)
    labels[0, :3, :3] = 7
    add_label(tmp_path / "few.zarr", "cells", labels, "zyx", 3)
    where = upload(tmp_path / "few.zarr")
    (sample,) = open_dataset(plugins, location(where), "auto", {}, True)
    assert sample.labels is not None and np.array_equal(sample.labels[:], labels)


def test_errors_that_pass_are_waited_out(site: Site) -> None:
    where = location(f"{site.address}/folder/old.zarr")
    site.broken = 2
    (sample,) = open_dataset(plugins, where, "auto", {}, False)
    site.broken = 3
    assert np.array_equal(sample.image[:1], PIXELS[:1])
    assert not site.broken
    site.broken = 1000
    with pytest.raises(DataError, match=r"old\.zarr/0: .*503"):
        sample.image[:]
    site.broken = 0


def test_a_connection_that_breaks_off(site: Site) -> None:
    (sample,) = open_dataset(plugins, location(f"{site.address}/series.zarr"), "auto", {}, False)[
        :1
    ]
    site.cut = "series.zarr/0/0/0"
    try:
        with pytest.raises(DataError, match=rf"{site.address}/series.zarr/0/0: cannot be read"):
            sample.image[:]
    finally:
        site.cut = ""


def test_access_that_is_denied(site: Site) -> None:
    (sample,) = open_dataset(plugins, location(f"{site.address}/folder/old.zarr"), "auto", {}, 0)
    site.forbidden = "old.zarr/0/"
    try:
        with pytest.raises(DataError, match=r"old\.zarr/0: .*access is denied") as caught:
            sample.image[:]
        assert "AWS_PROFILE" in str(caught.value.hint)
        site.forbidden = "/new"
        with pytest.raises(DataError, match="access is denied"):
            open_dataset(plugins, location(f"{site.address}/folder/new.ome.zarr"), "auto", {}, 0)
        # Public buckets that nobody may list forbid what is not there.
        site.forbidden = "nothing of this name"
        (again,) = open_dataset(plugins, location(f"{site.address}/folder/old.zarr"), "auto", {}, 0)
        assert np.array_equal(again.image[:], PIXELS)
    finally:
        site.forbidden = ""
