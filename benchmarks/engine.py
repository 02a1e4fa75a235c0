"""The prediction engine against the least it could cost, and against plain ngio.

An image of 8192² pixels with 10^5 cells and a predictor that only labels what is bright, so that
what is timed is the engine: reading, normalising, tiling, stitching and writing OME-Zarr. The
least is labelling the array in memory and one Zarr write of the result.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import cellseg as cs
from _table import finish, median_seconds, result, table
from cellseg.plugins import Plugins
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings

STEP = 25
RUNS = 5


def cells(size: int, radius: int = 9, seed: int = 0) -> np.ndarray:
    """Discs on a jittered grid, never touching; (y, x) uint8."""
    rng = np.random.default_rng(seed)
    count = size // STEP
    centre = np.stack(np.mgrid[:count, :count], -1).reshape(-1, 2) * STEP + STEP // 2
    centre += rng.integers(-2, 3, centre.shape)
    offset = np.argwhere(np.ones((2 * radius + 1,) * 2)) - radius
    offset = offset[(offset**2).sum(1) <= radius**2]
    image = rng.integers(8, 16, (size, size), np.uint8)
    for dy, dx in offset:
        image[centre[:, 0] + dy, centre[:, 1] + dx] += 150
    return image


def load(job: cs.PredictJob[cs.NoOptions]) -> cs.Predictor:
    import cc3d

    def predict_batch(tiles: Sequence[cs.Tile]) -> list[cs.Segmentation]:
        return [cs.Segmentation(cc3d.connected_components(tile.image[0] > 0.5)) for tile in tiles]

    return predict_batch


@cs.hookimpl
def cellseg_predictors():
    yield cs.PredictorSpec(
        name="bright", summary="x", load=load, tiling=cs.Tiling((1, 1024, 1024), (0, 32, 32))
    )


def engine(images: Path, out: Path, **values: object) -> cs.events.Event | object:
    plugins = Plugins(installed=())
    plugins.register(sys.modules[__name__], "bright")
    settings = PredictSettings.model_validate(
        {"backend": "bright", "output": out, "overwrite": True, **values}
    )
    return predict(plugins, images, settings, emit=lambda event: None)


def write_image(image: np.ndarray, path: Path) -> None:
    """An OME-Zarr 0.4 image of one level and no compression."""
    import zarr

    zarr.create_array(
        str(path / "0"),
        data=image,
        chunks=(1024, 1024),
        compressors=None,
        zarr_format=2,
        chunk_key_encoding={"name": "v2", "separator": "/"},
    )
    axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
    scale = [{"type": "scale", "scale": [0.5, 0.5]}]
    level = {"path": "0", "coordinateTransformations": scale}
    multiscales = [{"version": "0.4", "axes": axes, "datasets": [level]}]
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    (path / ".zattrs").write_text(json.dumps({"multiscales": multiscales}))


def least(image: np.ndarray, path: Path) -> np.ndarray:
    import cc3d
    import zarr

    labels = cc3d.connected_components(image > 80, out_dtype=np.uint32)
    array = zarr.create_array(
        str(path), shape=labels.shape, chunks=(1024, 1024), dtype=np.uint32, overwrite=True
    )
    array[...] = labels
    return labels


def ngio_tiles(image: np.ndarray, path: Path) -> None:
    """Plain ngio: tiles with halo and stitching into a label of the container."""
    import cc3d
    from ngio import open_ome_zarr_container
    from ngio.iterators import SegmentationIterator

    container = open_ome_zarr_container(str(path))
    label = container.derive_label("cells", overwrite=True)
    iterator = SegmentationIterator(container.get_image(), label, axes_order=["y", "x"])
    iterator = iterator.by_grid(size_x=1024, size_y=1024).with_halo(x=32, y=32).with_stitch()
    iterator.map(lambda block: cc3d.connected_components(block > 80).astype(np.uint32))


def same_objects(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal up to the numbering: every object, none cut."""
    import fastremap

    if a.max() != b.max() or not np.array_equal(a > 0, b > 0):
        return False
    pairs = fastremap.unique(a.astype(np.uint64).ravel() << np.uint64(32) | b.ravel())
    return len(pairs) == a.max() + 1


def peak_megabytes(images: Path, out: Path) -> float:
    """Peak memory of a process that predicts, and does nothing else.

    Tiles of 512², so that the small image too has more of them than are in memory at once.
    """
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import engine; "
        "from pathlib import Path; "
        "engine.engine(Path(sys.argv[2]), Path(sys.argv[3]), format=('ome-zarr', 'csv'), "
        "tile_size=512); "
        # Not getrusage, whose peak is that of the parent to begin with.
        "status = open('/proc/self/status').read(); "
        "print(int(status.split('VmHWM:')[1].split()[0]) / 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, Path(__file__).parent, images, out],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def large_image(folder: Path) -> None:
    import zarr

    image = cells(8192)
    write_image(image, folder / "large.zarr")
    floor, ours = [], []
    truth = least(image, folder / "least.zarr")
    for _ in range(RUNS):  # in turns, so that a busy machine slows both
        start = time.perf_counter()
        least(image, folder / "least.zarr")
        middle = time.perf_counter()
        engine(folder / "large.zarr", folder / "out", format=("ome-zarr",))
        floor.append(middle - start)
        ours.append(time.perf_counter() - middle)
    found = zarr.open_array(str(folder / "out" / "large.ome.zarr" / "labels/cells/0"), mode="r")
    equal = same_objects(np.asarray(found[...]), truth)
    small = cells(4096)
    write_image(small, folder / "small.zarr")
    floor_small = median_seconds(lambda: least(small, folder / "least.zarr"), 3)
    warnings.simplefilter("ignore")
    peer = median_seconds(lambda: ngio_tiles(small, folder / "small.zarr"), 1)
    ours_small = median_seconds(
        lambda: engine(folder / "small.zarr", folder / "out2", format=("ome-zarr",)), 3
    )
    rows = [
        ("what", "image", "seconds", "times the least"),
        ("label in memory, write once", "8192²", statistics.median(floor), 1.0),
        ("cellseg engine", "8192²", statistics.median(ours), ratio(ours, floor)),
        ("label in memory, write once", "4096²", floor_small, 1.0),
        ("cellseg engine", "4096²", ours_small, ours_small / floor_small),
        ("ngio, halo and stitch", "4096²", peer, peer / floor_small),
    ]
    print(f"{truth.max()} cells")
    table(rows)
    result("engine_ratio", ratio(ours, floor), "<=3", ratio(ours, floor) <= 3)
    result("engine_equal", float(equal), "=1", equal)


def ratio(ours: list[float], floor: list[float]) -> float:
    return statistics.median(ours) / statistics.median(floor)


def memory(folder: Path) -> None:
    write_image(cells(2048), folder / "tiny.zarr")
    peaks = {
        name: statistics.median(
            peak_megabytes(folder / f"{name}.zarr", folder / f"peak-{name}") for _ in range(3)
        )
        for name in ("tiny", "large")
    }
    growth = peaks["large"] / peaks["tiny"]
    table([("image", "peak MiB"), ("2048²", peaks["tiny"]), ("8192²", peaks["large"])])
    result("engine_memory_growth", growth, "<=1.2", growth <= 1.2)


def many_small(folder: Path) -> None:
    """200 images, of which the engine's share is all but reading, predicting and writing."""
    import tifffile

    from cellseg.normalise import Normaliser

    images = folder / "images"
    images.mkdir()
    one = cells(512)
    for number in range(200):
        tifffile.imwrite(images / f"{number:03d}.tif", np.roll(one, number * 7, 0))
    segment = load(cs.PredictJob(options=cs.NoOptions(), device="cpu"))

    def bare() -> None:
        for file in sorted(images.iterdir()):
            image = tifffile.imread(file)[None, None]
            normaliser = Normaliser()
            tile = normaliser.apply(image, normaliser.statistics(image))
            labels = segment([cs.Tile(image=tile)])[0].labels[0].astype(np.uint32)
            tifffile.imwrite(
                folder / "bare.tif", labels, compression="zlib", compressionargs={"level": 1}
            )

    plain = median_seconds(bare, 3)
    ours = median_seconds(lambda: engine(images, folder / "many"), 3)
    overhead = (ours - plain) / 200 * 1000
    rows = [("200 images of 512²", "ms each"), ("read, predict, write", plain * 5)]
    table([*rows, ("cellseg engine, with object tables", ours * 5)])
    result("engine_overhead_ms", overhead, "<30", overhead < 30)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        large_image(Path(name))
        memory(Path(name))
        many_small(Path(name))
    finish()
