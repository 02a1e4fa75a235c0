"""The optimiser, its learning rate at each step, and the running average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch  # noqa: TID253

from cellseg.errors import PluginError
from cellseg.torch.options import FitOptions, TorchOptions

_FLOOR = 0.01  # what the cosine ends at, as a part of the peak


@dataclass(frozen=True, slots=True)
class Rate:
    """Parameters that learn at one rate."""

    option: str
    """The option that says how fast; messages name it."""
    peak: float
    names: frozenset[str]
    """Of parameters of the learner."""


def rates_of(module: torch.nn.Module, options: FitOptions) -> tuple[Rate, ...]:
    """How fast the parts of a learner learn: as its ``rates`` say or, where it has none, all of
    it at ``options.learning_rate``.

    Raises:
        PluginError: neither says.
    """
    own: Sequence[Rate] | None = getattr(module, "rates", None)
    if own is not None:
        return tuple(own)
    if not isinstance(options, TorchOptions):
        raise PluginError(f"{type(module).__name__} does not say how fast it learns (rates).")
    every = frozenset(name for name, _ in module.named_parameters())
    return (Rate("learning_rate", options.learning_rate, every),)


def make_optimiser(module: torch.nn.Module, options: FitOptions) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101) over what requires a gradient; the rate of each
    of its groups is the peak.

    Raises:
        PluginError: a parameter has no rate.
    """
    left = {name: p for name, p in module.named_parameters() if p.requires_grad}
    groups = []
    for rate in rates_of(module, options):
        learnt = [left.pop(name) for name in list(left) if name in rate.names]
        for decay, params in (
            (options.weight_decay, [p for p in learnt if p.ndim > 1]),
            (0.0, [p for p in learnt if p.ndim <= 1]),
        ):
            if params:
                groups.append({"params": params, "weight_decay": decay, "lr": rate.peak})
    if left:
        raise PluginError(f"{type(module).__name__} has no rate for {', '.join(sorted(left)[:3])}.")
    return torch.optim.AdamW(groups)


def share_of_peak(options: FitOptions, step: int, epochs: float) -> float:
    """The learning rate of a step, as a part of its peak: a function of where it is, so that
    resuming cannot shift it.

    Args:
        options: warm-up and length of the decay.
        step: counts from 0.
        epochs: how many epochs are done, in fractions.
    """
    rate = 1.0
    if options.decay_epochs:
        done = min(epochs / options.decay_epochs, 1.0)
        rate *= _FLOOR + (1 - _FLOOR) * (1 + math.cos(math.pi * done)) / 2
    return rate * min(1.0, (step + 1) / (options.warmup_steps + 1))


class Average:
    """Exponential moving average of the weights (Polyak & Juditsky, doi:10.1137/0330046).

    It is what gets validated and kept. In the first steps it follows faster, so that it does not
    remember the random weights that training started from.
    """

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self._decay = decay
        self._live = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self._mean = {n: p.detach().clone() for n, p in self._live.items()} if decay else {}

    def update(self, step: int) -> None:
        """Take in the weights after a step, counted from 1."""
        decay = min(self._decay, step / (step + 9))
        with torch.no_grad():
            for name, mean in self._mean.items():
                mean.lerp_(self._live[name], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the module has the averaged weights."""
        live = {name: self._live[name].detach().clone() for name in self._mean}
        self._fill(self._mean)
        try:
            yield
        finally:
            self._fill(live)

    def settle(self) -> None:
        """Leave the averaged weights in the module."""
        self._fill(self._mean)

    def state(self) -> dict[str, torch.Tensor]:
        """For the checkpoint."""
        return dict(self._mean)

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """From a checkpoint."""
        with torch.no_grad():
            for name, mean in self._mean.items():
                mean.copy_(state[name])

    def _fill(self, values: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                self._live[name].copy_(value)


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether no element is NaN or infinite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
