"""Attention with decomposed relative positions, without the table of all pairs of tokens.

A vision transformer of ViTDet's kind (Li et al., arXiv:2203.16527), such as Segment Anything's
image encoder, adds to the product of query and key a learned term for how far the two tokens are
apart along each axis (Li et al., arXiv:2112.01526): ``q k + q R_y[dy] + q R_x[dx]``. Both terms
depend on the key through its row and its column only. So a query that is lengthened by its terms
for all rows and all columns, and a key that is lengthened by an indicator of its row and of its
column, have that sum as their plain product, and ``scaled_dot_product_attention`` never holds it
for all pairs.
"""

from __future__ import annotations

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253
from torch.nn import functional as F  # noqa: TID253


class FoldedAttention(nn.Module):  # type: ignore[misc]
    """Multi-head attention on a grid of tokens, with or without relative positions.

    It takes over the parameters of the attention that it replaces, under the same names.

    Args:
        attention: ``segment_anything.modeling.image_encoder.Attention``, or what has its
            attributes: ``qkv``, ``proj``, ``num_heads``, ``scale``, ``use_rel_pos``, and
            ``rel_pos_h`` and ``rel_pos_w`` with it, each ``(2 n - 1, c)`` for ``n`` tokens.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.num_heads: int = attention.num_heads
        self.scale: float = attention.scale
        self.use_rel_pos: bool = attention.use_rel_pos
        self.qkv, self.proj = attention.qkv, attention.proj
        if self.use_rel_pos:
            self.rel_pos_h, self.rel_pos_w = attention.rel_pos_h, attention.rel_pos_w

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(n, y, x, c)`` to as many of the same size."""
        n, height, width, _ = x.shape
        qkv = self.qkv(x).reshape(n, height * width, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (n, heads, tokens, channels)
        channels, scale = q.shape[-1], self.scale
        if self.use_rel_pos:
            q, k = self._fold(q, k, height, width)
            # Kernels that hold no table want all three as wide, and in multiples of 8.
            v, scale = F.pad(v, (0, q.shape[-1] - channels)), 1.0
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)[..., :channels]
        return self.proj(out.transpose(1, 2).reshape(n, height, width, -1))

    def _fold(self, q: Tensor, k: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Query and key whose product has the terms of the positions in it."""
        n, heads, _, channels = q.shape
        grid = q.reshape(n, heads, height, width, channels)
        along_y = torch.einsum("bnhwc,hkc->bnhwk", grid, _positions(self.rel_pos_h, height))
        along_x = torch.einsum("bnhwc,wkc->bnhwk", grid, _positions(self.rel_pos_w, width))
        spare = -(channels + height + width) % 8
        q = torch.cat(
            [grid * self.scale, along_y, along_x, grid.new_zeros(*grid.shape[:4], spare)], -1
        )
        rows = torch.eye(height, dtype=k.dtype, device=k.device).repeat_interleave(width, 0)
        columns = torch.eye(width, dtype=k.dtype, device=k.device).repeat(height, 1)
        where = F.pad(torch.cat([rows, columns], dim=1), (0, spare))
        k = torch.cat([k, where.expand(n, heads, -1, -1)], dim=-1)
        return q.flatten(2, 3), k


def fold_attention(encoder: nn.Module) -> None:
    """Replace the attention of each block of an image encoder, in place.

    The results are the same; the memory grows with the number of tokens, instead of its square.
    Names and parameters stay, so state dicts can be exchanged both ways.

    Args:
        encoder: ``segment_anything.modeling.ImageEncoderViT``, or another with ``blocks`` that
            have such an ``attn``.
    """
    for block in encoder.blocks:
        block.attn = FoldedAttention(block.attn)


def _positions(table: Tensor, size: int) -> Tensor:
    """Entry of each key for each query along one axis ``(size, size, c)``; for another number of
    tokens than the table is made for, linearly interpolated."""
    if table.shape[0] != 2 * size - 1:
        table = F.interpolate(table.T[None], size=2 * size - 1, mode="linear")[0].T
    at = torch.arange(size, device=table.device)
    return table[at[:, None] - at[None, :] + size - 1]
