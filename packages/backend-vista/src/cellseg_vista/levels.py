"""What it takes to build a network, and how its levels follow the voxels' shape; needs no torch."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from cellseg.errors import ConfigError

ENCODERS = ("unet", "segresnet", "segresnet_ds")
_BLOCKS = {"unet": (1, 1, 2), "segresnet": (1, 2, 2, 4), "segresnet_ds": (1, 2, 2, 4)}
_LEAST = 2
"""Voxels of a patch that pooling must leave along an axis."""
_ROUNDING = 1e-6

Axes = tuple[int, ...]
"""A number for each axis: ``(y, x)`` or ``(z, y, x)``."""


@dataclass(frozen=True)
class Architecture:
    """What it takes to build the network again.

    Raises:
        ConfigError: the values do not go together.
    """

    channels: int
    feature_size: int
    emb_dim: int
    num_classes: int = 2
    dims: int = 2
    encoder: str = "unet"
    strides: tuple[Axes, ...] = ((2, 2),) * 3
    """How far apart the voxels of each level but the first are, in voxels of the one before."""
    kernels: tuple[Axes, ...] = ((3, 3),) * 4
    """Size of the convolutions at each level, the finest first."""
    deep_supervision: int = 0
    """Coarser levels of the decoder that give maps as well while training."""

    def __post_init__(self) -> None:
        if self.encoder not in ENCODERS:
            raise ConfigError(
                f"--encoder {self.encoder} is unknown; there are {', '.join(ENCODERS)}"
            )
        if self.dims not in (2, 3):
            raise ConfigError(f"a network has 2 or 3 dimensions, not {self.dims}")
        sizes = {len(axes) for axes in (*self.strides, *self.kernels)}
        values = set(itertools.chain(*self.strides)) <= {1, 2} and set(
            itertools.chain(*self.kernels)
        ) <= {1, 3}
        if len(self.kernels) != len(self.strides) + 1 or sizes != {self.dims} or not values:
            raise ConfigError(
                f"strides {self.strides} and kernels {self.kernels} are not those of a network of"
                f" {self.dims} dimensions"
            )
        if self.deep_supervision and self.encoder == "segresnet":
            raise ConfigError("--deep-supervision goes with --encoder unet or segresnet_ds")
        if self.deep_supervision > max(self.levels - 2, 0):
            raise ConfigError(
                f"--deep-supervision {self.deep_supervision}: the decoder has"
                f" {max(self.levels - 2, 0)} coarser levels with --levels {self.levels}"
            )

    @classmethod
    def planned(
        cls,
        *,
        channels: int,
        feature_size: int,
        emb_dim: int,
        num_classes: int,
        dims: int,
        encoder: str,
        deep_supervision: int,
        levels: int,
        spacing: Sequence[float],
        patch: Sequence[int],
    ) -> Architecture:
        """The network whose kernels and strides suit the voxels, as far as its encoder can.

        ``unet`` follows ``plan_levels``. ``segresnet_ds`` follows the same rule, but pools however
        small the patch, and two axes that are both coarse are pooled as MONAI does it.
        ``segresnet`` cannot treat axes differently; see ``notes``.

        Args:
            spacing: size of a voxel, ``(z, y, x)`` or the last ``dims`` of them, in any unit.
            patch: size of a training patch in voxels, likewise.

        Raises:
            ConfigError: the patch is too small for so many levels.
        """
        if encoder == "unet":
            kernels, strides = plan_levels(spacing, patch, levels, dims)
        else:
            even = encoder == "segresnet" or dims == 2
            kernels = _isotropic_first((1.0,) * dims if even else spacing[-dims:], levels)
            strides = tuple(tuple(1 if k == 1 else 2 for k in kernel) for kernel in kernels[:-1])
        planned = cls(
            channels=channels,
            feature_size=feature_size,
            emb_dim=emb_dim,
            num_classes=num_classes,
            dims=dims,
            encoder=encoder,
            strides=strides,
            kernels=kernels,
            deep_supervision=deep_supervision,
        )
        if encoder != "unet" and any(map(operator.lt, patch[-dims:], planned.smallest)):
            least, given = (
                " x ".join(map(str, sizes)) for sizes in (planned.smallest, patch[-dims:])
            )
            raise ConfigError(
                f"--levels {levels} is too many: {encoder} then needs patches of at least {least},"
                f" not {given}",
                hint="Fewer --levels, or larger patches.",
            )
        return planned

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Architecture:
        """From what JSON made of ``dataclasses.asdict``.

        Raises:
            ValueError: a value is missing or unknown, or they do not go together.
        """
        names = {field.name for field in fields(cls)}
        if missing := sorted(names - set(values)):
            raise ValueError(f"{', '.join(missing)} missing: an earlier cellseg wrote it")
        if unknown := sorted(set(values) - names):
            raise ValueError(f"{', '.join(unknown)} unknown: a later cellseg wrote it")
        axes = {name: tuple(map(tuple, values[name])) for name in ("strides", "kernels")}
        return cls(**{**values, **axes})

    @property
    def levels(self) -> int:
        """Number of resolutions, the full one included."""
        return len(self.kernels)

    @property
    def stride(self) -> Axes:
        """Edges of the coarsest level's voxels, in voxels of the image."""
        return tuple(math.prod(steps) for steps in zip(*self.strides, strict=True)) or (
            (1,) * self.dims
        )

    @property
    def blocks(self) -> Axes:
        """Residual blocks of the encoder at each level."""
        counts = _BLOCKS[self.encoder]
        return tuple(counts[min(level, len(counts) - 1)] for level in range(self.levels))

    @property
    def smallest(self) -> Axes:
        """Smallest image that the network takes unpadded.

        Norms over space need more than one voxel, so the coarsest level has two along each axis.
        """
        return self.stride if self.encoder == "unet" else tuple(2 * step for step in self.stride)


def plan_levels(
    spacing: Sequence[float], patch: Sequence[int], levels: int, dims: int
) -> tuple[tuple[Axes, ...], tuple[Axes, ...]]:
    """Kernels of ``levels`` resolutions, and the strides between them, from the voxels' shape.

    An axis whose voxels are at least twice as long as the shortest is neither convolved across
    nor pooled, until the others have caught up; it stays convolved from then on. An axis of which
    a patch would keep fewer than 2 voxels is not pooled either. After nnU-Net (Isensee et al.,
    doi:10.1038/s41592-020-01008-z), which leaves 4 and decides the number of levels as well.

    Args:
        spacing: size of a voxel, ``(z, y, x)`` or the last ``dims`` of them, in any unit. With
            two dimensions, y and x count as equal.
        patch: size of a training patch in voxels, likewise.
        levels: number of resolutions, the full one included.
        dims: 2 or 3.

    Raises:
        ConfigError: a patch cannot be halved so often along any axis.
        ValueError: the spacing is not positive.
    """
    at = [float(size) for size in spacing[-dims:]] if dims == 3 else [1.0, 1.0]
    if not all(math.isfinite(size) and size > 0 for size in at):
        raise ValueError(f"the spacing {tuple(spacing)} is not positive")
    extent = list(patch[-dims:])
    kernel = [1] * dims
    kernels, strides = [], []
    for level in range(levels):
        near = _near(at, min(at))
        kernel = [
            3 if before == 3 or (close and size > 1) else 1
            for before, close, size in zip(kernel, near, extent, strict=True)
        ]
        kernels.append(tuple(kernel))
        if level == levels - 1:
            break
        able = [size >= 2 * _LEAST for size in extent]
        if not any(able):
            raise ConfigError(
                f"--levels {levels} is too many: a patch of"
                f" {' x '.join(map(str, patch[-dims:]))} can be halved {level} times",
                hint=f"--levels {level + 1}, or a larger --patch-size.",
            )
        near = _near(at, min(itertools.compress(at, able)))
        stride = [2 if can and close else 1 for can, close in zip(able, near, strict=True)]
        at = [size * step for size, step in zip(at, stride, strict=True)]
        extent = [math.ceil(size / step) for size, step in zip(extent, stride, strict=True)]
        strides.append(tuple(stride))
    return tuple(kernels), tuple(strides)


def receptive_field(architecture: Architecture) -> Axes | None:
    """How many voxels to either side of it, along each axis, an output voxel depends on.

    Exact for ``unet``, over all places that a voxel can have within a voxel of the coarsest
    level. None for the other encoders: they normalise over space, so that a voxel depends, if
    ever so little, on all of the image.
    """
    if architecture.encoder != "unet":
        return None
    return tuple(
        max(_reach(architecture, axis, at) for at in range(architecture.stride[axis]))
        for axis in range(architecture.dims)
    )


def notes(architecture: Architecture, spacing: Sequence[float]) -> tuple[str, ...]:
    """What the user should know about how the network treats voxels of this ``spacing``."""
    sizes = spacing[-architecture.dims :]
    if architecture.dims == 2 or all(_near(sizes, min(sizes))):
        return ()
    if architecture.encoder == "segresnet":
        return (
            f"The voxels are {max(sizes) / min(sizes):.2g} times as long as wide, but segresnet"
            " has the same kernels and strides along all axes; unet and segresnet_ds adapt theirs.",
        )
    shown = ", ".join("x".join(map(str, kernel)) for kernel in architecture.kernels)
    steps = ", ".join("x".join(map(str, stride)) for stride in architecture.strides)
    return (f"Kernels for these voxels, by level: {shown}; strides between levels: {steps}.",)


def _near(sizes: Sequence[float], smallest: float) -> list[bool]:
    """Which of the ``sizes`` are less than twice the smallest."""
    return [size < 2 * smallest * (1 - _ROUNDING) for size in sizes]


def _isotropic_first(spacing: Sequence[float], levels: int) -> tuple[Axes, ...]:
    """Kernels as MONAI's SegResNetDS has them: 1 along an axis that is not pooled yet.

    An axis that is ``2**n`` times as fine as the coarsest is pooled n times, the finest ones at
    each level; from then on all are.
    """
    if not all(math.isfinite(size) and size > 0 for size in spacing):
        raise ValueError(f"the spacing {tuple(spacing)} is not positive")
    lead = [math.floor(math.log2(max(spacing) / size) + _ROUNDING) for size in spacing]
    return tuple(
        tuple(1 if level < max(lead) and level >= steps else 3 for steps in lead)
        for level in range(levels)
    )


def _reach(architecture: Architecture, axis: int, at: int) -> int:
    """What the U-Net's output at ``at`` looks at, from the decoder back to the image."""
    radii = [kernel[axis] // 2 for kernel in architecture.kernels]
    steps = [stride[axis] for stride in architecture.strides]
    first = last = at
    for radius, step in zip(radii, steps, strict=False):  # up: nearest neighbour, then a block
        first, last = (first - 2 * radius) // step, (last + 2 * radius) // step
    for level in reversed(range(architecture.levels)):
        width = 2 * radii[level] * architecture.blocks[level]
        first, last = first - width, last + width
        if level:  # down: one voxel from each group of ``step``
            step = steps[level - 1]
            first, last = first * step, last * step + step - 1
    return max(at - first, last - at) + radii[0]  # the stem
