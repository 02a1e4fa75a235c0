"""Images with labels, and examples in one of them, for the fake backend ``shown``."""

from __future__ import annotations

import json

import numpy as np
import tifffile
from example_fakes import plugins

from cellseg.options import parse
from cellseg.testing import blobs
from cellseg.workflows.train import train
from cellseg.workflows.train_settings import TrainSettings

POINT = {"type": "Point", "coordinates": [30.5, 30.5]}


def write_data(folder):
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for seed in range(3):
        one = blobs(seed)
        image = (100 + 1000 * one.image[0, 0].clip(0)).astype(np.uint16)
        tifffile.imwrite(folder / f"images/{seed}.tif", image)
        tifffile.imwrite(folder / f"labels/{seed}.tif", one.labels[0].astype(np.uint16))
    return folder


def write_examples(data, path):
    """The outlines of two discs of the image 1."""
    labels = tifffile.imread(data / "labels/1.tif")
    features = []
    for number in (1, 2):
        y, x = np.argwhere(labels == number).mean(0) + 0.5
        turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        ring = [[x + 4 * np.cos(t), y + 4 * np.sin(t)] for t in turn]
        features.append(shown({"type": "Polygon", "coordinates": [[*ring, ring[0]]]}, "nucleus"))
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def shown(geometry, name):
    properties = {"classification": {"name": name}, "image": "1"}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def invert(data):
    """Make the objects dark."""
    for path in (data / "images").glob("*.tif"):
        image = tifffile.imread(path)
        tifffile.imwrite(path, (image.max() - image).astype(np.uint16))


def changed(path, change):
    values = json.loads(path.read_text())
    change(values["features"])
    path.write_text(json.dumps(values))


def learned(model):
    return json.loads((model / "shown.json").read_text())


def trained(data, out, options=None, **settings):
    return train(
        plugins(), "shown", data, out, settings=parse(TrainSettings, settings), options=options
    )
