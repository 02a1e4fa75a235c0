"""How well a small cellsam learns real nuclei from nothing, in at most 20 minutes on 2 cores.

No published weights are at hand here, so this is no figure of CellSAM: a Vision Transformer of
about 3 million parameters, a detector and a mask decoder start from random weights and learn 26
images of the Data Science Bowl 2018 (4 of them to validate and to calibrate on): first boxes, then
masks from boxes. They segment the other 14. The split, the scores of masks and the classical peer
are those of ``quality_dsb2018.py``. Boxes are scored as objects come out, after tiling, stitching
and painting: average precision at an IoU of .5 over all held-out images, from a prediction with a
low box threshold. The end of the output says what to run with weights and a GPU.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import tifffile
import torch

from _table import finish, result, table
from cellseg.plugins import Plugins
from cellseg.workflows.evaluate import evaluate
from cellseg.workflows.evaluate_settings import EvaluateSettings
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings
from cellseg_cellsam.box_scores import pooled_average_precision
from cellseg_cellsam.presets import PRESETS
from quality_dsb2018 import (
    DATA,
    OPTIONS,
    PLANS,
    copy_split,
    figures,
    fit,
    label_folder,
    segment_classically,
)

MINUTES = 20
STAGE1, STAGE2 = 20, 8
LOWEST = 0.05
"""The box threshold below which boxes do not count for the average precision."""
CHOSEN: dict[str, object] = {
    **{name: value for name, value in OPTIONS.items() if name != "learning_rate"},
    **PRESETS["scratch"],
    "stage1_epochs": STAGE1,
    "stage2_epochs": STAGE2,
    "devices": 2,
    "patches_per_image": 24,
    "decay_epochs": STAGE1,
    "num_workers": 0,
}
WITH_A_GPU = """
With Segment Anything's weights and a GPU, the same split and scores:

    cellseg train train --val val --backend cellsam --model-type vit_b --preset gpu-16gb \\
        --stage1-epochs 100 --stage2-epochs 50 -o run
    cellseg predict test/images --model run -o predicted
    cellseg evaluate predicted test

Expect an F1 at IoU .5 above 0.80, which vista2d reaches from nothing on the same images. None
of this was run here.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="keep the run and the predictions in this folder")
    parser.add_argument("--run", type=Path, help="score this kept run instead of training one")
    arguments = parser.parse_args()
    source = DATA / "dsb2018_fluo"
    if not source.is_dir():
        sys.exit(f"needs the images in {source}")
    folder = arguments.keep or Path(tempfile.mkdtemp())
    try:
        compare(source, folder, arguments.run)
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder)
    finish()


def compare(source: Path, folder: Path, run: Path | None) -> None:
    plan = PLANS["dsb2018_fluo"]
    counts = copy_split(source, plan, folder)
    print(f"{counts['train']} images to train, {counts['val']} to validate, ", end="")
    print(f"{counts['test']} to score\n")
    if run is None:
        minutes, cpu_minutes = fit("cellsam", CHOSEN, STAGE1 + STAGE2, 10 * MINUTES, folder)
    segment_classically(folder, plan)
    model = run or folder / "run"
    segment(model, folder, "predicted")
    segment(model, folder, "boxes", box_threshold=LOWEST)
    ap50, recall = boxes_of(folder / "boxes", folder / "test/labels")
    settings = EvaluateSettings(min_size=plan.min_size)
    ours = evaluate(Plugins(), label_folder(folder / "predicted"), folder / "test", settings)
    peer = evaluate(Plugins(), folder / "classical", folder / "test", settings)
    rows: list[list[object]] = [["image", "cellsam F1@.5", "mSA", "classical F1@.5", "mSA"]]
    for a, b in zip(ours.images, peer.images, strict=True):
        rows.append([a.name, *figures(a.scores), *figures(b.scores)])
    rows.append(["all", *figures(ours.pooled), *figures(peer.pooled)])
    table(rows)
    (f1, msa), (peer_f1, _) = figures(ours.pooled), figures(peer.pooled)
    result("box_ap50", ap50, "none", True)
    result("box_recall50", recall, "none", True)
    result("mask_f1", f1, "none", True)
    result("mask_msa", msa, "none", True)
    result("mask_f1_over_classical", f1 - peer_f1, ">0", f1 > peer_f1)
    if run is None:
        print(f"training: {cpu_minutes:.1f} minutes of each of two cores, ", end="")
        print(f"{minutes:.1f} minutes on this computer with what else it did")
        limit = f"<={MINUTES}"
        result("training_minutes", cpu_minutes, limit, cpu_minutes <= MINUTES)
    print(WITH_A_GPU)


def segment(model: Path, folder: Path, name: str, **options: object) -> None:
    """Segment the held-out images into a folder of this name."""
    settings = PredictSettings(
        model=model, output=folder / name, device="cpu", format=("tiff", "csv"), overwrite=True
    )
    predict(Plugins(), folder / "test/images", settings, options=options, emit=lambda event: None)


def boxes_of(predicted: Path, truth: Path) -> tuple[float, float]:
    """Average precision and recall, at an IoU of .5, of the boxes in the object tables."""
    found = []
    for path in sorted(truth.iterdir()):
        labels = tifffile.imread(path)
        wanted = [
            (x.min(), y.min(), x.max() + 1, y.max() + 1)
            for y, x in (np.nonzero(labels == one) for one in np.unique(labels) if one)
        ]
        (rows_of,) = predicted.rglob(f"{path.stem}*.csv")
        with rows_of.open(newline="") as file:
            rows = list(csv.DictReader(file))
        corners = ("x_min", "y_min", "x_max", "y_max")
        found.append(
            (
                torch.tensor([float(row["score"]) for row in rows]),
                torch.tensor([[float(row[c]) for c in corners] for row in rows]).reshape(-1, 4),
                torch.tensor(wanted, dtype=torch.float32).reshape(-1, 4),
            )
        )
    ap50 = pooled_average_precision(found)
    hits = sum(recalled(boxes, wanted) for _, boxes, wanted in found)
    return ap50, hits / sum(len(wanted) for _, _, wanted in found)


def recalled(boxes: torch.Tensor, wanted: torch.Tensor) -> int:
    """How many true boxes are found, each by a box of its own."""
    from scipy.optimize import linear_sum_assignment
    from torchvision.ops import box_iou

    overlap = box_iou(wanted, boxes).numpy() >= 0.5
    return int(overlap[linear_sum_assignment(overlap, maximize=True)].sum())


if __name__ == "__main__":
    main()
