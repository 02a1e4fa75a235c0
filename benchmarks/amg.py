"""Automatic mask generation against segment-anything's and micro-sam's, with ViT-B at 1024 × 1024.

The weights are random, so the decoder's logits are noise of one size: ``shaped`` makes of it discs
whose middles, outlines, sharpness and predicted IoU depend on it, once for all three, and all three
have the same thresholds. Encoding and decoding are timed apart; what is done with the decoder's
answers is measured in a process of its own for each, which reads them from a file: the time without
the reading, and the peak of memory above what was there before, which includes the answers to 64
points. The peers return run-length codes, their cheapest output. Times are CPU seconds of one
thread, because other work may run on the machine. ``--quick`` is a trial with 8 points per side.
With CUDA also: the whole there, against segment-anything.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.utils.amg import rle_to_mask
from torch import Tensor, nn

from _table import finish, result, table
from cellseg.torch.attention import fold_attention
from cellseg.torch.frames import Frame
from cellseg.torch.mask_generation import generate_masks, point_grid
from cellseg.torch.masks import FoundMask

DATA = Path(__file__).parents[1] / "../shared/data"
IMAGE = "usiigaci_phase/images/set01.tif"
SIDE, SAMPLES = 1024, 256
BATCH = 64
"""Points that the peers answer at once by default, and ours on a GPU."""
FEW = 4
"""Points that ours answers at once on a CPU."""
THRESHOLDS = {"pred_iou_thresh": 0.8, "stability_score_thresh": 0.92, "box_nms_thresh": 0.7}
PEERS = ("segment-anything", "micro-sam")


def image() -> NDArray[np.uint8]:
    """``(1024, 1024, 3)``: a phase contrast image, scaled to the square."""
    import cv2

    pixels = tifffile.imread(DATA / IMAGE).astype(np.float32)
    low, high = np.percentile(pixels, (1, 99.8))
    pixels = cv2.resize((pixels - low) / (high - low), (SIDE, SIDE)).clip(0, 1)
    return np.repeat((pixels * 255).astype(np.uint8)[:, :, None], 3, 2)


def model() -> Sam:
    torch.manual_seed(0)
    return sam_model_registry["vit_b"]().eval()


@torch.no_grad()
def answers(sam: Sam, embedding: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Three masks for each point ``(n, 2)``: logits ``(n, 3, m, m)``, predicted IoU ``(n, 3)``."""
    points = points.to(embedding.device)
    labels = torch.ones(len(points), 1, device=points.device)
    sparse, dense = sam.prompt_encoder(points=(points[:, None], labels), boxes=None, masks=None)
    logits, ious = sam.mask_decoder(
        image_embeddings=embedding,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )
    return logits, ious


def shaped(points: Tensor, logits: Tensor, ious: Tensor) -> tuple[Tensor, Tensor]:
    """Noise made discs of three sizes, which several points have in common, with some noise left.

    The predicted IoU is stretched, so that about half of the discs are above the threshold.
    """
    # Mean and deviation of what the random weights predict, and of their logits.
    spread = (ious - torch.tensor([0.0129, 0.0271, 0.0458], device=ious.device)) / 0.02
    rough = nn.functional.avg_pool2d(logits, 9, 1, 4, count_include_pad=False)
    rough = (rough - rough.mean((2, 3), keepdim=True)) / rough.std((2, 3), keepdim=True)
    places = points.to(logits) * SAMPLES / SIDE
    x, y = ((places / 20).round() * 20).T[:, :, None, None, None]
    at = torch.arange(SAMPLES, device=logits.device)
    away = ((at - x) ** 2 + (at[:, None] - y) ** 2).sqrt()
    radii = torch.tensor([4.0, 9.0, 25.0], device=logits.device) * (0.1 * spread).exp()
    sharp = 8 * (0.5 * spread.roll(1, 1)).exp()
    discs = (radii[:, :, None, None] - away + 0.5 * rough) * sharp[:, :, None, None]
    return discs.clamp(-30, 30), 0.8 + 0.1 * spread


class Replay(nn.Module):
    """A mask decoder that reads its answers, in the order of the grid, from a file."""

    def __init__(self, folder: Path, per_side: int) -> None:
        super().__init__()
        self.file = folder / f"logits_{per_side}.npy"
        self.ious = torch.from_numpy(np.load(folder / f"ious_{per_side}.npy"))
        self.begin = 0
        self.seconds = 0.0

    def read(self, count: int) -> tuple[Tensor, Tensor]:
        start = time.process_time()
        part = slice(self.begin, self.begin + count)
        self.begin += count
        # Opened each time, so that no page of the file stays in this process.
        logits = np.array(np.load(self.file, mmap_mode="r")[part])
        found = torch.from_numpy(logits), self.ious[part].clone()
        self.seconds += time.process_time() - start
        return found

    def forward(self, *, sparse_prompt_embeddings: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
        return self.read(len(sparse_prompt_embeddings))


class Points(nn.Module):
    """A prompt encoder that hands on the points."""

    def get_dense_pe(self) -> Tensor:
        return torch.zeros(1)

    def forward(self, points: Any, boxes: Any, masks: Any) -> tuple[Tensor, Tensor]:
        return points[0], torch.zeros(1)


class Square(nn.Module):
    """What is asked of an image encoder that has nothing to do."""

    img_size = SIDE


class Prepared(SamPredictor):
    """A predictor whose image is encoded already."""

    def set_image(self, image: NDArray[np.uint8], image_format: str = "RGB") -> None:
        self.original_size = self.input_size = (SIDE, SIDE)
        self.features, self.is_image_set = torch.zeros(1), True


def found_by(name: str, replay: Replay, per_side: int) -> list[Any]:
    """All that comes after the decoder: masks, or records with run-length codes."""
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    if name == "ours":
        frame = Frame.fit((SIDE, SIDE), SIDE)
        return generate_masks(
            lambda points: replay.read(len(points)), frame, points_per_side=per_side,
            points_per_batch=BATCH, **THRESHOLDS,
        )  # fmt: skip
    predictor = Prepared(Sam(Square(), Points(), replay))
    if name == "segment-anything":
        generator = SamAutomaticMaskGenerator(
            predictor.model, per_side, BATCH, output_mode="uncompressed_rle", **THRESHOLDS
        )
        generator.predictor = predictor
        return generator.generate(picture)
    from micro_sam.instance_segmentation import AutomaticMaskGenerator

    sizes = {"input_size": (SIDE, SIDE), "original_size": (SIDE, SIDE)}
    other = AutomaticMaskGenerator(predictor, per_side, BATCH)
    other.initialize(picture, image_embeddings={"features": np.zeros((1, 1, 1, 1)), **sizes})
    return other.generate(**THRESHOLDS, output_mode="rle")


def measure(name: str, per_side: int, folder: Path) -> None:
    """In a process of its own: print the figures of one implementation, and write its masks."""
    torch.set_num_threads(1)
    found_by(name, Replay(folder, per_side), 2)  # loads and starts all that it needs
    replay = Replay(folder, per_side)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, start = _status("VmRSS"), (time.process_time(), time.perf_counter())
    found = found_by(name, replay, per_side)
    cpu, wall = time.process_time() - start[0] - replay.seconds, time.perf_counter() - start[1]
    told = {"cpu": cpu, "wall": wall, "extra": _status("VmHWM") - before, "masks": len(found)}
    masks = np.zeros((len(found), SIDE, SIDE // 8), np.uint8)
    for packed, one in zip(masks, found, strict=True):
        packed[:] = np.packbits(_whole(one), 1)
    np.save(folder / f"masks_{name}_{per_side}.npy", masks)
    print(json.dumps(told))


def _whole(one: FoundMask | dict[str, Any]) -> NDArray[np.bool_]:
    if not isinstance(one, FoundMask):
        return rle_to_mask(one["segmentation"])
    mask = np.zeros((SIDE, SIDE), bool)
    (y, x), (height, width) = one.corner, one.mask.shape
    mask[y : y + height, x : x + width] = one.mask
    return mask


def _status(name: str) -> float:
    """A line of what Linux says of this process, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{name}:\s+(\d+) kB", status)[0]) / 1024


def same(folder: Path, peer: str, per_side: int) -> float:
    """The share of the peer's masks that are among ours, of the larger of the two numbers."""
    theirs, ours = (np.load(folder / f"masks_{x}_{per_side}.npy") for x in (peer, "ours"))
    areas, others = (np.bitwise_count(x).sum((1, 2), dtype=int) for x in (theirs, ours))
    free = np.ones(len(ours), bool)
    for mask, area in zip(theirs, areas, strict=True):
        for index in np.flatnonzero(free & (abs(others - area) <= 0.01 * area)):
            shared = int(np.bitwise_count(mask & ours[index]).sum(dtype=int))
            if shared >= 0.99 * (area + others[index] - shared):
                free[index] = False
                break
    return float(np.count_nonzero(~free) / max(len(ours), len(theirs)))


def encoding(picture: NDArray[np.uint8], runs: int) -> tuple[dict[str, float], Tensor]:
    """Seconds of the encoders, by turns; and the embedding."""
    predictors = {"peers": SamPredictor(model()), "ours": SamPredictor(model())}
    fold_attention(predictors["ours"].model.image_encoder)
    seconds: dict[str, list[float]] = {name: [] for name in predictors}
    for _ in range(runs):
        for name, predictor in predictors.items():
            start = time.process_time()
            predictor.set_image(picture)
            seconds[name].append(time.process_time() - start)
    one, other = (x.features for x in predictors.values())
    difference = float((one - other).abs().max() / one.abs().max())
    print(f"largest difference of the embeddings: {difference:.1e} of the largest value")
    return {name: min(taken) for name, taken in seconds.items()}, one


def decoding(embedding: Tensor, per_sides: list[int], folder: Path) -> dict[str, float]:
    """Seconds of the decoder for one point; the answers to all points go to the folder."""
    sam = model()
    answers(sam, embedding, point_grid(2) * SIDE)
    seconds: dict[str, list[float]] = {"peers": [], "ours": []}
    for per_side in per_sides:
        every: list[list[Tensor]] = [[], []]
        for number, points in enumerate((point_grid(per_side) * SIDE).split(BATCH)):
            start = time.process_time()
            found = answers(sam, embedding, points)
            seconds["peers"].append((time.process_time() - start) / len(points))
            if number % 4 == 0:
                start = time.process_time()
                for few in points.split(FEW):
                    answers(sam, embedding, few)
                seconds["ours"].append((time.process_time() - start) / len(points))
            for part, made in zip(every, shaped(points, *found), strict=True):
                part.append(made)
        for name, parts in zip(("logits", "ious"), every, strict=True):
            np.save(folder / f"{name}_{per_side}.npy", torch.cat(parts).numpy())
    return {name: statistics.mean(taken) for name, taken in seconds.items()}


def on_cpu(per_sides: list[int], runs: int, folder: Path) -> None:
    torch.set_num_threads(1)
    print(f"{IMAGE} at {SIDE} x {SIDE}, ViT-B with random weights, discs made of its noise;")
    print(f"thresholds: {', '.join(f'{name} {value}' for name, value in THRESHOLDS.items())}\n")
    encode, embedding = encoding(image(), runs)
    decode = decoding(embedding, per_sides, folder)
    lines: list[list[object]] = [
        ["points", "implementation", "encode (s)", "decode (s)", "after (s)", "whole (s)",
         "after, wall (s)", "extra (MiB)", "masks"]
    ]  # fmt: skip
    told: dict[tuple[str, int], dict[str, float]] = {}
    whole: dict[tuple[str, int], float] = {}

    def line(name: str, per_side: int, after: float, *more: object) -> None:
        who = "ours" if name == "ours" else "peers"
        parts = encode[who], decode[who] * per_side**2, after
        whole[name, per_side] = sum(parts)
        lines.append([f"{per_side}²", name, *parts, sum(parts), *more])

    for per_side in per_sides:
        for name in (*PEERS, "ours"):
            command = [sys.executable, __file__, "--measure", name, str(per_side), str(folder)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            one = told[name, per_side] = json.loads(done.stdout.splitlines()[-1])
            line(name, per_side, one["cpu"], one["wall"], one["extra"], int(one["masks"]))
    most = per_sides[-1]
    for per_side in (64, 128):
        for name in (*PEERS, "ours"):
            after = told[name, most]["cpu"] * (per_side / most) ** 2
            line(name, per_side, after, "extrapolated", "", "")
    table(lines)

    for per_side in per_sides:
        ours = told["ours", per_side]
        for name in PEERS:
            peer, mark = told[name, per_side], f"{name.replace('-', '_')}_{per_side}"
            for what, value, target in (
                ("same_masks", same(folder, name, per_side), 1),
                ("after_decoder_speedup", peer["cpu"] / ours["cpu"], 20),
                ("memory_ratio", peer["extra"] / ours["extra"], 5),
                ("whole_speedup", whole[name, per_side] / whole["ours", per_side], 1),
            ):
                result(f"{what}_{mark}", value, f">={target}", value >= target)


class Noted(nn.Module):
    """A prompt encoder that remembers its points, for ``Shaped``."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.points = encoder, torch.zeros(0, 2)

    def get_dense_pe(self) -> Tensor:
        return self.encoder.get_dense_pe()

    def forward(self, points: Any, boxes: Any, masks: Any) -> Any:
        self.points = points[0][:, 0]
        return self.encoder(points=points, boxes=boxes, masks=masks)


class Shaped(nn.Module):
    """A mask decoder with ``shaped`` answers."""

    def __init__(self, decoder: nn.Module, noted: Noted) -> None:
        super().__init__()
        self.decoder, self.noted = decoder, noted

    def forward(self, **given: Any) -> tuple[Tensor, Tensor]:
        return shaped(self.noted.points, *self.decoder(**given))


def on_gpu(device: str, per_sides: list[int], runs: int = 5) -> None:
    """The whole, from the image to the masks, in float32: medians of wall seconds."""
    picture, frame = image(), Frame.fit((SIDE, SIDE), SIDE)
    sams = [model().to(device) for _ in range(2)]
    fold_attention(sams[1].image_encoder)
    for sam in sams:
        sam.prompt_encoder = Noted(sam.prompt_encoder)
        sam.mask_decoder = Shaped(sam.mask_decoder, sam.prompt_encoder)
    predictor = SamPredictor(sams[1])

    def ours(per_side: int) -> list[Any]:
        predictor.set_image(picture)
        return generate_masks(
            lambda points: answers(sams[1], predictor.features, points), frame,
            points_per_side=per_side, points_per_batch=BATCH, **THRESHOLDS,
        )  # fmt: skip

    def peer(per_side: int) -> list[Any]:
        return SamAutomaticMaskGenerator(
            sams[0], per_side, BATCH, output_mode="uncompressed_rle", **THRESHOLDS
        ).generate(picture)

    lines: list[list[object]] = [["points", "segment-anything (s)", "ours (s)", "masks", "ours"]]
    for per_side in per_sides:
        (slow, theirs), (fast, found) = (_median(partial(f, per_side), runs) for f in (peer, ours))
        lines.append([f"{per_side}²", slow, fast, theirs, found])
        result(f"gpu_whole_speedup_{per_side}", slow / fast, ">=3", slow / fast >= 3)
    print(f"\n{device}, the whole, medians of {runs} runs")
    table(lines)


def _median(function: Callable[[], list[Any]], runs: int) -> tuple[float, int]:
    """Wall seconds, after a run that warms up; the masks are on the CPU when it returns."""
    count, seconds = len(function()), []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="8 points per side, one encoding")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        name, per_side, folder = arguments.measure
        measure(name, int(per_side), Path(folder))
        return
    if not (DATA / IMAGE).is_file():
        sys.exit(f"needs the image {DATA / IMAGE}")
    per_sides = [8] if arguments.quick else [16, 32]
    with tempfile.TemporaryDirectory() as made:
        on_cpu(per_sides, 1 if arguments.quick else 2, Path(made))
    if torch.cuda.is_available():
        on_gpu("cuda", [8] if arguments.quick else [16, 32, 64, 128])
    else:
        print("\nThere is no CUDA here: the whole on a GPU was not measured.")
    finish()


if __name__ == "__main__":
    main()
