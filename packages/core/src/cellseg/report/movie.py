"""The overlay movie of a tracking: contours and tails in the colours of the tracks."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.data import Image, Spacing
from cellseg.report.curves import round_step
from cellseg.report.drawing import Picture, distinct, enlarged
from cellseg.tracks import Lineage

TAIL = 8
"""Frames of the movie over which a tail shows where an object was."""
_FLASH = 2  # frames in which new daughters are filled
_STRENGTH = 0.45
_LIGHT = (235, 238, 242)

Limits = NDArray[np.float32]
"""``(c, 2)``: the values of each channel that become black and white."""


def limits_of(images: Iterable[Image]) -> Limits | None:
    """The means of the 1st and 99.8th percentiles of some images ``(c, 1, y, x)``; None of none."""
    found = []
    for image in images:
        values = np.nan_to_num(image.astype(np.float32), posinf=0, neginf=0)
        found.append(np.percentile(values, (1, 99.8), axis=(1, 2, 3)).T)
    return np.mean(found, axis=0, dtype=np.float32) if found else None


def animated(pictures: Iterator[Picture], milliseconds: int = 120) -> bytes:
    """An animated WebP file of pictures of one size; one of them is in memory at a time.

    Args:
        pictures: at least one.
        milliseconds: how long each is shown.
    """
    import tifffile
    from PIL import Image as Pillow

    written = BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        # Pillow takes a list of frames, or a file that it reads frame by frame.
        frames = Path(folder) / "frames.tif"
        with tifffile.TiffWriter(frames, bigtiff=False) as file:
            for picture in pictures:
                file.write(picture, photometric="rgb", compression="zlib", metadata=None)
        with Pillow.open(frames) as opened:
            opened.save(
                written,
                "WEBP",
                save_all=True,
                duration=milliseconds,
                loop=0,
                quality=40,
                method=2,
            )
    return written.getvalue()


@dataclass(slots=True)
class Painter:
    """Draws the frames of one movie in their order; its memory does not grow."""

    lineage: Lineage
    scale: float
    """Pixels of the picture per pixel of the image."""
    limits: Limits | None
    spacing: Spacing
    minutes_per_frame: float | None
    _tails: deque[dict[int, tuple[float, float]]] = field(
        default_factory=lambda: deque(maxlen=TAIL)
    )
    _flash: dict[int, int] = field(default_factory=dict)  # frames left, of daughters
    _last: int = -1  # the frame that was painted before

    def paint(self, frame: int, image: Image | None, labels: NDArray[Any]) -> Picture:
        """The picture of a frame.

        Args:
            frame: counted from 0, as in the lineage.
            image: ``(c, 1, y, x)``; None gives a black background.
            labels: ``(y, x)``, ids of tracks, 0 is background.
        """
        canvas = enlarged(self._grey(image, labels.shape), self.scale)
        rows, columns = (
            np.minimum(((np.arange(to) + 0.5) / self.scale).astype(np.intp), length - 1)
            for to, length in zip(canvas.shape[:2], labels.shape, strict=True)
        )
        seen = labels[rows][:, columns]
        ids, index = np.unique(seen, return_inverse=True)
        index = index.reshape(seen.shape)
        colours = np.array(distinct(ids), np.uint8)
        filled = np.isin(ids, [t for t in ids.tolist() if self._divided(t, frame)])[index]
        canvas[filled] = (1 - _STRENGTH) * canvas[filled] + _STRENGTH * colours[index[filled]]
        rim = _rims(seen) & (seen > 0)
        canvas[rim] = colours[index[rim]]
        self._draw_tails(canvas, ids, index, colours)
        self._draw_texts(canvas, frame)
        self._last = frame
        return canvas

    def _grey(self, image: Image | None, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        if image is None or self.limits is None:
            return np.zeros(shape, np.uint8)
        low, high = self.limits.T[..., None, None]
        values = np.nan_to_num(image[:, 0].astype(np.float32), posinf=0, neginf=0)
        shown = np.clip((values - low) / np.maximum(high - low, 1e-6), 0, 1).mean(axis=0)
        grey: NDArray[np.uint8] = (shown * 255).round().astype(np.uint8)
        return grey

    def _divided(self, track: int, frame: int) -> bool:
        """Whether it has come from a division a moment ago."""
        if not track:
            return False
        one = self.lineage.by_id[track]
        if one.parent and self._last < one.begin <= frame:
            self._flash[track] = _FLASH
        left = self._flash.pop(track, 0)
        if left > 1:
            self._flash[track] = left - 1
        return left > 0

    def _draw_tails(
        self,
        canvas: Picture,
        ids: NDArray[Any],
        index: NDArray[np.intp],
        colours: NDArray[np.uint8],
    ) -> None:
        import cv2

        flat, (height, width) = index.ravel(), index.shape
        sizes = np.bincount(flat, minlength=len(ids))
        y = np.bincount(flat, np.repeat(np.arange(height), width), len(ids)) / sizes
        x = np.bincount(flat, np.tile(np.arange(width), height), len(ids)) / sizes
        there = dict(zip(ids.tolist(), zip(x.tolist(), y.tolist(), strict=True), strict=True))
        for track, colour in zip(ids.tolist(), colours.tolist(), strict=True):
            line = list(self._way(track, there)) if track else []
            if len(line) > 1:
                points = np.round(np.array(line) * 16).astype(np.int32)
                cv2.polylines(canvas, [points], False, colour, 1, cv2.LINE_AA, 4)
        self._tails.append(there)

    def _way(
        self, track: int, there: dict[int, tuple[float, float]]
    ) -> Iterator[tuple[float, float]]:
        """Where an object is and was, its mother included."""
        yield there[track]
        for earlier in reversed(self._tails):
            parent = self.lineage.by_id[track].parent
            if track not in earlier and parent in earlier and parent:
                track = parent
            if track in earlier:
                yield earlier[track]

    def _draw_texts(self, canvas: Picture, frame: int) -> None:
        time = (
            "" if self.minutes_per_frame is None else f", {_time(frame * self.minutes_per_frame)}"
        )
        _write(canvas, f"frame {frame}{time}", (6, 16))
        micrometres = self.spacing[2]
        if micrometres == 1:  # what files without a size say
            return
        length = round_step(canvas.shape[1] / self.scale * micrometres / 8)
        pixels = round(length / micrometres * self.scale)
        y, right = canvas.shape[0] - 8, canvas.shape[1] - 8
        canvas[y - 3 : y, right - pixels : right] = _LIGHT
        _write(canvas, f"{length:g} um", (right - pixels, y - 8))


def _rims(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels beside one of another label, above, below, left or right."""
    rim = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        differs = np.diff(labels, axis=axis) != 0
        rim[(slice(None),) * axis + (slice(1, None),)] |= differs
        rim[(slice(None),) * axis + (slice(None, -1),)] |= differs
    return rim


def _time(minutes: float) -> str:
    if minutes < 60:
        return f"{minutes:.3g} min"
    return f"{int(minutes // 60)} h {round(minutes % 60):02d} min"


def _write(canvas: Picture, text: str, at: tuple[int, int]) -> None:
    import cv2

    for colour, width in (((0, 0, 0), 3), (_LIGHT, 1)):
        cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, width, cv2.LINE_AA)
