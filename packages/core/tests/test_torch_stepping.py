"""Training where the memory runs out: the same steps in smaller parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from test_torch_training import LOADERS, Points, make_job, weights  # noqa: E402

from cellseg.errors import DeviceError, InterruptedRunError  # noqa: E402
from cellseg.events import Note, Progress, Validated  # noqa: E402
from cellseg.torch.stepping import halved  # noqa: E402
from cellseg.torch.training import fit  # noqa: E402
from cellseg.torch.weights import seeded  # noqa: E402

BATCH = 7


class Small(torch.nn.Module):
    """A line without chance, on a device where only ``fits`` samples have room."""

    monitor = "score"

    def __init__(self, fits: int = 10**9, at: int = 0, norm: bool = False, late: bool = False):
        super().__init__()
        layers = [torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)]
        if norm:
            layers.insert(1, torch.nn.BatchNorm1d(8, momentum=0.5))
        self.net = torch.nn.Sequential(*layers)
        self.fits, self.at, self.late = fits, at, late
        self.sizes: list[int] = []
        self.steps = 0

    def training_step(self, batch: Any) -> dict[str, torch.Tensor]:
        size = len(batch["x"])
        self.sizes.append(size)
        short = size > self.fits and len(self.sizes) > self.at
        if short and not self.late:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        hidden = self.net[:-1](batch["x"])
        if short:  # in the middle of the backward pass, when some gradients are there
            hidden.register_hook(lambda gradient: _fail())
        loss = (self.net[-1](hidden) - 3 * batch["x"]).square().mean()
        return {"loss": loss, "size": torch.tensor(float(size))}

    def validation_step(self, batch: Any) -> dict[str, tuple[float, float]]:
        if len(batch["x"]) > self.fits:
            raise MemoryError
        error = (self.net(batch["x"]) - 3 * batch["x"]).square().sum()
        return {"score": (-float(error.detach()), len(batch["x"]))}

    def write_previews(self, directory: Path, epoch: int) -> None:
        pass


def _fail() -> None:
    raise RuntimeError("CUDA error: out of memory")


def train(
    folder: Path, stop: int | None = None, epochs: int = 2, **options: Any
) -> tuple[Small, list[Any]]:
    names = ("fits", "at", "norm", "late")
    given = {name: options.pop(name) for name in names if name in options}
    with seeded(0):
        module = Small(**given)
    events: list[Any] = []
    job = make_job(folder, epochs, **{"batch_size": BATCH, "weight_decay": 0.0, **options})
    job = replace(
        job,
        interrupted=lambda: (
            stop is not None and sum(isinstance(e, Progress) for e in events) >= stop
        ),
    )
    fit(module, replace(LOADERS, epoch_samples=28, train=Points()), job, events.append)
    return module, events


def notes(events: list[Any]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note)]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_halves_give_the_same_steps(tmp_path: Path, accumulate: int, late: bool) -> None:
    whole, expected = train(tmp_path / "a", accumulate=accumulate)
    parts, events = train(tmp_path / "b", accumulate=accumulate, fits=4, late=late)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    losses = [
        [e.metrics["train/loss"] for e in es if isinstance(e, Progress)]
        for es in (expected, events)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert parts.sizes[:3] == [7, 4, 3]  # tried once, and never again
    assert set(parts.sizes[1:]) == {4, 3}
    first, second = notes(events)
    assert "Out of memory with 7 samples at once" in first
    assert "4 + 3 from now on" in first
    assert "validation are done in halves" in second
    scores = [[e.metrics for e in es if isinstance(e, Validated)] for es in (expected, events)]
    for one, other in zip(*scores, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_it_halves_down_to_single_samples_and_no_further(tmp_path: Path) -> None:
    parts, events = train(tmp_path / "a", fits=1, epochs=1)
    assert parts.sizes[:10] == [7, 4, 2, *[1] * 7]
    assert len([note for note in notes(events) if "samples at once" in note]) == 3
    with pytest.raises(DeviceError, match="memory") as error:
        train(tmp_path / "b", fits=0, epochs=1)
    assert "Not even one sample fits" in str(error.value.hint)


def test_a_resumed_training_goes_on_in_the_same_parts(tmp_path: Path) -> None:
    """Also if the memory would suffice by then: its steps are those of the undisturbed one."""
    undisturbed, _ = train(tmp_path / "a", fits=4, at=3, norm=True)
    with pytest.raises(InterruptedRunError):
        train(tmp_path / "b", stop=6, fits=4, at=3, norm=True)
    resumed, events = train(tmp_path / "b", norm=True)
    assert weights(resumed) == weights(undisturbed)
    assert resumed.sizes[0] == 4
    assert not notes(events)


def test_statistics_of_an_attempt_that_failed_do_not_count(tmp_path: Path) -> None:
    parts, _ = train(tmp_path / "a", fits=4, norm=True, late=True, epochs=1)
    small, _ = train(tmp_path / "b", fits=4, norm=True, epochs=1)
    assert parts.net[1].num_batches_tracked == 2 * 4
    for name in ("running_mean", "running_var"):
        assert torch.equal(getattr(parts.net[1], name), getattr(small.net[1], name))


def test_other_errors_are_not_taken_for_it(tmp_path: Path) -> None:
    class Wrong(Small):
        def training_step(self, batch: Any) -> dict[str, torch.Tensor]:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        fit(Wrong(), LOADERS, make_job(tmp_path), lambda event: None)


def test_what_can_be_halved() -> None:
    first, second = halved({"x": torch.arange(5), "y": torch.zeros(5, 2)}) or ({}, {})
    assert first["x"].tolist() == [0, 1, 2]
    assert second["y"].shape == (2, 2)
    assert halved({"x": torch.arange(5), "y": torch.zeros(4)}) is None
    assert halved({"x": torch.arange(1)}) is None
    assert halved({"x": torch.arange(4), "names": ["a"] * 4}) is None
    assert halved([torch.arange(4)]) is None
