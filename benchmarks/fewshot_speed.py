"""What fewshot costs with Segment Anything's ViT-B (random weights) on one image of 1024 × 1024.

Features of 400 candidates, discs of 8 to 40 pixels: the dense way, which encodes the image once and
pools under all of them, against the crop way, which encodes a crop around each; 20 crops are
measured, the others extrapolated. Pooling is shown for masks of the image, which the backend uses,
and for logits as the decoder gives them.

Then all that comes after the encoder, for 1024, 4096 and 16384 points. Decoding is extrapolated
from some measured batches. What follows is measured on as many answers: those of 8 × 8 points, made
discs of the decoder's own noise, are shifted to the points of the grid between them, so that near
points have near-copies for answers. Two ways: with suppression by boxes before anything is pooled,
as in automatic mask generation; and without, as the backend does it, which pools all answers and
suppresses them by their masks and their similarity.

Times are medians of several runs, but for 16384 points; CPU seconds of one thread, because other
work may run on the machine, or wall seconds on a GPU. ``--quick`` is a trial with 2 crops and 1024
points.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from _table import finish, result, table
from amg import DATA, IMAGE, SIDE, image
from cellseg.painting import paint
from cellseg.torch.mask_generation import point_grid, propose_masks
from cellseg.torch.mask_pooling import pool_logits
from cellseg.torch.masks import FoundMask, ranked, suppress_masks
from cellseg.torch.sam.architecture import Architecture
from cellseg.torch.sam.model import SegmentAnything
from cellseg_fewshot.crop import describe_crops
from cellseg_fewshot.encoders.asked import AskedView, Asking
from cellseg_fewshot.encoders.sam import SamEncoder

CANDIDATES, CROPS, AT_ONCE = 400, 20, 4
OCCUPANCY = 0.2
SIDES = {32: 3, 64: 3, 128: 1}
"""Points per side, and how often what follows the decoder is measured."""
FEW = 8
"""Points per side that are really answered."""
IOU, STABILITY, BOXES = 0.8, 0.92, 0.7
MASKS, CONTAINED = 0.5, 0.8
CUDA = torch.cuda.is_available()
STEPS = ("scores", "masks", "pooling", "mask NMS", "painting")


def now() -> float:
    if CUDA:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class Times(dict[str, float]):
    """Seconds of each step."""

    @contextmanager
    def of(self, step: str) -> Iterator[None]:
        start = now()
        yield
        self[step] = self.get(step, 0.0) + now() - start


def encoder() -> SamEncoder:
    torch.manual_seed(0)
    model = SegmentAnything(replace(Architecture.named("vit_b"), unetr=None))
    device = torch.device("cuda" if CUDA else "cpu")
    asking = Asking(IOU, STABILITY, 64 if CUDA else AT_ONCE)
    return SamEncoder(
        model, name="vit_b", origin=None, asking=asking, dtype=torch.float32, device=device
    )


def discs(count: int) -> list[FoundMask]:
    random = np.random.default_rng(0)
    found = []
    for radius in random.integers(4, 21, count):
        at = np.arange(-radius, radius + 1)
        mask = at[:, None] ** 2 + at**2 <= radius**2
        y, x = random.integers(0, SIDE - len(at), 2)
        found.append(FoundMask(mask, (int(y), int(x)), 1.0))
    return found


def features(
    sam: SamEncoder, plane: NDArray[np.float32], crops: int, runs: int
) -> tuple[AskedView, float, float]:
    """A view of the plane, and the seconds of the two ways."""
    masks = discs(CANDIDATES)
    seen, pooled, small, single = [], [], [], []
    for _ in range(runs):
        start = now()
        view = sam.view([plane])[0]
        seen.append(now() - start)
    view.describe(masks)
    logits = as_logits(masks, 4 * view.features.values.shape[-1]).to(sam.device)
    for _ in range(5):
        start = now()
        view.describe(masks)
        pooled.append(now() - start)
        start = now()
        pool_logits(logits, view.features.values, view.frame)
        small.append(now() - start)
    for begin in range(0, crops, AT_ONCE):
        some = masks[begin : min(begin + AT_ONCE, crops)]
        start = now()
        describe_crops(sam, plane, some, OCCUPANCY, AT_ONCE)
        single.append((now() - start) / len(some))
    encode, crop = statistics.median(seen), statistics.median(single)
    pool, less = statistics.median(pooled), statistics.median(small)
    table([
        ["features of 400 candidates", "encoder calls", "encode (s)", "pool (s)", "whole (s)"],
        ["dense, masks", 1, encode, pool, encode + pool],
        ["dense, logits", 1, encode, less, encode + less],
        ["crop, one", 1, "", "", crop],
        [f"crop, from {crops} measured", CANDIDATES, "", "", crop * CANDIDATES],
    ])  # fmt: skip
    return view, encode + pool, crop * CANDIDATES


def as_logits(masks: Sequence[FoundMask], samples: int) -> Tensor:
    whole = torch.full((len(masks), SIDE, SIDE), -1.0)
    for plane, one in zip(whole, masks, strict=True):
        (y, x), (height, width) = one.corner, one.mask.shape
        plane[y : y + height, x : x + width][torch.from_numpy(one.mask)] = 1.0
    return whole[:, :: SIDE // samples, :: SIDE // samples].contiguous()


@torch.no_grad()
def answers(view: AskedView) -> tuple[Tensor, Tensor, float]:
    """Logits ``(n, 3, m, m)`` and predicted IoU ``(n, 3)`` of a coarse grid of points, made discs;
    and the seconds for a point."""
    points = point_grid(FEW) * SIDE
    found, seconds = [], []
    view.decode(points[:AT_ONCE])
    for some in points.split(view.asking.points_per_batch):
        start = now()
        found.append(view.decode(some))
        seconds.append((now() - start) / len(some))
    logits, ious = (torch.cat(x) for x in zip(*found, strict=True))
    samples = logits.shape[-1]
    spread = (ious - ious.mean(0)) / ious.std(0)
    rough = nn.functional.avg_pool2d(logits, 9, 1, 4, count_include_pad=False)
    rough = (rough - rough.mean((2, 3), keepdim=True)) / rough.std((2, 3), keepdim=True)
    x, y = (points.to(logits) * samples / SIDE).T[:, :, None, None, None]
    at = torch.arange(samples, device=logits.device)
    away = ((at - x) ** 2 + (at[:, None] - y) ** 2).sqrt()
    radii = torch.tensor([4.0, 9.0, 20.0], device=logits.device) * (0.1 * spread).exp()
    sharp = 8 * (0.5 * spread.roll(1, 1)).exp()
    shaped = (radii[:, :, None, None] - away + 0.5 * rough) * sharp[:, :, None, None]
    return shaped.clamp(-30, 30), IOU + 0.1 * spread, statistics.median(seconds)


@torch.no_grad()
def afterwards(
    view: AskedView, logits: Tensor, ious: Tensor, per_side: int
) -> dict[str, tuple[Times, int, int]]:
    """Both ways, from the decoder's answers to labels: seconds, candidates and objects."""
    shared, step = Times(), logits.shape[-1] // per_side
    between = per_side // FEW
    shifts = iter([(y * step, x * step) for y in range(between) for x in range(between)])

    def decode(points: Tensor) -> tuple[Tensor, Tensor]:
        with shared.of("shifting"):
            return torch.roll(logits, next(shifts), (2, 3)), ious

    points = torch.zeros(per_side**2, 2)
    with shared.of("scores"):
        proposals = propose_masks(
            decode, view.frame, points, points_per_batch=FEW**2, pred_iou_thresh=IOU,
            stability_score_thresh=STABILITY,
        )  # fmt: skip
    told = {}
    for way, boxes in (("boxes first", BOXES), ("as fewshot", None)):
        times = Times(scores=shared["scores"] - shared["shifting"])
        with times.of("masks"):
            masks = proposals.select(box_nms_thresh=boxes)
        with times.of("pooling"):
            vectors = nn.functional.normalize(view.describe(masks))
        like = vectors @ nn.functional.normalize(vectors[:10].mean(0), dim=0)
        scored = [
            replace(mask, score=score)
            for mask, score in zip(masks, like.clamp(0, 1).tolist(), strict=True)
        ]
        with times.of("mask NMS"):
            best = [scored[i] for i in ranked(scored)]
            best = [best[i] for i in suppress_masks(best, MASKS, CONTAINED)]
        with times.of("painting"):
            labels = paint(
                [one.mask[None] for one in best],
                [(0, *one.corner) for one in best],
                [one.score for one in best],
                (1, SIDE, SIDE),
            )
        told[way] = times, len(masks), len(labels.scores)
    return told


def after(view: AskedView, sides: Mapping[int, int]) -> None:
    """What decoding and all that follows cost, by points per side and how often to measure it."""
    logits, ious, decode = answers(view)
    lines: list[list[object]] = [
        ["points", "way", "decode (s)", *(f"{step} (s)" for step in STEPS), "after (s)",
         "candidates", "objects", "runs"]
    ]  # fmt: skip
    for per_side, times in sides.items():
        told = [afterwards(view, logits, ious, per_side) for _ in range(times)]
        for way in told[0]:
            each = [statistics.median(one[way][0][step] for one in told) for step in STEPS]
            after = statistics.median(sum(one[way][0].values()) for one in told)
            lines.append(
                [per_side**2, way, decode * per_side**2, *each, after, *told[0][way][1:], times]
            )
    print(f"Decoding is extrapolated from {FEW**2} points, {view.asking.points_per_batch} at once.")
    table(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 crops, 1024 points, one run")
    quick = parser.parse_args().quick
    if not (DATA / IMAGE).is_file():
        sys.exit(f"needs the image {DATA / IMAGE}")
    torch.set_num_threads(1)
    crops, runs, sides = (2, 1, {32: 1}) if quick else (CROPS, 3, SIDES)
    where = torch.cuda.get_device_name() if CUDA else "one thread of a CPU, CPU seconds"
    print(f"{IMAGE} at {SIDE} x {SIDE}, ViT-B with random weights; {where}\n")
    sam = encoder()
    plane = (image()[None, :, :, 0] / 255).astype(np.float32)
    view, dense, crop = features(sam, plane, crops, runs)
    after(view, sides)
    result("feature_speedup", crop / dense, ">=100", crop / dense >= 100)
    finish()


if __name__ == "__main__":
    main()
