"""Where weights of Segment Anything come from: files, downloads, and what is refused."""

from __future__ import annotations

import os
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("segment_anything")

from safetensors.torch import save_file  # noqa: E402
from sam_fakes import small_sam  # noqa: E402
from weights_site import Site, serving  # noqa: E402

from cellseg.download import Remote  # noqa: E402
from cellseg.errors import ConfigError, WeightsError  # noqa: E402
from cellseg.events import Event, Note  # noqa: E402
from cellseg.specs import PublishedModel  # noqa: E402
from cellseg.torch.sam import weights  # noqa: E402
from cellseg.torch.sam.model import SegmentAnything  # noqa: E402
from cellseg.torch.sam.published import models_folder  # noqa: E402
from cellseg.torch.sam.weights import load_checkpoint, load_published  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model() -> SegmentAnything:
    return small_sam(seed=5)


def exported(model: SegmentAnything) -> dict[str, Any]:
    """As micro-SAM exports a model; its decoder is of no interest here."""
    return {
        "model_state": OrderedDict(model.sam.state_dict()),
        "decoder_state": {"conv.weight": torch.zeros(2)},
    }


def same(one: SegmentAnything, other: SegmentAnything) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return list(first) == list(second) and all(torch.equal(first[n], second[n]) for n in first)


def test_each_kind_of_file_is_read_without_its_decoder(
    model: SegmentAnything, tmp_path: Path
) -> None:
    alone, more = model.sam.state_dict(), {"decoder.conv.weight": torch.zeros(2)}
    prefixed = {f"sam.{name}": tensor for name, tensor in alone.items()}
    torch.save(exported(model), tmp_path / "exported.pt")
    torch.save({**exported(model), "model_state": prefixed}, tmp_path / "joint.pt")
    torch.save(alone, tmp_path / "sam.pth")
    save_file(alone, tmp_path / "sam.safetensors")
    save_file({**model.state_dict(), **more}, tmp_path / "ours.safetensors")
    for path in sorted(tmp_path.iterdir()):
        loaded = load_checkpoint(path)
        assert same(loaded.model, model), path
        assert loaded.model.architecture == model.architecture
        assert not loaded.model.training and loaded.name == "tiny"
        assert loaded.base is not None and len(loaded.base.sha256) == 64
        assert loaded.base.source == str(path)


def test_lora_in_a_file_is_merged(model: SegmentAnything, tmp_path: Path) -> None:
    """As micro-SAM names it: plain weights, and updates of query and value of rank 3."""
    state, inside = dict(model.sam.state_dict()), "image_encoder.blocks.1.attn.qkv"
    plain = {name: state.pop(f"{inside}.{name}") for name in ("weight", "bias")}
    state |= {f"{inside}.qkv_proj.{name}": tensor for name, tensor in plain.items()}
    parts = {part: (torch.randn(3, 32), torch.randn(32, 3)) for part in "qv"}
    for part, (down, up) in parts.items():
        state[f"{inside}.w_a_linear_{part}.weight"] = down
        state[f"{inside}.w_b_linear_{part}.weight"] = up
    torch.save(state, tmp_path / "lora.pt")
    x = torch.randn(5, 32)
    q, k, v = (x @ plain["weight"].T + plain["bias"]).chunk(3, 1)
    q, v = (y + x @ down.T @ up.T for y, (down, up) in zip((q, v), parts.values(), strict=True))
    with torch.no_grad():
        found = load_checkpoint(tmp_path / "lora.pt").model
        given = found.sam.image_encoder.blocks[1].attn.qkv(x)
    torch.testing.assert_close(given, torch.cat([q, k, v], 1), rtol=1e-4, atol=1e-4)
    assert list(found.state_dict()) == list(model.state_dict())
    assert all(parameter.requires_grad for parameter in found.parameters())
    del state[f"{inside}.w_b_linear_v.weight"]
    torch.save(state, tmp_path / "half.pt")
    with pytest.raises(WeightsError, match=r"w_a_linear_v\.weight is not whole"):
        load_checkpoint(tmp_path / "half.pt")


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_no_code_in_a_file_is_run(model: SegmentAnything, tmp_path: Path) -> None:
    torch.save({**exported(model), "more": Payload(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match=r"could run code: \w+\.system"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_a_training_checkpoint_says_how_to_export_it(
    model: SegmentAnything, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trainer:
        pass

    Trainer.__module__, Trainer.__qualname__ = "torch_em.trainer", "Trainer"
    module = types.ModuleType("torch_em.trainer")
    module.Trainer = Trainer  # type: ignore[attr-defined]
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "torch_em", types.ModuleType("torch_em"))
        patched.setitem(sys.modules, "torch_em.trainer", module)
        torch.save({**exported(model), "init": Trainer()}, tmp_path / "best.pt")
    with pytest.raises(WeightsError, match="training checkpoint of micro-SAM") as error:
        load_checkpoint(tmp_path / "best.pt")
    for function in ("export_custom_sam_model", "export_instance_segmentation_model"):
        assert function in error.value.hint
    assert str(tmp_path / "best.pt") in error.value.hint
    unetr = {f"encoder.{n}": t for n, t in model.sam.image_encoder.state_dict().items()}
    torch.save({"model_state": unetr}, tmp_path / "unetr.pt")
    with pytest.raises(WeightsError, match="not exported"):
        load_checkpoint(tmp_path / "unetr.pt")


def test_what_is_no_model_is_an_error(model: SegmentAnything, tmp_path: Path) -> None:
    def refused(reason: str, name: str) -> None:
        with pytest.raises(WeightsError, match=reason) as error:
            load_checkpoint(tmp_path / name)
        assert name in str(error.value)

    refused("is missing", "absent.pt")
    (tmp_path / "noise.pt").write_bytes(b"no weights at all")
    refused("is damaged|cannot be read", "noise.pt")
    (tmp_path / "noise.safetensors").write_bytes(b"no weights at all")
    refused("cannot be read", "noise.safetensors")
    torch.save(exported(model), tmp_path / "cut.pt")
    whole = (tmp_path / "cut.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    refused("is damaged|cannot be read", "cut.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    refused("no state dict", "list.pt")
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pt")
    refused("no model of Segment Anything", "other.pt")
    state = exported(model)
    del state["model_state"]["image_encoder.neck.2.weight"]
    torch.save(state, tmp_path / "lacking.pt")
    refused("neck.2.weight", "lacking.pt")
    torch.save({"model_state": [1]}, tmp_path / "nested.pt")
    refused("no state dict", "nested.pt")
    (tmp_path / "folder").mkdir()
    refused("is a folder", "folder")


@pytest.fixture
def site(model: SegmentAnything, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server on loopback that has the tiny model in the place of ``vit_b_lm``."""
    folder = tmp_path / "at"
    folder.mkdir()
    torch.save(model.sam.state_dict(), folder / "vit_b_lm")
    files = {"vit_b_lm": (folder / "vit_b_lm").read_bytes()}
    with serving(files) as site:
        entry = PublishedModel(
            name="vit_b_lm",
            licence="CC-BY-4.0",
            files=(
                site.remote("vit_b_lm"),
                Remote(url="http://127.0.0.1:9/", name="vit_b_lm_decoder"),
            ),
            folder=models_folder,
        )
        monkeypatch.setattr(weights, "PUBLISHED", {"vit_b_lm": entry})
        monkeypatch.setenv("MICROSAM_CACHEDIR", str(tmp_path / "cache"))
        yield site


def test_a_published_model_is_downloaded_once(
    site: Site, model: SegmentAnything, tmp_path: Path
) -> None:
    events: list[Event] = []
    loaded = load_published("vit_b_lm", events.append)
    assert same(loaded.model, model) and loaded.name == "vit_b_lm"
    assert events and all(isinstance(event, Note) for event in events), "steps are of a training"
    cached = tmp_path / "cache" / "models"
    names = sorted(p.name for p in cached.iterdir())
    assert names == [".vit_b_lm.cellseg.json", "vit_b_lm"], "the decoder is not needed"
    assert loaded.base is not None and len(loaded.base.sha256) == 64
    assert (loaded.base.name, loaded.base.licence) == ("vit_b_lm", "CC-BY-4.0")
    load_published("vit_b_lm", events.append)
    assert site.asked == ["vit_b_lm"], "micro-SAM's own cache serves too"


def test_a_file_that_is_not_as_published_is_refused(site: Site, tmp_path: Path) -> None:
    cached = tmp_path / "cache" / "models" / "vit_b_lm"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"something else")
    with pytest.raises(WeightsError, match="is not the file expected: its XXH128 is") as error:
        load_published("vit_b_lm", print)
    assert str(cached) in str(error.value) and "--force" in error.value.hint
    assert cached.read_bytes() == b"something else"
    cached.unlink()
    site.files["vit_b_lm"] += b"changed on the way"
    with pytest.raises(WeightsError, match="is not the file expected"):
        load_published("vit_b_lm", print)
    assert not cached.exists()


def test_without_a_network_it_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MICROSAM_CACHEDIR", str(tmp_path))
    remote = Remote(url="http://127.0.0.1:9/vit_b", name="vit_b", checksum="xxh128:" + "0" * 32)
    entry = PublishedModel(
        name="vit_b", licence="Apache-2.0", files=(remote,), folder=models_folder
    )
    monkeypatch.setattr(weights, "PUBLISHED", {"vit_b": entry})
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(WeightsError, match="cannot be downloaded") as error:
        load_published("vit_b", lambda event: None)
    assert str(tmp_path / "models" / "vit_b") in error.value.hint
    assert remote.url in str(error.value) and "CELLSEG_MIRROR" in error.value.hint


def test_models_that_are_not_published() -> None:
    with pytest.raises(ConfigError, match="no published weights of 'tiny'"):
        load_published("tiny", print)
    with pytest.raises(ConfigError, match="mobile_sam"):  # before anything is downloaded
        load_published("vit_t_lm", print)
