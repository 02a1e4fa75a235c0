"""On real images of nuclei, both stages learn, and the gradient of stage 2 comes to the neck."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("segment_anything")
tifffile = pytest.importorskip("tifffile")

from cellseg.data import Sample  # noqa: E402
from cellseg.normalise import Normaliser, normalised  # noqa: E402
from cellseg.patches import PatchSampler  # noqa: E402
from cellseg.torch.optimisation import make_optimiser  # noqa: E402
from cellseg_cellsam.detection_learner import DetectionLearner  # noqa: E402
from cellseg_cellsam.learning import of_stage1, of_stage2  # noqa: E402
from cellseg_cellsam.mask_learner import MaskLearner  # noqa: E402
from cellseg_cellsam.options import CellSamOptions  # noqa: E402
from cellseg_cellsam.targets import Targets  # noqa: E402
from cellseg_cellsam.weights import start  # noqa: E402

SIDE, STEPS = 128, 30
_NECK = "learnt.sam/image_encoder/neck/"


@pytest.fixture(scope="module")
def batch(real_data: Path) -> dict[str, Any]:
    samples = []
    for path in itertools.islice(sorted((real_data / "dsb2018_fluo/images").glob("*.tif")), 3):
        image = tifffile.imread(path)
        labels = tifffile.imread(real_data / "dsb2018_fluo/labels" / path.name)
        raw = Sample(name=path.stem, image=image[None, None], labels=labels[None])
        samples.append(normalised(raw, Normaliser()))
    sampler, make = PatchSampler(samples, (1, SIDE, SIDE), min_instances=3), Targets(25)
    patches = [sampler.patch(index) for index in range(3)]
    items = [make(p.image, p.labels, p.name, i) for i, p in enumerate(patches)]
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def losses(learner: Any, batch: dict[str, Any]) -> tuple[float, float]:
    """The mean of the first and of the last five steps."""
    optimiser = make_optimiser(learner.train(), learner.options)
    found = []
    for step in range(STEPS):
        torch.manual_seed(step)
        optimiser.zero_grad()
        loss = learner.training_step(batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimiser.step()
        found.append(float(loss))
    return sum(found[:5]) / 5, sum(found[-5:]) / 5


def test_the_loss_of_stage_1_falls(batch: dict[str, Any]) -> None:
    options = CellSamOptions(
        model_type="tiny",
        patch_size=SIDE,
        stage1_learning_rate=3e-3,
        backbone_learning_rate=3e-3,
    )
    model = start(options, 0, print).model
    frame = model.frame((SIDE, SIDE), SIDE)
    first, last = losses(DetectionLearner(model, of_stage1(model, options), options, frame), batch)
    assert last < 0.8 * first


@pytest.mark.parametrize(("kind", "falls_to"), [("neck", 0.995), ("neck_and_decoder", 0.9)])
def test_the_loss_of_stage_2_falls_and_its_gradient_comes_to_the_neck(
    kind: str, falls_to: float, batch: dict[str, Any]
) -> None:
    # The same boxes each time, so that any fall is learned. The neck alone cannot do much before a
    # decoder with random weights.
    options = CellSamOptions(
        model_type="tiny",
        patch_size=SIDE,
        stage2_type=kind,
        stage2_learning_rate=3e-3,
        boxes_per_image=64,
        box_noise=0.0,
    )
    model = start(options, 0, print).model
    frame = model.frame((SIDE, SIDE), SIDE)
    learner = MaskLearner(model, of_stage2(model, options), options, frame)
    learner.training_step(batch)["loss"].backward()
    neck = [p.grad for name, p in learner.named_parameters() if name.startswith(_NECK)]
    assert neck and all(bool(grad.any()) for grad in neck)
    first, last = losses(learner, batch)
    assert last < falls_to * first
