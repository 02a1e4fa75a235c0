"""Segment Anything as one module, that encodes images and answers prompts."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253
from torch.utils.checkpoint import checkpoint  # noqa: TID253

from cellseg.errors import ConfigError
from cellseg.torch.attention import fold_attention
from cellseg.torch.frames import Frame
from cellseg.torch.sam.answering import decode_masks
from cellseg.torch.sam.architecture import Architecture
from cellseg.torch.sam.guard import check_segment_anything

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)
"""Of the red, green and blue of Segment Anything's training images, 0..255."""


class SegmentAnything(nn.Module):  # type: ignore[misc]
    """Segment Anything (Kirillov et al., arXiv:2304.02643).

    Parameters are those of ``segment_anything`` under ``sam.``. They start random.

    Args:
        architecture: the sizes; a decoder in it is for subclasses to build.

    Raises:
        ConfigError: the encoder is MobileSAM's, which is not installed.
        PluginError: the package ``segment_anything`` is one that does harm.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.sam = _build(architecture)
        self._positions: tuple[Any, Tensor] | None = None
        self.recompute = False
        """Whether the blocks of the image encoder are computed again in the backward pass instead
        of keeping what they computed (Chen et al., arXiv:1604.06174)."""
        self.compiled = False
        """Whether the image encoder is compiled with ``torch.compile``, when it is called first;
        block by block, as most of them are the same."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.sam.pixel_mean.device

    def frame(self, size: tuple[int, int], field: int = 0) -> Frame:
        """The place of an image of ``size`` in the square; ``field`` as in ``Frame.fit``."""
        return Frame.fit(size, self.architecture.side, field)

    def prepare(self, images: Tensor, frame: Frame) -> Tensor:
        """Images as the encoder takes them.

        Args:
            images: ``(n, c, y, x)`` with 1 or 3 channels, 0..1; what is beyond is cut off.
            frame: of these images.

        Returns:
            ``(n, 3, side, side)``, standardised by Segment Anything's mean and deviation; 0 where
            there is no image.
        """
        if images.shape[1] not in (1, 3):
            raise ValueError(f"images have 1 or 3 channels, not {images.shape[1]}")
        images = images.clamp(0, 1) * 255
        placed = frame.place(images)  # 0 outside, where a standardised 0 belongs
        y, x = frame.scaled
        inside = (placed[..., :y, :x] - self.sam.pixel_mean) / self.sam.pixel_std
        return nn.functional.pad(inside, (0, frame.side - x, 0, frame.side - y))

    def encode(self, prepared: Tensor) -> Tensor:
        """Embeddings ``(n, out_channels, grid, grid)`` of what ``prepare`` gives."""
        encoder = self.sam.image_encoder
        if self.architecture.tiny_vit:
            if self.compiled and encoder._compiled_call_impl is None:
                encoder.compile()
            return encoder(prepared)
        return self.neck(self.trunk(prepared))

    def trunk(self, prepared: Tensor) -> Tensor:
        """What the image encoder knows before its neck, ``(n, trunk_channels, grid, grid)``."""
        encoder = self.sam.image_encoder
        if self.architecture.tiny_vit:
            return self._tiny_trunk(prepared)
        if self.compiled:
            for block in encoder.blocks:
                if block._compiled_call_impl is None:
                    block.compile()
        x = encoder.patch_embed(prepared) + encoder.pos_embed
        again = self.recompute and torch.is_grad_enabled()
        for block in encoder.blocks:
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return x.permute(0, 3, 1, 2)

    def neck(self, features: Tensor) -> Tensor:
        """Embeddings ``(n, out_channels, grid, grid)`` of what ``trunk`` gives."""
        return self.sam.image_encoder.neck(features)

    def _tiny_trunk(self, prepared: Tensor) -> Tensor:
        """MobileSAM's encoder goes through its neck in one; what comes there is kept."""
        encoder, kept = self.sam.image_encoder, []
        for layer in encoder.layers:  # a hook does not go with compiling all of it
            if self.compiled and layer._compiled_call_impl is None:
                layer.compile()
        hook = encoder.neck.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
        try:
            encoder(prepared)
        finally:
            hook.remove()
        return kept[0]

    def answer(
        self,
        embedding: Tensor,
        *,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        multimask: bool,
    ) -> tuple[Tensor, Tensor]:
        """Masks of what prompts show in one image.

        Args:
            embedding: ``(1, out_channels, grid, grid)``.
            points: ``(p, k, 2)``, x and y in pixels of the square.
            labels: ``(p, k)``, of each point: 1 on the object, 0 beside it, -1 for none.
            boxes: ``(p, 4)``, x and y of the first and of the last corner.
            masks: ``(p, 1, m, m)``, logits of an answer before.
            multimask: give three masks for each prompt instead of one.

        Returns:
            Logits of the masks ``(p, j, m, m)`` with ``m = 4 * grid``, and their IoU with the true
            mask as the model estimates it ``(p, j)``; ``j`` is 3 or 1.
        """
        if (points is None) != (labels is None):
            raise ValueError("points need labels, and labels points")
        sparse, dense = self.sam.prompt_encoder(
            points=None if points is None else (points, labels), boxes=boxes, masks=masks
        )
        return decode_masks(
            self.sam.mask_decoder,
            embedding,
            self._encoded_positions(),
            sparse,
            dense[:1] if masks is None else dense,
            multimask=multimask,
        )

    def _encoded_positions(self) -> Tensor:
        """Where the pixels of the embedding lie, encoded, ``(1, out_channels, grid, grid)``;
        computed once for the weights that there are."""
        encoder = self.sam.prompt_encoder
        matrix = encoder.pe_layer.positional_encoding_gaussian_matrix
        if matrix.is_inference():  # then nothing tells whether it was changed
            return encoder.get_dense_pe()
        key = (matrix.device, matrix.data_ptr(), matrix._version)
        if self._positions is None or self._positions[0] != key:
            with torch.inference_mode(False), torch.no_grad():
                self._positions = key, encoder.get_dense_pe()
        return self._positions[1]


def _build(architecture: Architecture) -> Sam:
    from segment_anything.modeling import (
        ImageEncoderViT,
        MaskDecoder,
        PromptEncoder,
        Sam,
        TwoWayTransformer,
    )

    check_segment_anything()
    a = architecture
    if a.tiny_vit:
        encoder = _mobile_encoder()
    else:
        encoder = ImageEncoderViT(
            depth=a.depth,
            embed_dim=a.embed_dim,
            img_size=a.side,
            mlp_ratio=a.mlp_ratio,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            num_heads=a.heads,
            patch_size=a.patch,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=a.global_attention,
            window_size=a.window,
            out_chans=a.out_channels,
        )
        fold_attention(encoder)
    return Sam(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=a.out_channels,
            image_embedding_size=(a.grid, a.grid),
            input_image_size=(a.side, a.side),
            mask_in_chans=a.mask_channels,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=a.decoder_depth,
                embedding_dim=a.out_channels,
                mlp_dim=a.decoder_mlp,
                num_heads=a.decoder_heads,
            ),
            transformer_dim=a.out_channels,
            iou_head_depth=a.iou_depth,
            iou_head_hidden_dim=a.iou_hidden,
        ),
        pixel_mean=list(_MEAN),
        pixel_std=list(_STD),
    )


def _mobile_encoder() -> nn.Module:
    try:
        from mobile_sam import sam_model_registry
    except ImportError as error:
        raise ConfigError(
            "vit_t needs the package mobile_sam, which is not installed.",
            hint="It is not on the package index: uv pip install"
            " git+https://github.com/ChaoningZhang/MobileSAM.git; or choose vit_b.",
        ) from error
    return sam_model_registry["vit_t"]().image_encoder
