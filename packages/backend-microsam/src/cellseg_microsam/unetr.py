"""The decoder for automatic segmentation: from the embedding of an image to three maps."""

from __future__ import annotations

from itertools import pairwise

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253
from torch.nn import functional as F  # noqa: TID253

from cellseg_microsam.unetr_cpu import can_decode, decode

MAPS = 3
"""Foreground, distance to the centre of the object, distance to its boundary."""


class UnetrDecoder(nn.Module):
    """Micro-SAM's decoder (Archit et al., doi:10.1038/s41592-024-02580-4): a UNETR without skip
    connections to the encoder.

    Its parameters have the names and shapes of micro-SAM's ``decoder_state``, and the results are
    those of ``torch_em.model.UNETR``, which it is built after.

    Args:
        channels: of the embedding.
        widths: of the features, from coarse to fine, each half of the one before.
        transposed: enlarge by transposed convolutions instead of bilinearly.
    """

    def __init__(
        self, channels: int, widths: tuple[int, int, int, int], *, transposed: bool = False
    ) -> None:
        super().__init__()
        self.transposed = transposed
        first, second, third, last = widths
        self.deconv1 = _Enlarged(channels, first, transposed)
        self.deconv2 = _Enlarged(first, second, transposed)
        self.deconv3 = _Enlarged(second, third, transposed)
        self.deconv4 = _Enlarged(third, last, transposed)
        self.base = _Convolutions(channels, first)
        self.decoder = _Stages(widths, transposed)
        self.deconv_out = _upsampler(last, last, transposed)
        self.decoder_head = _Convolutions(2 * last, last)
        self.out_conv = nn.Conv2d(last, MAPS, 1)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits of the three maps ``(n, 3, 16 y, 16 x)`` of embeddings ``(n, c, y, x)``."""
        if can_decode(self, embeddings):
            return decode(self, embeddings)
        z9 = self.deconv1(embeddings)
        z6 = self.deconv2(z9)
        z3 = self.deconv3(z6)
        z0 = self.deconv4(z3)
        x = self.decoder(self.base(embeddings), (z9, z6, z3))
        x = self.decoder_head(torch.cat([self.deconv_out(x), z0], dim=1))
        return self.out_conv(x)


class _Upsampler(nn.Module):
    """Twice as large, bilinearly, with another number of channels.

    The convolution sees single pixels, and the weights of the interpolation sum to one, so the two
    can change places: a quarter of the products.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.conv(x), scale_factor=2, mode="bilinear", align_corners=False)


class _Transposed(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.block = nn.ConvTranspose2d(inputs, outputs, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


def _upsampler(inputs: int, outputs: int, transposed: bool) -> nn.Module:
    return _Transposed(inputs, outputs) if transposed else _Upsampler(inputs, outputs)


class _Convolution(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class _Enlarged(nn.Module):
    def __init__(self, inputs: int, outputs: int, transposed: bool) -> None:
        super().__init__()
        self.block = nn.Sequential(
            _upsampler(inputs, outputs, transposed),
            _Convolution(outputs),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class _Convolutions(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.InstanceNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.InstanceNorm2d(outputs),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class _Stages(nn.Module):
    def __init__(self, widths: tuple[int, ...], transposed: bool) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.blocks = nn.ModuleList(_Convolutions(*pair) for pair in pairs)
        self.samplers = nn.ModuleList(_upsampler(*pair, transposed) for pair in pairs)

    def forward(self, x: Tensor, finer: tuple[Tensor, ...]) -> Tensor:
        for block, sampler, other in zip(self.blocks, self.samplers, finer, strict=True):
            x = sampler(x)
            channels = x.shape[1]  # only the middle half of the other's go this way, as in torch-em
            other = other.narrow(1, (other.shape[1] - channels) // 2, channels)
            x = block(torch.cat([x, other], dim=1))
        return x
