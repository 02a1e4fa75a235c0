"""The training of a batch of clips: prompts in the first frame, then frame after frame by memory.

The model's own masks are remembered; whether objects are there, and divide, is told by the truth.
"""

from __future__ import annotations

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253
from torch.utils.checkpoint import checkpoint  # noqa: TID253

from cellseg_cellsam2.losses import (
    Losses,
    enlarged,
    heatmap_losses,
    mask_losses,
    presence_losses,
)
from cellseg_cellsam2.matching import swapped
from cellseg_cellsam2.model import CellSam2
from cellseg_cellsam2.options import CellSam2Options
from cellseg_cellsam2.parts import Answer, Encoded, Prompts
from cellseg_cellsam2.prompting import NONE, ON, Chances, corrected, on_background, shown
from cellseg_cellsam2.slots import Fate, Slots, Truth
from cellseg_cellsam2.targets import Batch


class Unrolled:
    """Answers to all prompts of a batch of clips, and their losses.

    Args:
        model: that answers.
        options: how objects are prompted.
        batch: see ``targets.collated``.
        chances: of the clips of the batch.
    """

    def __init__(
        self, model: CellSam2, options: CellSam2Options, batch: Batch, chances: Chances
    ) -> None:
        self.model, self.options, self.chances = model, options, chances
        self.truth = Truth(batch)
        self.losses = Losses(self.truth.videos, batch["image"])

    def run(self) -> Losses:
        """All frames of all clips."""
        batch, truth = self.truth.batch, self.truth
        encoded = self.model.encode(self.model.prepare(batch["image"]))
        every = torch.arange(truth.videos, device=truth.device)
        heat = heatmap_losses(encoded.heat, batch["heat"], batch["heat_weight"])
        for frame in range(truth.frames):
            self.losses.add("heatmap", heat[truth.image(every, frame)], every)
        slots = self._introduced(encoded, 0, None)
        for frame in range(1, truth.frames):
            slots = self._followed(encoded, frame, slots)
            slots = Slots.joined(slots, self._introduced(encoded, frame, slots))
        return self.losses

    def _introduced(self, encoded: Encoded, frame: int, slots: Slots | None) -> Slots | None:
        """New objects, shown by prompts; in the first frame they are corrected by clicks, and
        background is shown too."""
        truth, options = self.truth, self.options
        track = self._chosen(frame, slots)
        video = truth.batch["video"][track]
        prompts = None
        if len(track):
            objects, known = truth.masks(track, frame), truth.known(video, frame)
            prompts = shown(
                objects, video, options.box_probability, options.box_noise, self.chances
            )
        answer = self._first(encoded, frame, video, prompts)
        if prompts is None or answer is None:
            return None
        single = torch.zeros_like(track)
        image = truth.image(video, frame)
        self._judge_masks(answer, torch.arange(len(track)), single, objects, known, video)
        for _ in range(options.correction_points if frame == 0 else 0):
            logits = answer.masks[:, 0]
            found = enlarged(logits.detach(), objects.shape[-1]) > 0
            prompts = corrected(
                prompts,
                objects,
                logits,
                found,
                known,
                self.chances.numbers(video, 2),
                options.truth_click_probability,
            )
            answer = self.model.answer(encoded, image, prompts)
            self._judge_presence(answer.presence, torch.ones_like(video, dtype=torch.bool), video)
            self._judge_masks(answer, torch.arange(len(track)), single, objects, known, video)
        there = torch.ones_like(video, dtype=torch.bool)
        memory = None
        if not self._is_last(frame):
            memory = self.model.remember(
                encoded,
                image,
                answer.masks[:, 0],
                answer.tokens[:, 0],
                there,
                torch.full_like(video, frame),
            )
        return Slots(video, track, memory, ~there)

    def _is_last(self, frame: int) -> bool:
        """Whether nothing needs to be remembered any more."""
        return frame == self.truth.frames - 1

    def _first(
        self, encoded: Encoded, frame: int, video: Tensor, prompts: Prompts | None
    ) -> Answer | None:
        """The answer to prompts; background is asked along with them, and must not be there."""
        truth, most = self.truth, self.options.max_num_bkgd_objects
        points, videos = [], []
        for number in range(truth.videos if frame == 0 else 0):
            asked = int((video == number).sum())
            image = number * truth.frames
            wanted = min(most, asked) if asked else most
            same = torch.full((wanted,), number)
            chances = self.chances.numbers(same)[:, 0]
            labels = truth.batch["labels"][image]
            found = on_background(labels, encoded.heat[image], wanted, chances)
            points.append(found)
            videos += [number] * len(found)
        everyone, count = video, len(video)
        if videos:
            beside = torch.cat(points)[:, None]
            kinds = torch.full((len(videos), 1), ON, dtype=torch.int32, device=truth.device)
            everyone = torch.cat([video, video.new_tensor(videos)])
            if prompts is not None:
                beside = torch.cat([beside, torch.zeros_like(beside)], dim=1)
                kinds = torch.cat([kinds, torch.full_like(kinds, NONE)], dim=1)
                beside = torch.cat([prompts.points, beside])
                kinds = torch.cat([prompts.kinds, kinds])
            prompts = Prompts(beside, kinds)
        if prompts is None:
            return None
        answer = self.model.answer(encoded, truth.image(everyone, frame), prompts)
        real = torch.arange(len(everyone), device=truth.device) < count
        self._judge_presence(answer.presence, real, everyone)
        return Answer(
            answer.masks[:count],
            answer.ious[:count],
            answer.presence[:count],
            answer.division[:count],
            answer.tokens[:count],
        )

    def _chosen(self, frame: int, slots: Slots | None) -> Tensor:
        """New objects of a frame, at random, those that divide within the clip first; as many as
        there is room for."""
        batch, truth = self.truth.batch, self.truth
        rank = self.chances.numbers(batch["video"])[:, 0].to(truth.device)
        rank = rank - (batch["divides"] > frame).to(rank.dtype)
        new = truth.begun(frame)
        followed = batch["video"].new_empty(0)
        if slots is not None:
            new[slots.track[slots.track >= 0]] = False
            followed = slots.video
        room = self.options.max_num_objects - followed.bincount(minlength=truth.videos)
        chosen = []
        for video, most in enumerate(room.tolist()):
            own = (new & (batch["video"] == video)).nonzero()[:, 0]
            chosen.append(own[rank[own].argsort()[: max(most, 0)]])
        return torch.cat(chosen)

    def _followed(self, encoded: Encoded, frame: int, slots: Slots | None) -> Slots | None:
        """What becomes of remembered objects in the next frame."""
        if slots is None or not len(slots):
            return None
        truth = self.truth
        video, image = slots.video, truth.image(slots.video, frame)
        time = torch.full_like(video, frame)
        answer = self.model.answer(encoded, image, None, slots.memory, time)
        fate = Fate.of(truth, slots.track, frame)
        self._judge_presence(answer.presence, fate.present | fate.divides, video)
        judged = fate.judged.nonzero()[:, 0]
        division = presence_losses(answer.division[judged], fate.divides[judged])
        self.losses.add("division", division, video[judged])

        row, token, track, there = self._heirs(answer, fate, frame)
        shown = there.nonzero()[:, 0]
        self._judge_masks(
            answer,
            row[shown],
            token[shown],
            truth.masks(track[shown], frame),
            truth.known(video[row[shown]], frame),
            video[row[shown]],
        )
        kept = (there | ~slots.lost[row]).nonzero()[:, 0]  # a lost one is asked for once more
        row, token, track, there = row[kept], token[kept], track[kept], there[kept]
        memory = None
        if not self._is_last(frame):
            memory = self.model.remember(
                encoded,
                image[row],
                answer.masks[row, token],
                answer.tokens[row, token],
                there,
                time[row],
                None if slots.memory is None else slots.memory.select(row),
            )
        return Slots(video[row], track, memory, ~there)

    def _heirs(
        self, answer: Answer, fate: Fate, frame: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Who is followed on: of each the object it was, the token of its mask, who it is now, and
        whether it is visible; those that did not divide first, then daughters."""
        one, two = (~fate.divides).nonzero()[:, 0], fate.divides.nonzero()[:, 0]
        daughters = fate.daughters[two]
        truth = torch.stack([self.truth.masks(each, frame) for each in daughters.unbind(1)], 1)
        side = truth.shape[-1]
        masks = torch.stack(
            [enlarged(answer.masks[two, k].detach(), side).sigmoid() for k in (1, 2)], 1
        )
        daughters = torch.where(swapped(masks, truth)[:, None], daughters.flip(1), daughters)
        row = torch.cat([one, two, two])
        token = torch.cat([torch.zeros_like(one), torch.ones_like(two), torch.full_like(two, 2)])
        track = torch.cat([fate.track[one], *daughters.unbind(1)])
        there = torch.cat([fate.present[one], fate.divides[two], fate.divides[two]])
        return row, token, track, there

    def _judge_presence(self, logits: Tensor, there: Tensor, video: Tensor) -> None:
        self.losses.add("class", presence_losses(logits, there), video)

    def _judge_masks(
        self,
        answer: Answer,
        row: Tensor,
        token: Tensor,
        objects: Tensor,
        known: Tensor,
        video: Tensor,
    ) -> None:
        """Add the losses of the masks of visible objects; others add nothing."""
        if not len(row):
            return
        values = (answer.masks[row, token], answer.ious[row, token], objects, known)
        if self.model.recompute and torch.is_grad_enabled():
            mask, dice, iou = checkpoint(mask_losses, *values, use_reentrant=False)
        else:
            mask, dice, iou = mask_losses(*values)
        self.losses.add("mask", mask, video)
        self.losses.add("dice", dice, video)
        self.losses.add("iou", iou, video)
