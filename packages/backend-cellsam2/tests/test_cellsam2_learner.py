"""Batches of clips: their losses, what a perfect model gets, and that clips are independent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cellseg.tracks import Lineage, Track  # noqa: E402
from cellseg_cellsam2.clips import Clip  # noqa: E402
from cellseg_cellsam2.learner import CellSam2Learner  # noqa: E402
from cellseg_cellsam2.lora import add_lora, learning  # noqa: E402
from cellseg_cellsam2.losses import TERMS  # noqa: E402
from cellseg_cellsam2.model import CellSam2  # noqa: E402
from cellseg_cellsam2.options import CellSam2Options  # noqa: E402
from cellseg_cellsam2.parts import Answer, Encoded, Memory, Prompts  # noqa: E402
from cellseg_cellsam2.slots import Fate, Truth  # noqa: E402
from cellseg_cellsam2.targets import collated, item_of  # noqa: E402
from cellseg_cellsam2.weights import make_model  # noqa: E402

SIDE = 64
LINEAGE = Lineage.of(
    [Track(1, 0, 1), Track(2, 2, 3, 1), Track(3, 2, 3, 1), Track(4, 0, 0), Track(5, 1, 3)]
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def clip(shift: int = 0, empty: tuple[int, ...] = (), frames: int = 4) -> Clip:
    """1 divides into 2 and 3 with frame 2; 4 dies after frame 0; 5 is born with frame 1."""
    labels = np.zeros((4, SIDE, SIDE), np.uint32)
    labels[:2, 8:24, 8:24] = 1
    labels[2:, 8:24, 4:12], labels[2:, 8:20, 20:32] = 2, 3
    labels[0, 40:52, 8:20] = 4
    labels[1:, 40:56, 40:56] = 5
    labels = np.roll(labels, shift, axis=2)[:frames]
    labels[list(empty)] = 0
    noise = np.random.default_rng(shift).random((1, frames, SIDE, SIDE), np.float32)
    return Clip((labels > 0)[None] * np.float32(0.7) + 0.3 * noise, labels, LINEAGE, 0, "m/0")


def batch(*clips: Clip, first: int = 0) -> dict[str, Any]:
    clips = clips or (clip(),)
    return collated([item_of(one, SIDE, 25, first + i) for i, one in enumerate(clips)])


def options(**changes: Any) -> CellSam2Options:
    values = {
        "model_type": "nano",
        "resolution": SIDE,
        "use_lora": False,
        "correction_points": 2,
        "max_num_bkgd_objects": 3,
        "num_frames": 4,
        **changes,
    }
    return CellSam2Options(**values)


def nano(seed: int = 0) -> CellSam2:
    return make_model("nano", SIDE, seed, None, lambda event: None)[0]


def learner(model: Any = None, **changes: Any) -> CellSam2Learner:
    """A learner without dropout."""
    chosen = options(**changes)
    model = model or nano()
    if chosen.use_lora:
        torch.manual_seed(0)
        add_lora(model, 4, 8.0, 0.0)
    learnt = learning(model, use_lora=chosen.use_lora, freeze_encoder=chosen.freeze_encoder)
    return CellSam2Learner(model, learnt, chosen, seed=0).eval()


def gradients(of: CellSam2Learner) -> dict[str, Any]:
    found = {name: p.grad for name, p in of.named_parameters() if p.grad is not None}
    of.zero_grad()
    return found


class Oracle:
    """Knows the truth of a batch. Tokens of daughters are in the wrong order, and each object's
    pointer says which one it is."""

    def __init__(self, truth: Truth, wrong: str = "") -> None:
        self.truth, self.wrong = truth, wrong
        self.recompute = False

    def prepare(self, images: Any) -> Any:
        return images

    def encode(self, images: Any) -> Encoded:
        heat = self.truth.batch["heat"] * 40 - 20
        none = torch.zeros(0)
        return Encoded(none, none, (none, none), heat)

    def masks(self, track: Any, frame: int) -> Any:
        return torch.where(self.truth.masks(track, frame)[:, 2::4, 2::4], 20.0, -20.0)

    def answer(
        self, encoded: Any, image: Any, prompts: Any = None, memory: Any = None, time: Any = None
    ) -> Answer:
        truth, count = self.truth, len(image)
        frame, video = int(image[0]) % truth.frames, image // truth.frames
        if prompts is not None:
            places = prompts.points[:, 0].round().long()
            labels = truth.batch["labels"][image, places[:, 1], places[:, 0]]
            same = truth.batch["video"][None] == video[:, None]
            match = same & (truth.batch["label"][None] == labels[:, None])
            track = torch.where(match.any(1), match.int().argmax(1), -1)
        else:
            track = memory.pointers[:, 0, 0].long()
        fate = Fate.of(truth, track, frame)
        if prompts is not None:
            fate = Fate(track, track >= 0, torch.zeros(count).bool(), fate.daughters, track >= 0)
        masks = torch.full((count, 4, SIDE // 4, SIDE // 4), -20.0)
        masks[:, 0] = self.masks(torch.where(fate.present, fate.track, -1), frame)
        for token in (1, 2):
            masks[:, token] = self.masks(fate.daughters[:, 2 - token], frame)
        tokens = torch.stack(
            [fate.track, fate.daughters[:, 1], fate.daughters[:, 0], fate.track], 1
        )
        there = fate.present | fate.divides
        divides = fate.divides
        if self.wrong == "division":
            divides = torch.zeros_like(divides)
        if self.wrong == "absent":
            there = there & (frame == 0)
        if self.wrong == "absent masks":
            masks[~there] = 20.0
        if self.wrong == "present masks":
            masks[there] = 20.0
        sign = torch.tensor([-20.0, 20.0])
        return Answer(
            masks,
            torch.ones(count, 4),
            sign[there.long()],
            sign[divides.long()],
            tokens[..., None].float(),
        )

    def remember(self, encoded: Any, image: Any, masks: Any, tokens: Any, presence: Any,
                 time: Any, memory: Any = None) -> Memory:  # fmt: skip
        count = len(image)
        return Memory(torch.zeros(count, 1, 1, 1, 1), time[:, None], tokens[:, None], time[:, None])


def perfect(one: dict[str, Any], wrong: str = "", **changes: Any) -> Any:
    own = learner(**changes)
    own._held = [Oracle(Truth(one), wrong)]  # type: ignore[list-item]
    own._on_device = lambda batch: own._held[0]  # type: ignore[assignment,method-assign]
    return own


def test_a_perfect_model_has_no_loss() -> None:
    one = batch(clip(), clip(5))
    terms = perfect(one, box_probability=0).training_step(one)
    assert set(terms) == {"loss", *(f"loss_{name}" for name in TERMS)}
    for name in ("class", "division"):
        assert float(terms[f"loss_{name}"]) < 1e-3, name
    # A quarter of the resolution rounds corners: nothing else is wrong with these masks.
    assert float(terms["loss_mask"]) < 2 and float(terms["loss_dice"]) < 0.4


def test_a_model_that_misses_a_division_pays_for_it() -> None:
    one = batch()
    right = perfect(one, box_probability=0).training_step(one)
    wrong = perfect(one, "division", box_probability=0).training_step(one)
    assert float(wrong["loss_division"]) > 5 > float(right["loss_division"])
    assert float(wrong["loss_mask"]) == float(right["loss_mask"]), "the truth says who divides"


def test_a_perfect_model_is_perfect_in_validation() -> None:
    one = batch()
    own = perfect(one)
    found = {name: a / b for name, (a, b) in own.validation_step(one).items()}
    assert found.pop("iou") > 0.9
    assert found == pytest.approx(dict.fromkeys(found, 1.0)) and set(found) == {
        "f1@0.5",
        "division_f1",
        "heatmap_f1",
        "heatmap_ap",
        "score",
    }


def test_validation_sees_missed_divisions_and_lost_cells() -> None:
    one = batch()
    missed = perfect(one, "division").validation_step(one)
    assert missed["division_f1"] == (0, 1)
    # 1 and 4 in frame 0, 1 in frame 1, then 2 and 3 of which only one is found.
    assert missed["f1@0.5"][1] - missed["f1@0.5"][0] >= 2
    lost = perfect(one, "absent").validation_step(one)
    assert lost["f1@0.5"] == (4, 4 + 1 + 2 + 2)
    assert lost["iou"][1] == 2 + 1 + 2 + 2 and lost["division_f1"] == (0, 1)


def test_pictures_of_the_validation(tmp_path: Any) -> None:
    import cv2

    one = batch()
    own = perfect(one)
    own.validation_step(one)
    own.write_previews(tmp_path, 3)
    picture = cv2.imread(str(tmp_path / "epoch-0003.png"))
    assert picture is not None
    own.write_previews(tmp_path, 4)
    assert not (tmp_path / "epoch-0004.png").exists(), "there is nothing new to see"


def test_a_batch_of_two_equals_two_batches_of_one() -> None:
    clips = (clip(), clip(7, empty=(0,)), clip(19))
    own = learner()
    together = own.training_step(batch(*clips))
    together["loss"].backward()
    both = gradients(own)
    alone = [own.training_step(batch(one, first=i)) for i, one in enumerate(clips)]
    (torch.stack([each["loss"] for each in alone]).sum() / 3).backward()
    single = gradients(own)
    for name in together:
        assert float(together[name]) == pytest.approx(
            sum(float(each[name]) for each in alone) / 3, rel=1e-4, abs=1e-5
        ), name
    for name, gradient in both.items():
        scale = float(single[name].abs().max()) + 1e-4
        assert float((gradient - single[name]).abs().max()) < 2e-3 * scale, name


def test_chunks_and_recomputing_change_nothing() -> None:
    one = batch(clip(), clip(7))
    results = []
    for changes in ({}, {"objects_per_batch": 2}, {"recompute": True}):
        own = learner(nano(), **changes)
        loss = own.training_step(one)["loss"]
        loss.backward()
        results.append((float(loss.detach()), gradients(own)))
    (loss, expected), *others = results
    for other, found in others:
        assert other == pytest.approx(loss, rel=1e-4)
        for name, gradient in expected.items():
            scale = float(gradient.abs().max()) + 1e-4
            assert float((gradient - found[name]).abs().max()) < 2e-3 * scale, name


def test_each_weight_scales_its_own_term_and_no_other() -> None:
    one = batch()
    model = nano()
    before = learner(model).training_step(one)
    for name in TERMS:
        weight = 3 * getattr(options(), f"{name}_weight")
        after = learner(model, **{f"{name}_weight": weight}).training_step(one)
        for term in TERMS:
            factor = 3 if term == name else 1
            assert float(after[f"loss_{term}"]) == pytest.approx(
                factor * float(before[f"loss_{term}"]), rel=1e-5
            )
        terms = sum(float(after[f"loss_{term}"]) for term in TERMS)
        assert float(after["loss"]) == pytest.approx(terms, rel=1e-5)


def test_absent_objects_add_nothing_to_the_losses_of_masks() -> None:
    """4 is only in the first frame: whatever masks it has afterwards cost nothing."""
    one = batch(clip(), clip(5))
    right = perfect(one, box_probability=0).training_step(one)
    wild = perfect(one, "absent masks", box_probability=0).training_step(one)
    for name in ("mask", "dice", "iou"):
        assert float(wild[f"loss_{name}"]) == float(right[f"loss_{name}"]) > 0
    kept = perfect(one, "present masks", box_probability=0).training_step(one)
    assert float(kept["loss_dice"]) > 2 * float(right["loss_dice"])


@pytest.mark.parametrize("empty", [(0,), (1,), (3,), (0, 1, 2, 3)])
def test_frames_without_objects_crash_nothing(empty: tuple[int, ...]) -> None:
    own = learner()
    one = batch(clip(empty=empty))
    terms = own.training_step(one)
    terms["loss"].backward()
    assert all(bool(torch.isfinite(value)) for value in terms.values())
    with torch.no_grad():
        own.validation_step(one)
    mixed = own.training_step(batch(clip(empty=empty), clip(3)))
    assert bool(torch.isfinite(mixed["loss"]))


def test_a_single_frame_is_segmentation_alone() -> None:
    own = learner(num_frames=1)
    one = batch(clip(frames=1))
    terms = own.training_step(one)
    assert float(terms["loss_division"]) == 0 and float(terms["loss_mask"]) > 0
    with torch.no_grad():
        found = own.validation_step(one)
    assert found["division_f1"] == (0, 0) and found["score"][1] == 1


def test_no_more_objects_are_followed_than_asked_for() -> None:
    own = learner(max_num_objects=1, max_num_bkgd_objects=0, correction_points=0)
    asked = []
    real = own.model.answer

    def counted(encoded: Any, image: Any, *rest: Any) -> Answer:
        asked.append(len(image))
        return real(encoded, image, *rest)

    own.model.answer = counted  # type: ignore[method-assign]
    own.training_step(batch())
    assert asked[0] == 1 and max(asked) <= 2, "a cell that divides becomes two"
    found: set[int] = set()
    for number in range(6):
        asked.clear()
        own.training_step(batch(first=number))
        found |= set(asked)
    assert found == {1, 2}, "1 divides within the clip, and comes before 4"


# What learns


def test_every_parameter_gets_a_finite_gradient() -> None:
    own = learner()
    own.train()
    torch.manual_seed(0)
    own.training_step(batch(clip(), clip(3)))["loss"].backward()
    found = gradients(own)
    assert set(found) == {name for name, _ in own.named_parameters()}
    assert all(bool(torch.isfinite(each).all()) for each in found.values())
    flat = {name for name, each in found.items() if not each.any()}
    assert not {name for name in flat if "heat" in name or "division" in name}
    assert len(flat) < 0.05 * len(found), flat


def test_with_lora_little_learns_and_is_kept() -> None:
    own = learner(use_lora=True)
    names = set(own.state_dict())
    assert any("lora_A" in name for name in names)
    held = sum(p.numel() for p in own.model.parameters())
    assert sum(p.numel() for p in own.parameters()) < held / 2
    assert {rate.option for rate in own.rates} == {"lora_lr"}
    frozen = learner(nano(), use_lora=True, freeze_encoder=True)
    assert not any("image_encoder" in name for name in frozen.state_dict())
    before = {name: p.detach().clone() for name, p in own.model.named_parameters()}
    optimiser = torch.optim.SGD(own.parameters(), 0.01)
    own.training_step(batch())["loss"].backward()
    optimiser.step()
    changed = {
        name.replace(".", "/")
        for name, p in own.model.named_parameters()
        if not torch.equal(p, before[name])
    }
    assert changed and {f"learnt.{name}" for name in changed} <= names


def test_the_loss_goes_down() -> None:
    model = nano(1)
    own = learner(model, base_lr=1e-3, vision_lr=1e-3, head_lr=1e-3, correction_points=0)
    one = batch(clip(frames=2))
    optimiser = torch.optim.Adam(own.parameters(), 2e-3)
    losses = []
    for _ in range(20):
        loss = own.training_step(one)["loss"]
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(own.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_prompts_have_the_shapes_that_the_model_takes() -> None:
    own = learner(box_probability=0.5, correction_points=3)
    asked: list[Prompts | None] = []
    real = own.model.answer

    def watched(encoded: Any, image: Any, prompts: Any = None, *rest: Any) -> Answer:
        asked.append(prompts)
        return real(encoded, image, prompts, *rest)

    own.model.answer = watched  # type: ignore[method-assign]
    own.training_step(batch())
    given = [each for each in asked if each is not None]
    assert [each.points.shape[1] for each in given[:4]] == [2, 3, 4, 5]
    assert given[0].masks is None and given[1].masks is not None
    assert any(each is None for each in asked), "later frames have memories only"
    for each in given:
        assert each.points.dtype == torch.float32 and each.kinds.dtype == torch.int32
        assert float(each.points.min()) >= 0 and float(each.points.max()) <= SIDE - 1
