"""vista2d is a cellseg backend."""

from __future__ import annotations

from typing import Any, ClassVar

from cellseg.testing import BackendTests
from cellseg.torch.memory_testing import MemoryTests

TINY: dict[str, Any] = {
    "feature_size": 8,
    "emb_dim": 4,
    "patch_size": 64,
    "patches_per_image": 48,
    "batch_size": 4,
    "learning_rate": 5e-3,
    "warmup_steps": 2,
    "average": 0.5,
}


class TestVista2d(BackendTests):
    backend = "vista2d"
    train_options: ClassVar[dict[str, Any]] = TINY


class TestMemory(MemoryTests):
    """Some losses are means over the voxels of a batch."""

    difference = 0.01
    backend = "vista2d"
    train_options: ClassVar[dict[str, Any]] = TINY
