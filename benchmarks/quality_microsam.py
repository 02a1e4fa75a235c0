"""How well a small micro-SAM learns real nuclei from nothing, in at most 15 minutes on 2 cores.

No published weights are at hand here, so this is no figure of micro-SAM: a Vision Transformer of
about 3 million parameters and its UNETR decoder start from random weights and learn 26 images of
the Data Science Bowl 2018 (4 of them to validate on). They segment the other 14 by the decoder
(AIS), as micro-SAM's generalists do. The split, the scores and the classical peer are those of
``quality_dsb2018.py``. The end of the output says what to run with weights and a GPU.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"


from _table import finish, result, table
from cellseg.events import Validated
from cellseg.plugins import Plugins
from cellseg.runs import RunDir
from cellseg.workflows.evaluate import evaluate
from cellseg.workflows.evaluate_settings import EvaluateSettings
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings
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

MINUTES = 15
EPOCHS = 14
CHOSEN: dict[str, object] = {
    **OPTIONS,
    "model_type": "small",
    "mode": "instances",
    "patch_size": 128,
    "patches_per_image": 16,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "precision": "bf16-mixed",
    "decay_epochs": EPOCHS,
    "early_stopping": 0,
    "average": 0.99,
}
WITH_A_GPU = """
With published weights and a GPU, the same split and scores:

    cellseg train train --val val --backend microsam --model-type vit_b_lm --mode full \\
        --preset a40 --epochs 50 -o run
    cellseg predict test/images --model run -o predicted
    cellseg evaluate predicted test

Expect an F1 at IoU .5 above 0.80, which vista2d reaches from nothing on the same images, and most
of it before any training: vit_b_lm has seen this collection of nuclei, so that here it is no test
of what it makes of new ones. Its authors' figures are in doi:10.1038/s41592-024-02580-4. None of
this was run here.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="keep the run and the predictions in this folder")
    arguments = parser.parse_args()
    source = DATA / "dsb2018_fluo"
    if not source.is_dir():
        sys.exit(f"needs the images in {source}")
    folder = arguments.keep or Path(tempfile.mkdtemp())
    try:
        compare(source, folder)
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder)
    finish()


def compare(source: Path, folder: Path) -> None:
    plan = PLANS["dsb2018_fluo"]
    counts = copy_split(source, plan, folder)
    print(f"{counts['train']} images to train, {counts['val']} to validate, ", end="")
    print(f"{counts['test']} to score\n")
    minutes, cpu_minutes = fit("microsam", CHOSEN, EPOCHS, MINUTES, folder)
    predict(
        Plugins(),
        folder / "test/images",
        PredictSettings(model=folder / "run", output=folder / "predicted", device="cpu"),
        emit=lambda event: None,
    )
    segment_classically(folder, plan)
    settings = EvaluateSettings(min_size=plan.min_size)
    ours = evaluate(Plugins(), label_folder(folder / "predicted"), folder / "test", settings)
    peer = evaluate(Plugins(), folder / "classical", folder / "test", settings)
    curve(folder / "run")
    rows: list[list[object]] = [["image", "microsam F1@.5", "mSA", "classical F1@.5", "mSA"]]
    for a, b in zip(ours.images, peer.images, strict=True):
        rows.append([a.name, *figures(a.scores), *figures(b.scores)])
    rows.append(["all", *figures(ours.pooled), *figures(peer.pooled)])
    table(rows)
    print(f"training: {cpu_minutes:.1f} minutes of one core (another prepared patches), ", end="")
    print(f"{minutes:.1f} minutes on this computer with what else it did\n{WITH_A_GPU}")
    f1, msa = figures(ours.pooled)
    result("microsam_f1", f1, "none", True)
    result("microsam_msa", msa, "none", True)
    limit = f"<={MINUTES}"
    result("training_minutes", cpu_minutes, limit, cpu_minutes <= MINUTES)


def curve(run: Path) -> None:
    """Print what the validations of a run said."""
    seen = [event for event in RunDir(run).events() if isinstance(event, Validated)]
    rows: list[list[object]] = [["epoch", "step", *seen[0].metrics]]
    for event in seen[:: max(1, len(seen) // 20)]:
        rows.append([event.epoch or 0, event.step, *event.metrics.values()])
    table(rows)


if __name__ == "__main__":
    main()
