"""The network: an encoder with its decoder, and heads for classes, distance and embedding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253
from torch.nn import functional as F  # noqa: TID253

from cellseg.errors import WeightsError
from cellseg.files import write_atomic
from cellseg.limits import MOST_JSON, read_bytes
from cellseg.torch.reading import built_for
from cellseg.torch.weights import FILE, load_weights, save_weights
from cellseg_vista.encoders import build
from cellseg_vista.levels import Architecture, Axes, notes, plan_levels, receptive_field
from cellseg_vista.unet import ChannelNorm, convolution

__all__ = ["Architecture", "Maps", "Network", "notes", "plan_levels", "receptive_field"]

_UNEXPECTED = -6.0
"""Logit of a class that does not occur."""
_INTERPOLATION = {2: "bilinear", 3: "trilinear"}


class Maps(NamedTuple):
    """What the network says about each voxel; ``*s`` is ``(y, x)`` or ``(z, y, x)``."""

    semantic: Tensor
    """Logits of the classes ``(n, k, *s)``, background first."""
    distance: Tensor
    """Logit of how deep in its object a voxel lies ``(n, 1, *s)``: 0 at the edge, 1 from halfway
    in."""
    embedding: Tensor
    """A point in a space where each object has its own place ``(n, e, *s)``."""
    coarse: tuple[Maps, ...] = ()
    """While training with deep supervision: the same from the coarser levels of the decoder, the
    finer first, interpolated linearly to the size of the image."""


class Network(nn.Module):
    """Maps images ``(n, c, *s)``, float32 and normalised, of any size, to ``Maps``.

    Raises:
        ConfigError: the encoder cannot be built like this.
        PluginError: the encoder needs MONAI, which is missing.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.trunk = build(architecture)
        self.heads = nn.ModuleList(
            _Heads(size, architecture)
            for size in self.trunk.sizes[: 1 + architecture.deep_supervision]
        )

    @property
    def stride(self) -> Axes:
        """``maps`` takes images whose sides are multiples of these."""
        return self.architecture.stride

    def forward(self, image: Tensor) -> Maps:
        """Pad with the voxels at the border, compute, and crop back to the image."""
        shape = image.shape[2:]
        wanted = [
            max(-(-size // step) * step, least)
            for size, step, least in zip(
                shape, self.stride, self.architecture.smallest, strict=True
            )
        ]
        padding = [(0, want - size) for want, size in zip(wanted, shape, strict=True)]
        flat = [size for pair in reversed(padding) for size in pair]
        if any(flat):
            image = F.pad(image, flat, mode="replicate")
        maps = self.maps(image)
        return _crop(maps, shape) if any(flat) else maps

    def maps(self, image: Tensor) -> Maps:
        """The same for an image whose sides are multiples of ``stride``, and at least
        ``architecture.smallest``."""
        finest, *coarser = [
            head(features) for head, features in zip(self.heads, self.trunk(image), strict=False)
        ]
        return finest._replace(coarse=tuple(_enlarged(maps, image.shape[2:]) for maps in coarser))

    def expect(self, classes: int) -> None:
        """Start with next to no probability for classes from this number on, which the data lacks.

        Otherwise the first of the training goes into unlearning them.
        """
        for heads in self.heads:
            with torch.no_grad():
                heads.maps[0].bias[classes:] = _UNEXPECTED

    def save(self, directory: Path) -> None:
        """Write the weights and what it takes to build the network."""
        write_atomic(directory / "network.json", json.dumps(asdict(self.architecture)) + "\n")
        save_weights(self, directory / FILE)

    @classmethod
    def load(cls, directory: Path) -> Network:
        """Read what ``save`` wrote.

        Raises:
            PluginError: the encoder needs MONAI, which is missing.
            WeightsError: a file is missing or damaged, or another version of cellseg wrote it.
        """
        file = directory / "network.json"
        try:
            described = Architecture.of(json.loads(read_bytes(file, MOST_JSON, WeightsError)))
            with built_for(directory / FILE):
                network = cls(described)
        except (OSError, ValueError, TypeError, RecursionError, AttributeError) as error:
            raise WeightsError(
                f"{file} cannot be read: {error}",
                hint="Give the directory of a vista2d or vista3d model of this version.",
            ) from error
        load_weights(network, directory / FILE)
        return network.eval()


class _Heads(nn.Module):
    """Classes, distance and embedding from the features of one level."""

    def __init__(self, size: int, architecture: Architecture) -> None:
        super().__init__()
        self.norm = ChannelNorm(size)
        outputs = (architecture.num_classes, 1, architecture.emb_dim)
        point = (1,) * architecture.dims
        self.maps = nn.ModuleList(convolution(size, count, point) for count in outputs)

    def forward(self, features: Tensor) -> Maps:
        x = F.relu(self.norm(features))
        return Maps(*(head(x) for head in self.maps))


def _enlarged(maps: Maps, shape: Sequence[int]) -> Maps:
    mode = _INTERPOLATION[len(shape)]
    return Maps(*(F.interpolate(m, tuple(shape), mode=mode, align_corners=False) for m in maps[:3]))


def _crop(maps: Maps, shape: Sequence[int]) -> Maps:
    inner = (..., *(slice(size) for size in shape))
    coarse = tuple(_crop(each, shape) for each in maps.coarse)
    return Maps(maps.semantic[inner], maps.distance[inner], maps.embedding[inner], coarse)
