"""What a training leaves on disk to go on from, written so that a kill at any moment is harmless.

checkpoint/
    last.ckpt                 everything: weights, optimiser, average, position
    epoch-0007.safetensors           the weights of one of the best validations
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from cellseg.errors import DataError, WeightsError
from cellseg.files import discard, move_whole, remove, remove_leftovers, storage_errors
from cellseg.torch.reading import DAMAGED, UnsafeWeightsError, first_line, torch_errors
from cellseg.torch.weights import save_tensors


@dataclass
class Position:
    """How far a training is; plain numbers and strings, so that no pickle is needed to read it."""

    step: int = 0
    """Steps of the optimiser so far."""
    samples: int = 0
    """Samples seen so far, by all devices."""
    epoch: int = 0
    """Whole epochs so far."""
    in_epoch: int = 0
    """Samples seen in the epoch that has begun."""
    first_loss: float | None = None
    """What an exploding loss is measured against."""
    stale: int = 0
    """Validations since the best one."""
    best: list[tuple[float, int]] = field(default_factory=list)
    """Score and epoch of the best validations, best first."""
    top: float | None = None
    """The best score."""
    kept: list[int] = field(default_factory=list)
    """Epochs whose weights are on disk."""
    most: int = 0
    """Samples that go through the network at once since the memory ran out; 0 is a whole batch."""


class Checkpoints:
    """The directory of one training. All processes call each method; rank 0 writes."""

    def __init__(self, directory: Path, fabric: Any) -> None:
        self.directory, self._fabric = directory, fabric
        if fabric.is_global_zero:
            remove_leftovers(directory)

    @staticmethod
    def last(directory: Path) -> Path | None:
        """The state to resume from: the one of the latest step."""
        return max(directory.glob("step-*.ckpt"), default=None)

    def load(self, state: dict[str, Any]) -> Position:
        """Fill the module and the optimiser in ``state``, and its other entries.

        Raises:
            DataError: the checkpoint is damaged or belongs to other options.
            WeightsError: it could run code.
        """
        path = self.last(self.directory)
        assert path is not None
        state["position"] = None
        try:
            with torch_errors(path):
                self._fabric.load(path, state, weights_only=True)
            values = state["position"]
            known = {f.name for f in fields(Position)}
            if not isinstance(values, dict) or set(values) != known:
                raise DataError(f"{path} was written by another version of cellseg.")
        except (DataError, UnsafeWeightsError):
            raise
        except (*DAMAGED, WeightsError) as error:
            raise DataError(
                f"{path} cannot be resumed from: {first_line(error)}",
                hint="Start a new run; the weights of the best epochs are beside it.",
            ) from error
        values["best"] = [(float(score), int(epoch)) for score, epoch in values["best"]]
        return Position(**values)

    def save(self, state: dict[str, Any], position: Position) -> None:
        """Write the state of this step, then drop all that it makes superfluous."""
        path = self.directory / f"step-{position.step:08d}-epoch-{position.epoch:04d}.ckpt"
        temporary = self.directory / f".part-{path.name}"
        values = asdict(position)
        values["best"] = [list(pair) for pair in position.best]
        with storage_errors(path):
            self.directory.mkdir(parents=True, exist_ok=True)
            try:
                self._fabric.save(temporary, {**state, "position": values})
            except BaseException:
                discard(temporary)
                raise
            if self._fabric.is_global_zero:
                move_whole(temporary, path, durable=True)
                needed = {path, *(self.weights(epoch) for epoch in position.kept)}
                for file in self.directory.iterdir():
                    if file.suffix in (".ckpt", ".safetensors") and file not in needed:
                        remove(file)
        self._fabric.barrier()

    def weights(self, epoch: int) -> Path:
        """The file of the weights after an epoch."""
        return self.directory / f"epoch-{epoch:04d}.safetensors"

    def keep(self, tensors: dict[str, Any], epoch: int) -> None:
        """Write the weights after an epoch."""
        if self._fabric.is_global_zero:
            save_tensors(tensors, self.weights(epoch))
