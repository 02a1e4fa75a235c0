"""The encoders by name, with their decoders; MONAI's are those of two residual networks.

SegResNet: Myronenko, arXiv:1810.11654; SegResNetDS, the encoder of VISTA3D: He et al.,
arXiv:2406.05285.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn  # noqa: TID253

from cellseg.errors import ConfigError, PluginError
from cellseg_vista.levels import Architecture
from cellseg_vista.unet import UNet

_GROUPS = 8
"""Channels that MONAI's group norm takes together are an eighth of all."""


def build(architecture: Architecture) -> nn.Module:
    """The encoder and decoder that the architecture names, and never another.

    It maps an image ``(n, c, *s)``, whose sides are multiples of the stride, to the decoder's
    features, the finest first, and has their numbers of channels in ``sizes``.

    Raises:
        ConfigError: the encoder cannot have this feature size, or these kernels and strides.
        PluginError: MONAI is not installed.
    """
    if architecture.encoder == "unet":
        return UNet(architecture)
    return _MONAI[architecture.encoder](architecture)


class SegResNet(nn.Module):
    """MONAI's SegResNet, which has the same kernels and strides along all axes."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        size = architecture.feature_size
        if size % _GROUPS:
            raise ConfigError(
                f"--feature-size {size}: segresnet needs a multiple of {_GROUPS}",
                hint=f"--feature-size {max(round(size / _GROUPS), 1) * _GROUPS}",
            )
        if {*sum(architecture.strides, ())} - {2} or {*sum(architecture.kernels, ())} != {3}:
            raise ConfigError(
                f"segresnet has kernels of 3 and strides of 2, not {architecture.kernels} and"
                f" {architecture.strides}"
            )
        self.sizes = [size]
        self.net = _monai("segresnet").SegResNet(
            spatial_dims=architecture.dims,
            init_filters=size,
            in_channels=architecture.channels,
            out_channels=size,
            blocks_down=architecture.blocks,
            blocks_up=(1,) * (architecture.levels - 1),
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """The decoder's features at full resolution."""
        return [self.net(image)]


class SegResNetDS(nn.Module):
    """MONAI's SegResNetDS with instance norms, as in VISTA3D, but with one decoder."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        size, kernels = architecture.feature_size, architecture.kernels
        self.sizes = [size] * (1 + architecture.deep_supervision)
        uneven = [kernel for kernel in kernels if 1 in kernel]
        # MONAI takes the spacing, and pools an axis 2**n times as fine as the coarsest n times.
        spacing = tuple(2.0 ** -axis.count(3) for axis in zip(*uneven, strict=True)) or None
        self.net = _monai("segresnet_ds").SegResNetDS(
            spatial_dims=architecture.dims,
            init_filters=size,
            in_channels=architecture.channels,
            out_channels=size,
            norm="instance",
            blocks_down=architecture.blocks,
            dsdepth=1 + architecture.deep_supervision,
            resolution=spacing,
        )
        scales = self.net.anisotropic_scales or [(2,) * architecture.dims] * len(kernels)
        has = tuple(tuple(int(2 * step - 1) for step in scale) for scale in scales)
        steps = tuple(tuple(map(int, scale)) for scale in scales[:-1])
        if has != kernels or steps != architecture.strides:
            raise ConfigError(
                f"segresnet_ds cannot have the kernels {kernels} and strides"
                f" {architecture.strides}; the nearest are {has} and {steps}"
            )

    def forward(self, image: Tensor) -> list[Tensor]:
        """The decoder's features, the finest first; coarser ones only while training."""
        features = self.net(image)
        return features if isinstance(features, list) else [features]


_MONAI = {"segresnet": SegResNet, "segresnet_ds": SegResNetDS}


def _monai(module: str) -> Any:
    """A module of MONAI's networks."""
    import importlib

    try:
        return importlib.import_module(f"monai.networks.nets.{module}")
    except ImportError as error:
        raise PluginError(
            f"--encoder {module} is built by MONAI, which cannot be imported: {error}",
            hint="pip install monai, or --encoder unet.",
        ) from error
