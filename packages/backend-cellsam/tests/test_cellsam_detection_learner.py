"""The first stage of a training: what learns, how terms are weighted, and validation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("segment_anything")

from sam_fakes import small_architecture  # noqa: E402

from cellseg.classes import UNKNOWN  # noqa: E402
from cellseg.testing import blobs  # noqa: E402
from cellseg.torch.optimisation import make_optimiser  # noqa: E402
from cellseg.torch.weights import seeded  # noqa: E402
from cellseg_cellsam.detection_learner import DetectionLearner  # noqa: E402
from cellseg_cellsam.model import CellSam  # noqa: E402
from cellseg_cellsam.options import CellSamOptions  # noqa: E402
from cellseg_cellsam.sizes import DetectorSizes  # noqa: E402
from cellseg_cellsam.targets import Targets  # noqa: E402

SIDE = 64
DETECTOR, TRUNK = ("detector.",), ("detector.", "sam.image_encoder.blocks.")
TERMS = {"loss_class": "ce_loss_weight", "loss_box": "bbox_loss_weight",
         "loss_giou": "giou_loss_weight"}  # fmt: skip


def learner(parts: tuple[str, ...] = DETECTOR, seed: int = 0, **changes: Any) -> DetectionLearner:
    with seeded(seed):
        model = CellSam(small_architecture(), DetectorSizes.named("tiny"))
    options = CellSamOptions(**{"model_type": "tiny", "patch_size": SIDE, **changes})
    learnt = [name for name, _ in model.named_parameters() if name.startswith(parts)]
    return DetectionLearner(model, learnt, options, model.frame((SIDE, SIDE))).train()


def batch(*indices: int, cells: int = 4) -> dict[str, Any]:
    items = []
    for index in indices or (0, 1):
        sample = blobs(index, (1, SIDE, SIDE), cells)
        image, labels = np.asarray(sample.image), np.asarray(sample.labels)
        items.append(Targets(5)(image, labels, "", index))
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def empty() -> dict[str, Any]:
    given = batch()
    return {**given, "labels": torch.zeros_like(given["labels"])}


def test_terms_are_weighted_once() -> None:
    given = batch()
    base = learner().training_step(given)
    assert set(base) == {"loss", *TERMS}
    assert float(base["loss"]) == pytest.approx(sum(float(base[name]) for name in TERMS))
    for name, option in TERMS.items():
        weight = 2 * getattr(CellSamOptions(), option)
        changed = learner(**{option: weight}).training_step(given)
        for other in TERMS:
            factor = 2 if other == name else 1
            assert float(changed[other]) == pytest.approx(factor * float(base[other]), rel=1e-5)


def test_twice_the_patches_leave_the_loss() -> None:
    module, given = learner(), batch()
    twice = {name: torch.cat([each, each]) for name, each in given.items()}
    once = float(module.training_step(given)["loss"])
    assert float(module.training_step(twice)["loss"]) == pytest.approx(once, rel=1e-4)


def test_without_auxiliary_loss_the_last_layer_learns_alone() -> None:
    module = learner(auxiliary_loss=False)
    module.training_step(batch())["loss"].backward()
    first, last = module.model.detector.decoder
    assert not first.score.bias.grad.any()
    assert last.score.bias.grad.any()


@pytest.mark.parametrize("given", [batch, empty])
@pytest.mark.parametrize("parts", [DETECTOR, TRUNK, ("sam.image_encoder.blocks.",)])
def test_every_parameter_gets_a_finite_gradient(parts: tuple[str, ...], given: Any) -> None:
    module = learner(parts)
    module.training_step(given())["loss"].backward()
    assert len(list(module.parameters())) > 3
    for name, each in module.named_parameters():
        assert each.grad is not None, name
        assert each.grad.isfinite().all(), name


def test_a_step_changes_what_learns_and_nothing_else() -> None:
    module = learner(TRUNK, stage1_learning_rate=1e-2, backbone_learning_rate=1e-3)
    before = {name: each.clone() for name, each in module.model.state_dict().items()}
    optimiser = make_optimiser(module, module.options)
    for _ in range(2):  # boxes and scores do not depend on the rest before they have learned
        optimiser.zero_grad()
        module.training_step(batch())["loss"].backward()
        optimiser.step()
    after = module.model.state_dict()
    changed = {name for name, each in after.items() if not torch.equal(each, before[name])}
    assert all(name.startswith(TRUNK) for name in changed)
    assert {name.split(".")[0] for name in changed} == {"detector", "sam"}
    assert [rate.option for rate in module.rates] == [
        "stage1_learning_rate",
        "backbone_learning_rate",
    ]
    assert set(module.state_dict()) == {f"learnt.{n.replace('.', '/')}" for n in before
                                        if n.startswith(TRUNK)}  # fmt: skip


def test_the_trunk_is_frozen_unless_it_learns() -> None:
    module = learner()
    assert not module.model.sam.training
    assert module.model.detector.training
    assert not any(each.requires_grad for each in module.model.sam.parameters())
    assert all(not each.training for each in module.eval().model.modules())


def test_it_learns_to_find_boxes() -> None:
    module = learner(TRUNK, stage1_learning_rate=3e-3, backbone_learning_rate=3e-3)
    optimiser, given = make_optimiser(module, module.options), batch(0, 1, 2, 3)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = module.training_step(given)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < 0.6 * losses[0]
    module.eval()
    with torch.no_grad():
        found = module.validation_step(given)
    assert found["score"][0] / found["score"][1] > 0.3


def test_patches_without_cells_are_not_scored() -> None:
    module = learner().eval()
    with torch.no_grad():
        assert all(pair == (0.0, 0.0) for pair in module.validation_step(empty()).values())
        found = module.validation_step(batch())
    assert set(found) == {"score", "box_recall@0.5", "box_f1@0.5"}
    assert all(whole == 2 and 0 <= part <= 2 for part, whole in found.values())


def test_what_is_not_known_teaches_nothing() -> None:
    sample = blobs(0, (1, SIDE, SIDE), 4)
    labels = np.asarray(sample.labels).copy()
    labels[:, :, SIDE // 2 :] = UNKNOWN
    item = Targets(5)(np.asarray(sample.image), labels, "", 0)
    given = {name: each[None] for name, each in item.items()}
    module = learner()
    detected = module.detect(given)
    logits = detected.logits.detach().requires_grad_()
    module.detect = lambda batch: replace(detected, logits=logits)  # type: ignore[method-assign]
    module.training_step(given)["loss"].backward()
    right = detected.boxes[..., 0] > 0.55
    assert (logits.grad[right] <= 0).all()  # only those that stand for a cell at the border
    assert (logits.grad[~right] > 0).any()


def test_previews_are_drawn(tmp_path: Path) -> None:
    module = learner().eval()
    with torch.no_grad():
        module.validation_step(batch())
    module.write_previews(tmp_path, 7)
    drawn = tmp_path / "epoch-0007.png"
    assert drawn.read_bytes().startswith(b"\x89PNG")
    drawn.unlink()
    module.write_previews(tmp_path, 8)
    assert not list(tmp_path.iterdir())
