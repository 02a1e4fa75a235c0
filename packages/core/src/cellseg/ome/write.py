"""Writes label images as OME-Zarr 0.4 and 0.5: into the image they belong to, or on their own.

The metadata is small and fixed, so it is written directly; tests open the results with ngio.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.data import ZYX
from cellseg.engine.plan import Box
from cellseg.errors import DataError
from cellseg.files import write_atomic
from cellseg.locations import is_remote, remembered
from cellseg.outputs.formats import PROBABILITIES
from cellseg.outputs.images import place
from cellseg.outputs.result import Result, boxes, output_file
from cellseg.readers.recognise import read_json
from cellseg.readers.zarr_array import zarr_array

NEW_VERSION = "0.4"
"""Of containers that we create: what most programs open."""
_SMALLEST_LEVEL = 512
_LARGEST_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution."""

    path: str
    shape: ZYX
    scale: tuple[float, ...]
    """One factor for each axis of the labels."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the labels are stored: by the image they belong to, where there is one."""

    version: str
    axes: tuple[dict[str, str], ...]
    levels: tuple[Level, ...]
    transformations: tuple[dict[str, Any], ...] = ()
    """Of the whole multiscale, where the image has some."""

    @property
    def names(self) -> str:
        """The axes, a letter each."""
        return "".join(axis["name"] for axis in self.axes)


def is_image(group: Path) -> bool:
    """Whether a directory is an OME-Zarr image: a group with multiscales."""
    return "multiscales" in metadata_of(group)


def write_into(result: Result, container: Path, label_name: str) -> None:
    """Write labels into the OME-Zarr image they belong to, with as many levels as it has.

    Args:
        result: the labels; their shape is that of the image's highest resolution.
        container: the group of the image.
        label_name: the name of the labels; labels of this name are replaced when the new ones
            are whole.

    Raises:
        DataError: the image and the labels differ in shape.
        StorageError: the disk is full, or permission is missing; nothing is left behind.
    """
    with remembered():
        layout = _layout_of(container, result)
        if is_remote(container):
            _take_away(container, label_name, layout.version)
    with new_group(container / "labels" / label_name) as temporary:
        _write_levels(result, layout, temporary, label_name)
    with remembered():
        _list_label(container / "labels", label_name, layout.version)
        consolidate_again(container)


def write_new(result: Result, path: Path, label_name: str) -> None:
    """Write labels as an OME-Zarr of their own.

    Programs that look for an image find the labels as an image; those that look for labels find
    them under ``labels/<label_name>``. They are stored once. Where there are probabilities, they
    are an image of their own within it, ``<label_name>_probabilities``.
    """
    layout = new_layout(result)
    with new_group(path) as temporary:
        group = temporary / "labels" / label_name
        _write_levels(result, layout, group, label_name)
        _list_label(temporary / "labels", label_name, layout.version)
        if result.probabilities:
            from cellseg.ome.probabilities import write_probabilities

            write_probabilities(result, temporary / (label_name + PROBABILITIES), layout)
        root = multiscales(layout, result.name, prefix=f"labels/{label_name}/")
        write_group(temporary, root, layout.version)


@contextmanager
def new_group(path: Path) -> Iterator[Path]:
    """Where to write a group, which is at ``path`` when it is whole.

    On this computer that is a folder beside it, which is renamed. At addresses nothing can be
    renamed: the chunks are written where they belong, and the metadata after all of them.

    Raises:
        StorageError: the disk is full, or permission is missing; nothing is left behind.
    """
    if not is_remote(path):
        with output_file(path) as temporary:
            yield temporary
        return
    from cellseg.remote_stores import staged

    with staged(path) as group:
        place: Any = group
        yield place


def _layout_of(container: Path, result: Result) -> Layout:
    attributes = metadata_of(container)
    stored = attributes["multiscales"][0]
    version = _version(attributes)
    axes = [a if isinstance(a, dict) else {"name": a} for a in stored["axes"]]
    keep = [i for i, axis in enumerate(axes) if axis["name"] != "c"]
    levels: list[Level] = []
    for dataset in stored["datasets"]:
        array = zarr_array(container / dataset["path"], strict=False, named=False)
        if array is None:
            raise DataError(f"{container}: the level {dataset['path']} is missing.")
        sizes = {"z": 1} | {axis["name"]: array.shape[i] for i, axis in enumerate(axes)}
        scale = _scale(dataset.get("coordinateTransformations", ()), len(axes))
        levels.append(
            Level(
                str(len(levels)),
                (sizes["z"], sizes["y"], sizes["x"]),
                tuple(scale[i] for i in keep),
            )
        )
        frames = sizes.get("t", 1)
    if levels[0].shape != result.shape or frames != len(result.frames):
        raise DataError(
            f"{container}: the labels of {len(result.frames)} x {result.shape} voxels do not fit "
            f"the image of {frames} x {levels[0].shape}.",
            hint="Write them elsewhere with --output.",
        )
    whole = [
        {"type": "scale", "scale": [t["scale"][i] for i in keep]}
        for t in stored.get("coordinateTransformations", ())
        if t.get("type") == "scale"
    ]
    return Layout(version, tuple(axes[i] for i in keep), tuple(levels), tuple(whole))


def _scale(transformations: Sequence[dict[str, Any]], axes: int) -> list[float]:
    for transformation in transformations:
        if transformation.get("type") == "scale":
            return [float(s) for s in transformation["scale"]]
    return [1.0] * axes


def new_layout(result: Result, container: Path | None = None) -> Layout:
    """The levels of an image of our own; in a container, of the version that this has."""
    axes = []
    for name in result.axes:
        if name == "t":
            axes.append({"name": "t", "type": "time"})
        else:
            axes.append({"name": name, "type": "space", "unit": "micrometer"})
    spacing = dict(zip("zyx", result.spacing, strict=True)) | {"t": 1.0}
    levels: list[Level] = []
    z, y, x = result.shape
    while not levels or max(levels[-1].shape[1:]) > _SMALLEST_LEVEL:
        factor = 2 ** len(levels)
        scale = tuple(spacing[n] * (factor if n in "yx" else 1) for n in result.axes)
        levels.append(Level(str(len(levels)), (z, -(-y // factor), -(-x // factor)), scale))
    version = NEW_VERSION if container is None else _version(metadata_of(container))
    return Layout(version, tuple(axes), tuple(levels))


def _write_levels(result: Result, layout: Layout, group: Path, label_name: str) -> None:
    attributes = multiscales(layout, label_name) | {"image-label": _image_label(layout.version)}
    write_group(group, attributes, layout.version)
    arrays = [level_array(group, level, layout, result, np.uint32) for level in layout.levels]
    z, y, x = chunk_of(result.block, result.shape)
    levels = layout.levels
    halved = len(levels) > 1 and _is_half(levels[0].shape, levels[1].shape)

    def store(frame: int, box: Box, ids: NDArray[np.uint32]) -> None:
        key, block = place(layout.names, frame, box.slices, ids)
        arrays[0][key] = block
        if not halved:
            return
        start = (box.start[0], box.start[1] // 2, box.start[2] // 2)
        _, height, width = levels[1].shape
        half = ids[:, ::2, ::2][:, : height - start[1], : width - start[2]]
        if half.size:
            depth, height, width = half.shape
            stop = (start[0] + depth, start[1] + height, start[2] + width)
            key, block = place(layout.names, frame, Box(start, stop).slices, half)
            arrays[1][key] = block

    # Four chunks at once: they are compressed in parallel, and make one chunk of half the size.
    # They are stored while the next ones are put together.
    with ThreadPoolExecutor(1, "cellseg-write") as thread:
        storing: Future[None] | None = None
        for frame, box, ids in result.blocks((z, 2 * y, 2 * x)):
            if storing is not None:
                storing.result()
            storing = thread.submit(store, frame, box, ids)
        if storing is not None:
            storing.result()
    for number in range(2 if halved else 1, len(arrays)):
        _downsample(result, layout, (arrays[number - 1], arrays[number]), number)


def _is_half(above: ZYX, here: ZYX) -> bool:
    """Whether the nearest voxels of a level are every second one of the level above, in plane."""
    return above[0] == here[0] and all(
        n in (m // 2, -(-m // 2)) and (n == m // 2 or m % 2) and n
        for m, n in zip(above[1:], here[1:], strict=True)
    )


def level_array(
    group: Path, level: Level, layout: Layout, result: Result, dtype: type, channels: int = 1
) -> Any:
    """A new array for a level, filled with 0; a chunk holds one channel of one frame."""
    import zarr

    counts = {"t": len(result.frames), "c": channels}
    sizes = counts | dict(zip("zyx", level.shape, strict=True))
    chunk = {"t": 1, "c": 1} | dict(zip("zyx", chunk_of(result.block, level.shape), strict=True))
    names, old = layout.names, layout.version == "0.4"
    return zarr.create_array(
        _array_in(group, level.path),
        shape=tuple(sizes[n] for n in names),
        chunks=tuple(chunk[n] for n in names),
        dtype=dtype,
        fill_value=0,
        zarr_format=2 if old else 3,
        dimension_names=None if old else list(names),
        chunk_key_encoding={"name": "v2" if old else "default", "separator": "/"},
    )


def _array_in(group: Path, name: str) -> Any:
    """What zarr calls an array of a group of ``new_group``."""
    store = getattr(group, "store", None)
    if store is None:
        return str(group / name)
    from zarr.storage import StorePath

    place: Any = group / name
    return StorePath(store, place.key)


def _downsample(result: Result, layout: Layout, arrays: tuple[Any, Any], number: int) -> None:
    """Fill a level with the nearest voxels of the one before it."""
    source, target = arrays
    above, here = layout.levels[number - 1].shape, layout.levels[number].shape
    for frame in range(len(result.frames)):
        for box in boxes(here, chunk_of(result.block, here)):
            result.pause()
            indices = [
                np.minimum(np.arange(a, b) * above[i] // here[i], above[i] - 1)
                for i, (a, b) in enumerate(zip(box.start, box.stop, strict=True))
            ]
            z, y, x = (slice(int(i[0]), int(i[-1]) + 1) for i in indices)
            key, _ = place(layout.names, frame, (z, y, x), np.zeros((1, 1, 1), np.uint32))
            block = np.asarray(source[key])
            block = block.reshape(z.stop - z.start, y.stop - y.start, x.stop - x.start)
            near = block[np.ix_(*(i - i[0] for i in indices))]
            key, near = place(layout.names, frame, box.slices, near)
            target[key] = near


def chunk_of(block: ZYX, shape: ZYX) -> ZYX:
    """Chunks of which four make a block of the labels, or a smaller one of a large block."""
    z, y, x = (min(b, n) for b, n in zip(block, shape, strict=True))
    if block[1] >= _SMALLEST_LEVEL and block[2] >= _SMALLEST_LEVEL:
        y, x = min(-(-block[1] // 2), shape[1]), min(-(-block[2] // 2), shape[2])
    while z * y * x > _LARGEST_CHUNK:
        if z > 1 and z * 4 > max(y, x):
            z = -(-z // 2)
        elif y >= x:
            y = -(-y // 2)
        else:
            x = -(-x // 2)
    return (z, y, x)


def multiscales(layout: Layout, name: str, prefix: str = "") -> dict[str, Any]:
    """What a group says about its levels."""
    datasets = [
        {
            "path": prefix + level.path,
            "coordinateTransformations": [{"type": "scale", "scale": list(level.scale)}],
        }
        for level in layout.levels
    ]
    one: dict[str, Any] = {"name": name, "axes": list(layout.axes), "datasets": datasets}
    if layout.transformations:
        one["coordinateTransformations"] = list(layout.transformations)
    if layout.version == "0.4":
        one["version"] = layout.version
    return {"multiscales": [one]}


def _image_label(version: str) -> dict[str, Any]:
    return {"version": version, "source": {"image": "../../"}}


def _version(attributes: dict[str, Any]) -> str:
    """Of OME-Zarr, as an image says."""
    return str(attributes.get("version", attributes["multiscales"][0].get("version", "0.4")))


def metadata_of(group: Path) -> dict[str, Any]:
    """The OME part of a group's attributes; empty where it has none."""
    document = read_json(group / "zarr.json")
    if document is not None:
        return dict(document.get("attributes", {}).get("ome", {}))
    return read_json(group / ".zattrs") or {}


def write_group(group: Path, attributes: dict[str, Any], version: str) -> None:
    """Make a group, or change the OME part of its attributes."""
    group.mkdir(parents=True, exist_ok=True)
    if version == "0.4":
        if not (group / ".zgroup").exists():
            _put(group / ".zgroup", json.dumps({"zarr_format": 2}))
        _put(group / ".zattrs", json.dumps(attributes, indent=2))
        return
    document: dict[str, Any] = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    if (group / "zarr.json").exists():
        document = json.loads((group / "zarr.json").read_bytes())
    document["attributes"]["ome"] = {"version": version, **attributes}
    _put(group / "zarr.json", json.dumps(document, indent=2))


def _put(file: Path, text: str) -> None:
    if isinstance(file, Path):
        write_atomic(file, text)
    else:  # no part of an object is ever seen
        file.write_bytes(text.encode())


def _list_label(labels: Path, name: str, version: str) -> None:
    """Add a name to the list that says which labels an image has."""
    attributes = metadata_of(labels)
    attributes.pop("version", None)
    names = list(attributes.get("labels", ()))
    if name not in names:
        names.append(name)
    write_group(labels, attributes | {"labels": names}, version)


def _take_away(container: Path, name: str, version: str) -> None:
    """Remove labels at an address, which nobody may see while new ones are written there."""
    from cellseg.remote_stores import remove_group

    attributes = metadata_of(container / "labels")
    attributes.pop("version", None)
    names = list(attributes.get("labels", ()))
    if name in names:
        names.remove(name)
        write_group(container / "labels", attributes | {"labels": names}, version)
        remove_group(container / "labels" / name)
        consolidate_again(container)


def consolidate_again(container: Path) -> None:
    """Where a copy of all metadata is kept in one place, readers would not see the new labels."""
    import zarr

    document = read_json(container / "zarr.json")
    if document is None:
        copied = read_json(container / ".zmetadata")
    else:
        copied = document.get("consolidated_metadata")
    if copied and is_remote(container):
        from cellseg.remote_stores import store_at

        zarr.consolidate_metadata(store_at(str(container), read_only=False))
    elif copied:
        zarr.consolidate_metadata(str(container))
