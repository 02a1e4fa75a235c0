"""HDF5 and Zarr from strangers: codecs that run code, bombs, and paths that lead elsewhere."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_files import PIXELS, Creates, deflated, opened, refused, taken

from cellseg.errors import DataError

# HDF5

h5py = pytest.importorskip("h5py")


def test_a_large_volume_that_is_mostly_empty_is_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "sparse.h5", "w") as file:
        raw = file.create_dataset("raw", shape=(2**18,) * 3, dtype="u2", chunks=(32, 32, 32))
        raw[:8, :8, :8] = 7
    block = taken(tmp_path / "sparse.h5", axes="ZYX")
    assert block[0, :8, :8, :8].min() == 7 and block.sum() == 7 * 8**3


def test_an_hdf5_chunk_that_is_huge(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "chunk.h5", "w") as file:
        file.create_dataset("raw", shape=(2**20,) * 2, dtype="u1", chunks=(2**15, 2**16 + 1))
    refused(tmp_path / "chunk.h5", "a chunk has 32768 x 65537 pixels")


def test_an_hdf5_chunk_that_inflates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cellseg.readers.hdf5_links as module

    monkeypatch.setattr(module, "MOST_DECODED", 16 << 20)
    path = tmp_path / "bomb.h5"
    with h5py.File(path, "w") as file:
        made = file.create_dataset(
            "raw", shape=(128, 64), dtype="u2", chunks=(64, 64), compression="gzip"
        )
        made[:64] = PIXELS
        made.id.write_direct_chunk((64, 0), deflated(64))
    refused_at = opened(path).image
    np.testing.assert_array_equal(refused_at[:, :, :64, :][0, 0], PIXELS)
    with pytest.raises(DataError, match=r"the chunk at \(64, 0\) inflates to"):
        refused_at[:, :, 60:80, :]


def test_hdf5_that_takes_its_numbers_from_another_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(4096))
    (tmp_path / "data").mkdir()
    with h5py.File(tmp_path / "data/stored.h5", "w") as file:
        file.create_dataset("raw", shape=(64, 64), dtype="u1", external=[(str(secret), 0, 4096)])
    refused(tmp_path / "data/stored.h5", "in another file")


def _volume(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        file["raw"] = PIXELS
    return path


@pytest.mark.parametrize("kind", ["link", "virtual"])
def test_hdf5_files_in_another_folder_are_not_followed(tmp_path: Path, kind: str) -> None:
    def leading(path: Path, target: str) -> Path:
        path.parent.mkdir(exist_ok=True)
        with h5py.File(path, "w") as file:
            if kind == "link":
                file["raw"] = h5py.ExternalLink(target, "raw")
            else:
                layout = h5py.VirtualLayout((64, 64), "u2")
                layout[:] = h5py.VirtualSource(target, "raw", (64, 64))
                file.create_virtual_dataset("raw", layout)
        return path

    other = _volume(tmp_path / "other/x.h5")
    for number, target in enumerate((str(other), "../other/x.h5")):
        refused(leading(tmp_path / f"data/{number}.h5", target), "in another folder")
    _volume(tmp_path / "data/beside.h5")
    block = taken(leading(tmp_path / "data/good.h5", "beside.h5"))
    np.testing.assert_array_equal(block[0, 0], PIXELS)
    (tmp_path / "data/link.h5").symlink_to(other)
    refused(leading(tmp_path / "data/symbolic.h5", "link.h5"), "in another folder")


@pytest.mark.parametrize("first", ["external", "soft"])
def test_hdf5_links_to_links_are_not_followed_either(tmp_path: Path, first: str) -> None:
    other = _volume(tmp_path / "other/x.h5")
    (tmp_path / "data").mkdir()
    with h5py.File(tmp_path / "data/second.h5", "w") as file:
        file["raw"] = h5py.ExternalLink(str(other), "raw")
    path = tmp_path / "data/first.h5"
    with h5py.File(path, "w") as file:
        if first == "external":
            file["raw"] = h5py.ExternalLink("second.h5", "raw")
        else:
            layout = h5py.VirtualLayout((64, 64), "u2")
            layout[:] = h5py.VirtualSource("third.h5", "soft", (64, 64))
            file.create_virtual_dataset("raw", layout)
    with h5py.File(tmp_path / "data/third.h5", "w") as file:
        file["soft"] = h5py.SoftLink("/far")
        file["far"] = h5py.ExternalLink(str(other), "raw")
    refused(path, "in another folder")


def test_hdf5_groups_in_a_circle_and_in_each_other(tmp_path: Path) -> None:
    with h5py.File(_volume(tmp_path / "circle.h5"), "a") as file:
        file["a/b"] = file["/"]
        file["soft"] = h5py.SoftLink("/nothing")
        file["type"] = np.dtype("u2")
    np.testing.assert_array_equal(taken(tmp_path / "circle.h5")[0, 0], PIXELS)
    with h5py.File(_volume(tmp_path / "deep.h5"), "a") as file:
        group = file
        for _ in range(1000):
            group = group.create_group("g")
    refused(tmp_path / "deep.h5", "too many groups")


# Zarr

zarr = pytest.importorskip("zarr")
Edit = Callable[[dict[str, Any]], object]


def array(path: Path, **changes: Any) -> Path:
    """A Zarr array of format 2 of one chunk, whose metadata say something else."""
    made = zarr.open_array(
        path, mode="w", shape=(64, 64), chunks=(64, 64), dtype="u2", zarr_format=2, compressor=None
    )
    made[:] = PIXELS
    node = json.loads((path / ".zarray").read_text())
    (path / ".zarray").write_text(json.dumps({**node, "dimension_separator": ".", **changes}))
    return path


@pytest.mark.parametrize(
    "changes",
    [{"compressor": {"id": "pickle"}}, {"filters": [{"id": "pickle"}]}],
    ids=["compressor", "filter"],
)
def test_a_codec_that_runs_code(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = array(tmp_path / "a.zarr", **changes)
    (path / "0.0").write_bytes(pickle.dumps(Creates(tmp_path / "canary")))
    refused(path, "packed with the codec 'pickle'")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"compressor": {"id": "os.system"}}, "codec 'os.system'"),
        ({"compressor": "os"}, "codec 'os'"),
        ({"compressor": {"id": "gzip"}, "filters": [{"id": "zlib"}]}, "compressed several times"),
        ({"dtype": "|O", "filters": [{"id": "pickle"}]}, "type object"),
        ({"shape": [10**7] * 2, "chunks": [10**6] * 2}, "a chunk has 1000000 x 1000000 pixels"),
        ({"shape": [10**18] * 2}, "none of an image"),
        ({"shape": [-4, 4]}, "none of an image"),
        ({"shape": [4.5, 4]}, "metadata are damaged"),
        ({"chunks": [0, 4]}, "metadata are damaged"),
        ({"chunks": [4]}, "metadata are damaged"),
        ({"shape": "xx"}, "cannot be read"),
        ({"dtype": "os"}, "cannot be read"),
        ({"dimension_separator": 1.5}, "dimension separator"),
        ({"dimension_separator": "/../../"}, "dimension separator"),
        ({"dtype": {"a": 1}}, "cannot"),
        ({"shape": None}, "cannot be read"),
    ],
)
def test_zarr_metadata_that_lie(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    refused(array(tmp_path / "a.zarr", **changes), match)


def _compressed(codec: str) -> bytes:
    import bz2
    import lzma

    import numcodecs

    zeros = bytes(64 * 2**20)
    return {
        "gzip": lambda: gzip.compress(bytes(2**20)) * 64,
        "zlib": lambda: deflated(64),
        "bz2": lambda: bz2.compress(zeros),
        "lzma": lambda: lzma.compress(zeros, preset=0),
        "zstd": lambda: numcodecs.Zstd().encode(zeros),
        "blosc": lambda: numcodecs.Blosc().encode(zeros),
        "lz4": lambda: struct.pack("<I", 2**31 - 1) + bytes(64),
    }[codec]()


@pytest.mark.parametrize("codec", ["gzip", "zlib", "bz2", "lzma", "zstd", "blosc", "lz4"])
def test_a_chunk_that_unpacks_to_more_than_a_chunk(
    tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cellseg.readers.zarr_limits.MOST_DECODED", 16 << 20)
    path = array(tmp_path / "bomb.zarr", compressor={"id": codec})
    (path / "0.0").write_bytes(_compressed(codec))
    refused(path, "this chunk unpacks to")


@pytest.mark.parametrize("codec", ["gzip", "zlib", "bz2", "zstd", "blosc", "lz4"])
def test_honest_chunks_are_read(tmp_path: Path, codec: str) -> None:
    import numcodecs

    made = numcodecs.get_codec({"id": codec})
    stored = zarr.open_array(
        tmp_path / "a.zarr",
        mode="w",
        shape=(64, 64),
        chunks=(48, 48),
        dtype="u2",
        zarr_format=2,
        compressor=made,
        filters=[numcodecs.Delta("u2")],
    )
    stored[:] = PIXELS
    np.testing.assert_array_equal(taken(tmp_path / "a.zarr")[0, 0], PIXELS)


def sharded(path: Path, edit: Edit = lambda node: None) -> Path:
    made = zarr.create_array(path, shape=(64, 64), chunks=(16, 16), shards=(64, 64), dtype="u2")
    made[:] = PIXELS
    node = json.loads((path / "zarr.json").read_text())
    edit(node)
    (path / "zarr.json").write_text(json.dumps(node))
    return path


def _inner(node: dict[str, Any]) -> dict[str, Any]:
    return dict.__getitem__(node["codecs"][0], "configuration")


def _nest(node: dict[str, Any], times: int) -> None:
    for _ in range(times):
        node["codecs"] = [
            {
                "name": "sharding_indexed",
                "configuration": {"chunk_shape": [16, 16], "codecs": node["codecs"]},
            }
        ]


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda n: n.update(codecs=[{"name": "numcodecs.pickle"}]), "codec 'pickle'"),
        (lambda n: n.update(codecs="os"), "codec 'o'"),
        (lambda n: n.update(codecs=5), "cannot be read"),
        (lambda n: _inner(n).update(codecs=[{"name": "pickle"}]), "codec 'pickle'"),
        (lambda n: _inner(n).update(index_codecs=[{"name": "pickle"}]), "codec 'pickle'"),
        (lambda n: _inner(n).update(chunk_shape=[0, 1]), "metadata are damaged"),
        (lambda n: _inner(n).update(chunk_shape=[2**20] * 2), "a chunk has 1048576"),
        (lambda n: _nest(n, 4), "shards in shards"),
        (lambda n: n.update(dimension_names=5), "cannot be read"),
        (lambda n: n.update(attributes={"axes": 7}), "cannot be read"),
        (lambda n: n.update(attributes=7), "attributes are damaged"),
        (lambda n: n.update(data_type="os"), "cannot be read"),
    ],
)
def test_format_3_metadata_that_lie(tmp_path: Path, edit: Edit, match: str) -> None:
    refused(sharded(tmp_path / "a.zarr", edit), match)


def test_sharded_arrays_are_read(tmp_path: Path) -> None:
    np.testing.assert_array_equal(taken(sharded(tmp_path / "a.zarr"))[0, 0], PIXELS)


# OME-Zarr


def image(path: Path, level: object = "0", scale: Any = (1, 1)) -> Path:
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("0", shape=(64, 64), chunks=(32, 32), dtype="u2")[:] = PIXELS
    axes = [{"name": name, "type": "space"} for name in "yx"]
    transform = [{"type": "scale", "scale": scale}]
    dataset = {"path": level, "coordinateTransformations": transform}
    metadata = {"multiscales": [{"version": "0.4", "axes": axes, "datasets": [dataset]}]}
    (path / ".zattrs").write_text(json.dumps(metadata))
    return path


def test_levels_elsewhere(tmp_path: Path) -> None:
    good = image(tmp_path / "good.zarr")
    np.testing.assert_array_equal(taken(good)[0, 0], PIXELS)
    for level in ("../good.zarr/0", str(good / "0"), "..\\good.zarr", "C:/x", "0\0"):
        refused(image(tmp_path / "bad.zarr", level), "name a place that is not in it")
    linked = image(tmp_path / "linked.zarr")
    shutil.rmtree(linked / "0")
    (linked / "0").symlink_to(good / "0")
    refused(linked, "name a place that is not in it")


def test_chunks_elsewhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    path = image(tmp_path / "a.zarr")
    chunk = next(file for file in sorted((path / "0").rglob("*")) if file.name[0].isdigit())
    chunk.rename(secret)
    chunk.symlink_to(secret)
    refused(path, "a link to a place that is not in it")
    chunk.unlink()
    secret.rename(chunk.with_name("here"))
    chunk.symlink_to("here")
    np.testing.assert_array_equal(taken(path)[0, 0], PIXELS)


@pytest.mark.parametrize(
    "scale", [[-1, 1], [float("nan"), 1], [1e400, 1], ["x", 1], [1], None, {"a": 1}]
)
def test_scales_that_are_none(tmp_path: Path, scale: object) -> None:
    refused(image(tmp_path / "a.zarr", scale=scale), "cannot be read")


def _group(path: Path, attributes: object) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    (path / ".zattrs").write_text(json.dumps(attributes))
    return path


def test_wells_and_fields_elsewhere(tmp_path: Path) -> None:
    image(tmp_path / "good.zarr")
    plate = _group(tmp_path / "a.zarr", {"plate": {"wells": [{"path": "../good.zarr"}]}})
    refused(plate, "name a place that is not in it")
    _group(plate, {"plate": {"wells": [{"path": "A/1"}]}})
    _group(plate / "A/1", {"well": {"images": [{"path": "../../../good.zarr"}]}})
    refused(plate, "name a place that is not in it")
    series = _group(tmp_path / "series.zarr", {"bioformats2raw.layout": 3})
    _group(series / "OME", {"series": ["../good.zarr"]})
    refused(series, "name a place that is not in it")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"multiscales": ' * 50_000, "\x00", "7"])
def test_metadata_that_are_no_json(tmp_path: Path, text: str) -> None:
    path = image(tmp_path / "a.zarr")
    (path / ".zattrs").write_text(text)
    refused(path, "cannot be read|is damaged")


def test_metadata_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cellseg.readers.recognise as module

    monkeypatch.setattr(module, "MOST_JSON", 1000)
    path = image(tmp_path / "a.zarr")
    (path / ".zattrs").write_text((path / ".zattrs").read_text() + " " * 1000)
    refused(path, "has more than")
