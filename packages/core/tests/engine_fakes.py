"""A reader of .npy files and a predictor that labels, importable by other processes too."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import cellseg as cs


class NpyOptions(cs.Options):
    channels: str | None = None
    """Indices of the channels to read."""


class LabelOptions(cs.Options):
    sleep: float = 0.0
    """Seconds to wait at each tile."""
    bad: str = ""
    """A text file: a tile whose number of foreground voxels stands there cannot be done."""
    fits: int = 0
    """Larger tiles run out of memory; 0 means never."""
    fault: str = ""
    """How to break the contract: shape, float, negative, count, type, die; with probabilities:
    none, list, double, classes, low, high, nan; without: unasked."""
    scored: bool = False
    """Whether to give scores and classes."""
    ids: str = "dense"
    """Whether labels are dense, sparse (with gaps) or huge."""
    levels: bool = False
    """Whether touching objects of other brightness are others."""


def open_npy(path: Path, options: NpyOptions, labelled: bool) -> cs.Dataset:
    files = sorted(path.rglob("*.npy")) if path.is_dir() else [path]
    root = path if path.is_dir() else path.parent
    samples = []
    for file in files:
        name = file.relative_to(root).with_suffix("").as_posix()
        source, _, frame = name.partition("#")
        image: cs.LazyArray = Damaged() if file.stat().st_size == 0 else np.load(file, "r")
        samples.append(
            cs.Sample(
                name=name,
                image=image,
                source=source if frame else "",
                frame=int(frame) if frame else None,
                spacing=(2.0, 0.5, 0.5),
                path=file,
            )
        )
    return samples


class Damaged:
    shape = (1, 1, 40, 40)
    dtype = np.dtype(np.uint8)

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        raise cs.DataError("bad.npy: is damaged.")


def load_label(job: cs.PredictJob[LabelOptions]) -> cs.Predictor:
    import cc3d

    options = job.options

    def segment(tile: cs.Tile) -> cs.Segmentation:
        time.sleep(options.sleep)
        if options.fault == "die":
            os._exit(3)
        mask = tile.image[0] > 0.5
        if options.fits and mask.size > options.fits:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
        if options.bad and str(mask.sum()) in Path(options.bad).read_text().split():
            raise ArithmeticError("the network exploded")
        labels = cc3d.connected_components(mask, connectivity=26)
        if options.levels:
            levels = (mask * tile.image[0] * 1000).round().astype(np.uint16)
            labels = cc3d.connected_components(levels, connectivity=26)
        if options.ids == "sparse":
            labels = labels.astype(np.int64) * 7
        if options.ids == "huge":
            labels = labels.astype(np.uint64) * (1 << 40)
        if job.probabilities or options.fault == "unasked":
            likely = broken(likelihood(tile.image[0]), options.fault)
            return cs.Segmentation(labels, probabilities=likely)
        if not options.scored:
            return cs.Segmentation(labels)
        ids = np.unique(labels[labels > 0]).tolist()
        return cs.Segmentation(labels, {i: 0.75 for i in ids}, {i: 1 for i in ids})

    def predict(tiles: Sequence[cs.Tile]) -> Sequence[cs.Segmentation]:
        assert len({tile.image.shape for tile in tiles}) == 1
        found = [segment(tile) for tile in tiles]
        labels = found[0].labels
        if options.fault == "shape":
            found[0] = cs.Segmentation(labels[:, :-1])
        if options.fault == "float":
            found[0] = cs.Segmentation(labels.astype(np.float32))
        if options.fault == "negative":
            found[0] = cs.Segmentation(-labels.astype(np.int32) - 1)
        if options.fault == "type":
            return [labels]
        return [] if options.fault == "count" else found

    return predict


def load_prompted(job: cs.PredictJob[LabelOptions]) -> cs.Predictor:
    """A disc of radius 7 around the first point of each prompt, or its box."""

    def segment(tile: cs.Tile) -> cs.Segmentation:
        assert tile.prompts is not None
        _, z, y, x = tile.image.shape
        if job.options.fits and z * y * x > job.options.fits:
            raise MemoryError
        labels = np.zeros((z, y, x), np.uint16)
        grid = np.indices((y, x)) + 0.5
        for number, prompt in enumerate(tile.prompts, 1):
            if prompt.box is not None:
                low, high = np.floor(prompt.box).astype(int)
                labels[0, low[1] : high[1], low[2] : high[2]] = number
                continue
            centre = np.array(prompt.points[prompt.positive.index(True)])[1:]
            labels[0, ((grid - centre[:, None, None]) ** 2).sum(0) <= 49] = number
        return cs.Segmentation(labels, {i + 1: 0.5 for i in range(len(tile.prompts))})

    return lambda tiles: [segment(tile) for tile in tiles]


def likelihood(image: np.ndarray) -> np.ndarray:
    """Of three classes, (3, z, y, x): what each voxel says by itself."""
    logits = np.stack([0 * image, 5 * image - 2, image], dtype=np.float32)
    exponents = np.exp(logits - logits.max(0))
    return exponents / exponents.sum(0)


def broken(likely: np.ndarray, fault: str) -> object:
    if fault == "classes":
        return likely[None]
    if fault in ("none", "list", "double"):
        return {"none": None, "list": likely.tolist(), "double": likely.astype(float)}[fault]
    if fault in ("low", "high", "nan"):
        likely[0, 0, 0, 0] = {"low": -0.1, "high": 1.2, "nan": np.nan}[fault]
    return likely


@cs.hookimpl
def cellseg_datasets():
    yield cs.DatasetSpec(
        name="npy",
        summary="Arrays",
        options=NpyOptions,
        open=open_npy,
        recognises=lambda_free_recognises,
    )


def lambda_free_recognises(path: Path) -> bool:
    return False


@cs.hookimpl
def cellseg_predictors():
    tiling = cs.Tiling((8, 64, 64), (8, 24, 24))
    yield cs.PredictorSpec(
        name="flat", summary="Label planes", options=LabelOptions, load=load_label, tiling=tiling
    )
    yield cs.PredictorSpec(
        name="deep",
        summary="Label volumes",
        options=LabelOptions,
        load=load_label,
        tiling=tiling,
        tasks=frozenset({"2d", "3d"}),
    )
    yield cs.PredictorSpec(
        name="linked",
        summary="Label planes, which are linked",
        options=LabelOptions,
        load=load_label,
        tiling=tiling,
        link_slices=True,
    )
    yield cs.PredictorSpec(
        name="prompted",
        summary="Label what is shown",
        options=LabelOptions,
        load=load_prompted,
        tiling=tiling,
        prompts=True,
    )
    yield cs.PredictorSpec(
        name="likely",
        summary="Label volumes, with probabilities",
        options=LabelOptions,
        load=load_label,
        tiling=tiling,
        tasks=frozenset({"2d", "3d"}),
        probabilities=True,
    )


def plugins() -> cs.plugins.Plugins:
    from cellseg.plugins import Plugins

    found = Plugins(installed=())
    found.register(sys.modules[__name__], "fakes")
    return found


def blobs(shape: tuple[int, int, int], seed: int = 0, fill: float = 0.4) -> np.ndarray:
    """A random image of touching-free and odd-shaped objects, (1, z, y, x) uint8 of 0 and 200."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).random(shape)
    smooth = gaussian_filter(noise, [min(1.5, n / 4) if n > 1 else 0 for n in shape])
    mask = smooth > np.quantile(smooth, 1 - fill)
    return (mask * np.uint8(200))[None]


def discs(shape: tuple[int, int], radius: int = 6, step: int = 16, seed: int = 0) -> np.ndarray:
    """Discs on a jittered grid that never touch, (1, 1, y, x) uint8 of 0 and 200."""
    rng = np.random.default_rng(seed)
    image = np.zeros(shape, np.uint8)
    offset = np.arange(-radius, radius + 1)
    disc = offset[:, None] ** 2 + offset**2 <= radius**2
    slack = (step - 2 * radius - 2) // 2
    for y in range(step // 2, shape[0] - step // 2, step):
        for x in range(step // 2, shape[1] - step // 2, step):
            cy, cx = y + rng.integers(-slack, slack + 1), x + rng.integers(-slack, slack + 1)
            image[cy - radius : cy + radius + 1, cx - radius : cx + radius + 1][disc] = 200
    return image[None, None]


def digest(folder):
    """Every file but the hidden ones, by content."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.relative_to(folder).parts[0].startswith(".")
    }


def read(path):
    import tifffile

    return tifffile.imread(path)


def whole(image):
    import cc3d

    return cc3d.connected_components(image[0] > 0, connectivity=26)


def same_objects(a, b):
    if not ((a > 0) == (b > 0)).all():
        return False
    pairs = np.unique(np.stack([a[a > 0], b[a > 0]]), axis=1)
    return len(np.unique(pairs[0])) == pairs.shape[1] == len(np.unique(pairs[1]))
