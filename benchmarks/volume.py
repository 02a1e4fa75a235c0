"""Volumes larger than memory: objects from embeddings, and the memory of a whole prediction.

The neurites are computed from their coordinates, block by block, so that no map of the whole
volume ever exists: wavy columns, dense, with a thin membrane; their embeddings, depths and
probabilities are blurred and noisy, and the noise of overlapping tiles differs, as that of a
network does. All sizes go through core's tiles and stitching.

    python benchmarks/volume.py [SIZE ...] [--predict SIZE]

By default sizes 64 128 256 512, and a prediction of 512.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from _table import finish, result, table
from cellseg import Segmentation, Tiling
from cellseg.engine.plan import Plan
from cellseg.engine.stitch import PartsInMemory, stitch
from cellseg.engine.tile import tile_labels
from cellseg.metrics import overlaps, score, tally
from cellseg_vista.instances import PixelMaps, find_instances
from cellseg_vista.predict_options import Vista3dPredictOptions

PITCH, MEMBRANE, DIMENSIONS, NOISE = 12.0, 0.7, 16, 0.15
TILING = Tiling(core=(192, 192, 192), halo=(16, 16, 16))
METHODS: dict[str, dict[str, Any]] = {
    # With the threshold that suits these maps, as calibration finds it for a model.
    "agglomerate (default)": {"join_threshold": 0.8},
    "watershed": {"method": "watershed"},
    "watershed, embedding": {"method": "watershed", "flood": "embedding"},
    "cluster": {"method": "cluster", "bandwidth": 1.0},
    "mutex": {"method": "mutex", "bandwidth": 1.5},
}
DEFAULT = next(iter(METHODS))
LARGEST_OF_OTHERS = 128
"""Methods that are not the default are measured up to this size."""


def neurites(start: tuple[int, ...], shape: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Number of the neurite at each voxel, and how far its border is."""
    z, y, x = np.ogrid[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))]
    wavy_y = (y + 0.35 * z + 6 * np.sin(z / 23 + x / 41)).astype(np.float32)
    wavy_x = (x + 0.2 * z + 6 * np.sin(z / 29 + y / 37 + 1)).astype(np.float32)
    row, column = (np.floor(w / PITCH).astype(np.int32) for w in (wavy_y, wavy_x))
    nearest = np.full(shape, np.inf, np.float32)
    second, number = nearest.copy(), np.zeros(shape, np.uint32)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            code = ((row + down + 8) * 1024 + column + right + 8).astype(np.uint32)
            mixed = code * np.uint32(2654435761)
            mixed ^= mixed >> np.uint32(15)
            jitter = [((mixed >> np.uint32(s)) & np.uint32(255)) / 255 * 0.7 - 0.35 for s in (0, 9)]
            away = np.hypot(
                wavy_y - (row + down + 0.5 + jitter[0]) * PITCH,
                wavy_x - (column + right + 0.5 + jitter[1]) * PITCH,
            ).astype(np.float32)
            closer = away < nearest
            second = np.where(closer, nearest, np.minimum(second, away))
            nearest, number = np.where(closer, away, nearest), np.where(closer, code, number)
    return number, (second - nearest) / 2


class Truth:
    """The true labels of a cube, computed where they are asked for."""

    dtype = np.dtype(np.uint32)

    def __init__(self, size: int) -> None:
        self.shape = (size,) * 3

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[np.uint32]:
        spans = [part.indices(n)[:2] for part, n in zip(key, self.shape, strict=True)]
        number, border = neurites(*zip(*((a, b - a) for a, b in spans), strict=True))
        return np.where(border > MEMBRANE, number, 0)


def maps(start: tuple[int, ...], shape: tuple[int, ...]) -> PixelMaps:
    """What a network might say."""
    number, border = neurites(start, shape)
    rng = np.random.default_rng([*start])
    ids, dense = np.unique(number, return_inverse=True)
    place = np.stack([np.random.default_rng(i).normal(size=DIMENSIONS) for i in ids.tolist()])
    place = (place / np.sqrt(2 * DIMENSIONS) * 4).astype(np.float32)
    dense = dense.reshape(shape)
    embedding = np.empty((DIMENSIONS, *shape), np.float32)
    for axis, plane in enumerate(embedding):
        gaussian_filter(place[:, axis][dense], 0.8, output=plane)
        plane += NOISE * rng.standard_normal(shape, np.float32)
    faults = gaussian_filter(rng.standard_normal(shape, np.float32), 1)
    faults /= faults.std()
    depth = np.clip((border - MEMBRANE) / (0.25 * PITCH) + 0.1 * faults, 0, 1)
    inside = 1 / (1 + np.exp(-4 * (border - MEMBRANE) - 1 - 0.5 * faults))
    return PixelMaps(np.stack([1 - inside, inside]).astype(np.float32), depth, embedding)


def segmented(size: int, options: Vista3dPredictOptions) -> tuple[float, float, int]:
    """CPU seconds (on one core), adapted Rand error and number of objects of a cube."""
    plan = Plan.cut((size,) * 3, TILING, volumetric=True)
    parts, seconds = [], 0.0
    for number in range(len(plan)):
        read = plan.read_box(number)
        seen = maps(read.start, read.shape)
        begun = time.process_time()
        found = find_instances(seen, options)
        labelled = Segmentation(found.labels, found.scores, found.classes)
        parts.append(tile_labels(labelled, plan, number))
        seconds += time.process_time() - begun
        del seen, found, labelled
    begun = time.process_time()
    objects = PartsInMemory([part.objects for part in parts])
    whole = stitch(plan, objects, lambda i, d: parts[i].strips[d], 0.5)
    labels = np.zeros(plan.shape, np.uint32)
    for number, part in enumerate(parts):
        labels[plan.core_box(number).slices] = np.take(whole.table(number), part.core)
    seconds += time.process_time() - begun
    scores = score([tally(overlaps(labels, Truth(size)), (0.5,))])
    return seconds, scores["are"], len(whole.objects)


def instances(sizes: list[int]) -> None:
    rows: list[tuple[object, ...]] = [
        ("method", "size", "CPU seconds", "ns per voxel", "objects", "adapted Rand error")
    ]
    per_voxel = []
    find_instances(maps((0, 0, 0), (16, 32, 32)), Vista3dPredictOptions())  # warm up
    for method, values in METHODS.items():
        for size in sizes:
            if method != DEFAULT and size > LARGEST_OF_OTHERS:
                continue
            seconds, error, count = segmented(size, Vista3dPredictOptions(**values))
            each = seconds / size**3
            rows.append((method, f"{size}³", seconds, each * 1e9, count, error))
            print(*rows[-1], flush=True)
            if method == DEFAULT:
                per_voxel.append(each)
    table(rows)
    if len(per_voxel) > 1:
        growth = max(per_voxel) / per_voxel[0]
        result("time_per_voxel_growth", growth, "<2", growth < 2)


def prediction(size: int) -> None:
    """Peak memory of ``cellseg predict`` and of what it starts, for a cube in HDF5."""
    import h5py

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small, large = folder / "small.h5", folder / "large.h5"
        for file, edge in ((small, 96), (large, size)):
            with h5py.File(file, "w") as opened:
                stored = opened.create_dataset("raw", (edge,) * 3, "u1", chunks=(32, 64, 64))
                for low in range(0, edge, 32):
                    depth = min(32, edge - low)
                    _, border = neurites((low, 0, 0), (depth, edge, edge))
                    noise = np.random.default_rng(low).normal(0, 15, border.shape)
                    grey = 60 + 120 * np.clip(border / 3, 0, 1) + noise
                    stored[low : low + depth] = np.clip(grey, 0, 255).astype(np.uint8)
                if file == small:
                    opened["label"] = Truth(edge)[(slice(None),) * 3]
        model = folder / "run"
        _cellseg(
            *("train", str(small), "--axes", "ZYX", "--backend", "vista3d", "--output", str(model)),
            *("--epochs", "2", "--patches-per-image", "16", "--feature-size", "8"),
            *("--patch-depth", "32", "--patch-size", "64", "--levels", "3", "--num-classes", "2"),
            *("--device", "cpu", "--split", "blocks"),
        )
        begun = time.perf_counter()
        peak = _cellseg(
            *("predict", str(large), "--axes", "ZYX", "--model", str(model)),
            *("--output", str(folder / "out"), "--device", "cpu", "--format", "ome-zarr"),
            *("--precision", "bf16-mixed"),
        )
        rows = [
            ("prediction", "seconds", "peak GiB"),
            (f"{size}³", time.perf_counter() - begun, peak),
        ]
        table(rows)
        result("peak_memory_gib", peak, "<4", peak < 4)


def _cellseg(*arguments: str) -> float:
    """Run the command line in a process of its own; its peak memory in GiB, children included."""
    code = (
        "import json, resource, subprocess, sys\n"
        "start = 'from cellseg_cli.main import main; main()'\n"
        "done = subprocess.run([sys.executable, '-c', start, *sys.argv[1:]])\n"
        "usage = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(json.dumps({'rc': done.returncode, 'kib': usage.ru_maxrss}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    told = json.loads(done.stdout.splitlines()[-1])
    if told["rc"]:
        sys.exit(f"cellseg {' '.join(arguments)} ended with {told['rc']}\n{done.stdout}")
    return float(told["kib"]) / 2**20


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", type=int, default=[64, 128, 256, 512])
    parser.add_argument("--predict", type=int, default=512, help="0 for none")
    chosen = parser.parse_args()
    instances(chosen.sizes)
    if chosen.predict:
        prediction(chosen.predict)
    finish()
