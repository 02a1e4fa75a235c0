"""What a training starts from: whether it can be prompted, and what it is called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from cellseg import TrainJob  # noqa: E402
from cellseg.errors import ConfigError  # noqa: E402
from cellseg.testing import blobs  # noqa: E402
from cellseg_microsam import weights  # noqa: E402
from cellseg_microsam.description import Description  # noqa: E402
from cellseg_microsam.options import MicrosamOptions  # noqa: E402
from cellseg_microsam.train import train  # noqa: E402


def trained(folder: Path, **changes: Any) -> bool:
    """Train a little; whether the model may be prompted then."""
    for name in ("checkpoint", "model", "previews"):
        (folder / name).mkdir(parents=True)
    values = {"patch_size": 32, "n_samples": 2, "batch_size": 2, "calibrate": False, **changes}
    if values["mode"] in ("full", "interactive"):
        values |= {"n_objects": 2, "n_sub_iterations": 1, "calibrate": True}
    job: TrainJob[Any] = TrainJob(
        options=MicrosamOptions(**values),
        train=[blobs(1)],
        val=[],
        epochs=1,
        seed=0,
        device="cpu",
        checkpoint=folder / "checkpoint",
        model=folder / "model",
        previews=folder / "previews",
    )
    train(job, lambda event: None)
    return Description.load(folder / "model").prompts_trained


def test_a_decoder_that_is_added_leaves_answers_as_good_as_they_were(tmp_path: Path) -> None:
    assert trained(tmp_path / "full", mode="full", model_type="tiny")
    assert trained(tmp_path / "a", mode="decoder", copies=2, checkpoint=tmp_path / "full")
    assert not trained(tmp_path / "b", mode="instances", checkpoint=tmp_path / "full"), (
        "the encoder is another one than answers were trained with"
    )
    assert not trained(tmp_path / "c", mode="decoder", copies=2, model_type="tiny")
    assert not trained(tmp_path / "d", mode="decoder", copies=2, checkpoint=tmp_path / "c")


def test_a_file_is_called_as_the_user_does_if_it_can_be_that(
    tmp_path: Path, make_sam: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = weights.Loaded(model=make_sam(), model_type="vit_b")
    monkeypatch.setattr(weights, "load_checkpoint", lambda path: found)
    for named, kept in (("vit_b_lm", "vit_b"), ("vit_b_em_organelles", "vit_b_em_organelles")):
        folder = tmp_path / named
        trained(folder, mode="instances", checkpoint=tmp_path, model_type=named)
        assert Description.load(folder / "model").model_type == kept, "the default says nothing"
    with pytest.raises(ConfigError, match="holds a vit_b, not a vit_l"):
        trained(tmp_path / "wrong", mode="instances", checkpoint=tmp_path, model_type="vit_l")
