"""How well fewshot finds what ten examples show, without training and without published weights.

For each of three collections of real images, ten objects of one image are the examples, and all
objects of the other images are to be found. This is done three times, each time with other examples
from another image. The peer is shown the same examples: template matching finds seeds, a watershed
grows them. ``--encoder`` or ``--checkpoint`` take Segment Anything where its weights are at hand.
``--ablation`` also leaves out one part of the method after the other.

Everything here was also used to develop the method; other parts of these collections would tell
how it does on images that were not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy import ndimage

from _table import finish, result, table
from cellseg.metrics import overlaps, score, tally
from cellseg.outputs.geojson import outlines
from cellseg.plugins import Plugins
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings

DATA = Path(__file__).parents[1] / "../shared/data"
EXAMPLES = 10
DRAWS = 3
THRESHOLDS = (0.3, 0.5)


@dataclass(frozen=True)
class Collection:
    min_size: int = 0
    """Smaller true and predicted objects are not scored: slivers in the ground truth."""
    most: int = 1000
    """Images to score."""


COLLECTIONS = {
    "dsb2018_fluo": Collection(most=20),
    "usiigaci_phase": Collection(min_size=100),
    "dsb2018_brightfield_smear": Collection(),
}
ABLATION: Mapping[str, Mapping[str, object]] = {
    "mode crop": {"mode": "crop"},
    "one prototype": {"prototypes": 1},
    "no background": {"background": False},
    "no size prior": {"size_prior": False},
    "no shape prior": {"shape_prior": False},
    "only the grid": {"similarity_peaks": False, "blobs": False},
    "only peaks and blobs": {"points_per_side": 0},
}
WITH_WEIGHTS = """
With weights of Segment Anything at hand, and better on a GPU, the same images and scores:

    python benchmarks/quality_fewshot.py --encoder sam_vit_h_4b8939 --device cuda
    python benchmarks/quality_fewshot.py --encoder vit_b_lm
    python benchmarks/quality_fewshot.py --checkpoint FILE

None of this was run here. vit_b_lm was trained on images of this kind."""


@dataclass(frozen=True)
class Draw:
    """Examples, and what is to be found."""

    folder: Path
    """With the image that holds the examples, and ``examples.geojson``."""
    shown: Path
    masks: NDArray[np.int32]
    """The examples, numbered."""
    others: Sequence[Path]
    """Images to find such objects in."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=COLLECTIONS, action="append")
    parser.add_argument("--encoder", default="filters")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--keep", type=Path, help="keep examples and predictions in this folder")
    arguments = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"needs the images in {DATA}")
    encoder: dict[str, object] = {"encoder": arguments.encoder}
    if arguments.checkpoint is not None:
        encoder = {"checkpoint": arguments.checkpoint}
    folder = arguments.keep or Path(tempfile.mkdtemp())
    try:
        for name in arguments.data or COLLECTIONS:
            compare(name, encoder, arguments, folder / name)
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder)
    print(WITH_WEIGHTS)
    finish()


def compare(name: str, encoder: dict[str, object], arguments: Any, folder: Path) -> None:
    draws = [drawn(name, seed, folder) for seed in range(arguments.draws)]
    variants = {"fewshot": {}, **(ABLATION if arguments.ablation else {})}
    rows: list[list[object]] = [
        [name, *(f"F1@{t} of {draw.shown.stem[:12]}" for t in THRESHOLDS for draw in draws),
         *(f"mean F1@{t}" for t in THRESHOLDS), "seconds"]
    ]  # fmt: skip
    means = {}
    for variant, options in {**variants, "templates": None}.items():
        scores, start = [], time.monotonic()
        for draw in draws:
            target = draw.folder / variant.replace(" ", "_")
            if options is None:
                by_templates(draw, target)
            else:
                by_fewshot(draw, {**encoder, **options}, arguments.device, target)
            scores.append(f1s(name, draw, target))
        seconds = (time.monotonic() - start) / len(draws)
        means[variant] = [statistics.mean(one) for one in zip(*scores, strict=True)]
        flat = [f1 for one in zip(*scores, strict=True) for f1 in one]
        rows.append([variant, *flat, *means[variant], seconds])
    table(rows)
    for i, threshold in enumerate(THRESHOLDS):
        ours, peer = means["fewshot"][i], means["templates"][i]
        result(f"f1@{threshold}_{name}", ours, f">{peer:.3f} (templates)", ours > peer)
    print()


def drawn(name: str, seed: int, folder: Path) -> Draw:
    """Ten objects of one image, drawn among those that lie in it as a whole."""
    rng = np.random.default_rng(seed)
    paths = sorted((DATA / name / "images").iterdir())
    rng.shuffle(paths)
    for shown in paths:
        labels = truth(name, shown)
        border = np.unique([*labels[0], *labels[-1], *labels[:, 0], *labels[:, -1]])
        whole = np.setdiff1d(np.unique(labels), [0, *border])
        if len(whole) >= EXAMPLES:
            break
    chosen = rng.choice(whole, EXAMPLES, replace=False)
    masks = np.zeros(labels.shape, np.int32)
    features = []
    for number, label in enumerate(chosen, 1):
        masks[labels == label] = number
        polygons = outlines(labels == label)
        features.append(
            {
                "type": "Feature",
                "properties": {"image": shown.stem},
                "geometry": {"type": "MultiPolygon", "coordinates": polygons},
            }
        )
    target = folder / f"draw{seed}"
    for kind, members in (("shown", [shown]), ("images", [p for p in paths if p != shown])):
        (target / kind).mkdir(parents=True)
        for path in members[: COLLECTIONS[name].most]:
            shutil.copyfile(path, target / kind / path.name)
    (target / "examples.geojson").write_text(
        json.dumps({"type": "FeatureCollection", "features": features})
    )
    return Draw(target, shown, masks, sorted((target / "images").iterdir()))


def truth(name: str, image: Path) -> NDArray[np.int64]:
    """The labels of an image, without those that are too small to be scored."""
    (path,) = (DATA / name / "labels").glob(f"{image.stem}.*")
    return large(np.asarray(tifffile.imread(path), np.int64), COLLECTIONS[name].min_size)


def large(labels: NDArray[np.int64], min_size: int) -> NDArray[np.int64]:
    sizes = np.bincount(labels.ravel())
    return np.where(sizes[labels] >= max(min_size, 1), labels, 0)


def by_fewshot(draw: Draw, options: dict[str, object], device: str, target: Path) -> None:
    predict(
        Plugins(),
        draw.folder / "images",
        PredictSettings(
            backend="fewshot",
            examples=draw.folder / "examples.geojson",
            example_images=draw.folder / "shown",
            output=target,
            device=device,
        ),
        options=options,
        emit=lambda event: None,
    )


def by_templates(draw: Draw, target: Path) -> None:
    """Seeds where the image looks like an example, grown by a watershed in the foreground."""
    from skimage.feature import peak_local_max
    from skimage.filters import threshold_otsu
    from skimage.segmentation import watershed

    target.mkdir()
    image = smoothed(draw.shown)
    boxes = ndimage.find_objects(draw.masks)
    sizes = np.array([(box[0].stop - box[0].start, box[1].stop - box[1].start) for box in boxes])
    templates = [image[box] for box in boxes]
    centres = [tuple((s.start + s.stop) // 2 for s in box) for box in boxes]
    # What an example reaches by the templates of the others, at its worst.
    alike = [likeness(image, templates[:i] + templates[i + 1 :])[c] for i, c in enumerate(centres)]
    inside = draw.masks > 0
    around = ndimage.binary_dilation(inside, iterations=3) & ~inside
    between = (image[inside].mean() + image[around].mean()) / 2
    bright = image[inside].mean() > between

    def segment(pixels: NDArray[np.float32], level: float) -> NDArray[np.uint16]:
        alikeness = likeness(pixels, templates)
        spacing = max(1, int(sizes.min()) // 2)
        peaks = peak_local_max(alikeness, min_distance=spacing, threshold_abs=min(alike))
        seeds = np.zeros(pixels.shape, np.int32)
        seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
        return watershed(-alikeness, seeds, mask=(pixels > level) == bright).astype(np.uint16)

    # The foreground is what recovers the examples better: Otsu's, or half way to what is around.
    levels = (threshold_otsu, lambda pixels: between)
    recovered = [iou(segment(image, level(image)), draw.masks) for level in levels]
    level = levels[int(np.argmax(recovered))]
    for path in draw.others:
        other = smoothed(path)
        tifffile.imwrite(target / f"{path.stem}.tif", segment(other, level(other)))


def iou(found: NDArray[np.uint16], examples: NDArray[np.int32]) -> float:
    """Of the examples with what overlaps each most, in the mean."""
    best = []
    for number in range(1, EXAMPLES + 1):
        mask = examples == number
        label = np.bincount(found[mask]).argmax()
        both = np.count_nonzero(mask & (found == label)) if label else 0
        best.append(both / max(1, np.count_nonzero(mask | (found == label))))
    return statistics.mean(best)


def likeness(image: NDArray[np.float32], templates: list[NDArray[np.float32]]) -> Any:
    """The best normalised cross-correlation with any template, at each pixel."""
    from skimage.feature import match_template

    return np.max([match_template(image, one, pad_input=True) for one in templates], axis=0)


def smoothed(path: Path) -> NDArray[np.float32]:
    """An image between its percentiles 1 and 99.8, as fewshot sees it, a little smoothed."""
    pixels = tifffile.imread(path).astype(np.float32)
    low, high = np.percentile(pixels, (1, 99.8))
    return ndimage.gaussian_filter((pixels - low) / (high - low), 1.0)


def f1s(name: str, draw: Draw, target: Path) -> list[float]:
    """F1 over all objects of all images."""
    tallies = []
    inside = target / "labels"
    for path in draw.others:
        (found,) = (inside if inside.is_dir() else target).glob(f"{path.stem}*.tif")
        labels = np.asarray(tifffile.imread(found), np.int64).reshape(truth(name, path).shape)
        labels = large(labels, COLLECTIONS[name].min_size)
        tallies.append(tally(overlaps(labels, truth(name, path)), THRESHOLDS))
    scores = score(tallies)
    return [scores[f"f1@{threshold:.2f}"] for threshold in THRESHOLDS]


if __name__ == "__main__":
    main()
