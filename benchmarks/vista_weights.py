"""Which weights of its losses vista3d learns best with: the table behind the defaults.

Each row is a short training from random weights on planes 0-48 of the neurites of the FlyEM
medulla, alike but for the weights, and measured on planes 52-69. The image is cut in small pieces
along the map of depths (from each of its maxima); a border between two of them is true where they
belong to different true objects. Measured is how well (area under the ROC curve) true borders are
told from false ones by the mean of 1 - depth along the border, and by the distance between the mean
embeddings of the two pieces. Both do not depend on thresholds. ARE is the best of joining pieces at
several thresholds of the former.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from _table import table
from cellseg import Sample
from cellseg.metrics import overlaps, score, tally
from cellseg.normalise import Normaliser, normalised
from cellseg.plugins import Plugins
from cellseg.workflows.train import train
from cellseg.workflows.train_settings import TrainSettings
from cellseg_vista.instances import PixelMaps, pixel_maps
from cellseg_vista.network import Network

FILE = Path(__file__).parents[1] / "../shared/data/flyem_medulla/flyem_medulla_dev.h5"
TRAIN, VAL = slice(0, 49), slice(52, 70)
_CORE, _HALO = 80, 24

# distance, contact, pull = push, edge = bone: those of the older system; the defaults; and next to
# no embedding, without more weight between objects, and along their edges and middles.
ROWS = (
    (1.0, 5.0, 1.0, 10.0),
    (1.0, 5.0, 0.1, 10.0),
    (1.0, 1.0, 0.01, 10.0),
    (1.0, 1.0, 0.01, 1.0),
)
OPTIONS: dict[str, object] = {
    "precision": "bf16-mixed",
    "threads": 1,
    "num_workers": 0,
    "num_classes": 2,
    "emb_dim": 8,
    "batch_size": 2,
    "patch_size": 64,
    "patch_depth": 32,
    "decay_epochs": 1,
    "distance_reach": 3.0,
    "affine_probability": 0.0,
    "elastic_probability": 0.0,
    "blur_probability": 0.0,
    "learning_rate": 3e-3,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    if not FILE.is_file():
        sys.exit(f"needs {FILE}")
    rows: list[list[object]] = [
        [
            "distance",
            "contact",
            "pull, push",
            "edge, bone",
            "AUC depth",
            "AUC embedding",
            "ARE",
            "s",
        ]
    ]
    with tempfile.TemporaryDirectory() as folder:
        for number, (distance, contact, embedding, edge) in enumerate(ROWS):
            weights = {
                "weight_distance": distance,
                "weight_contact": contact,
                "weight_pull": embedding,
                "weight_push": embedding,
                "weight_edge": edge,
                "weight_bone": edge,
            }
            begun = time.process_time()
            found = measured(Path(folder), f"run{number}", weights, steps)
            took = round(time.process_time() - begun)
            rows.append([distance, contact, embedding, edge, *found, took])
            print(rows[-1], flush=True)
    table(rows)


def measured(
    folder: Path, name: str, weights: dict[str, object], steps: int
) -> tuple[float, float, float]:
    """Train, and look at the borders."""
    with h5py.File(FILE) as file:
        raw, labels = file["raw"][:], file["labels"][:]
    data = folder / "train.h5"
    if not data.exists():
        with h5py.File(data, "w") as file:
            for key, array in (("raw", raw), ("labels", labels)):
                file[key] = array[TRAIN]
                file[key].attrs["element_size_um"] = (0.01, 0.01, 0.01)
    run = train(
        Plugins(),
        "vista3d",
        data,
        folder / name,
        settings=TrainSettings(split="full", epochs=1, device="cpu"),
        options={**OPTIONS, **weights, "patches_per_image": 2 * steps},
    )
    sample = Sample(name="val", image=raw[None, VAL], labels=labels[VAL])
    image = normalised(sample, Normaliser.model_validate(run.request().normaliser)).image
    maps = predicted(Network.load(run.model), image[:, :, :, :])
    return borders(maps, labels[VAL].astype(np.uint32))


def predicted(network: Network, image: NDArray[np.float32]) -> PixelMaps:
    """Maps of ``(1, z, y, x)``, in parts with more around them."""
    shape = image.shape[1:]
    parts = []
    with torch.inference_mode():
        for y in range(0, shape[1], _CORE):
            row = []
            for x in range(0, shape[2], _CORE):
                low = [max(y - _HALO, 0), max(x - _HALO, 0)]
                seen = image[:, :, low[0] : y + _CORE + _HALO, low[1] : x + _CORE + _HALO]
                (maps,) = pixel_maps(network(torch.from_numpy(seen.copy())[None]), 2)
                inner = (
                    ...,
                    slice(y - low[0], min(y + _CORE, shape[1]) - low[0]),
                    slice(x - low[1], min(x + _CORE, shape[2]) - low[1]),
                )
                row.append((maps.distance[inner], maps.embedding[inner]))
            parts.append(tuple(np.concatenate(p, -1) for p in zip(*row, strict=True)))
    distance, embedding = (np.concatenate(p, -2) for p in zip(*parts, strict=True))
    return PixelMaps(np.ones((2, *shape), np.float32), distance, embedding)


def borders(maps: PixelMaps, truth: NDArray[np.uint32]) -> tuple[float, float, float]:
    """AUC of the depth's borders, of the embedding's, and the best ARE of joining."""
    from bioimage_cpp.graph import region_adjacency_graph
    from bioimage_cpp.graph.agglomeration import GaspClusterPolicy
    from bioimage_cpp.graph.features import edge_map_features
    from bioimage_cpp.segmentation import watershed
    from scipy import ndimage

    edge_map = 1 - maps.distance
    smooth = ndimage.gaussian_filter(edge_map, 0.7)
    seeds, _ = ndimage.label(smooth == ndimage.minimum_filter(smooth, 5))
    pieces = watershed(np.ascontiguousarray(edge_map), seeds.astype(np.uint32))
    graph = region_adjacency_graph(pieces)
    weak, size = edge_map_features(graph, pieces, edge_map).T
    pairs = graph.uv_ids()

    count = int(pieces.max()) + 1
    sizes = np.maximum(np.bincount(pieces.ravel(), minlength=count), 1)
    means = [np.bincount(pieces.ravel(), e.ravel(), count) / sizes for e in maps.embedding]
    apart = np.linalg.norm(np.subtract(*np.stack(means, 1)[pairs.T]), axis=1)

    table = overlaps(pieces, truth)
    owner = np.zeros(count, np.int64)
    order = np.argsort(table.shared)
    owner[table.prediction_ids[table.columns[order]]] = table.truth_ids[table.rows[order]]
    true = owner[pairs[:, 0]] != owner[pairs[:, 1]]

    errors = []
    for threshold in np.arange(0.2, 0.7, 0.05):
        groups = GaspClusterPolicy(linkage="mean").optimize(
            graph, (threshold - weak).astype(np.float64), edge_sizes=size.astype(np.float64)
        )
        joined = (np.asarray(groups) + 1).astype(np.uint32)[pieces]
        errors.append(score([tally(overlaps(joined, truth))])["are"])
    return auc(weak, true), auc(apart, true), min(errors)


def auc(values: NDArray[np.floating], true: NDArray[np.bool_]) -> float:
    """How often a true border has the higher value than a false one."""
    from scipy.stats import rankdata

    ranks = rankdata(values)[true].sum()
    n, m = int(true.sum()), int((~true).sum())
    return float((ranks - n * (n + 1) / 2) / (n * m))


if __name__ == "__main__":
    main()
