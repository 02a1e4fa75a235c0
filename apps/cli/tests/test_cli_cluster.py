"""``cellseg predict --scheduler``: the workers of a cluster that runs already."""

from __future__ import annotations

from collections.abc import Iterator

import cluster_fakes
import pytest


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with cluster_fakes.in_this_process(threads=1) as started:
        yield started


def test_predicting_on_a_cluster(cellseg, data, tmp_path, address) -> None:
    line = ["predict", data / "images", "--backend", "otsu"]
    alone = cellseg(*line, "-o", tmp_path / "alone", "--json")
    together = cellseg(*line, "-o", tmp_path / "together", "--scheduler", address, "--json")
    assert together.code == 0, together.err
    assert together.json["objects"] == alone.json["objects"] > 0
    names = sorted(file.name for file in (tmp_path / "alone").glob("*.*"))
    assert names
    for name in names:
        if name != ".cellseg":
            there = tmp_path / "together" / name
            assert there.read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert "distributed" not in together.err, "Dask says nothing unless asked to"


def test_what_cannot_be(cellseg, data, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("cellseg.engine.cluster._CONNECT", 0.3)
    line = ["predict", data / "images", "--backend", "otsu", "-o", tmp_path / "out"]
    lost = cellseg(*line, "--scheduler", "tcp://127.0.0.1:1")
    assert lost.code == 7
    assert "No scheduler answers at tcp://127.0.0.1:1." in lost.err
    both = cellseg(*line, "--scheduler", "tcp://127.0.0.1:1", "--slurm", "a100")
    assert both.code == 3
    assert "--scheduler and --slurm exclude each other" in both.err
    assert not (tmp_path / "out").exists()
