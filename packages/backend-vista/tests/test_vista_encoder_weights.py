"""A checkpoint of VISTA3D fills the encoder segresnet_ds, or says why it does not."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
monai = pytest.importorskip("monai.networks.nets.segresnet_ds")

from safetensors.torch import save_file  # noqa: E402

from cellseg.errors import ConfigError, WeightsError  # noqa: E402
from cellseg.torch.weights import seeded  # noqa: E402
from cellseg_vista.encoder_weights import load_encoder  # noqa: E402
from cellseg_vista.network import Architecture, Network  # noqa: E402

EVEN = (1.0, 1.0, 1.0)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def encoder_of_vista3d(size: int = 4, channels: int = 1) -> Any:
    """As ``monai.networks.nets.vista3d132`` builds it, but smaller."""
    with seeded(1):
        return monai.SegResNetDS2(
            in_channels=channels,
            blocks_down=(1, 2, 2, 4, 4),
            norm="instance",
            out_channels=size,
            init_filters=size,
            dsdepth=1,
        )


def state(encoder: Any, prefix: str = "") -> dict[str, Any]:
    names = {f"{prefix}image_encoder.{k}": v.clone() for k, v in encoder.state_dict().items()}
    return {**names, f"{prefix}class_head.class_embeddings.weight": torch.rand(5, 4)}


def network(**changes: Any) -> Network:
    values: dict[str, Any] = {
        "channels": 1,
        "feature_size": 4,
        "emb_dim": 3,
        "num_classes": 2,
        "dims": 3,
        "encoder": "segresnet_ds",
        "deep_supervision": 0,
        "levels": 5,
        "spacing": EVEN,
        "patch": (32, 32, 32),
    }
    with seeded(0):
        return Network(Architecture.planned(**{**values, **changes}))


@pytest.mark.parametrize("form", ["plain", "nested", "prefixed", "safetensors"])
def test_the_network_gives_the_features_of_vista3d(form: str, tmp_path: Path) -> None:
    theirs = encoder_of_vista3d()
    file = tmp_path / ("v.safetensors" if form == "safetensors" else "v.pt")
    if form == "safetensors":
        save_file(state(theirs), file)
    elif form == "nested":
        torch.save({"epoch": 3, "state_dict": {"model": state(theirs)}}, file)
    else:
        torch.save(state(theirs, "module.network." if form == "prefixed" else ""), file)
    ours = network().eval()
    loaded = load_encoder(ours, file)
    image = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        _, automatic = theirs.eval()(image)
        torch.testing.assert_close(ours.trunk(image)[0], automatic)
    assert set(loaded.used) == {n for n, _ in ours.named_parameters() if n.startswith("trunk.")}
    assert loaded.untouched == ()
    assert len(loaded.sha256) == 64
    assert "31 of its tensors are not used" in str(loaded)
    assert all(("up_layers." in name) or ("class_head" in name) for name in loaded.left_out)


def test_fewer_levels_take_the_finest(tmp_path: Path) -> None:
    theirs = encoder_of_vista3d()
    torch.save(state(theirs), tmp_path / "v.pt")
    ours = network(levels=3, deep_supervision=1)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    loaded = load_encoder(ours, tmp_path / "v.pt")
    after = ours.trunk.net.state_dict()
    for name, tensor in theirs.state_dict().items():
        if name.startswith(("encoder.conv_init", "encoder.layers.2.blocks")):
            assert torch.equal(after[name], tensor), name
    for name in ("upsample.deconv.weight", "blocks.0.conv1.weight"):
        expected = theirs.state_dict()[f"up_layers_auto.3.{name}"]
        assert torch.equal(after[f"up_layers.1.{name}"], expected)
    assert loaded.untouched == tuple(f"trunk.net.up_layers.0.head.{n}" for n in ("weight", "bias"))
    assert all(torch.equal(ours.state_dict()[name], before[name]) for name in loaded.untouched)
    assert "encoder.layers.4" in str(loaded) and "up_layers_auto.0" in str(loaded)
    assert "start from random (trunk.net.up_layers.0.head" in str(loaded)


@pytest.mark.parametrize(
    ("theirs", "ours", "message", "hint"),
    [
        ({"size": 8}, {}, "has 8 features, the network 4", "--feature-size 8"),
        ({}, {"channels": 2}, "for images of 1 channels, these have 2", "--channels"),
        ({}, {"spacing": (4.0, 1.0, 1.0)}, "kernels of 3 x 3 x 3, the network 1 x 3 x 3", "equal"),
    ],
)
def test_what_does_not_fit_is_explained(
    theirs: Any, ours: Any, message: str, hint: str, tmp_path: Path
) -> None:
    torch.save(state(encoder_of_vista3d(**theirs)), tmp_path / "v.pt")
    unfilled = network(**ours)
    before = {name: tensor.clone() for name, tensor in unfilled.state_dict().items()}
    with pytest.raises(WeightsError, match=message) as caught:
        load_encoder(unfilled, tmp_path / "v.pt")
    assert hint in str(caught.value.hint)
    assert all(torch.equal(before[n], t) for n, t in unfilled.state_dict().items())


def test_one_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    tensors = state(encoder_of_vista3d())
    name = "image_encoder.encoder.layers.1.blocks.0.conv2.weight"
    tensors[name] = tensors[name][:, :, 1:]
    torch.save(tensors, tmp_path / "v.pt")
    with pytest.raises(WeightsError, match=f"{name} is 8 x 8 x 2 x 3 x 3, but 8 x 8 x 3 x 3 x 3"):
        load_encoder(network(), tmp_path / "v.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        (b"", "v.pt"),
        (b"not a checkpoint", "v.pt"),
        ({"weight": [1, 2]}, "no checkpoint of VISTA3D"),
        ({}, "no checkpoint of VISTA3D"),
        ([1, 2], "holds no state dict, but a list"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named(content: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "v.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(WeightsError, match=message):
        load_encoder(network(levels=2), file)


def test_a_truncated_safetensors_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "v.safetensors"
    save_file({"a": torch.rand(100)}, file)
    file.write_bytes(file.read_bytes()[:150])
    with pytest.raises(WeightsError, match=r"v\.safetensors cannot be read"):
        load_encoder(network(levels=2), file)


class _Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("pickled", [False, True])
def test_a_checkpoint_cannot_run_code(pickled: bool, tmp_path: Path) -> None:
    file, folder = tmp_path / "v.pt", tmp_path / "sprung"
    content = {"state_dict": state(encoder_of_vista3d()), "more": _Trap(folder)}
    if pickled:
        file.write_bytes(pickle.dumps({"more": _Trap(folder)}, protocol=2))
    else:
        torch.save(content, file)
    with pytest.raises(WeightsError, match="could run code"):
        load_encoder(network(levels=2), file)
    assert not folder.exists()


def test_other_encoders_take_no_checkpoint(tmp_path: Path) -> None:
    for changes in ({"encoder": "unet"}, {"dims": 2}):
        with pytest.raises(ConfigError, match="segresnet_ds in three dimensions"):
            load_encoder(network(levels=3, **changes), tmp_path / "v.pt")
