"""What is fuzzed: small valid files of every kind that cellseg reads, how they are damaged, and how
they are read. Used by the tests (hypothesis) and by ``benchmarks/fuzz.py`` (atheris).

Whatever the damage, reading ends in an error of cellseg, or gives what the headers promise.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from fuzz_images import (
    make_collection,
    make_cremi,
    make_ctc,
    make_folder,
    make_hdf5,
    make_jpeg_tiff,
    make_nifti,
    make_nnunet,
    make_ome_zarr,
    make_plate,
    make_raster,
    make_snemi3d,
    make_tiff,
    make_zarr,
)

from cellseg import limits
from cellseg.bundle import FILE, Bundle
from cellseg.errors import CellsegError
from cellseg.example_shapes import read_shapes
from cellseg.options import parse, read_config
from cellseg.plugins import Plugins
from cellseg.prompt_files import read_marks
from cellseg.readers import open_dataset
from cellseg.track_files import read_ctc_table, read_tracks_csv
from cellseg.workflows.train_settings import TrainSettings

Edit = tuple[int, int, int]
"""What to do, where (of 65536 parts of the file), and a number."""
_PLUGINS = Plugins()
_WORDS = (
    b"NaN", b"-1", b"1e400", b"null", b"[]", b"{}", b'""', b"0", b"true", b"1" * 400, b'"../x"',
    b"18446744073709551616", b'"os"', b"[" * 2000, b"&a", b"*a", b"!!python/object:os.system ",
    b"\xff", b"\x00", b"\n", b",", b'"', b"9999999999", b"0.5", b"pickle",
)  # fmt: skip
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 62, (1 << 64) - 1)


@dataclass(frozen=True)
class Target:
    """One kind of file."""

    name: str
    make: Callable[[Path], Path]
    """Writes valid data into a folder; gives what is opened."""
    read: Callable[[Path], object]
    files: Sequence[str] = field(default=("*",))
    """Patterns of what is damaged."""


def damaged(content: bytes, edits: Sequence[Edit]) -> bytes:
    """A file after some edits: bits, bytes, numbers, words, cuts and repetitions."""
    made = bytearray(content)
    for what, where, number in edits:
        at = where * len(made) >> 16
        kind = what % 9
        if kind == 0 and made:
            made[at] ^= 1 << number % 8
        elif kind == 1 and made:
            made[at] = number & 0xFF
        elif kind == 2:
            del made[at:]
        elif kind == 3:
            del made[at : at + 1 + number % 64]
        elif kind == 4:
            made[at:at] = made[at : at + 1 + number % 256]
        elif kind == 5:
            made[at:at] = _WORDS[number % len(_WORDS)]
        elif kind in (6, 7):
            value = _NUMBERS[number % len(_NUMBERS)]
            size, order = (2, 4, 8)[number // 16 % 3], "<" if kind == 6 else ">"
            code = {2: "H", 4: "I", 8: "Q"}[size]
            made[at : at + size] = struct.pack(order + code, value & ((1 << 8 * size) - 1))
        else:
            _replace_word(made, at, _WORDS[number % len(_WORDS)])
    return bytes(made[: 4 * len(content) + 4096])


def _replace_word(made: bytearray, at: int, word: bytes) -> None:
    """Put a word in the place of the value after the next colon or comma."""
    starts = [found for mark in b":," if (found := made.find(mark, at)) >= 0]
    if not starts:
        return
    start = min(starts) + 1
    ends = [found for mark in b",}]\n" if (found := made.find(mark, start)) >= 0]
    made[start : min(ends, default=start)] = word


class Bench:
    """Valid data of one kind in a folder, ready to be damaged again and again."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target = target
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.path = target.make(folder)
        found = {p for pattern in target.files for p in folder.rglob(pattern) if p.is_file()}
        self.files = sorted(found)
        assert self.files, f"{target.name} has nothing to damage"
        with small_blocks():
            target.read(self.path)

    def try_(self, which: int, edits: Sequence[Edit]) -> bool:
        """Damage one file and read; whether it could be read.

        Raises:
            Exception: whatever is no error of cellseg.
        """
        file = self.files[which % len(self.files)]
        original = file.read_bytes()
        _write(file, damaged(original, edits))
        try:
            with small_blocks():
                self.target.read(self.path)
            return True
        except CellsegError as error:
            text = str(error)
            assert text.strip() and len(text) < 5000, "an error that nobody can read"
            return False
        finally:
            _write(file, original)


@contextmanager
def small_blocks() -> Iterator[None]:
    """Less memory than users have is enough for what is decoded at once."""
    before = limits.MOST_DECODED
    limits.MOST_DECODED = 64 << 20
    try:
        yield
    finally:
        limits.MOST_DECODED = before


def _write(file: Path, content: bytes) -> None:
    """A new file each time, as caches know files by their numbers."""
    temporary = file.with_name(f"{file.name}.new")
    temporary.write_bytes(content)
    os.replace(temporary, file)


# Images


def samples(reader: str, labelled: bool = False, **options: object) -> Callable[[Path], object]:
    """Open with a reader, and read a corner and the far end of the first images."""

    def read(path: Path) -> None:
        for sample in islice(open_dataset(_PLUGINS, path, reader, options, labelled), 2):
            arrays = [sample.image, *([sample.labels] if sample.labels is not None else [])]
            for array in arrays:
                for key in (
                    tuple(slice(0, min(n, 24)) for n in array.shape),
                    tuple(slice(max(0, n - 8), n) for n in array.shape),
                ):
                    block = array[key]
                    wanted = tuple(part.stop - part.start for part in key)
                    assert isinstance(block, np.ndarray) and block.shape == wanted
                    assert block.dtype == array.dtype
            assert all(0 < size < float("inf") for size in sample.spacing)

    return read


# What goes with images


def _text(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder / name

    return make


def _roi(folder: Path) -> Path:
    from roifile import ImagejRoi, roiwrite

    one = ImagejRoi.frompoints([[2, 3], [20, 4], [10, 30]])
    one.name = "cell-1"
    roiwrite(folder / "rois.zip", [one, one], mode="w")
    return folder / "rois.zip"


_FEATURES = json.dumps(
    {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [[[1, 1], [9, 1], [9, 9], [1, 1]]],
                    "plane": {"z": 1, "t": 2},
                },
                "properties": {"classification": {"name": "cell"}, "object": 3},
            },
            {"type": "Feature", "geometry": {"type": "Point", "coordinates": [3, 4.5]}},
        ],
    }
)
_POINTS = "image,frame,object,label,y,x,y0,x0,y1,x1\na,0,1,1,3,4,1,1,9,9\nb,1,2,0,5.5,6,,,,\n"
_NAPARI = "index,shape-type,vertex-index,axis-0,axis-1\n" + "".join(
    f"0,polygon,{n},{y},{x}\n" for n, (y, x) in enumerate([(1, 1), (9, 1), (5, 9)])
)
_TRACKS = "id,begin,end,parent\n1,0,3,0\n2,4,5,1\n"
_CONFIG = "epochs: 3\nval_fraction: 0.25\nseed: 7\nnormalise: percentile\npolarity: as-is\n"


def _config(path: Path) -> None:
    values = read_config(path)
    known = {k: v for k, v in values.items() if k in TrainSettings.model_fields}
    parse(TrainSettings, known, str(path))


def _bundle(folder: Path) -> Path:
    weights = folder / "model/threshold.json"
    weights.parent.mkdir()
    weights.write_text("0.5\n")
    sums = {weights.name: hashlib.sha256(weights.read_bytes()).hexdigest()}
    made = Bundle(backend="otsu", classes=("background", "cell"), weights=sums, trained_on=("a",))
    made.save(weights.parent)
    return weights.parent


def _find_bundle(path: Path) -> None:
    directory, bundle = Bundle.find(path)
    assert directory == path and bundle.channels >= 1 and min(bundle.spacing) > 0


def _weights(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import torch

        from cellseg.torch.weights import save_tensors

        tensors = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(2)}
        if name.endswith("safetensors"):
            save_tensors(tensors, folder / name)
        else:
            torch.save({"state_dict": tensors, "epoch": 3}, folder / name)
        return folder / name

    return make


def _read_weights(path: Path) -> None:
    from cellseg.torch.reading import read_file

    read_file(path)


TARGETS = {
    target.name: target
    for target in (
        Target("tiff", make_tiff("a.tif"), samples("tiff")),
        Target(
            "tiff-tiles", make_tiff("a.tif", tile=(16, 16), compression="zlib"), samples("tiff")
        ),
        Target("tiff-jpeg", make_jpeg_tiff, samples("tiff")),
        Target("ome-tiff", make_tiff("a.ome.tif", ome=True), samples("tiff")),
        Target("png", make_raster("a.png"), samples("folder")),
        Target("jpeg", make_raster("a.jpg"), samples("folder")),
        Target("folder", make_folder, samples("folder", labelled=True)),
        Target("ome-zarr-0.4", make_ome_zarr(2), samples("ome-zarr", labelled=True)),
        Target("ome-zarr-0.5", make_ome_zarr(3), samples("ome-zarr", labelled=True)),
        Target("plate", make_plate, samples("plate")),
        Target("zarr-2", make_zarr(zarr_format=2), samples("zarr", labelled=True)),
        Target("zarr-3", make_zarr(shards=(48, 48)), samples("zarr", labelled=True)),
        Target("hdf5", make_hdf5("a.h5"), samples("hdf5", labelled=True)),
        Target(
            "hdf5-chunks",
            make_hdf5("a.h5", chunks=(16, 16), compression="gzip"),
            samples("hdf5", labelled=True),
        ),
        Target("cremi", make_cremi, samples("cremi", labelled=True)),
        Target("snemi3d", make_snemi3d, samples("snemi3d", labelled=True)),
        Target("nifti", make_nifti("a.nii"), samples("nifti")),
        Target("nifti-gz", make_nifti("a.nii.gz"), samples("nifti")),
        Target("nnunet", make_nnunet, samples("nifti", labelled=True)),
        Target("ctc", make_ctc, samples("ctc", labelled=True)),
        Target("collection", make_collection, samples("collection", labelled=True), ("*.yaml",)),
        Target("prompts-csv", _text("a.csv", _POINTS), read_marks),
        Target("prompts-geojson", _text("a.geojson", _FEATURES), read_marks),
        Target("examples-geojson", _text("a.geojson", _FEATURES), read_shapes),
        Target("examples-csv", _text("a.csv", _NAPARI), read_shapes),
        Target("rois", _roi, read_shapes),
        Target("tracks-csv", _text("a.csv", _TRACKS), read_tracks_csv),
        Target("tracks-ctc", _text("a.txt", "1 0 3 0\n2 4 5 1\n"), read_ctc_table),
        Target("config", _text("a.yaml", _CONFIG), _config),
        Target("bundle", _bundle, _find_bundle, (FILE,)),
        Target("weights-torch", _weights("a.pth"), _read_weights),
        Target("weights-safetensors", _weights("a.safetensors"), _read_weights),
    )
}  # fmt: skip
"""By name."""
