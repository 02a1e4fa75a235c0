"""A residual U-Net whose output at a voxel depends on its surroundings alone.

U-Net: Ronneberger et al., doi:10.1007/978-3-319-24574-4_28. Its normalisation is over the
channels of each voxel (as in ConvNeXt, arXiv:2201.03545), never over space, so that a tile of an
image gives what the whole image gives.
"""

from __future__ import annotations

import itertools

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253
from torch.nn import functional as F  # noqa: TID253

from cellseg_vista.levels import Architecture, Axes

_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def convolution(inputs: int, outputs: int, kernel: Axes, stride: int | Axes = 1) -> nn.Module:
    """A convolution in as many dimensions as the kernel has; without stride, it keeps the size."""
    kind = nn.Conv2d if len(kernel) == 2 else nn.Conv3d
    padding = tuple(size // 2 for size in kernel) if stride == 1 else 0
    return kind(inputs, outputs, kernel, stride=stride, padding=padding)


class UNet(nn.Module):
    """Features of an image ``(n, c, *s)`` whose sides are multiples of the stride."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        kernels, strides = architecture.kernels, architecture.strides
        sizes = [architecture.feature_size * 2**level for level in range(architecture.levels)]
        self.sizes = sizes[:-1] or sizes
        """Channels of the decoder's levels."""
        self._format = _LAST[architecture.dims]
        self._coarse = architecture.deep_supervision
        self._scales = [tuple(map(float, stride)) for stride in strides]
        steps = list(itertools.pairwise(sizes))
        self.stem = convolution(architecture.channels, sizes[0], kernels[0])
        self.encoder = nn.ModuleList(
            nn.Sequential(*[_Block(size, kernel) for _ in range(count)])
            for size, kernel, count in zip(sizes, kernels, architecture.blocks, strict=True)
        )
        self.down = nn.ModuleList(
            convolution(fine, coarse, stride, stride)
            for (fine, coarse), stride in zip(steps, strides, strict=True)
        )
        point = (1,) * architecture.dims
        self.up = nn.ModuleList(convolution(coarse, fine, point) for fine, coarse in steps)
        self.decoder = nn.ModuleList(
            _Block(fine, kernel) for (fine, _), kernel in zip(steps, kernels, strict=False)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """The decoder's features, the finest first; coarser ones only while training."""
        x = self.stem(image.contiguous(memory_format=self._format))
        skips = []
        for level, blocks in enumerate(self.encoder):
            x = blocks(x)
            if level < len(self.down):
                skips.append(x)
                x = self.down[level](x)
        features = []
        for level in reversed(range(len(self.decoder))):
            x = F.interpolate(self.up[level](x), scale_factor=self._scales[level], mode="nearest")
            x = self.decoder[level](x + skips[level])
            if level == 0 or (self.training and level <= self._coarse):
                features.append(x)
        return features[::-1] or [x]


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each voxel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Features of the same shape, with mean 0 and variance 1 before weight and bias."""
        last = F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias)
        return last.movedim(-1, 1)


class _Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int, kernel: Axes) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.first = convolution(channels, channels, kernel)
        self.second = convolution(channels, channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(self.norm(x)))))
