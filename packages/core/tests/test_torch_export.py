"""What is written for other software computes what the original computes, offline."""

from __future__ import annotations

import socket
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for name in ("bioimageio", "onnx", "onnxscript", "onnxruntime"):
    if find_spec(name) is None:  # not imported, so that the first import is an offline one as well
        pytest.skip(f"{name} is not installed", allow_module_level=True)

from cellseg.bundle import Bundle  # noqa: E402
from cellseg.data import Tiling  # noqa: E402
from cellseg.errors import ConfigError, DataError, UsageError, WeightsError  # noqa: E402
from cellseg.normalise import Normaliser, Statistics  # noqa: E402
from cellseg.torch.export import (  # noqa: E402
    Output,
    Package,
    Program,
    descriptions,
    programs,
    write_bioimageio,
    write_onnx,
    write_pt2,
    write_torchscript,
)
from cellseg.torch.export.preprocessing import steps  # noqa: E402
from cellseg.torch.export.samples import made_up_image  # noqa: E402
from cellseg.torch.export_options import BioimageioOptions  # noqa: E402
from cellseg.torch.weights import seeded  # noqa: E402

WRITERS = {"pt2": write_pt2, "torchscript": write_torchscript, "onnx": write_onnx}
PACKAGE = Package(
    summary="A toy.",
    usage="Nothing remains to be done.",
    outputs=(
        Output(name="probabilities", summary="p", channels=("a", "b"), activation="softmax"),
        Output(name="depth", summary="d", channels=("depth",), activation="sigmoid"),
    ),
    tiling=Tiling(core=(1, 64, 64), halo=(0, 16, 16)),
)


class Toy(torch.nn.Module):
    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        kind = {2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[dims]
        self.classes = kind(channels, 2, 3, padding=1)
        self.depth = kind(2, 1, 1)

    def forward(self, image: Any) -> Any:
        classes = self.classes(image).relu()
        return classes, self.depth(classes)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing here may as much as look up a host; errors alone might be swallowed."""
    torch.set_num_threads(1)
    asked: list[Any] = []

    def refuse(*args: Any, **_: Any) -> None:
        asked.append(args)
        raise OSError("no network in this test")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    yield
    assert not asked


def toy(dims: int = 2, channels: int = 2) -> Program:
    with seeded(0):
        module = Toy(dims, channels).eval()
    step = (8, 8) if dims == 2 else (1, 4, 4)
    return Program(
        module=module,
        outputs=("classes", "depth"),
        channels=channels,
        least=tuple(2 * s for s in step),
        step=step,
    )


def of(function: Callable[[Any], Any], **changes: Any) -> Program:
    """A program of one output."""

    class Module(torch.nn.Module):
        def forward(self, image: Any) -> Any:
            return (function(image),)

    fields = {"outputs": ("out",), "channels": 1, "least": (16, 16), "step": (8, 8)}
    return Program(module=Module().eval(), **(fields | changes))


def bundle(folder: Path, **values: Any) -> Path:
    folder.mkdir(exist_ok=True)
    Bundle(**({"backend": "toy", "channels": 2, "cellseg_version": "1.0"} | values)).save(folder)
    return folder


def run(path: Path, name: str, image: Any) -> list[Any]:
    if name == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        assert [o.name for o in session.get_outputs()] == ["classes", "depth"]
        return [torch.from_numpy(a) for a in session.run(None, {"image": image.numpy()})]
    if name == "pt2":
        return list(torch.export.load(path).module()(image))
    return list(torch.jit.load(path)(image))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", WRITERS)
def test_what_was_written_takes_other_sizes_and_counts(
    name: str, dims: int, tmp_path: Path
) -> None:
    program, target = toy(dims), tmp_path / "model.pt2"
    assert WRITERS[name](program, target, 1e-5) < 1e-5
    image = program.image(3, program.size(*range(4, 4 + dims)))
    with torch.no_grad():
        for a, b in zip(program.module(image), run(target, name, image), strict=True):
            torch.testing.assert_close(a, b)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


def test_a_fixed_size_and_smaller_outputs_can_be_written(tmp_path: Path) -> None:
    program = of(lambda x: torch.nn.functional.avg_pool2d(x, 4), step=(0, 0))
    for name, write in WRITERS.items():
        assert write(program, tmp_path / name, 1e-5) < 1e-5
    package = Package(
        summary="Means.",
        usage="",
        outputs=(Output(name="means", summary="m", channels=("mean",)),),
        tiling=Tiling(core=(1, 64, 64), halo=(0, 16, 16)),
    )
    options = BioimageioOptions(weights="torchscript")
    model = bundle(tmp_path / "model", channels=1)
    write_bioimageio(program, package, model, tmp_path / "model.zip", options)
    (_, _, y, _) = described(tmp_path / "model.zip").outputs[0].axes
    assert y.size == 4 and y.scale == 4.0


def test_a_trace_that_holds_for_one_image_only_is_refused(tmp_path: Path) -> None:
    program = of(lambda x: x + float(x.mean()))
    target = tmp_path / "model.pt"
    target.write_text("what was there")
    with pytest.raises(WeightsError, match=r"differs from the original by .* more than 1e-06"):
        write_torchscript(program, target, 1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    assert target.read_text() == "what was there"
    assert write_torchscript(program, target, 1.0) > 1e-6  # the tolerance is what decides


def test_results_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="by inf"):
        write_torchscript(of(lambda x: x / 0 - x / 0), tmp_path / "model.pt", 1.0)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_with_their_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "find_spec", lambda name: name != "onnx" or None)
    with pytest.raises(ConfigError, match=r"not installed: onnx\.") as caught:
        write_onnx(toy(), tmp_path / "model.onnx", 1e-4)
    assert 'uv pip install "cellseg-core[export]"' in (caught.value.hint or "")


def test_weights_beyond_one_onnx_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "_ONNX_LIMIT", 100)
    with pytest.raises(WeightsError, match="an ONNX file ends at 2"):
        write_onnx(toy(), tmp_path / "model.onnx", 1e-4)


@pytest.mark.parametrize("least", [(16,), (12, 16), (8, 16)])
def test_a_program_of_impossible_sizes_is_refused(least: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="step"):
        of(lambda x: x, least=least)


NORMALISERS = {
    "percentile": Normaliser(),
    "percentile together": Normaliser(channels="together", percentiles=(5, 90)),
    "one channel dark": Normaliser(inverted=(True, False)),
    "min-max dark": Normaliser(method="min-max", inverted=(True,)),
    "z-score": Normaliser(method="z-score"),
    "z-score together, dark": Normaliser(method="z-score", channels="together", inverted=(True,)),
    "none": Normaliser(method="none"),
    "data set": Normaliser(dataset=Statistics(shift=(30000.0, 5.0), scale=(0.01, -0.2))),
    "constant": Normaliser(dataset=Statistics(shift=(7.0, 0.0), scale=(0.0, 1.0))),
}


@pytest.mark.parametrize("space", ["yx", "zyx"])
@pytest.mark.parametrize("name", NORMALISERS)
def test_bioimageio_normalises_as_the_bundle_does(name: str, space: str) -> None:
    from bioimageio.core import Sample, Tensor
    from bioimageio.core.proc_setup import get_pre_and_postprocessing
    from bioimageio.spec.model.v0_5 import InputTensorDescr

    normaliser = NORMALISERS[name]
    size = (5, 40, 32)[-len(space) :]
    raw = made_up_image(normaliser, 2, size)
    volume = raw.reshape(2, -1, 40, 32)
    expected = normaliser.apply(volume, normaliser.statistics(volume))
    assert name == "constant" or expected.max() > 0.5  # the image suits the statistics
    description = InputTensorDescr.model_validate(
        {
            "id": "image",
            "axes": [
                {"type": "batch"},
                {"type": "channel", "channel_names": ["a", "b"]},
                *({"type": "space", "id": axis, "size": {"min": 1, "step": 1}} for axis in space),
            ],
            "preprocessing": steps(normaliser, 2, space),
        }
    )
    model: Any = SimpleNamespace(inputs=[description], outputs=[])
    tensor = Tensor.from_numpy(raw[None], dims=["batch", "channel", *space])
    sample = Sample(members={"image": tensor}, stat={}, id="made up")
    get_pre_and_postprocessing(model, dataset_for_initial_statistics=()).pre(sample)
    got = sample.members["image"].to_numpy()
    np.testing.assert_allclose(got.reshape(expected.shape), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("normaliser", "flag"),
    [
        (Normaliser(pixels="non-zero"), "--normalise-pixels"),
        (Normaliser(stain_transform="hed"), "--stain-transform hed"),
        (Normaliser(clahe=True), "--clahe"),
        (Normaliser(gamma=2.1), "--gamma 2.1"),
        (Normaliser(gamma=2.1, dataset=Statistics(shift=(0, 0), scale=(1, 1))), "--gamma 2.1"),
    ],
)
def test_a_normaliser_without_words_for_it_is_refused(
    normaliser: Normaliser, flag: str, tmp_path: Path
) -> None:
    model = bundle(tmp_path / "model", normaliser=normaliser)
    with pytest.raises(DataError, match=flag):
        write_bioimageio(toy(), PACKAGE, model, tmp_path / "m.zip", BioimageioOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def described(target: Path) -> Any:
    from bioimageio.spec import load_description

    return load_description(target, perform_io_checks=False)


def test_a_package_says_what_the_bundle_says(tmp_path: Path) -> None:
    model = bundle(
        tmp_path / "model",
        channel_names=("dna", "actin"),
        spacing=(1.0, 0.5, 0.25),
        trained_on=("one", "other"),
    )
    options = BioimageioOptions(
        author=("Ann Example",), licence="CC-BY-4.0", title="Toy of a test", description="Says it."
    )
    assert write_bioimageio(toy(), PACKAGE, model, tmp_path / "m.zip", options) < 1e-5
    package = described(tmp_path / "m.zip")
    assert package.validation_summary.status == "valid-format"
    assert (package.name, package.description) == ("Toy of a test", "Says it.")
    assert [a.name for a in package.authors] == ["Ann Example"]
    assert str(package.license) == "CC-BY-4.0"
    assert set(package.weights.available_formats) == {"torchscript", "onnx"}
    _, channel, y, x = package.inputs[0].axes
    assert channel.channel_names == ["dna", "actin"]
    assert (y.size.min, y.size.step, y.scale, x.scale, y.unit) == (40, 8, 0.5, 0.25, "micrometer")
    assert [o.id for o in package.outputs] == ["probabilities", "depth"]
    assert package.outputs[0].axes[2].halo == 16  # the least size leaves 40 - 2 * 16 pixels
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        assert archive.read("bundle.json") == (model / "bundle.json").read_bytes()
        text = archive.read("README.md").decode()
    for words in ("dna, actin", "2 images: one, other", "percentiles 1 and 99.8", "Validation"):
        assert words in text


def test_testing_a_package_leaves_random_numbers_alone(tmp_path: Path) -> None:
    options = BioimageioOptions(weights="torchscript")
    np.random.seed(5)
    with seeded(5):
        expected = np.random.rand(), float(torch.rand(1))
    np.random.seed(5)
    with seeded(5):
        write_bioimageio(toy(), PACKAGE, bundle(tmp_path / "model"), tmp_path / "m.zip", options)
        assert (np.random.rand(), float(torch.rand(1))) == expected


def test_a_package_of_volumes_runs_in_bioimageio(tmp_path: Path) -> None:
    from bioimageio.core import predict
    from bioimageio.core.digest_spec import get_test_input_sample

    normaliser = Normaliser(dataset=Statistics(shift=(10.0, 20.0), scale=(0.01, 0.02)))
    model = bundle(tmp_path / "model", normaliser=normaliser, volumetric=True)
    options = BioimageioOptions(weights="torchscript")
    write_bioimageio(toy(3), PACKAGE, model, tmp_path / "m.zip", options)
    package = described(tmp_path / "m.zip")
    with seeded(0):
        raw = get_test_input_sample(package).members["image"].to_numpy()
        result = predict(model=package, inputs={"image": raw})
    probabilities = result.members["probabilities"].to_numpy()
    assert probabilities.shape[:2] == (1, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_a_package_that_states_another_normalisation_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptions, "steps", lambda *_: [])
    model = bundle(tmp_path / "model")
    options = BioimageioOptions(weights="torchscript")
    with pytest.raises(WeightsError, match=r"test of bioimageio\.core: Output 'probabilities'"):
        write_bioimageio(toy(), PACKAGE, model, tmp_path / "m.zip", options)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("options", "target", "error", "words"),
    [
        ({"licence": "cc-by-4.0"}, "m.zip", ConfigError, r"--licence cc-by-4\.0"),
        ({"title": "a/b: c?"}, "m.zip", ConfigError, "--title"),
        ({"author": ("a/b",)}, "m.zip", ConfigError, "--author"),
        ({}, "m.tar", UsageError, r"must be named \*\.zip, not \*\.tar"),
    ],
)
def test_what_bioimageio_would_not_take_is_named(
    options: dict[str, Any], target: str, error: type[Exception], words: str, tmp_path: Path
) -> None:
    model = bundle(tmp_path / "model")
    chosen = BioimageioOptions(weights="torchscript", **options)
    with pytest.raises(error, match=words) as raised:
        write_bioimageio(toy(), PACKAGE, model, tmp_path / target, chosen)
    if "licence" in options:
        assert raised.value.hint == "Did you mean CC-BY-4.0?"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
