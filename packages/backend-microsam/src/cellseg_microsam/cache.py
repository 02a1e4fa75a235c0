"""Patches that are encoded once, and kept on disk while a decoder learns from them."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray

from cellseg.errors import InterruptedRunError, StorageError
from cellseg.events import Emit, Note
from cellseg.files import remove, storage_errors, write_atomic
from cellseg.torch.patches import Item, ValidationPatches
from cellseg_microsam.fixed_patches import FixedPatches, Versions
from cellseg_microsam.patches import Targets, as_tensor

Encode = Callable[[torch.Tensor], torch.Tensor]
"""Images ``(n, c, y, x)`` to embeddings ``(n, channels, grid, grid)`` on the CPU."""
_TOLD_EVERY = 30.0  # seconds


class Store:
    """Embeddings and labels by number, in files that are mapped into memory.

    What was stored before is kept if it has the same key, and removed if not.

    Args:
        directory: of its own; made where it is missing.
        key: says what is stored; JSON.
        count: how many.
        embedding: shape of one, ``(channels, grid, grid)``.
        patch: shape of the labels of one, ``(y, x)``.
        dtype: in which embeddings are kept.

    Raises:
        StorageError: there is not room enough, or no permission.
    """

    def __init__(
        self,
        directory: Path,
        key: Mapping[str, Any],
        count: int,
        embedding: tuple[int, ...],
        patch: tuple[int, int],
        dtype: str = "float16",
    ) -> None:
        self.directory = directory
        self._shapes = {
            "embeddings": ((count, *embedding), np.dtype(dtype)),
            "labels": ((count, *patch), np.dtype(np.uint32)),
            "done": ((count,), np.dtype(np.bool_)),
        }
        self._open: dict[str, Any] = {}
        text = json.dumps({**key, "shapes": [[s, str(d)] for s, d in self._shapes.values()]})
        said = directory / "key.json"
        if not said.exists() or said.read_text(encoding="utf-8") != text:
            self._make()
            write_atomic(said, text)

    @property
    def bytes(self) -> int:
        """How much it takes when it is full."""
        return sum(_size(shape, dtype) for shape, dtype in self._shapes.values())

    @property
    def missing(self) -> list[int]:
        """Numbers of what is not stored yet."""
        return np.flatnonzero(~self._array("done")).tolist()

    def put(
        self, numbers: Sequence[int], embeddings: torch.Tensor, labels: Sequence[NDArray[np.uint32]]
    ) -> None:
        """Store some, so that a kill at any moment does no harm."""
        values = embeddings.float().numpy()
        with storage_errors(self.directory):
            for number, value, ids in zip(numbers, values, labels, strict=True):
                self._array("embeddings", writing=True)[number] = value
                self._array("labels", writing=True)[number] = ids
            for name in ("embeddings", "labels"):
                self._array(name).flush()
            self._array("done", writing=True)[list(numbers)] = True
            self._array("done").flush()

    def get(self, number: int) -> tuple[torch.Tensor, NDArray[np.uint32]]:
        """An embedding as float32, and the labels."""
        embedding = np.array(self._array("embeddings")[number], np.float32)
        return torch.from_numpy(embedding), np.array(self._array("labels")[number])

    def remove(self) -> None:
        """Delete the files."""
        self._open.clear()
        remove(self.directory)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # each process maps the files itself

    def _array(self, name: str, writing: bool = False) -> Any:
        if name not in self._open or (writing and self._open[name].mode == "r"):
            mode: Any = "r+" if writing else "r"
            path = self.directory / f"{name}.npy"
            self._open[name] = np.lib.format.open_memmap(path, mode)
        return self._open[name]

    def _make(self) -> None:
        if self.directory.exists():
            remove(self.directory)
        with storage_errors(self.directory):
            self.directory.mkdir(parents=True)
            free = shutil.disk_usage(self.directory).free
            if free < self.bytes:
                self.directory.rmdir()
                raise StorageError(
                    f"{self.directory}: the embeddings take {gibibytes(self.bytes)}, but"
                    f" {gibibytes(free)} are free.",
                    hint="Keep fewer: --copies, --n-samples; or none: --no-cache-embeddings.",
                )
            for name, (shape, dtype) in self._shapes.items():
                path = self.directory / f"{name}.npy"
                np.lib.format.open_memmap(path, "w+", dtype, shape).flush()


def _size(shape: Sequence[int], dtype: np.dtype[Any]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def gibibytes(count: int) -> str:
    """A size as users read it."""
    return f"{count / 2**30:.2g} GiB"


def fill(
    store: Store,
    versions: Versions,
    encode: Encode,
    batch: int,
    emit: Emit,
    interrupted: Callable[[], bool],
) -> None:
    """Encode what is missing.

    Args:
        store: to fill.
        versions: what it holds.
        encode: the frozen encoder.
        batch: how many to encode at once.
        emit: told how much there is to do, and now and then how much is done.
        interrupted: asked after each batch.

    Raises:
        InterruptedRunError: it said so; what is done is stored.
    """
    missing = store.missing
    if not missing:
        return
    emit(
        Note(
            f"Encoding {len(missing)} patches, each once; until training is done, they take"
            f" {gibibytes(store.bytes)} in {store.directory}."
        )
    )
    told = time.monotonic()
    reading = versions.read(missing)
    done = 0
    while done < len(missing):
        some = list(islice(reading, batch))
        numbers, images, labels = zip(*some, strict=True)
        embeddings = encode(torch.stack([as_tensor(image) for image in images]))
        store.put(numbers, embeddings, [ids[0] for ids in labels])
        done += len(some)
        if interrupted():
            raise InterruptedRunError(
                f"Stopped after encoding {done} of {len(missing)} patches; they are kept in"
                f" {store.directory}.",
                hint=f"Go on with: cellseg resume {store.directory.parent.parent}",
            )
        if time.monotonic() - told > _TOLD_EVERY:
            emit(Note(f"Encoded {done} of {len(missing)} patches."))
            told = time.monotonic()


def encoder_checksum(encoder: torch.nn.Module) -> str:
    """Of all weights of an encoder."""
    digest = hashlib.sha256()
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


class CachedPatches:
    """Sample ``i`` of the training: an ``embedding`` and its targets, as a function of ``i``.

    Each round sees each patch once in a random order, every time in another of its versions; where
    images have weights, patches are drawn by them.

    Args:
        store: filled.
        fixed: the patches in it.
        make: makes targets.
        copies: versions of each patch.
        seed: another one gives another order.
    """

    def __init__(
        self, store: Store, fixed: FixedPatches, make: Targets, copies: int, seed: int
    ) -> None:
        self._store, self._make, self._seed = store, make, seed
        self._count, self._copies, self._shares = len(fixed), copies, fixed.shares

    def version(self, index: int) -> int:
        """The number in the store of what sample ``index`` is."""
        turn, place = divmod(index, self._count)
        if self._shares is None:
            patch = int(
                np.random.default_rng((self._seed, turn, 4)).permutation(self._count)[place]
            )
        else:
            rng = np.random.default_rng((self._seed, index, 5))
            patch = int(rng.choice(self._count, p=self._shares))
        return patch * self._copies + (turn + patch) % self._copies

    def __getitem__(self, index: int) -> Item:
        embedding, labels = self._store.get(self.version(index))
        return {"embedding": embedding, **self._make.of(labels, index)}


class CachedValidation:
    """Batches of one validation patch each, with its ``embedding``.

    Args:
        store: filled; it holds them behind those of the training.
        val: the patches.
        first: number of the first one in the store.
    """

    def __init__(self, store: Store, val: ValidationPatches, first: int) -> None:
        self._store, self._val, self._first = store, val, first

    def __len__(self) -> int:
        return len(self._val)

    def __getitem__(self, index: int) -> Item:
        embedding, _ = self._store.get(self._first + index)
        return {**self._val[index], "embedding": embedding[None]}
