"""The pages as a real browser shows them."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from cellseg.events import Note, Progress, Validated
from cellseg.metrics import overlaps, score, tally
from cellseg.report import View, write_evaluation_report, write_run_report, write_tracks_page
from cellseg.report.drawing import distinct
from cellseg.report.overlay import PREDICTION, TRUTH
from cellseg.runs import Request, RunDir
from cellseg.splits import Splits
from cellseg.synthetic import make_image
from cellseg.tracks import Lineage, Track
from cellseg.workflows.evaluate import Evaluation, ImageScores
from cellseg.workflows.evaluate_settings import EvaluateSettings

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
HOSTILE = "<img src=x onerror=document.title='taken'><script>document.title='taken'</script>"

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs a browser: apt-get install chromium"
)


@dataclass
class Shown:
    """What came out of the browser."""

    dom: str
    picture: np.ndarray  # (y, x, 3) uint8, RGB
    console: str


def browse(page: Path, folder: Path, size: str = "1200,2400") -> Shown:
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        "--virtual-time-budget=2000",
        f"--window-size={size}",
        f"--user-data-dir={folder / 'profile'}",
    ]
    screenshot = folder / "page.png"
    address = page.absolute().as_uri()
    taken = subprocess.run(
        [*command, f"--screenshot={screenshot}", address],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    dumped = subprocess.run(
        [*command, "--dump-dom", address], capture_output=True, text=True, timeout=120, check=True
    )
    console = [line for line in taken.stderr.splitlines() if "CONSOLE" in line]
    picture = cv2.imread(str(screenshot), cv2.IMREAD_COLOR_RGB)
    assert picture is not None
    return Shown(dumped.stdout, picture, "\n".join(console))


def share(picture: np.ndarray, colour: tuple[int, int, int]) -> float:
    return float((np.abs(picture.astype(int) - colour).max(axis=2) < 60).mean())


def test_evaluation_report(tmp_path) -> None:
    tallies, images, views = [], [], {}
    for index, name in enumerate(["good", "middling", HOSTILE]):
        image, truth = make_image((0, index), (96, 96), 12)
        prediction = np.where(truth > 4 * index, np.roll(truth, 2, axis=1), 0)
        tallies.append(tally(overlaps(prediction, truth)))
        scores = score([tallies[-1]])
        images.append(ImageScores(name=name, prediction=tmp_path, truth=tmp_path, scores=scores))
        views[name] = View(prediction=prediction[None], truth=truth[None], image=image[None, None])
    page = tmp_path / "report.html"
    result = Evaluation(
        prediction=tmp_path,
        truth=tmp_path,
        settings=EvaluateSettings(),
        images=tuple(images),
        pooled=score(tallies),
        mean=score(tallies),
    )
    write_evaluation_report(result, page, images=views.get, notes=[HOSTILE])
    shown = browse(page, tmp_path)

    assert shown.console == ""  # no script ran, nothing was blocked or missing
    assert "<title>Evaluation of 3 images</title>" in shown.dom
    table = shown.dom.split('id="scores"')[1].split("</table>")[0]
    rows = re.findall(r'<tr><th scope="row">(&lt;img|\w+)', table)
    assert rows == ["&lt;img", "middling", "good"]
    assert share(shown.picture, PREDICTION) > 2e-4
    assert share(shown.picture, TRUTH) > 2e-4


def test_run_report(tmp_path) -> None:
    request = Request(
        backend="vista2d",
        data=Path(HOSTILE),
        settings={HOSTILE: HOSTILE},
        reader="folder",
        reader_options={},
        options={},
        normaliser={},
    )
    run = RunDir.create(tmp_path / "run", request, {}, Splits(train=("a",), val=("b",)))
    for step in range(1, 101):
        run.record(Progress(step, 100, {"loss": 1 / step}))
    run.record(Validated(100, {"f1": 0.5}, best=True))
    run.record(Note(HOSTILE))
    shown = browse(write_run_report(run), tmp_path, "1200,1400")

    assert shown.console == ""
    assert "<title>Training of run</title>" in shown.dom
    assert shown.dom.count('<svg viewBox="0 0 560 260"') == 2
    assert share(shown.picture, (0, 114, 178)) > 1e-4  # the training curve is drawn


def test_tracks_page(tmp_path) -> None:
    labels = np.zeros((4, 1, 40, 60), np.uint32)
    labels[:2, 0, 10:30, 20:40] = 1
    labels[2:, 0, 10:30, 10:28], labels[2:, 0, 10:30, 32:50] = 2, 3
    lineage = Lineage.of([Track(1, 0, 1), Track(2, 2, 3, 1), Track(3, 2, 3, 1)])
    page = write_tracks_page(
        tmp_path / "tracks.html", HOSTILE, None, list(labels), lineage, (1.0, 1.0, 1.0)
    )
    shown = browse(page, tmp_path, "1200,1800")

    assert shown.console == ""
    assert shown.dom.count('<path class="track"') == 3
    mother, *daughters = distinct(np.array([1, 2, 3]))
    assert share(shown.picture, mother) > 2e-4  # in the movie or the lineage
    assert all(share(shown.picture, colour) > 2e-4 for colour in daughters)
    top = shown.picture[:900].astype(int)  # the movie has a frame of white letters on black
    assert ((top == 0).all(axis=2).mean()) > 0.05
