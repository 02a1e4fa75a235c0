"""What a model with a decoder starts from: files of several kinds, downloads, random numbers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from weights_site import Site, serving  # noqa: E402

from cellseg.errors import WeightsError  # noqa: E402
from cellseg.events import Event, Note  # noqa: E402
from cellseg.specs import PublishedModel  # noqa: E402
from cellseg.torch.sam.architecture import Architecture  # noqa: E402
from cellseg.torch.sam.model_types import MODEL_TYPES, RANDOM  # noqa: E402
from cellseg.torch.sam.published import (  # noqa: E402
    PUBLISHED,
    models_folder,
)
from cellseg_microsam.description import Description  # noqa: E402
from cellseg_microsam.model import MicroSam  # noqa: E402
from cellseg_microsam.peft import apply_peft  # noqa: E402
from cellseg_microsam.stored import save_model  # noqa: E402
from cellseg_microsam.weights import load_checkpoint, load_published, start  # noqa: E402


@pytest.fixture
def model(make_sam: Callable[..., Any]) -> MicroSam:
    return make_sam(seed=5)


def same(one: MicroSam, other: MicroSam) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return list(first) == list(second) and all(torch.equal(first[n], second[n]) for n in first)


def exported(model: MicroSam) -> dict[str, Any]:
    """As micro-SAM exports a model."""
    assert model.decoder is not None
    return {
        "model_state": OrderedDict(model.sam.state_dict()),
        "decoder_state": OrderedDict(model.decoder.state_dict()),
    }


def test_each_kind_of_file_is_read(model: MicroSam, tmp_path: Path) -> None:
    state = model.state_dict()
    alone = {n.removeprefix("sam."): t for n, t in state.items() if n.startswith("sam.")}
    torch.save(exported(model), tmp_path / "exported.pt")
    torch.save(alone, tmp_path / "sam.pth")
    save_file(alone, tmp_path / "sam.safetensors")
    save_file(state, tmp_path / "ours.safetensors")
    for name in ("exported.pt", "ours.safetensors"):
        loaded = load_checkpoint(tmp_path / name)
        assert same(loaded.model, model), name
        assert not loaded.model.training
    for name in ("sam.pth", "sam.safetensors"):
        loaded = load_checkpoint(tmp_path / name)
        assert loaded.model.decoder is None
        assert same(loaded.model, start_without_decoder(tmp_path / "exported.pt"))
        assert loaded.base is not None and len(loaded.base.sha256) == 64
        assert loaded.base.source == str(tmp_path / name)


def start_without_decoder(path: Path) -> MicroSam:
    return start(model_type="vit_b", checkpoint=path, seed=0, with_decoder=False, emit=print).model


def test_a_checkpoint_of_joint_training_has_a_prefix(model: MicroSam, tmp_path: Path) -> None:
    state = exported(model)
    state["model_state"] = {f"sam.{n}": t for n, t in state["model_state"].items()}
    torch.save(state, tmp_path / "joint.pt")
    assert same(load_checkpoint(tmp_path / "joint.pt").model, model)


def test_the_first_decoders_are_read(make_sam: Callable[..., Any], tmp_path: Path) -> None:
    model = make_sam(transposed=True)
    torch.save(exported(model), tmp_path / "first.pt")
    loaded = load_checkpoint(tmp_path / "first.pt").model
    assert loaded.architecture.transposed and same(loaded, model)


def test_a_model_directory_is_read(model: MicroSam, tmp_path: Path) -> None:
    described = Description(model_type="vit_b_lm", architecture=model.architecture.to_dict())
    save_model(model, described, tmp_path / "run" / "model")
    for path in (tmp_path / "run", tmp_path / "run" / "model"):
        loaded = load_checkpoint(path)
        assert same(loaded.model, model)
        assert loaded.model_type == "vit_b_lm"
    with pytest.raises(WeightsError, match="holds no microsam model"):
        load_checkpoint(tmp_path)


def test_lora_in_a_file_is_merged(model: MicroSam, tmp_path: Path) -> None:
    apply_peft(model, "lora", rank=3, blocks=(1,))
    lora = model.sam.image_encoder.blocks[1].attn.qkv
    torch.nn.init.normal_(lora.w_b_linear_q.weight)
    torch.save(exported(model), tmp_path / "lora.pt")
    loaded = load_checkpoint(tmp_path / "lora.pt").model
    assert "qkv_proj" not in " ".join(loaded.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode(x), model.encode(x), rtol=1e-4, atol=1e-5)
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_random_models_depend_on_the_seed_alone() -> None:
    def made(seed: int) -> MicroSam:
        loaded = start(model_type="tiny", checkpoint=None, seed=seed, with_decoder=True, emit=print)
        assert loaded.bases == () and not loaded.new_decoder
        return loaded.model

    torch.manual_seed(1)
    first = made(3)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert same(first, made(3))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not same(first, made(4))


def test_a_decoder_is_added_or_left_out(model: MicroSam, tmp_path: Path) -> None:
    torch.save(model.sam.state_dict(), tmp_path / "sam.pth")
    loaded = [
        start(
            model_type="vit_b",
            checkpoint=tmp_path / "sam.pth",
            seed=s,
            with_decoder=True,
            emit=print,
        )
        for s in (1, 1, 2)
    ]
    assert all(each.new_decoder and each.model.decoder is not None for each in loaded)
    assert same(loaded[0].model, loaded[1].model)
    assert not same(loaded[0].model, loaded[2].model)
    assert loaded[0].model.architecture.unetr is not None
    torch.save(exported(model), tmp_path / "exported.pt")
    bare = start_without_decoder(tmp_path / "exported.pt")
    assert bare.decoder is None and bare.architecture.unetr is None


@pytest.fixture
def site(model: MicroSam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server on loopback that has the tiny model in the place of ``vit_b_lm``."""
    folder = tmp_path / "at"
    folder.mkdir()
    assert model.decoder is not None
    torch.save(model.sam.state_dict(), folder / "vit_b_lm")
    torch.save(model.decoder.state_dict(), folder / "vit_b_lm_decoder")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with serving(files) as site:
        entry = PublishedModel(
            name="vit_b_lm",
            licence="CC-BY-4.0",
            files=(site.remote("vit_b_lm"), site.remote("vit_b_lm_decoder")),
            folder=models_folder,
        )
        monkeypatch.setattr("cellseg.torch.sam.weights.PUBLISHED", {"vit_b_lm": entry})
        monkeypatch.setenv("MICROSAM_CACHEDIR", str(tmp_path / "cache"))
        yield site


def test_a_published_model_is_downloaded_once(site: Site, model: MicroSam, tmp_path: Path) -> None:
    events: list[Event] = []
    loaded = load_published("vit_b_lm", events.append)
    assert same(loaded.model, model)
    assert events and all(isinstance(event, Note) for event in events), "steps are of a training"
    cached = tmp_path / "cache" / "models"
    files = sorted(p.name for p in cached.iterdir() if not p.name.startswith("."))
    assert files == ["vit_b_lm", "vit_b_lm_decoder"]
    names = [(base.name, base.licence, len(base.sha256)) for base in loaded.bases]
    assert names == [("vit_b_lm", "CC-BY-4.0", 64), ("vit_b_lm_decoder", "CC-BY-4.0", 64)]
    load_published("vit_b_lm", events.append)
    assert site.asked == ["vit_b_lm", "vit_b_lm_decoder"], "micro-SAM's own cache serves too"


def test_every_model_that_is_not_random_is_published() -> None:
    assert {*PUBLISHED} == {*MODEL_TYPES} - {*RANDOM}
    for name, model in PUBLISHED.items():
        assert model.name == name and model.licence and model.citation
        names = [name] if len(name) == 5 else [name, f"{name}_decoder"]
        assert [file.name for file in model.files] == names, "as micro-SAM's cache has it"
        assert all(file.url.startswith("https://") and file.proven for file in model.files)
        assert Architecture.named(name).unetr is not None


@pytest.mark.slow
def test_files_and_checksums_are_those_of_micro_sam(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from micro_sam.util import models

    monkeypatch.setenv("MICROSAM_CACHEDIR", str(tmp_path))
    theirs = models()
    for remote in [file for model in PUBLISHED.values() for file in model.files]:
        assert theirs.registry[remote.name] in remote.checksum.split()
        assert remote.url == theirs.urls[remote.name]
    assert Path(theirs.path) == models_folder()
    monkeypatch.delenv("MICROSAM_CACHEDIR")
    assert Path(models().path) == models_folder()
