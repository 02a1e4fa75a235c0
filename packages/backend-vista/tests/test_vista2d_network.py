"""The network is local and keeps sizes; models and options are checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cellseg.data import Tile  # noqa: E402
from cellseg.errors import ConfigError, DataError, WeightsError  # noqa: E402
from cellseg.options import parse  # noqa: E402
from cellseg.plugins import Plugins  # noqa: E402
from cellseg.specs import ExporterSpec, ExportJob, PredictJob, PredictorSpec  # noqa: E402
from cellseg.torch.weights import seeded  # noqa: E402
from cellseg_vista.export_options import Pt2Options  # noqa: E402
from cellseg_vista.network import STRIDE, Architecture, Network  # noqa: E402
from cellseg_vista.options import Vista2dOptions  # noqa: E402
from cellseg_vista.predict_options import Vista2dPredictOptions  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def network() -> Network:
    with seeded(0):
        return Network(Architecture(channels=2, feature_size=4, emb_dim=3)).eval()


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (65, 31), (8, 130)])
def test_any_size_comes_back(network: Network, size: tuple[int, int]) -> None:
    with torch.inference_mode():
        maps = network(torch.rand(2, 2, *size))
    assert [tuple(m.shape) for m in maps] == [(2, 2, *size), (2, 1, *size), (2, 3, *size)]


def test_the_halo_covers_what_the_network_sees(network: Network) -> None:
    """A pixel's result does not depend on what lies beyond the halo."""
    tiling = Plugins().get(PredictorSpec, "vista2d").tiling
    halo = tiling.halo[1]
    assert halo % STRIDE == 0 and tiling.core[1] % STRIDE == 0
    image = torch.rand(1, 2, 256, 256, requires_grad=True)
    for at in (128, 129, 135):
        total = sum(m[..., at, at].sum() for m in network(image))
        (gradient,) = torch.autograd.grad(total, image)
        seen = gradient[0].abs().amax(0).nonzero()
        assert (seen - at).abs().max() <= halo
        assert (seen - at).abs().max() > 50  # it does look around


def test_a_shift_by_the_stride_shifts_the_result(network: Network) -> None:
    image = torch.rand(1, 2, 320, 320)
    with torch.inference_mode():
        whole, part = network(image), network(image[..., STRIDE:, 3 * STRIDE :])
    inner = (slice(None), slice(None), slice(128, 192), slice(128, 192))
    for a, b in zip(whole, part, strict=True):
        torch.testing.assert_close(a[..., STRIDE:, 3 * STRIDE :][inner], b[inner])


def test_save_and_load(network: Network, tmp_path: Path) -> None:
    network.save(tmp_path)
    again = Network.load(tmp_path)
    for (name, a), b in zip(network.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("broken", ["missing", "cut", "other", "no network"])
def test_broken_models_are_named(network: Network, tmp_path: Path, broken: str) -> None:
    network.save(tmp_path)
    weights = tmp_path / "weights.safetensors"
    if broken == "missing":
        weights.unlink()
    elif broken == "cut":
        weights.write_bytes(weights.read_bytes()[:200])
    elif broken == "other":
        Network(Architecture(channels=2, feature_size=8, emb_dim=3)).save(tmp_path / "other")
        weights.write_bytes((tmp_path / "other/weights.safetensors").read_bytes())
    else:
        (tmp_path / "network.json").unlink()
    with pytest.raises(WeightsError, match=str(tmp_path)):
        Network.load(tmp_path)


def test_predicting_needs_a_model_and_its_channels(network: Network, tmp_path: Path) -> None:
    spec = Plugins().get(PredictorSpec, "vista2d")
    options = Vista2dPredictOptions()
    with pytest.raises(WeightsError, match="train a model first"):
        spec.load(PredictJob(options=options, device="cpu"))
    network.save(tmp_path)
    predict = spec.load(PredictJob(options=options, device="cpu", model=tmp_path))
    with pytest.raises(DataError, match="2 channels, not 1"):
        predict([Tile(image=np.zeros((1, 1, 16, 16), np.float32))])


@pytest.mark.parametrize("name", ["patch_depth", "augment_slices"])
def test_options_of_volumes_are_refused(name: str) -> None:
    value = {"patch_depth": 4, "augment_slices": "each"}[name]
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-")):
        parse(Vista2dOptions, {name: value})


@pytest.mark.slow
def test_the_exported_program_gives_the_same(network: Network, tmp_path: Path) -> None:
    network.save(tmp_path)
    spec = Plugins().get(ExporterSpec, "pt2")
    target = tmp_path / "model.pt2"
    notes: list[object] = []
    spec.export(ExportJob(options=Pt2Options(), model=tmp_path, target=target), notes.append)
    program = torch.export.load(target).module()
    image = torch.rand(3, 2, 40, 72)
    with torch.no_grad():
        for a, b in zip(program(image), network.maps(image), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert notes
