"""What a training step of cellsam2 costs: clips in a batch, cells in a clip, seconds and memory.

Clips of three frames with 10, 40 and 160 cells, one, two and four of them at once; forward,
backward and the step of the optimiser, in a process of its own for each row. The peer is
what CellSAM2 can do: a batch of one, several times (its gradients added). The memory is the peak
above what was there before the first step. Rows with ``recompute`` compute activations again,
16 cells at once. The network is ``nano``, from random weights, on one thread; with
``--model-type`` and ``--device cuda`` any other, without the rows that do not fit.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from _table import finish, result, table
from cellseg.tracks import Lineage, Track
from cellseg_cellsam2.clips import Clip
from cellseg_cellsam2.learner import CellSam2Learner
from cellseg_cellsam2.lora import add_lora, learning
from cellseg_cellsam2.options import CellSam2Options
from cellseg_cellsam2.targets import collated, item_of
from cellseg_cellsam2.weights import make_model

FRAMES, RUNS = 3, 5
CLIPS, CELLS = (1, 2, 4), (10, 40, 160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-type", default="nano")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--gib", type=int, default=16, help="memory that a row may take on a CPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--row", nargs=4, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        clips, cells, recompute, lora = arguments.row
        print(json.dumps(measured(arguments, clips, cells, bool(recompute), bool(lora))))
        return
    wanted = [(clips, cells, 0, 0) for cells in CELLS for clips in CLIPS]
    wanted += [(1, 40, 0, 1), (1, 160, 1, 0), (4, 160, 1, 0)]
    found = {row: in_process(arguments, row) for row in wanted}
    rows: list[list[object]] = [
        ["clips", "cells in each", "learns", "recompute", "s/step", "s/clip", "peak MiB"]
    ]
    for (clips, cells, recompute, lora), figures in found.items():
        seconds, peak = figures or (float("nan"), float("nan"))
        how = ["updates" if lora else "all", "yes" if recompute else "no"]
        rows.append([clips, cells, *how, seconds, seconds / clips, peak])
    table(rows)
    for cells in CELLS:
        ratio = seconds_of(found, 4, cells) / (4 * seconds_of(found, 1, cells))
        result(f"batch4_cost_{cells}", ratio, "<=1.1 (4 batches of one cost 1; ours)", ratio <= 1.1)
    whole, again = (found[1, 160, r, 0] for r in (0, 1))
    if whole and again:
        result("recompute_memory_160", again[1] / whole[1], "none", True)
        result("recompute_time_160", again[0] / whole[0], "none", True)
    finish()


def seconds_of(found: dict[Any, tuple[float, float] | None], clips: int, cells: int) -> float:
    figures = found[clips, cells, 0, 0]
    return figures[0] if figures else float("nan")


def in_process(arguments: argparse.Namespace, row: tuple[int, ...]) -> tuple[float, float] | None:
    """Seconds and MiB of a row; None where the memory does not suffice."""
    command = [sys.executable, "-W", "ignore", __file__, "--row", *map(str, row)]
    for name in ("model_type", "resolution", "device", "gib"):
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{row}: did not fit, or failed (exit code {done.returncode})", flush=True)
        return None
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def measured(
    arguments: argparse.Namespace, clips: int, cells: int, recompute: bool, lora: bool
) -> tuple[float, float]:
    """Median seconds of a step, and its peak of memory in MiB."""
    resource.setrlimit(resource.RLIMIT_DATA, (arguments.gib << 30,) * 2)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    side = arguments.resolution
    options = CellSam2Options(
        model_type=arguments.model_type,
        resolution=side,
        use_lora=lora,
        max_num_objects=cells,
        num_frames=FRAMES,
        recompute=recompute,
        objects_per_batch=16 if recompute else 4 * cells,
    )
    model, _ = make_model(arguments.model_type, side, 0, None, lambda event: None)
    if lora:
        add_lora(model, options.lora_rank, options.lora_alpha, options.lora_dropout)
    learnt = learning(model, use_lora=lora, freeze_encoder=False)
    learner = CellSam2Learner(model, learnt, options, 0).train().to(arguments.device)
    optimiser = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], 1e-5)
    batch = collated([item_of(clip(cells, side, i), side, 4, i) for i in range(clips)])
    batch = {name: tensor.to(arguments.device) for name, tensor in batch.items()}
    start_counting(arguments.device)
    before = memory(arguments.device)
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        terms = learner.training_step(batch)
        optimiser.zero_grad()
        terms["loss"].backward()
        optimiser.step()
        if arguments.device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:]), memory(arguments.device) - before


def clip(cells: int, side: int, seed: int) -> Clip:
    """Discs on a grid, that move by a pixel."""
    rng = np.random.default_rng(seed)
    per_side = int(np.ceil(cells**0.5))
    step = side / per_side
    labels = np.zeros((FRAMES, side, side), np.uint32)
    y, x = np.mgrid[:side, :side]
    for number in range(cells):
        row, column = divmod(number, per_side)
        centre = (np.array([row, column]) + 0.5) * step
        for frame in range(FRAMES):
            inside = np.hypot(y - centre[0] - frame, x - centre[1]) < 0.35 * step
            labels[frame][inside] = number + 1
    images = 0.7 * (labels > 0)[None] + rng.normal(0.1, 0.05, (1, *labels.shape))
    lineage = Lineage.of(Track(i, 0, FRAMES - 1) for i in range(1, cells + 1))
    return Clip(images.astype(np.float32), labels, lineage, 0, f"clip {seed}")


def start_counting(device: str) -> None:
    """The peak counts from here."""
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")
    else:
        torch.cuda.reset_peak_memory_stats()


def memory(device: str) -> float:
    """Peak so far, in MiB."""
    if device != "cpu":
        return float(torch.cuda.max_memory_allocated()) / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


if __name__ == "__main__":
    main()
