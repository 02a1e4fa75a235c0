"""Scores of tracks against py-ctcmetrics, from the same folders; traccuracy beside them.

A synthetic movie of 30 frames of 1024² pixels with 900 cells and more, and a result with cells
missed, moved, merged, made up and exchanged. Both read the folders of the Cell Tracking Challenge
(zlib TIFFs) and compute SEG, DET, TRA, LNK, CT, TF, CCA, BC, BIO and their means; py-ctcmetrics in
one process, as ours (processor time), and with all cores, as it does on its own (wall time).
traccuracy (DET, TRA and LNK; its scores of divisions need another matching) is run in an
environment of its own, which needs uv and the network.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.append(sys.path.pop(0))  # the package that is measured has the name of this file

import numpy as np
import tifffile
from ctc_metrics.scripts.evaluate import evaluate_sequence
from numpy.typing import NDArray

from _table import finish, result, table
from cellseg.strict_tracks import strict_tracks
from cellseg.synthetic_movies import make_movie
from cellseg.track_files import ctc_table
from cellseg.tracks import Lineage, Track
from cellseg.workflows.evaluate_tracks import evaluate_tracks

FRAMES, SIDE = 30, 1024
ROUNDS = 5
WANTED = ["Valid", "BC", "CT", "CCA", "TF", "SEG", "TRA", "DET", "LNK", "OP_CTB", "OP_CSB"]
WANTED += ["BIO", "OP_CLB"]
TRACCURACY = "traccuracy==0.4.3"
_SCRIPT = """
import json, logging, sys, time
from traccuracy import run_metrics
from traccuracy.loaders import load_ctc_data
from traccuracy.matchers import CTCMatcher
from traccuracy.metrics import CTCMetrics

logging.disable(logging.INFO)
start, used = time.perf_counter(), time.process_time()
truth = load_ctc_data(sys.argv[2] + "/TRA", sys.argv[2] + "/TRA/man_track.txt")
found = load_ctc_data(sys.argv[1], sys.argv[1] + "/res_track.txt")
results, _ = run_metrics(truth, found, CTCMatcher(), [CTCMetrics()])
scores = {name: results[0]["results"][name] for name in ("DET", "TRA", "LNK")}
taken = {"wall": time.perf_counter() - start, "processor": time.process_time() - used}
print(json.dumps({**taken, "scores": scores}))
"""


def degraded(labels: NDArray[np.uint32], lineage: Lineage) -> tuple[NDArray[np.uint32], Lineage]:
    """A valid result with errors of all kinds."""
    rng = np.random.default_rng(0)
    now = np.arange(max(track.id for track in lineage.tracks) + FRAMES + 1, dtype=np.uint32)
    found = np.zeros_like(labels)
    fresh = now.size - FRAMES
    for frame, truth in enumerate(labels):
        ids = np.unique(truth[truth > 0])
        wrong = rng.permutation(ids)[:40]
        now[wrong[0:6]] = now[np.roll(wrong[0:6], 1)]
        lut = now.copy()
        lut[0], lut[wrong[6:20]] = 0, 0
        lut[wrong[20:26]] = lut[wrong[26:32]]
        found[frame] = lut[np.roll(truth, rng.integers(-2, 3, 2), (0, 1))]
        found[frame, :6, :6] = fresh + frame
    present = [np.unique(each[each > 0]) for each in found]
    spans: dict[int, list[int]] = {}
    for frame, ids in enumerate(present):
        for id in ids.tolist():
            spans.setdefault(id, [frame, frame])[1] = frame
    tracks = []
    for id, (begin, end) in spans.items():
        true = lineage.by_id.get(id)
        parent = true.parent if true and true.parent in spans and rng.random() < 0.8 else 0
        parent = parent if parent and spans[parent][0] < begin else 0
        tracks.append(Track(id, begin, end, parent))
    strict = strict_tracks(present, Lineage.of(tracks))
    lut = np.zeros(int(found.max()) + 1, np.uint32)
    for frame, (old, new) in enumerate(zip(present, strict.ids, strict=True)):
        lut[old] = new
        found[frame] = np.where(found[frame] > 0, lut[found[frame]], 0)
    return found, strict.lineage


def write(folder: Path) -> tuple[Path, Path]:
    """``(01_RES, 01_GT)``."""
    movie = make_movie(0, FRAMES, (SIDE, SIDE), 800, diameter=26, cycle=50, draw_images=False)
    found, tracks = degraded(movie.labels, movie.lineage)
    names = {"01_RES/mask": found, "01_GT/TRA/man_track": movie.labels}
    names["01_GT/SEG/man_seg"] = movie.labels
    for name, masks in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        for frame, mask in enumerate(masks):
            path = folder / f"{name}{frame:03}.tif"
            tifffile.imwrite(path, mask.astype(np.uint16), compression="zlib")
    (folder / "01_RES" / "res_track.txt").write_text(ctc_table(tracks))
    (folder / "01_GT" / "TRA" / "man_track.txt").write_text(ctc_table(movie.lineage))
    return folder / "01_RES", folder / "01_GT"


def theirs(found: Path, truth: Path, threads: int) -> Mapping[str, float | None]:
    with contextlib.redirect_stdout(io.StringIO()):
        return evaluate_sequence(str(found), str(truth), list(WANTED), threads)


def ours(found: Path, truth: Path) -> Mapping[str, float]:
    return evaluate_tracks(found, truth).movies[0].scores


def difference(mine: Mapping[str, float], other: Mapping[str, float | None]) -> float:
    """The largest relative difference of any score; stops where one has what the other lacks."""
    worst = 0.0
    for name, value in other.items():
        if name in ("Valid", "gt_divisions") or (value is None and name not in mine):
            continue
        assert math.isnan(mine[name]) == (value is None), name
        if value is not None:
            worst = max(worst, abs(mine[name] - value) / max(abs(value), 1e-300))
    shown = ("n_true", "tracks_true", "divisions_true", "SEG", "DET", "TRA", "LNK", "CT", "TF")
    shown += ("BIO(1)", "division_f1(1)", "AOGM_NS", "AOGM_EC")
    print(", ".join(f"{name} {mine[name]:.4g}" for name in shown), "\n")
    return worst


def seconds(
    function: Callable[[], Mapping[str, Any]],
) -> tuple[float, float, Mapping[str, Any]]:
    """``(wall, processor, what it returns)``."""
    start = time.perf_counter(), time.process_time()
    value = function()
    return time.perf_counter() - start[0], time.process_time() - start[1], value


def traccuracy(found: Path, truth: Path) -> dict[str, Any] | str:
    """What it says, or why it says nothing."""
    command = ["uv", "run", "--isolated", "--no-project", "--with", TRACCURACY, "python", "-c"]
    try:
        ran = subprocess.run(
            [*command, _SCRIPT, str(found), str(truth)],
            capture_output=True,
            text=True,
            timeout=900,
            cwd=found.parent,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if ran.returncode:
        return (ran.stderr.strip() or "no message").splitlines()[-1]
    told: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return told


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found, truth = write(Path(folder))
        ours(found, truth)
        mine = [seconds(lambda: ours(found, truth)) for _ in range(ROUNDS)]
        wall = statistics.median(each[0] for each in mine)
        processor = statistics.median(each[1] for each in mine)
        scores = mine[0][2]
        one_wall, one_processor, expected = seconds(lambda: theirs(found, truth, 1))
        all_wall, _, _ = seconds(lambda: theirs(found, truth, 0))
        worst = difference(scores, expected)
        rows: list[list[object]] = [
            ["program", "wall (s)", "processor (s)"],
            ["cellseg, one process", wall, processor],
            ["py-ctcmetrics, one process", one_wall, one_processor],
            [f"py-ctcmetrics, {os.cpu_count()} processes", all_wall, "-"],
        ]
        told = traccuracy(found, truth)
        if isinstance(told, dict):
            rows.append([f"{TRACCURACY}, DET, TRA and LNK only", told["wall"], told["processor"]])
        print(f"{FRAMES} frames of {SIDE}², {scores['n_true'] / FRAMES:.0f} cells a frame")
        table(rows)
        if isinstance(told, dict):
            for name, value in told["scores"].items():
                print(f"{name}: cellseg {scores[name]:.6f}, traccuracy {value:.6f}")
        else:
            print(f"{TRACCURACY} could not be run: {told}")
        result("ctc_metrics_difference", worst, "<=1e-14", worst <= 1e-14)
        one, all_cores = one_processor / processor, all_wall / wall
        result("ctc_metrics_speedup_one_process", one, ">=20", one >= 20)
        result("ctc_metrics_speedup_all_cores", all_cores, ">=20", all_cores >= 20)
    finish()


if __name__ == "__main__":
    main()
