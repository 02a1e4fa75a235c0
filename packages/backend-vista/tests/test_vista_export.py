"""Exported networks give what the network gives, for every encoder, in planes and volumes."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from cellseg.bundle import Bundle  # noqa: E402
from cellseg.data import Tiling  # noqa: E402
from cellseg.events import Note  # noqa: E402
from cellseg.specs import ExportJob  # noqa: E402
from cellseg.torch.weights import seeded  # noqa: E402
from cellseg_vista.export import (  # noqa: E402
    export_bioimageio,
    export_onnx,
    export_pt2,
    export_torchscript,
)
from cellseg_vista.export_options import (  # noqa: E402
    BioimageioOptions,
    OnnxOptions,
    Pt2Options,
    TorchscriptOptions,
)
from cellseg_vista.network import Architecture, Network  # noqa: E402

EXPORTERS = {
    "pt2": (export_pt2, Pt2Options()),
    "torchscript": (export_torchscript, TorchscriptOptions()),
    "onnx": (export_onnx, OnnxOptions()),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def trained(
    folder: Path, dims: int, encoder: str = "unet", channels: int = 2, **values: Any
) -> Network:
    """A tiny model with random weights, and its bundle."""
    folder.mkdir()
    with seeded(0):
        network = Network(
            Architecture.planned(
                channels=channels,
                feature_size=4 if encoder == "unet" else 8,
                emb_dim=3,
                num_classes=4,
                dims=dims,
                encoder=encoder,
                deep_supervision=0 if dims == 2 or encoder == "segresnet" else 1,
                levels=dims,
                spacing=(30.0, 6.0, 6.0),
                patch=(8, 64, 64),
            )
        )
    network.save(folder)
    told = {
        "backend": f"vista{dims}d",
        "channels": channels,
        "classes": ("background", "cell", "cleft"),
        "spacing": (0.03, 0.006, 0.006),
        "tiling": Tiling(core=(1, 64, 64), halo=(1 if dims == 3 else 0, 16, 16)),
    }
    Bundle(**(told | values)).save(folder)
    return network.eval()


def run(path: Path, name: str, image: Any) -> list[Any]:
    if name == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        assert [o.name for o in session.get_outputs()] == ["semantic", "distance", "embedding"]
        return [torch.from_numpy(a) for a in session.run(None, {"image": image.numpy()})]
    if name == "pt2":
        return list(torch.export.load(path).module()(image))
    return list(torch.jit.load(path)(image))


SLOW = [
    pytest.param(encoder, dims, marks=pytest.mark.slow)
    for encoder in ("segresnet", "segresnet_ds")
    for dims in (2, 3)
]


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("name", EXPORTERS)
@pytest.mark.parametrize(("encoder", "dims"), [("unet", 2), ("unet", 3), *SLOW])
def test_an_exported_network_takes_other_sizes_and_counts(
    encoder: str, dims: int, name: str, tmp_path: Path
) -> None:
    if name == "onnx" and not find_spec("onnxscript"):
        pytest.skip("onnxscript is not installed")
    if encoder != "unet":
        pytest.importorskip("monai")
    network = trained(tmp_path / "model", dims, encoder)
    export, options = EXPORTERS[name]
    notes: list[Any] = []
    target = tmp_path / f"network.{name}"
    job = ExportJob(options=options, model=tmp_path / "model", target=target)
    assert export(job, notes.append) == target
    (note,) = notes
    assert isinstance(note, Note) and re.search(r"within \d", note.text)
    with seeded(1):
        image = torch.rand(
            3, 2, *(step * n for step, n in zip(network.stride, (5, 4, 6)[-dims:], strict=True))
        )
    with torch.no_grad():
        maps = network.maps(image)
        for a, b in zip(run(target, name, image), maps[:3], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_the_programs_in_the_docs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bioimageio", "onnxscript"):
        if not find_spec(name):
            pytest.skip(f"{name} is not installed")
    model = tmp_path / "model"
    trained(model, 2, channels=1)
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[3] / "docs/export.md").read_text(encoding="utf-8")
    every: dict[str, Any] = {**EXPORTERS, "bioimageio": (export_bioimageio, BioimageioOptions())}
    for name, (export, options) in every.items():
        (target,) = re.findall(rf"--format {name} -o (\S+)", text)
        job = ExportJob(options=options, model=model, target=tmp_path / target)
        export(job, lambda event: None)
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == len(every)
    for block in blocks:
        found: dict[str, Any] = {}
        exec(block, found)
        first = found.get("semantic", found.get("probabilities"))
        assert tuple(first.shape) == (1, 4, 256, 256)


@pytest.mark.parametrize("dims", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_a_bioimageio_package_is_complete(dims: int, tmp_path: Path) -> None:
    if not find_spec("bioimageio"):
        pytest.skip("bioimageio.core is not installed")
    network = trained(tmp_path / "model", dims)
    notes: list[Any] = []
    options = BioimageioOptions(weights="onnx" if dims == 2 else "torchscript", author=("Ann",))
    job = ExportJob(options=options, model=tmp_path / "model", target=tmp_path / "model.zip")
    export_bioimageio(job, notes.append)
    assert [note.text.split(" ")[-1] for note in notes[1:]] == ["--licence."]

    from bioimageio.spec import load_description

    package: Any = load_description(tmp_path / "model.zip", perform_io_checks=False)
    probabilities, distance, embedding = package.outputs
    assert [o.id for o in package.outputs] == ["probabilities", "distance", "embedding"]
    names = probabilities.axes[1].channel_names
    assert names == ["background", "cell", "cleft", "spare class 3"]
    assert [o.postprocessing[0].id for o in (probabilities, distance)] == ["softmax", "sigmoid"]
    assert len(embedding.axes[1].channel_names) == 3
    space = package.inputs[0].axes[2:]
    assert [axis.id for axis in space] == ["z", "y", "x"][-dims:]
    assert tuple(axis.size.step for axis in space) == network.stride
    halo = (1, 16, 16)[-dims:]
    assert [axis.halo for axis in probabilities.axes[2:]] == list(halo)
    assert all(axis.size.min > 2 * h for axis, h in zip(space, halo, strict=True))
    assert ("each pixel" if dims == 2 else "each voxel") in package.description


def test_a_bundle_without_tiling_takes_the_halo_of_its_backend(tmp_path: Path) -> None:
    from cellseg.plugins import Plugins
    from cellseg.specs import PredictorSpec
    from cellseg_vista.export import package

    network = trained(tmp_path / "model", 2, tiling=None)
    card = Plugins().get(PredictorSpec, "vista2d")
    assert package(network, Bundle.load(tmp_path / "model")).tiling == card.tiling
