"""Learners whose parts learn at rates of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save  # noqa: E402

from cellseg.errors import DivergedError, PluginError  # noqa: E402
from cellseg.events import Progress  # noqa: E402
from cellseg.specs import TrainJob  # noqa: E402
from cellseg.torch.loaders import Loaders  # noqa: E402
from cellseg.torch.optimisation import Rate, make_optimiser  # noqa: E402
from cellseg.torch.options import FitOptions  # noqa: E402
from cellseg.torch.training import fit  # noqa: E402
from cellseg.torch.weights import seeded  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def weights(module: torch.nn.Module) -> bytes:
    return save({name: t.contiguous() for name, t in module.state_dict().items()})


class TwoRates(torch.nn.Module):
    """The last layer learns much slower than the first."""

    monitor = "score"
    fast, slow = 0.01, 1e-6

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Linear(8, 1))

    def training_step(self, batch: Any) -> dict[str, torch.Tensor]:
        return {"loss": (self.net(batch["x"]) - 3 * batch["x"]).square().mean()}

    def validation_step(self, batch: Any) -> dict[str, tuple[float, float]]:
        raise AssertionError("nothing validates")

    @property
    def rates(self) -> tuple[Rate, ...]:
        return tuple(
            Rate(option, peak, frozenset(f"net.{layer}.{kind}" for kind in ("weight", "bias")))
            for option, peak, layer in (("fast_rate", self.fast, 0), ("slow_rate", self.slow, 1))
        )


class Points:
    """Sample ``i`` is a function of ``i``."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": torch.rand(1, generator=torch.Generator().manual_seed(index))}


def two_rates(folder: Path, epochs: int = 3, **changes: Any) -> tuple[TwoRates, list[Any]]:
    directories = {name: folder / name for name in ("checkpoint", "model", "previews")}
    for directory in directories.values():
        directory.mkdir(parents=True, exist_ok=True)
    values = {"batch_size": 4, "warmup_steps": 2, "average": 0, "weight_decay": 0, **changes}
    job: TrainJob[Any] = TrainJob(
        options=FitOptions(**values),
        train=(),
        val=(),
        epochs=epochs,
        seed=7,
        device="cpu",
        **directories,
    )
    with seeded(0):
        module = TwoRates()
    events: list[Any] = []
    fit(module, Loaders(train=Points(), epoch_samples=24), job, events.append)
    return module, events


def test_parts_learn_at_rates_of_their_own(tmp_path: Path) -> None:
    with seeded(0):
        before = dict(TwoRates().named_parameters())
    module, events = two_rates(tmp_path)
    steps = [event for event in events if isinstance(event, Progress)]
    assert max(e.metrics["learning_rate"] for e in steps) == pytest.approx(0.01, rel=0.01)
    moved = {
        name: float((p - before[name]).detach().abs().max())
        for name, p in module.named_parameters()
    }
    assert moved["net.0.weight"] > 0.01
    assert 0 < moved["net.1.weight"] < 1e-6 * (len(steps) + 1)


def test_rates_of_their_own_go_on_after_a_kill(tmp_path: Path) -> None:
    whole, _ = two_rates(tmp_path / "a", epochs=2)
    two_rates(tmp_path / "b", epochs=1)
    again, _ = two_rates(tmp_path / "b", epochs=2)
    assert weights(again) == weights(whole)


def test_divergence_names_the_option_that_says_the_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TwoRates, "fast", 1e4)
    with pytest.raises(DivergedError, match="rate of 10000") as error:
        two_rates(tmp_path, epochs=40, clip=0, warmup_steps=0)
    assert "--fast-rate 2500" in str(error.value.hint)


def test_a_parameter_without_a_rate_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TwoRates, "rates", TwoRates().rates[:1])
    with pytest.raises(PluginError, match=r"no rate for net\.1"):
        two_rates(tmp_path)


def test_options_without_a_rate_need_a_learner_that_says_its_own(tmp_path: Path) -> None:
    class Silent(TwoRates):
        rates = None

    with pytest.raises(PluginError, match="does not say how fast it learns"):
        make_optimiser(Silent(), FitOptions())
