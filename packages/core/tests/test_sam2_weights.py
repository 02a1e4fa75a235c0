"""SAM 2.1: its sizes, building it, and its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cellseg.errors import ConfigError, WeightsError
from cellseg.events import Event
from cellseg.specs import BaseWeights
from cellseg.torch.sam2 import model as model_module
from cellseg.torch.sam2 import weights as weights_module
from cellseg.torch.sam2.model import build, described
from cellseg.torch.sam2.sizes import PUBLISHED, RANDOM, SIZES, default_side
from cellseg.torch.sam2.weights import fill, holds_sam2, load_published, size_of, tensors_of
from cellseg.torch.weights import seeded

pytest.importorskip("sam2")
torch.set_num_threads(1)
NAME = "sam2.1_hiera_tiny"


def ignored(event: Event) -> None:
    """Where nobody looks."""


def nano(seed: int = 0) -> Any:
    with seeded(seed):
        return build("nano")


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_size_is_as_the_package_describes_it(name: str) -> None:
    trunk = described(name).model.image_encoder.trunk
    stages = trunk.get("stages", (2, 3, 16, 3))
    size = (trunk.get("embed_dim", 96), sum(stages))
    assert weights_module._SIZES[size] == name


@pytest.mark.parametrize("name", RANDOM)
def test_a_small_size_is_known_by_its_tensors(name: str) -> None:
    tensors = build(name).state_dict()
    assert holds_sam2(tensors) and holds_sam2({"model": tensors})
    assert size_of(tensors, Path("file")) == name


def test_weights_do_not_depend_on_the_side() -> None:
    small, large = build("nano", 64), build("nano", 160)
    fill(large, small.state_dict(), "weights")
    assert (small.image_size, large.image_size) == (64, 160)
    assert build("nano").image_size == default_side("nano") == 128


def test_it_is_built_whatever_hydra_is_used_for(tmp_path: Path) -> None:
    """Others' configurations neither matter nor suffer."""
    import sam2  # noqa: F401
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    before = GlobalHydra.instance().hydra
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            mine = GlobalHydra.instance().hydra
            model: Any = build(NAME, 512)
            assert GlobalHydra.instance().hydra is mine
    finally:
        GlobalHydra.instance().hydra = before
    assert size_of(model.state_dict(), Path("file")) == NAME
    assert model.image_size == 512
    attention = model.memory_attention.layers[0].cross_attn_image
    assert len(attention.freqs_cis) == 32 * 32  # nothing is computed again at the first call


def test_an_unknown_size_and_a_side_that_does_not_suit_are_refused() -> None:
    with pytest.raises(ConfigError, match="no SAM 2 of the size 'huge'"):
        build("huge")
    for side in (0, 32, 100, -64):
        with pytest.raises(ConfigError, match=f"multiple of 32, .*not {side}"):
            build("nano", side)


def test_prompts_are_drawn_where_they_are() -> None:
    """A spot at a point, another kind of spot beside an object, and the inside of a box."""
    encoder: Any = build("nano", 64).sam_prompt_encoder
    places = torch.tensor(
        [[[9.5, 41.5], [0.0, 0.0]], [[9.5, 41.5], [1.0, 1.0]], [[8.0, 16.0], [40.0, 56.0]]]
    )
    kinds = torch.tensor([[1, -1], [0, -1], [2, 3]], dtype=torch.int32)
    drawn = encoder._drawn(places, kinds)
    assert drawn.shape == (3, 3, 16, 16)
    assert [[bool(each.any()) for each in one] for one in drawn] == [
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]
    for one in (drawn[0, 0], drawn[1, 1]):
        assert one[10, 2] == one.max() == 1  # places are four pixels wide
    inside = drawn[2, 2] > 0.5
    y, x = inside.nonzero().T
    assert (int(y.min()), int(y.max()), int(x.min()), int(x.max())) == (4, 13, 2, 9)


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package sam2") as caught:
        build(NAME)
    assert caught.value.hint is not None
    assert 'SAM2_BUILD_CUDA=0 uv pip install "cellseg-core[sam2]"' in caught.value.hint


def test_published_weights_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"model": nano(1).state_dict()}, path)
    base = BaseWeights(name="w", source="https://somewhere", licence="Apache-2.0")
    asked: list[Any] = []
    monkeypatch.setattr(weights_module, "build", lambda name, side: asked.append(side) or nano())
    monkeypatch.setattr(
        weights_module, "fetch_weights", lambda *given: asked.append(given) or (path, base)
    )
    model, found = load_published(NAME, ignored, 512)
    assert asked[0] == 512
    assert asked[1] == (PUBLISHED[NAME], PUBLISHED[NAME].files[0], ignored)
    assert found is base
    held = model.state_dict()
    assert all(torch.equal(held[name], value) for name, value in nano(1).state_dict().items())


def test_weights_of_another_network_are_refused() -> None:
    tensors = tensors_of({"model": nano().state_dict()})
    fewer = {name: value for name, value in tensors.items() if "blocks.4." not in name}
    with pytest.raises(WeightsError, match="mine holds a SAM 2 of 4 blocks of width 16"):
        size_of(fewer, Path("mine"))
    with pytest.raises(WeightsError, match=r"mine does not fit SAM 2\.1"):
        fill(nano(), fewer, "mine")


def test_what_is_published_is_told_by_name() -> None:
    assert [*PUBLISHED] == [n for n in SIZES if n not in RANDOM]
    for name, model in PUBLISHED.items():
        (file,) = model.files
        assert (model.name, model.licence) == (name, "Apache-2.0")
        assert file.url.endswith(f"092824/{name}.pt") and file.proven and file.size
