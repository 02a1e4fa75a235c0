"""What is written for other software is read back by that software."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cellseg import ConfigError, Event, ExportJob, Note, Options, UsageError, WeightsError
from cellseg.bundle import Bundle
from cellseg.torch.frames import Frame
from cellseg.torch.sam.architecture import Architecture
from cellseg.torch.weights import seeded
from cellseg_microsam.description import Description
from cellseg_microsam.export import export_bioimageio, export_native, export_onnx, write_microsam
from cellseg_microsam.export_options import NativeOptions, OnnxOptions, PackageOptions
from cellseg_microsam.model import MicroSam
from cellseg_microsam.stored import load_model, save_model


def stored(folder: Path, architecture: Architecture, model_type: str = "tiny") -> Path:
    """A model directory with random weights."""
    folder.mkdir()
    with seeded(0):
        model = MicroSam(architecture)
    has_decoder = architecture.unetr is not None
    description = Description(
        model_type=model_type, architecture=architecture.to_dict(), has_decoder=has_decoder
    )
    save_model(model, description, folder)
    Bundle(backend="microsam").save(folder)
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return stored(tmp_path / "model", Architecture.named("tiny"))


@pytest.fixture
def answering(tmp_path: Path) -> Path:
    """A model without a decoder."""
    return stored(tmp_path / "model", replace(Architecture.named("tiny"), unetr=None))


def job(model: Path, target: Path, options: Options) -> ExportJob[Any]:
    return ExportJob(options=options, model=model, target=target)


def silent(event: Event) -> None:
    pass


@contextlib.contextmanager
def known_to_micro_sam(architecture: Architecture) -> Iterator[None]:
    """Inside, micro-SAM takes our smallest network for a vit_b."""
    import micro_sam.instance_segmentation as instances
    import micro_sam.models.build_sam as building
    import micro_sam.util as util
    from torch_em.model.unetr import UNETR

    plain = replace(architecture, unetr=None)
    assert architecture.unetr is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(util.sam_model_registry, "vit_b", lambda: MicroSam(plain).sam)
        patch.setattr(building, "_validate_model_type", lambda state: "vit_b")
        smaller = functools.partial(UNETR, initial_features=architecture.unetr[-1])
        patch.setattr(instances, "UNETR", smaller)
        yield


def test_micro_sam_reads_the_model_and_says_the_same(tiny: Path, tmp_path: Path) -> None:
    from micro_sam.instance_segmentation import get_predictor_and_decoder

    write_microsam(tiny, tmp_path / "out.pt")
    model, _ = load_model(tiny)
    frame = Frame.fit((48, 64), model.architecture.side)
    with seeded(1), torch.no_grad():
        image = torch.rand(1, 3, 48, 64)
        embedding = model.encode(model.prepare(image, frame))
        ours = model.maps(embedding, frame)[0]
    with known_to_micro_sam(model.architecture):
        predictor, decoder = get_predictor_and_decoder("vit_b", tmp_path / "out.pt", "cpu")
    predictor.model.eval()
    decoder.eval()
    with torch.no_grad():
        seen = predictor.model.image_encoder(model.prepare(image, frame))
        theirs = decoder(seen, frame.scaled, frame.size)[0]
    assert torch.allclose(seen, embedding, atol=1e-5)
    assert torch.allclose(theirs, ours, atol=1e-5)


def test_the_check_finds_what_micro_sam_cannot_read(tiny: Path, tmp_path: Path) -> None:
    from cellseg_microsam.export import write_native

    model, _ = load_model(tiny)
    with pytest.raises(WeightsError, match="cannot read"):
        write_native(model, tmp_path / "out.pt", check_as="vit_b")
    assert not list(tmp_path.glob("*out.pt*")), "nothing is left behind"
    with known_to_micro_sam(model.architecture):
        write_native(model, tmp_path / "out.pt", check_as="vit_b")
    assert (tmp_path / "out.pt").exists()


def test_the_check_leaves_pickle_alone(tiny: Path, tmp_path: Path) -> None:
    import pickle

    from cellseg_microsam.export import write_native

    before = pickle.Unpickler
    model, _ = load_model(tiny)
    with known_to_micro_sam(model.architecture):
        write_native(model, tmp_path / "out.pt", check_as="vit_b")
    assert pickle.Unpickler is before


def test_networks_that_micro_sam_does_not_have_are_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no network like 'tiny'"):
        export_native(job(tiny, tmp_path / "out.pt", NativeOptions()), silent)


def test_a_model_without_decoder_has_none_in_the_file(answering: Path, tmp_path: Path) -> None:
    write_microsam(answering, tmp_path / "out.pt")
    assert set(torch.load(tmp_path / "out.pt", weights_only=True)) == {"model_state"}


def test_the_file_says_how_images_were_normalised(tmp_path: Path) -> None:
    model = stored(tmp_path / "model", Architecture.named("tiny"), "vit_b_lm")
    notes: list[Event] = []
    export_native(job(model, tmp_path / "out.pt", NativeOptions(check=False)), notes.append)
    texts = [note.text for note in notes if isinstance(note, Note)]
    assert any("percentiles 1 and 99.8" in text for text in texts)


@pytest.mark.parametrize("masks", ["best", "all"])
def test_onnx_answers_as_the_model_does(answering: Path, tmp_path: Path, masks: str) -> None:
    import onnxruntime

    target = tmp_path / "decoder.onnx"
    export_onnx(job(answering, target, OnnxOptions(masks=masks)), silent)
    model, _ = load_model(answering)
    grid, side = model.architecture.grid, model.architecture.side
    with seeded(3):
        embedding = torch.randn(1, model.architecture.out_channels, grid, grid)
        points = torch.rand(1, 1, 2) * side
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    inputs = {
        "image_embeddings": embedding,
        "point_coords": torch.cat([points, torch.zeros(1, 1, 2)], 1),
        "point_labels": torch.tensor([[1.0, -1.0]]),
        "mask_input": torch.zeros(1, 1, 4 * grid, 4 * grid),
        "has_mask_input": torch.zeros(1),
        "orig_im_size": torch.tensor([side, side // 2], dtype=torch.float32),
    }
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    labels = torch.ones(1, 1)
    with torch.no_grad():
        logits, iou = model.answer(embedding, points=points, labels=labels, multimask=True)
    assert found[0].shape == (1, 1 if masks == "best" else 4, side, side // 2)
    if masks == "all":
        assert np.allclose(found[2][:, 1:], logits.numpy(), atol=1e-4)
        assert np.allclose(found[1][:, 1:], iou.numpy(), atol=1e-4)


def test_an_onnx_file_is_named_so(answering: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"named \*\.onnx, not \*\.pt"):
        export_onnx(job(answering, tmp_path / "decoder.pt", OnnxOptions()), silent)


def test_an_unreachable_tolerance_leaves_nothing(answering: Path, tmp_path: Path) -> None:
    target = tmp_path / "decoder.onnx"
    with pytest.raises(WeightsError, match="differs"):
        export_onnx(job(answering, target, OnnxOptions(tolerance=1e-30)), silent)
    assert not target.exists()


def test_a_package_for_bioimageio_passes_its_test(tiny: Path, tmp_path: Path) -> None:
    from bioimageio.spec import load_description

    target = tmp_path / "model.zip"
    options = PackageOptions(weights="torchscript", author=("A. Person",), licence="CC-BY-4.0")
    export_bioimageio(job(tiny, target, options), silent)
    described = load_description(target, perform_io_checks=False)
    assert [str(output.id) for output in described.outputs] == ["maps"]  # type: ignore[union-attr]


def test_what_has_no_maps_is_not_packaged(answering: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no decoder"):
        export_bioimageio(job(answering, tmp_path / "model.zip", PackageOptions()), silent)
