"""Which parameters each stage of a training changes."""

from __future__ import annotations

import re

from cellseg.torch.lora import UPDATE, add_lora
from cellseg.torch.weights import seeded
from cellseg_cellsam.model import CellSam
from cellseg_cellsam.options import OF_TRUNK, CellSamOptions

TARGETS = r"image_encoder\..*\.attn\.qkv"
"""Names of the layers that get low-rank updates, within ``CellSam.sam``."""

_ENCODER = "sam.image_encoder."
_NECK = "sam.image_encoder.neck."
_UNUSED = ("sam.image_encoder.norm_head.", "sam.image_encoder.head.")
"""What MobileSAM's encoder has for the classes of images."""
_HEADS = re.compile(r"detector\.(anchors|side|decoder\.\d+\.(score|box)\..*)")
_ANSWERS = re.compile(r"detector\.decoder\.(\d+)\.(norms\.3|score|box)\.")
"""What a layer of the detector answers by; the layers after it do not need it to learn."""
_OF_BOXES = (
    "sam.prompt_encoder.point_embeddings.2.",
    "sam.prompt_encoder.point_embeddings.3.",
)
"""What tells the mask decoder of a box: its first corner, and its last one."""
_DRAWN, _NOT_DRAWN = "sam.prompt_encoder.mask_downscaling.", "sam.prompt_encoder.no_mask_embed."
"""What reads the drawing of a box, and what stands for none."""
_DECODER = "sam.mask_decoder."
_OTHER_MASKS = re.compile(r"sam\.mask_decoder\.output_hypernetworks_mlps\.[123]\.")
"""What makes the masks of an ambiguous prompt, which a box is not."""
_IOU = "sam.mask_decoder.iou_prediction_head."


def adapt(model: CellSam, options: CellSamOptions, seed: int) -> None:
    """Give a model the low-rank updates that stage 1 learns, in place, if it does; what it says
    stays the same.

    Args:
        model: without updates.
        options: of the training.
        seed: of what starts random.

    Raises:
        ConfigError: the model has updates already.
    """
    if options.lora_rank:
        with seeded(seed):
            add_lora(model.sam, TARGETS, options.lora_rank, options.lora_alpha, 0.0)


def of_stage1(model: CellSam, options: CellSamOptions) -> tuple[str, ...]:
    """Names of the parameters of a model that stage 1 changes.

    Args:
        model: with updates where ``options`` say so.
        options: of the training; with ``cellfinder`` the detector learns, with ``image_encoder``
            the image encoder but its neck, or updates of it, with ``all_backbones`` both, and with
            ``head_only`` the scores and boxes of the detector, and its anchors. Layers of the
            detector without a loss of their own (``auxiliary_loss``) have no answers to learn.
    """
    last = len(model.detector.decoder) - 1
    kind = options.stage1_type

    def learns(name: str) -> bool:
        if name.startswith("detector."):
            layer = _ANSWERS.match(name)
            if layer is not None and int(layer[1]) != last and not options.auxiliary_loss:
                return False
            if kind == "head_only":
                return _HEADS.fullmatch(name) is not None
            return kind in ("cellfinder", "all_backbones")
        if kind not in OF_TRUNK or not name.startswith(_ENCODER):
            return False
        if options.lora_rank:
            return UPDATE.search(name) is not None
        return not name.startswith((_NECK, *_UNUSED))

    return tuple(name for name, _ in model.named_parameters() if learns(name))


def of_stage2(model: CellSam, options: CellSamOptions) -> tuple[str, ...]:
    """Names of the parameters of a model that stage 2 changes.

    Args:
        model: without updates.
        options: of the training; with ``neck`` the neck of the image encoder learns, with
            ``neck_and_decoder`` also what tells the mask decoder of a box, and all of the decoder
            that answers one.
    """
    whole = options.stage2_type == "neck_and_decoder"

    def learns(name: str) -> bool:
        if name.startswith(_NECK):
            return True
        if not whole or _OTHER_MASKS.match(name):
            return False
        if name.startswith(_IOU) and not options.iou_loss_weight:
            return False
        return name.startswith((*_OF_BOXES, _DRAWN if model.draws_boxes else _NOT_DRAWN, _DECODER))

    return tuple(name for name, _ in model.named_parameters() if learns(name))
