"""A whole plate: 96 wells with 4 fields each, segmented by 1 to 4 processes.

The backend is otsu of ``examples/``; it stands for any model, as what is timed is how the work is
spread. Its blur sets what a field costs: ``light``, some 30 ms, is less than networks need, so that
starting and handing out count most; ``heavy``, some 80 ms, is still less than most need on a CPU.
Each time is that of a whole command, from the shell to the last label image in the plate. Its
peers, in the same run: the bare predictor in a loop that reads, predicts and writes; and the same
loop in a ``ProcessPoolExecutor``, the least that processes can cost.

    python benchmarks/plate.py [--wells 96] [--runs 3] [--kind light|heavy]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from _table import finish, result, table
from engine import cells

FIELDS = 4
SIZE = 540
SIGMAS = {"light": 12.0, "heavy": 50.0}
PROCESSES = {"light": (1, 2, 3, 4), "heavy": (1, 2, 4)}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def write_plate(path: Path, wells: int) -> None:
    """An OME-Zarr 0.4 plate of up to 8 x 12 wells; every field is another cut of one drawing."""
    import zarr

    drawing = cells(4 * SIZE, seed=1).astype(np.uint16) * 16
    rng = np.random.default_rng(0)
    names = [(chr(ord("A") + i // 12), f"{i % 12 + 1:02d}") for i in range(wells)]
    rows, columns = sorted({r for r, _ in names}), sorted({c for _, c in names})
    plate = {
        "version": "0.4",
        "name": "plate",
        "field_count": FIELDS,
        "rows": [{"name": row} for row in rows],
        "columns": [{"name": column} for column in columns],
        "wells": [
            {"path": f"{r}/{c}", "rowIndex": rows.index(r), "columnIndex": columns.index(c)}
            for r, c in names
        ],
    }
    write_group(path, {"plate": plate})
    for row, column in names:
        write_group(path / row, {})
        well = path / row / column
        images = [{"path": str(field)} for field in range(FIELDS)]
        write_group(well, {"well": {"version": "0.4", "images": images}})
        for field in range(FIELDS):
            y, x = rng.integers(0, 3 * SIZE, 2)
            zarr.create_array(
                str(well / str(field) / "0"),
                data=drawing[None, None, y : y + SIZE, x : x + SIZE],
                chunks=(1, 1, SIZE, SIZE),
                zarr_format=2,
                chunk_key_encoding={"name": "v2", "separator": "/"},
            )
            axes = [{"name": "c", "type": "channel"}, {"name": "z", "type": "space"}]
            axes += [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
            scale = [{"type": "scale", "scale": [1, 1, 0.5, 0.5]}]
            level = {"path": "0", "coordinateTransformations": scale}
            multiscales = [{"version": "0.4", "axes": axes, "datasets": [level]}]
            write_group(well / str(field), {"multiscales": multiscales})


def write_group(path: Path, attributes: dict[str, object]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    (path / ".zattrs").write_text(json.dumps(attributes))


def fields_of(plate: Path) -> list[Path]:
    return sorted(file.parent for file in plate.glob("*/*/*/.zattrs"))


def bare(fields: list[Path], out: Path, kind: str) -> None:
    """Read, normalise, predict and write, field by field: nothing that could be left out."""
    import zarr

    import cellseg as cs
    import cellseg_otsu
    from cellseg.normalise import Normaliser

    options = cellseg_otsu.OtsuOptions(sigma=SIGMAS[kind])
    segment = cellseg_otsu.load(cs.PredictJob(options=options, device="cpu"))
    for field in fields:
        image = zarr.open_array(str(field / "0"), mode="r")[...]
        normaliser = Normaliser()
        tile = normaliser.apply(image, normaliser.statistics(image))
        labels = segment([cs.Tile(image=tile)])[0].labels.astype(np.uint32)
        name = "-".join(field.parts[-3:])
        zarr.create_array(str(out / name), data=labels, chunks=labels.shape, overwrite=True)


def bare_in_pool(plate: Path, out: Path, processes: int, kind: str) -> None:
    """The bare loop in processes, each with its share of the fields."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    fields = fields_of(plate)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(bare, fields[i::processes], out, kind) for i in range(processes)]
        for job in jobs:
            job.result()


def in_process(*arguments: object) -> list[str]:
    """The command line of this script that runs one of its own peers."""
    return [sys.executable, str(Path(__file__)), *map(str, arguments)]


def predict(plate: Path, processes: int, kind: str) -> list[str]:
    command = [sys.executable, "-m", "cellseg_cli.main", "predict", str(plate)]
    command += [
        "--backend",
        "otsu",
        "--sigma",
        str(SIGMAS[kind]),
        "--overwrite",
        "--json",
        "--quiet",
    ]
    return [*command, "--workers", str(processes)]


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    return time.perf_counter() - start


def peak_megabytes(command: list[str]) -> tuple[float, float]:
    """The largest memory of the first process, and of all together; shared pages count once."""
    first, whole = 0.0, 0.0
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as running:
        parent = psutil.Process(running.pid)
        while running.poll() is None:
            sizes = [memory_of(p) for p in (parent, *children_of(parent))]
            first, whole = max(first, sizes[0]), max(whole, sum(sizes))
            time.sleep(0.2)
    if running.returncode:
        raise SystemExit(f"{command} failed")
    return first, whole


def children_of(parent: psutil.Process) -> list[psutil.Process]:
    try:
        return parent.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def memory_of(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss) / 2**20
    except psutil.Error:
        return 0.0


def median_of(kinds: dict[str, Callable[[], float]], runs: int) -> dict[str, float]:
    """Medians, measured in turns, so that a machine that is busy for a while slows all kinds."""
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(runs):
        for name, measure in kinds.items():
            taken[name].append(measure())
    return {name: statistics.median(values) for name, values in taken.items()}


def compare(folder: Path, wells: int, runs: int, kind: str) -> None:
    plate, small, out = folder / "plate.zarr", folder / "small.zarr", folder / "bare"
    kinds: dict[str, Callable[[], float]] = {
        "bare": lambda: seconds(in_process("bare", plate, out, 1, kind)),
        "bare small": lambda: seconds(in_process("bare", small, out, 1, kind)),
    }
    for n in PROCESSES[kind]:
        kinds[f"ours {n}"] = lambda n=n: seconds(predict(plate, n, kind))
        kinds[f"small {n}"] = lambda n=n: seconds(predict(small, n, kind))
        if n > 1:
            kinds[f"pool {n}"] = lambda n=n: seconds(in_process("pool", plate, out, n, kind))
    took = median_of(kinds, runs)
    took["pool 1"] = took["bare"]
    rows: list[tuple[object, ...]] = [
        ("processes", "cellseg s", "speed-up", "of which start s", "bare s", "speed-up")
    ]
    for n in PROCESSES[kind]:
        ours, peer = took[f"ours {n}"], took[f"pool {n}"]
        rows.append((n, ours, took["ours 1"] / ours, took[f"small {n}"], peer, took["bare"] / peer))
    count = wells * FIELDS
    each = (took["bare"] - took["bare small"]) / (count - FIELDS) * 1000
    print(f"{kind}: {each:.0f} ms a field, {count} fields of {SIZE}², {os.cpu_count()} cores; "
          f"medians of {runs}")  # fmt: skip
    table(rows)
    more = (took["ours 1"] - took["small 1"]) - (took["bare"] - took["bare small"])
    overhead = more / (count - FIELDS) * 1000
    speedup = took["ours 1"] / took["ours 2"]
    share = speedup / (took["bare"] / took["pool 2"])
    crowd = took["ours 2"] / took["ours 4"]
    result(f"plate_overhead_ms_{kind}", overhead, "<30 (ours) per field", overhead < 30)
    result(f"plate_speedup_2_{kind}", speedup, ">=1.6 (ours)", speedup >= 1.6)
    result(f"plate_speedup_2_of_pool_{kind}", share, ">=0.9 (ours)", share >= 0.9)
    result(f"plate_4_on_2_cores_{kind}", crowd, ">=0.8 (ours)", crowd >= 0.8)


def memory(folder: Path) -> None:
    plate, small = folder / "plate.zarr", folder / "small.zarr"
    peaks = {n: peak_megabytes(predict(plate, n, "light")) for n in (1, 2, 4)}
    few = peak_megabytes(predict(small, 1, "light"))[0]
    rows = [("processes", "first, peak MiB", "all, peak MiB")]
    table([*rows, *((n, *peak) for n, peak in peaks.items()), ("1, one well", few, few)])
    growth = peaks[1][0] / few
    result("plate_memory_growth", growth, "<=1.2 (ours)", growth <= 1.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", nargs="*")
    parser.add_argument("--wells", type=int, default=96)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--kind", choices=list(SIGMAS), action="append")
    given = parser.parse_args()
    if given.peer:
        peer, plate, out, processes, kind = given.peer
        if peer == "bare":
            bare(fields_of(Path(plate)), Path(out), kind)
        else:
            bare_in_pool(Path(plate), Path(out), int(processes), kind)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_plate(folder / "plate.zarr", given.wells)
        write_plate(folder / "small.zarr", 1)
        (folder / "bare").mkdir()
        for kind in given.kind or SIGMAS:
            compare(folder, given.wells, given.runs, kind)
        memory(folder)
    finish()


if __name__ == "__main__":
    main()
