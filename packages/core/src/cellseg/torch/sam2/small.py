"""SAM 2.1 in small sizes, with random weights that learn in minutes.

They are put together as the published sizes, of the same parts, but where those parts need long
training before they do anything: prompts are also drawn into the plane of the image, attention to
memories starts near its own place, and pointers carry no time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch  # noqa: TID253
from sam2.modeling.backbones.hieradet import Hiera  # noqa: TID253
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder  # noqa: TID253
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer  # noqa: TID253
from sam2.modeling.memory_encoder import (  # noqa: TID253
    CXBlock,
    Fuser,
    MaskDownSampler,
    MemoryEncoder,
)
from sam2.modeling.position_encoding import PositionEmbeddingSine  # noqa: TID253
from sam2.modeling.sam.prompt_encoder import PromptEncoder  # noqa: TID253
from sam2.modeling.sam.transformer import (  # noqa: TID253
    Attention,
    RoPEAttention,
    TwoWayTransformer,
)
from sam2.modeling.sam2_base import SAM2Base  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

_NEAR = 3.0
"""What queries and keys have in common at first."""
_FAINT = 0.01
"""Variance over an image that counts as noise, and is not raised to one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """Of a small network; its other sizes follow from them."""

    trunk: int
    """Of the image encoder's first stage."""
    stages: tuple[int, int, int, int]
    """Blocks of its stages."""
    width: int
    """Of the embedding of an image."""
    memory: int
    """Of a remembered frame."""
    layers: int
    """Of the memory attention."""


SMALL = {
    "nano": Widths(trunk=16, stages=(1, 1, 2, 1), width=64, memory=16, layers=2),
    "micro": Widths(trunk=32, stages=(1, 2, 3, 1), width=128, memory=32, layers=2),
}


class DrawnPrompts(PromptEncoder):  # type: ignore[misc]
    """SAM 2's encoder of prompts, that also draws them: points and the insides of boxes, in the
    resolution of masks.

    Without it, random weights must learn first that a token and a place of the image belong
    together.
    """

    def __init__(self, width: int, grid: int, side: int) -> None:
        super().__init__(
            embed_dim=width,
            image_embedding_size=(grid, grid),
            input_image_size=(side, side),
            mask_in_chans=16,
        )
        self.drawing = nn.Sequential(
            nn.Conv2d(3, 32, 4, stride=4), nn.GELU(), nn.Conv2d(32, width, 1)
        )
        nn.init.normal_(self.drawing[-1].weight)  # as strong as the embedding of the image

    def forward(
        self,
        points: tuple[Tensor, Tensor] | None,
        boxes: Tensor | None,
        masks: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """As in SAM 2; boxes are pairs of points of the kinds 2 and 3."""
        sparse, dense = super().forward(points=points, boxes=boxes, masks=masks)
        if points is None:
            return sparse, dense
        return sparse, dense + self.drawing(self._drawn(*points))

    def _drawn(self, places: Tensor, kinds: Tensor) -> Tensor:
        """Spots at points on objects, spots at points beside them, and boxes, ``(o, 3, 4g, 4g)``,
        of ``(o, p, 2)`` and ``(o, p)``."""
        side = self.mask_input_size[0]
        grid = torch.arange(side, device=places.device, dtype=places.dtype)
        along = (places + 0.5) * (side / self.input_image_size[0]) - 0.5
        spots = torch.exp(-0.5 * (grid - along[..., None]).square())  # (o, p, 2, 4g)
        drawn = []
        for kind in (1, 0):
            chosen = torch.where((kinds == kind)[..., None, None], spots, 0.0)
            drawn.append(torch.einsum("opy,opx->oyx", chosen[:, :, 1], chosen[:, :, 0]))
        first, last = (kinds == kind for kind in (2, 3))
        low = torch.where(first[..., None], along, 0.0).sum(1)[..., None]
        high = torch.where(last[..., None], along, 0.0).sum(1)[..., None]
        inside = torch.sigmoid(grid - low) * torch.sigmoid(high - grid)  # (o, 2, 4g)
        boxed = (first.any(1) & last.any(1))[:, None, None]
        drawn.append(torch.where(boxed, inside[:, 1, :, None] * inside[:, 0, None, :], 0.0))
        return torch.stack(drawn, dim=1)


def build_small(widths: Widths, side: int) -> nn.Module:
    """A ``SAM2Base`` of these widths that sees squares of ``side`` pixels."""
    width, grid = widths.width, side // 16
    places = partial(PositionEmbeddingSine, warmup_cache=False)

    def attention(**more: Any) -> RoPEAttention:
        return RoPEAttention(
            embedding_dim=width, num_heads=1, downsample_rate=1, feat_sizes=(grid, grid), **more
        )

    layer = MemoryAttentionLayer(
        activation="relu",
        cross_attention=attention(kv_in_dim=widths.memory, rope_k_repeat=True),
        d_model=width,
        dim_feedforward=4 * width,
        dropout=0.0,
        pos_enc_at_attn=False,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        self_attention=attention(),
    )
    model: Any = SAM2Base(
        image_encoder=ImageEncoder(
            trunk=Hiera(
                embed_dim=widths.trunk,
                num_heads=1,
                stages=widths.stages,
                global_att_blocks=(sum(widths.stages[:3]) - 1,),
                window_spec=(8, 4, 8, 4),
                window_pos_embed_bkg_spatial_size=(4, 4),
            ),
            neck=FpnNeck(
                places(width),
                d_model=width,
                backbone_channel_list=[widths.trunk * times for times in (8, 4, 2, 1)],
                fpn_top_down_levels=[2, 3],
                fpn_interp_model="nearest",
            ),
            scalp=1,
        ),
        memory_attention=MemoryAttention(
            d_model=width, pos_enc_at_input=True, layer=layer, num_layers=widths.layers
        ),
        memory_encoder=MemoryEncoder(
            out_dim=widths.memory,
            in_dim=width,
            mask_downsampler=MaskDownSampler(embed_dim=width, kernel_size=3, stride=2, padding=1),
            fuser=Fuser(CXBlock(dim=width, layer_scale_init_value=0.1), num_layers=2),
            position_encoding=places(widths.memory),
        ),
        num_maskmem=4,
        max_obj_ptrs_in_encoder=4,
        image_size=side,
        sigmoid_scale_for_mem_enc=20.0,
        sigmoid_bias_for_mem_enc=-10.0,
        use_mask_input_as_output_without_sam=True,
        directly_add_no_mem_embed=True,
        use_high_res_features_in_sam=True,
        multimask_output_in_sam=True,
        iou_prediction_use_sigmoid=True,
        use_obj_ptrs_in_encoder=True,
        add_tpos_enc_to_obj_ptrs=False,
        only_obj_ptrs_in_the_past_for_eval=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        fixed_no_obj_ptr=True,
        multimask_output_for_tracking=True,
        use_multimask_token_for_obj_ptr=True,
        multimask_min_pt_num=0,
        multimask_max_pt_num=1,
        use_mlp_for_obj_ptr_proj=True,
        no_obj_embed_spatial=True,
    )
    for lateral in model.image_encoder.neck.convs:  # else what all places share drowns the rest
        lateral.add_module("norm", nn.InstanceNorm2d(width, eps=_FAINT, affine=True))
    model.sam_prompt_encoder = DrawnPrompts(width, grid, side)
    decoder = model.sam_mask_decoder  # its transformer has a fixed width of 2048 there
    decoder.transformer = TwoWayTransformer(
        depth=2, embedding_dim=width, num_heads=4, mlp_dim=4 * width
    )
    _look_alike(decoder.transformer)
    nn.init.constant_(decoder.pred_obj_score_head.layers[-1].bias, 2.0)
    _look_near(model.memory_attention, model.memory_encoder)
    return model


def _look_alike(transformer: TwoWayTransformer) -> None:
    """Let prompts and places of the image attend to what is like them: queries and keys are one at
    first, so that a prompt is near its own place from the first step on."""
    for module in transformer.modules():
        if isinstance(module, Attention) and module.q_proj.in_features == module.k_proj.in_features:
            nn.init.orthogonal_(module.q_proj.weight)
            module.k_proj.weight.data.copy_(module.q_proj.weight)
            for linear in (module.q_proj, module.k_proj):
                nn.init.zeros_(linear.bias)


def _look_near(attention: MemoryAttention, encoder: MemoryEncoder) -> None:
    """Let memories of masks say something, and at their own place: the rotation of vectors that are
    equal tells how far apart they are."""
    encoder.mask_downsampler.encoder[-1].weight.data.mul_(4)
    for layer in attention.layers:
        cross = layer.cross_attn_image
        nn.init.constant_(cross.q_proj.bias, _NEAR)
        nn.init.constant_(cross.k_proj.bias, _NEAR)
        for linear in (cross.v_proj, cross.out_proj):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)
