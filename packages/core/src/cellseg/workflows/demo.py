"""The whole job on synthetic cells: make images, train, predict, score, and show the result."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellseg.data import LazyArray
from cellseg.errors import DataError, UnknownPluginError
from cellseg.events import Emit, Event, Note, Progress
from cellseg.files import write_atomic
from cellseg.options import parse
from cellseg.plugins import Plugins
from cellseg.specs import PredictorSpec, TrainerSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cellseg.report import View

BACKEND = "vista2d"
PACKAGE = "cellseg-vista"
FILE = "demo.json"
"""In the demo's folder from the start: what is beside it came from a demo, and may be replaced."""
_PARTS = ("train", "test", "run", "labels", "picture.png", "report.html", FILE)
_IN_PICTURE = 2
_SHOWN = ("f1@0.50", "precision@0.50", "recall@0.50", "mSA@0.50:0.95")

Scores = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to do."""

    train: int
    """Images to train and validate on."""
    test: int
    """Images that the training never sees."""
    size: int
    """Length of their sides in pixels."""
    epochs: int
    options: Mapping[str, object]
    """The backend's."""


_SMALL: Mapping[str, object] = {
    "feature_size": 8,
    "emb_dim": 8,
    "learning_rate": 0.008,
    # Where cells are and how deep is learnt soonest when the embedding comes second.
    "weight_distance": 3.0,
    "weight_pull": 0.03,
    "weight_push": 0.03,
    # One core computes while the other prepares patches; two threads would be slower.
    "threads": 1,
    "num_workers": 1,
}
"""A network that learns within two minutes on two cores."""
FULL = Plan(
    train=20,
    test=6,
    size=256,
    epochs=24,
    options={
        **_SMALL,
        "patch_size": 128,
        "batch_size": 4,
        "decay_epochs": 24,
        "validate_every": 4,
        "val_patches": 16,
    },
)
FAST = Plan(
    train=5,
    test=2,
    size=128,
    epochs=2,
    options={
        **_SMALL,
        "patch_size": 64,
        "batch_size": 4,
        "patches_per_image": 4,
        "val_patches": 2,
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What the demo made."""

    folder: Path
    picture: Path
    """Held-out images, the truth, and the prediction, side by side, PNG."""
    report: Path
    """Scores of the held-out images, and contours on them."""
    labels: Path
    """Folder of predicted label images, with a table of objects for each."""
    run: Path
    """The training run, with its own report and the model."""
    scores: Scores
    """Pooled scores of the held-out images."""
    threshold: Scores
    """The same for Otsu's threshold and connected components: what needs no training."""
    seconds: float
    commands: tuple[str, ...]
    """How to do the same with one's own images."""

    def to_dict(self) -> dict[str, object]:
        """Everything as plain JSON values."""
        paths = ("folder", "picture", "report", "labels", "run")
        return {
            **{name: str(getattr(self, name)) for name in paths},
            "scores": _plain(self.scores),
            "threshold": _plain(self.threshold),
            "seconds": round(self.seconds, 1),
            "commands": list(self.commands),
        }

    def lines(self) -> list[str]:
        """What a user should read."""
        rows = [("model", self.scores), ("threshold only", self.threshold)]
        return [
            f"Scores of held-out images, after {self.seconds:.0f} s in all:",
            "  " + " " * 14 + "".join(f"{name:>16}" for name in _SHOWN),
            *(f"  {name:14}" + "".join(f"{s[key]:16.3f}" for key in _SHOWN) for name, s in rows),
            "",
            f"Picture:  {self.picture}",
            f"Report:   {self.report}",
            f"Labels:   {self.labels}",
            f"Model:    {self.run}",
            "",
            "The same with your own images, where DATA holds images/ and labels/ with files of "
            f"equal names, as {self.folder / 'train'} does:",
            *(f"  {command}" for command in self.commands),
        ]


def demo(
    plugins: Plugins,
    folder: Path,
    *,
    fast: bool = False,
    overwrite: bool = False,
    emit: Emit = lambda event: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> DemoResult:
    """Train on synthetic cells, segment held-out ones, and score the result.

    Args:
        plugins: where to find the backend; it must be ``vista2d``.
        folder: gets everything: ``train/``, ``test/``, ``run/``, ``labels/``, ``picture.png`` and
            ``report.html``.
        fast: train for seconds only, which shows that all works, but finds few cells.
        overwrite: replace what an earlier demo left in the folder.
        emit: gets the events of the training, and notes.
        interrupted: asked after each step; True stops the work.

    Raises:
        UnknownPluginError: the backend is not installed.
        DataError: the folder holds something else, or an earlier demo.
        StorageError: the folder cannot be written.
        InterruptedRunError: stopped.
    """
    from cellseg.synthetic import write_dataset
    from cellseg.workflows.predict import predict
    from cellseg.workflows.predict_settings import PredictSettings
    from cellseg.workflows.train import train
    from cellseg.workflows.train_settings import TrainSettings

    began = time.monotonic()
    plan = FAST if fast else FULL
    _check_backend(plugins)
    _make_free(folder, overwrite)
    write_atomic(folder / FILE, json.dumps({"fast": fast}) + "\n")
    emit(Note(f"Making {plan.train} synthetic images to train on, and {plan.test} to test."))
    write_dataset(folder / "train", plan.train, plan.size, seed=1)
    write_dataset(folder / "test", plan.test, plan.size, seed=2)
    emit(Note(f"Training {BACKEND} from random weights."))
    run = train(
        plugins,
        BACKEND,
        folder / "train",
        folder / "run",
        settings=parse(TrainSettings, {"epochs": plan.epochs}),
        options=plan.options,
        emit=emit,
        interrupted=interrupted,
    )
    emit(Note("Segmenting the test images."))
    predict(
        plugins,
        folder / "test/images",
        parse(PredictSettings, {"model": run.path, "output": folder / "labels"}),
        emit=_without_steps(emit),
        interrupted=interrupted,
    )
    scores, threshold = _report(plugins, folder)
    return DemoResult(
        folder=folder,
        picture=folder / "picture.png",
        report=folder / "report.html",
        labels=folder / "labels",
        run=run.path,
        scores=scores,
        threshold=threshold,
        seconds=time.monotonic() - began,
        commands=(
            "cellseg check-data DATA",
            f"cellseg train DATA --backend {BACKEND} -o RUN",
            "cellseg predict IMAGES --model RUN -o LABELS",
            "cellseg evaluate LABELS TRUTH --images IMAGES --report scores.html",
        ),
    )


def _check_backend(plugins: Plugins) -> None:
    try:
        plugins.get(TrainerSpec, BACKEND)
        plugins.get(PredictorSpec, BACKEND)
    except UnknownPluginError as error:
        raise UnknownPluginError(
            f"The demo trains the backend {BACKEND!r}, which is not installed.",
            hint=f"Install it: uv pip install {PACKAGE}",
        ) from error


def _make_free(folder: Path, overwrite: bool) -> None:
    """Refuse a folder with anything of the user's; remove what an earlier demo left, if asked."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DataError(f"{folder} is a file.", hint="Choose another folder with --output.")
    if not (folder / FILE).exists():
        if any(folder.iterdir()):
            raise DataError(
                f"{folder} exists, and is not from a demo.",
                hint="Choose another folder with --output.",
            )
        return
    if not overwrite:
        raise DataError(
            f"{folder} holds an earlier demo.",
            hint="Replace it with --overwrite, or choose another folder with --output.",
        )
    for name in _PARTS:
        part = folder / name
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)


def _without_steps(emit: Emit) -> Emit:
    """Steps of the training are shown; those of other work would start again from 1."""

    def pass_on(event: Event) -> None:
        if not isinstance(event, Progress):
            emit(event)

    return pass_on


def _report(plugins: Plugins, folder: Path) -> tuple[Scores, Scores]:
    """Score the predicted labels, write report and picture; scores of model and threshold."""
    from cellseg.report import views_of, write_evaluation_report
    from cellseg.report.comparison import comparison
    from cellseg.workflows.evaluate import evaluate

    evaluation = evaluate(plugins, folder / "labels", folder / "test/labels")
    find = views_of(plugins, evaluation, folder / "test/images")
    views = [view for one in evaluation.images if (view := find(one.name))]
    threshold = _threshold_scores(views)
    write_evaluation_report(
        evaluation,
        folder / "report.html",
        images=find,
        notes=[
            "Synthetic cells of cellseg demo, which the training never saw.",
            "For comparison, Otsu's threshold with connected components, which needs no training, "
            f"gets f1@0.50 = {threshold['f1@0.50']:.3f} on the same images.",
        ],
    )
    arrays = [(_read(v.image), _read(v.truth), _read(v.prediction)) for v in views[:_IN_PICTURE]]
    write_atomic(folder / "picture.png", comparison(arrays))
    return evaluation.pooled, threshold


def _threshold_scores(views: list[View]) -> Scores:
    """What smoothing, Otsu's threshold and connected components achieve."""
    from scipy import ndimage
    from skimage.filters import threshold_otsu

    from cellseg.metrics import overlaps, score, tally

    tallies = []
    for view in views:
        smooth = ndimage.gaussian_filter(_read(view.image)[0].astype(float), (0, 1, 1))
        labels, _ = ndimage.label(smooth > threshold_otsu(smooth))
        tallies.append(tally(overlaps(labels, view.truth)))
    return score(tallies)


def _read(array: LazyArray | None) -> NDArray[Any]:
    """All of an image: those of the demo are small."""
    assert array is not None
    return array[tuple(slice(0, length) for length in array.shape)]


def _plain(scores: Scores) -> dict[str, float | None]:
    return {name: value if value == value else None for name, value in scores.items()}
