"""Draw what augmentation does to training patches, so that too much of it is seen at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from cellseg.data import Dataset
from cellseg.files import write_atomic
from cellseg.sampling_options import AugmentOptions, NormaliseOptions, PatchOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellseg.report.drawing import Picture

COLUMNS = 4
"""Pictures in a row: the patch as it is, and augmented in three ways."""
SIDE = 256
"""Pixels of a picture at most."""
_GAP = 6
_CAPTION = 20
_YELLOW = (255, 210, 60)


class PreviewSettings(NormaliseOptions):
    """What to draw, and how to read and normalise the images."""

    panels: ClassVar = {"Data": ("reader",), "Preview": ("count", "seed")}

    reader: str = "auto"
    """How to read the images; auto finds out from the path."""
    count: int = Field(6, ge=1, le=200)
    """How many patches to draw, one a row."""
    seed: int = Field(0, ge=0)
    """Seed of the patches and their augmentation; another one gives others."""


def preview_augmentation(
    samples: Dataset,
    patch_options: PatchOptions,
    augment_options: AugmentOptions,
    target: Path,
    *,
    count: int = 6,
    seed: int = 0,
    normalise_options: NormaliseOptions | None = None,
) -> Path:
    """Write a PNG of patches, one a row: as it is, then augmented three times, with label outlines.

    All pictures of a row have the same contrast, so that changes of intensity are seen. Of a
    stack, the middle plane is shown.

    Args:
        samples: as read, with labels; not normalised.
        patch_options: which patches; the options of a trainer that inherit these do, too.
        augment_options: what to do to them; likewise.
        target: the PNG file to write.
        count: rows.
        seed: another one draws other patches, and other changes of them.
        normalise_options: as for the training; None means the defaults.

    Returns:
        ``target``.

    Raises:
        DataError: an image cannot be read, or none has enough objects.
        StorageError: the file cannot be written.
    """
    import numpy as np

    from cellseg.augment import Augmentation
    from cellseg.normalise import Normaliser, normalised
    from cellseg.patches import PatchSampler
    from cellseg.report.drawing import encoded

    normaliser = Normaliser.fit(normalise_options or NormaliseOptions(), samples)
    sampler = PatchSampler.of([normalised(s, normaliser) for s in samples], patch_options, seed)
    augment = Augmentation(augment_options)
    rows = [_captions(sampler.shape[1:])]
    for index in range(count):
        patch = sampler.patch(index)
        views = [(patch.image, patch.labels)]
        for column in range(1, COLUMNS):
            rng = np.random.default_rng((seed, index, column))
            views.append(augment(patch.image, patch.labels, rng))
        limits = np.percentile(patch.image, (1, 99.8), axis=(1, 2, 3))
        rows.append(_side_by_side([_drawn(*view, limits) for view in views]))
    width = max(row.shape[1] for row in rows)
    white = [
        np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows
    ]
    write_atomic(target, encoded(np.concatenate(white)))
    return target


def _drawn(
    image: NDArray[np.float32], labels: NDArray[np.uint32], limits: NDArray[np.floating]
) -> Picture:
    """The middle plane: channels as one grey, black and white at ``limits``, and outlines."""
    import numpy as np

    from cellseg.report.drawing import draw_lines, enlarged, outlines, scale_for

    plane, truth = image[:, image.shape[1] // 2], labels[len(labels) // 2]
    low, high = limits[..., None, None]
    seen = np.clip((plane - low) / np.maximum(high - low, 1e-6), 0, 1).mean(0)
    scale = scale_for((truth.shape[0], truth.shape[1]), SIDE)
    picture = enlarged((seen * 255).round().astype(np.uint8), scale)
    if truth.any():
        draw_lines(picture, outlines(truth, scale), _YELLOW, 0)
    return picture


def _side_by_side(pictures: list[Picture]) -> Picture:
    import numpy as np

    framed = [np.pad(p, ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255) for p in pictures]
    return np.concatenate(framed, axis=1)


def _captions(shape: tuple[int, int]) -> Picture:
    """A line of text above the columns."""
    import cv2
    import numpy as np

    from cellseg.report.drawing import scale_for

    width = max(round(shape[1] * scale_for(shape, SIDE)), 1) + _GAP
    canvas: Picture = np.full((_CAPTION, COLUMNS * width, 3), 255, np.uint8)
    for column, text in enumerate(("as it is", *["augmented"] * (COLUMNS - 1))):
        at = (column * width + 2, _CAPTION - 6)
        cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (40, 40, 40), 1, cv2.LINE_AA)
    return canvas
