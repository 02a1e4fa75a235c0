"""SAM 2.1 that knows divisions and births, over flat batches of objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253
from torch.nn import functional as F  # noqa: TID253
from torch.utils.checkpoint import checkpoint  # noqa: TID253

from cellseg.torch.sam2.model import MEAN, STD
from cellseg_cellsam2.decoder import decode
from cellseg_cellsam2.heat import HeatHead
from cellseg_cellsam2.memory import Recalled, add, first, recall, within
from cellseg_cellsam2.parts import Answer, Encoded, Memory, Prompts

_ABSENT = -1024.0
"""The logit that SAM 2 gives all pixels of an object that is not there."""
_RARE = -3.0
"""The logit of a division before anything is learned: one in twenty."""


class CellSam2(nn.Module):
    """A ``SAM2Base`` with a division token and head, and a heatmap head.

    Objects of all videos are in one axis; ``image (o,)`` int64 says of which image each is. Nothing
    that is said of one object depends on the others.

    Parameters are those of ``sam2`` under ``sam.``, and the new ones under ``division_token``,
    ``division_head.`` and ``heat.``; what they say changes nothing of what SAM 2 says.

    Args:
        sam: a ``sam2.modeling.sam2_base.SAM2Base`` of SAM 2.1.
        size: its name among ``cellseg.torch.sam2.sizes.SIZES``.
    """

    chunk: int = 64
    """Objects that go through memory attention and decoder at once; the results do not depend on
    it."""
    recompute: bool = False
    """Whether activations are computed again for the gradient instead of kept (Chen et al.,
    arXiv:1604.06174)."""

    def __init__(self, sam: nn.Module, size: str) -> None:
        from sam2.modeling.sam2_utils import MLP

        super().__init__()
        self.sam: Any = sam
        self.size = size
        width = self.sam.hidden_dim
        self.division_token = nn.Embedding(1, width)
        self.division_head = MLP(width, width, 1, 3)
        nn.init.constant_(self.division_head.layers[-1].bias, _RARE)
        self.heat = HeatHead(width)
        for name, values in (("_mean", MEAN), ("_std", STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    @property
    def side(self) -> int:
        """Pixels of the square input."""
        return int(self.sam.image_size)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.division_token.weight.device

    def prepare(self, images: Tensor) -> Tensor:
        """Planes ``(n, 1 or 3, side, side)``, 0..1, standardised as SAM 2 takes them ``(n, 3, side,
        side)``; what is beyond is cut off."""
        if images.shape[1] not in (1, 3):
            raise ValueError(f"images have 1 or 3 channels, not {images.shape[1]}")
        return (images.clamp(0, 1) - self._mean) / self._std

    def encode(self, prepared: Tensor) -> Encoded:
        """Each image once."""
        encoder, decoder = self.sam.image_encoder, self.sam.sam_mask_decoder
        levels, places = encoder.neck(self._stages(prepared))
        shown = len(levels) - encoder.scalp
        fine, middle, coarse = levels[shown - 3 : shown]
        return Encoded(
            embedding=coarse,
            position=places[shown - 1][:1],
            fine=(decoder.conv_s0(fine), decoder.conv_s1(middle)),
            heat=self.heat((fine, middle, coarse)),
        )

    def answer(
        self,
        encoded: Encoded,
        image: Tensor,
        prompts: Prompts | None = None,
        memory: Memory | None = None,
        time: Tensor | None = None,
    ) -> Answer:
        """What the decoder says of objects.

        Args:
            encoded: of ``n`` images.
            image: ``(o,)`` int64: the image of each object.
            prompts: that show the objects, or None for those that are only remembered.
            memory: of the same objects, or None where they are new; so are those whose slots are
                all empty.
            time: ``(o,)`` int64: the frame that the images are, for ages of memories; needed with
                ``memory``.
        """
        if memory is not None and time is None:
            raise ValueError("memories need the time")
        if not len(image):
            return self._silence(encoded)
        parts = []
        order = []
        for rows in self._alike(len(image), prompts, memory, time):
            asked = None if prompts is None else _some(prompts, rows)
            held = None if memory is None else memory.select(rows)
            now = None if time is None else time[rows]
            parts.append(self._again(self._answer, encoded, image[rows], asked, held, now))
            order.append(rows)
        if len(parts) == 1:
            return Answer(*parts[0])
        back = torch.cat(order).argsort()
        return Answer(*(torch.cat(each)[back] for each in zip(*parts, strict=True)))

    def remember(
        self,
        encoded: Encoded,
        image: Tensor,
        masks: Tensor,
        tokens: Tensor,
        presence: Tensor,
        time: Tensor,
        memory: Memory | None = None,
    ) -> Memory:
        """The memory with this frame in it; the oldest frame but the first goes where it is full,
        and a frame that is in it already is replaced.

        Args:
            encoded: of ``n`` images.
            image: ``(o,)`` int64.
            masks: ``(o, 4g, 4g)`` logits of the mask that each object has.
            tokens: ``(o, d)``: the output token of that mask.
            presence: ``(o,)`` logits or bool: objects that are absent are remembered as such.
            time: ``(o,)`` int64: the frame.
            memory: of the same objects before, or None where they are new.
        """
        sam = self.sam
        present = presence if presence.dtype == torch.bool else presence > 0
        which, same = _different(image, present)
        parts = [
            self._again(self._encode_memory, encoded, image[r], masks[r], tokens[r], present[r])
            for r in which.split(self.chunk)
            if len(r)
        ]
        if parts:
            features, pointers = (torch.cat(each)[same] for each in zip(*parts, strict=True))
        else:
            grid = encoded.embedding.shape[2:]
            features, pointers = encoded.embedding.new_zeros((0, sam.mem_dim, *grid)), tokens
        if memory is None:
            return first(features, pointers, time, sam.num_maskmem, sam.max_obj_ptrs_in_encoder)
        return add(memory, features, pointers, time)

    def _stages(self, prepared: Tensor) -> list[Tensor]:
        """What the trunk of the image encoder, a ``Hiera``, says at the end of each stage."""
        trunk = self.sam.image_encoder.trunk
        x = trunk.patch_embed(prepared)
        x = x + trunk._get_pos_embed(x.shape[1:3])
        stages = []
        for number, block in enumerate(trunk.blocks):
            x = self._again(block, x)
            if number in trunk.stage_ends:
                stages.append(x.permute(0, 3, 1, 2))
        return stages

    def _again(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a function, with activations kept or not."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(function, *arguments, use_reentrant=False)
        return function(*arguments)

    def _alike(
        self, count: int, prompts: Prompts | None, memory: Memory | None, time: Tensor | None
    ) -> Iterator[Tensor]:
        """Objects with equally many points and memories, ``chunk`` at most: what would make them
        equally many would be attended to."""
        keys = []
        if prompts is not None:
            keys.append((prompts.kinds >= 0).sum(dim=1))
        if memory is not None and time is not None:
            keys.append(within(memory.times, time).sum(dim=1))
            keys.append(within(memory.pointer_times, time).sum(dim=1))
        if keys:
            _, group = torch.unique(torch.stack(keys, dim=1), dim=0, return_inverse=True)
            order = group.argsort(stable=True)
            sizes = group.bincount().tolist()
        else:
            order, sizes = torch.arange(count, device=self.device), [count]
        for rows in order.split(sizes):
            yield from rows.split(self.chunk)

    def _answer(
        self,
        encoded: Encoded,
        image: Tensor,
        prompts: Prompts | None,
        memory: Memory | None,
        time: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """The fields of an ``Answer`` of objects that are alike."""
        count, sam = len(image), self.sam
        embedding = encoded.embedding[image]
        recalled = None if memory is None or time is None else recall(memory, time)
        if recalled is None or not recalled.ages.shape[1]:
            embedding = embedding + sam.no_mem_embed.view(1, -1, 1, 1)
        else:
            embedding = self._look_back(embedding, encoded.position, recalled)
        sparse, dense = sam.sam_prompt_encoder(
            points=_points(prompts, count, embedding.device),
            boxes=None,
            masks=None if prompts is None or prompts.masks is None else prompts.masks[:, None],
        )
        logits, ious, tokens, presence, read = decode(
            sam.sam_mask_decoder,
            embedding,
            sam.sam_prompt_encoder.get_dense_pe(),
            sparse,
            dense,
            (_of_image(encoded.fine[0], image), _of_image(encoded.fine[1], image)),
            self.division_token.weight,
        )
        division = self.division_head(read)[:, 0]
        return logits.float(), ious.float(), presence.float(), division.float(), tokens

    def _look_back(self, embedding: Tensor, position: Tensor, recalled: Recalled) -> Tensor:
        """The embedding ``(o, d, g, g)``, told of what is remembered: memory attention."""
        sam = self.sam
        count, _, *grid = embedding.shape
        frames = recalled.features.to(embedding.dtype)
        place = sam.memory_encoder.position_encoding(frames[:1, 0])
        age = sam.maskmem_tpos_enc[:, 0, 0][recalled.ages - 1]  # that of the first frame is last
        places = place[:, None] + age[..., None, None]
        memory = [frames.permute(1, 3, 4, 0, 2).flatten(0, 2)]
        where = [places.permute(1, 3, 4, 0, 2).flatten(0, 2)]
        pointers, ages = self._pointer_tokens(recalled)
        memory.append(pointers.transpose(0, 1))
        where.append(ages.transpose(0, 1))
        told = sam.memory_attention(
            curr=embedding.flatten(2).permute(2, 0, 1),
            curr_pos=position.flatten(2).permute(2, 0, 1).expand(-1, count, -1),
            memory=torch.cat(memory),
            memory_pos=torch.cat(where),
            num_obj_ptr_tokens=len(memory[1]),
        )
        return told.permute(1, 2, 0).unflatten(2, grid)

    def _pointer_tokens(self, recalled: Recalled) -> tuple[Tensor, Tensor]:
        """Pointers cut into tokens as wide as memories, ``(o, q d / m, m)``, and their ages,
        encoded."""
        from sam2.modeling.sam2_utils import get_1d_sine_pe

        sam, pointers = self.sam, recalled.pointers
        pieces = sam.hidden_dim // sam.mem_dim
        if sam.add_tpos_enc_to_obj_ptrs:
            age = recalled.pointer_ages / (sam.max_obj_ptrs_in_encoder - 1)
            width = sam.hidden_dim if sam.proj_tpos_enc_in_obj_ptrs else sam.mem_dim
            encoded = sam.obj_ptr_tpos_proj(get_1d_sine_pe(age, dim=width))
        else:
            encoded = pointers.new_zeros((*pointers.shape[:2], sam.mem_dim))
        tokens = pointers.unflatten(2, (pieces, sam.mem_dim)).flatten(1, 2)
        return tokens, encoded.repeat_interleave(pieces, dim=1)

    def _encode_memory(
        self, encoded: Encoded, image: Tensor, masks: Tensor, tokens: Tensor, present: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Features ``(o, m, g, g)`` and pointers ``(o, d)`` of a frame."""
        sam = self.sam
        masks = torch.where(present[:, None, None], masks.float(), _ABSENT)[:, None]
        size = (sam.image_size, sam.image_size)
        masks = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
        masks = torch.sigmoid(masks) * sam.sigmoid_scale_for_mem_enc + sam.sigmoid_bias_for_mem_enc
        seen = sam.memory_encoder(encoded.embedding[image], masks, skip_mask_sigmoid=True)
        features = seen["vision_features"]
        nothing = sam.no_obj_embed_spatial.to(features.dtype)[..., None, None]
        features = torch.where(present[:, None, None, None], features, features + nothing)
        pointers = sam.obj_ptr_proj(tokens)
        return features, torch.where(present[:, None], pointers, sam.no_obj_ptr.to(pointers.dtype))

    def _silence(self, encoded: Encoded) -> Answer:
        """The answer of no objects."""
        new, side = encoded.embedding.new_zeros, encoded.fine[0].shape[2]
        width = encoded.embedding.shape[1]
        count = self.sam.sam_mask_decoder.num_mask_tokens
        return Answer(
            new((0, count, side, side)), new((0, count)), new(0), new(0), new((0, count, width))
        )


def _some(prompts: Prompts, rows: Tensor) -> Prompts:
    return Prompts(
        **{
            field.name: None if (value := getattr(prompts, field.name)) is None else value[rows]
            for field in fields(prompts)
        }
    )


def _different(image: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Objects ``(k,)`` whose memories differ, and for each of all ``(o,)`` which of them has its
    memory: those that are absent from one image have the same."""
    every = torch.arange(len(image), device=image.device)
    kinds, same = torch.where(present, every, len(image) + image).unique(return_inverse=True)
    return torch.empty_like(kinds).scatter_(0, same, every), same


def _points(prompts: Prompts | None, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Points and kinds as SAM 2 takes them, of objects with equally many; one that is none where
    there are no points at all."""
    if prompts is not None:
        real = prompts.kinds >= 0
        if bool(real.all()) and real.shape[1]:
            return prompts.points, prompts.kinds
        kinds = prompts.kinds[real].unflatten(0, (count, -1)) if bool(real.any()) else None
        if kinds is not None:
            return prompts.points[real].unflatten(0, (count, -1)), kinds
    none = torch.full((count, 1), -1, dtype=torch.int32, device=device)
    return torch.zeros((count, 1, 2), device=device), none


def _of_image(values: Tensor, image: Tensor) -> Tensor:
    """What belongs to the image of each object; not copied where there is one image."""
    return values if len(values) == 1 else values[image]
