"""Published models: where their files are, their checksums and licences. Light."""

from __future__ import annotations

from cellseg.specs import BaseWeights


def base_weights() -> tuple[BaseWeights, ...]:
    """The models of ``model_types`` that can be downloaded."""
    return ()
