"""What is written for other software is read back by that software."""

from __future__ import annotations

import json
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
from cellseg_cellsam import export
from cellseg_cellsam.description import Description
from cellseg_cellsam.export import export_onnx, export_sam, write_sam, write_segmenting
from cellseg_cellsam.export_options import OnnxOptions, SamOptions
from cellseg_cellsam.model import CellSam
from cellseg_cellsam.sizes import DetectorSizes
from cellseg_cellsam.stored import load_model, save_model


def stored(
    folder: Path, model_type: str = "tiny", *, draws_boxes: bool = False, **values: Any
) -> Path:
    """A model directory with random weights."""
    folder.mkdir()
    with seeded(0):
        model = CellSam(Architecture.named("tiny"), DetectorSizes.named("tiny"), draws_boxes)
        for layer in model.detector.decoder:
            torch.nn.init.normal_(layer.score.weight, std=0.3)
            torch.nn.init.normal_(layer.box[-1].weight, std=0.1)
    described = Description(
        model_type=model_type,
        architecture=model.architecture.to_dict(),
        detector=model.sizes.to_dict(),
        draws_boxes=draws_boxes,
        **{"boxes_trained": True, "masks_trained": True, **values},
    )
    save_model(model, described, folder)
    Bundle(backend="cellsam", predict={"box_threshold": 0.17}).save(folder)
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return stored(tmp_path / "model")


def job(model: Path, target: Path, options: Options) -> ExportJob[Any]:
    return ExportJob(options=options, model=model, target=target)


def silent(event: Event) -> None:
    pass


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """segment_anything takes our smallest network for a vit_b."""
    import segment_anything

    def build(checkpoint: str) -> torch.nn.Module:
        sam = CellSam(Architecture.named("tiny"), DetectorSizes.named("tiny")).sam
        sam.load_state_dict(torch.load(checkpoint, weights_only=True))
        return sam

    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", build)


def test_segment_anything_reads_the_model(tmp_path: Path, known: None) -> None:
    model, target = stored(tmp_path / "model", "vit_b"), tmp_path / "sam.pth"
    told: list[Event] = []
    assert export_sam(job(model, target, SamOptions()), told.append) == target
    state = torch.load(target, weights_only=True)
    assert state.keys() == load_model(model)[0].sam.state_dict().keys()
    (note,) = told
    assert isinstance(note, Note) and "detector is not part of it" in note.text


def test_other_weights_are_noticed_and_leave_nothing(tmp_path: Path) -> None:
    model, _ = load_model(stored(tmp_path / "model"))
    with pytest.raises(WeightsError, match="cannot read"):
        write_sam(model, tmp_path / "sam.pth", check_as="vit_b")
    assert not list(tmp_path.glob("*sam.pth*"))


@pytest.mark.parametrize(("model_type", "whose"), [("tiny", "cellseg's"), ("vit_t", "MobileSAM's")])
def test_networks_that_segment_anything_does_not_have_are_refused(
    tmp_path: Path, model_type: str, whose: str
) -> None:
    with pytest.raises(ConfigError, match=whose):
        export_sam(job(stored(tmp_path / "m", model_type), tmp_path / "x", SamOptions()), silent)


def test_parts_that_are_random_are_not_written(tmp_path: Path) -> None:
    model = stored(tmp_path / "a", "vit_b", masks_trained=False)
    with pytest.raises(ConfigError, match="segment boxes"):
        export_sam(job(model, tmp_path / "x", SamOptions(check=False)), silent)
    model = stored(tmp_path / "b", "vit_b", boxes_trained=False)
    export_sam(job(model, tmp_path / "x", SamOptions(check=False)), silent)
    with pytest.raises(ConfigError, match="find boxes"):
        export_onnx(job(model, tmp_path / "y", OnnxOptions()), silent)


def test_onnx_says_what_the_model_says(tiny: Path, tmp_path: Path) -> None:
    import onnxruntime

    target = tmp_path / "out"
    told: list[Event] = []
    assert export_onnx(job(tiny, target, OnnxOptions()), told.append) == target
    assert {one.name for one in target.iterdir()} == {"find.onnx", "segment.onnx", "model.json"}
    model, _ = load_model(tiny)
    side = model.architecture.side
    image = torch.rand(3, 1, side, side)
    frame = Frame.fit((side, side), side)
    with torch.no_grad():
        features = model.trunk(model.prepare(image, frame))
        scores, boxes = model.detect(features).best()
        wanted, iou = model.segment(model.neck(features)[1:2], boxes[1, :5] * side)
    find, segment = (
        onnxruntime.InferenceSession(target / name, providers=["CPUExecutionProvider"])
        for name in ("find.onnx", "segment.onnx")
    )
    found = find.run(None, {"image": image.numpy()})
    np.testing.assert_allclose(found[0], scores, atol=1e-4)
    np.testing.assert_allclose(found[1], boxes * side, atol=1e-2)
    inputs = {"embedding": found[2][1:2], "boxes": found[1][1, :5]}
    masks, estimated = segment.run(None, inputs)
    np.testing.assert_allclose(masks, wanted, atol=1e-3)
    np.testing.assert_allclose(estimated, iou, atol=1e-3)
    about = json.loads((target / "model.json").read_text())
    assert about["side"] == side and about["thresholds"]["box_threshold"] == 0.17
    assert about["bundle"]["normaliser"]["method"] and "precision" not in about["thresholds"]
    assert told, "the difference is told"
    assert about["licence"] == ""


def test_drawings_of_boxes_are_not_for_segment_anything(tmp_path: Path, known: None) -> None:
    model = stored(tmp_path / "a", "vit_b", draws_boxes=True)
    with pytest.raises(ConfigError, match="drawings"):
        export_sam(job(model, tmp_path / "x", SamOptions(check=False)), silent)
    assert not (tmp_path / "x").exists()


def test_the_licence_goes_with_the_export(tmp_path: Path) -> None:
    model = stored(tmp_path / "a", "vit_b", licence="some weights: not for sale")
    told: list[Event] = []
    export_sam(job(model, tmp_path / "x", SamOptions(check=False)), told.append)
    notes = [event.text for event in told if isinstance(event, Note)]
    assert any("some weights: not for sale" in text for text in notes)


def test_onnx_draws_boxes_as_the_model_does_and_tells_the_difference(tmp_path: Path) -> None:
    import onnxruntime

    model, _ = load_model(stored(tmp_path / "model", draws_boxes=True))
    a, target = model.architecture, tmp_path / "segment.onnx"
    with pytest.raises(WeightsError, match="more than 1e-30"):
        write_segmenting(model, target, 1e-30)  # it is written by then
    with seeded(5):
        embedding = torch.randn(1, a.out_channels, a.grid, a.grid)
        boxes = torch.rand(5, 2, 2).sort(1).values.flatten(1) * a.side
    with torch.no_grad():
        wanted, iou = model.segment(embedding, boxes)
    network = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    found = network.run(None, {"embedding": embedding.numpy(), "boxes": boxes.numpy()})
    np.testing.assert_allclose(found[0], wanted, atol=1e-3)
    np.testing.assert_allclose(found[1], iou, atol=1e-3)
    assert not np.allclose(found[0][0], found[0][1], atol=1e-2), "boxes make a difference"


def test_an_export_that_differs_leaves_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(program: Any, target: Path, tolerance: float) -> float:
        target.write_bytes(b"another network")
        raise WeightsError("The results differ.")

    monkeypatch.setattr(export, "write_onnx", written)
    with pytest.raises(WeightsError, match="differ"):
        export_onnx(job(tiny, tmp_path / "out", OnnxOptions(tolerance=1e-30)), silent)
    assert not list(tmp_path.glob("*out*"))


def test_a_folder_is_no_onnx_file(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="folder"):
        export_onnx(job(tiny, tmp_path / "out.onnx", OnnxOptions()), silent)
