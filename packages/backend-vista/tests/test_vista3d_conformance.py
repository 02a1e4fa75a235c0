"""vista3d is a cellseg backend."""

from __future__ import annotations

from typing import Any, ClassVar

from cellseg.testing import BackendTests
from cellseg.torch.memory_testing import MemoryTests

TINY: dict[str, Any] = {
    "feature_size": 8,
    "levels": 3,
    "emb_dim": 4,
    "num_classes": 2,
    "patch_size": 48,
    "patch_depth": 8,
    "patches_per_image": 24,
    "batch_size": 4,
    "learning_rate": 5e-3,
    "warmup_steps": 2,
    "average": 0.5,
}


class TestVista3d(BackendTests):
    backend = "vista3d"
    train_options: ClassVar[dict[str, Any]] = TINY
    shape = (12, 64, 64)


class TestMemory(MemoryTests):
    """Some losses are means over the voxels of a batch."""

    difference = 0.01
    backend = "vista3d"
    train_options: ClassVar[dict[str, Any]] = TINY
    shape = (8, 48, 48)
