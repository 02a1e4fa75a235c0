"""Scores of label images against stardist and elf, and memory as the image grows.

All rounds of a row run in turn, ours and the peer's, and the median of the ratios counts. Ours
always computes everything: the table, and all scores at all thresholds.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import elf.evaluation
import numpy as np
import stardist.matching
from numpy.typing import NDArray
from scipy import ndimage

from _table import finish, result, table
from cellseg.metrics import THRESHOLDS, Scores, overlaps, score, tally

Labels = NDArray[np.int32]
ROUNDS = 5
MEMORY_BOUND_MIB = 64


def cells(size: int, count: int, seed: int) -> tuple[Labels, Labels]:
    """``(prediction, truth)``: touching cells; some missed, some merged, all a bit off."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(count)))
    pitch = size / side
    grid = (np.stack(np.divmod(np.arange(count), side), 1) + 0.5) * pitch
    seeds = np.clip(grid + rng.uniform(-0.3, 0.3, grid.shape) * pitch, 0, size - 1)
    shift = rng.normal(0, 0.06, grid.shape) * pitch
    found = np.clip(seeds + shift, 0, size - 1)
    ids = np.arange(count + 1)
    wrong = rng.permutation(count)[: count // 10] + 1
    ids[wrong[::2]] = 0
    ids[wrong[1::2]] -= 1
    prediction = ids[_grown(found, size, 0.56 * pitch)].astype(np.int32)
    return prediction, _grown(seeds, size, 0.52 * pitch)


def _grown(seeds: NDArray[np.float64], size: int, radius: float) -> Labels:
    labels = np.zeros((size, size), np.int32)
    rows, columns = seeds.astype(int).T
    labels[rows, columns] = np.arange(1, len(seeds) + 1)
    distance, (rows, columns) = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    return np.where(distance <= radius, labels[rows, columns], 0).astype(np.int32)


def ours(prediction: Labels, truth: Labels, thresholds: tuple[float, ...]) -> Scores:
    return score([tally(overlaps(prediction, truth), thresholds)])


def compare(mine: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float, float]:
    """``(our seconds, their seconds, theirs / ours)``, medians."""
    mine()
    theirs()
    times = [(_seconds(mine), _seconds(theirs)) for _ in range(ROUNDS)]
    return (
        statistics.median(a for a, _ in times),
        statistics.median(b for _, b in times),
        statistics.median(b / a for a, b in times),
    )


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def check_equal(prediction: Labels, truth: Labels) -> None:
    """Stop unless all scores that the peers compute, too, are the same."""
    scores = ours(prediction, truth, THRESHOLDS)
    for theirs in stardist.matching.matching(truth, prediction, THRESHOLDS):
        at = f"@{theirs.thresh:.2f}"
        assert (scores["tp" + at], scores["fp" + at]) == (theirs.tp, theirs.fp)
        assert np.isclose(scores["f1" + at], theirs.f1)
        assert np.isclose(scores["ap" + at], theirs.accuracy)
        assert np.isclose(scores["pq" + at], theirs.panoptic_quality, rtol=1e-5)
        assert np.isclose(scores["sq" + at], theirs.mean_matched_score, rtol=1e-5)
    msa = elf.evaluation.mean_segmentation_accuracy(prediction, truth, thresholds=THRESHOLDS)
    assert np.isclose(scores["mSA@0.50:0.95"], msa)
    voi = elf.evaluation.variation_of_information(prediction, truth)
    assert np.allclose((scores["voi_split"], scores["voi_merge"]), voi)
    shown = ("n_true", "n_pred", "f1@0.50", "mSA@0.50:0.95", "pq@0.50", "voi_split", "voi_merge")
    print("equal to stardist and elf:", ", ".join(f"{k} {scores[k]:.4g}" for k in shown), "\n")


def speed() -> None:
    size, count = 2048, 3000
    prediction, truth = cells(size, count, seed=0)
    check_equal(prediction, truth)
    ev = elf.evaluation
    rows = {
        "stardist.matching at 0.5": (
            (0.5,),
            lambda: stardist.matching.matching(truth, prediction, 0.5),
        ),
        "stardist.matching at 10 thresholds": (
            THRESHOLDS,
            lambda: stardist.matching.matching(truth, prediction, THRESHOLDS),
        ),
        "elf.matching at 0.5": ((0.5,), lambda: ev.matching(prediction, truth, 0.5)),
        "elf.mean_segmentation_accuracy": (
            THRESHOLDS,
            lambda: ev.mean_segmentation_accuracy(prediction, truth, thresholds=THRESHOLDS),
        ),
        "elf.rand_index + variation_of_information": (
            THRESHOLDS,
            lambda: (
                ev.rand_index(prediction, truth),
                ev.variation_of_information(prediction, truth),
            ),
        ),
    }
    lines: list[list[object]] = [["peer", "cellseg, all scores (s)", "peer (s)", "ratio"]]
    ratios: dict[str, float] = {}
    for name, (thresholds, theirs) in rows.items():
        mine_s, peer_s, ratio = compare(lambda t=thresholds: ours(prediction, truth, t), theirs)
        lines.append([name, mine_s, peer_s, ratio])
        ratios[name] = ratio
    print(f"{size} x {size}, {count} cells, medians of {ROUNDS} rounds")
    table(lines)
    for peer in ("stardist", "elf"):
        worst = min(ratio for name, ratio in ratios.items() if name.startswith(peer))
        result(f"metrics_speedup_{peer}", worst, ">=8", worst >= 8)


def memory() -> None:
    """Peak memory of scoring a zarr array of 10^7 voxels and 10^4 cells, and 10 times as much."""
    lines: list[list[object]] = [
        ["voxels", "cells", "arrays (MiB)", "peak above imports (MiB)", "seconds"]
    ]
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for columns in (1, 10):
            subprocess.run([sys.executable, __file__, "write", folder, str(columns)], check=True)
            command = [sys.executable, __file__, "score", folder, str(columns)]
            told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            size = told["voxels"] * 8 / 2**20
            lines.append([told["voxels"], told["cells"], size, told["mib"], told["seconds"]])
            peaks.append(told["mib"])
    print("read block by block from zarr, chunks of 1000 x 1000")
    table(lines)
    growth = peaks[1] - peaks[0]
    result("metrics_memory_mib", peaks[1], "<=256", peaks[1] <= 256)
    result("metrics_memory_growth_mib", growth, f"<={MEMORY_BOUND_MIB}", growth <= MEMORY_BOUND_MIB)


def write(folder: Path, columns: int) -> None:
    """Write 10 rows of ``columns`` tiles, each with 1000 cells of its own."""
    import zarr

    tiles = [cells(1000, 1000, seed) for seed in range(4)]
    for which, name in enumerate(("prediction", "truth")):
        array = zarr.create_array(
            folder / f"{name}{columns}.zarr",
            shape=(10_000, 1000 * columns),
            chunks=(1000, 1000),
            dtype="int32",
        )
        for tile in range(10 * columns):
            row, column = divmod(tile, columns)
            labels = tiles[tile % len(tiles)][which]
            rows = slice(1000 * row, 1000 * row + 1000)
            array[rows, 1000 * column : 1000 * column + 1000] = np.where(
                labels, labels + 1000 * tile, 0
            )


def score_from_disk(folder: Path, columns: int) -> None:
    import zarr

    prediction, truth = (
        zarr.open_array(folder / f"{name}{columns}.zarr", mode="r")
        for name in ("prediction", "truth")
    )
    overlaps(prediction[:10, :10], truth[:10, :10])
    before = _peak_mib()
    start = time.perf_counter()
    scores = ours(prediction, truth, THRESHOLDS)
    seconds = time.perf_counter() - start
    print(
        json.dumps(
            {
                "voxels": int(np.prod(truth.shape)),
                "cells": scores["n_true"],
                "mib": _peak_mib() - before,
                "seconds": seconds,
            }
        )
    )


def _peak_mib() -> float:
    # getrusage will not do: a child inherits the peak of the process that started it.
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write(Path(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["score"]:
        score_from_disk(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        speed()
        memory()
        finish()
