"""Two trainings that are one run: shares, numbering, and what is written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from cellseg.errors import ConfigError, DataError
from cellseg.events import Checkpointed, Note, Progress, Validated
from cellseg.report.run import charts
from cellseg.specs import TrainJob
from cellseg_cellsam.options import CellSamOptions
from cellseg_cellsam.stages import Finished, Numbered, job_of, shares_of


def make_job(folder: Path, epochs: int, **options: Any) -> TrainJob[CellSamOptions]:
    return TrainJob(
        options=CellSamOptions(**options),
        train=[],
        val=[],
        epochs=epochs,
        seed=0,
        device="cpu",
        checkpoint=folder / "checkpoint",
        model=folder / "model",
        previews=folder / "previews",
    )


def test_a_run_that_is_prolonged_keeps_its_first_stage(tmp_path: Path) -> None:
    assert shares_of(make_job(tmp_path, 5)) == (3, 2)
    assert shares_of(make_job(tmp_path, 9)) == (3, 6)
    assert shares_of(make_job(tmp_path, 3)) == (3, 0)
    with pytest.raises(ConfigError, match="--epochs 2: stage 1 of this run has 3"):
        shares_of(make_job(tmp_path, 2))


@pytest.mark.parametrize(("stage", "shares"), [("1", (5, 0)), ("2", (0, 5))])
def test_one_stage_has_all(stage: str, shares: tuple[int, int], tmp_path: Path) -> None:
    assert shares_of(make_job(tmp_path, 5, stage=stage)) == shares
    assert not (tmp_path / "checkpoint").exists(), "there is nothing to remember"


def test_an_untrained_model_leaves_nothing_to_resume(tmp_path: Path) -> None:
    assert shares_of(make_job(tmp_path, 0)) == (0, 0)
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize("text", ["", "[]", '{"stage1_epochs": "x"}', "{}"])
def test_damage_is_told(text: str, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint" / "stages.json"
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(DataError, match=r"stages\.json"):
        shares_of(make_job(tmp_path, 5))
    (tmp_path / "checkpoint" / "stage1.json").write_text(text)
    with pytest.raises(DataError, match=r"stage1\.json"):
        Finished.load(tmp_path / "checkpoint")


def test_what_stage_1_found_comes_back(tmp_path: Path) -> None:
    done = Finished(steps=7, epochs=3, learnt=("a", "b"), calibrated={"box_threshold": 0.25})
    assert Finished.load(tmp_path) is None
    done.save(tmp_path)
    assert Finished.load(tmp_path) == done
    assert json.loads((tmp_path / "stage1.json").read_text())["calibrated"] == done.calibrated


def test_each_stage_has_folders_and_patience_of_its_own(tmp_path: Path) -> None:
    job = job_of(make_job(tmp_path, 9, stage2_patience=4), "stage2", 6, 4)
    assert (job.epochs, job.options.early_stopping) == (6, 4)
    assert job.checkpoint == tmp_path / "checkpoint" / "stage2"
    assert job.previews == tmp_path / "previews" / "stage2"
    assert job.model == tmp_path / "model"


def test_steps_and_epochs_go_on_and_metrics_say_their_stage() -> None:
    second = Numbered(name="stage2", steps=10, epochs=3)
    metrics = {"train/loss": 1.0, "learning_rate": 0.1}
    assert second(Progress(1, 4, metrics, 1)) == Progress(
        11, 14, {"train/stage2/loss": 1.0, "stage2/learning_rate": 0.1}, 4
    )
    assert second(Validated(4, {"val/score": 0.5}, True, 2, "val/score")) == Validated(
        14, {"val/stage2/score": 0.5}, True, 5, "val/stage2/score"
    )
    assert second(Checkpointed(4)) == Checkpointed(14)
    assert second(Note("a")) == Note("a")
    first = Numbered(name="stage1", later=4)
    assert first(Progress(1, 10, {}, 1)) == Progress(1, 14, {}, 1)


def test_the_report_draws_each_stage_by_itself() -> None:
    first, second = Numbered(name="stage1", later=2), Numbered(name="stage2", steps=2, epochs=1)
    events = []
    for stage in (first, second):
        for step in (1, 2):
            events.append(stage(Progress(step, 2, {"train/loss": 1.0 / step, "learning_rate": 1})))
            events.append(stage(Validated(step, {"val/score": 0.1 * step}, step == 1)))
    drawn = {chart.title: chart for chart in charts(events)}
    assert list(drawn) == [
        "stage1: loss",
        "stage2: loss",
        "stage1: score",
        "stage2: score",
        "stage1: learning rate",
        "stage2: learning rate",
    ]
    for name in ("stage1: score", "stage2: score"):
        assert drawn[name].lines[0].best is not None, "each stage has a best validation"
