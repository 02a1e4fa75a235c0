"""Tuning Segment Anything on a handful of examples, by low-rank adapters.

In the manner of CellSeg1 (Zhou et al., arXiv:2412.01410): adapters in the attention of the image
encoder and of the mask decoder, points on the objects as prompts, a learning rate of one cycle.
There all objects of an image are known; here those that the user shows, and no others. So points
are put on examples only: nothing is said of what any other place should be answered. The answer to
a point is one object, though, so beyond the example it is wrong everywhere, whatever lies there;
an object that nobody showed is not made background by that, as it has a point of its own when it
is looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, pi, sqrt
from typing import Any

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253
from torch.nn import functional as F  # noqa: TID253

from cellseg.errors import ConfigError, DataError, DivergedError, InterruptedRunError
from cellseg.events import Emit, Progress
from cellseg.torch.masks import FoundMask
from cellseg.torch.sam.model import SegmentAnything
from cellseg_fewshot.adapters import adapter_tensors, add_adapters, check_peft, merge_adapters
from cellseg_fewshot.encoders.asked import as_batch, in_square
from cellseg_fewshot.encoders.sam import SamEncoder
from cellseg_fewshot.options import FewshotOptions
from cellseg_fewshot.views import Encoder, Shown

RANK, STEPS, LEARNING_RATE = 4, 300, 0.003
_PROMPTS = 16
"""Examples that are asked for at once, at most."""
_SMALLEST = 0.5
"""Of the longer side of a plane: the side of the smallest crop."""
_VISIBLE = 0.5
"""Part of an example that a crop must show for it to be asked for."""
_NORM = 1.0
"""Gradients are cut to this norm."""


@dataclass(frozen=True, slots=True)
class _Scene:
    """A plane with examples in it."""

    plane: NDArray[np.float32]
    """``(c, y, x)``."""
    masks: NDArray[np.bool_]
    """``(n, y, x)``."""
    near: NDArray[np.bool_]
    """``(n, y, x)``: each example, what lies around it, and the other examples."""
    wanted: tuple[int, ...]
    """Those that are asked for."""


def refine(
    encoder: Encoder,
    shown: Sequence[tuple[NDArray[np.float32], Sequence[Shown]]],
    options: FewshotOptions,
    seed: int,
    emit: Emit,
    interrupted: Callable[[], bool],
) -> None:
    """Tune an encoder in place, so that a point on an example is answered with the example.

    Each step sees a crop around an example, of half to all of its plane, flipped and turned; asks
    for the examples in it by a random point on each; and compares the best of the three answers
    with the example by its soft Dice over the crop and by the binary cross-entropy near the
    example, and the IoU that the model predicts with the true one by their squared error. Examples
    of the kind 0 are part of the background, and never asked for.

    Args:
        encoder: a ``SamEncoder``; its adapters are part of its weights afterwards.
        shown: planes ``(c, y, x)`` with the examples in them.
        options: rank, steps and learning rate.
        seed: of what is random; on a CPU, the same one gives the same weights.
        emit: gets ``Progress`` after each step.
        interrupted: asked after each step.

    Raises:
        ConfigError: it is no Segment Anything model, or was refined already; it would be computed
            in fp16; or the package peft is missing.
        DataError: there is nothing to ask for.
        DivergedError: the loss is no number any more.
        InterruptedRunError: it said so. Nothing is kept.
    """
    sam = _checked(encoder)
    scenes = [_scene(plane, examples) for plane, examples in shown]
    anchors = [(scene, i) for scene in scenes for i in scene.wanted]
    if not anchors:
        raise DataError(
            "--refine: no example shows an object to look for.", hint="Give positive examples."
        )
    steps = options.refine_steps or STEPS
    rate = options.refine_learning_rate or LEARNING_RATE
    model = sam.model
    parameters = add_adapters(model.sam, options.refine_rank or RANK, seed)
    optimiser = torch.optim.Adam(parameters, rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=max(steps, 2))
    random = np.random.default_rng(seed)
    model.recompute = True
    for step in range(1, steps + 1):
        scene, anchor = anchors[random.integers(len(anchors))]
        terms = _losses(sam, *_drawn(scene, anchor, random))
        loss = sum(terms.values(), torch.zeros((), device=model.device))
        if not torch.isfinite(loss):
            raise DivergedError(
                f"--refine: the loss is {float(loss.detach())} at step {step}.",
                hint="Use a smaller --refine-learning-rate.",
            )
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, _NORM)
        optimiser.step()
        if step < steps:
            schedule.step()
        values = {name: float(term.detach()) for name, term in terms.items()}
        emit(Progress(step, steps, {"loss": float(loss.detach()), **values}))
        if interrupted():
            raise InterruptedRunError(
                f"The refinement was interrupted after step {step} of {steps}; it starts again."
            )
    model.recompute = False
    sam.adapters = adapter_tensors(model.sam)
    merge_adapters(model.sam)


def _checked(encoder: Encoder) -> SamEncoder:
    if encoder.name == "filters":
        raise ConfigError(
            "--refine: the encoder filters always learns from the examples.",
            hint="Leave it out, or choose another encoder: --encoder sam_vit_b_01ec64",
        )
    if not isinstance(encoder, SamEncoder) or encoder.model.architecture.tiny_vit:
        raise ConfigError(
            f"--refine does not work with {encoder.name}.",
            hint="Choose a Segment Anything model with a vision transformer, such as --encoder"
            " sam_vit_b_01ec64.",
        )
    if encoder.adapters:
        raise ConfigError("--refine: the encoder is refined already.")
    if encoder.dtype == torch.float16:
        raise ConfigError("--refine: not with --precision fp16.", hint="Use --precision bf16.")
    check_peft()
    return encoder


def _scene(plane: NDArray[np.float32], examples: Sequence[Shown]) -> _Scene:
    size = plane.shape[1:]
    masks = np.zeros((len(examples), *size), bool)
    near = np.zeros_like(masks)
    for index, one in enumerate(examples):
        _fill(masks[index], one.mask)
        near[index] = _around(masks[index])
    near |= masks.any(0) if len(masks) else False
    wanted = (i for i, one in enumerate(examples) if one.kind > 0 and masks[i].any())
    return _Scene(plane, masks, near, tuple(wanted))


def _fill(plane: NDArray[np.bool_], found: FoundMask) -> None:
    y, x = found.corner
    height, width = found.mask.shape
    plane[y : y + height, x : x + width] = found.mask


def _around(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """An object ``(y, x)``, and what is no farther from it than the radius of a disc as large."""
    from scipy.ndimage import distance_transform_edt

    radius = max(2.0, sqrt(np.count_nonzero(mask) / pi))
    result = np.zeros_like(mask)
    box = _box(mask)
    if box is not None:
        part = tuple(slice(max(0, low - ceil(radius)), high + ceil(radius)) for low, high in box)
        result[part] = distance_transform_edt(~mask[part]) <= radius
    return result


def _box(mask: NDArray[np.bool_]) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """First pixel, and the one after the last, along y and along x; None without any."""
    ys, xs = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(ys):
        return None
    return (int(ys[0]), int(ys[-1]) + 1), (int(xs[0]), int(xs[-1]) + 1)


def _drawn(
    scene: _Scene, anchor: int, random: np.random.Generator
) -> tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float32]]:
    """A random crop that shows an example: the plane ``(c, y, x)``, the examples to ask for and
    what is near them ``(p, y, x)``, and a point on each ``(p, 2)``, y and x."""
    box = _box(scene.masks[anchor])
    assert box is not None
    length = max(scene.plane.shape[1:])
    side = max(random.uniform(_SMALLEST, 1.0) * length, *(high - low for low, high in box))
    part = []
    for (low, high), extent in zip(box, scene.plane.shape[1:], strict=True):
        size = min(ceil(side), extent)
        first = random.integers(max(0, high - size), min(low, extent - size) + 1)
        part.append(slice(int(first), int(first) + size))
    turns, flipped = int(random.integers(4)), bool(random.integers(2))

    def cut(values: NDArray[Any]) -> NDArray[Any]:
        values = np.rot90(values[:, part[0], part[1]], turns, (1, 2))
        return np.ascontiguousarray(values[:, :, ::-1] if flipped else values)

    others = [
        i
        for i in scene.wanted
        if i != anchor
        and np.count_nonzero(scene.masks[i][part[0], part[1]])
        >= _VISIBLE * np.count_nonzero(scene.masks[i])
    ]
    chosen = [anchor, *random.permutation(others)[: _PROMPTS - 1].astype(int).tolist()]
    masks, near = cut(scene.masks[chosen]), cut(scene.near[chosen])
    points = []
    for mask in masks:
        inside = np.argwhere(mask)
        points.append(inside[random.integers(len(inside))] + 0.5)
    return cut(scene.plane), masks, near, np.asarray(points, np.float32)


def _losses(
    encoder: SamEncoder,
    plane: NDArray[np.float32],
    masks: NDArray[np.bool_],
    near: NDArray[np.bool_],
    points: NDArray[np.float32],
) -> dict[str, Tensor]:
    """The terms of the loss of one crop, each the mean over the examples."""
    model = encoder.model
    frame = model.frame((plane.shape[1], plane.shape[2]))
    prepared = encoder.prepare(as_batch([plane]).to(model.device), frame)
    embedding = encoder.embed(prepared)
    wanted = torch.from_numpy(masks).to(model.device)
    around = torch.from_numpy(near).to(model.device)
    logits, estimated = _answers(model, embedding, in_square(points, frame).to(model.device))
    with torch.no_grad():
        true = torch.stack([_ious(frame.restore(low)[:, 0], wanted)
                            for low in logits.float().split(1, 1)], 1)  # fmt: skip
        soft = torch.stack([_dice(frame.restore(low)[:, 0], wanted)
                            for low in logits.float().split(1, 1)], 1)  # fmt: skip
    best = soft.argmax(1)[:, None, None, None].expand(-1, 1, *logits.shape[2:])
    restored = frame.restore(logits.gather(1, best).float())[:, 0]
    entropy = F.binary_cross_entropy_with_logits(restored, wanted.float(), reduction="none")
    return {
        "loss_mask": ((entropy * around).sum((1, 2)) / around.sum((1, 2))).mean(),
        "loss_dice": (1 - _dice(restored, wanted)).mean(),
        "loss_iou": (estimated.float() - true).square().mean(),
    }


def _answers(model: SegmentAnything, embedding: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """As ``SegmentAnything.answer``, which goes round the layers that the adapters are in."""
    sam = model.sam
    labels = torch.ones(len(points), 1, device=points.device)
    sparse, dense = sam.prompt_encoder(points=(points[:, None], labels), boxes=None, masks=None)
    logits, estimated = sam.mask_decoder(
        image_embeddings=embedding,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )
    return logits, estimated


def _dice(logits: Tensor, wanted: Tensor) -> Tensor:
    """Soft Dice (Milletari et al., arXiv:1606.04797) of masks ``(p, y, x)``: ``(p,)``."""
    found = logits.sigmoid()
    both = 2 * (found * wanted).sum((1, 2))
    return both / (found.square().sum((1, 2)) + wanted.sum((1, 2)))


def _ious(logits: Tensor, wanted: Tensor) -> Tensor:
    """IoU of masks ``(p, y, x)``: ``(p,)``."""
    found = logits > 0
    return (found & wanted).sum((1, 2)) / (found | wanted).sum((1, 2)).clamp(min=1)
