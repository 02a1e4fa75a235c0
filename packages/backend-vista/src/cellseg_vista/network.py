"""The network: a small residual U-Net whose output at a pixel depends on its surroundings alone.

U-Net: Ronneberger et al., doi:10.1007/978-3-319-24574-4_28. Its normalisation is over the
channels of each pixel (as in ConvNeXt, arXiv:2201.03545), never over space, so that a tile of an
image gives what the whole image gives.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253
from torch.nn import functional as F  # noqa: TID253

from cellseg.errors import WeightsError
from cellseg.files import write_atomic
from cellseg.torch.weights import FILE, load_weights, save_weights

STRIDE = 8
"""Edge of the coarsest level's pixels: images are padded to a multiple of it."""
_BLOCKS = (1, 1, 2, 2)


@dataclass(frozen=True)
class Architecture:
    """What it takes to build the network again."""

    channels: int
    feature_size: int
    emb_dim: int
    num_classes: int = 2


class Maps(NamedTuple):
    """What the network says about each pixel, ``(n, ?, y, x)``."""

    semantic: Tensor
    """Logits of the classes: background, cell."""
    distance: Tensor
    """Logit of how deep in its cell a pixel lies: 0 at the edge, 1 from halfway in."""
    embedding: Tensor
    """A point in a space where each cell has its own place."""


class Network(nn.Module):
    """Maps images ``(n, c, y, x)``, float32 and normalised, of any size, to ``Maps``."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        sizes = [architecture.feature_size * 2**level for level in range(len(_BLOCKS))]
        self.stem = nn.Conv2d(architecture.channels, sizes[0], 3, padding=1)
        self.encoder = nn.ModuleList(
            nn.Sequential(*[_Block(size) for _ in range(count)])
            for size, count in zip(sizes, _BLOCKS, strict=True)
        )
        steps = list(itertools.pairwise(sizes))
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in steps)
        self.up = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in steps)
        self.decoder = nn.ModuleList(_Block(fine) for fine, _ in steps)
        self.norm = _ChannelNorm(sizes[0])
        heads = (architecture.num_classes, 1, architecture.emb_dim)
        self.heads = nn.ModuleList(nn.Conv2d(sizes[0], size, 1) for size in heads)

    def forward(self, image: Tensor) -> Maps:
        """Pad, compute, and crop back to the image."""
        height, width = image.shape[-2:]
        padding = (0, -width % STRIDE, 0, -height % STRIDE)
        maps = self.maps(F.pad(image, padding, mode="replicate"))
        return Maps(*(m[..., :height, :width] for m in maps))

    def maps(self, image: Tensor) -> Maps:
        """The same for an image whose sides are multiples of ``STRIDE``."""
        x = self.stem(image.contiguous(memory_format=torch.channels_last))
        skips = []
        for level, blocks in enumerate(self.encoder):
            x = blocks(x)
            if level < len(self.down):
                skips.append(x)
                x = self.down[level](x)
        for level in reversed(range(len(self.decoder))):
            x = F.interpolate(self.up[level](x), scale_factor=2.0, mode="nearest")
            x = self.decoder[level](x + skips[level])
        x = F.relu(self.norm(x))
        return Maps(*(head(x) for head in self.heads))

    def save(self, directory: Path) -> None:
        """Write the weights and what it takes to build the network."""
        write_atomic(directory / "network.json", json.dumps(asdict(self.architecture)) + "\n")
        save_weights(self, directory / FILE)

    @classmethod
    def load(cls, directory: Path) -> Network:
        """Read what ``save`` wrote.

        Raises:
            WeightsError: a file is missing or damaged.
        """
        file = directory / "network.json"
        try:
            network = cls(Architecture(**json.loads(file.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError) as error:
            raise WeightsError(
                f"{file} cannot be read: {error}", hint="Give the directory of a vista2d model."
            ) from error
        load_weights(network, directory / FILE)
        return network.eval()


class _ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        last = x.permute(0, 2, 3, 1)
        return F.layer_norm(last, self.weight.shape, self.weight, self.bias).permute(0, 3, 1, 2)


class _Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _ChannelNorm(channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(self.norm(x)))))
