"""When pictures of what the current weights do are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from cellseg.errors import ConfigError  # noqa: E402
from cellseg.options import parse  # noqa: E402
from cellseg.specs import TrainJob  # noqa: E402
from cellseg.torch.loaders import Loaders  # noqa: E402
from cellseg.torch.options import TorchOptions  # noqa: E402
from cellseg.torch.training import fit  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


class Numbers:
    """Sample ``i`` is ``i`` in tenths."""

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index % 10 / 10])


class Scale(torch.nn.Module):
    """Fits ``y = 3 x`` and writes down with which weight it was drawn."""

    monitor = "score"

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.weight * batch - 3 * batch).square().mean()}

    def validation_step(self, batch: torch.Tensor) -> dict[str, tuple[float, float]]:
        return {"score": (-float((self.weight - 3).abs()), 1.0)}

    def write_previews(self, directory: Path, epoch: int) -> None:
        (directory / f"epoch-{epoch}").write_text(repr(float(self.weight.detach())))


def run(folder: Path, epochs: int, validating: bool = True, **options: Any) -> dict[int, float]:
    """Train, from a checkpoint if there is one; the weight in each picture, by epoch."""
    directories = {name: folder / name for name in ("checkpoint", "model", "previews")}
    for directory in directories.values():
        directory.mkdir(parents=True, exist_ok=True)
    chosen = TorchOptions(batch_size=4, warmup_steps=0, learning_rate=0.05, average=0, **options)
    job: TrainJob[Any] = TrainJob(
        options=chosen, train=(), val=(), epochs=epochs, seed=0, device="cpu", **directories
    )
    loaders = Loaders(train=Numbers(), epoch_samples=8, val=Numbers(), val_batches=int(validating))
    fit(Scale(), loaders, job, lambda event: None)
    files = directories["previews"].iterdir()
    return {int(f.name.removeprefix("epoch-")): float(f.read_text()) for f in files}


@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        ({"preview_every": 2}, {2, 4, 5}),
        ({"preview_every": 4, "validate_every": 2}, {4, 5}),
        ({"preview_every": 0}, set()),
        ({"validate_every": 3}, {3, 5}),
        ({}, {1, 2, 3, 4, 5}),
    ],
)
def test_pictures_are_drawn_at_the_epochs_asked_for(
    tmp_path: Path, options: dict[str, Any], drawn: set[int]
) -> None:
    assert run(tmp_path, 5, **options).keys() == drawn


def test_they_go_on_at_their_epochs_after_a_resume(tmp_path: Path) -> None:
    assert run(tmp_path, 3, preview_every=4).keys() == {3}, "the last epoch gets one too"
    assert run(tmp_path, 9, preview_every=4).keys() == {3, 4, 8, 9}


def test_the_last_epoch_of_a_training_that_stops_early_gets_one(tmp_path: Path) -> None:
    options = {"early_stopping": 2, "clip": 1e-30}  # it learns nothing
    assert run(tmp_path, 20, preview_every=10, **options).keys() == {3}


def test_they_are_of_the_current_weights(tmp_path: Path) -> None:
    weights = run(tmp_path, 6, preview_every=2)
    assert 1 < weights[2] < weights[4] < weights[6] < 3


def test_pictures_without_a_validation_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--preview-every 3 must be a multiple of --validate-ev"):
        parse(TorchOptions, {"preview_every": 3, "validate_every": 2})
    with pytest.raises(ConfigError, match="--preview-every 2 does nothing") as error:
        run(tmp_path, 3, validating=False, preview_every=2)
    assert error.value.hint and not list((tmp_path / "checkpoint").iterdir())
    run(tmp_path, 1, validating=False, preview_every=0)
    for fits in ({"validate_every": 5}, {"preview_every": 0, "validate_every": 5}):
        parse(TorchOptions, fits)
