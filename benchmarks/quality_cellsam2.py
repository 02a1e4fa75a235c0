"""How well a small SAM 2 learns to track, from nothing, in 10 minutes on 2 cores.

No published weights are at hand here, so this is no figure of SAM 2: a network of less than two
million parameters starts from random weights. It learns synthetic movies of cells that crawl,
touch, divide, die and cross the border: first single frames, then clips of three. Then it tracks
movies that it has never seen, made with other seeds. The peers see the same movies: the best
threshold and watershed (parameters fitted to the training movies), linked by overlap, and by
``cellseg track``. All are scored as the Cell Tracking Challenge does.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from itertools import product
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import tifffile

from _table import finish, result, table
from cellseg.metrics import THRESHOLDS, overlaps, score, tally
from cellseg.plugins import Plugins
from cellseg.synthetic_movies import Movie, make_movie, write_ctc
from cellseg.workflows.evaluate_tracks import evaluate_tracks
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings
from cellseg.workflows.track import track
from cellseg.workflows.track_settings import TrackSettings
from cellseg_cellsam2.presets import PRESETS
from quality_dsb2018 import classical, fit

MINUTES = 10.0
SEGMENTATION = 0.4
"""Share of the time that goes to single frames, which cost least."""
MADE = {"shape": (128, 128), "count": 7, "diameter": 24.0, "cycle": 16.0, "speed": 2.0}
PARTS = {"train": (12, 16), "val": (2, 12), "crowded": (4, 24), "test": (4, 16)}
"""Movies and frames. Cells multiply: the last frames of the crowded ones are fuller than any that
are trained on."""
SMALLEST = 40
EPOCHS = 1000
CHOSEN: dict[str, object] = {**PRESETS["scratch"], "devices": 2}
FRAMES: dict[str, object] = {"num_frames": 1, "decay_epochs": 16, "calibrate": False}
CLIPS: dict[str, object] = {
    "num_frames": 3,
    "max_num_objects": 10,
    "division_share": 0.5,
    "division_weight": 4.0,
    "decay_epochs": 8,
}
TESTED = ("test", "crowded")
COLUMNS = ("SEG", "DET", "TRA", "LNK", "division_f1(1)", "CT")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="keep the movies, runs and tracks in this folder")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of each core, for training")
    parser.add_argument("--run", type=Path, help="score this kept run instead of training one")
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp())
    try:
        compare(folder, arguments.minutes, arguments.run)
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder)
    finish()


def compare(folder: Path, minutes: float, run: Path | None) -> None:
    movies = make_movies(folder)
    spent = learn(folder, minutes) if run is None else float("nan")
    found = {part: track_all(run or folder / "run", part, movies, folder) for part in TESTED}
    print(f"training: {spent:.1f} minutes of each of two cores\n")
    for part, scores in found.items():
        print(f"{part}:")
        rows = [[name, *(each[c] for c in COLUMNS)] for name, each in scores.items()]
        table([["", *COLUMNS], *rows])
    for part, scores in found.items():
        ours, linked, *_, peer = scores.values()
        result(f"tra_{part}", ours["TRA"], ">=0.90", ours["TRA"] >= 0.9)
        result(f"division_f1_{part}", ours["division_f1(1)"], "none", True)
        result(f"seg_{part}", ours["SEG"], "none", True)
        result(f"linked_tra_{part}", linked["TRA"], "none", True)
        result(f"peer_tra_{part}", peer["TRA"], "none", True)
    if run is None:
        result("training_minutes", spent, f"<={minutes:g}", spent <= minutes)


def track_all(
    run: Path, part: str, movies: dict[str, list[Movie]], folder: Path
) -> dict[str, dict[str, float]]:
    """The scores of the tracks of a part by the model and by the peers."""
    made = folder / f"{part} results"
    for out, following in ((made / "tracked", True), (made / "frame by frame", False)):
        settings = PredictSettings(
            model=run, output=out, device="cpu", track=following, overwrite=True
        )
        predict(Plugins(), folder / part, settings, emit=lambda event: None)
    watershed = classical_frames(made, movies["train"], movies[part])
    scores = {"cellsam2": tracked(made / "tracked", folder / part)}
    for name, frames, method in (
        ("cellsam2 frame by frame, laptrack", made / "frame by frame", "laptrack"),
        ("watershed, laptrack", watershed, "laptrack"),
        ("watershed, overlap", watershed, "overlap"),
    ):
        linking = TrackSettings(output=made / name, method=method, report=False, overwrite=True)
        track(Plugins(), frames, linking)
        scores[name] = tracked(made / name, folder / part)
    return scores


def make_movies(folder: Path) -> dict[str, list[Movie]]:
    """Movies to train on, to validate on, and to score; other seeds, as data sets of the CTC."""
    movies = {}
    for number, (part, (count, frames)) in enumerate(PARTS.items()):
        movies[part] = [make_movie((number, i), frames, **MADE) for i in range(count)]
        write_ctc(folder / part, movies[part])
        cells = [np.unique(frame).size - 1 for movie in movies[part] for frame in movie.labels]
        divisions = sum(len(movie.lineage.divisions) for movie in movies[part])
        print(
            f"{part}: {count} movies of {frames} frames, {min(cells)} to {max(cells)} cells in a",
            end="",
        )
        print(f" frame, {divisions} divisions")
    print(flush=True)
    return movies


def learn(folder: Path, minutes: float) -> float:
    """Train on frames, then on clips; the minutes of each core that it took."""
    first = minutes * SEGMENTATION
    _, spent = fit("cellsam2", {**CHOSEN, **FRAMES}, EPOCHS, first, folder, "frames")
    clips = {**CHOSEN, **CLIPS, "checkpoint": folder / "frames"}
    _, more = fit("cellsam2", clips, EPOCHS, minutes - spent, folder, "run")
    return spent + more


def classical_frames(folder: Path, train: list[Movie], movies: list[Movie]) -> Path:
    """Label images of movies by the watershed that suits the training movies best."""
    best, chosen = -1.0, (1.0, 5)
    shown = [(m.images[::5], m.labels[::5]) for m in train if m.images is not None]
    for smoothing, separation in product((1.0, 2.0, 3.0), (3, 5, 7, 9)):
        tallies = [
            tally(overlaps(classical(i, smoothing, separation, SMALLEST), t), THRESHOLDS)
            for images, labels in shown
            for i, t in zip(images, labels, strict=True)
        ]
        if (f1 := score(tallies)["f1@0.50"]) > best:
            best, chosen = f1, (smoothing, separation)
    for number, movie in enumerate(movies, 1):
        assert movie.images is not None
        stack = np.stack([classical(image, *chosen, SMALLEST) for image in movie.images])
        target = folder / "watershed" / f"{number:02d}.tif"
        target.parent.mkdir(exist_ok=True, parents=True)
        tifffile.imwrite(target, stack, metadata={"axes": "TYX"})
    return folder / "watershed"


def tracked(found: Path, truth: Path) -> dict[str, float]:
    """The scores of tracks as the Cell Tracking Challenge has them, means over the movies."""
    evaluation = evaluate_tracks(found, truth)
    assert not evaluation.invalid
    return dict(evaluation.mean)


if __name__ == "__main__":
    main()
