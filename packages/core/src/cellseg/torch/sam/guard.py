"""Refuses an installed ``segment_anything`` that is known to do harm."""

from __future__ import annotations

import inspect
from importlib.metadata import PackageNotFoundError, distribution

from cellseg.errors import PluginError

_MEND = (
    "uv pip uninstall segment-anything segment-anything-py && uv pip install"
    ' "segment-anything-py>=1.0.1"'
)


def check_segment_anything() -> None:
    """Make sure that it is the package segment-anything-py that is imported.

    The package segment-anything 1.0 has the same modules. There, a batch of images is squashed
    when it is resized, because its first two axes are taken for height and width; micro-SAM trains
    on what comes out. And masks of many prompts cannot be compared on a GPU. Where both packages
    are installed, the files are those of whichever came last.

    Raises:
        PluginError: it is not.
    """
    import torch
    from segment_anything import SamAutomaticMaskGenerator
    from segment_anything.utils.transforms import ResizeLongestSide

    resized = ResizeLongestSide(8).apply_image_torch(torch.zeros(2, 1, 4, 4))
    compares = "zeros_like" in inspect.getsource(SamAutomaticMaskGenerator._process_crop)
    if tuple(resized.shape) == (2, 1, 8, 8) and compares:
        return
    try:
        found = f"segment-anything {distribution('segment-anything').version} is installed"
    except PackageNotFoundError:
        found = "its files are those of the package segment-anything"
    raise PluginError(
        f"The installed segment_anything squashes images: {found}. cellseg needs"
        " segment-anything-py, which has the same import name.",
        hint=_MEND,
    )
