"""The discriminative loss, forward and backward, against a loop over objects and plain autograd.

Embeddings of 16 × 64 × 128 × 128 in float32, one thread; a process of its own for each version and
number of objects. Ratios are those of CPU time, because other work may run on the machine. Extra
memory is the peak above what was there before the first call: the gradient (as large as the
embeddings) is part of it. Differences are those to the same formulas in float64, by another loop.
With CUDA also: the Triton kernels against the torch version there, and against copying the bytes
that the kernels must move.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from _table import finish, result, table
from cellseg_vista.losses import Margins, discriminative, discriminative_loss

CHANNELS, SIZE = 16, (64, 128, 128)
COUNTS = (50, 200, 1000)
DELTA_V, DELTA_D = 0.5, 1.5
MARGINS = Margins(DELTA_V, DELTA_D)


def inputs(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random embeddings ``(e, z, y, x)``; Voronoi cells less a fifth of the volume; weights."""
    rng = np.random.default_rng(count)
    seeds = np.zeros(SIZE, np.int64)
    seeds.flat[rng.choice(seeds.size, count, replace=False)] = np.arange(1, count + 1)
    distance, nearest = ndimage.distance_transform_edt(seeds == 0, return_indices=True)
    labels = np.where(distance < np.quantile(distance, 0.8), seeds[tuple(nearest)], 0)
    embedding = rng.standard_normal((CHANNELS, *SIZE), np.float32)
    weights = rng.uniform(1, 10, SIZE).astype(np.float32)
    return torch.from_numpy(embedding), torch.from_numpy(labels), torch.from_numpy(weights)


def loop(embedding: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """One mask for each object, as such losses are usually written."""
    means, pulls = [], []
    for number in labels.unique().tolist():
        if number:
            inside = labels == number
            mean, pull = _object(embedding[:, inside], weights[inside])
            means.append(mean)
            pulls.append(pull)
    return _total(means, pulls)


def sorted_loop(embedding: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """One slice of the sorted voxels for each object, in float64: what the others should give."""
    order = labels.flatten().argsort(stable=True)
    sizes = labels.flatten().bincount().tolist()
    parts = embedding.double().flatten(1)[:, order].split(sizes, 1)
    shares = weights.double().flatten()[order].split(sizes)
    found = [_object(*pair) for pair in list(zip(parts, shares, strict=True))[1:]]
    return _total(*map(list, zip(*found, strict=True)))


def _object(voxels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    share = weights / weights.sum()
    mean = (voxels * share).sum(1)
    over = torch.relu((voxels - mean[:, None]).norm(dim=0) - DELTA_V)
    return mean, (share * over**2).sum()


def _total(means: list[Tensor], pulls: list[Tensor]) -> Tensor:
    mean = torch.stack(means)
    pushes = [
        (torch.relu(2 * DELTA_D - (m - mean[i + 1 :]).norm(dim=1)) ** 2).sum()
        for i, m in enumerate(mean[:-1])
    ]
    pairs = len(mean) * (len(mean) - 1) / 2
    return torch.stack(pulls).mean() + sum(pushes) / pairs + mean.norm(dim=1).mean()


def index_add(embedding: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Without a loop, but with autograd over the voxels."""
    ids, index = labels[labels > 0].unique(return_inverse=True)
    voxels, weights = embedding[:, labels > 0].T, weights[labels > 0]

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(len(ids), *values.shape[1:]).index_add(0, index, values)

    share = weights / total(weights)[index]
    mean = total(voxels * share[:, None])
    over = torch.relu((voxels - mean[index]).norm(dim=1) - DELTA_V)
    one, other = torch.triu_indices(len(ids), len(ids), 1)
    push = torch.relu(2 * DELTA_D - (mean[one] - mean[other]).norm(dim=1)) ** 2
    return total(share * over**2).mean() + push.mean() + mean.norm(dim=1).mean()


def ours(embedding: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    terms = discriminative_loss(embedding[None], labels[None], weights[None], MARGINS)
    return terms.pull + terms.push + terms.norm


VERSIONS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "loop": (loop, 1),
    "index_add": (index_add, 5),
    "ours": (ours, 9),
}


def measure(name: str, count: int, folder: Path) -> None:
    """In a process of its own: print the figures of a version, and write its gradient."""
    torch.set_num_threads(1)
    function, runs = VERSIONS[name]
    embedding, labels, weights = inputs(count)
    small = embedding[:, :4].clone().requires_grad_()
    function(small, labels[:4], weights[:4]).backward()  # loads and starts all that it needs
    embedding.requires_grad_()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status("VmRSS")
    cpu, wall = [], []
    for run in range(runs):
        embedding.grad = None
        start = time.process_time(), time.perf_counter()
        value = function(embedding, labels, weights)
        value.backward()
        cpu.append(time.process_time() - start[0])
        wall.append(time.perf_counter() - start[1])
        if run == 0:
            extra = _status("VmHWM") - before
    np.save(folder / "gradient.npy", embedding.grad.numpy())
    told = {"value": value.item(), "extra": extra}
    told |= {"cpu": statistics.median(cpu), "wall": statistics.median(wall)}
    print(json.dumps(told))


def _status(name: str) -> float:
    """A line of what Linux says of this process, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{name}:\s+(\d+) kB", status)[0]) / 1024


def on_cpu() -> None:
    lines: list[list[object]] = [
        ["objects", "version", "CPU (s)", "wall (s)", "speedup", "extra (MiB)", "value", "gradient"]
    ]
    found: dict[tuple[str, int], dict[str, float]] = {}
    worst = 0.0
    for count in COUNTS:
        embedding, labels, weights = inputs(count)
        true = sorted_loop(embedding.requires_grad_(), labels, weights)
        true.backward()
        slope = embedding.grad.numpy()
        for name in VERSIONS:
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, __file__, name, str(count), folder]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                told = found[name, count] = json.loads(done.stdout)
                gradient = np.load(Path(folder) / "gradient.npy")
            value = abs(told["value"] / true.item() - 1)
            off = float(np.abs(gradient - slope).max() / np.abs(slope).max())
            if name == "ours":
                worst = max(worst, value, off)
            speedup = found["loop", count]["cpu"] / told["cpu"]
            lines.append(
                [count, name, told["cpu"], told["wall"], speedup, told["extra"], value, off]
            )
    print(f"embeddings {(CHANNELS, *SIZE)} float32, one thread, forward and backward; medians of")
    print(", ".join(f"{runs} ({name})" for name, (_, runs) in VERSIONS.items()), "runs")
    print("value, gradient: largest difference to float64 over the largest number\n")
    table(lines)

    for count, target in ((200, 20), (1000, 50)):
        speedup = found["loop", count]["cpu"] / found["ours", count]["cpu"]
        result(f"speedup_{count}", speedup, f">={target}", speedup >= target)
    growth = found["ours", 1000]["cpu"] / found["ours", 50]["cpu"]
    result("growth_50_to_1000", growth, "<2", growth < 2)
    size = CHANNELS * np.prod(SIZE) * 4 / 2**20
    ratio = max(found["ours", count]["extra"] for count in COUNTS) / size
    result("extra_memory_ratio", ratio, "<2", ratio < 2)
    result("max_difference", worst, "<=1e-05", worst <= 1e-5)


def on_gpu() -> None:
    """Kernels and torch version on the first GPU: the whole loss, forward and backward."""
    if not torch.cuda.is_available():
        print("\nThere is no CUDA here: the speed of the Triton kernels was not measured.")
        return
    from cellseg_vista.losses import blocks, kernels

    lines: list[list[object]] = [["objects", "kernels (ms)", "torch (ms)", "copy of bytes (ms)"]]
    for count in COUNTS:
        given = embedding, _, _ = tuple(x.cuda() for x in inputs(count))
        embedding.requires_grad_()
        times = []
        for work in (kernels, blocks):
            discriminative._work = lambda _, work=work: work
            times.append(_gpu_ms(lambda given=given: ours(*given).backward()))
        # Read thrice and the gradient written; objects and weights each time, slopes twice.
        voxels = embedding[0].numel()
        moved = 4 * embedding.numel() * 4 + (3 * 2 + 2) * voxels * 4
        source = torch.empty(moved // 2, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        lines.append([count, *times, _gpu_ms(lambda s=source, t=target: t.copy_(s))])
    print(f"\n{torch.cuda.get_device_name()}, the whole loss, medians of 20 runs")
    table(lines)


def _gpu_ms(function: Callable[[], object]) -> float:
    times = []
    for _ in range(23):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[3:])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    else:
        os.environ["OMP_NUM_THREADS"] = "1"
        on_cpu()
        on_gpu()
        finish()
