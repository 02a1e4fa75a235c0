"""The steps of training microsam: gradients, prompts in turn, validation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cellseg.testing import blobs  # noqa: E402
from cellseg.torch.sam.architecture import Architecture  # noqa: E402
from cellseg.torch.weights import seeded  # noqa: E402
from cellseg_microsam.learner import MicrosamLearner  # noqa: E402
from cellseg_microsam.model import MicroSam  # noqa: E402
from cellseg_microsam.options import MicrosamOptions  # noqa: E402
from cellseg_microsam.patches import Targets  # noqa: E402
from cellseg_microsam.predict_options import MicrosamPredictOptions  # noqa: E402
from cellseg_microsam.thresholds import resolve  # noqa: E402


def options(mode: str, **changes: Any) -> MicrosamOptions:
    values = {"model_type": "tiny", "mode": mode, "patch_size": 32, "batch_size": 2, **changes}
    if mode in ("full", "interactive"):
        values = {"n_objects": 3, "n_sub_iterations": 3, **values}
    return MicrosamOptions(**values)


def learner(mode: str, seed: int = 0, **changes: Any) -> MicrosamLearner:
    chosen = options(mode, **changes)
    with seeded(seed):
        model = MicroSam(Architecture.named("tiny"))
    segmenting = resolve(MicrosamPredictOptions(), "ais", "tiny")
    return MicrosamLearner(model, chosen, model.frame((32, 32), 32), segmenting).train()


def batch(mode: str, *indices: int, empty: bool = False) -> dict[str, Any]:
    make = Targets(options(mode))
    items = []
    for index in indices:
        sample = blobs(index, (1, 32, 32), 0 if empty else 3)
        image, labels = np.asarray(sample.image), np.asarray(sample.labels)
        items.append(make(image, labels, "", index))
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


@pytest.mark.parametrize("mode", ["full", "interactive", "instances", "decoder"])
@pytest.mark.parametrize("empty", [False, True])
def test_every_parameter_gets_a_finite_gradient(mode: str, empty: bool) -> None:
    """Also those that a step has no use for: several devices wait for them."""
    prompted = mode in ("full", "interactive")
    module = learner(mode, **({"mask_probability": 0.0} if prompted else {}))
    losses = module.training_step(batch(mode, 0, 1, empty=empty))
    losses["loss"].backward()
    assert all(torch.isfinite(value) for value in losses.values())
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    held = {id(each) for each in module.parameters()}
    assert all(each.grad is None for each in module.model.parameters() if id(each) not in held)


def test_a_batch_is_encoded_once_for_all_that_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    module = learner("full")
    encode = module.model.encode
    monkeypatch.setattr(module.model, "encode", lambda x: counts.append(len(x)) or encode(x))
    module.training_step(batch("full", 0, 1))
    assert counts == [2]


def test_batches_begin_with_points_and_boxes_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    module = learner("interactive")
    seen: list[bool] = []
    prompting = module._prompting

    def watched(*given: Any, by_boxes: bool, **more: Any) -> Any:
        seen.append(by_boxes)
        return prompting(*given, by_boxes=by_boxes, **more)

    module._prompting = watched  # type: ignore[assignment]
    for first in (0, 2, 4, 6):  # two images in a batch
        module.training_step(batch("interactive", first, first + 1))
    assert seen == [False, True, False, True]


def test_a_step_depends_on_nothing_but_the_seed_that_torch_has() -> None:
    module = learner("full").eval()

    def losses(seed: int) -> dict[str, float]:
        np.random.default_rng().random()
        torch.manual_seed(seed)
        return {n: float(v) for n, v in module.training_step(batch("full", 0, 1)).items()}

    assert losses(5) == losses(5)
    assert losses(5)["loss_mask"] != losses(6)["loss_mask"]


def test_validation_always_asks_the_same() -> None:
    module = learner("full").eval()
    with torch.no_grad():
        once = module.validation_step(batch("full", 3))
        torch.manual_seed(99)
        assert module.validation_step(batch("full", 3)) == once


def test_validation_of_right_maps_and_of_an_empty_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    module = learner("instances").eval()
    item = batch("instances", 3)
    monkeypatch.setattr(module, "maps", lambda embeddings: item["maps"])
    with torch.no_grad():
        right = module.validation_step(item)
        assert right["score"] == (pytest.approx(1.0), 1.0)
        assert right["f1@0.5"][0] == right["f1@0.5"][1] > 0
        item = batch("instances", 3, empty=True)
        nothing = module.validation_step(item)
    assert nothing["score"] == (0.0, 0.0) and nothing["f1@0.5"] == (0.0, 0.0)


def test_recomputing_changes_no_gradient() -> None:
    gradients = []
    for again in (False, True):
        module = learner("full", recompute=again)
        torch.manual_seed(0)
        module.training_step(batch("full", 0, 1))["loss"].backward()
        gradients.append({n: p.grad for n, p in module.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


def test_frozen_parts_stay_in_evaluation() -> None:
    module = learner("decoder")
    assert module.parts["decoder"].training
    assert not module.model.sam.image_encoder.training
    assert not any(p.requires_grad for p in module.model.sam.parameters())
