"""The second stage of a training: what learns, how terms are weighted, and validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("segment_anything")

from cellseg.testing import blobs  # noqa: E402
from cellseg.torch.optimisation import make_optimiser  # noqa: E402
from cellseg.torch.sam.architecture import Architecture  # noqa: E402
from cellseg.torch.weights import seeded  # noqa: E402
from cellseg_cellsam import mask_learner  # noqa: E402
from cellseg_cellsam.mask_learner import MaskLearner  # noqa: E402
from cellseg_cellsam.mask_targets import MaskTargets  # noqa: E402
from cellseg_cellsam.model import CellSam  # noqa: E402
from cellseg_cellsam.options import CellSamOptions  # noqa: E402
from cellseg_cellsam.sizes import DetectorSizes  # noqa: E402
from cellseg_cellsam.targets import Targets, objects_of  # noqa: E402

SIDE = 48
NECK = "sam.image_encoder.neck."
DECODER = ("sam.mask_decoder.", "sam.prompt_encoder.point_embeddings.")
TERMS = {"focal": 1.0, "dice": 1.0, "boundary": 1.0, "iou": 1.0}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def learner(kind: str = "neck", seed: int = 0, **changes: Any) -> MaskLearner:
    with seeded(seed):
        model = CellSam(Architecture.named("tiny"), DetectorSizes.named("tiny"))
    options = CellSamOptions(
        **{"model_type": "tiny", "stage2_type": kind, "patch_size": SIDE, **changes}
    )
    parts = (NECK, *DECODER) if kind == "neck_and_decoder" else (NECK,)
    learnt = [name for name, _ in model.named_parameters() if name.startswith(parts)]
    return MaskLearner(model, learnt, options, model.frame((SIDE, SIDE), SIDE)).train()


def batch(*indices: int, cells: int = 4) -> dict[str, Any]:
    items = []
    for index in indices or (0, 1):
        sample = blobs(index, (1, SIDE, SIDE), cells)
        image, labels = np.asarray(sample.image), np.asarray(sample.labels)
        items.append(Targets(5)(image, labels, "", index))
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def step(module: MaskLearner, given: dict[str, Any], seed: int = 3) -> dict[str, Any]:
    torch.manual_seed(seed)
    return dict(module.training_step(given))


@pytest.mark.parametrize("kind", ["neck", "neck_and_decoder"])
@pytest.mark.parametrize("cells", [0, 4])
def test_what_learns_gets_a_gradient_and_nothing_else_does(kind: str, cells: int) -> None:
    module = learner(kind)
    terms = step(module, batch(cells=cells))
    terms["loss"].backward()
    assert all(torch.isfinite(value) for value in terms.values())
    learnt = {name.removeprefix("learnt.").replace("/", ".") for name, _ in
              module.named_parameters()}  # fmt: skip
    for name, parameter in module.model.named_parameters():
        assert (parameter.grad is not None) == (name in learnt), name
        assert parameter.requires_grad == (name in learnt), name
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name
    neck = [p.grad for n, p in module.model.named_parameters() if n.startswith(NECK)]
    assert all(bool(each.any()) == bool(cells) for each in neck)


@pytest.mark.parametrize("kind", ["neck", "neck_and_decoder"])
def test_a_step_changes_what_learns_alone(kind: str) -> None:
    module = learner(kind, stage2_learning_rate=1e-2)
    before = {name: each.clone() for name, each in module.model.state_dict().items()}
    optimiser = make_optimiser(module, module.options)
    step(module, batch())["loss"].backward()
    optimiser.step()
    changed = {n for n, each in module.model.state_dict().items() if not each.equal(before[n])}
    assert {name for name in before if name.startswith(NECK)} <= changed
    decoder = {name for name in changed if name.startswith(DECODER)}
    assert bool(decoder) == (kind == "neck_and_decoder")
    assert all(name.startswith((NECK, *DECODER)) for name in changed)
    assert module.rates[0].peak == 1e-2


def test_frozen_weights_are_in_no_checkpoint_and_stay_in_evaluation() -> None:
    module = learner()
    assert all(name.startswith("learnt.sam/image_encoder/neck/") for name in module.state_dict())
    assert not any(each.training for each in module.model.modules())


@pytest.mark.parametrize("name", TERMS)
def test_a_weight_scales_its_term_once(name: str) -> None:
    option = f"{name}_loss_weight"
    plain = step(learner("neck_and_decoder"), batch())
    weighted = step(learner("neck_and_decoder", **{option: 3.0}), batch())
    assert set(plain) == {"loss", *(f"loss_{each}" for each in TERMS)}
    for each in TERMS:
        factor = 3.0 if each == name else 1.0
        assert float(weighted[f"loss_{each}"]) == pytest.approx(
            factor * float(plain[f"loss_{each}"])
        )
    total = sum(float(weighted[f"loss_{each}"]) for each in TERMS)
    assert float(weighted["loss"]) == pytest.approx(total)


def test_only_a_decoder_that_learns_learns_to_estimate() -> None:
    assert "loss_iou" not in step(learner("neck"), batch())


def test_the_loss_does_not_grow_with_the_number_of_objects() -> None:
    module = learner(box_noise=0.0)
    once, twice = step(module, batch(0)), step(module, batch(0, 0))
    for name, value in once.items():
        torch.testing.assert_close(value, twice[name])


def test_images_without_objects_leave_the_mean_as_it_is() -> None:
    module = learner(box_noise=0.0)
    alone, both = batch(0), batch(0, 0)
    both["labels"][1] = 0
    torch.testing.assert_close(step(module, alone)["loss"], step(module, both)["loss"])


def test_what_is_not_known_teaches_nothing() -> None:
    module = learner(box_noise=0.0, boundary_loss_weight=0.0)
    given = batch(0)
    plain = step(module, given)["loss"]
    given["known"][0] = given["labels"][0] > 0
    assert float(step(module, given)["loss"]) != pytest.approx(float(plain), rel=1e-3)


def test_boxes_depend_on_the_random_state_of_the_step() -> None:
    module = learner(boxes_per_image=2, box_noise=0.3)
    one, same, other = (float(step(module, batch(), seed)["loss"]) for seed in (0, 0, 1))
    assert one == same != other


@pytest.mark.parametrize("weighted", [False, True])
def test_hard_prompts_count_more(weighted: bool) -> None:
    option = "online_hard_negative_mining" + ("_weighted" if weighted else "")
    plain = step(learner(box_noise=0.0), batch(0))
    mined = step(learner(box_noise=0.0, hard_share=1.0, **{option: True}), batch(0))
    factors = [float(mined[name] / plain[name]) for name in plain]
    assert (
        all(1.2 <= each <= 2.5 for each in factors)
        if weighted
        else factors == [pytest.approx(2.0)] * len(factors)
    )


class Oracle:
    """Answers with the true masks, or with none."""

    def __init__(self, module: MaskLearner, given: dict[str, Any], right: float) -> None:
        self.module, self.given, self.right, self.calls = module, given, right, []

    def __call__(
        self, embedding: Any, *, boxes: Any, masks: Any, multimask: bool
    ) -> tuple[Any, Any]:
        frame, labels = self.module._frame, self.given["labels"][0]
        assert len(embedding) == 1 and masks is None and not multimask
        objects = objects_of(labels, frame)
        same = (objects.boxes[None] == boxes[:, None]).all(2)
        assert same.any(1).all()  # of true boxes, without noise
        ids = objects.ids[same.int().argmax(1)]
        wanted = MaskTargets.of(labels, self.given["known"][0], ids, frame, 32).objects
        self.calls.append(len(boxes))
        logits = 40 * wanted - 20
        good = torch.arange(len(ids)) < self.right * len(ids)
        logits[~good] = -20
        return logits[:, None], torch.ones(len(ids), 1)


@pytest.mark.parametrize("right", [1.0, 0.5])
def test_validation_measures_the_masks_of_true_boxes(
    right: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = learner().eval()
    given = batch(0, cells=4)
    count = int(given["labels"].max())
    assert count == 4
    answer = Oracle(module, given, right)
    monkeypatch.setattr(module.model, "answer", answer)
    with torch.no_grad():
        found = module.validation_step(given)
    assert found["score"][1] == found["iou50"][1] == count
    assert found["iou50"][0] == right * count
    assert 0.8 * right * count < found["score"][0] <= right * count
    module.write_previews(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001.png"]
    module.write_previews(tmp_path, 2)  # nothing was seen since
    assert len(list(tmp_path.iterdir())) == 1


def test_validation_asks_in_chunks_and_takes_images_without_objects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mask_learner, "_BOXES", 3)
    module = learner().eval()
    given = batch(0, cells=4)
    answer = Oracle(module, given, 1.0)
    monkeypatch.setattr(module.model, "answer", answer)
    with torch.no_grad():
        module.validation_step(given)
        assert answer.calls == [3, 1]
        empty = module.validation_step(batch(0, cells=0))
    assert empty == {"score": (0.0, 0.0), "iou50": (0.0, 0.0)}
