"""Masks of 300 boxes of one image: in chunks, one at a time, and by segment-anything's own decoder.

The prompt encoder and the mask decoder are those of ViT-B at 1024 × 1024 with random weights, and
the embedding is random, as no image encoder is needed for it. All three answer the same boxes, and
their masks are compared; the decoder's last layer is sharpened, so that masks have outlines. On a
CPU, times are CPU seconds of one thread, because other work may run on the machine, and each
implementation is measured in turn, several times. Memory is the peak above what was there before,
in a process of its own for each number of boxes. ``--quick`` is a trial with 24 boxes.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from torch import Tensor

from _table import finish, result, table
from cellseg.torch.frames import Frame
from cellseg.torch.sam.architecture import Architecture
from cellseg.torch.weights import seeded
from cellseg_cellsam.boxes import boxes_at_once, decode_boxes, masks_of
from cellseg_cellsam.model import CellSam
from cellseg_cellsam.sizes import DetectorSizes

BOXES = 300
MORE = 4
"""Times as many boxes, to see whether the memory grows with them."""
FOR_PEER = 24
"""Boxes on which a CPU compares with the peer, which takes twice as long."""
RUNS = 3
PEER = 64
"""Boxes that segment-anything is given at once, as its own tools do with points."""

Answers = Iterator[tuple[Tensor, Tensor]]


def made(device: str) -> tuple[CellSam, Tensor]:
    """A model with the decoder of ViT-B, and an embedding."""
    with seeded(0):
        sizes = replace(Architecture.named("vit_b"), unetr=None, depth=1, global_attention=(0,))
        model = CellSam(sizes, DetectorSizes.named("tiny")).eval().requires_grad_(False)
        embedding = torch.randn(1, sizes.out_channels, sizes.grid, sizes.grid)
    for network in model.sam.mask_decoder.output_hypernetworks_mlps:
        network.layers[-1].weight.mul_(100)
    return model.to(device), embedding.to(device)


def boxes_of(count: int, side: int, device: str) -> Tensor:
    """Cells of 20 to 80 pixels, anywhere."""
    with seeded(1):
        corners, sides = torch.rand(count, 2) * (side - 80), 20 + torch.rand(count, 2) * 60
    return torch.cat([corners, corners + sides], 1).to(device)


def peer(model: CellSam, embedding: Tensor, boxes: Tensor, chunk: int) -> Answers:
    """segment-anything's own decoder, as its predictor calls it."""
    sam = model.sam
    for part in boxes.split(chunk):
        sparse, dense = sam.prompt_encoder(points=None, boxes=part, masks=None)
        logits, iou = sam.mask_decoder(
            image_embeddings=embedding,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        yield logits[:, 0], iou[:, 0]


def packed(answers: Answers) -> Tensor:
    """All masks, of low resolution, as bools on the CPU."""
    return torch.cat([(logits > 0).cpu() for logits, _ in answers])


def agreement(one: Tensor, other: Tensor) -> float:
    """The lowest IoU of two masks of a box; of empty ones 1."""
    both, any_ = ((one & other).sum((1, 2)), (one | other).sum((1, 2)))
    return float(torch.where(any_ > 0, both / any_.clamp(min=1), 1.0).min())


def seconds(function: Callable[[], object], device: str) -> float:
    clock = time.perf_counter if device == "cuda" else time.process_time
    start = clock()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


Ways = dict[str, Callable[[], Tensor]]


def compared(ways: Ways, count: int, device: str) -> tuple[list[float], float]:
    """Median seconds of each, by turns, and the lowest IoU of their masks with the first's."""
    masks: dict[str, Tensor] = {}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(RUNS + (device == "cuda")):
        for name, way in ways.items():
            taken = seconds(lambda way=way, name=name: masks.update({name: way()}), device)
            if device == "cpu" or number:  # the first one warms a GPU up
                times[name].append(taken)
    medians = [statistics.median(each) for each in times.values()]
    first = next(iter(masks.values()))
    agree = [agreement(one, first) for one in masks.values()]
    table(
        [
            [f"{count} boxes on {device}", "seconds", "ms per box", "lowest IoU with the first"],
            *([name, taken, 1000 * taken / count, same]
              for name, taken, same in zip(ways, medians, agree, strict=True)),
        ]
    )  # fmt: skip
    return medians, min(agree)


@torch.inference_mode()
def compare(device: str, count: int) -> None:
    model, embedding = made(device)
    every = boxes_of(count, model.architecture.side, device)
    chunk = boxes_at_once(model.architecture, torch.device(device), None)

    def ours(boxes: Tensor, chunk: int) -> Callable[[], Tensor]:
        return lambda: packed(decode_boxes(model, embedding, boxes, chunk))

    def theirs(boxes: Tensor, chunk: int) -> Callable[[], Tensor]:
        return lambda: packed(peer(model, embedding, boxes, chunk))

    (chunked, single), agree = compared(
        {f"ours, {chunk} at a time": ours(every, chunk), "ours, one at a time": ours(every, 1)},
        count,
        device,
    )
    some = every if device == "cuda" else every[:FOR_PEER]
    (our, peers, peers_single), same = compared(
        {
            f"ours, {chunk} at a time": ours(some, chunk),
            f"segment-anything, {PEER} at a time": theirs(some, PEER),
            "segment-anything, one at a time": theirs(some, 1),
        },
        len(some),
        device,
    )
    same = min(same, agree)
    result(f"{device}_same_masks_lowest_iou", same, ">=0.999", same >= 0.999)
    if device == "cpu":
        result("cpu_chunked_over_single", chunked / single, "<=1.0", chunked <= single)
        best = our / min(peers, peers_single)
        result("cpu_chunked_over_peer", best, "<=1.0", best <= 1)
    else:
        result("cuda_single_over_chunked", single / chunked, ">=5", single >= 5 * chunked)
        result("cuda_peer_single_over_chunked", peers_single / our, ">=5", peers_single >= 5 * our)


def status(name: str) -> float:
    """A line of what Linux says of this process, in MiB."""
    text = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{name}:\s+(\d+) kB", text)[0]) / 1024


@torch.inference_mode()
def measure(count: int) -> None:
    """In a process of its own: print the peak of memory of all masks, cut to their boxes."""
    torch.set_num_threads(1)
    model, embedding = made("cpu")
    side = model.architecture.side
    frame = Frame.fit((side // 4, side // 4), side)  # random masks are as large as the image
    boxes = boxes_of(count, side, "cpu")
    scores = torch.linspace(1, 0, count)
    chunk = boxes_at_once(model.architecture, torch.device("cpu"), None)
    masks_of(model, embedding, (scores[:chunk], boxes[:chunk]), frame, (0.5,), chunk)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = status("VmRSS")
    (found,), _ = masks_of(model, embedding, (scores, boxes), frame, (0.5,), chunk)
    kept = sum(one.mask.nbytes for one in found if one is not None) / 2**20
    print(f"{status('VmHWM') - before} {kept}")


def memory(count: int) -> None:
    lines: list[list[object]] = [["boxes", "peak above before (MiB)", "of it the masks (MiB)"]]
    extra = []
    for number in (count, MORE * count):
        command = [sys.executable, __file__, "--measure", str(number)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        peak, kept = (float(x) for x in done.stdout.split()[-2:])
        extra.append(peak - kept)
        lines.append([number, peak, kept])
    table(lines)
    whole = 4 * 256 * 256 * MORE * count / 2**20
    print(f"the logits of all {MORE * count} masks together would take {whole:.0f} MiB\n")
    growth = extra[1] - extra[0]
    result("memory_growth_mib", growth, "<=32", growth <= 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="24 boxes")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return
    torch.set_num_threads(1)
    count = 24 if arguments.quick else BOXES
    print(f"{count} boxes, decoder of ViT-B at 1024 x 1024 with random weights; CPU seconds of one")
    print(f"thread, medians of {RUNS} runs\n")
    compare("cpu", count)
    memory(count)
    if torch.cuda.is_available():
        compare("cuda", count)
    else:
        print("\nThere is no CUDA here: nothing was measured on a GPU.")
    finish()


if __name__ == "__main__":
    main()
