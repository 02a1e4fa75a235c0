"""Regions of interest of ImageJ as examples: ``.roi`` files, and the ``.zip`` of its ROI Manager.

ImageJ counts areas from the corners of pixels, as examples do; a point at whole numbers is the
middle of its pixel.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellseg.errors import DataError
from cellseg.example_shapes import Shape, no_area
from cellseg.geojson import MOST_BYTES
from cellseg.outlines import Polygon, ellipse, rectangle

if TYPE_CHECKING:
    from roifile import ImagejRoi

MOST_REGIONS = 200_000
"""In one archive."""
_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OverflowError)
_AUTOMATIC = re.compile(r"\d{3,}(-\d{3,})+(-\d+)?")
"""Names that ImageJ makes from the place of a region."""
_ROI = re.compile(r"(?i)^(?!__MACOSX/).*\.roi$")
"""Entries of an archive that are regions; macOS adds others."""
_NUMBER = re.compile(r"[\s_#-]+\d+$")


def read_rois(path: Path) -> list[Shape]:
    """The regions in a file.

    A region of a group has the class ``group N``; another one its name, without a number at its
    end, unless the name is one that ImageJ made up.

    Raises:
        DataError: the file is missing, damaged or too large, or a region has no area.
    """
    shapes = []
    for number, (name, data) in enumerate(_entries(path), 1):
        where = f"{path}, ROI {number}" + (f" ({name})" if name else "")
        shapes += list(_shapes(_parsed(data, where), name, where))
    if not shapes:
        raise DataError(f"{path}: holds no regions of interest.")
    return shapes


def _entries(path: Path) -> Iterator[tuple[str, bytes]]:
    """The name and the bytes of each region."""
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    try:
        if path.suffix.lower() == ".roi":
            _refuse_large(path, path.stat().st_size)
            yield "", path.read_bytes()
            return
        with zipfile.ZipFile(path) as archive:
            every = archive.infolist()
            entries = [one for one in every if re.search(_ROI, one.filename)]
            if len(entries) > MOST_REGIONS:
                raise DataError(
                    f"{path}: has {len(entries)} regions; at most {MOST_REGIONS} are read.",
                    hint="Divide it: a folder may hold one file for each image.",
                )
            _refuse_large(path, sum(one.file_size for one in entries))
            for one in entries:
                yield one.filename[: -len(".roi")], archive.read(one)
    except NotImplementedError as error:
        raise DataError(f"{path}: is packed in a way that is not known: {error}.") from None
    except RuntimeError as error:  # it is encrypted
        raise DataError(f"{path}: {error}.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except (*_DAMAGED, ValueError, LookupError) as error:
        reason = str(error) or "it is cut short"
        raise DataError(f"{path}: is no ZIP file, or damaged: {reason}.") from None


def _refuse_large(path: Path, size: int) -> None:
    if size > MOST_BYTES:
        raise DataError(
            f"{path}: holds {size / 2**20:.0f} MB; at most {MOST_BYTES >> 20} are read.",
            hint="Divide it: a folder may hold one file for each image.",
        )


def _parsed(data: bytes, where: str) -> ImagejRoi:
    from roifile import ImagejRoi

    try:
        return ImagejRoi.frombytes(data)
    except Exception as error:  # the parser of a binary format may raise anything
        raise DataError(f"{where}: is no region of ImageJ, or damaged: {error}.") from error


def _shapes(roi: ImagejRoi, name: str, where: str) -> Iterator[Shape]:
    from roifile import ROI_TYPE

    shared: dict[str, Any] = {
        "where": where,
        "plane": roi.z_position - 1 if roi.z_position > 0 else None,
        "frame": roi.t_position - 1 if roi.t_position > 0 else None,
        "names": _names(roi, name),
    }
    if roi.z_position <= 0 and roi.t_position <= 0 and roi.position > 0:
        shared["leading"] = roi.position - 1
    if roi.roitype != ROI_TYPE.POINT:
        yield Shape(polygons=_polygons(roi, where), **shared)
        return
    points = np.asarray(roi.coordinates(), np.float64)
    places = np.zeros(len(points), int) if roi.counter_positions is None else roi.counter_positions
    for (x, y), place in zip(points.tolist(), places.tolist(), strict=True):
        middle = 0.5 if x % 1 == 0 and y % 1 == 0 else 0.0
        own = dict(shared)
        if place > 0 and own["plane"] is None and own["frame"] is None:
            own["leading"] = place - 1
        yield Shape(point=(y + middle, x + middle), **own)


def _names(roi: ImagejRoi, entry: str) -> frozenset[str]:
    if roi.group > 0:
        return frozenset([f"group {roi.group}"])
    name = roi.name.strip() or entry.rpartition("/")[2].strip()
    if not name or _AUTOMATIC.fullmatch(name):
        return frozenset()
    return frozenset([_NUMBER.sub("", name) or name])


def _polygons(roi: ImagejRoi, where: str) -> tuple[Polygon, ...]:
    from roifile import ROI_SUBTYPE, ROI_TYPE

    kind = roi.roitype
    if roi.subtype in (ROI_SUBTYPE.TEXT, ROI_SUBTYPE.ARROW, ROI_SUBTYPE.IMAGE):
        raise no_area(where, f"of the type {roi.subtype.name.lower()}")
    if roi.composite:
        return _composite(roi, where)
    if kind in (ROI_TYPE.RECT, ROI_TYPE.OVAL):
        top, left, bottom, right = roi.top, roi.left, roi.bottom, roi.right
        if roi.subpixelrect:
            top, left = roi.yd, roi.xd
            bottom, right = top + roi.heightd, left + roi.widthd
        corners = rectangle(top, left, bottom, right)
        if kind == ROI_TYPE.OVAL:
            return (ellipse(corners[0]),)
        if roi.rounded_rect_arc_size:
            raise DataError(
                f"{where}: is a rectangle with rounded corners.",
                hint="Draw a polygon, a rectangle or an oval.",
            )
        return (corners,)
    if kind in (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED):
        ring = np.asarray(roi.coordinates(), np.float64)[:, ::-1]
        if len(ring) < 3 or not np.isfinite(ring).all():
            raise DataError(f"{where}: its outline has no three vertices.")
        return ((ring,),)
    raise no_area(where, f"of the type {kind.name.lower()}")


def _composite(roi: ImagejRoi, where: str) -> tuple[Polygon, ...]:
    """What an odd number of rings is around, as ImageJ has it."""
    import shapely

    try:
        rings = roi.coordinates(multi=True)
    except (NotImplementedError, RuntimeError, IndexError) as error:
        raise DataError(
            f"{where}: cannot be read: {error}.",
            hint="Draw it anew as a polygon.",
        ) from None
    parts = [shapely.Polygon(ring) for ring in rings if len(ring) > 3]
    if not parts:
        raise DataError(f"{where}: its outline has no three vertices.")
    whole = reduce(shapely.symmetric_difference, (shapely.make_valid(part) for part in parts))
    polygons = [one for one in shapely.get_parts(whole) if one.geom_type == "Polygon"]
    return tuple(
        tuple(
            np.asarray(ring.coords, np.float64)[:, ::-1] for ring in (one.exterior, *one.interiors)
        )
        for one in polygons
    )
