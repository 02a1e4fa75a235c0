"""A bundle's normaliser in the words of bioimage.io."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cellseg.errors import DataError
from cellseg.normalise import Normaliser

EPSILON = 1e-6
"""What bioimage.io adds to the range, or the standard deviation, that it divides by."""


def steps(normaliser: Normaliser, channels: int, space: Sequence[str]) -> list[dict[str, Any]]:
    """The pre-processing of one image that does what ``normaliser.apply`` does.

    Two things differ, both without weight: ``EPSILON``, and that a constant channel that is to be
    inverted becomes 1 and not 0.

    Args:
        normaliser: of the bundle.
        channels: of the image, on an axis named ``channel``.
        space: names of its other axes, such as ``("y", "x")``.

    Returns:
        Steps with ``id`` and ``kwargs``, for ``inputs.preprocessing`` of a model description.

    Raises:
        DataError: bioimage.io has no words for it.
    """
    if normaliser.special:
        raise DataError(
            f"This model was trained with {', '.join(normaliser.special)}, which a bioimage.io "
            "package cannot express.",
            hint="Export the network alone, with --format onnx or pt2, or train without it.",
        )
    if normaliser.dataset is not None:
        shift, scale = normaliser.dataset.shift, normaliser.dataset.scale
        if len(shift) != channels:
            raise DataError(
                f"The normalisation knows {len(shift)} channels, the network {channels}."
            )
        return _linear([1.0] * channels, [-s for s in shift]) + _linear(scale, [0.0] * channels)
    if normaliser.method == "none":
        return []
    if normaliser.pixels == "non-zero":
        raise DataError(
            "This model measures brightness without pixels of value 0 (--normalise-pixels"
            " non-zero), which a bioimage.io package cannot express.",
            hint="Export the network alone, with --format onnx or pt2, or train without it.",
        )
    together = ("channel",) if normaliser.channels == "together" else ()
    kwargs: dict[str, Any] = {"axes": [*together, *space], "eps": EPSILON}
    dark = normaliser.inverted or (False,)
    dark = dark * channels if len(dark) == 1 else dark
    gain = [-1.0 if d else 1.0 for d in dark]
    if normaliser.method == "z-score":
        found = [{"id": "zero_mean_unit_variance", "kwargs": kwargs}]
        return found + _linear(gain, [0.0] * channels)
    low, high = (0.0, 100.0) if normaliser.method == "min-max" else normaliser.percentiles
    kwargs |= {"min_percentile": low, "max_percentile": high}
    found = [{"id": "scale_range", "kwargs": kwargs}]
    return found + _linear(gain, [1.0 if d else 0.0 for d in dark])


def _linear(gain: Sequence[float], offset: Sequence[float]) -> list[dict[str, Any]]:
    """Multiply and add, for each channel; nothing where that changes nothing."""
    if all(g == 1 for g in gain) and all(o == 0 for o in offset):
        return []
    kwargs = {"axis": "channel", "gain": list(gain), "offset": list(offset)}
    return [{"id": "scale_linear", "kwargs": kwargs}]


def described(normaliser: Normaliser) -> str:
    """The same in a sentence."""
    if normaliser.dataset is not None:
        return "Brightness is scaled with the statistics of the training images."
    each = "all channels together" if normaliser.channels == "together" else "each channel"
    low, high = normaliser.percentiles
    text = {
        "percentile": f"The percentiles {low:g} and {high:g} of {each} become 0 and 1.",
        "min-max": f"The darkest and the brightest pixel of {each} become 0 and 1.",
        "z-score": f"The mean of {each} becomes 0 and the standard deviation 1.",
        "none": "The numbers are taken as they are.",
    }[normaliser.method]
    if normaliser.method != "none" and any(normaliser.inverted):
        text += " Dark becomes bright" + ("." if all(normaliser.inverted) else " in some channels.")
    return text + (" Nothing is clipped." if normaliser.method != "none" else "")
