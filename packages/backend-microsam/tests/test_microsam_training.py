"""Training microsam: what learns in which mode, what is reported, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from cellseg.classes import UNKNOWN, encoded  # noqa: E402
from cellseg.data import Sample  # noqa: E402
from cellseg.errors import ConfigError, DivergedError, InterruptedRunError  # noqa: E402
from cellseg.events import Note, Progress, Validated  # noqa: E402
from cellseg.plugins import Plugins  # noqa: E402
from cellseg.specs import PredictorSpec, Trained, TrainJob  # noqa: E402
from cellseg.testing import blobs  # noqa: E402
from cellseg.torch.sam.architecture import Architecture  # noqa: E402
from cellseg.torch.weights import save_weights, seeded  # noqa: E402
from cellseg_microsam.description import Description  # noqa: E402
from cellseg_microsam.model import MicroSam  # noqa: E402
from cellseg_microsam.options import MicrosamOptions  # noqa: E402
from cellseg_microsam.stored import load_model  # noqa: E402
from cellseg_microsam.train import train  # noqa: E402

TINY: dict[str, Any] = {
    "model_type": "tiny",
    "patch_size": 32,
    "n_samples": 4,
    "batch_size": 2,
    "val_patches": 2,
    "learning_rate": 1e-3,
    "warmup_steps": 0,
}
PROMPTED: dict[str, Any] = {"n_objects": 3, "n_sub_iterations": 3}


def options(**changes: Any) -> MicrosamOptions:
    values = {**TINY, **changes}
    if values.get("mode") in ("full", "interactive"):
        values = {**PROMPTED, **values}
    return MicrosamOptions(**values)


def make_job(folder: Path, **changes: Any) -> TrainJob[MicrosamOptions]:
    for name in ("checkpoint", "model", "previews"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    own = {n: v for n, v in changes.items() if n in MicrosamOptions.model_fields}
    rest = {n: v for n, v in changes.items() if n not in own}
    job: TrainJob[Any] = TrainJob(
        options=options(**own),
        train=[blobs(1), blobs(2)],
        val=[blobs(3)],
        epochs=1,
        seed=0,
        device="cpu",
        checkpoint=folder / "checkpoint",
        model=folder / "model",
        previews=folder / "previews",
    )
    return replace(job, **rest)


def run(job: TrainJob[MicrosamOptions]) -> tuple[Trained, list[Any]]:
    events: list[Any] = []
    return train(job, events.append), events


def notes(events: list[Any]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Note))


def weights(job: TrainJob[Any]) -> dict[str, Any]:
    return load_file(job.model / "weights.safetensors")


def changed(folder: Path, **changes: Any) -> set[str]:
    """Names of the tensors that a training changes."""
    before = make_job(folder / "before", **{**changes, "epochs": 0})
    after = make_job(folder / "after", **changes)
    run(before)
    trained, _ = run(after)
    old, new = weights(before), weights(after)
    assert old.keys() == new.keys()
    names = {name for name in old if not torch.equal(old[name], new[name])}
    assert names <= set(trained.trainable)
    return names


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file such as a published model is, with a decoder."""
    file = tmp_path_factory.mktemp("published") / "model.safetensors"
    with seeded(3):
        save_weights(MicroSam(Architecture.named("tiny")), file)
    return file


FROM_FILE = {"model_type": "vit_b_lm"}

# What is reported

_MAPS = {"loss_foreground", "loss_center", "loss_boundary"}
_ANSWERS = {"loss_mask", "loss_iou"}
_FOUND = {"dice_foreground", "dice_center", "dice_boundary", "f1@0.5", "mean_f1"}
_IOU = {"iou_first", "iou_last"}


@pytest.mark.parametrize(
    ("mode", "losses", "scores"),
    [
        ("full", _MAPS | _ANSWERS, _FOUND | _IOU),
        ("interactive", _ANSWERS, _IOU),
        ("instances", _MAPS, _FOUND),
        ("decoder", _MAPS, _FOUND),
    ],
)
def test_losses_scores_and_pictures_of_each_mode(
    mode: str, losses: set[str], scores: set[str], tmp_path: Path
) -> None:
    import cv2

    trained, events = run(make_job(tmp_path, mode=mode))
    steps = [e for e in events if isinstance(e, Progress)]
    assert [e.step for e in steps] == [1, 2]
    expected = {f"train/{name}" for name in {"loss", *losses}}
    assert set(steps[0].metrics) == {*expected, "learning_rate"}
    terms = [steps[0].metrics[f"train/{name}"] for name in losses]
    assert steps[0].metrics["train/loss"] == pytest.approx(sum(terms), rel=1e-5)
    (validated,) = (e for e in events if isinstance(e, Validated))
    assert set(validated.metrics) == {f"val/{name}" for name in {"score", *scores}}
    assert 0 < validated.metrics["val/score"] < 1
    (picture,) = sorted((tmp_path / "previews").iterdir())
    assert picture.name == "epoch-0001.png" and cv2.imread(str(picture)) is not None
    assert trained.tiling is not None
    assert trained.tiling.core == (1, 24, 24) and trained.tiling.halo == (0, 4, 4)
    model, description = load_model(tmp_path / "model")
    assert description.field == 32 and description.mode == mode
    assert description.prompts_trained == (mode in ("full", "interactive"))
    assert description.has_decoder == (model.decoder is not None) == (mode != "interactive")
    spec = Plugins().get(PredictorSpec, "microsam")
    if mode == "interactive":
        assert trained.calibrated == {}
    else:
        assert trained.calibrated["segmentation_mode"] == "ais"
        found = spec.options(**trained.calibrated).model_dump()
        assert {name: found[name] for name in trained.calibrated} == trained.calibrated


def test_without_validation_or_if_told_so_nothing_is_calibrated(tmp_path: Path) -> None:
    trained, events = run(make_job(tmp_path / "a", val=[]))
    assert trained.calibrated == {} and not [e for e in events if isinstance(e, Validated)]
    trained, events = run(make_job(tmp_path / "b", calibrate=False))
    assert trained.calibrated == {} and [e for e in events if isinstance(e, Validated)]


def test_previews_come_as_often_as_asked(tmp_path: Path) -> None:
    run(make_job(tmp_path, epochs=5, preview_every=2))
    names = [path.name for path in sorted((tmp_path / "previews").iterdir())]
    assert names == ["epoch-0002.png", "epoch-0004.png", "epoch-0005.png"]


def test_it_stops_early(tmp_path: Path) -> None:
    job = make_job(tmp_path, epochs=9, early_stopping=1, learning_rate=1e-12)
    _, events = run(job)
    assert "Stopped early" in notes(events)


# What learns


def test_a_frozen_encoder_and_all_that_belongs_to_it_stay_as_they_are(tmp_path: Path) -> None:
    names = changed(tmp_path, mode="decoder", epochs=2)
    assert names and all(name.startswith("decoder.") for name in names)
    assert any("running_mean" in name for name in names), "statistics of the decoder are its own"


@pytest.mark.parametrize("cached", [True, False])
def test_a_frozen_encoder_is_in_no_checkpoint(cached: bool, tmp_path: Path) -> None:
    job = make_job(tmp_path, mode="decoder", cache_embeddings=cached)
    run(job)
    (state,) = job.checkpoint.glob("step-*.ckpt")
    module = torch.load(state, weights_only=True)["module"]
    assert module and all(name.startswith("parts.decoder.") for name in module)
    (best,) = job.checkpoint.glob("epoch-*.safetensors")
    assert all(name.startswith("parts.decoder.") for name in load_file(best))


@pytest.mark.parametrize(
    ("mode", "frozen"),
    [
        ("full", ("image_encoder",)),
        ("full", ("prompt_encoder", "mask_decoder")),
        ("interactive", ("image_encoder", "prompt_encoder")),
    ],
)
def test_parts_in_the_list_are_frozen_and_the_others_learn(
    mode: str, frozen: tuple[str, ...], tmp_path: Path
) -> None:
    names = changed(tmp_path, mode=mode, freeze=frozen)
    parts = {name.split(".")[1] if name[0] == "s" else "decoder" for name in names}
    expected = {"image_encoder", "prompt_encoder", "mask_decoder"} - {*frozen}
    assert parts == expected | ({"decoder"} if mode == "full" else set())


@pytest.mark.parametrize("mode", ["full", "interactive"])
def test_all_parts_learn_but_answers_that_are_never_the_best(mode: str, tmp_path: Path) -> None:
    before = make_job(tmp_path / "0", mode=mode, epochs=0)
    after = make_job(tmp_path / "1", mode=mode, epochs=3, mask_probability=0.8)
    run(before)
    trained, _ = run(after)
    old, new = weights(before), weights(after)
    still = {name for name in trained.trainable if torch.equal(old[name], new[name])}
    # What the bias of the keys adds to all logits alike, the softmax takes away.
    still = {name for name in still if not name.endswith("k_proj.bias")}
    assert all("output_hypernetworks_mlps" in name for name in still)


def test_lora_is_merged_and_only_query_and_value_change(tmp_path: Path) -> None:
    names = changed(tmp_path, peft="lora", lora_rank=2, peft_blocks=(1,), learning_rate=0.05)
    encoder = {name for name in names if not name.startswith("decoder.")}
    assert encoder == {"sam.image_encoder.blocks.1.attn.qkv.weight"}
    name = encoder.pop()
    both = ("before", "after")
    old, new = (load_file(tmp_path / f / "model" / "weights.safetensors") for f in both)
    update = (new[name] - old[name]).reshape(3, 32, 32)
    assert [int(torch.linalg.matrix_rank(each, atol=1e-5)) for each in update] == [2, 0, 2]
    assert load_model(tmp_path / "after" / "model")[1].peft is None


def test_updates_that_cannot_be_merged_are_described(tmp_path: Path) -> None:
    run(make_job(tmp_path, peft="adaptformer", peft_blocks=(0,)))
    described = Description.load(tmp_path / "model")
    assert described.peft is not None and described.peft["method"] == "adaptformer"
    model, _ = load_model(tmp_path / "model")
    assert any("down_proj" in name for name in model.state_dict())


def test_updates_of_an_earlier_training_stay_part_of_the_model(tmp_path: Path) -> None:
    run(make_job(tmp_path / "a", peft="adaptformer"))
    job = make_job(tmp_path / "b", mode="decoder", checkpoint=tmp_path / "a", **FROM_FILE)
    run(job)
    load_model(job.model)
    old, new = load_file(tmp_path / "a" / "model" / "weights.safetensors"), weights(job)
    encoder = [name for name in old if not name.startswith("decoder.")]
    assert any("down_proj" in name for name in encoder)
    assert all(torch.equal(old[name], new[name]) for name in encoder)
    job = make_job(tmp_path / "c", checkpoint=tmp_path / "a", **FROM_FILE)
    trained, _ = run(job)
    assert "sam.image_encoder.blocks.0.attn.qkv.weight" in trained.trainable


def test_what_was_learned_before_is_remembered_where_it_still_holds(tmp_path: Path) -> None:
    run(make_job(tmp_path / "a", mode="full"))
    for mode, holds in (("decoder", True), ("instances", False)):
        job = make_job(tmp_path / mode, mode=mode, checkpoint=tmp_path / "a", **FROM_FILE)
        run(job)
        assert Description.load(job.model).prompts_trained == holds


def test_a_decoder_that_no_longer_fits_is_left_out(published: Path, tmp_path: Path) -> None:
    job = make_job(tmp_path / "a", mode="interactive", checkpoint=published, **FROM_FILE)
    _, events = run(job)
    assert "decoder is left out" in notes(events)
    assert not any(name.startswith("decoder.") for name in weights(job))


def test_a_decoder_of_a_frozen_encoder_is_kept(published: Path, tmp_path: Path) -> None:
    changes = {"mode": "interactive", "checkpoint": published, "freeze": ("image_encoder",)}
    job = make_job(tmp_path, **changes, **FROM_FILE)
    _, events = run(job)
    assert "left out" not in notes(events)
    old, new = load_file(published), weights(job)
    kept = [name for name in old if name.startswith("decoder.")]
    assert kept and all(torch.equal(old[name], new[name]) for name in kept)


def test_weights_come_from_the_file_and_a_decoder_is_added(tmp_path: Path) -> None:
    file = tmp_path / "plain.safetensors"
    with seeded(3):
        save_weights(MicroSam(replace(Architecture.named("tiny"), unetr=None)), file)
    job = make_job(tmp_path, mode="decoder", checkpoint=file, epochs=0, **FROM_FILE)
    trained, events = run(job)
    assert "decoder starts from random weights" in notes(events)
    old, new = load_file(file), weights(job)
    assert all(torch.equal(tensor, new[name]) for name, tensor in old.items())
    assert any(name.startswith("decoder.") for name in new)
    assert trained.base_weights[0].name == "plain.safetensors"


# The data


def test_images_of_three_channels_are_taken(tmp_path: Path) -> None:
    samples = [blobs(1, channels=3)]
    run(make_job(tmp_path, train=samples, val=[blobs(2, channels=3)]))


def classes(seed: int) -> Sample:
    sample = blobs(seed)
    labels = np.array(sample.labels)
    coded = np.where(labels % 2 == 1, encoded(labels, 1), encoded(labels, 2))
    coded[:, -6:] = UNKNOWN
    return replace(sample, labels=coded, classes=("background", "round", "odd"))


def test_classes_are_told_not_to_be_learned_and_unknown_pixels_are_left_out(tmp_path: Path) -> None:
    trained, events = run(make_job(tmp_path, mode="full", train=[classes(1)], val=[classes(2)]))
    assert "classes of the objects are not learned" in notes(events)
    assert trained.classes == ()


def test_images_left_out_are_named(tmp_path: Path) -> None:
    empty = replace(blobs(9, count=0), name="nothing-here")
    _, events = run(make_job(tmp_path, train=[blobs(1), empty]))
    assert "nothing-here" in notes(events)


def test_without_the_sampler_all_images_are_trained_on(tmp_path: Path) -> None:
    empty = replace(blobs(9, count=0), name="nothing-here")
    _, events = run(
        make_job(tmp_path, train=[empty], use_min_instance_sampler=False, patch_size=64)
    )
    assert "nothing-here" not in notes(events)


# The end


def test_an_export_is_checked_before_and_written_after(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cellseg_microsam.train.RANDOM", ())
    monkeypatch.setattr("cellseg_microsam.export.RANDOM", ())
    changes = {"checkpoint": published, "export_path": tmp_path / "out", **FROM_FILE}
    job = make_job(tmp_path / "run", checkpoint_name="mine", **changes)
    _, events = run(job)
    target = tmp_path / "out" / "mine.pt"
    assert str(target) in notes(events)
    state = torch.load(target, weights_only=True)
    assert state.keys() == {"model_state", "decoder_state"}
    new = weights(job)
    for name, tensor in state["model_state"].items():
        assert torch.equal(tensor, new[f"sam.{name}"])
    with pytest.raises(ConfigError, match="exists already"):
        run(make_job(tmp_path / "again", checkpoint_name="mine", **changes))
    run(replace(job, epochs=2))  # a prolonged run replaces its own


def test_what_micro_sam_cannot_read_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no network like 'tiny'"):
        run(make_job(tmp_path, export_path=tmp_path / "a.pt"))


def test_a_training_that_explodes_is_told(tmp_path: Path) -> None:
    job = make_job(tmp_path, epochs=30, mode="full", learning_rate=1e12, clip=0)
    with pytest.raises(DivergedError, match="learning rate") as error:
        run(job)
    assert "--learning-rate" in (error.value.hint or "")


def test_interrupted_after_any_step_it_ends_the_same(tmp_path: Path) -> None:
    changes = {"mode": "full", "epochs": 2, "accumulate": 2, "batch_size": 1}
    whole, parts = make_job(tmp_path / "a", **changes), make_job(tmp_path / "b", **changes)
    run(whole)
    asked = iter([False, True, True, False])
    for _ in range(2):
        with pytest.raises(InterruptedRunError):
            run(replace(parts, interrupted=lambda: next(asked)))
    run(parts)
    ours, theirs = ((job.model / "weights.safetensors").read_bytes() for job in (whole, parts))
    assert ours == theirs


@pytest.mark.slow
def test_two_devices_train_together_also_where_one_sees_no_object(tmp_path: Path) -> None:
    """Its processes would wait for ever for a gradient that one of them does not have; that there
    is none such, ``test_every_parameter_gets_a_finite_gradient`` says faster."""
    job = make_job(
        tmp_path,
        mode="full",
        train=[blobs(1), blobs(9, count=0)],
        use_min_instance_sampler=False,
        devices=2,
        batch_size=1,
        threads=1,
    )
    _, events = run(job)
    assert [e.step for e in events if isinstance(e, Progress)] == [1, 2]
    assert [e for e in events if isinstance(e, Validated)]
