"""Training in two stages: what is reported and kept, resuming, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402
from sam_fakes import small_sam  # noqa: E402

from cellseg.classes import encoded  # noqa: E402
from cellseg.errors import ConfigError, InterruptedRunError  # noqa: E402
from cellseg.events import Checkpointed, Note, Progress, Validated  # noqa: E402
from cellseg.specs import Trained, TrainJob  # noqa: E402
from cellseg.testing import blobs  # noqa: E402
from cellseg_cellsam import train as module  # noqa: E402
from cellseg_cellsam.options import CellSamOptions  # noqa: E402
from cellseg_cellsam.predict_options import CellSamPredictOptions  # noqa: E402
from cellseg_cellsam.stored import load_model  # noqa: E402
from cellseg_cellsam.train import train  # noqa: E402
from cellseg_cellsam.weights import LICENCE  # noqa: E402

SHAPE = (1, 48, 48)
TINY: dict[str, Any] = {
    "model_type": "tiny",
    "patch_size": 48,
    "patches_per_image": 1,
    "batch_size": 1,
    "boxes_per_image": 4,
    "queries": 16,
    "warmup_steps": 0,
    "threads": 1,
    "calibrate": False,
}


def make_job(folder: Path, epochs: int = 2, **changes: Any) -> TrainJob[CellSamOptions]:
    for name in ("checkpoint", "model", "previews"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    own = {n: v for n, v in changes.items() if n in CellSamOptions.model_fields}
    rest = {n: v for n, v in changes.items() if n not in own}
    idle = {"1": {"boxes_per_image"}, "2": {"queries"}}.get(own.get("stage", "both"), set())
    if own.get("checkpoint"):
        idle |= {"model_type", "queries"}
    tiny = {n: v for n, v in TINY.items() if n not in idle}
    job: TrainJob[Any] = TrainJob(
        options=CellSamOptions(**{**tiny, **own}),
        train=[blobs(seed, SHAPE) for seed in (1, 2)],
        val=[blobs(3, SHAPE)],
        epochs=epochs,
        seed=0,
        device="cpu",
        checkpoint=folder / "checkpoint",
        model=folder / "model",
        previews=folder / "previews",
    )
    return replace(job, **rest)


def run(job: TrainJob[CellSamOptions]) -> tuple[Trained, list[Any]]:
    events: list[Any] = []
    return train(job, events.append), events


def notes(events: list[Any]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Note))


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model" / "weights.safetensors")


def changed(one: Path, other: Path) -> set[str]:
    old, new = weights(one), weights(other)
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


def test_one_run_of_two_stages(tmp_path: Path) -> None:
    trained, events = run(make_job(tmp_path, 3, calibrate=True))
    steps = [e for e in events if isinstance(e, Progress)]
    assert [(e.step, e.total, e.epoch) for e in steps] == [
        (s, 6, (s + 1) // 2) for s in range(1, 7)
    ]
    assert [e.step for e in events if isinstance(e, Checkpointed)] == [2, 4, 6]
    loss = [next(n for n in e.metrics if n.endswith("/loss")) for e in steps]
    assert loss == ["train/stage1/loss"] * 4 + ["train/stage2/loss"] * 2
    assert "stage1/learning_rate" in steps[0].metrics
    assert "stage2/learning_rate" in steps[-1].metrics
    validated = [e for e in events if isinstance(e, Validated)]
    assert [e.epoch for e in validated] == [1, 2, 3]
    assert [e.monitor for e in validated] == ["val/stage1/score"] * 2 + ["val/stage2/score"]
    assert validated[-1].best and validated[-1].monitor in validated[-1].metrics
    drawn = sorted(p.relative_to(tmp_path / "previews") for p in tmp_path.rglob("*.png"))
    assert [str(path) for path in drawn] == [
        "stage1/epoch-0001.png",
        "stage1/epoch-0002.png",
        "stage2/epoch-0001.png",
    ]
    assert "Stage 1: Thresholds" in notes(events) and "Stage 2: Thresholds" in notes(events)
    assert "box_threshold" in trained.calibrated
    CellSamPredictOptions(**trained.calibrated)  # type: ignore[arg-type]
    assert trained.tiling is not None and trained.tiling.core == (1, 36, 36)
    model, description = load_model(tmp_path / "model")
    assert description.boxes_trained and description.masks_trained and description.field == 48
    assert model.sizes.queries == 16
    assert {p.name for p in (tmp_path / "model").iterdir()} == {
        "cellsam.json",
        "weights.safetensors",
    }


def test_the_stages_change_what_they_say_and_no_more(tmp_path: Path) -> None:
    run(make_job(tmp_path / "before", 0))
    # The last weights: some layers start as zero, so that others learn from the second step on.
    trained, _ = run(make_job(tmp_path / "after", 2, patches_per_image=3, save_top_k=0))
    kept = tmp_path / "after" / "checkpoint" / "stage1"
    first, both = (
        changed(tmp_path / "before", kept),
        changed(tmp_path / "before", tmp_path / "after"),
    )
    second = changed(kept, tmp_path / "after")
    neck = {n for n in both if n.startswith("sam.image_encoder.neck.")}
    assert second == neck and neck, "stage 2 changes the neck, and nothing that stage 1 learned"
    assert not first & neck and any(n.startswith("detector.") for n in first)
    assert both == first | second == set(trained.trainable)


def test_updates_are_merged_when_stage_1_is_done(tmp_path: Path) -> None:
    run(make_job(tmp_path / "before", 0))
    changes: dict[str, Any] = {"lora_rank": 2, "backbone_learning_rate": 1e-2}
    trained, _ = run(
        make_job(tmp_path / "after", 2, stage1_epochs=1, patches_per_image=3, **changes)
    )
    found = changed(tmp_path / "before", tmp_path / "after")
    assert found == set(trained.trainable)
    trunk = {n for n in found if n.startswith("sam.image_encoder.") and ".neck." not in n}
    assert trunk and all(n.endswith(".attn.qkv.weight") for n in trunk)


def test_stage_1_is_kept_and_can_be_started_from(tmp_path: Path) -> None:
    run(make_job(tmp_path / "both", 2, calibrate=True))
    checkpoint = tmp_path / "both" / "checkpoint"
    done = json.loads((checkpoint / "stage1.json").read_text())
    assert "box_threshold" in done["calibrated"] and done["steps"] == 2
    assert not list((checkpoint / "stage1").glob("*.ckpt")), "nothing goes on from there"
    trained, events = run(
        make_job(tmp_path / "again", 1, stage="2", checkpoint=checkpoint / "stage1", calibrate=True)
    )
    assert [base.name for base in trained.base_weights] == ["stage1"]
    assert "random" not in notes(events).replace("mask decoder has random", "")
    assert "box_threshold" in trained.calibrated
    # The same stage 2 from the same stage 1; so the same model.
    assert not changed(tmp_path / "both", tmp_path / "again")


def test_the_licence_of_cellsam_stays_from_run_to_run(tmp_path: Path) -> None:
    state = {f"model.{n}": tensor for n, tensor in small_sam(seed=5).sam.state_dict().items()}
    torch.save(state, tmp_path / "cellsam.pt")
    run(make_job(tmp_path / "1", 2, checkpoint=tmp_path / "cellsam.pt", queries=9))
    kept = tmp_path / "1" / "checkpoint" / "stage1"
    for number, source in enumerate((tmp_path / "1", kept, kept / "model"), 2):
        folder = tmp_path / str(number)
        trained, events = run(make_job(folder, 1, stage="2", checkpoint=source))
        assert "non-commercial academic use only" in notes(events)
        assert [base.licence for base in trained.base_weights] == [LICENCE]
        assert load_model(folder / "model")[1].licence == LICENCE


class Killed(BaseException):
    """As by SIGKILL: nothing is tidied up."""


def until(moment: int) -> Any:
    """Kills at an event."""
    seen: list[Any] = []

    def emit(event: Any) -> None:
        seen.append(event)
        if len(seen) == moment:
            raise Killed

    return emit


def test_killed_at_any_event_and_resumed_is_one_go(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"checkpoint_every": 1, "lora_rank": 2, "stage2_patience": 3}
    whole, events = run(make_job(tmp_path / "whole", 2, **changes))
    for moment in range(1, len(events) + 1, 3):
        folder = tmp_path / str(moment)
        job = make_job(folder, 2, **changes)
        with pytest.raises(Killed):
            train(job, until(moment))
        trained, after = run(job)
        assert not changed(tmp_path / "whole", folder), events[moment - 1]
        assert trained.trainable == whole.trainable
        steps = [e.step for e in after if isinstance(e, Progress)]
        assert steps == sorted(set(steps)) and steps[-1:] in ([4], [])


def test_killed_between_the_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(make_job(tmp_path / "whole", 2))
    for name in ("save_model", "remove"):
        job = make_job(tmp_path / name, 2)
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(module, name, killed)
            train(job, lambda event: None)
        _, events = run(job)
        assert not changed(tmp_path / "whole", tmp_path / name)
        redone = [e.step for e in events if isinstance(e, Progress) and e.step <= 2]
        assert not redone, "stage 1 was done"


def killed(*given: Any) -> None:
    raise Killed


def test_a_finished_run_is_prolonged_in_its_last_stage(tmp_path: Path) -> None:
    run(make_job(tmp_path / "long", 4, stage1_epochs=1))
    run(make_job(tmp_path / "parts", 2))
    _, events = run(make_job(tmp_path / "parts", 4))
    assert not changed(tmp_path / "long", tmp_path / "parts")
    assert [e.step for e in events if isinstance(e, Progress)] == [5, 6, 7, 8]
    run(make_job(tmp_path / "one", 2, stage="1"))
    run(make_job(tmp_path / "two", 1, stage="1"))
    run(make_job(tmp_path / "two", 2, stage="1"))
    assert not changed(tmp_path / "one", tmp_path / "two")


def test_an_interrupt_names_the_run(tmp_path: Path) -> None:
    with pytest.raises(InterruptedRunError) as error:
        train(make_job(tmp_path, interrupted=lambda: True), lambda event: None)
    assert error.value.hint == f"Go on with: cellseg resume {tmp_path}"


def test_patience_ends_a_stage_and_not_the_run(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"stage1_patience": 1, "stage1_learning_rate": 1e-12}
    changes |= {"backbone_learning_rate": 1e-12, "average": 0.0}
    _, events = run(make_job(tmp_path, 7, stage1_epochs=5, **changes))
    steps = [e for e in events if isinstance(e, Progress)]
    assert [e.step for e in steps] == list(range(1, 9)), "two epochs of stage 1, two of stage 2"
    assert steps[-1].epoch == 4 and "Stopped early" in notes(events)
    _, again = run(make_job(tmp_path, 7, stage1_epochs=5, **changes))
    assert not [e for e in again if isinstance(e, Progress)]


@pytest.mark.parametrize("kind", ["image_encoder", "head_only"])
def test_parts_of_a_random_detector_are_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"--stage1-type {kind} leaves most of the detector"):
        run(make_job(tmp_path / "0", stage1_type=kind))
    run(make_job(tmp_path / "1", 1, stage="1"))
    changes = {"stage": "1", "stage1_type": kind, "checkpoint": tmp_path / "1"}
    trained, events = run(make_job(tmp_path / "2", 1, **changes))
    assert trained.trainable and "random" not in notes(events)
    assert changed(tmp_path / "1", tmp_path / "2") == set(trained.trainable)


def test_what_stays_random_is_told(tmp_path: Path) -> None:
    _, events = run(make_job(tmp_path / "1", 1, stage="2"))
    assert "will find no cells by itself" in notes(events)
    assert "--stage2-type neck_and_decoder" in notes(events)
    _, events = run(make_job(tmp_path / "2", 1, stage="1", stage1_type="cellfinder"))
    assert "The image encoder has random weights" in notes(events)


def test_what_is_left_out_for_want_of_epochs_is_told(tmp_path: Path) -> None:
    _, events = run(make_job(tmp_path / "1", 1))
    assert "Stage 2 gets none of the epochs" in notes(events)
    few = {name: TINY[name] for name in ("model_type", "patch_size", "threads", "calibrate")}
    options = CellSamOptions(**few, stage1_epochs=0, patches_per_image=1, batch_size=1)
    _, events = run(replace(make_job(tmp_path / "2", 1), options=options))
    assert "will find no cells by itself" in notes(events)


def test_more_cells_than_anchor_points_are_told(tmp_path: Path) -> None:
    crowd = [blobs(seed, SHAPE, 6) for seed in (1, 2)]
    _, events = run(make_job(tmp_path / "1", 1, train=crowd, queries=4, stage="1"))
    assert "Patches show up to 6 cells" in notes(events) and "--queries 12" in notes(events)
    _, events = run(make_job(tmp_path / "2", 1, train=crowd, queries=6, stage="1"))
    assert "--queries" not in notes(events)


def test_patience_without_validation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--stage2-patience does nothing"):
        run(make_job(tmp_path, val=[], stage2_patience=3))
    trained, _ = run(make_job(tmp_path, val=[], calibrate=True))
    assert not trained.calibrated


def test_a_fast_run_goes_through_both_stages(tmp_path: Path) -> None:
    _, events = run(make_job(tmp_path, 50, fast_dev_run=True))
    steps = [e for e in events if isinstance(e, Progress)]
    assert [(e.step, e.total) for e in steps] == [(1, 2), (2, 2)]


def test_classes_are_left_out_with_a_note(tmp_path: Path) -> None:
    sample = blobs(1, SHAPE)
    assert sample.labels is not None
    labels = encoded(sample.labels[:, :, :], 1)
    classed = replace(sample, labels=labels, classes=("background", "cell"))
    _, events = run(make_job(tmp_path, 1, train=[classed]))
    assert "The classes of the objects are not learned" in notes(events)


@pytest.mark.parametrize("channels", [2, 4])
def test_channels_that_are_no_picture_are_refused(channels: int, tmp_path: Path) -> None:
    image = torch.zeros(channels, *SHAPE).numpy()
    with pytest.raises(ConfigError, match="channels"):
        run(make_job(tmp_path, train=[replace(blobs(1, SHAPE), image=image)]))


def test_tiles_overlap_by_a_large_cell() -> None:
    from cellseg_cellsam.train import _tiling

    assert _tiling(512, 30).halo == (0, 64, 64)
    assert _tiling(128, 41).halo == (0, 21, 21) and _tiling(128, 41).core == (1, 86, 86)
    assert _tiling(128, 90).halo == (0, 32, 32)
