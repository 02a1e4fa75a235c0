"""What a step may report, and the shortest of all trainings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from test_torch_training import LOADERS, Line, make_job, run, weights  # noqa: E402

from cellseg.errors import InterruptedRunError, PluginError  # noqa: E402
from cellseg.events import Checkpointed, Note, Progress, Validated  # noqa: E402
from cellseg.torch.training import fit  # noqa: E402
from cellseg.torch.weights import seeded  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


class Many(Line):
    """Reports more terms; some only from batches with a large value, if ``lacking``."""

    lacking = False

    def training_step(self, batch: Any) -> dict[str, torch.Tensor]:
        loss = super().training_step(batch)["loss"]
        terms = {"loss": loss, "loss_sem": loss / 2}
        if not self.lacking or batch["x"].max() > 0.9:
            terms["loss_ins"] = loss.detach() * 0 + 1
        return terms


class Lacking(Many):
    lacking = True


class Silent(Line):
    def validation_step(self, batch: Any) -> dict[str, tuple[float, float]]:
        return {"other": (1.0, 1.0)}


class NoLoss(Line):
    def training_step(self, batch: Any) -> dict[str, torch.Tensor]:
        return {"los": super().training_step(batch)["loss"]}


def train(module: type[Line], folder: Path, **options: Any) -> list[Any]:
    events: list[Any] = []
    with seeded(0):
        made = module()
    fit(made, LOADERS, make_job(folder, **options), events.append)
    return events


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_backend_names_its_terms(tmp_path: Path, accumulate: int) -> None:
    events = train(Many, tmp_path, accumulate=accumulate)
    for event in events:
        if isinstance(event, Progress):
            terms = event.metrics
            assert list(terms) == [
                "train/loss", "train/loss_sem", "train/loss_ins", "learning_rate"
            ]  # fmt: skip
            assert terms["train/loss_ins"] == pytest.approx(1)
            assert terms["train/loss_sem"] == pytest.approx(terms["train/loss"] / 2)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_terms_that_come_and_go_are_a_broken_backend(tmp_path: Path, accumulate: int) -> None:
    with pytest.raises(PluginError, match=r"from batch to batch: loss.*must be 0"):
        train(Lacking, tmp_path, epochs=20, accumulate=accumulate)


def test_what_must_be_there_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="no 'loss', only: los"):
        train(NoLoss, tmp_path / "a")
    with pytest.raises(PluginError, match=r"gives other, but not 'score'"):
        train(Silent, tmp_path / "b")


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes find the classes of this module by its name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[__name__.count(".")]))


@pytest.mark.slow
@pytest.mark.usefixtures("importable")
def test_terms_that_only_one_process_lacks_end_both(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="terms"):
        train(Lacking, tmp_path, epochs=20, devices=2, strategy="ddp", num_workers=0)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_fast_development_run_takes_the_usual_way_once(tmp_path: Path, accumulate: int) -> None:
    job = make_job(tmp_path, epochs=300, fast_dev_run=True, accumulate=accumulate, warmup_steps=9)
    module, events, result = run(job, replace(LOADERS, epoch_samples=10**6))
    steps = [event for event in events if isinstance(event, Progress)]
    assert [(e.step, e.total, e.epoch) for e in steps] == [(1, 1, 1)]
    (validated,) = [event for event in events if isinstance(event, Validated)]
    assert validated.epoch == 1 and result.epochs == 1
    assert [e.step for e in events if isinstance(e, Checkpointed)] == [1]
    assert "fast development run" in next(e.text for e in events if isinstance(e, Note))
    assert module.previews == [1]
    names = sorted(file.suffix for file in job.checkpoint.iterdir())
    assert names == [".ckpt", ".safetensors"]
    again, events, _ = run(job, replace(LOADERS, epoch_samples=10**6))
    assert not [e for e in events if isinstance(e, Progress)], "it is finished"
    assert weights(again) == weights(module)


def test_a_fast_development_run_without_validation(tmp_path: Path) -> None:
    job = make_job(tmp_path, epochs=300, fast_dev_run=True)
    _, events, _ = run(job, replace(LOADERS, val=None, val_batches=0))
    assert len([e for e in events if isinstance(e, Progress)]) == 1
    assert not [e for e in events if isinstance(e, Validated)]


def test_the_best_three_and_the_last_are_kept_and_resumed_from(tmp_path: Path) -> None:
    options = {"epochs": 7, "learning_rate": 0.4, "average": 0, "clip": 0, "save_top_k": 3}
    whole, events, _ = run(make_job(tmp_path / "whole", **options))
    scores = {e.epoch: e.metrics["val/score"] for e in events if isinstance(e, Validated)}
    best = sorted(scores, key=lambda epoch: -scores[epoch])[:3]

    def kept(name: str) -> list[str]:
        return sorted(file.name for file in (tmp_path / name / "checkpoint").iterdir())

    expected = [f"epoch-{e:04d}.safetensors" for e in sorted(best)]
    assert kept("whole") == [*expected, "step-00000042-epoch-0007.ckpt"]
    asked = iter([False] * 32 + [True])
    cut = make_job(tmp_path / "cut", **options)
    with pytest.raises(InterruptedRunError):
        run(replace(cut, interrupted=lambda: next(asked)))
    assert len([name for name in kept("cut") if name.endswith(".safetensors")]) == 3
    again, _, _ = run(cut)
    assert kept("cut") == kept("whole") and weights(again) == weights(whole)
