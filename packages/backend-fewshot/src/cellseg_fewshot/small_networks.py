"""Ensembles of small multi-layer perceptrons, trained and applied together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

_ROWS = 1 << 14
_BETA1, _BETA2, _DECAY = 0.9, 0.999, 1e-3


class Ensemble:
    """``k`` networks of two hidden layers, each with weights of its own, on the same inputs."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Of the tensors that `Ensemble.state` gave."""
        self.tensors = dict(tensors)

    @classmethod
    def create(cls, inputs: Tensor, members: int, width: int, outputs: int, seed: int) -> Ensemble:
        """Untrained; standardises its inputs by the mean and the standard deviation of these.

        Args:
            inputs: ``(n, d)`` float32.
            members: how many networks.
            width: of the hidden layers.
            outputs: how many values each network gives.
            seed: of the weights.
        """
        random = torch.Generator().manual_seed(seed)
        sizes = (inputs.shape[1], width, width, outputs)
        spread, mean = torch.std_mean(inputs, 0, correction=0)
        tensors = {"mean": mean, "spread": spread.clamp(min=1e-6)}
        for layer, (before, after) in enumerate(pairwise(sizes)):
            weight = torch.randn(members, before, after, generator=random)
            tensors[f"weight{layer}"] = weight * (2 / before) ** 0.5
            tensors[f"bias{layer}"] = torch.zeros(members, 1, after)
        return cls(tensors)

    def to(self, device: torch.device) -> Ensemble:
        """The same on a device."""
        return Ensemble({name: tensor.to(device) for name, tensor in self.tensors.items()})

    def standardised(self, inputs: Tensor) -> Tensor:
        """``(n, d)`` as the networks take it, outliers clipped at 5 standard deviations."""
        return ((inputs - self.tensors["mean"]) / self.tensors["spread"]).clamp(-5, 5)

    def logits(self, inputs: Tensor, only: int | None = None) -> Tensor:
        """``(k, n, outputs)`` of standardised inputs ``(n, d)``, or ``(k, n, d)``; of one network
        alone with ``only``."""
        t = {n: x if only is None else x[only : only + 1] for n, x in self.tensors.items()
             if n not in ("mean", "spread")}  # fmt: skip
        hidden = inputs.expand(t["bias0"].shape[0], *inputs.shape[-2:])
        for layer in range(3):
            hidden = torch.baddbmm(t[f"bias{layer}"], hidden, t[f"weight{layer}"])
            hidden = torch.relu(hidden) if layer < 2 else hidden
        return hidden

    @torch.no_grad()
    def probabilities(self, inputs: Tensor, only: int | None = None) -> Tensor:
        """``(n, outputs)``: the mean over the networks, or that of one, of inputs as they are."""
        device = self.tensors["mean"].device
        parts = [
            self.logits(self.standardised(some.to(device)), only).sigmoid().mean(0).cpu()
            for some in inputs.split(_ROWS)
        ]
        return torch.cat(parts)

    def train(self, loss: Callable[[int], Tensor], steps: int, rate: float) -> None:
        """Minimise ``loss(step)`` by AdamW, with the rate falling to 0 along a cosine.

        Written out, because ``torch.optim`` imports a compiler at its first use, for seconds.
        """
        names = [name for name in self.tensors if name not in ("mean", "spread")]
        weights = [self.tensors[name].requires_grad_() for name in names]
        first, second = ([torch.zeros_like(x) for x in weights] for _ in range(2))
        for step in range(steps):
            with torch.enable_grad():
                slopes = torch.autograd.grad(loss(step), weights)
            now = rate * (1 + math.cos(math.pi * step / steps)) / 2
            fade = (1 - _BETA2 ** (step + 1)) ** 0.5
            with torch.no_grad():
                for weight, slope, m, v in zip(weights, slopes, first, second, strict=True):
                    m.lerp_(slope, 1 - _BETA1)
                    v.mul_(_BETA2).addcmul_(slope, slope, value=1 - _BETA2)
                    weight.mul_(1 - now * _DECAY)
                    size = now / (1 - _BETA1 ** (step + 1))
                    weight.addcdiv_(m, (v.sqrt() / fade).add_(1e-8), value=-size)
        for name in names:
            self.tensors[name] = self.tensors[name].detach()
