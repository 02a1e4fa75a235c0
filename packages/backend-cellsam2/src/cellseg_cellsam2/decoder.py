"""SAM 2's mask decoder with one more token, that reads whether a cell divides.

The token sees what the others see, and none of them sees it: so what the decoder says of masks is
what SAM 2 says, and stays that of the pretrained model until it learns.
"""

from __future__ import annotations

from typing import Any

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253


def decode(
    decoder: Any,
    embedding: Tensor,
    positions: Tensor,
    sparse: Tensor,
    dense: Tensor,
    fine: tuple[Tensor, Tensor],
    reader: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What a ``sam2.modeling.sam.mask_decoder.MaskDecoder`` says, and what the reader has read.

    Args:
        decoder: the ``MaskDecoder``.
        embedding: ``(o, d, g, g)`` of the image, for each object.
        positions: ``(1, d, g, g)``: the encoding of its places.
        sparse: ``(o, k, d)``: points and boxes.
        dense: ``(o, d, g, g)``: earlier masks, or what stands for none.
        fine: ``(o, d / 8, 4g, 4g)`` and ``(o, d / 4, 2g, 2g)``.
        reader: ``(1, d)``: the token.

    Returns:
        Logits of masks ``(o, 4, 4g, 4g)``; their IoU ``(o, 4)``; their tokens ``(o, 4, d)``; logits
        of presence ``(o,)``; and the reader ``(o, d)``.
    """
    own = torch.cat(
        [decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight]
    )
    count, grid = len(sparse), embedding.shape[2:]
    prompts = torch.cat([own.expand(count, -1, -1), sparse], dim=1)
    tokens, read, image = _attend(
        decoder.transformer,
        prompts,
        reader.expand(count, 1, -1),
        (embedding + dense).flatten(2).transpose(1, 2),
        positions.flatten(2).transpose(1, 2),
    )
    masks = tokens[:, 2 : 2 + decoder.num_mask_tokens]
    kernels = torch.stack(
        [head(masks[:, i]) for i, head in enumerate(decoder.output_hypernetworks_mlps)], dim=1
    )
    enlarge, norm, activation, enlarge_again, last = decoder.output_upscaling
    pixels = image.transpose(1, 2).unflatten(2, grid)
    pixels = activation(norm(enlarge(pixels) + fine[1]))
    pixels = last(enlarge_again(pixels) + fine[0])
    logits = (kernels @ pixels.flatten(2)).unflatten(2, pixels.shape[2:])
    ious = decoder.iou_prediction_head(tokens[:, 1])
    presence = decoder.pred_obj_score_head(tokens[:, 0])[:, 0]
    return logits, ious, masks, presence, read[:, 0]


def _attend(
    transformer: Any, prompts: Tensor, reader: Tensor, image: Tensor, places: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A ``TwoWayTransformer`` on tokens ``(o, k, d)``, with a reader ``(o, 1, d)`` beside them."""
    tokens, read = prompts, reader
    for block in transformer.layers:
        tokens, read = _talk(block, tokens, prompts, read, reader)
        both, placed = torch.cat([tokens, read], dim=1), torch.cat([prompts, reader], dim=1)
        seen = block.cross_attn_token_to_image(q=both + placed, k=image + places, v=image)
        both = block.norm2(both + seen)
        both = block.norm3(both + block.mlp(both))
        tokens, read = both[:, :-1], both[:, -1:]
        told = block.cross_attn_image_to_token(q=image + places, k=tokens + prompts, v=tokens)
        image = block.norm4(image + told)
    both, placed = torch.cat([tokens, read], dim=1), torch.cat([prompts, reader], dim=1)
    seen = transformer.final_attn_token_to_image(q=both + placed, k=image + places, v=image)
    both = transformer.norm_final_attn(both + seen)
    return both[:, :-1], both[:, -1:], image


def _talk(
    block: Any, tokens: Tensor, prompts: Tensor, read: Tensor, reader: Tensor
) -> tuple[Tensor, Tensor]:
    """Tokens attend to tokens; the reader to them and to itself."""
    attend = block.self_attn
    if block.skip_first_layer_pe:
        everything = torch.cat([tokens, read], dim=1)
        said = attend(q=tokens, k=tokens, v=tokens)
        return block.norm1(said), block.norm1(attend(q=read, k=everything, v=everything))
    placed = tokens + prompts
    everything = torch.cat([placed, read + reader], dim=1)
    heard = attend(q=read + reader, k=everything, v=torch.cat([tokens, read], dim=1))
    said = attend(q=placed, k=placed, v=tokens)
    return block.norm1(tokens + said), block.norm1(read + heard)
