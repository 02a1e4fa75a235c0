"""How well vista3d segments two real volumes after at most 25 minutes of training on 2 cores.

``--data flyem``: neurites in electron microscopy (FIB-SEM of the fly's medulla, 100 x 250 x 250
voxels of 10 nm). It trains from random weights on planes 0-69, some of them to validate on, and is
scored on planes 75-99 by the adapted Rand error (ARE) and the variation of information. The peer is
a watershed of the smoothed image from the minima of the same or a map smoothed further, with those
of its parameters that are best *on the scored planes*, which only helps it.

``--data nuclei``: nuclei in a confocal volume (100 x 100 x 100 voxels of 0.284 x 0.127 x 0.127 µm).
It trains on columns 52-99, which hold more nuclei, and is scored on columns 0-47 by mSA. The peer
is Otsu's threshold and a watershed of the distance transform, with its best parameters likewise.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Of the two cores one is used: two threads on a busy computer are slower than one.
os.environ["OMP_NUM_THREADS"] = "1"

import h5py
import numpy as np
import tifffile
from numpy.typing import NDArray

from _table import finish, result, table
from cellseg.errors import InterruptedRunError
from cellseg.events import Event, Validated
from cellseg.plugins import Plugins
from cellseg.workflows.evaluate import evaluate, evaluate_arrays
from cellseg.workflows.evaluate_settings import EvaluateSettings
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings
from cellseg.workflows.train import resume, train
from cellseg.workflows.train_settings import TrainSettings

DATA = Path(__file__).parents[1] / "../shared/data"
MINUTES = 25
RESERVE = 2
"""Minutes of these for what comes after the last step: calibration."""

Volume = NDArray[np.generic]
Parameters = tuple[object, ...]


@dataclass(frozen=True)
class Plan:
    file: str
    labels: str
    axis: int
    """That the volume is divided along."""
    train: slice
    test: slice
    spacing: tuple[float, float, float]
    score: str
    """What the peer's parameters are chosen by."""
    epochs: int
    min_size: int
    """Smaller true and predicted objects are not scored: slivers at the border of the crop."""
    settings: dict[str, object]
    options: dict[str, object]


OPTIONS: dict[str, object] = {
    "precision": "bf16-mixed",
    "threads": 1,
    "feature_size": 16,
    "levels": 4,
    "num_classes": 2,
    "emb_dim": 8,
    "batch_size": 2,
    "learning_rate": 3e-3,
    "weight_distance": 3.0,
    "weight_contact": 1.0,
    "weight_pull": 0.03,
    "weight_push": 0.03,
    "weight_edge": 1.0,
    "weight_bone": 1.0,
    "affine_probability": 0.0,
    "elastic_probability": 0.0,
    "blur_probability": 0.0,
}

PLANS = {
    "flyem": Plan(
        file="flyem_medulla/flyem_medulla_dev.h5",
        labels="labels",
        axis=0,
        train=slice(0, 70),
        test=slice(75, 100),
        spacing=(0.01, 0.01, 0.01),
        score="are",
        epochs=15,
        min_size=0,
        settings={"split": "blocks", "split_axis": "x", "val_gap": 4, "val_fraction": 0.27},
        options={
            "patch_size": 64,
            "patch_depth": 32,
            "patches_per_image": 320,
            "decay_epochs": 15,
            "distance_reach": 3.0,
            "val_patches": 12,
        },
    ),
    "nuclei": Plan(
        file="plantseg_nuclei3d/1135_mini.h5",
        labels="label",
        axis=2,
        train=slice(52, 100),
        test=slice(0, 48),
        spacing=(0.28371837, 0.12678642, 0.12678642),
        score="mSA@0.50:0.95",
        epochs=16,
        min_size=100,
        settings={
            "split": "blocks",
            "split_axis": "y",
            "val_gap": 4,
            "val_fraction": 0.25,
            # A bright speck in one half would else darken all of it.
            "percentile_high": 98.0,
        },
        options={
            "patch_size": 48,
            "patch_depth": 24,
            "patches_per_image": 240,
            "decay_epochs": 16,
            "weight_distance": 1.0,
            "brightness_probability": 0.5,
            "brightness_range": 0.6,
            "contrast_probability": 0.6,
            "contrast_range": 2.2,
        },
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=PLANS, action="append", help="by default both")
    parser.add_argument("--keep", type=Path, help="keep runs and predictions in this folder")
    arguments = parser.parse_args()
    for name in arguments.data or PLANS:
        if not (DATA / PLANS[name].file).is_file():
            sys.exit(f"needs {DATA / PLANS[name].file}")
        folder = arguments.keep / name if arguments.keep else Path(tempfile.mkdtemp())
        try:
            compare(name, PLANS[name], folder)
        finally:
            if arguments.keep is None:
                shutil.rmtree(folder)
    finish()


def compare(name: str, plan: Plan, folder: Path) -> None:
    raw, truth = divide(plan, folder)
    print(f"{name}: trains on {plan.train}, is scored on {plan.test} along {'zyx'[plan.axis]}\n")
    minutes, cpu_minutes = fit(plan, folder)
    predict(
        Plugins(),
        folder / "test.h5",
        PredictSettings(
            model=folder / "run", output=folder / "predicted", device="cpu", format=("tiff",)
        ),
        emit=lambda event: None,
    )
    settings = EvaluateSettings(min_size=plan.min_size)
    truth_file = folder / "truth/test.tif"
    ours = evaluate(Plugins(), folder / "predicted", truth_file.parent, settings).pooled
    made, parameters, count = best_peer(name, plan, raw, truth, settings)
    peer = evaluate_arrays(made, truth.astype(np.uint32), settings)
    columns = ("are", "voi_split", "voi_merge", "mSA@0.50:0.95", "f1@0.50")
    rows: list[list[object]] = [
        ["", "ARE", "VOI split", "VOI merge", "mSA", "F1@.5", "objects"],
        ["vista3d", *(ours[c] for c in columns), int(ours["n_pred"])],
        ["classical", *(peer[c] for c in columns), int(peer["n_pred"])],
        ["truth", "", "", "", "", "", int(ours["n_true"])],
    ]
    table(rows)
    print(f"training: {cpu_minutes:.1f} minutes of one core, {minutes:.1f} by the clock")
    print(f"classical: the best of {count} on the scored part, {parameters}\n")
    result(f"{name}_minutes", cpu_minutes, f"<={MINUTES}", cpu_minutes <= MINUTES)
    if name == "flyem":
        less = 1 - ours["are"] / peer["are"]
        result("flyem_are_reduction", less, ">=0.333", less >= 1 / 3)
    else:
        score = ours[plan.score]
        result("nuclei_msa", score, f">{peer[plan.score]:.3f}", score > peer[plan.score])
    print(flush=True)


def divide(plan: Plan, folder: Path) -> tuple[Volume, Volume]:
    """Write the two parts as HDF5, and the truth of the scored one as TIFF; the latter part."""
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(DATA / plan.file) as file:
        raw, labels = file["raw"][:], file[plan.labels][:]
    for part, where in (("train", plan.train), ("test", plan.test)):
        box = tuple(where if axis == plan.axis else slice(None) for axis in range(3))
        with h5py.File(folder / f"{part}.h5", "w") as file:
            for key, array in (("raw", raw), ("labels", labels)):
                file[key] = array[box]
                file[key].attrs["element_size_um"] = plan.spacing
    (folder / "truth").mkdir(exist_ok=True)
    tifffile.imwrite(
        folder / "truth/test.tif",
        labels[box].astype(np.uint16),
        imagej=True,
        metadata={"axes": "ZYX"},
    )
    return raw[box], labels[box]


def fit(plan: Plan, folder: Path) -> tuple[float, float]:
    """Train for at most ``MINUTES`` of one core; wall minutes, and CPU minutes."""
    start, cpu = time.monotonic(), time.process_time()
    validated: list[Validated] = []

    def emit(event: Event) -> None:
        if isinstance(event, Validated):
            validated.append(event)
            spent = (time.process_time() - cpu) / 60
            scores = ", ".join(f"{key} {value:.3f}" for key, value in event.metrics.items())
            print(f"epoch {event.epoch}: {scores} ({spent:.1f} CPU-minutes)", flush=True)

    def late() -> bool:
        # CPU time, so that a computer that is busy otherwise trains as long as an idle one.
        return (time.process_time() - cpu) / 60 > MINUTES - RESERVE

    try:
        train(
            Plugins(),
            "vista3d",
            folder / "train.h5",
            folder / "run",
            settings=TrainSettings(epochs=plan.epochs, device="cpu", **plan.settings),
            options={**OPTIONS, **plan.options},
            emit=emit,
            interrupted=late,
        )
    except InterruptedRunError:
        resume(Plugins(), folder / "run", epochs=validated[-1].epoch, emit=emit)
    print()
    return (time.monotonic() - start) / 60, (time.process_time() - cpu) / 60


def best_peer(
    name: str, plan: Plan, raw: Volume, truth: Volume, settings: EvaluateSettings
) -> tuple[NDArray[np.uint32], Parameters, int]:
    """The classical segmentation that scores best on the scored part, and how it was made."""
    tried = neurites(raw) if name == "flyem" else nuclei(raw, plan)
    best, chosen, count = -np.inf, None, 0
    known = truth.astype(np.uint32)
    for parameters, labels in tried:
        count += 1
        score = evaluate_arrays(labels, known, settings)[plan.score]
        score = -score if plan.score == "are" else score
        if score > best:
            best, chosen = score, (labels, parameters)
    assert chosen is not None
    return *chosen, count


def neurites(raw: Volume) -> Iterator[tuple[Parameters, NDArray[np.uint32]]]:
    """Watersheds of the darkness of the smoothed image, membranes being dark, from three kinds of
    seeds: minima of some depth, all minima after more smoothing, and the middles of what is left
    between membranes by a threshold."""
    from scipy import ndimage
    from skimage.morphology import h_minima
    from skimage.segmentation import watershed

    for smoothing in (0.7, 1.0, 1.5, 2.0, 3.0):
        dark = -ndimage.gaussian_filter(raw.astype(np.float32), smoothing)
        dark = (dark - dark.min()) / np.ptp(dark)
        steps = np.round(100 * dark).astype(np.uint8)
        seeds: dict[Parameters, NDArray[np.bool_]] = {}
        for height in (5, 10, 15, 20, 22, 25, 28, 30, 35):
            seeds["minima at least deep", height / 100] = h_minima(steps, height) > 0
        for wide in (1.0, 2.0, 4.0, 6.0):
            map_ = ndimage.gaussian_filter(dark, wide)
            seeds["minima of a smoother map", wide] = map_ == ndimage.minimum_filter(map_, 5)
        for threshold in (0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65):
            deep = ndimage.distance_transform_edt(dark < threshold)
            deep = ndimage.gaussian_filter(deep, 1.5)
            for width in (5, 9, 15):
                peaks = (deep == ndimage.maximum_filter(deep, width)) & (deep > 1)
                seeds["distance maxima", threshold, width] = peaks
        for parameters, where in seeds.items():
            markers, _ = ndimage.label(where)
            labels = watershed(dark, markers).astype(np.uint32)
            yield ("smoothing", smoothing, *parameters), labels


def nuclei(raw: Volume, plan: Plan) -> Iterator[tuple[Parameters, NDArray[np.uint32]]]:
    """Otsu's threshold of the smoothed image (or a multiple of it), and a watershed of the
    distance transform, in µm, from its maxima."""
    from scipy import ndimage
    from skimage.filters import threshold_otsu
    from skimage.segmentation import watershed

    size = np.array(plan.spacing)
    for smoothing in (0.1, 0.2, 0.3, 0.5, 0.8):
        smooth = ndimage.gaussian_filter(raw.astype(np.float32), smoothing / size)
        for factor in (0.8, 1.0, 1.2):
            mask = smooth > factor * threshold_otsu(smooth)
            for opening in (0, 1, 2):
                opened = ndimage.binary_opening(mask, iterations=opening) if opening else mask
                depth = ndimage.distance_transform_edt(opened, sampling=plan.spacing)
                for wide in (0.1, 0.2, 0.4, 0.6):
                    map_ = ndimage.gaussian_filter(depth, wide / size)
                    for separation in (0.5, 1.0, 1.5, 2.0):
                        window = tuple((2 * np.round(separation / size) + 1).astype(int))
                        peaks = (map_ == ndimage.maximum_filter(map_, window)) & opened
                        markers, _ = ndimage.label(peaks)
                        labels = watershed(-map_, markers, mask=opened).astype(np.uint32)
                        yield (smoothing, factor, opening, wide, separation), labels


if __name__ == "__main__":
    main()
