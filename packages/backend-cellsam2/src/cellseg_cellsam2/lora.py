"""Low-rank updates (LoRA: Hu et al., arXiv:2106.09685), and which parameters learn.

Updates lie on queries, keys and values of the image encoder, and on queries and values of the
memory attention and of the mask decoder. They start as zero, so that the model is the pretrained
one until it learns, and can be merged into the weights.
"""

from __future__ import annotations

from cellseg.errors import ConfigError
from cellseg.torch import lora
from cellseg_cellsam2.model import CellSam2

TARGETS = (
    r"image_encoder\.trunk\.blocks\.\d+\.attn\.qkv"
    r"|memory_attention\.layers\.\d+\.(self_attn|cross_attn_image)\.(q_proj|v_proj)"
    r"|sam_mask_decoder\.transformer\..*\.(q_proj|v_proj)"
)
"""Names of the layers that get updates, within ``CellSam2.sam``, as a regular expression."""

_NEW = ("division_token.", "division_head.", "heat.")
_BESIDE = (
    "sam.sam_mask_decoder.iou_prediction_head.",
    "sam.sam_mask_decoder.pred_obj_score_head.",
    "sam.no_mem_embed",
    "sam.no_obj_ptr",
    "sam.no_obj_embed_spatial",
)
"""What learns of SAM 2 itself beside updates: how good a mask is, whether an object is there, and
what stands for no memory and for no object."""
_IDLE = ("sam.mask_downsample.", "sam.no_mem_pos_enc")
"""What is not used here: true masks are no prompts, and objects without memories need no token."""


def add_lora(model: CellSam2, rank: int, alpha: float, dropout: float) -> None:
    """Give a model updates, in place; what it says stays the same.

    Args:
        model: without updates.
        rank: of the updates.
        alpha: they are multiplied with ``alpha / rank``.
        dropout: share of what goes into them that is left out in training.

    Raises:
        ConfigError: the model has updates already.
    """
    lora.add_lora(model.sam, TARGETS, rank, alpha, dropout)


def learning(model: CellSam2, *, use_lora: bool, freeze_encoder: bool) -> dict[str, list[str]]:
    """Let those parameters have a gradient that are to learn, and no others.

    Args:
        model: with updates where ``use_lora``.
        use_lora: low-rank updates, what SAM 2 does not have, and its small heads and tokens that
            judge masks learn; else all of the model.
        freeze_encoder: nothing of the image encoder learns, updates neither.

    Returns:
        Names of parameters of ``model``, by what learns at one rate: ``lora`` updates; ``heads``
        the division token, its head and the heatmap head, and with updates also SAM 2's own heads
        of IoU and presence; ``vision`` the image encoder; ``base`` everything else. Groups without
        parameters are left out.

    Raises:
        ConfigError: ``use_lora`` is not what the model has.
    """
    if use_lora != lora.has_lora(model):
        raise ConfigError("Low-rank updates learn if, and only if, the model has them.")
    groups: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters():
        group = _group(name, use_lora, freeze_encoder)
        parameter.requires_grad_(group is not None)
        if group is not None:
            groups.setdefault(group, []).append(name)
    return groups


def _group(name: str, use_lora: bool, freeze_encoder: bool) -> str | None:
    """At which rate a parameter learns; None for not at all."""
    vision = name.startswith("sam.image_encoder.")
    if name.startswith(_IDLE) or (vision and freeze_encoder):
        return None
    if name.startswith(_NEW):
        return "heads"
    if use_lora:
        if lora.UPDATE.search(name):
            return "lora"
        return "heads" if name.startswith(_BESIDE) else None
    return "vision" if vision else "base"
