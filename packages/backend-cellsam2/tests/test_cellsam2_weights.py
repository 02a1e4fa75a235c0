"""Low-rank updates, what learns, and models on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cellseg.errors import ConfigError, WeightsError
from cellseg.events import Event
from cellseg.specs import BaseWeights
from cellseg.torch.lora import has_lora, merge_lora, merged_state
from cellseg.torch.sam2.model import build
from cellseg.torch.weights import FILE, seeded
from cellseg_cellsam2 import weights as weights_module
from cellseg_cellsam2.description import Description
from cellseg_cellsam2.lora import add_lora, learning
from cellseg_cellsam2.model import CellSam2
from cellseg_cellsam2.parts import Memory, Prompts
from cellseg_cellsam2.stored import load, save
from cellseg_cellsam2.weights import make_model

torch.set_num_threads(1)
SIDE = 64
CPU = torch.device("cpu")


def ignored(event: Event) -> None:
    """Where nobody looks."""


def make(seed: int = 0, lora: bool = False) -> CellSam2:
    model, _ = make_model("nano", SIDE, seed, None, ignored)
    if lora:
        with seeded(seed):
            add_lora(model, rank=4, alpha=8, dropout=0.0)
    return model


def follow(model: CellSam2, seed: int = 0) -> tuple[Tensor, ...]:
    """All that a model says of three objects in two frames, the second with a correction."""
    with seeded(seed):
        planes = torch.rand(2, 1, SIDE, SIDE)
        places = torch.rand(3, 4, 2) * SIDE
        earlier = torch.randn(3, SIDE // 4, SIDE // 4)
    kinds = torch.tensor([[0, 1, 2, 3]] * 3, dtype=torch.int32)
    image, memory = torch.zeros(3, dtype=torch.int64), None
    said: list[Tensor] = []
    for frame in range(2):
        encoded = model.encode(model.prepare(planes[[frame]]))
        shown = Prompts(places, kinds, earlier if frame else None)
        time = torch.full((3,), frame)
        answer = model.answer(encoded, image, shown, memory, time)
        present = torch.tensor([True, True, False])
        memory = model.remember(
            encoded, image, answer.masks[:, 0], answer.tokens[:, 0], present, time, memory
        )
        said += [encoded.heat, answer.masks, answer.ious, answer.presence, answer.division]
    encoded = model.encode(model.prepare(planes[:1]))
    assert isinstance(memory, Memory)
    blind = model.answer(encoded, image, None, memory, torch.full((3,), 2))
    return (*said, blind.masks)


def assert_same(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], atol: float = 1e-5) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=atol)


def learn(model: CellSam2, names: list[str]) -> None:
    """A step of everything that learns, large enough to be seen."""
    held = dict(model.named_parameters())
    with seeded(5), torch.no_grad():
        for name in names:
            held[name].add_(torch.randn_like(held[name]) * 0.05)


@torch.no_grad()
def test_updates_start_as_nothing_and_merge_without_a_change() -> None:
    plain, model = make().eval(), make(lora=True).eval()
    assert has_lora(model) and not has_lora(plain)
    assert_same(follow(model), follow(plain), atol=1e-6)
    learn(model, learning(model, use_lora=True, freeze_encoder=False)["lora"])
    learned = follow(model)
    assert not torch.allclose(learned[1], follow(plain)[1], atol=1e-3)
    state = merged_state(model)
    assert has_lora(model)
    merge_lora(model)
    assert not has_lora(model)
    assert state.keys() == model.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert_same(follow(model), learned)


def test_updates_lie_where_they_should() -> None:
    model = make(lora=True)
    names = learning(model, use_lora=True, freeze_encoder=False)["lora"]
    layers = {name.split(".lora_")[0].removeprefix("sam.") for name in names}
    trunk = {f"image_encoder.trunk.blocks.{i}.attn.qkv" for i in range(5)}
    memory = {
        f"memory_attention.layers.{i}.{part}.{to}_proj"
        for i in range(2)
        for part in ("self_attn", "cross_attn_image")
        for to in "qv"
    }
    decoder = {name for name in layers if name.startswith("sam_mask_decoder.transformer.")}
    assert layers == trunk | memory | decoder
    assert len(decoder) == 2 * 7 and all(name.endswith(("q_proj", "v_proj")) for name in decoder)


def test_updates_take_a_fraction_of_what_all_of_the_model_takes() -> None:
    model = make(lora=True)
    groups = learning(model, use_lora=True, freeze_encoder=False)
    held = dict(model.named_parameters())
    assert sum(held[name].numel() for name in groups["lora"]) < 0.05 * sum(
        parameter.numel() for parameter in held.values()
    )


@pytest.mark.parametrize(
    ("lora", "frozen", "groups"),
    [
        (True, False, {"lora", "heads"}),
        (True, True, {"lora", "heads"}),
        (False, False, {"base", "vision", "heads"}),
        (False, True, {"base", "heads"}),
    ],
)
def test_what_learns_has_a_gradient_and_nothing_else(
    lora: bool, frozen: bool, groups: set[str]
) -> None:
    model = make(lora=lora)
    found = learning(model, use_lora=lora, freeze_encoder=frozen)
    assert set(found) == groups
    names = [name for group in found.values() for name in group]
    assert len(names) == len(set(names))
    assert any(name.startswith("sam.image_encoder.") for name in names) is not frozen
    if lora:  # what is added is the product of two, one of which starts as zero
        learn(model, [name for name in names if "lora_" in name])
    sum(each.square().sum() for each in follow(model)).backward()  # type: ignore[union-attr]
    learned = {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().sum() > 0
    }
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    # What all keys are shifted by is lost in the softmax.
    lost = {name for name in names if name.endswith("k_proj.bias")}
    assert set(names) - learned <= lost
    assert learned <= set(names)


def test_updates_are_asked_for_once() -> None:
    model = make(lora=True)
    with pytest.raises(ConfigError, match="has low-rank updates already"):
        add_lora(model, 4, 8, 0.0)
    with pytest.raises(ConfigError, match="if, and only if"):
        learning(model, use_lora=False, freeze_encoder=False)
    with pytest.raises(ConfigError, match="if, and only if"):
        learning(make(), use_lora=True, freeze_encoder=False)


@torch.no_grad()
def test_a_stored_model_says_the_same(tmp_path: Path) -> None:
    model = make(lora=True).eval()
    groups = learning(model, use_lora=True, freeze_encoder=False)
    learn(model, [name for names in groups.values() for name in names])
    save(model, tmp_path, scale=1.5, num_frames=3, use_lora=True)
    again, description = load(tmp_path, CPU)
    assert description == Description(
        size="nano", side=SIDE, scale=1.5, num_frames=3, use_lora=True
    )
    assert not again.training and again.side == SIDE and again.size == "nano"
    assert not has_lora(again) and has_lora(model)
    assert_same(follow(again), follow(model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": "2"}, "scale is no float"),
        ({"scale": 0.0}, "describes no model"),
        ({"size": "huge"}, "describes no model"),
        ({"colour": 1}, "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_damaged_description_is_refused(
    tmp_path: Path, change: dict[str, Any] | None, message: str
) -> None:
    save(make(), tmp_path)
    file = tmp_path / "cellsam2.json"
    values = json.loads(file.read_text())
    file.write_text("{" if change is None else json.dumps(values | change))
    with pytest.raises(WeightsError, match=message):
        load(tmp_path)


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    save(make(), tmp_path)
    Description(size="micro", side=SIDE).save(tmp_path)
    with pytest.raises(WeightsError, match="does not fit the network"):
        load(tmp_path)


def test_random_weights_come_from_the_seed() -> None:
    one, same, other = (make(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    changed = [name for name, value in one.items() if not torch.equal(value, other[name])]
    assert any(name.startswith("sam.") for name in changed) and "division_token.weight" in changed


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_file_of_sam_2_is_a_start(tmp_path: Path, wrapped: bool) -> None:
    with seeded(7):
        sam = build("micro", SIDE)
    path = tmp_path / "mine.pt"
    torch.save({"model": sam.state_dict()} if wrapped else sam.state_dict(), path)
    model, bases = make_model("sam2.1_hiera_large", 96, 0, path, ignored)
    assert (model.size, model.side, model.training) == ("micro", 96, True)
    assert [base.name for base in bases] == ["mine.pt"] and len(bases[0].sha256) == 64
    held = model.sam.state_dict()
    assert all(torch.equal(held[name], value) for name, value in sam.state_dict().items())


def test_published_weights_are_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    base = BaseWeights(name="published", source="https://somewhere", licence="Apache-2.0")

    def published(name: str, emit: Any, side: int) -> tuple[Any, BaseWeights]:
        asked.append((name, side))
        return build("nano", side), base

    monkeypatch.setattr(weights_module, "load_published", published)
    model, bases = make_model("sam2.1_hiera_tiny", SIDE, 0, None, ignored)
    assert asked == [("sam2.1_hiera_tiny", SIDE)] and bases == (base,)
    assert model.size == "sam2.1_hiera_tiny" and model.side == SIDE


@pytest.mark.parametrize("inside", ["", "model"])
def test_a_model_of_an_earlier_training_is_a_start(tmp_path: Path, inside: str) -> None:
    first = make(3)
    save(first, tmp_path / inside, scale=2.0)
    model, bases = make_model("sam2.1_hiera_large", 96, 0, tmp_path, ignored)
    assert model.side == 96 and model.training
    assert [base.source for base in bases] == [str(tmp_path)]
    held = model.state_dict()
    assert all(torch.equal(held[name], value) for name, value in first.state_dict().items())


def test_what_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds no cellsam2 model"):
        make_model("nano", SIDE, 0, tmp_path, ignored)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"other\.pt holds no SAM 2"):
        make_model("nano", SIDE, 0, tmp_path / "other.pt", ignored)
    with pytest.raises(WeightsError, match="is missing"):
        make_model("nano", SIDE, 0, tmp_path / FILE, ignored)
