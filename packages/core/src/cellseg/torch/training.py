"""Train a torch module: devices, precision, checkpoints, validation, resume; it only emits.

Lightning's Fabric brings the devices, strategies and precisions. The loop is our own, because
what it promises is more than Lightning's Trainer gives: a training that was killed anywhere and
resumed ends with the very weights of one that was not.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch  # noqa: TID253

from cellseg.errors import ConfigError, DivergedError, InterruptedRunError, PluginError
from cellseg.events import Checkpointed, Emit, Event, Note, Progress, Validated
from cellseg.options import flag
from cellseg.specs import TrainJob
from cellseg.torch.checkpoints import Checkpoints, Position
from cellseg.torch.devices import memory_errors, resolve_device, threads
from cellseg.torch.hardware import check_hardware, make_fabric, quiet
from cellseg.torch.learners import Learner, Relabel, as_it_is
from cellseg.torch.loaders import Loaders
from cellseg.torch.optimisation import Average, all_finite, make_optimiser, rates_of, share_of_peak
from cellseg.torch.options import FitOptions
from cellseg.torch.ranks import free_port, others
from cellseg.torch.stepping import Stepping
from cellseg.torch.weights import load_weights

_EXPLODED = 1e4  # times the first loss


@dataclass(frozen=True)
class Fit:
    """How a training ended; the module holds the weights to use."""

    step: int
    epochs: int
    metrics: Mapping[str, float]
    """Of the last validation in this session."""


def fit(
    module: Learner,
    loaders: Loaders,
    job: TrainJob[Any],
    emit: Emit,
    relabel: Relabel = as_it_is,
) -> Fit:
    """Train ``module``, from ``job.checkpoint`` if there is one, until ``job.epochs``.

    Afterwards it has the weights of the best validation (or, without validation, the last ones).

    Args:
        module: a ``torch.nn.Module`` that is a ``Learner``; its first weights come from
            ``cellseg.torch.weights.seeded``.
        loaders: where samples come from.
        job: core's job; its options inherit ``FitOptions``.
        emit: gets ``Progress`` for each step, ``Validated``, ``Checkpointed`` and ``Note``.
        relabel: what events undergo before they are reported and logged.

    Raises:
        InterruptedRunError: ``job.interrupted()`` said so; a checkpoint is saved.
        DivergedError: the loss is NaN, infinite or explodes; the last checkpoint is kept.
        DeviceError: a device is missing or too small, or does not support the strategy.
        ConfigError: two options exclude each other, or a package for one is not installed.
        PluginError: the module's steps do not always give the same terms, or not what they must.
    """
    if job.epochs == 0:
        return Fit(0, 0, {})
    options: FitOptions = job.options
    if options.fast_dev_run:
        emit(Note("A fast development run: one step, one batch of validation. Not a model to use."))
        job, loaders = _shortest(job, loaders)
    if options.preview_every and not loaders.val_batches:
        raise ConfigError(
            f"--preview-every {options.preview_every} does nothing: pictures are of images that"
            " validate, and there are none.",
            hint="Give --preview-every 0, or keep some images for validation.",
        )
    check_hardware(options, resolve_device(job.device))
    port = free_port() if options.devices > 1 else 0
    plain = replace(job, interrupted=_never)
    with (
        quiet(),
        threads(options.threads),
        others(options.devices, _other_rank, port, module, loaders, plain),
    ):
        return _train(0, port, module, loaders, job, emit, relabel)


def _never() -> bool:
    return False


def _shortest(job: TrainJob[Any], loaders: Loaders) -> tuple[TrainJob[Any], Loaders]:
    """The same training with one step of the optimiser and one batch of validation."""
    options: FitOptions = job.options
    samples = options.batch_size * options.accumulate * options.devices
    few = replace(loaders, epoch_samples=samples, val_batches=min(loaders.val_batches, 1))
    return replace(job, epochs=1), few


def _other_rank(
    rank: int, port: int, module: Learner, loaders: Loaders, job: TrainJob[Any]
) -> None:
    share = max(1, (os.cpu_count() or 1) // job.options.devices)
    torch.set_num_threads(job.options.threads or share)
    with quiet(), torch.random.fork_rng(devices=[]):
        try:
            _train(rank, port, module, loaders, job, lambda event: None)
        except InterruptedRunError:
            return  # rank 0 tells


def _train(
    rank: int,
    port: int,
    module: Learner,
    loaders: Loaders,
    job: TrainJob[Any],
    emit: Emit,
    relabel: Relabel = as_it_is,
) -> Fit:
    hint = "Not even one sample fits: try smaller patches, or another --device."
    if job.options.devices > 1:
        smaller = max(1, job.options.batch_size // 2)
        hint = f"Try --batch-size {smaller} --accumulate 2, or smaller patches."
    with memory_errors(hint), torch.random.fork_rng(devices=[]):
        return _Loop(make_fabric(rank, port, job), module, loaders, job, emit, relabel).run()


class _Loop:
    """One process's part of a training."""

    def __init__(
        self,
        fabric: Any,
        learner: Any,
        loaders: Loaders,
        job: TrainJob[Any],
        emit: Emit,
        relabel: Relabel,
    ) -> None:
        self.fabric, self.learner, self.loaders, self.job = fabric, learner, loaders, job
        self._relabel = relabel
        self.options: FitOptions = job.options
        self.result = learner
        if self.options.strategy == "fsdp":  # which takes the module it trains apart
            self.learner = learner = copy.deepcopy(learner)
        self._emit = emit if fabric.is_global_zero else lambda event: None
        self.rate = rates_of(learner, self.options)[0]
        self.module, self.optimiser = fabric.setup(
            learner, make_optimiser(learner, self.options), move_to_device=True
        )
        self.peaks = [group["lr"] for group in self.optimiser.param_groups]
        self.module.mark_forward_method("training_step")
        self.module.mark_forward_method("validation_step")
        self.average = Average(learner, self.options.average)
        self.checkpoints = Checkpoints(job.checkpoint, fabric)
        self.at = Position()
        self.stepping = Stepping(
            fabric, self.module, loaders, self.options, job.seed, lambda text: self.emit(Note(text))
        )
        self.terms = self.stepping.terms
        self.metrics: dict[str, float] = {}
        batch = self.options.batch_size * self.options.accumulate
        self.samples_per_step: int = batch * fabric.world_size
        self.steps_per_epoch: int = math.ceil(loaders.epoch_samples / self.samples_per_step)

    def run(self) -> Fit:
        """Train to the end."""
        if Checkpoints.last(self.job.checkpoint) is not None:
            self._resume()
        if self.at.epoch < self.job.epochs and not self._stopped_early():
            self._epochs()
        self._settle()
        return Fit(self.at.step, self.at.epoch, dict(self.metrics))

    def emit(self, event: Event) -> None:
        """Report; and log the numbers where the user wants that."""
        event = self._relabel(event)
        self._emit(event)
        if self.options.logger != "none" and isinstance(event, Progress | Validated):
            self.fabric.log_dict(dict(event.metrics), step=event.step)

    def _epochs(self) -> None:
        while self.at.epoch < self.job.epochs and not self._stopped_early():
            self.module.train()
            while self.at.in_epoch < self.loaders.epoch_samples:
                stop = self._step()
                if stop:
                    self._save()
                    raise InterruptedRunError(
                        f"Stopped after step {self.at.step}; the state is saved in"
                        f" {self.job.checkpoint}.",
                        hint=f"Go on with: cellseg resume {self.job.model.parent}",
                    )
                every = self.options.checkpoint_every
                if every and self.at.step % every == 0:
                    self._save()
            self.at.epoch += 1
            self.at.in_epoch = 0
            last = self.at.epoch == self.job.epochs
            if self.loaders.val_batches and (
                last or self.at.epoch % self.options.validate_every == 0
            ):
                self._validate()
            self._save()

    def _step(self) -> bool:
        """One step of the optimiser; whether the user wants to stop after it."""
        at, options, fabric = self.at, self.options, self.fabric
        epochs = at.epoch + at.in_epoch / self.loaders.epoch_samples
        share = share_of_peak(options, at.step, epochs)
        for group, peak in zip(self.optimiser.param_groups, self.peaks, strict=True):
            group["lr"] = peak * share
        metrics, stop = self._agree(self.stepping.gradients(at, self.optimiser))
        self._refuse_divergence(metrics["loss"])
        if options.clip:
            norm = fabric.clip_gradients(
                self.module, self.optimiser, max_norm=options.clip, error_if_nonfinite=False
            )
            if options.precision != "16-mixed" and norm is not None and not torch.isfinite(norm):
                raise self._diverged("the gradient is not finite")
        self.optimiser.step()
        self.optimiser.zero_grad()
        at.step += 1
        at.samples += self.samples_per_step
        at.in_epoch += self.samples_per_step
        self.average.update(at.step)
        total = at.step + self._steps_left()
        named = {f"train/{name}": value for name, value in metrics.items()}
        named["learning_rate"] = self.rate.peak * share
        self.emit(Progress(at.step, total, named, at.epoch + 1))
        return stop

    def _steps_left(self) -> int:
        left = max(0, self.loaders.epoch_samples - self.at.in_epoch)
        this_epoch = math.ceil(left / self.samples_per_step)
        return this_epoch + (self.job.epochs - self.at.epoch - 1) * self.steps_per_epoch

    def _agree(self, sums: dict[str, torch.Tensor]) -> tuple[dict[str, float], bool]:
        """The metrics' means over all processes, and whether rank 0 was told to stop."""
        metrics, stop = self.terms.mean(sums, float(self.job.interrupted()))
        return metrics, stop > 0

    def _refuse_divergence(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}")
        if self.at.first_loss is None:
            self.at.first_loss = abs(loss)
        elif abs(loss) > _EXPLODED * max(self.at.first_loss, 1.0):
            raise self._diverged(f"the loss grew to {loss:.3g}")

    def _diverged(self, what: str) -> DivergedError:
        cause = f"the learning rate of {self.rate.peak:g} is probably too high"
        if self.at.step == 0:
            cause = "the images probably hold NaN or infinite values"
        elif self.options.precision == "16-mixed":
            cause += ", or 16-bit numbers too coarse (try --precision bf16-mixed)"
        elif not self.options.clip:
            cause += ", and --clip 0 clips no gradient"
        kept = Checkpoints.last(self.job.checkpoint) is not None
        return DivergedError(
            f"Training diverged at step {self.at.step + 1}: {what}; {cause}. "
            + ("The last checkpoint is kept." if kept else "There was no checkpoint yet."),
            hint="Look at the data with cellseg check-data."
            if self.at.step == 0
            else f"Train again with {flag(self.rate.option)} {self.rate.peak / 4:g}.",
        )

    def _validate(self) -> None:
        sums: dict[str, list[float]] = {}
        count, world = self.loaders.val_batches, self.fabric.world_size
        assert self.loaders.val is not None
        self.module.eval()
        with torch.no_grad(), self.average.in_place():
            for turn in range(math.ceil(count / world)):
                index = turn * world + self.fabric.global_rank
                # All processes must take part in each turn; what is done twice counts once.
                batch = self.loaders.val[min(index, count - 1)]
                fractions = self.stepping.validated(batch)
                for name, fraction in fractions.items():
                    both = sums.setdefault(name, [0.0, 0.0])
                    if index < count:
                        both[0] += float(fraction[0])
                        both[1] += float(fraction[1])
            self.metrics = self._divide(sums)
            best = self._rank_weights()
        monitor = f"val/{self.learner.monitor}"
        self.emit(Validated(self.at.step, self.metrics, best, self.at.epoch, monitor))
        if self.fabric.is_global_zero and self._pictured():
            self.learner.write_previews(self.job.previews, self.at.epoch)

    def _pictured(self) -> bool:
        """Whether pictures are drawn of the validation after this epoch."""
        every = self.options.preview_every
        if every is None:
            return True
        last = self.at.epoch == self.job.epochs or self._out_of_patience()
        return every > 0 and (last or self.at.epoch % every == 0)

    def _divide(self, sums: dict[str, list[float]]) -> dict[str, float]:
        self.terms.refuse_difference(sums, "validation_step")
        if self.learner.monitor not in sums:
            raise PluginError(
                f"{type(self.learner).__name__}.validation_step gives {', '.join(sorted(sums))}, "
                f"but not {self.learner.monitor!r}, its monitor."
            )
        if self.fabric.world_size > 1:
            device = self.fabric.device
            flat = torch.tensor([sums[name] for name in sorted(sums)], device=device)
            flat = self.fabric.all_reduce(flat, reduce_op="sum")
            sums = dict(zip(sorted(sums), flat.tolist(), strict=True))
        return {f"val/{name}": a / b if b else 0.0 for name, (a, b) in sums.items()}

    def _rank_weights(self) -> bool:
        """Keep the weights if they are among the best; whether they are the best."""
        at = self.at
        score = self.metrics[f"val/{self.learner.monitor}"]
        best = at.top is None or score > at.top
        at.top = score if best else at.top
        at.stale = 0 if best else at.stale + 1
        # Of equal scores the earlier one stays.
        ranking = sorted([*at.best, (score, at.epoch)], key=lambda pair: (-pair[0], pair[1]))
        at.best = ranking[: self.options.save_top_k]
        at.kept = [epoch for _, epoch in at.best]
        if at.epoch in at.kept:
            self.checkpoints.keep(self._weights(), at.epoch)
        return best

    def _weights(self) -> dict[str, Any]:
        if self.options.strategy != "fsdp":
            return dict(self.learner.state_dict())
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return dict(get_model_state_dict(self.learner, options=whole))

    def _out_of_patience(self) -> bool:
        """Whether as many validations as --early-stopping allows brought no better score."""
        return 0 < self.options.early_stopping <= self.at.stale

    def _stopped_early(self) -> bool:
        stopped = self._out_of_patience()
        if stopped:
            patience = self.options.early_stopping
            self.emit(Note(f"Stopped early: no better score in {patience} validations."))
        return stopped

    def _state(self) -> dict[str, Any]:
        state = {"module": self.module, "optimiser": self.optimiser}
        return {
            **state,
            "average": self.average.state(),
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def _save(self) -> None:
        if not all_finite(self.learner.parameters()):
            raise self._diverged("the weights are not finite")
        self.checkpoints.save(self._state(), self.at)
        self.emit(Checkpointed(self.at.step))

    def _resume(self) -> None:
        state = self._state()
        self.at = self.checkpoints.load(state)
        self.average.restore(state["average"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])

    def _settle(self) -> None:
        """Leave the weights to use in the module, on the CPU."""
        self.average.settle()
        if self.result is not self.learner:
            self.result.load_state_dict(self._weights())
        self.result.to("cpu")
        if self.at.best:
            load_weights(self.result, self.checkpoints.weights(self.at.best[0][1]))
