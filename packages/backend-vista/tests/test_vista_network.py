"""Every encoder keeps sizes, learns everywhere and comes back from its file; the unet is local."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cellseg.data import Tile  # noqa: E402
from cellseg.errors import ConfigError, DataError, PluginError, WeightsError  # noqa: E402
from cellseg.options import parse  # noqa: E402
from cellseg.plugins import Plugins  # noqa: E402
from cellseg.specs import PredictJob, PredictorSpec  # noqa: E402
from cellseg.torch.weights import seeded  # noqa: E402
from cellseg_vista.description import Description  # noqa: E402
from cellseg_vista.network import Architecture, Maps, Network, receptive_field  # noqa: E402
from cellseg_vista.options import Vista2dOptions  # noqa: E402
from cellseg_vista.predict_options import Vista2dPredictOptions  # noqa: E402

FLAT = (0.03, 0.006, 0.006)
EVERY = [("unet", 2), ("unet", 3), ("segresnet", 2), ("segresnet", 3), ("segresnet_ds", 2),
         ("segresnet_ds", 3)]  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def network() -> Network:
    with seeded(0):
        return Network(Architecture(channels=2, feature_size=4, emb_dim=3)).eval()


def built(encoder: str = "unet", dims: int = 3, **changes: Any) -> Network:
    values: dict[str, Any] = {
        "channels": 2,
        "feature_size": 8,
        "emb_dim": 3,
        "num_classes": 4,
        "dims": dims,
        "encoder": encoder,
        "deep_supervision": 0,
        "levels": 3,
        "spacing": FLAT,
        "patch": (16, 64, 64),
    }
    with seeded(0):
        return Network(Architecture.planned(**{**values, **changes}))


def fields(maps: Maps) -> list[Any]:
    return [maps.semantic, maps.distance, maps.embedding]


def pairs(a: Maps, b: Maps) -> Any:
    return zip(fields(a), fields(b), strict=True)


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (65, 31), (8, 130)])
def test_any_size_comes_back(network: Network, size: tuple[int, int]) -> None:
    with torch.inference_mode():
        maps = network(torch.rand(2, 2, *size))
    assert [tuple(m.shape) for m in fields(maps)] == [(2, 2, *size), (2, 1, *size), (2, 3, *size)]
    assert maps.coarse == ()


@pytest.mark.parametrize(("encoder", "dims"), EVERY)
@pytest.mark.parametrize("size", [(1, 1, 1), (4, 12, 9), (3, 17, 2)])
def test_any_size_comes_back_from_every_encoder(
    encoder: str, dims: int, size: tuple[int, ...]
) -> None:
    network, image = built(encoder, dims), torch.rand(1, 2, *size[-dims:])
    for mode in (True, False):
        with torch.no_grad():
            maps = network.train(mode)(image)
        assert [m.shape[1] for m in fields(maps)] == [4, 1, 3]
        assert all(m.shape[2:] == image.shape[2:] and m.isfinite().all() for m in fields(maps))


@pytest.mark.parametrize(("encoder", "dims"), EVERY)
def test_every_parameter_of_every_encoder_gets_a_gradient(encoder: str, dims: int) -> None:
    network = built(encoder, dims, deep_supervision=0 if encoder == "segresnet" else 1)
    maps = network.train()(torch.rand(2, 2, *(8, 24, 32)[-dims:]))
    sum(m.square().mean() for level in (maps, *maps.coarse) for m in fields(level)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("encoder", ["unet", "segresnet_ds"])
@pytest.mark.parametrize("dims", [2, 3])
def test_deep_supervision_gives_coarser_maps_while_training(encoder: str, dims: int) -> None:
    network = built(encoder, dims, levels=4, deep_supervision=2)
    image = torch.rand(1, 2, *(5, 35, 40)[-dims:])
    maps = network.train()(image)
    assert len(maps.coarse) == 2
    for coarse in maps.coarse:
        assert [m.shape for m in fields(coarse)] == [m.shape for m in fields(maps)]
        assert coarse.coarse == ()
    rough = [(level.embedding.diff(dim=-1) ** 2).mean() for level in maps.coarse]
    assert rough[0] > rough[1] > 0  # the coarser, the smoother
    assert network.eval()(image).coarse == ()


def test_deep_supervision_does_not_change_what_the_network_gives() -> None:
    with_it, without = built(deep_supervision=1), built()
    missing, extra = without.load_state_dict(with_it.state_dict(), strict=False)
    assert not missing
    assert all(name.startswith("heads.1.") for name in extra)
    image = torch.rand(1, 2, 4, 16, 16)
    for a, b in pairs(with_it.eval()(image), without.eval()(image)):
        assert torch.equal(a, b)


def test_the_network_of_planes_has_its_blocks(network: Network) -> None:
    trunk = network.trunk
    assert [len(blocks) for blocks in trunk.encoder] == [1, 1, 2, 2]
    assert network.stride == (8, 8)
    assert sum(p.numel() for p in network.parameters()) == 57670


def test_the_halo_covers_what_the_network_sees(network: Network) -> None:
    """A pixel's result does not depend on what lies beyond the halo."""
    tiling = Plugins().get(PredictorSpec, "vista2d").tiling
    halo, stride = tiling.halo[1], network.stride[0]
    assert halo % stride == 0 and tiling.core[1] % stride == 0
    assert halo >= receptive_field(Architecture(1, 16, 16))[1]


@pytest.mark.parametrize(
    ("dims", "levels", "spacing", "size"),
    [
        (2, 4, (1, 1, 1), (200, 200)),
        (3, 2, (1, 1, 1), (34, 34, 34)),
        (3, 3, FLAT, (11, 90, 90)),
        (3, 3, (0.28, 0.127, 0.127), (32, 72, 72)),
    ],
)
def test_the_receptive_field_is_what_the_gradient_says(
    dims: int, levels: int, spacing: tuple[float, ...], size: tuple[int, ...]
) -> None:
    network = built(
        "unet", dims, levels=levels, spacing=spacing, feature_size=4, patch=(64, 64, 64)
    ).eval()
    for parameter in network.parameters():  # no ReLU may hide a voxel
        parameter.data.abs_()
    field = receptive_field(network.architecture)
    image = torch.rand(1, 2, *size, requires_grad=True)
    strides = torch.tensor(network.stride)
    middle = torch.tensor(size) // 2 // strides * strides
    maps = network(image)
    seen = torch.zeros(dims, dtype=torch.long)
    for place in range(int(strides.max())):
        at = middle + place % strides
        total = sum(m[(0, slice(None), *at.tolist())].sum() for m in fields(maps))
        (gradient,) = torch.autograd.grad(total, image, retain_graph=True)
        touched = gradient[0].abs().amax(0).nonzero()
        assert (touched.amin(0) > 0).all() and (touched.amax(0) < torch.tensor(size) - 1).all()
        seen = torch.maximum(seen, (touched - at).abs().amax(0))
    assert tuple(seen.tolist()) == field


@pytest.mark.parametrize("dims", [2, 3])
def test_a_shift_by_the_stride_shifts_the_result(dims: int) -> None:
    network = built("unet", dims, feature_size=4).eval()
    size = (24, 120, 120)[-dims:]
    image = torch.rand(1, 2, *size)
    shift = [slice(step, None) for step in network.stride]
    inner = [slice(10, 12), slice(48, 64), slice(48, 64)][-dims:]
    with torch.inference_mode():
        whole, part = network(image), network(image[(..., *shift)])
    for a, b in pairs(whole, part):
        torch.testing.assert_close(a[(..., *shift)][(..., *inner)], b[(..., *inner)])


@pytest.mark.parametrize("encoder", ["unet", "segresnet", "segresnet_ds"])
def test_axes_are_not_confused(encoder: str) -> None:
    """Only along the axis of long voxels does the network keep its resolution."""
    architecture = built(encoder, spacing=(1, 4, 1), patch=(64, 64, 64)).architecture
    assert architecture.stride == ((4, 4, 4) if encoder == "segresnet" else (4, 1, 4))


def test_an_encoder_without_monai_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai.networks.nets.segresnet", None)
    with pytest.raises(PluginError, match="--encoder segresnet is built by MONAI"):
        built("segresnet")


def test_an_encoder_that_cannot_be_built_is_an_error() -> None:
    with pytest.raises(ConfigError, match="--feature-size 12: segresnet needs a multiple of 8"):
        built("segresnet", feature_size=12)
    flat = built("unet").architecture
    with pytest.raises(ConfigError, match="segresnet has kernels of 3 and strides of 2"):
        Network(replace(flat, encoder="segresnet"))
    odd = replace(flat, encoder="segresnet_ds", strides=((2, 2, 2), (1, 2, 2)))
    with pytest.raises(ConfigError, match="segresnet_ds cannot have the kernels"):
        Network(odd)


@pytest.mark.parametrize(("encoder", "dims"), EVERY)
def test_save_and_load(encoder: str, dims: int, tmp_path: Path) -> None:
    network = built(encoder, dims)
    network.save(tmp_path)
    again = Network.load(tmp_path)
    assert again.architecture == network.architecture
    assert not again.training
    for (name, a), b in zip(network.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("broken", ["missing", "cut", "other", "no network", "earlier", "later"])
def test_broken_models_are_named(network: Network, tmp_path: Path, broken: str) -> None:
    network.save(tmp_path)
    weights, file = tmp_path / "weights.safetensors", tmp_path / "network.json"
    if broken == "missing":
        weights.unlink()
    elif broken == "cut":
        weights.write_bytes(weights.read_bytes()[:200])
    elif broken == "other":
        Network(Architecture(channels=2, feature_size=8, emb_dim=3)).save(tmp_path / "other")
        weights.write_bytes((tmp_path / "other/weights.safetensors").read_bytes())
    elif broken == "no network":
        file.unlink()
    else:
        values = asdict(network.architecture)
        values.pop("dims")
        later = {**asdict(network.architecture), "heads": 4}
        file.write_text(json.dumps(values if broken == "earlier" else later))
    with pytest.raises(WeightsError, match=str(tmp_path)):
        Network.load(tmp_path)


def test_predicting_needs_a_model_and_its_channels(network: Network, tmp_path: Path) -> None:
    spec = Plugins().get(PredictorSpec, "vista2d")
    options = Vista2dPredictOptions()
    with pytest.raises(WeightsError, match="train a model first"):
        spec.load(PredictJob(options=options, device="cpu"))
    network.save(tmp_path)
    Description().save(tmp_path)
    predict = spec.load(PredictJob(options=options, device="cpu", model=tmp_path))
    with pytest.raises(DataError, match="2 channels, not 1"):
        predict([Tile(image=np.zeros((1, 1, 16, 16), np.float32))])


@pytest.mark.parametrize("name", ["patch_depth", "augment_slices"])
def test_options_of_volumes_are_refused(name: str) -> None:
    value = {"patch_depth": 4, "augment_slices": "each"}[name]
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-")):
        parse(Vista2dOptions, {name: value})
