"""Tracks as a graph in GEFF, the exchange format of tracking programs.

Format: https://liveimagetrackingtools.org/geff
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.errors import DataError, PluginError
from cellseg.outputs.images import UNKNOWN
from cellseg.outputs.result import Result, output_file
from cellseg.strict_tracks import StrictTracks, strict_tracks


def write_geff(result: Result, path: Path) -> None:
    """Write a directed graph: a node for each object in each frame, an edge to where it is next.

    Nodes have ``t`` (frame), ``z`` (of volumes), ``y`` and ``x`` (centroid in voxels, the centre of
    the first one is 0; the axes hold the voxel size), ``track`` (the id in the labels), ``area``
    (voxels), ``score`` where there is one, ``tracklet_id`` and ``lineage_id``. Edges go over gaps,
    and from a mother's last object to the first of each daughter.

    Raises:
        DataError: the result has no tracks, or such that contradict themselves.
        PluginError: geff is not installed.
        StorageError: the disk is full, or permission is missing; nothing is left behind.
    """
    try:
        from geff import GeffMetadata
        from geff.core_io import write_arrays
        from geff_spec import Axis  # type: ignore[import-untyped]
    except ImportError as error:
        raise PluginError(
            "GEFF is written with geff, which is not installed.",
            hint='Install it: uv pip install "cellseg-core[geff]"',
        ) from error

    if result.tracks is None or result.ids is None:
        raise DataError(
            f"{result.name}: has no tracks, of which GEFF is a graph.",
            hint="Only movies have tracks: predict with --track, or link labels: cellseg track.",
        )
    joined = strict_tracks(result.ids, result.tracks, gaps=True)
    properties, edges = _graph(result, joined)
    scales = dict(zip("zyx", result.spacing, strict=True))
    axes = [Axis(name="t", type="time")]
    for name in "zyx" if "z" in properties else "yx":
        known = {} if result.spacing == UNKNOWN else {"scaled_unit": "micrometer"}
        scale = scales[name] if known else None
        axes.append(Axis(name=name, type="space", scale=scale, **known))
    about = GeffMetadata(
        directed=True,
        axes=axes,
        node_props_metadata={},
        edge_props_metadata={},
        track_node_props={"tracklet": "tracklet_id", "lineage": "lineage_id"},
    )
    nodes = np.arange(len(properties["t"]), dtype=np.uint64)
    with output_file(path) as temporary:
        write_arrays(
            str(temporary),
            nodes,
            {name: {"values": values, "missing": None} for name, values in properties.items()},
            edges,
            {},
            about,
        )


def _graph(
    result: Result, joined: StrictTracks
) -> tuple[dict[str, NDArray[Any]], NDArray[np.uint64]]:
    """The properties of the nodes, and the edges as pairs of nodes."""
    assert result.ids is not None
    tracklet = np.concatenate([*joined.ids, np.zeros(0, np.uint32)]).astype(np.uint64)
    frame = np.repeat(np.arange(len(result.ids)), [len(ids) for ids in result.ids])
    centroid = np.concatenate([objects.centroid for objects in result.objects])
    score = np.concatenate([objects.score for objects in result.objects])
    properties: dict[str, NDArray[Any]] = {"t": frame.astype(np.uint64)}
    for i, name in enumerate("zyx"):
        if name != "z" or result.shape[0] > 1:
            properties[name] = centroid[:, i]
    properties["track"] = np.concatenate(result.ids).astype(np.uint64)
    properties["area"] = np.concatenate([objects.area for objects in result.objects])
    if len(score) and not np.isnan(score).all():
        properties["score"] = score
    properties["tracklet_id"] = tracklet
    order = np.lexsort((frame, tracklet))
    same = tracklet[order[1:]] == tracklet[order[:-1]]
    edges = [np.stack([order[:-1][same], order[1:][same]], axis=1)]
    ids, first = np.unique(tracklet[order], return_index=True)
    last = np.append(first[1:], len(order))[: len(ids)] - 1
    firsts = dict(zip(ids.tolist(), order[first].tolist(), strict=True))
    lasts = dict(zip(ids.tolist(), order[last].tolist(), strict=True))
    parted = [track for track in joined.lineage.tracks if track.parent]
    divisions = [(lasts[track.parent], firsts[track.id]) for track in parted]
    edges.append(np.array(divisions, np.int64).reshape(-1, 2))
    founder: dict[int, int] = {}
    for track in sorted(joined.lineage.tracks, key=lambda track: track.begin):
        founder[track.id] = founder[track.parent] if track.parent else track.id
    founders = np.array([founder[i] for i in ids.tolist()], np.uint64)
    properties["lineage_id"] = founders[np.searchsorted(ids, tracklet)]
    return properties, np.concatenate(edges).astype(np.uint64)
