"""How wrong masks are, prompt by prompt: focal loss, Dice loss and the error of their outlines.

All terms, and the true IoU, come of one pass over the pixels with a gradient written by hand: on
CUDA by ``mask_loss_kernels`` where Triton can be imported, elsewhere by torch. Forward and backward
of 32 masks on one thread of a CPU (ms), beside each term by itself as torchvision and convolutions
give it, and beside the same sums left to autograd:

==========  ==========  ========  ========
side of it  separately  autograd  one pass
==========  ==========  ========  ========
64          11.7        4.9       3.5
256         356         128       84
==========  ==========  ========  ========
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

_EPS = 1e-6
SQUARED = 1e-6
"""Added to squared gradients, whose root has no derivative at 0."""
SUMS = 7
"""What a pass over the pixels sums, each weighted: the focal loss; likelihood times target;
likelihood; the error of the gradient; found times target; found; target. The first four have a
gradient."""


@dataclass(frozen=True, slots=True)
class MaskLosses:
    """The terms of each prompt, without weights; float32."""

    focal: Tensor
    """``(p,)``: the focal loss (Lin et al., arXiv:1708.02002), the mean over pixels."""
    dice: Tensor
    """``(p,)``: one minus the Dice coefficient, 1 added to numerator and denominator (Milletari
    et al., arXiv:1606.04797)."""
    boundary: Tensor
    """``(p,)``: absolute difference of the magnitudes of the Sobel gradients of likelihood and
    target, the mean over pixels; 0 where it is not wanted."""
    iou: Tensor
    """``(p,)``: of the masks, logits above 0, with the targets; 0 to 1, without a gradient."""

    @classmethod
    def of(
        cls,
        logits: Tensor,
        targets: Tensor,
        known: Tensor,
        *,
        alpha: float = 0.25,
        gamma: float = 2.0,
        boundary: bool = True,
    ) -> MaskLosses:
        """Compare the masks of one image with its objects.

        Args:
            logits: ``(p, m, m)``, floating.
            targets: ``(p, m, m)`` float32: the share of a pixel that is of the object, 0 to 1.
            known: ``(m, m)`` float32: the share of a pixel that counts, 0 to 1. The outline counts
                as much as the least of a pixel and its eight neighbours does; what lies beyond the
                square does not count.
            alpha: weight of the object in the focal loss, its rest that of the background.
            gamma: exponent of the focal loss, at least 0.
            boundary: whether the error of the outlines is wanted.
        """
        inner = _least(known) if boundary else torch.zeros_like(known)
        area, inner_area = known.sum().clamp(min=_EPS), inner.sum().clamp(min=_EPS)
        sums = _Sums.apply(logits, targets, known, inner, alpha, gamma, boundary)
        focal, shared, likely, outline, hit, found, wanted = sums.unbind(1)
        return cls(
            focal / area,
            1 - (2 * shared + 1) / (likely + wanted + 1),
            outline / inner_area,
            (hit / (found + wanted - hit).clamp(min=_EPS)).detach(),
        )


def _least(known: Tensor) -> Tensor:
    """The least of each pixel and its neighbours, ``(m, m)``; 0 at the border of the square."""
    padded = torch.nn.functional.pad(-known[None, None], (1, 1, 1, 1))
    return -torch.nn.functional.max_pool2d(padded, 3, 1)[0, 0]


class _Sums(torch.autograd.Function):  # type: ignore[misc]
    """``SUMS`` of each prompt, ``(p, 7)`` float32; a gradient of the logits alone."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        known: Tensor,
        inner: Tensor,
        alpha: float,
        gamma: float,
        boundary: bool,
    ) -> Tensor:
        ctx.given = alpha, gamma, boundary
        ctx.of_triton = logits.is_cuda and find_spec("triton") is not None
        if ctx.of_triton:
            from cellseg_cellsam.mask_loss_kernels import pixel_sums

            ctx.save_for_backward(logits, targets, known, inner)
            return pixel_sums(logits, targets, known, inner, alpha, gamma, boundary)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        with torch.autocast(logits.device.type, enabled=False):
            sums, kept = _pixel_sums(wide, targets, known, inner, *ctx.given)
        ctx.dtype = logits.dtype
        ctx.save_for_backward(*kept)
        return sums

    @staticmethod
    def backward(ctx: Any, wanted: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.of_triton:
            from cellseg_cellsam.mask_loss_kernels import pixel_gradient

            gradient = pixel_gradient(*ctx.saved_tensors, wanted, *ctx.given)
        else:
            gradient = _pixel_gradient(ctx.saved_tensors, wanted, *ctx.given).to(ctx.dtype)
        return gradient, None, None, None, None, None, None


def _pixel_sums(
    logits: Tensor,
    targets: Tensor,
    known: Tensor,
    inner: Tensor,
    alpha: float,
    gamma: float,
    boundary: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The sums, and what their gradient needs."""
    counted = known.flatten()
    likely = logits.sigmoid()
    shared = likely * targets
    wrong = (likely + targets).sub_(shared, alpha=2)
    entropy = torch.nn.functional.softplus(logits).addcmul_(logits, targets, value=-1)
    focal = wrong.pow(gamma).mul_(entropy).mul_(_balance(targets, alpha))
    found = (logits > 0).to(targets.dtype)
    maps = [focal, shared, likely, None, found * targets, found, targets]
    sums = [likely.new_zeros(len(likely)) if x is None else x.flatten(1) @ counted for x in maps]
    kept = (likely, targets, known, wrong, entropy)
    if boundary:
        x, y = sobel(likely)
        size = x.square().addcmul_(y, y).add_(SQUARED).sqrt_()
        error = size - magnitude(targets)
        within = inner[1:-1, 1:-1]
        sums[3] = error.abs().flatten(1) @ within.flatten()
        error.sign_().mul_(within).div_(size)
        kept = (*kept, x.mul_(error), y.mul_(error))
    return torch.stack(sums, dim=1), kept


def _pixel_gradient(
    kept: tuple[Tensor, ...], wanted: Tensor, alpha: float, gamma: float, boundary: bool
) -> Tensor:
    """By the logits, ``(p, m, m)``, where that of the sums is ``wanted (p, 7)``."""
    likely, targets, known, wrong, entropy, *outline = kept
    of_focal, of_shared, of_likely, of_outline = wanted[:, :4, None, None].unbind(1)
    slope = likely - likely * likely
    focal = (likely - targets).mul_(wrong)
    focal.add_((1 - 2 * targets).mul_(entropy).mul_(slope).mul_(gamma))
    focal.mul_(wrong.clamp(min=1e-12).pow_(gamma - 1)).mul_(_balance(targets, alpha))
    by_likely = torch.addcmul(of_likely, targets, of_shared).mul_(known)
    if boundary:
        by_likely.addcmul_(_sobel_back(*outline), of_outline)
    return focal.mul_(of_focal).mul_(known).addcmul_(by_likely, slope)


def _balance(targets: Tensor, alpha: float) -> Tensor:
    return targets * (2 * alpha - 1) + (1 - alpha)


def sobel(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients along x and y of ``(p, m, m)`` by Sobel's operator, whose weights sum to 8: ``(p,
    m - 2, m - 2)`` each, without the border."""
    along = maps[:, :-2] + maps[:, 2:] + 2 * maps[:, 1:-1]
    down = maps[:, :, :-2] + maps[:, :, 2:] + 2 * maps[:, :, 1:-1]
    return along[:, :, 2:] - along[:, :, :-2], down[:, 2:] - down[:, :-2]


def magnitude(maps: Tensor) -> Tensor:
    """Of the gradients that ``sobel`` gives."""
    x, y = sobel(maps)
    return x.square().addcmul_(y, y).add_(SQUARED).sqrt_()


def _sobel_back(x: Tensor, y: Tensor) -> Tensor:
    """The transpose of ``sobel``: ``(p, m, m)``."""
    p, side = len(x), x.shape[-1] + 2
    along, down = x.new_zeros(p, side - 2, side), x.new_zeros(p, side, side - 2)
    along[:, :, 2:] = x
    along[:, :, :-2] -= x
    down[:, 2:] = y
    down[:, :-2] -= y
    maps = x.new_zeros(p, side, side)
    for part, there in (
        (along, (maps[:, :-2], maps[:, 2:], maps[:, 1:-1])),
        (down, (maps[:, :, :-2], maps[:, :, 2:], maps[:, :, 1:-1])),
    ):
        for each, weight in zip(there, (1, 1, 2), strict=True):
            each.add_(part, alpha=weight)
    return maps
