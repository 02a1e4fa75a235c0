"""Checkpoints of a training loop of one's own: the last, and the best."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cellseg.errors import ConfigError, DataError, WeightsError
from cellseg.files import make_folder, remove, remove_leftovers, replacing, write_atomic

FILE = "checkpoints.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One checkpoint on disk."""

    epoch: int
    score: float | None
    """What it is ranked by."""
    path: Path


class CheckpointManager:
    """Keeps the last checkpoint and the best ones; others are removed.

    Named tensors become a safetensors file. Any other state, such as that of an optimiser, becomes
    a ``.pt`` file, which may hold tensors, numbers, texts, lists and mappings of them, and nothing
    else: it is read with ``weights_only=True``, so that reading one runs no code.

    Args:
        save_dir: the folder of the files; a manager goes on from what is there.
        keep_best: how many of the best to keep beside the last.
        mode: whether a higher or a lower score is better.

    Raises:
        ConfigError: a value is out of range.
        DataError: ``checkpoints.json`` in the folder is damaged, or was made with another mode.
    """

    def __init__(
        self, save_dir: str | Path, keep_best: int = 1, mode: Literal["max", "min"] = "max"
    ) -> None:
        if keep_best < 0 or mode not in ("max", "min"):
            raise ConfigError(
                f"keep_best {keep_best}, mode {mode!r}: expected 0 or more, and 'max' or 'min'."
            )
        self.save_dir, self.keep_best, self.mode = Path(save_dir), keep_best, mode
        self._kept = self._read()

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """Those that are kept, by epoch."""
        return sorted(self._kept, key=lambda one: one.epoch)

    @property
    def last(self) -> Checkpoint | None:
        """That of the latest epoch."""
        return max(self._kept, key=lambda one: one.epoch, default=None)

    @property
    def best(self) -> Checkpoint | None:
        """That of the best score, the earlier of equal ones; None where none has a score."""
        return next(iter(self._ranked(self._kept)), None)

    def save(self, state: Mapping[str, Any], *, epoch: int, score: float | None = None) -> Path:
        """Write a checkpoint, whole or not at all, and remove those that it makes superfluous.

        Args:
            state: tensors by name, or anything else that ``.pt`` files may hold.
            epoch: one that is there already is replaced.
            score: what it is ranked by; None, or NaN, is never among the best.

        Returns:
            The file.

        Raises:
            ConfigError: the state holds something that may not be stored.
            StorageError: the file cannot be written.
        """
        import torch

        make_folder(self.save_dir)
        remove_leftovers(self.save_dir)
        named = all(isinstance(value, torch.Tensor) for value in state.values())
        path = self.save_dir / f"epoch-{epoch:04d}.{'safetensors' if named else 'pt'}"
        if named:
            from cellseg.torch.weights import save_tensors

            save_tensors(dict(state), path)
        else:
            _refuse_objects(dict(state), "state")
            with replacing(path) as temporary:
                torch.save(dict(state), temporary)
        score = None if score is None or math.isnan(score) else float(score)
        others = [one for one in self._kept if one.epoch != epoch]
        kept = self._worth([*others, Checkpoint(epoch=epoch, score=score, path=path)])
        dropped = {one.path for one in self._kept} - {one.path for one in kept}
        self._kept = kept
        self._write()
        for file in dropped:
            if file.exists():
                remove(file)
        return path

    def load(self, which: int | Literal["best", "last"] = "best") -> dict[str, Any]:
        """The state of a checkpoint, on the CPU.

        Args:
            which: an epoch, the best, or the last.

        Raises:
            ConfigError: there is no such checkpoint.
            WeightsError: the file is gone or damaged, or holds more than tensors and plain values.
        """
        found = self._find(which)
        from cellseg.torch.reading import read_file

        values = read_file(found.path)
        if not isinstance(values, dict):
            raise WeightsError(f"{found.path} holds no state, but a {type(values).__name__}.")
        return values

    def _find(self, which: int | str) -> Checkpoint:
        if isinstance(which, int):
            found = next((one for one in self._kept if one.epoch == which), None)
        elif which in ("best", "last"):
            found = self.best if which == "best" else self.last
        else:
            raise ConfigError(f"{which!r}: expected an epoch, 'best' or 'last'.")
        if found is None:
            epochs = ", ".join(str(one.epoch) for one in self.checkpoints) or "none"
            raise ConfigError(
                f"{self.save_dir} has no checkpoint {which!r}.", hint=f"Epochs there: {epochs}."
            )
        return found

    def _ranked(self, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
        sign = -1 if self.mode == "max" else 1
        scored = [(sign * one.score, one) for one in checkpoints if one.score is not None]
        return [one for _, one in sorted(scored, key=lambda pair: (pair[0], pair[1].epoch))]

    def _worth(self, checkpoints: list[Checkpoint]) -> list[Checkpoint]:
        """Those to keep: the best ones and the last."""
        last = max(checkpoints, key=lambda one: one.epoch)
        best = self._ranked(checkpoints)[: self.keep_best]
        return best if last in best else [*best, last]

    def _write(self) -> None:
        rows = [{"epoch": c.epoch, "score": c.score, "file": c.path.name} for c in self.checkpoints]
        content = {"mode": self.mode, "checkpoints": rows}
        write_atomic(self.save_dir / FILE, json.dumps(content, indent=2) + "\n")

    def _read(self) -> list[Checkpoint]:
        file = self.save_dir / FILE
        if not file.exists():
            return []
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            mode = content["mode"]
            kept = [
                Checkpoint(
                    epoch=int(row["epoch"]),
                    score=None if row["score"] is None else float(row["score"]),
                    path=self.save_dir / Path(row["file"]).name,
                )
                for row in content["checkpoints"]
            ]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{file}: is no list of checkpoints.", hint="Remove it.") from error
        if mode != self.mode:
            raise DataError(
                f"{file}: was written with mode {mode!r}, not {self.mode!r}.",
                hint="Choose that, or another save_dir.",
            )
        return kept


def _refuse_objects(value: Any, where: str) -> None:
    """Raise a ConfigError for what ``weights_only=True`` would not read."""
    import torch

    if isinstance(value, torch.Tensor) or type(value) in (type(None), str, int, float, bool):
        return
    if type(value) in (dict, OrderedDict):
        for key, each in value.items():
            if not isinstance(key, str | int):
                raise ConfigError(f"{where} has a key that is neither text nor number: {key!r}.")
            _refuse_objects(each, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for number, each in enumerate(value):
            _refuse_objects(each, f"{where}[{number}]")
    else:
        raise ConfigError(
            f"{where} is a {type(value).__name__}: a checkpoint holds tensors, numbers, texts,"
            " lists and mappings of them."
        )
