"""Validation of a clip: objects are shown in the first frame, and followed without any help."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from cellseg.metrics import overlaps, tally
from cellseg_cellsam2.births import find_peaks, places_of
from cellseg_cellsam2.losses import enlarged, true_iou
from cellseg_cellsam2.matching import swapped
from cellseg_cellsam2.model import CellSam2
from cellseg_cellsam2.parts import Answer, Encoded
from cellseg_cellsam2.predict_options import CellSam2PredictOptions
from cellseg_cellsam2.prompting import Chances, shown
from cellseg_cellsam2.slots import Fate, Slots, Truth

_LEAST = 0.01  # of peaks that count for the average precision
Fraction = tuple[float, float]


@dataclass
class Figures:
    """Numerators and denominators."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, part: float, whole: float) -> None:
        """Add to both."""
        both = self.values.setdefault(name, [0.0, 0.0])
        both[0] += float(part)
        both[1] += float(whole)

    def ratio(self, name: str) -> float | None:
        """None where there is nothing to divide by."""
        part, whole = self.values.get(name, (0.0, 0.0))
        return part / whole if whole else None


class Followed:
    """One clip.

    Args:
        model: set to evaluation.
        truth: of a batch of one clip.
        most: objects that are shown.
        chances: of the clip.
    """

    def __init__(self, model: CellSam2, truth: Truth, most: int, chances: Chances) -> None:
        self.model, self.truth, self.most, self.chances = model, truth, most, chances
        self.figures = Figures()
        self._options = CellSam2PredictOptions()
        self.found: NDArray[np.int32] = np.zeros((0, 0), np.int32)
        """What was found in the last frame, ``(side, side)``."""
        self.wanted: NDArray[np.int32] = self.found
        """What there was to find."""

    def run(self) -> Figures:
        """Follow the objects of the first frame to the end of the clip.

        Returns:
            ``f1@0.5`` of the masks of all frames; ``iou`` of each shown or followed object with
            the truth; ``division_f1``; ``heatmap_f1`` of the peaks that prediction would take, and
            ``heatmap_ap``, their average precision in each frame; and ``score``, the mean of
            f1@0.5 and heatmap_ap of a clip with objects.
        """
        truth = self.truth
        for name in ("f1@0.5", "iou", "division_f1", "heatmap_f1", "heatmap_ap", "score"):
            self.figures.add(name, 0, 0)
        encoded = self.model.encode(self.model.prepare(truth.batch["image"]))
        slots: Slots | None = None
        expected = truth.begun(0).nonzero()[: self.most, 0]
        for frame in range(truth.frames):
            self._judge_heat(encoded.heat[frame], frame)
            if frame == 0:
                slots = self._shown(encoded, expected)
            else:
                expected = self._expected(expected, frame)
                slots = self._next(encoded, frame, slots, expected)
        parts = [self.figures.ratio(name) for name in ("f1@0.5", "heatmap_ap")]
        known = [part for part in parts if part is not None]
        if known:
            self.figures.add("score", sum(known) / len(known), 1)
        return self.figures

    def _expected(self, tracks: Tensor, frame: int) -> Tensor:
        """What has become of objects, whether or not they are followed well."""
        fate = Fate.of(self.truth, tracks, frame)
        return torch.cat([fate.track[~fate.divides], fate.daughters[fate.divides].flatten()])

    def _shown(self, encoded: Encoded, track: Tensor) -> Slots | None:
        """Each object shown by a point."""
        if not len(track):
            self._judge_labels(None, track, 0)
            return None
        video = torch.zeros_like(track)
        prompts = shown(self.truth.masks(track, 0), video, 0.0, 0.0, self.chances)
        answer = self.model.answer(encoded, video, prompts)
        row, token = torch.arange(len(track), device=track.device), torch.zeros_like(track)
        self._judge(answer, row, token, track, track, 0)
        memory = self.model.remember(
            encoded, video, answer.masks[:, 0], answer.tokens[:, 0], answer.presence, video
        )
        return Slots(video, track, memory, answer.presence <= 0)

    def _next(
        self, encoded: Encoded, frame: int, slots: Slots | None, expected: Tensor
    ) -> Slots | None:
        """What the model makes of its objects in the next frame."""
        fate = Fate.of(self.truth, expected, frame)  # of daughters too: nothing happens to them
        if slots is None or not len(slots):
            self._judge_labels(None, fate.track[fate.present], frame)
            return None
        image = torch.full_like(slots.video, frame)
        answer = self.model.answer(encoded, image, None, slots.memory, image)
        here = answer.presence > 0
        splits = here & (answer.division > 0)
        own = Fate.of(self.truth, slots.track, frame)
        right = (splits & own.divides).sum()
        self.figures.add("division_f1", 2 * right, splits.sum() + own.divides.sum())
        one, two = (~splits).nonzero()[:, 0], splits.nonzero()[:, 0]
        row = torch.cat([one, two, two])
        token = torch.cat([torch.zeros_like(one), torch.ones_like(two), torch.full_like(two, 2)])
        track = self._named(answer, own, row, token, frame)
        shown = here[row]
        self._judge(answer, row[shown], token[shown], track[shown], fate.track[fate.present], frame)
        memory = self.model.remember(
            encoded,
            image[row],
            answer.masks[row, token],
            answer.tokens[row, token],
            answer.presence[row],
            image[row],
            None if slots.memory is None else slots.memory.select(row),
        )
        return Slots(slots.video[row], track, memory, ~shown)

    def _named(self, answer: Answer, own: Fate, row: Tensor, token: Tensor, frame: int) -> Tensor:
        """Which true object each mask is; -1 for one too many. Where a division was missed, the
        mask goes for the larger daughter; where there was none, the first mask for the object."""
        track = own.track[row].clone()
        missed = own.divides[row] & (token == 0)
        track[missed] = own.daughters[row[missed], 0]
        track[(token == 2) & ~own.divides[row]] = -1
        for number in own.divides.nonzero()[:, 0]:
            pair = ((row == number) & (token > 0)).nonzero()[:, 0]
            if len(pair) == 2:
                daughters = own.daughters[number]
                masks = enlarged(answer.masks[number, 1:3], self.truth.batch["labels"].shape[-1])
                wanted = self.truth.masks(daughters, frame)
                other = bool(swapped(masks.sigmoid()[None], wanted[None]))
                track[pair] = daughters.flip(0) if other else daughters
        return track

    def _judge(
        self,
        answer: Answer,
        row: Tensor,
        token: Tensor,
        track: Tensor,
        expected: Tensor,
        frame: int,
    ) -> None:
        """Compare masks with the objects that they are, and with all that are expected."""
        truth = self.truth
        masks = enlarged(answer.masks[row, token], truth.batch["labels"].shape[-1])
        named = (track >= 0).nonzero()[:, 0]
        video = torch.zeros_like(track[named])
        iou = true_iou(
            masks[named] > 0, truth.masks(track[named], frame), truth.known(video, frame)
        )
        self.figures.add("iou", float(iou.sum()), max(len(expected), len(named)))
        self._judge_labels(masks, expected, frame)

    def _judge_labels(self, masks: Tensor | None, expected: Tensor, frame: int) -> None:
        """Compare a frame, each pixel given to the mask that is surest of it, with the objects
        that are expected."""
        labels = self.truth.batch["labels"][frame]
        wanted = torch.where(torch.isin(labels, self.truth.batch["label"][expected]), labels, 0)
        found = torch.zeros_like(labels)
        if masks is None:
            self.figures.add("iou", 0, len(expected))
        elif len(masks):
            sure, which = masks.max(0)
            found = torch.where((sure > 0) & (labels >= 0), which.int() + 1, 0)
        self.found, self.wanted = found.cpu().numpy(), wanted.cpu().numpy()
        total = tally(overlaps(self.found[None], self.wanted[None]))
        self.figures.add("f1@0.5", 2.0 * total.matched[0], float(total.n_true + total.n_pred))

    def _judge_heat(self, heat: Tensor, frame: int) -> None:
        """Peaks are right that are the first ones on an object, beginning with the highest."""
        labels = self.truth.batch["labels"][frame]
        wanted = int(self.truth.batch["present"][:, frame].sum())
        cells, values = find_peaks(heat, _LEAST)
        x, y = (places_of(cells, heat, labels.shape[-1]) + 0.5).long().unbind(1)
        seen: set[int] = set()
        right = []
        for label in labels[y, x].tolist():
            right.append(label > 0 and label not in seen)
            seen.add(label)
        taken = int((values >= self._options.heat_threshold).sum())
        self.figures.add("heatmap_f1", 2 * sum(right[:taken]), taken + wanted)
        if wanted:
            hits = np.cumsum(right) if right else np.zeros(0)
            precision = hits / np.arange(1, len(right) + 1)
            self.figures.add(
                "heatmap_ap", float(precision[np.array(right, bool)].sum()) / wanted, 1
            )
