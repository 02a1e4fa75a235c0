"""Outlines of objects as GeoJSON, the way QuPath reads and writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.engine.plan import Box
from cellseg.engine.tile import NO_CLASS
from cellseg.outputs.result import Result, output_file

Ring = list[tuple[int, int]]
Polygon = list[Ring]


def write_geojson(result: Result, path: Path, tolerance: float = 0.0) -> None:
    """Write a FeatureCollection with one feature for each object, or each plane of an object.

    Vertices lie on the corners of pixels, in pixels, ``(x, y)``: the first pixel of an image
    spans (0, 0) to (1, 1). A polygon covers exactly the pixels of its object; holes are kept;
    what hangs together only by corners becomes a MultiPolygon.

    Args:
        result: what to write.
        path: of the file.
        tolerance: of ``simplified``, in pixels; 0 leaves the outlines exact.
    """
    with output_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for number, feature in enumerate(_features(result, tolerance)):
            file.write("\n" if number == 0 else ",\n")
            file.write(json.dumps(feature, separators=(",", ":")))
        file.write("\n]}\n")


def outlines(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> list[Polygon]:
    """The polygons that cover exactly the set pixels of ``mask``, ``(y, x)``.

    Each polygon is a list of closed rings of ``(x, y)`` pixel corners: its outside, then its
    holes.
    """
    import cv2

    small = np.ascontiguousarray(mask, np.uint8)
    count, pieces = cv2.connectedComponents(small, connectivity=4)
    found: list[Polygon] = []
    for piece in range(1, count):
        one = small if count == 2 else (pieces == piece).astype(np.uint8)
        # OpenCV follows the centres of border pixels. In an image of twice the size these are
        # on an even place where a pixel begins and on an odd one where it ends: a corner each.
        double = one.repeat(2, 0).repeat(2, 1)
        rings, _ = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        polygon = [_corners(ring[:, 0]) for ring in rings]
        polygon.sort(key=lambda ring: -_extent(ring))
        found.append([_as_pairs(ring) for ring in polygon])
    return found


def simplified(objects: Sequence[Sequence[Polygon]], tolerance: float) -> list[list[Polygon]]:
    """Outlines with fewer vertices, by the algorithm of Douglas and Peucker.

    Each object is simplified by itself, with all its pieces: no ring is lost, crosses itself or
    meets another, but neighbouring objects may come to overlap, or part. An object for which that
    cannot be had keeps its exact outline. Vertices are some of those that there were.

    Douglas and Peucker, Cartographica 1973, https://doi.org/10.3138/FM57-6770-U75U-7727

    Args:
        objects: the polygons of each, as ``outlines`` gives them.
        tolerance: distance in pixels that vertices left out may have from the new outline; up to
            twice as much where a ring begins.
    """
    import shapely

    if not objects:
        return []
    polygons = [polygon for one in objects for polygon in one]
    rings = [ring for polygon in polygons for ring in polygon]
    points = np.array([point for ring in rings for point in ring], np.float64).reshape(-1, 2)
    ends = tuple(
        np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)])
        for parts in (rings, polygons, objects)
    )
    exact = shapely.from_ragged_array(shapely.GeometryType.MULTIPOLYGON, points, ends)
    found = shapely.simplify(exact, tolerance, preserve_topology=True)
    found = np.where(shapely.is_valid(found), found, exact)
    pieces, owner = shapely.get_parts(found, return_index=True)
    _, points, (of_ring, of_polygon) = shapely.to_ragged_array(pieces)
    of_object = np.searchsorted(owner, np.arange(len(objects) + 1))
    pairs = [(x, y) for x, y in points.astype(np.int64).tolist()]
    rings = [pairs[a:b] for a, b in pairwise(of_ring)]
    polygons = [rings[a:b] for a, b in pairwise(of_polygon)]
    return [polygons[a:b] for a, b in pairwise(of_object)]


def _corners(ring: NDArray[np.int32]) -> NDArray[np.int32]:
    points = (ring + 1) >> 1
    moved = (points != np.roll(points, 1, 0)).any(1)
    return np.asarray(points[moved])


def _extent(ring: NDArray[np.int32]) -> int:
    return int(np.ptp(ring[:, 0])) * int(np.ptp(ring[:, 1]))


def _as_pairs(ring: NDArray[np.int32]) -> Ring:
    pairs = [(x, y) for x, y in ring.tolist()]
    return [*pairs, pairs[0]]


def _features(result: Result, tolerance: float) -> Iterator[dict[str, Any]]:
    for frame in range(len(result.frames)):
        for member, z, polygons in _objects(result, frame, tolerance):
            yield _feature(result, frame, member, (z, polygons))


def _objects(
    result: Result, frame: int, tolerance: float
) -> Iterator[tuple[int, int, list[Polygon]]]:
    """Every object of a frame by its place, plane by plane; reads the labels around many objects at
    once."""
    objects = result.objects[frame]
    size = (1, max(result.block[1], 256), max(result.block[2], 256))
    cell = objects.low // np.array(size)
    cell[:, 0] = 0
    ny, nx = (-(-n // s) for n, s in zip(result.shape[1:], size[1:], strict=True))
    place = cell[:, 1] * nx + cell[:, 2]
    order = np.argsort(place, kind="stable")
    start = np.searchsorted(place[order], np.arange(ny * nx + 1))
    for number in range(ny * nx):
        members = order[start[number] : start[number + 1]]
        if not len(members):
            continue
        low, high = objects.low[members], objects.high[members]
        for z in range(int(low[:, 0].min()), int(high[:, 0].max())):
            here = members[(low[:, 0] <= z) & (z < high[:, 0])]
            found = _in_plane(result, frame, z, here)
            if not tolerance:
                yield from found
                continue
            exact = list(found)
            simple = simplified([polygons for _, _, polygons in exact], tolerance)
            for (member, _, _), polygons in zip(exact, simple, strict=True):
                yield member, z, polygons


def _in_plane(
    result: Result, frame: int, z: int, members: NDArray[np.int64]
) -> Iterator[tuple[int, int, list[Polygon]]]:
    if not len(members):
        return
    result.pause()
    objects = result.objects[frame]
    low, high = objects.low[members, 1:], objects.high[members, 1:]
    # One object of a slide's size must not make the block around its neighbours as large.
    most = 2 * max(result.block[1:])
    huge = ((high - low) > most).any(1)
    for group in (np.flatnonzero(~huge), *np.flatnonzero(huge)[:, None]):
        if not len(group):
            continue
        first, last = low[group].min(0), high[group].max(0)
        box = Box((z, int(first[0]), int(first[1])), (z + 1, int(last[0]), int(last[1])))
        block = np.asarray(result.frames[frame][box.slices])[0]
        for index in group:
            (y0, x0), (y1, x1) = low[index] - first, high[index] - first
            member = int(members[index])
            mask = block[y0:y1, x0:x1] == _identity(result, frame, member)
            origin_y, origin_x = (int(n) for n in low[index])
            polygons = [
                [[(x + origin_x, y + origin_y) for x, y in ring] for ring in polygon]
                for polygon in outlines(mask)
            ]
            if polygons:
                yield member, z, polygons


def _identity(result: Result, frame: int, member: int) -> int:
    """The id of an object by its place among those of its frame."""
    return member + 1 if result.ids is None else int(result.ids[frame][member])


def _feature(
    result: Result, frame: int, member: int, outline: tuple[int, list[Polygon]]
) -> dict[str, Any]:
    z, polygons = outline
    objects, identity = result.objects[frame], _identity(result, frame, member)
    score, kind = float(objects.score[member]), int(objects.kind[member])
    geometry: dict[str, Any] = {"type": "MultiPolygon", "coordinates": polygons}
    if len(polygons) == 1:
        geometry = {"type": "Polygon", "coordinates": polygons[0]}
    if result.movie or result.shape[0] > 1:
        geometry["plane"] = {"c": -1, "z": z, "t": frame if result.movie else 0}
    properties: dict[str, Any] = {"objectType": "detection", "name": str(identity)}
    if kind != NO_CLASS:
        name = result.classes[kind] if kind < len(result.classes) else str(kind)
        properties["classification"] = {"name": name}
    if not np.isnan(score):
        properties["measurements"] = {"score": round(score, 6)}
    return {"type": "Feature", "geometry": geometry, "properties": properties}
