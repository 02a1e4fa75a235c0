"""The model against segment_anything's, and how it is stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")


from cellseg.errors import ConfigError, WeightsError  # noqa: E402
from cellseg.torch.sam.architecture import Architecture  # noqa: E402
from cellseg_microsam.description import Description  # noqa: E402
from cellseg_microsam.model import MicroSam  # noqa: E402
from cellseg_microsam.stored import load_model, save_model  # noqa: E402


@pytest.fixture
def model(make_sam: Callable[..., Any]) -> MicroSam:
    torch.manual_seed(0)
    made = make_sam()
    for name, parameter in made.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:
            torch.nn.init.normal_(parameter)
    return made


@pytest.mark.parametrize("name", ["tiny", "small"])
@pytest.mark.parametrize("transposed", [True, False])
def test_sizes_are_read_off_the_weights(name: str, transposed: bool) -> None:
    architecture = replace(Architecture.named(name), transposed=transposed)
    with torch.device("meta"):
        model = MicroSam(architecture)
    assert model.decoder is not None
    found = Architecture.of_state(model.sam.state_dict(), model.decoder.state_dict())
    assert found == architecture
    assert Architecture.of(json.loads(json.dumps(found.to_dict()))) == found


def test_the_tiny_model_is_tiny() -> None:
    assert sum(p.numel() for p in MicroSam(Architecture.named("tiny")).parameters()) < 150_000


def test_maps_have_the_size_of_the_image(model: MicroSam) -> None:
    frame = model.frame((40, 90))
    with torch.no_grad():
        embeddings = model.encode(model.prepare(torch.rand(2, 1, 40, 90), frame))
        maps = model.maps(embeddings, frame)
        logits = model.logits(embeddings)
    assert maps.shape == (2, 3, 40, 90) and logits.shape == (2, 3, 64, 64)
    assert 0 <= maps.min() and maps.max() <= 1
    torch.testing.assert_close(maps, frame.restore(torch.sigmoid(logits)))
    bare = MicroSam(replace(model.architecture, unetr=None))
    with pytest.raises(ConfigError, match="no decoder"):
        bare.logits(embeddings)


def test_a_model_comes_back(model: MicroSam, tmp_path: Path) -> None:
    description = Description(
        model_type="vit_b", architecture=model.architecture.to_dict(), field=512, mode="full"
    )
    save_model(model, description, tmp_path)
    loaded, described = load_model(tmp_path)
    assert described == description
    assert loaded.architecture == model.architecture
    assert not loaded.training
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode(x), model.encode(x), rtol=0, atol=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["microsam.json", "weights.safetensors"]


@pytest.mark.parametrize(
    "change",
    [{"field": "512"}, {"surplus": 1}, {"architecture": {"depth": 2}}, {"model_type": None}],
    ids=str,
)
def test_a_damaged_description_is_an_error(
    model: MicroSam, tmp_path: Path, change: dict[str, Any]
) -> None:
    save_model(
        model, Description(model_type="x", architecture=model.architecture.to_dict()), tmp_path
    )
    file = tmp_path / "microsam.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(WeightsError, match=r"microsam\.json"):
        load_model(tmp_path)


def test_a_model_without_its_files_is_an_error(model: MicroSam, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"microsam\.json cannot be read"):
        load_model(tmp_path)
    Description(model_type="x", architecture=model.architecture.to_dict()).save(tmp_path)
    with pytest.raises(WeightsError, match=r"weights\.safetensors is missing"):
        load_model(tmp_path)
