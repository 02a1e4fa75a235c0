"""Writes one output of a result, whatever its format."""

from __future__ import annotations

from cellseg.outputs.formats import Output, tracks_beside
from cellseg.outputs.result import Result


def write(result: Result, output: Output) -> None:
    """Write ``result`` as ``output`` says; what was at its path is replaced when it is whole.

    Where the ids are those of tracks, the table of the tracks is written beside the labels.

    Raises:
        DataError: the format is for tracks, and there are none, or it cannot hold them.
        StorageError: the disk is full, or permission is missing; nothing is left behind.
    """
    _write(result, output)
    table = tracks_beside(output)
    if result.tracks is not None and table is not None and not output.probabilities:
        from cellseg.outputs.tracks_table import write_tracks_csv

        write_tracks_csv(result.tracks, table)


def _write(result: Result, output: Output) -> None:
    if output.probabilities and output.format == "tiff":
        from cellseg.outputs.images import write_tiff_probabilities

        write_tiff_probabilities(result, output.path)
    elif output.probabilities:
        from cellseg.ome.probabilities import write_probabilities_into

        assert output.container is not None
        write_probabilities_into(result, output.container, output.label_name)
    elif output.format == "tiff":
        from cellseg.outputs.images import write_tiff

        write_tiff(result, output.path)
    elif output.format == "hdf5":
        from cellseg.outputs.hdf5 import write_hdf5

        write_hdf5(result, output.path)
    elif output.format == "geojson":
        from cellseg.outputs.geojson import write_geojson

        write_geojson(result, output.path, output.smoothing)
    elif output.format == "csv":
        from cellseg.outputs.table import write_csv

        write_csv(result, output.path)
    elif output.format == "parquet":
        from cellseg.outputs.table import write_parquet

        write_parquet(result, output.path)
    elif output.format == "ctc":
        from cellseg.outputs.ctc import write_ctc

        write_ctc(result, output.path)
    elif output.format == "geff":
        from cellseg.outputs.geff import write_geff

        write_geff(result, output.path)
    elif output.container is not None:
        from cellseg.ome.write import write_into

        write_into(result, output.container, output.label_name)
    else:
        from cellseg.ome.write import write_new

        write_new(result, output.path, output.label_name)
