"""The terms of a training step: the same ones in every step and in every process.

Otherwise their means would be wrong, and processes that exchange them would wait for ever.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch  # noqa: TID253

from cellseg.errors import PluginError


class Terms:
    """Which terms there are, as the first batch had them.

    Args:
        fabric: connects the processes; all of them call ``mean`` and ``refuse_difference``.
    """

    def __init__(self, fabric: Any) -> None:
        self._fabric = fabric
        self._names: list[str] = []
        self._compared = False
        self._wrong = ""

    def checked(self, terms: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The terms of one batch; ``mean`` raises the error where they are not those of before.

        Raises:
            PluginError: there is no ``loss``.
        """
        names = sorted(terms)
        if "loss" not in terms:
            raise PluginError(f"training_step gives no 'loss', only: {', '.join(names) or '-'}.")
        self._names = self._names or names
        if names != self._names and not self._wrong:
            self._wrong = f"{', '.join(self._names)} first, then {', '.join(names)}"
        return terms

    def mean(
        self, sums: Mapping[str, torch.Tensor], extra: float
    ) -> tuple[dict[str, float], float]:
        """The terms, averaged over the processes, and the sum of what each gives as ``extra``.

        Raises:
            PluginError: the terms are not always the same; all processes raise it.
        """
        if not self._compared:
            self.refuse_difference(self._names, "training_step")
            self._compared = True
        device = self._fabric.device
        nothing = torch.zeros((), device=device)
        more = torch.tensor([float(bool(self._wrong)), extra], device=device)
        together = torch.stack([*(sums.get(name, nothing) for name in self._names), *more])
        if self._fabric.world_size > 1:
            together = self._fabric.all_reduce(together, reduce_op="sum")
            together[:-2] /= self._fabric.world_size
        *values, wrong, total = together.tolist()
        if wrong:
            raise PluginError(
                f"training_step gives other terms from batch to batch: "
                f"{self._wrong or 'in another process'}. A term that a batch lacks must be 0."
            )
        means = dict(zip(self._names, values, strict=True))
        return {name: means[name] for name in sums}, total

    def refuse_difference(self, names: Iterable[str], where: str) -> None:
        """Compare what the processes have; nothing to do for one alone.

        Raises:
            PluginError: they have other names; all processes raise it.
        """
        if self._fabric.world_size == 1:
            return
        names = sorted(names)
        check = zlib.crc32(" ".join(names).encode())
        both = torch.tensor([check, -check], device=self._fabric.device)
        highest, lowest = self._fabric.all_reduce(both, reduce_op="max").tolist()
        if highest != -lowest:
            raise PluginError(
                f"{where} gives other terms in other processes; here: {', '.join(names) or '-'}. "
                "A term that a batch lacks must be 0."
            )
