"""The training loop: it emits, resumes exactly, and stops in the right way when things go wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save  # noqa: E402

from cellseg.errors import (  # noqa: E402
    ConfigError,
    DataError,
    DeviceError,
    DivergedError,
    InterruptedRunError,
    StorageError,
)
from cellseg.events import Checkpointed, Note, Progress, Validated  # noqa: E402
from cellseg.specs import TrainJob  # noqa: E402
from cellseg.torch.loaders import Loaders, Share  # noqa: E402
from cellseg.torch.optimisation import share_of_peak  # noqa: E402
from cellseg.torch.options import TorchOptions  # noqa: E402
from cellseg.torch.training import Fit, fit  # noqa: E402
from cellseg.torch.weights import seeded  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


class Line(torch.nn.Module):
    """Fits ``y = 3 x``, with dropout, so that a random state that is lost would show."""

    monitor = "score"

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(1, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1)
        )
        self.previews: list[int] = []

    def training_step(self, batch: Any) -> dict[str, torch.Tensor]:
        return {"loss": (self.net(batch["x"]) - 3 * batch["x"]).square().mean()}

    def validation_step(self, batch: Any) -> dict[str, tuple[float, float]]:
        error = (self.net(batch["x"]) - 3 * batch["x"]).square().sum()
        return {"score": (-float(error.detach()), len(batch["x"]))}

    def write_previews(self, directory: Path, epoch: int) -> None:
        self.previews.append(epoch)


@dataclass(frozen=True)
class Points:
    """Sample ``i`` is a function of ``i``."""

    log: Path | None = None
    bad_from: int = 10**9
    scale: float = 1.0

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{index}\n")
        x = torch.rand(1, generator=torch.Generator().manual_seed(index)) * self.scale
        return {"x": x * float("nan") if index >= self.bad_from else x}


@dataclass(frozen=True)
class Batches:
    count: int = 3

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        assert 0 <= index < self.count
        return {"x": torch.linspace(0, 1, 4 + index)[:, None]}


def line() -> Line:
    with seeded(0):
        return Line()


def make_job(folder: Path, epochs: int = 3, **options: Any) -> TrainJob[TorchOptions]:
    directories = {name: folder / name for name in ("checkpoint", "model", "previews")}
    for directory in directories.values():
        directory.mkdir(parents=True, exist_ok=True)
    chosen = TorchOptions(**{"batch_size": 4, "warmup_steps": 2, "learning_rate": 0.02, **options})
    return TrainJob(
        options=chosen, train=(), val=(), epochs=epochs, seed=7, device="cpu", **directories
    )


LOADERS = Loaders(train=Points(), epoch_samples=24, val=Batches(), val_batches=3)


def run(job: TrainJob[TorchOptions], loaders: Loaders = LOADERS) -> tuple[Line, list[Any], Fit]:
    module, events = line(), []
    result = fit(module, loaders, job, events.append)
    return module, events, result


def weights(module: torch.nn.Module) -> bytes:
    return save({name: t.contiguous() for name, t in module.state_dict().items()})


def test_events_count_up_and_say_what_is_best(tmp_path: Path) -> None:
    module, events, result = run(make_job(tmp_path))
    steps = [e for e in events if isinstance(e, Progress)]
    assert [e.step for e in steps] == list(range(1, 19))
    assert {e.total for e in steps} == {18}
    assert [e.epoch for e in steps] == [1] * 6 + [2] * 6 + [3] * 6
    assert set(steps[0].metrics) == {"train/loss", "learning_rate"}
    validated = [e for e in events if isinstance(e, Validated)]
    assert [(e.step, e.epoch) for e in validated] == [(6, 1), (12, 2), (18, 3)]
    assert validated[0].best
    assert validated[-1].metrics["val/score"] > validated[0].metrics["val/score"]
    assert [e.step for e in events if isinstance(e, Checkpointed)] == [6, 12, 18]
    assert result.metrics == validated[-1].metrics
    assert module.previews == [1, 2, 3]


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(make_job(tmp_path))
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


def test_zero_epochs_leave_the_module_alone(tmp_path: Path) -> None:
    module, events, _ = run(make_job(tmp_path, epochs=0))
    assert weights(module) == weights(line())
    assert not events and not list((tmp_path / "checkpoint").iterdir())


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "average": 0}, {"num_workers": 2}])
def test_interrupted_anywhere_ends_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    whole, _, _ = run(make_job(tmp_path / "whole", **options))
    asked = iter([*[False] * 3, True, *[False] * 1, True, *[False] * 99])
    job = make_job(tmp_path / "cut", **options)
    interrupted = replace(job, interrupted=lambda: next(asked))
    for _ in range(2):
        with pytest.raises(InterruptedRunError) as error:
            run(interrupted)
        assert "cellseg resume" in (error.value.hint or "")
    module, events, _ = run(interrupted)
    assert next(e for e in events if isinstance(e, Progress)).step == 7
    assert weights(module) == weights(whole)


def test_one_and_one_epoch_are_two(tmp_path: Path) -> None:
    two, _, _ = run(make_job(tmp_path / "two", epochs=2))
    run(make_job(tmp_path / "one", epochs=1))
    again, events, _ = run(make_job(tmp_path / "one", epochs=2))
    assert weights(again) == weights(two)
    assert events[0].step == 7


def test_a_finished_training_gives_its_weights_again(tmp_path: Path) -> None:
    first, _, _ = run(make_job(tmp_path))
    again, events, _ = run(make_job(tmp_path))
    assert weights(first) == weights(again) and not events


def test_loader_processes_change_nothing(tmp_path: Path) -> None:
    alone, _, _ = run(make_job(tmp_path / "0", num_workers=0))
    helped, _, _ = run(make_job(tmp_path / "2", num_workers=2))
    assert weights(alone) == weights(helped)


def test_the_best_weights_are_the_result(tmp_path: Path) -> None:
    # A rate this high makes later epochs worse than some earlier one.
    job = make_job(tmp_path, epochs=6, learning_rate=0.4, average=0, clip=0, save_top_k=2)
    module, events, _ = run(job)
    scores = {e.epoch: e.metrics["val/score"] for e in events if isinstance(e, Validated)}
    kept = sorted((tmp_path / "checkpoint").glob("*.safetensors"))
    best = sorted(scores, key=lambda epoch: -scores[epoch])[:2]
    assert sorted(int(file.stem.split("-")[1]) for file in kept) == sorted(best)
    module.eval()
    sums = [module.validation_step(Batches()[i])["score"] for i in range(3)]
    again = sum(s for s, _ in sums) / sum(n for _, n in sums)
    assert again == pytest.approx(scores[best[0]], rel=1e-5)


def test_without_validation_the_last_weights_are_the_result(tmp_path: Path) -> None:
    job = make_job(tmp_path, average=0)
    module, events, _ = run(job, replace(LOADERS, val=None, val_batches=0))
    assert not [e for e in events if isinstance(e, Validated)]
    assert weights(module) != weights(line())
    assert len(list(job.checkpoint.iterdir())) == 1


def test_early_stopping(tmp_path: Path) -> None:
    job = make_job(tmp_path, epochs=50, early_stopping=2, learning_rate=1e-9, average=0)
    _, events, result = run(job)
    assert result.epochs < 50
    assert "Stopped early" in next(e.text for e in events if isinstance(e, Note))
    _, events, again = run(job)
    assert again.epochs == result.epochs and not [e for e in events if isinstance(e, Progress)]


def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    job = make_job(tmp_path, epochs=5)
    with pytest.raises(DivergedError, match=r"step 9: the loss is nan.*learning rate.*kept"):
        run(job, replace(LOADERS, train=Points(bad_from=32)))
    (kept,) = job.checkpoint.glob("*.ckpt")
    assert kept.name == "step-00000006-epoch-0001.ckpt"
    state = torch.load(kept, weights_only=True)
    assert all(torch.isfinite(t).all() for t in state["module"].values())


def test_nan_in_the_first_images_is_said_to_be_the_images(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="images probably hold NaN") as error:
        run(make_job(tmp_path), replace(LOADERS, train=Points(bad_from=0)))
    assert error.value.exit_code == 8


def test_an_exploding_loss_stops(tmp_path: Path) -> None:
    job = make_job(tmp_path, epochs=40, learning_rate=1e4, clip=0, warmup_steps=0)
    with pytest.raises(DivergedError, match="the loss grew to"):
        run(job, replace(LOADERS, val=None, val_batches=0))


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    job = make_job(tmp_path, epochs=1)
    run(job)
    (file,) = job.checkpoint.glob("*.ckpt")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=file.name):
        run(make_job(tmp_path, epochs=2))


def test_what_a_kill_left_behind_is_removed(tmp_path: Path) -> None:
    job = make_job(tmp_path, epochs=1)
    (job.checkpoint / ".part-step-00000006-epoch-0001.ckpt").write_bytes(b"half")
    (job.checkpoint / "epoch-0009.safetensors").write_bytes(b"of no checkpoint")
    run(job)
    assert sorted(p.name for p in job.checkpoint.iterdir()) == [
        "epoch-0001.safetensors",
        "step-00000006-epoch-0001.ckpt",
    ]


def test_a_checkpoint_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.fabric import Fabric

    def full(self: Any, path: Path, state: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Fabric, "save", full)
    with pytest.raises(StorageError, match="the disk is full"):
        run(make_job(tmp_path))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"precision": "16-mixed"}, DeviceError, "needs CUDA"),
        ({"strategy": "fsdp"}, DeviceError, "--strategy fsdp needs CUDA"),
        ({"strategy": "deepspeed_stage_2"}, DeviceError, "needs CUDA"),
        ({"logger": "wandb"}, ConfigError, "needs the package wandb"),
    ],
)
def test_what_this_computer_cannot_do_is_refused(
    tmp_path: Path, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    from importlib.util import find_spec

    if options.get("logger") and find_spec(options["logger"]):
        pytest.skip("wandb is installed")
    with pytest.raises(kind, match=message) as error:
        run(make_job(tmp_path, **options))
    assert error.value.hint  # type: ignore[attr-defined]


def test_running_out_of_memory_says_what_to_do(tmp_path: Path) -> None:
    class Big(Line):
        def training_step(self, batch: Any) -> dict[str, torch.Tensor]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DeviceError, match="memory") as error:
        fit(Big(), LOADERS, make_job(tmp_path), lambda event: None)
    assert "smaller patches" in (error.value.hint or "")


class Watched(Line):
    """Remembers in which type its layers computed."""

    def __init__(self) -> None:
        super().__init__()
        self.types: list[torch.dtype] = []
        self.net.register_forward_hook(lambda _, x, y: self.types.append(y.dtype))


@pytest.mark.parametrize(
    ("precision", "expected"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)]
)
def test_the_precision_is_that_of_training_and_validation(
    precision: str, expected: torch.dtype, tmp_path: Path
) -> None:
    module = Watched()
    fit(module, LOADERS, make_job(tmp_path, epochs=1, precision=precision), lambda event: None)
    assert module.types == [expected] * (6 + LOADERS.val_batches)


def test_bf16_trains_and_resumes(tmp_path: Path) -> None:
    whole, _, _ = run(make_job(tmp_path / "a", epochs=2, precision="bf16-mixed"))
    run(make_job(tmp_path / "b", epochs=1, precision="bf16-mixed"))
    again, _, _ = run(make_job(tmp_path / "b", epochs=2, precision="bf16-mixed"))
    assert weights(again) == weights(whole)


def test_learning_rate_warms_up_and_decays() -> None:
    options = TorchOptions(warmup_steps=9, decay_epochs=10)
    assert share_of_peak(options, 0, 0) == pytest.approx(0.1)
    assert share_of_peak(options, 9, 0) == pytest.approx(1.0)
    assert share_of_peak(options, 99, 5) == pytest.approx(0.505)
    assert share_of_peak(options, 999, 20) == pytest.approx(0.01)
    flat = TorchOptions(warmup_steps=0, decay_epochs=0)
    assert share_of_peak(flat, 500, 77) == 1.0


def test_shares_cover_the_stream_once() -> None:
    drawn = [i for n in range(3) for rank in range(2) for i in Share(rank, 2, 4).batch(10, n)]
    assert drawn == list(range(10, 34))


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes find the classes of this module by its name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[__name__.count(".")]))


@pytest.mark.slow
@pytest.mark.usefixtures("importable")
def test_two_processes_share_the_work(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each sample is seen once, only one process reports, and all weights stay equal."""
    seen = tmp_path / "seen.txt"
    loaders = replace(LOADERS, train=Points(log=seen))
    job = make_job(tmp_path / "two", epochs=2, devices=2, strategy="ddp", num_workers=0)
    module, events, _ = run(job, loaders)
    drawn = sorted(int(line) for line in seen.read_text().split())
    assert drawn == list(range(48))
    assert [e.step for e in events if isinstance(e, Progress)] == [1, 2, 3, 4, 5, 6]
    assert len([e for e in events if isinstance(e, Validated)]) == 2
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == ""
    assert module.previews == [1, 2]
    assert len(list(job.checkpoint.glob("*.ckpt"))) == 1

    # Only this process is asked whether to stop, and both do.
    asked = iter([False, True])
    cut = make_job(tmp_path / "cut", epochs=2, devices=2, strategy="ddp")
    with pytest.raises(InterruptedRunError):
        run(replace(cut, interrupted=lambda: next(asked)))
    again, _, _ = run(make_job(tmp_path / "cut", epochs=2, devices=2, strategy="ddp"))
    assert weights(again) == weights(module)


@pytest.mark.slow
@pytest.mark.usefixtures("importable")
def test_an_error_in_another_process_is_told(tmp_path: Path) -> None:
    # Samples 4 to 7 go to rank 1 alone.
    loaders = replace(LOADERS, train=Raises(at=5))
    with pytest.raises(DataError, match="sample 5 is broken"):
        run(make_job(tmp_path, devices=2), loaders)


@dataclass(frozen=True)
class Raises:
    at: int

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index == self.at:
            raise DataError(f"sample {index} is broken")
        return Points()[index]


def test_data_that_cannot_be_sent_is_refused(tmp_path: Path) -> None:
    loaders = replace(LOADERS, collate=lambda items: items)
    with pytest.raises(ConfigError, match="--devices 2"):
        run(make_job(tmp_path, devices=2), loaders)


def test_threads_are_as_asked_and_given_back() -> None:
    from cellseg.torch.devices import threads

    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    with threads(None):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before
