"""Parameter-efficient fine-tuning: what it trains, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from cellseg.errors import ConfigError, DeviceError  # noqa: E402
from cellseg_microsam import peft  # noqa: E402
from cellseg_microsam.description import Description  # noqa: E402
from cellseg_microsam.model import MicroSam  # noqa: E402
from cellseg_microsam.peft import METHODS, apply_peft, changed_by_merging, merge_peft  # noqa: E402
from cellseg_microsam.stored import load_model, save_model  # noqa: E402

TRAINED = {
    "lora": {"w_a_linear_q", "w_b_linear_q", "w_a_linear_v", "w_b_linear_v"},
    "fact": {"q_FacTs", "v_FacTs", "FacTu", "FacTv"},
    "ssf": {"scale", "shift"},
    "adaptformer": {"alpha", "down_proj", "up_proj"},
    "attention": {"qkv", "proj", "rel_pos_h", "rel_pos_w"},
    "bias": {"bias"},
    "layernorm": {"norm1", "norm2"},
    "last-blocks": {"norm1", "norm2", "qkv", "proj", "rel_pos_h", "rel_pos_w", "lin1", "lin2"},
}
"""For each method, the words in the names of what it trains."""
BLOCKS = {"last-blocks": (1,)}


@pytest.fixture
def model(make_sam: Callable[..., Any]) -> MicroSam:
    torch.manual_seed(0)
    made = make_sam()
    for parameter in made.sam.image_encoder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made


def encoded(model: MicroSam) -> Any:
    x = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    with torch.no_grad():
        return model.encode(x)


def trained(model: MicroSam, change: bool = True) -> list[str]:
    """Names of what learns in the encoder, which is changed as a training would."""
    names = []
    for name, parameter in model.sam.image_encoder.named_parameters():
        if parameter.requires_grad:
            names.append(name)
            if change:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return names


@pytest.mark.parametrize("method", TRAINED)
def test_nothing_changes_until_something_was_learned(model: MicroSam, method: str) -> None:
    before = encoded(model)
    decoder = {n: p.requires_grad for n, p in model.named_parameters() if "image_encoder" not in n}
    apply_peft(model, method, rank=2, blocks=BLOCKS.get(method, ()))
    torch.testing.assert_close(encoded(model), before, rtol=0, atol=0)
    names = trained(model)
    found = {word for word in TRAINED[method] for name in names if word in name.split(".")}
    assert found == TRAINED[method]
    assert all(set(name.split(".")) & TRAINED[method] for name in names)
    assert not torch.equal(encoded(model), before)
    assert decoder == {
        n: p.requires_grad for n, p in model.named_parameters() if "image_encoder" not in n
    }


@pytest.mark.parametrize("method", TRAINED)
def test_every_trained_weight_gets_a_gradient(model: MicroSam, method: str) -> None:
    apply_peft(model, method, rank=2, blocks=BLOCKS.get(method, ()))
    trained(model)  # away from the zeros that hold others' gradients back
    model.train()
    model.encode(torch.randn(1, 3, 64, 64)).square().mean().backward()
    for name, parameter in model.sam.image_encoder.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("method", TRAINED)
def test_what_was_learned_is_merged_into_plain_weights(model: MicroSam, method: str) -> None:
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    apply_peft(model, method, rank=2, alpha=1.5 if method == "lora" else 1.0, blocks=(1,))
    trained(model)
    expected, changes = encoded(model), changed_by_merging(model)
    merged = merge_peft(model)
    assert merged == (method != "adaptformer")
    torch.testing.assert_close(encoded(model), expected, rtol=1e-4, atol=1e-5)
    if not merged:
        return
    state = model.state_dict()
    assert list(state) == list(plain), "a plain model again"
    if method in ("lora", "fact", "ssf"):
        assert set(changes) == {n for n in plain if not torch.equal(plain[n], state[n])}
        keys = state["sam.image_encoder.blocks.1.attn.qkv.weight"][32:64]
        same = torch.equal(keys, plain["sam.image_encoder.blocks.1.attn.qkv.weight"][32:64])
        assert same == (method != "ssf"), "lora and fact update query and value"


def test_only_the_blocks_asked_for_get_updates(model: MicroSam) -> None:
    apply_peft(model, "lora", blocks=(1,))
    assert {name.split(".")[1] for name in trained(model)} == {"1"}


@pytest.mark.parametrize("method", ["adaptformer", "lora"])
def test_a_model_that_is_not_merged_comes_back(
    model: MicroSam, tmp_path: Path, method: str
) -> None:
    asked = {"method": method, "rank": 3, "alpha": 0.5, "blocks": [1]}
    apply_peft(model, **asked)
    trained(model)
    description = Description(
        model_type="vit_b", architecture=model.architecture.to_dict(), peft=asked
    )
    save_model(model, description, tmp_path)
    loaded, described = load_model(tmp_path)
    assert described.peft == asked
    torch.testing.assert_close(encoded(loaded), encoded(model), rtol=0, atol=0)


def test_what_cannot_be_done_is_refused(model: MicroSam, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no method 'prompt'"):
        apply_peft(model, "prompt")
    with pytest.raises(ConfigError, match="blocks 0 to 1"):
        apply_peft(model, "lora", blocks=(0, 2))
    monkeypatch.setattr(peft, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package bitsandbytes"):
        apply_peft(model, "qlora")
    monkeypatch.setattr(peft, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="CUDA"):
        apply_peft(model, "qlora")
    before = encoded(model)
    assert len(trained(model, change=False)) == len(list(model.sam.image_encoder.parameters()))
    torch.testing.assert_close(encoded(model), before, rtol=0, atol=0)
    apply_peft(model, "lora")
    with pytest.raises(ConfigError, match="earlier training"):
        apply_peft(model, "ssf")
    model.architecture = replace(model.architecture, tiny_vit=True)
    with pytest.raises(ConfigError, match="vit_t"):
        apply_peft(model, "lora")


def test_the_options_name_every_method() -> None:
    from typing import get_args

    from cellseg_microsam.options import Peft

    assert {*get_args(Peft)} == {"none", *METHODS}
