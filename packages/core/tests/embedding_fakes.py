"""Embedders that need no weights, and what their vectors pooled over objects must be."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import tifffile
from engine_fakes import LabelOptions, NpyOptions, discs, load_label, open_npy
from numpy.typing import NDArray

import cellseg as cs
from cellseg.engine.plan import Plan
from cellseg.events import Event
from cellseg.options import parse
from cellseg.plugins import Plugins
from cellseg.workflows.embed import embed
from cellseg.workflows.embed_settings import EmbedSettings
from cellseg.workflows.embed_summary import EmbedSummary
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings


class LookOptions(LabelOptions):
    steps: tuple[float, float, float] = (1.0, 4.0, 4.0)
    """Voxels in a cell."""
    offset: float = 0.0
    """Added to all vectors."""
    padding: int = 0
    """Cells beyond the tile's end, full of garbage."""
    wrong: str = ""
    """How to break the contract."""


def look(tile: cs.Tile, options: LookOptions) -> cs.Features:
    """Per cell: the mean of the image there, its row, its column, and a constant."""
    image, steps = tile.image[0].astype(np.float64), options.steps
    cells = [cells_of(n, s) for n, s in zip(image.shape, steps, strict=True)]
    grid = tuple(int(np.ceil(n / s)) for n, s in zip(image.shape, steps, strict=True))
    sums, counts = np.zeros(grid), np.zeros(grid)
    np.add.at(sums, np.ix_(*cells), image)
    np.add.at(counts, np.ix_(*cells), 1)
    mean = sums / np.maximum(counts, 1)
    row, column = np.indices(grid)[1:]
    values = np.stack([mean, row, column, np.ones(grid)]) + options.offset
    room = [(0, 0), (0, 0), (0, options.padding), (0, options.padding)]
    padded = np.pad(values.astype(np.float32), room, constant_values=np.nan)
    return cs.Features(padded, steps)


def cells_of(length: int, step: float) -> NDArray[np.int64]:
    """The cell that the middle of each voxel lies in."""
    return np.floor((np.arange(length) + 0.5) / step).astype(np.int64)


def load_look(job: cs.PredictJob[LookOptions]) -> cs.Embedder:
    options = job.options

    def embed(tiles: Sequence[cs.Tile]) -> Sequence[cs.Features]:
        assert len({tile.image.shape for tile in tiles}) == 1
        CALLS.append([tile.image.shape for tile in tiles])
        found = [look(tile, options) for tile in tiles]
        if options.fits and sum(tile.image.size for tile in tiles) > options.fits:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
        if options.bad:
            for tile in tiles:
                if str(int(tile.image.sum())) in Path(options.bad).read_text().split():
                    raise ArithmeticError("the network exploded")
        values, step = found[0].values, found[0].step
        wrong = {
            "count": [],
            "type": [values],
            "double": [cs.Features(values.astype(np.float64), step)],
            "flat": [cs.Features(values[0], step)],
            "empty": [cs.Features(values[:0], step)],
            "step": [cs.Features(values, (1.0, 0.0, 1.0))],
            "short": [cs.Features(values[:, :, :-1], step)],
            "nan": [cs.Features(np.full_like(values, np.nan), step)],
            "dimension": [cs.Features(values[: 1 + len(CALLS) % 2], step)],
        }
        return wrong.get(options.wrong, found)

    return embed


CALLS: list[list[tuple[int, ...]]] = []
"""The shapes of the tiles of each call."""


def oracle(
    image: NDArray[np.float32], labels: NDArray[np.integer], plan: Plan, options: LookOptions
) -> dict[int, tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]:
    """Mean, population standard deviation and maximum of each object, voxel by voxel.

    Each tile's vectors are repeated to the size of the tile, and those of its core kept.
    """
    whole = np.full((4, *labels.shape), np.nan)
    for tile in range(len(plan)):
        outer, core = plan.read_box(tile), plan.core_box(tile)
        part = np.ascontiguousarray(image[(slice(None), *outer.slices)])
        values = look(cs.Tile(image=part), options).values.astype(np.float64)
        cells = [cells_of(n, s) for n, s in zip(outer.shape, options.steps, strict=True)]
        repeated = values[(slice(None), *np.ix_(*cells))]
        whole[(slice(None), *core.slices)] = repeated[(slice(None), *core.within(outer))]
    assert not np.isnan(whole).any()
    found = {}
    for name in np.unique(labels[labels > 0]).tolist():
        own = whole[:, labels == name]
        found[name] = (own.mean(1), own.std(1), own.max(1))
    return found


@cs.hookimpl
def cellseg_datasets():
    yield cs.DatasetSpec(
        name="npy",
        summary="Arrays",
        options=NpyOptions,
        open=open_npy,
        recognises=_never,
        aliases={"bands": "channels"},
    )


def _never(path: Path) -> bool:
    return False


@cs.hookimpl
def cellseg_predictors():
    tiling = cs.Tiling((8, 64, 64), (8, 24, 24))
    for name, tasks in (("look", {"2d"}), ("deeplook", {"2d", "3d"})):
        yield cs.PredictorSpec(
            name=name,
            summary="Look at pixels",
            options=LookOptions,
            load=load_label,
            embed=load_look,
            tiling=tiling,
            tasks=frozenset(tasks),
            aliases={"cells": "steps"},
        )
    yield cs.PredictorSpec(name="blind", summary="Only labels", load=load_label, tiling=tiling)


def plugins() -> Plugins:
    found = Plugins(installed=())
    found.register(sys.modules[__name__], "fakes")
    return found


def write_plate(path: Path, wells: Sequence[str], pixels: NDArray[np.uint8]) -> Path:
    """An OME-Zarr plate with the fields 0 and 1 in each well; the second is the mirror image.

    Args:
        path: of the container.
        wells: such as ``B/03``.
        pixels: ``(y, x)``.
    """
    import zarr

    zarr.open_group(path, mode="w", zarr_format=2).attrs["plate"] = {
        "wells": [{"path": well} for well in wells]
    }
    for well in wells:
        group = zarr.open_group(path / well, mode="a", zarr_format=2)
        group.attrs["well"] = {"images": [{"path": "0"}, {"path": "1"}]}
        for field, image in enumerate((pixels, pixels[:, ::-1])):
            write_image(path / well / str(field), image[None])
    return path


def write_image(path: Path, pixels: NDArray[np.uint8]) -> Path:
    """An OME-Zarr image of one level, from ``(c, y, x)``."""
    import zarr

    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("0", data=np.ascontiguousarray(pixels), chunks=pixels.shape)
    axes = [{"name": n, "type": k} for n, k in (("c", "channel"), ("y", "space"), ("x", "space"))]
    scale = [{"type": "scale", "scale": [1.0, 0.5, 0.5]}]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["multiscales"] = [{"axes": axes, "datasets": datasets, "version": "0.4"}]
    return path


def write_images(folder: Path) -> Path:
    """TIFF images of different sizes: one of several tiles, one without objects."""
    folder.mkdir()
    for seed, (name, shape) in enumerate({"a": (100, 110), "big": (300, 200)}.items()):
        tifffile.imwrite(folder / f"{name}.tif", discs(shape, seed=seed)[0, 0])
    tifffile.imwrite(folder / "blank.tif", np.zeros((50, 60), np.uint8))
    return folder


def run(
    images: Path,
    out: Path,
    *,
    events: list[Event] | None = None,
    options: dict[str, object] | None = None,
    reading: dict[str, object] | None = None,
    **values: object,
) -> EmbedSummary:
    settings = parse(EmbedSettings, {"backend": "look", "output": out, **values})
    seen: list[Event] = []
    return embed(
        plugins(),
        images,
        settings,
        options=options or {},
        reader_options=reading or {},
        emit=(seen if events is None else events).append,
    )


def segment(images: Path, out: Path | None, **values: object) -> None:
    given = {"backend": "look", "output": out, "halo": 24, **values}
    predict(plugins(), images, parse(PredictSettings, given), emit=lambda event: None)


def rows(out: Path, name: str = "manifest.parquet") -> list[dict[str, Any]]:
    return list(pq.read_table(out / name).to_pylist())


def skipped(out: Path) -> list[dict[str, str]]:
    with (out / "skipped.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def vectors(
    out: Path, name: str = "embeddings_mean.parquet", prefix: str = "emb_m"
) -> NDArray[np.float32]:
    table = pq.read_table(out / name)
    columns = [column for column in table.column_names if column.startswith(prefix)]
    return np.stack([table[column].to_numpy() for column in columns], axis=1)
