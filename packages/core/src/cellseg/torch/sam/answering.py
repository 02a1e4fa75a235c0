"""Segment Anything's mask decoder for many prompts of one image: the same results at less cost.

A prompt is a few tokens, the image some thousand. So products are taken in the order that is cheap:
the tokens are projected to where the image lies, and never the image to where they lie, but for the
first block, where the image is the same for all prompts and is projected once. Linear layers that
follow one another become one. Nothing that is as large as the image is turned round or copied for
each prompt.
"""

from __future__ import annotations

from typing import Any

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253
from torch.nn import functional as F  # noqa: TID253


def decode_masks(
    decoder: nn.Module,
    embedding: Tensor,
    positions: Tensor,
    sparse: Tensor,
    dense: Tensor,
    *,
    multimask: bool,
) -> tuple[Tensor, Tensor]:
    """What ``segment_anything.modeling.MaskDecoder`` gives.

    Args:
        decoder: the ``MaskDecoder``.
        embedding: of the image, ``(1, c, y, x)``.
        positions: encoded, ``(1, c, y, x)``.
        sparse: points and boxes, ``(p, k, c)``.
        dense: mask prompts ``(p, c, y, x)``, or what stands for none ``(1, c, y, x)``.
        multimask: three masks for each prompt instead of one.

    Returns:
        Logits ``(p, j, 4 y, 4 x)`` and estimated IoU ``(p, j)``; ``j`` is 3 or 1.
    """
    transformer: Any = decoder.transformer
    size = embedding.shape[2:]
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    prompts = torch.cat([own.expand(sparse.shape[0], -1, -1), sparse], dim=1)
    places = positions.flatten(2).transpose(1, 2)
    tokens, image = prompts, (embedding + dense).flatten(2).transpose(1, 2)
    for number, block in enumerate(transformer.layers):
        tokens, image = _block(block, tokens, image, prompts, places, first=number == 0)
    found = _look(transformer.final_attn_token_to_image, tokens + prompts, image + places, image)
    tokens = transformer.norm_final_attn(tokens + found)
    chosen = slice(1, None) if multimask else slice(0, 1)
    masks = range(decoder.num_mask_tokens)[chosen]
    kernels = torch.stack(
        [decoder.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in masks], dim=2
    )
    logits = _upscaled(decoder.output_upscaling, image, kernels, (size[0], size[1]))
    return logits, decoder.iou_prediction_head(tokens[:, 0])[:, chosen]


def _block(
    block: Any, tokens: Tensor, image: Tensor, prompts: Tensor, places: Tensor, first: bool
) -> tuple[Tensor, Tensor]:
    """A ``TwoWayAttentionBlock``: tokens ``(p, n, c)``, image ``(p, m, c)`` or ``(1, m, c)``."""
    if first:
        tokens = block.self_attn(tokens, tokens, tokens)
    else:
        placed = tokens + prompts
        tokens = tokens + block.self_attn(placed, placed, tokens)
    tokens = block.norm1(tokens)
    placed_image = image + places
    looked = _look(block.cross_attn_token_to_image, tokens + prompts, placed_image, image)
    tokens = block.norm2(tokens + looked)
    tokens = block.norm3(tokens + block.mlp(tokens))
    weights, told = _tell(block.cross_attn_image_to_token, placed_image, tokens + prompts, tokens)
    if image.dtype == told.dtype:
        image = torch.baddbmm(image, weights, told)
    else:
        image = image + weights @ told
    return tokens, block.norm4(image)


def _heads(attention: Any, x: Tensor) -> Tensor:
    """``(p, heads, n, d)`` of ``(p, n, heads * d)``."""
    return x.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)


def _by_head(attention: Any, weight: Tensor) -> Tensor:
    """``(heads, d, c)`` of the weights ``(heads * d, c)``."""
    return weight.unflatten(0, (attention.num_heads, -1))


def _look(attention: Any, tokens: Tensor, placed: Tensor, image: Tensor) -> Tensor:
    """Tokens ``(p, n, c)`` attend to the image, keys ``placed`` and values ``image``."""
    q = _heads(attention, attention.q_proj(tokens))
    p, heads, n, d = q.shape
    if image.shape[0] == 1:
        k = _heads(attention, attention.k_proj(placed))
        v = _heads(attention, attention.v_proj(image))
        together = q.transpose(0, 1).flatten(1, 2)[None]  # all prompts' tokens ask one image
        found = F.scaled_dot_product_attention(together, k, v)
        found = found[0].unflatten(1, (p, n)).transpose(0, 1)
    else:
        q = q * d**-0.5
        asked = (q @ _by_head(attention, attention.k_proj.weight)).flatten(1, 2)
        offset = q @ attention.k_proj.bias.unflatten(0, (heads, d, 1))
        weights = torch.softmax(asked @ placed.transpose(1, 2) + offset.flatten(1, 2), dim=-1)
        seen = (weights @ image).unflatten(1, (heads, n))
        bias = attention.v_proj.bias.unflatten(0, (heads, 1, d))
        found = seen @ _by_head(attention, attention.v_proj.weight).transpose(1, 2) + bias
    return attention.out_proj(found.transpose(1, 2).flatten(2))


def _tell(attention: Any, placed: Tensor, tokens: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The image ``(p, m, c)`` attends to tokens, keys ``tokens`` and values ``values``: two factors
    of the result, ``(p, m, k)`` and ``(p, k, c)``."""
    k = _heads(attention, attention.k_proj(tokens))
    v = _heads(attention, attention.v_proj(values))
    p, heads, n, d = k.shape
    k = k * d**-0.5
    if placed.shape[0] == 1:
        q = _heads(attention, attention.q_proj(placed))[0].transpose(1, 2)  # (heads, d, m)
        logits = (k.transpose(0, 1).flatten(1, 2) @ q).unflatten(1, (p, n)).transpose(0, 1)
    else:
        asked = (k @ _by_head(attention, attention.q_proj.weight)).flatten(1, 2)
        logits = (asked @ placed.transpose(1, 2)).unflatten(1, (heads, n))
        logits = logits + k @ attention.q_proj.bias.unflatten(0, (heads, d, 1))
    weights = torch.softmax(logits, dim=2).flatten(1, 2)  # (p, heads * n, m)
    out = attention.out_proj
    told = v @ _by_head(attention, out.weight.T) + out.bias / heads  # weights sum to 1 for a head
    return weights.transpose(1, 2), told.flatten(1, 2)


def _upscaled(layers: Any, image: Tensor, kernels: Tensor, size: tuple[int, int]) -> Tensor:
    """Four times as large, and multiplied with the kernels of the masks ``(p, c, j)``.

    A transposed convolution whose steps are as wide as its kernel is a product at each pixel, and
    its results are put in their places at the very end.
    """
    first, norm, activation, second, last = layers
    x = _enlarging(first, image)  # (p, m, 4, c)
    x = F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
    x = last(_enlarging(second, activation(x)))  # (p, m, 4, 4, c)
    x = x.flatten(1, 3) @ kernels
    p, _, j = x.shape
    y, width = size
    x = x.reshape(p, y, width, 2, 2, 2, 2, j)  # y, x of the pixel; of its parts; of theirs
    return x.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(p, j, 4 * y, 4 * width)


def _enlarging(layer: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """A ``ConvTranspose2d`` of stride and kernel 2 of ``(..., c)``: ``(..., 4, k)``, the four
    pixels row by row."""
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4 k, c)
    return F.linear(x, weight, layer.bias.repeat(4)).unflatten(-1, (4, -1))
