"""The model of others that vista3d can start from."""

from __future__ import annotations

from pathlib import Path

from cellseg.download.remote import Remote
from cellseg.specs import PublishedModel


def models_folder() -> Path:
    """Where it is kept: in the user's folder for caches."""
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("cellseg")) / "models"


VISTA3D = PublishedModel(
    name="vista3d",
    licence="NVIDIA OneWay Noncommercial License: for research and evaluation alone",
    files=(
        Remote(
            url="https://developer.download.nvidia.com/assets/Clara/monai/tutorials/model_zoo/"
            "model_vista3d.pt",
            name="model_vista3d.pt",
        ),
    ),
    folder=models_folder,
    citation="arXiv:2406.05285",
)
"""VISTA3D (He et al.), for ``--encoder-weights``. Nobody published a checksum."""
