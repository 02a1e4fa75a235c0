"""Examples as files hold them, and what is read from them, for several test modules."""

from __future__ import annotations

import json

import numpy as np

from cellseg.data import Sample


def sample(name="a", shape=(1, 40, 60), frame=None):
    return Sample(
        name=name if frame is None else f"{name}#{frame}",
        image=np.zeros((1, *shape), np.uint8),
        source=name,
        frame=frame,
    )


ONE = [sample()]
VOLUME = [sample("v", (5, 40, 60))]
MOVIE = [sample("m", frame=number) for number in range(3)]


def feature(geometry, name=None, **properties):
    if name is not None:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    return {
        "type": "Feature",
        "id": "11111111-2222-3333-4444-555555555555",
        "geometry": geometry,
        "properties": {"objectType": "annotation", **properties},
    }


def square(x, y, side=4, **plane):
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    found = {"type": "Polygon", "coordinates": [ring]}
    return {**found, "plane": {"c": -1, "z": 0, "t": 0, **plane}} if plane else found


def point(x, y):
    return {"type": "Point", "coordinates": [x, y]}


def written(path, *features):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


def box(example):
    """Plane, first row, first column, height, width."""
    return (*example.corner, *example.mask.shape)


def only(found):
    (image,) = found.images
    return image.examples
