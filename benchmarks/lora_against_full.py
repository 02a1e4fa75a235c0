"""LoRA against full fine-tuning of cellsam2: how good, what it costs.

The first line of CellSAM2's README asks for this comparison on the mother machine data (MOMA), with
SAM 2's weights; neither is at hand here. So a small network takes the place of SAM 2: it has
learned synthetic movies (``quality_cellsam2.py --keep``, or trained here), and is then fine-tuned
on movies of another look, noisy, with smaller cells that move farther: by low-rank updates,
in full, and in full but for the image encoder, for equally many steps each. All track movies that
none has seen. ``WITH_A_GPU`` is the same for SAM 2 itself.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from _table import finish, result, table
from cellseg.plugins import Plugins
from cellseg.synthetic_movies import Movie, make_movie, write_ctc
from cellseg.workflows.evaluate_tracks import evaluate_tracks
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings
from cellseg.workflows.train import train
from cellseg.workflows.train_settings import TrainSettings
from quality_cellsam2 import CHOSEN, CLIPS, COLUMNS, MINUTES, learn, make_movies

EPOCHS, CLIPS_PER_EPOCH, BATCH = 3, 60, 2
MADE = {"shape": (128, 128), "count": 10, "diameter": 17.0, "cycle": 20.0, "speed": 4.0}
PARTS = {"train": (4, 12), "val": (1, 12), "test": (3, 16)}
RATES: dict[str, object] = {"base_lr": 3e-4, "vision_lr": 3e-4, "head_lr": 3e-4}
WAYS: dict[str, dict[str, object]] = {
    "LoRA, rank 4": {"use_lora": True, "lora_rank": 4, "lora_alpha": 4.0, "lora_lr": 1e-3},
    "LoRA, rank 16": {"use_lora": True, "lora_rank": 16, "lora_alpha": 16.0, "lora_lr": 1e-3},
    "full": {"use_lora": False, "layer_decay": 1.0, **RATES},
    "full, encoder frozen": {
        "use_lora": False,
        "freeze_encoder": True,
        "base_lr": 3e-4,
        "head_lr": 3e-4,
    },
}
WITH_A_GPU = """
With SAM 2's weights, the MOMA data (zenodo.org/records/11237127) and a GPU:

    cellseg train moma --backend cellsam2 --preset cellsam2-gpu -o lora
    cellseg train moma --backend cellsam2 --preset cellsam2-gpu --preset full -o full
    cellseg predict moma/test/CTC --model lora -o tracked-lora --format ctc
    cellseg evaluate tracked-lora moma/test/CTC --ctc

None of this was run here.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, help="a run of quality_cellsam2.py; else trained here")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        base = arguments.base or trained(folder / "base")
        compare(base, folder)
    finally:
        shutil.rmtree(folder)
    finish()


def trained(folder: Path) -> Path:
    """The network that takes SAM 2's place."""
    make_movies(folder)
    learn(folder, MINUTES)
    return folder / "run"


def compare(base: Path, folder: Path) -> None:
    for number, (part, (count, frames)) in enumerate(PARTS.items()):
        write_ctc(folder / part, [noisy((7, number, i), frames) for i in range(count)])
    rows: list[list[object]] = [["", *COLUMNS, "minutes", "MiB of checkpoint"]]
    rows.append(["before", *scores(base, folder / "before", folder), 0.0, 0.0])
    found = {}
    for name, options in WAYS.items():
        run = folder / name
        start = time.process_time()
        fine_tune(base, run, options, folder)
        minutes = (time.process_time() - start) / 60
        kept = sum(file.stat().st_size for file in (run / "checkpoint").rglob("*.*")) / 2**20
        found[name] = scores(run, folder / f"{name} tracked", folder)
        rows.append([name, *found[name], minutes, kept])
        print(f"{name}: done", flush=True)
    table(rows)
    print(WITH_A_GPU)
    tra = COLUMNS.index("TRA")
    for name in ("LoRA, rank 16", "full"):
        result(f"tra_{name.split(',')[0].lower()}", found[name][tra], "none", True)


def noisy(seed: tuple[int, ...], frames: int) -> Movie:
    """A movie with noise of a tenth of the brightest light."""
    movie = make_movie(seed, frames, **MADE)
    assert movie.images is not None
    noise = np.random.default_rng(seed).normal(0, 0.1 * movie.images.max(), movie.images.shape)
    images = np.clip(movie.images + noise, 0, 65535)
    return Movie(images.astype(np.uint16), movie.labels, movie.lineage)


def fine_tune(base: Path, run: Path, options: dict[str, object], folder: Path) -> None:
    shared = {
        name: CHOSEN[name]
        for name in ("resolution", "weight_decay", "clip", "dice_weight", "correction_points")
    }
    train(
        Plugins(),
        "cellsam2",
        folder / "train",
        run,
        settings=TrainSettings(val=folder / "val", epochs=EPOCHS, device="cpu"),
        options={
            **shared,
            **CLIPS,
            "checkpoint": base,
            "decay_epochs": EPOCHS,
            "clips_per_epoch": CLIPS_PER_EPOCH,
            "batch_size": BATCH,
            "threads": 1,
            **options,
        },
        emit=lambda event: None,
    )


def scores(model: Path, out: Path, folder: Path) -> list[float]:
    """Of the tracks that a model finds in the test movies."""
    settings = PredictSettings(model=model, output=out, device="cpu")
    predict(Plugins(), folder / "test", settings, emit=lambda event: None)
    evaluation = evaluate_tracks(out, folder / "test")
    for movie in evaluation.invalid:
        print(movie.name, *movie.result.problems[:3], sep="\n  ", flush=True)
    mean = evaluation.mean
    return [mean[name] for name in COLUMNS]


if __name__ == "__main__":
    main()
