"""What training microsam refuses before it loads anything."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from cellseg.errors import ConfigError
from cellseg.normalise import Normaliser, normalised
from cellseg.specs import TrainJob
from cellseg.testing import blobs
from cellseg.torch.pixels import check_pixels
from cellseg_microsam.checks import export_target
from cellseg_microsam.options import MicrosamOptions


def make_job(folder: Path, sample: Any = None, **options: Any) -> TrainJob[MicrosamOptions]:
    for name in ("checkpoint", "model", "previews"):
        (folder / "run" / name).mkdir(parents=True, exist_ok=True)
    return TrainJob(
        options=MicrosamOptions(**options),
        train=[sample or blobs(1)],
        val=[],
        epochs=1,
        seed=0,
        device="cpu",
        checkpoint=folder / "run" / "checkpoint",
        model=folder / "run" / "model",
        previews=folder / "run" / "previews",
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_one_or_three_channels_are_taken(channels: int, tmp_path: Path) -> None:
    job = make_job(tmp_path, blobs(1, channels=channels))
    if channels in (1, 3):
        check_pixels(job.train, "Segment Anything")
        return
    with pytest.raises(ConfigError, match=f"{channels} channels") as error:
        check_pixels(job.train, "Segment Anything")
    assert "--channels" in (error.value.hint or "")


@pytest.mark.parametrize(
    ("method", "scale", "refused"),
    [("z-score", 1, True), ("none", 1, True), ("none", 0.25, False), ("min-max", 1, False)],
)
def test_images_are_normalised_to_what_segment_anything_takes(
    method: Any, scale: float, refused: bool, tmp_path: Path
) -> None:
    sample = blobs(1)
    sample = replace(sample, image=np.clip(sample.image * scale + 0.4, 0, None))
    job = make_job(tmp_path, normalised(sample, Normaliser(method=method)))
    if not refused:
        check_pixels(job.train, "Segment Anything")
        return
    with pytest.raises(ConfigError, match=f"--normalise {method}") as error:
        check_pixels(job.train, "Segment Anything")
    assert "percentile" in (error.value.hint or "")


@pytest.mark.parametrize(
    ("path", "name", "expected"),
    [
        (None, None, None),
        ("out.pt", None, "out.pt"),
        ("deep/er/out.pth", None, "deep/er/out.pth"),
        ("folder", "mine", "folder/mine.pt"),
        ("folder.d", None, "folder.d/run.pt"),
    ],
)
def test_the_export_is_a_file_or_in_a_folder(
    path: str | None, name: str | None, expected: str | None, tmp_path: Path
) -> None:
    given = {"export_path": path and tmp_path / path, "checkpoint_name": name}
    found = export_target(make_job(tmp_path, **given))
    assert found == (expected and tmp_path / expected)


def test_a_name_for_what_has_a_name_is_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path, export_path=tmp_path / "out.pt", checkpoint_name="mine")
    with pytest.raises(ConfigError, match="--checkpoint-name mine"):
        export_target(job)


def test_a_file_that_exists_is_not_replaced_but_by_a_resumed_run(tmp_path: Path) -> None:
    (tmp_path / "out.pt").touch()
    job = make_job(tmp_path, export_path=tmp_path / "out.pt")
    with pytest.raises(ConfigError, match="exists already"):
        export_target(job)
    (job.checkpoint / "step-00000001-epoch-0001.ckpt").touch()
    assert export_target(job) == tmp_path / "out.pt"


def test_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, export_path=tmp_path / "deep" / "out.pt")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ConfigError, match=f"--export-path: {tmp_path} cannot be written"):
        export_target(job)
    (tmp_path / "deep").touch()
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="cannot be written"):
        export_target(job)
