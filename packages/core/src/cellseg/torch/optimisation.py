"""The optimiser, its learning rate at each step, and the running average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch  # noqa: TID253

from cellseg.torch.options import TorchOptions

_FLOOR = 0.01  # what the cosine ends at, as a part of the peak


def make_optimiser(module: torch.nn.Module, options: TorchOptions) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101) over what requires a gradient."""
    learnt = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learnt if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in learnt if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=options.learning_rate)


def learning_rate(options: TorchOptions, step: int, epochs: float) -> float:
    """The learning rate of a step: a function of where it is, so that resuming cannot shift it.

    Args:
        options: peak, warm-up and length of the decay.
        step: counts from 0.
        epochs: how many epochs are done, in fractions.
    """
    rate = options.learning_rate
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
