"""The gradients of a training step, and validation, in parts where the memory asks for it.

A step that runs out of memory is done again with its batches in halves, whose gradients are added
up, each weighted by its share of the samples. So a loss that is a mean over samples has the same
gradient as before; one that is a mean over something else (objects, voxels, prompts) has that of
``--batch-size 4 --accumulate 2`` in place of ``--batch-size 8``. Statistics of batch normalisation
are those of the parts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch  # noqa: TID253

from cellseg.memory import free_memory, out_of_memory
from cellseg.torch.checkpoints import Position
from cellseg.torch.loaders import Loaders, Share, stream
from cellseg.torch.options import FitOptions
from cellseg.torch.terms import Terms


class Stepping:
    """Computes gradients and validates, in as few parts as the memory allows.

    With several devices all wait for each other in the middle of a step, so that none can begin it
    anew: running out of memory stays an error there.

    Args:
        fabric: of this process.
        module: as Fabric set it up.
        loaders: where samples come from.
        options: of the training.
        seed: of the training.
        note: gets what the user should know.
    """

    def __init__(
        self,
        fabric: Any,
        module: Any,
        loaders: Loaders,
        options: FitOptions,
        seed: int,
        note: Callable[[str], None],
    ) -> None:
        self.terms = Terms(fabric)
        self._fabric, self._module, self._loaders = fabric, module, loaders
        self._options, self._seed, self._note = options, seed, note
        self._alone = fabric.world_size == 1
        self._batches: Iterator[Any] | None = None
        self._halving = False

    def gradients(self, at: Position, optimiser: Any) -> dict[str, torch.Tensor]:
        """Leave the gradients of a step in the parameters; gives the means of its terms.

        Args:
            at: where the training is; ``at.most`` becomes smaller when the memory runs out.
            optimiser: whose gradients are zero.

        Raises:
            Exception: what the learner raises; also when not even one sample fits into memory.
        """
        while True:
            kept = _statistics(self._module)
            try:
                return self._summed(at)
            except Exception as error:
                most = at.most or self._options.batch_size
                if not self._alone or most == 1 or not out_of_memory(error):
                    raise
            # Out of the block above, the error holds no tensors any more.
            at.most = -(-most // 2)
            self._batches = None
            optimiser.zero_grad()
            for buffer, value in kept:
                buffer.copy_(value)
            free_memory()
            sizes = " + ".join(map(str, _sizes(self._options.batch_size, at.most)))
            self._note(
                f"Out of memory with {most} samples at once: batches of "
                f"{self._options.batch_size} are done as {sizes} from now on, and their gradients "
                "added up. The steps stay the same but for statistics over a batch, and take a "
                "little longer."
            )

    def validated(self, batch: Any) -> Mapping[str, tuple[float, float]]:
        """The fractions of one batch of validation; in halves where it does not fit."""
        try:
            with self._fabric.autocast():
                found: Mapping[str, tuple[float, float]] = self._module.validation_step(
                    self._fabric.to_device(batch)
                )
                return found
        except Exception as error:
            halves = halved(batch) if self._alone and out_of_memory(error) else None
            if halves is None:
                raise
        free_memory()
        if not self._halving:
            self._note("Out of memory: batches of the validation are done in halves.")
            self._halving = True
        sums: dict[str, tuple[float, float]] = {}
        for half in halves:
            for name, (part, whole) in self.validated(half).items():
                before = sums.get(name, (0.0, 0.0))
                sums[name] = (before[0] + float(part), before[1] + float(whole))
        return sums

    def _summed(self, at: Position) -> dict[str, torch.Tensor]:
        """The gradients of all parts of a step."""
        options, fabric = self._options, self._fabric
        if self._batches is None:
            self._batches = self._stream(at)  # which draws a random number: before the seed is set
        # Dropout and the like depend on the step alone, so no generator needs to be saved.
        position = at.step * fabric.world_size + fabric.global_rank
        torch.manual_seed(((self._seed << 40) + position) % 2**63)
        sums: dict[str, torch.Tensor] = {}
        sizes = _sizes(options.batch_size, at.most) * options.accumulate
        for number, size in enumerate(sizes, 1):
            batch = fabric.to_device(next(self._batches))
            share = size / (options.batch_size * options.accumulate)
            with fabric.no_backward_sync(self._module, enabled=number < len(sizes)):
                # Around the step as well: Fabric sets the precision in wrapped modules alone.
                with fabric.autocast():
                    terms = self.terms.checked(self._module.training_step(batch))
                fabric.backward(terms["loss"] * share)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.detach().float() * share
        return sums

    def _stream(self, at: Position) -> Iterator[Any]:
        """Batches from where the training is, or their parts."""
        fabric = self._fabric
        share = Share(fabric.global_rank, fabric.world_size, self._options.batch_size)
        workers = self._options.num_workers
        if workers is None:
            on_cpu = fabric.device.type == "cpu"
            workers = 0 if on_cpu else min(8, (os.cpu_count() or 1) // share.world)
        pin = fabric.device.type == "cuda"
        return stream(self._loaders, share, at.samples, workers, pin, at.most)


def halved(batch: Any) -> tuple[Any, Any] | None:
    """A batch in two halves; None where that is not possible.

    Args:
        batch: tensors by name, all of them with the samples along their first axis.
    """
    if not isinstance(batch, Mapping):
        return None
    tensors = list(batch.values())
    if not tensors or not all(isinstance(one, torch.Tensor) and one.ndim for one in tensors):
        return None
    count = len(tensors[0])
    if count < 2 or any(len(one) != count for one in tensors):
        return None
    half = -(-count // 2)
    first = {name: tensor[:half] for name, tensor in batch.items()}
    return first, {name: tensor[half:] for name, tensor in batch.items()}


def _sizes(batch: int, most: int) -> list[int]:
    """The parts of a batch of at most ``most`` samples each; 0 means no limit."""
    return [min(most or batch, batch - start) for start in range(0, batch, most or batch)]


def _statistics(module: torch.nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The running statistics of a network, each with a copy, for a step that is done again."""
    norms = [one for one in module.modules() if hasattr(one, "running_mean")]
    return [(b, b.clone()) for one in norms for b in one.buffers(recurse=False)]
