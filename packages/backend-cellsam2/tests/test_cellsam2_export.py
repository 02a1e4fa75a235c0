"""Models for SAM 2's own tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cellseg import ConfigError, ExportJob, WeightsError
from cellseg.events import Event
from cellseg.torch.sam2.model import build
from cellseg.torch.weights import seeded
from cellseg_cellsam2.export import export_sam2, write_sam2
from cellseg_cellsam2.export_options import Sam2Options
from cellseg_cellsam2.lora import add_lora, learning
from cellseg_cellsam2.model import CellSam2
from cellseg_cellsam2.parts import Prompts
from cellseg_cellsam2.stored import load, save
from cellseg_cellsam2.weights import make_model

torch.set_num_threads(1)


def ignored(event: Event) -> None:
    """Where nobody looks."""


def learned() -> CellSam2:
    """A small model with updates that have learned."""
    model, _ = make_model("nano", 64, 0, None, ignored)
    with seeded(0), torch.no_grad():
        add_lora(model, 2, 4, 0.0)
        held = dict(model.named_parameters())
        for name in learning(model, use_lora=True, freeze_encoder=False)["lora"]:
            held[name].normal_(std=0.1)
    return model.eval()


@torch.no_grad()
def test_sam_2_reads_the_model_and_says_the_same(tmp_path: Path) -> None:
    from sam2.build_sam import _load_checkpoint
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    model = learned()
    save(model, tmp_path)
    write_sam2(load(tmp_path)[0].sam, tmp_path / "out.pt", check_as=None)
    theirs: Any = build("nano", 64)
    _load_checkpoint(theirs, str(tmp_path / "out.pt"))
    predictor = SAM2ImagePredictor(theirs.eval())
    predictor._bb_feat_sizes = [(16, 16), (8, 8), (4, 4)]
    plane = np.random.default_rng(0).random((64, 64, 3), dtype=np.float32)
    predictor.set_image(plane)
    _, ious, logits = predictor.predict(np.array([[20.0, 30.0]]), np.array([1]))
    encoded = model.encode(model.prepare(torch.from_numpy(plane).permute(2, 0, 1)[None]))
    prompts = Prompts(torch.tensor([[[20.0, 30.0]]]), torch.tensor([[1]], dtype=torch.int32))
    ours = model.answer(encoded, torch.zeros(1, dtype=torch.int64), prompts)
    assert np.allclose(ours.masks[0, 1:].clamp(-32, 32).numpy(), logits, atol=1e-4)
    assert np.allclose(ours.ious[0, 1:].numpy(), ious, atol=1e-5)


def test_it_is_a_start_again(tmp_path: Path) -> None:
    save(learned(), tmp_path / "model")
    model, _ = load(tmp_path / "model")
    write_sam2(model.sam, tmp_path / "out.pt", check_as=None)
    again, _ = make_model("nano", 64, 1, tmp_path / "out.pt", ignored)
    held = again.sam.state_dict()
    assert all(torch.equal(held[name], value) for name, value in model.sam.state_dict().items())


def test_the_check_finds_what_sam_2_cannot_read(tmp_path: Path) -> None:
    sam = build("nano")
    write_sam2(sam, tmp_path / "good.pt", check_as="nano")
    assert (tmp_path / "good.pt").exists()
    with pytest.raises(WeightsError, match="sam2 cannot read"):
        write_sam2(sam, tmp_path / "out.pt", check_as="micro")
    assert not list(tmp_path.glob("*out.pt*")), "nothing is left behind"


def test_a_size_that_sam_2_does_not_have_is_refused(tmp_path: Path) -> None:
    save(learned(), tmp_path)
    job = ExportJob(options=Sam2Options(), model=tmp_path, target=tmp_path / "out.pt")
    with pytest.raises(ConfigError, match="no network like 'nano'"):
        export_sam2(job, ignored)
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.slow
def test_a_published_size_is_written_and_read_by_sam_2s_own_function(tmp_path: Path) -> None:
    from sam2.build_sam import build_sam2_video_predictor

    name = "sam2.1_hiera_tiny"
    with seeded(0):
        model = CellSam2(build(name, 256), name)
    save(model, tmp_path, scale=0.5)
    notes: list[Event] = []
    job = ExportJob(options=Sam2Options(), model=tmp_path, target=tmp_path / "out.pt")
    assert export_sam2(job, notes.append) == tmp_path / "out.pt"
    assert "0.5 pixels of a square of 256" in str(notes)
    config = "configs/sam2.1/sam2.1_hiera_t.yaml"
    found = build_sam2_video_predictor(config, str(tmp_path / "out.pt"), device="cpu").state_dict()
    assert all(torch.equal(found[n], value) for n, value in model.sam.state_dict().items())
