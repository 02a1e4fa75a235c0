"""A small model whose weights depend on nothing but their names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_sam() -> Callable[..., Any]:
    """``make_sam(seed=1, sharp=False, **architecture)``: a ``MicroSam`` of ``small_architecture``
    with a decoder, set to evaluation; ``sharp`` ones have masks as stable as trained ones."""
    pytest.importorskip("torch")
    from sam_fakes import draw_weights, sharpen, small_architecture

    from cellseg_microsam.model import MicroSam

    def make(seed: int = 1, sharp: bool = False, **sizes: Any) -> MicroSam:
        model = MicroSam(small_architecture(**{"unetr": (32, 16, 8, 4), **sizes})).eval()
        draw_weights(model, seed)
        if sharp:
            sharpen(model)
        return model

    return make
