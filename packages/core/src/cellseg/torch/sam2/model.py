"""SAM 2.1 with random weights, in any of its sizes, without hydra's global state."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn  # noqa: TID253

from cellseg.errors import ConfigError
from cellseg.torch.sam2.sizes import RANDOM, SIZES, default_side

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the red, green and blue of SAM 2's training images, 0..1."""
STRIDE = 16
"""Pixels along a side of a place of the embedding."""
SIDES = 32
"""What the side of the square must be a multiple of."""
_FILES = {
    "sam2.1_hiera_tiny": "sam2.1_hiera_t",
    "sam2.1_hiera_small": "sam2.1_hiera_s",
    "sam2.1_hiera_base_plus": "sam2.1_hiera_b+",
    "sam2.1_hiera_large": "sam2.1_hiera_l",
}


def build(name: str, side: int | None = None) -> nn.Module:
    """A ``sam2.modeling.sam2_base.SAM2Base`` with random weights, set to training, on the CPU.

    Args:
        name: one of ``SIZES``.
        side: pixels along a side of the square; None for the one that it was made for. Weights do
            not depend on it.

    Raises:
        ConfigError: there is no such size, the side is no multiple of 32 or too small, or the
            package sam2 is not installed.
    """
    side = default_side(name) if side is None else side
    if name not in SIZES:
        raise ConfigError(
            f"There is no SAM 2 of the size {name!r}.", hint=f"There are: {', '.join(SIZES)}."
        )
    least = 2 * SIDES if name in RANDOM else SIDES
    if side < least or side % SIDES:
        raise ConfigError(
            f"{name} takes squares whose side is a multiple of {SIDES}, at least {least} pixels,"
            f" not {side}."
        )
    if find_spec("sam2") is None:
        raise ConfigError(
            f"{name} needs the package sam2, which is not installed.",
            hint='Install it: SAM2_BUILD_CUDA=0 uv pip install "cellseg-core[sam2]"',
        )
    if name in RANDOM:
        from cellseg.torch.sam2.small import SMALL, build_small

        return build_small(SMALL[name], side)
    from hydra.utils import instantiate

    config = described(name)
    config.model.image_size = side
    for attention in ("self_attention", "cross_attention"):  # else it is computed again at once
        config.model.memory_attention.layer[attention].feat_sizes = [side // STRIDE] * 2
    for part in (config.model.image_encoder.neck, config.model.memory_encoder):
        part.position_encoding.warmup_cache = False  # of a GPU, for squares of 1024 pixels
    model: nn.Module = instantiate(config.model)
    return model


def described(name: str) -> Any:
    """The file of the package that describes a published size."""
    import sam2
    from omegaconf import OmegaConf

    folder = Path(sam2.__path__[0]) / "configs" / "sam2.1"
    config = OmegaConf.load(folder / f"{_FILES[name]}.yaml")
    OmegaConf.resolve(config)
    return config
