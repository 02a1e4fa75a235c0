"""Follow cells through a movie: divisions, births, deaths, lost and found.

SAM 2 propagates each object by what it remembers of it (Ravi et al., arXiv:2408.00714). Two more
heads say whether an object divides, whose daughters are two of the masks of the same answer, and
where the middles of cells are, which finds those that nobody follows yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor  # noqa: TID253

from cellseg import Tile
from cellseg.data import Tracked
from cellseg.errors import DataError
from cellseg.torch.devices import memory_errors
from cellseg.torch.frames import Frame
from cellseg.torch.pixels import check_plane
from cellseg_cellsam2.apart import take_apart
from cellseg_cellsam2.births import find_new
from cellseg_cellsam2.candidates import Candidates, best, choose, numbered, painted
from cellseg_cellsam2.encoding import MEMORY_HINT, Encoder, blank
from cellseg_cellsam2.model import CellSam2
from cellseg_cellsam2.parts import Encoded, Memory
from cellseg_cellsam2.predict_options import CellSam2PredictOptions
from cellseg_cellsam2.tracking_state import EVER, TrackingState, narrowed

_SAME = 0.1
"""A new object is a track that was lost, if it overlaps its last mask by at least this IoU."""
_YOUNG = 3
"""Frames after which a daughter may divide by the heatmap: no cell divides twice in fewer, but
heatmaps waver."""


class CellTracker:
    """Follows the cells of one field of view (``cellseg.specs.Tracker``).

    What is known does not grow with the frames: each track has a memory of fixed size, and is
    forgotten after more than ``max_gap`` frames that do not show it.

    Args:
        model: set to evaluation.
        options: thresholds.
        scale: pixels of the model's input for a pixel of the image.
        state: of another tracker, to go on from; None begins with the first frame.

    Raises:
        DataError: the state cannot be used.
        DeviceError: the device cannot compute in the precision.
    """

    def __init__(
        self,
        model: CellSam2,
        options: CellSam2PredictOptions,
        scale: float = 1.0,
        state: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self._encoder = Encoder.of(model, scale, options)
        self._model, self._options = model, options
        self._state = TrackingState()
        if state is not None:
            self._state = TrackingState.of_arrays(state, model.device)

    def state(self) -> Mapping[str, NDArray[Any]]:
        """All that the next step depends on."""
        return self._state.arrays()

    def step(self, tile: Tile) -> Tracked:
        """The cells of the next frame.

        A frame without any contrast shows nothing. Pixels of tracks go before those of new objects;
        among them the better score wins, and those that were lost give way to the others.

        Args:
            tile: ``(c, 1, y, x)``, of the same shape in all frames.

        Returns:
            Labels ``(1, y, x)`` uint32. Scores are the probability of presence times the estimated
            IoU of the mask.

        Raises:
            DataError: the tile has another shape than that before, or one that cannot be seen.
            DeviceError: the memory does not suffice.
        """
        check_plane(tile.image, "SAM 2", "cellsam2")
        size = (tile.image.shape[2], tile.image.shape[3])
        if self._state.size not in (None, size):
            raise DataError(f"A frame of {size} pixels comes after one of {self._state.size}.")
        self._state = replace(self._state, size=size)
        if blank(tile):
            every = np.arange(len(self._state.ids))
            self._state = self._state.without(every, self._options.max_gap)
            return Tracked(np.zeros(tile.image.shape[1:], np.uint32))
        with memory_errors(MEMORY_HINT), self._encoder.arithmetic():
            return self._step(self._encoder.encode([tile.image]), self._encoder.frame(size))

    def _step(self, encoded: Encoded, frame: Frame) -> Tracked:
        state = self._state
        shown, labels = self._follow(encoded, frame)
        ids, parents, next_id = _identities(state, shown)
        lost = np.setdiff1d(np.arange(len(state.ids)), shown.owner if shown else ())
        born = find_new(self._model, encoded, 0, frame, self._options, labels > 0)
        if born is not None:
            owner = _found_again(born.found, state, lost)
            new = owner < 0
            again = state.ids[owner] if len(state.ids) else owner
            ids = np.concatenate([ids, np.where(new, next_id + np.cumsum(new) - 1, again)])
            next_id += int(np.count_nonzero(new))
            lost = np.setdiff1d(lost, owner)
            labels = np.where(born.labels > 0, born.labels + (len(shown) if shown else 0), labels)
            found = replace(born.found, owner=owner)
            shown = found if shown is None else Candidates.joined([shown, found])
        self._remember(encoded, shown, ids, lost, next_id)
        table = np.concatenate([[0], ids]).astype(np.uint32)
        scores = {
            int(i): min(max(one.score, 0.0), 1.0)
            for i, one in zip(ids, shown.masks if shown else (), strict=True)
        }
        return Tracked(table[labels][None], parents, scores)

    def _follow(
        self, encoded: Encoded, frame: Frame
    ) -> tuple[Candidates | None, NDArray[np.uint32]]:
        """The tracks that are visible, by their places in the state, and the pixels ``(y, x)`` of
        each by its number, from 1."""
        state, options = self._state, self._options
        parts = []
        for start in range(0, len(state.ids), self._model.chunk):
            chunk = np.arange(start, min(start + self._model.chunk, len(state.ids)))
            which = torch.from_numpy(chunk).to(self._model.device)
            answer = self._model.answer(
                encoded,
                torch.zeros_like(which),
                memory=state.remembered(which),
                time=torch.full_like(which, state.time),
            )
            # What was lost is not seen to divide.
            seen = torch.from_numpy(state.missed[chunk] == 0).to(which.device)
            parts.append(choose(answer, frame, options, divide=seen).asked_by(chunk))
        if not parts:
            return None, np.zeros(frame.size, np.uint32)
        found = Candidates.joined(parts)
        if options.split_by_heatmap and options.use_heatmap:
            grown = state.time - state.began >= _YOUNG
            lost = state.missed > 0
            found = take_apart(self._model, encoded, frame, options, found, state.seen, lost, grown)
        found = found.select(best(found, options, last=state.missed[found.owner] > 0))
        labels, kept = numbered(painted(found.masks, frame.size), len(found), options.min_size)
        return found.select(kept), labels

    def _remember(
        self,
        encoded: Encoded,
        shown: Candidates | None,
        ids: NDArray[np.int64],
        lost: NDArray[np.int64],
        next_id: int,
    ) -> None:
        """Put a frame into the state.

        Args:
            encoded: the frame.
            shown: what it shows, by places in the state before; -1 for new objects.
            ids: of these.
            lost: places in the state before of tracks that it does not show.
            next_id: the first one that is free.
        """
        before = self._state
        after = replace(before.without(lost, self._options.max_gap), next_id=next_id)
        if len(after.ids):
            # Absent objects are remembered as such.
            assert after.memory is not None and after.seen is not None
            masks = -torch.ones(after.seen.shape, device=self._model.device)
            tokens = masks.new_zeros(len(masks), encoded.embedding.shape[1])
            place = torch.arange(len(masks), device=masks.device)
            after = after.with_memory(self._encoded_memory(encoded, masks, tokens, after, place))
        for known in (True, False):
            if shown is None:
                break
            chosen = np.flatnonzero((shown.owner >= 0) == known)
            if not len(chosen):
                continue
            part = shown.select(chosen.tolist())
            owner = torch.from_numpy(part.owner).to(self._model.device)
            memory = self._encoded_memory(
                encoded, part.logits, part.tokens, before, owner if known else None
            )
            began = np.full(len(chosen), EVER)
            if known:
                same = ids[chosen] == before.ids[part.owner]
                began = np.where(same, before.began[part.owner], before.time)
            after = after.joined(ids[chosen], began, part.logits > 0, memory)
        self._state = after

    def _encoded_memory(
        self,
        encoded: Encoded,
        masks: Tensor,
        tokens: Tensor,
        state: TrackingState,
        place: Tensor | None,
    ) -> Memory:
        """The memory of ``o`` objects with this frame in it, a chunk at a time: what is computed
        has twice the bits of what is kept.

        Args:
            encoded: the frame.
            masks: ``(o, 4g, 4g)`` logits; an empty one is that of an absent object.
            tokens: ``(o, d)``: of the masks.
            state: what was known before.
            place: ``(o,)`` int64: of each object in the state; None where they are new.
        """
        parts = []
        for rows in torch.arange(len(masks), device=masks.device).split(self._model.chunk):
            memory = self._model.remember(
                encoded,
                torch.zeros_like(rows),
                masks[rows],
                tokens[rows],
                (masks[rows] > 0).flatten(1).any(1),
                torch.full_like(rows, self._state.time),
                None if place is None else state.remembered(place[rows]),
            )
            parts.append(narrowed(memory))
        return Memory.joined(parts)


def _identities(
    state: TrackingState, shown: Candidates | None
) -> tuple[NDArray[np.int64], dict[int, int], int]:
    """The ids of what was followed, the mothers of new ones, and the next free id.

    Daughters get new ids, if both of them are there; a single one is its mother.
    """
    if shown is None:
        return np.zeros(0, np.int64), {}, state.next_id
    ids, parents, next_id = state.ids[shown.owner], {}, state.next_id
    for owner, count in zip(*np.unique(shown.owner, return_counts=True), strict=True):
        if count == 2:
            for place in np.flatnonzero(shown.owner == owner):
                parents[next_id] = int(state.ids[owner])
                ids[place] = next_id
                next_id += 1
    return ids, parents, next_id


def _found_again(
    born: Candidates, state: TrackingState, lost: NDArray[np.int64]
) -> NDArray[np.int64]:
    """``(k,)``: for each new object the place in the state of the lost track that it is, or -1.

    Objects and tracks are paired so that their overlaps sum to the most.
    """
    owner = np.full(len(born), -1, np.int64)
    if not len(lost) or state.seen is None:
        return owner
    now = (born.logits > 0).flatten(1).cpu().numpy().astype(np.float32)
    then = state.seen[torch.from_numpy(lost).to(state.seen.device)].flatten(1).cpu().numpy()
    shared = now @ then.astype(np.float32).T
    overlap = shared / np.maximum(now.sum(1)[:, None] + then.sum(1)[None] - shared, 1)
    overlap[overlap < _SAME] = 0
    for new, old in zip(*linear_sum_assignment(overlap, maximize=True), strict=True):
        if overlap[new, old] > 0:
            owner[new] = lost[old]
    return owner
