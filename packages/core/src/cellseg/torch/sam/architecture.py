"""The sizes of a Segment Anything model, and of micro-SAM's decoder for it. Light: torch is not
imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from cellseg.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

_ENCODER = "image_encoder."
_TRANSFORMER = "mask_decoder.transformer.layers."
_IOU = "mask_decoder.iou_prediction_head.layers."
_HEADS = 8
"""Heads of the mask decoder in all published models; its shapes do not tell."""
_MASKS = 4
"""Answers of the mask decoder: one for a clear prompt, and three for an ambiguous one."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Segment Anything (Kirillov et al., arXiv:2304.02643) in any size, with or without micro-SAM's
    decoder for automatic segmentation (doi:10.1038/s41592-024-02580-4)."""

    embed_dim: int = 768
    """Width of the image encoder."""
    depth: int = 12
    """Its blocks."""
    heads: int = 12
    global_attention: tuple[int, ...] = (2, 5, 8, 11)
    """Blocks, counted from 0, whose attention sees the whole image; the others see windows."""
    window: int = 14
    """Tokens along a side of a window."""
    patch: int = 16
    """Pixels along a side of a token."""
    side: int = 1024
    """Pixels along a side of the square that the encoder sees."""
    out_channels: int = 256
    """Channels of the embedding of an image."""
    mlp_ratio: float = 4.0
    mask_channels: int = 16
    """Width of what reads mask prompts."""
    decoder_depth: int = 2
    """Blocks of the mask decoder."""
    decoder_heads: int = _HEADS
    decoder_mlp: int = 2048
    iou_depth: int = 3
    """Layers that estimate the quality of a mask."""
    iou_hidden: int = 256
    unetr: tuple[int, int, int, int] | None = (512, 256, 128, 64)
    """Widths of micro-SAM's decoder, from coarse to fine, each half of the one before; None where
    there is none."""
    transposed: bool = False
    """Whether that decoder enlarges by transposed convolutions, as the first ones did."""
    tiny_vit: bool = False
    """Whether the encoder is that of MobileSAM (Zhang et al., arXiv:2306.14289); then what is said
    above of the encoder does not count."""

    @property
    def trunk_channels(self) -> int:
        """Channels of what the image encoder knows before its neck."""
        return 320 if self.tiny_vit else self.embed_dim

    @property
    def grid(self) -> int:
        """Tokens along a side of the square."""
        return self.side // self.patch

    @property
    def mask_side(self) -> int:
        """Pixels along a side of the masks that prompts are answered with."""
        return 4 * self.grid

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold, and gives back the same."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Architecture:
        """From what ``to_dict`` gave, also through JSON.

        Raises:
            TypeError, ValueError: it did not.
        """
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown sizes: {', '.join(sorted(unknown))}")
        widths = values["unetr"]
        if widths is not None and len(widths) != 4:
            raise ValueError(f"the decoder has 4 widths, not {len(widths)}")
        return cls(
            **{
                **values,
                "global_attention": tuple(values["global_attention"]),
                "unetr": None if widths is None else tuple(widths),
            }
        )

    @classmethod
    def named(cls, model_type: str) -> Architecture:
        """The sizes of a model, with a decoder.

        Raises:
            ConfigError: there is no such model.
        """
        from cellseg.torch.sam.model_types import backbone

        return _NAMED[backbone(model_type)]

    @property
    def closest(self) -> str:
        """The name of the model with such an encoder; ``vit_b`` if there is none."""
        key = (self.tiny_vit, self.embed_dim, self.depth)
        for name, named in _NAMED.items():
            if (named.tiny_vit, named.embed_dim, named.depth) == key:
                return name
        return "vit_b"

    @classmethod
    def of_state(
        cls, sam_state: Mapping[str, Tensor], decoder_state: Mapping[str, Tensor] | None
    ) -> Architecture:
        """Read the sizes off the shapes of a model's tensors.

        Args:
            sam_state: state dict of a ``segment_anything.modeling.Sam``.
            decoder_state: micro-SAM's ``decoder_state``, or None.

        Raises:
            WeightsError: it is none, or one that cellseg cannot build.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in sam_state.items()}
        try:
            sizes = _mask_decoder(shapes)
            if f"{_ENCODER}patch_embed.seq.0.c.weight" in shapes:
                sizes |= {"tiny_vit": True}
            else:
                sizes |= _encoder(shapes)
            if shapes["mask_decoder.mask_tokens.weight"][0] != _MASKS:
                raise WeightsError(
                    "the model gives"
                    f" {shapes['mask_decoder.mask_tokens.weight'][0] - 1} masks for an ambiguous"
                    f" prompt, not {_MASKS - 1}"
                )
        except (LookupError, ZeroDivisionError) as error:
            raise WeightsError(f"these are no weights of Segment Anything: {error}") from error
        return cls(**sizes, **_unetr(decoder_state))


def _encoder(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Sizes of the vision transformer."""
    embed_dim, _, patch, _ = shapes[f"{_ENCODER}patch_embed.proj.weight"]
    grid = shapes[f"{_ENCODER}pos_embed"][1]
    depth = _count(shapes, f"{_ENCODER}blocks.")
    name = f"{_ENCODER}blocks.{{}}.attn.rel_pos_h"
    lengths, width = [shapes[name.format(i)][0] for i in range(depth)], shapes[name.format(0)][1]
    windows = {length for length in lengths if length != 2 * grid - 1}
    if len(windows) > 1:
        raise WeightsError("the windows of the encoder's blocks differ in size")
    return {
        "embed_dim": embed_dim,
        "depth": depth,
        "heads": embed_dim // width,
        "global_attention": tuple(i for i, n in enumerate(lengths) if n == 2 * grid - 1),
        "window": (windows.pop() + 1) // 2 if windows else 0,
        "patch": patch,
        "side": grid * patch,
        "out_channels": shapes[f"{_ENCODER}neck.0.weight"][0],
        "mlp_ratio": shapes[f"{_ENCODER}blocks.0.mlp.lin1.weight"][0] / embed_dim,
    }


def _mask_decoder(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    return {
        "out_channels": shapes["prompt_encoder.no_mask_embed.weight"][1],
        "mask_channels": shapes["prompt_encoder.mask_downscaling.3.weight"][0],
        "decoder_depth": _count(shapes, _TRANSFORMER),
        "decoder_mlp": shapes[f"{_TRANSFORMER}0.mlp.lin1.weight"][0],
        "iou_depth": _count(shapes, _IOU),
        "iou_hidden": shapes[f"{_IOU}0.weight"][0],
    }


def _unetr(state: Mapping[str, Tensor] | None) -> dict[str, Any]:
    """Sizes of the decoder for automatic segmentation."""
    if state is None:
        return {"unetr": None}
    try:
        widths = tuple(state[f"deconv{i}.block.1.block.weight"].shape[0] for i in range(1, 5))
        outputs = state["out_conv.weight"].shape[0]
    except KeyError as error:
        raise WeightsError(f"this is no decoder_state of micro-SAM: it lacks {error}") from error
    if outputs != 3:
        raise WeightsError(
            f"the decoder gives {outputs} maps instead of 3: foreground, and distance to the centre"
            " and to the boundary"
        )
    return {"unetr": widths, "transposed": "deconv1.block.0.block.weight" in state}


def _count(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """How many numbered parts there are."""
    numbers = {name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)}
    return len(numbers)


_VIT_B = Architecture()
_NAMED = {
    "vit_b": _VIT_B,
    "vit_l": Architecture(embed_dim=1024, depth=24, heads=16, global_attention=(5, 11, 17, 23)),
    "vit_h": Architecture(embed_dim=1280, depth=32, heads=16, global_attention=(7, 15, 23, 31)),
    "vit_t": Architecture(tiny_vit=True),
    "small": Architecture(
        embed_dim=192,
        depth=6,
        heads=6,
        global_attention=(2, 5),
        window=8,
        side=256,
        out_channels=128,
        decoder_mlp=512,
        iou_hidden=128,
        unetr=(128, 64, 32, 16),
    ),
    "tiny": Architecture(
        embed_dim=32,
        depth=2,
        heads=2,
        global_attention=(1,),
        window=2,
        side=128,
        out_channels=32,
        mlp_ratio=2.0,
        mask_channels=8,
        decoder_mlp=64,
        iou_depth=2,
        iou_hidden=32,
        unetr=(32, 16, 8, 4),
    ),
}
