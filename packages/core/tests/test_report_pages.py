"""Report pages: complete, in order, self-contained, and safe against hostile names."""

from __future__ import annotations

import html
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cellseg.bundle import Bundle
from cellseg.errors import DataError
from cellseg.events import Checkpointed, Event, Failed, Note, Progress, Resumed, Validated
from cellseg.metrics import OverlapTable, overlaps, score, tally
from cellseg.plugins import Plugins
from cellseg.report import View, views_of, write_evaluation_report, write_run_report
from cellseg.report.curves import Series, chart
from cellseg.report.overlay import overlay
from cellseg.report.run import charts
from cellseg.runs import Request, RunDir
from cellseg.splits import Splits
from cellseg.synthetic import make_image, write_dataset
from cellseg.workflows.evaluate import Evaluation, ImageScores, evaluate
from cellseg.workflows.evaluate_settings import EvaluateSettings

HOSTILE = "<img src=x onerror=alert(1)>\"'&.tif"


def scored(table: dict[str, OverlapTable]) -> Evaluation:
    """An evaluation as ``evaluate`` gives it."""
    tallies = {name: tally(one) for name, one in table.items()}
    images = tuple(
        ImageScores(name=name, prediction=Path("p"), truth=Path("t"), scores=score([one]))
        for name, one in tallies.items()
    )
    pooled = score(list(tallies.values()))
    return Evaluation(
        prediction=Path("/predicted/labels"),
        truth=Path("/true/labels"),
        settings=EvaluateSettings(min_size=5),
        images=images,
        pooled=pooled,
        mean=pooled,
    )


def evaluation(names: list[str], views: dict[str, View]) -> Evaluation:
    """Predictions that lose ever more of the cells."""
    tables = {}
    for index, name in enumerate(names):
        image, truth = make_image((0, index), (64, 64), 12)
        prediction = np.where(truth > index * 2, truth, 0)
        tables[name] = overlaps(prediction, truth)
        views[name] = View(prediction=prediction[None], truth=truth[None], image=image[None, None])
    return scored(tables)


def new_run(folder: Path, events: list[Event], data: str = "/data/cells") -> RunDir:
    request = Request(
        backend="vista2d",
        backend_version="1.2.3",
        cellseg_version="4.5.6",
        data=Path(data),
        settings={"epochs": 3, "val": None, "val_fraction": 0.25},
        reader="folder",
        reader_options={"channels": None},
        options={"learning_rate": 0.0003, "flip": True},
        normaliser={"normalise": "percentile"},
    )
    run = RunDir.create(folder, request, {"epochs": 3}, Splits(train=("a",), val=("b",)))
    for event in events:
        run.record(event)
    return run


def training(steps: int = 60) -> list[Event]:
    events: list[Event] = []
    for step in range(1, steps + 1):
        metrics = {"loss": 5 / step, "lr": 1e-3}
        events.append(Progress(step, steps, metrics, epoch=(step - 1) // 20 + 1))
        if step % 20 == 0:
            values = {"val_loss": 6 / step, "f1": step / steps}
            events += [Validated(step, values, best=step <= 40, epoch=step // 20)]
            events += [Checkpointed(step)]
    return events


def loads_nothing(page: str) -> bool:
    return not re.search(r"""(?:src|href)\s*=\s*["'](?!data:|#)|url\(|@import|<script""", page)


def test_evaluation_page_has_rows_worst_first_and_pictures(tmp_path) -> None:
    views: dict[str, View] = {}
    result = evaluation(["a", "b", "c"], views)
    nothing = np.zeros((8, 8), int)
    empty = scored({"empty": overlaps(nothing, nothing)})
    result = replace(result, images=(*empty.images, *result.images))
    page = tmp_path / "sub/report.html"
    assert write_evaluation_report(result, page, images=views.get) == page
    text = page.read_text(encoding="utf-8")
    rows = re.findall(r'<th scope="row">(\w+)', text.split('id="scores"')[1].split("</table>")[0])
    assert rows == ["c", "b", "a", "empty"]
    assert text.count('src="data:image/png;base64,') == 3  # nobody has arrays of "empty"
    assert "min_size" in text and "/true/labels" in text and "numpy" in text
    assert f"{result.pooled['f1@0.50']:.3f}" in text
    assert loads_nothing(text)


def test_evaluation_page_shows_at_most_twelve_pictures_and_says_so(tmp_path) -> None:
    views: dict[str, View] = {}
    result = evaluation([f"image {i:02d}" for i in range(14)], views)
    asked: list[str] = []

    def find(name: str) -> View | None:
        asked.append(name)
        return views[name]

    text = write_evaluation_report(result, tmp_path / "r.html", images=find).read_text()
    assert text.count("<img") == len(asked) == 12
    assert "The worst 12 of 14 images" in text
    assert (tmp_path / "r.html").stat().st_size < 2_000_000


def test_names_are_never_markup(tmp_path) -> None:
    views: dict[str, View] = {}
    result = evaluation([HOSTILE], views)
    write_evaluation_report(result, tmp_path / "e.html", images=views.get, notes=[HOSTILE])
    events = [
        *training(20),
        Note(HOSTILE),
        Failed(HOSTILE, HOSTILE),
        Progress(21, 21, {HOSTILE: 1.0}),
    ]
    run = new_run(tmp_path / "run", events, data=HOSTILE)
    Splits(train=(HOSTILE,), val=("v",)).save(run.splits)
    write_run_report(run)
    for page in (tmp_path / "e.html", run.report):
        text = page.read_text(encoding="utf-8")
        assert "<img src=x" not in text
        assert text.count(str(html.escape("<img src=x onerror"))) >= 3


def test_volume_shows_one_plane_and_says_which(tmp_path) -> None:
    truth = np.zeros((9, 32, 32), np.uint32)
    truth[4, 5:15, 5:15] = 1
    result = scored({"stack": overlaps(truth, truth)})
    view = View(prediction=truth, truth=truth)
    text = write_evaluation_report(
        result, tmp_path / "r.html", images=lambda name: view
    ).read_text()
    assert "slice 4 of 9" in text


def test_large_image_shows_its_middle_and_says_so(tmp_path) -> None:
    truth = np.zeros((1, 1600, 40), np.uint8)
    view = View(prediction=truth, truth=truth)
    result = scored({"wide": overlaps(truth, truth)})
    text = write_evaluation_report(
        result, tmp_path / "r.html", images=lambda name: view
    ).read_text()
    assert "the middle 1536 x 40 of 1600 x 40" in text


def test_views_are_found_by_name(tmp_path) -> None:
    write_dataset(tmp_path, count=2, size=64)
    plugins = Plugins(installed=())
    result = evaluate(plugins, tmp_path / "labels", tmp_path / "labels")
    find = views_of(plugins, result, tmp_path / "images")
    view = find("cells_001")
    assert view is not None and view.image is not None
    image, labels = make_image((0, 1), (64, 64))
    everything = (slice(0, 1), slice(0, 64), slice(0, 64))
    np.testing.assert_array_equal(view.truth[everything][0], labels)
    np.testing.assert_array_equal(view.image[(slice(0, 1), *everything)][0, 0], image)
    text = write_evaluation_report(result, tmp_path / "r.html", images=find).read_text()
    assert text.count("<img") == 2

    (tmp_path / "images/cells_001.tif").rename(tmp_path / "images/other.tif")
    with pytest.raises(DataError, match="no image called 'cells_001'"):
        views_of(plugins, result, tmp_path / "images")("cells_001")
    bare = views_of(plugins, result)("cells_001")
    assert bare is not None and bare.image is None


def test_finished_run(tmp_path) -> None:
    run = new_run(tmp_path / "my run", [*training(), Note("All good.")])
    Splits(train=("a", "b"), val=("c",)).save(run.splits)
    Bundle(backend="vista2d", predict={"bandwidth": 0.75}).save(run.model)
    image, labels = make_image(0, (64, 64))
    for index in range(15):
        picture = overlay(image[None, None], labels[None], labels[None])
        (run.previews / f"epoch-{index}.png").write_bytes(picture)
    (run.previews / "epoch-99.png").write_bytes(b"no picture")
    assert write_run_report(run) == run.report
    text = run.report.read_text(encoding="utf-8")
    assert ">finished<" in text and "my run" in text
    assert "bandwidth" in text and "0.75" in text
    assert "learning_rate" in text and "0.0003" in text
    assert "4.5.6" in text and "1.2.3" in text
    assert "2 to train, 1 to validate" in text
    assert "All good." in text
    assert text.count("<img") == 7  # the newest eight, without the one that is no picture
    assert text.index("Preview epoch-14") < text.index("Preview epoch-9")
    assert "9 more are in the folder" in text
    assert loads_nothing(text)
    assert text.count("<svg viewBox") >= 3


def test_run_that_was_killed_before_its_first_step(tmp_path) -> None:
    run = new_run(tmp_path / "run", [])
    run.log.write_text('{"event": "Progr')
    text = write_run_report(run).read_text()
    assert "not finished" in text and "cellseg resume" in text
    assert "No step has been reported yet." in text


def test_damaged_splits_are_said_aloud(tmp_path) -> None:
    run = new_run(tmp_path / "run", training(20))
    run.splits.write_text("{")
    assert "splits.json" in write_run_report(run).read_text().split('id="notes"')[1]


def test_no_run(tmp_path) -> None:
    with pytest.raises(DataError, match=r"run\.json"):
        write_run_report(RunDir(tmp_path))


def test_large_previews_are_reduced(tmp_path) -> None:
    import cv2

    run = new_run(tmp_path / "run", [])
    noise = np.random.default_rng(0).integers(0, 255, (1500, 1000, 3), dtype=np.uint8)
    cv2.imwrite(str(run.previews / "big.png"), noise)
    size = (run.previews / "big.png").stat().st_size
    assert run.report.exists() is False
    assert write_run_report(run).stat().st_size < 0.6 * size


def test_training_and_validation_share_a_chart() -> None:
    drawn = {one.title: one for one in charts(training())}
    assert list(drawn) == ["loss", "f1", "lr"]
    assert [line.name for line in drawn["loss"].lines] == ["training", "validation"]
    best = drawn["loss"].lines[1].best
    assert best is not None and "at 40" in best[2]


def test_steps_done_again_after_a_resume_count_once(tmp_path) -> None:
    run = new_run(tmp_path / "run", [*training(40), Resumed(20), Progress(21, 40, {"loss": 77.0})])
    (loss, *_) = charts(run.events())
    assert "from 5 at step 1 to 77 at step 21" in loss.description


def test_chart_geometry() -> None:
    line = chart("t", [Series("s", [(1, 0.0), (2, 1.0), (3, math.nan)])], whole=True, wide=False)
    assert line is not None
    assert [tick.text for tick in line.x_ticks] == ["0", "1", "2"] or line.x_ticks
    (first, last) = re.findall(r"([\d.]+),([\d.]+)", line.lines[0].path)
    assert float(first[1]) == line.bottom and float(last[1]) == line.top  # 0 below, 1 on top
    assert chart("t", [Series("s", [(1, math.nan)])], whole=True, wide=False) is None
    assert chart("t", [], whole=True, wide=False) is None


def test_chart_of_one_point_and_of_many() -> None:
    assert chart("t", [Series("s", [(1, 0.0)])], whole=True, wide=True) is not None
    many = [(float(i), 1.0 + (i % 2)) for i in range(100_000)]
    drawn = chart("t", [Series("s", many, smooth=True)], whole=True, wide=True)
    assert drawn is not None
    assert len(drawn.lines[0].path) < 10_000


def test_wide_values_get_a_logarithmic_axis() -> None:
    points = [(1.0, 1000.0), (2.0, 0.01)]
    wide = chart("t", [Series("s", points)], whole=True, wide=True)
    assert wide is not None and wide.y_label == "log scale"
    assert {tick.text for tick in wide.y_ticks} >= {"0.1", "10", "1000"}
    flat = chart("t", [Series("s", points)], whole=True, wide=False)
    assert flat is not None and flat.y_label == ""
