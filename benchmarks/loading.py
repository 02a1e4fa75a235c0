"""Training patches per second and worker, against torch-em's loader on the same files.

The job: a random 512² patch with at least 2 objects of at least 25 pixels, as a float32 tensor
normalised by percentiles and an int32 tensor of labels, through torch's DataLoader in one process,
one patch at a time.
torch-em reads a patch, counts the objects in it, and normalises it by its own percentiles;
cellseg looks places up in an index of the objects, and normalises by the percentiles of the image.
Both are asked for it as they come; cellseg then keeps decoded images, up to 512 MiB of them. The
column "nothing kept" is cellseg with --cache 0, which reads every patch from the file.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
import torch
import torch_em
import zarr
from torch_em.data import MinInstanceSampler
from torch_em.transform.raw import get_raw_transform, normalize_percentile

from _table import finish, result, table
from cellseg.normalise import Normaliser, normalised
from cellseg.patches import PatchSampler
from cellseg.plugins import Plugins
from cellseg.readers import open_dataset
from cellseg.sampling_options import NormaliseOptions, PatchOptions
from cellseg.synthetic import make_image

IMAGES, SIDE, CELLS, PATCH = 6, 2048, 1500, 512
ROUNDS, PEER_PATCHES, OUR_PATCHES = 7, 20, 400
STORES = ("TIFF, deflate", "TIFF, uncompressed", "Zarr, zstd", "Zarr, uncompressed")


def images() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Touching cells: four drawn quarters, each time put together in another way.

    Images are uint16, labels uint32, as cellseg and most tools write them.
    """
    quarters = [make_image(seed, (SIDE // 2, SIDE // 2), CELLS // 4) for seed in range(4)]
    for number in range(IMAGES):
        rng = np.random.default_rng(number)
        parts, last = [], 0
        for at in rng.permutation(4):
            turns = int(rng.integers(4))
            image, labels = (np.rot90(array, turns) for array in quarters[at])
            parts.append((image, np.where(labels > 0, labels + last, 0).astype(np.uint32)))
            last = int(parts[-1][1].max())
        a, b, c, d = parts
        yield tuple(np.block([[a[i], b[i]], [c[i], d[i]]]) for i in (0, 1))  # type: ignore[misc]


def write(folder: Path) -> dict[str, Path]:
    """The same images in each kind of file."""
    places = {store: folder / f"data{number}" for number, store in enumerate(STORES)}
    for store, place in places.items():
        for part in ("images", "labels") if store.startswith("TIFF") else (".",):
            (place / part).mkdir(parents=True)
    for number, (image, labels) in enumerate(images()):
        for store, place in places.items():
            plain = "uncompressed" in store
            if store.startswith("TIFF"):
                for part, array in (("images", image), ("labels", labels)):
                    file = place / part / f"i{number}.tif"
                    tifffile.imwrite(file, array, compression=None if plain else "zlib")
            else:
                group = zarr.open_group(place / f"i{number}.zarr", mode="w", zarr_format=2)
                for part, array in (("raw", image), ("labels", labels)):
                    more: dict[str, Any] = {"compressors": None} if plain else {}
                    group.create_array(part, data=array, chunks=(512, 512), **more)
    return places


def peer(store: str, place: Path, raw_transform: Any) -> torch.utils.data.Dataset:
    """torch-em's patches, without augmentation."""
    if store.startswith("TIFF"):
        paths = [str(place / part) for part in ("images", "labels")]
        keys, more = ("*.tif", "*.tif"), {"is_seg_dataset": False}
    else:
        files = sorted(str(path) for path in place.glob("*.zarr"))
        paths, keys, more = [files, files], ("raw", "labels"), {"is_seg_dataset": True}
    return torch_em.default_segmentation_dataset(
        paths[0],
        keys[0],
        paths[1],
        keys[1],
        patch_shape=(PATCH, PATCH),
        ndim=2,
        n_samples=100_000,
        raw_transform=raw_transform,
        transform=_nothing,
        sampler=MinInstanceSampler(2, min_size=25, exclude_ids=[0]),
        label_dtype=torch.int32,
        **more,
    )


def _nothing(*arrays: Any) -> Any:
    return arrays


class Patches(torch.utils.data.Dataset):
    """cellseg's patches in the form that torch-em's have."""

    def __init__(self, store: str, place: Path, cache: int) -> None:
        reader, keys = "folder", {}
        if store.startswith("Zarr"):
            reader, keys = "zarr", {"raw_key": "raw", "label_key": "labels"}
        found = open_dataset(Plugins(), place, reader, keys, labelled=True)
        assert len(found) == IMAGES
        normaliser = Normaliser.fit(NormaliseOptions(), found)
        samples = [normalised(sample, normaliser) for sample in found]
        options = PatchOptions(patch_size=PATCH, min_instances=2, cache=cache)
        self._sampler = PatchSampler.of(samples, options, seed=0)

    def __len__(self) -> int:
        return 10_000_000

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        patch = self._sampler.patch(index)
        return torch.from_numpy(patch.image[:, 0]), torch.from_numpy(patch.labels.view(np.int32))


def drawn(patches: torch.utils.data.Dataset) -> Callable[[int], float]:
    """Seconds for each of some more patches, through a DataLoader."""
    stream = iter(torch.utils.data.DataLoader(patches, batch_size=None))

    def seconds(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            image, labels = next(stream)
        spent = (time.perf_counter() - start) / count
        assert image.shape == labels.shape == (1, PATCH, PATCH)
        assert image.dtype == torch.float32 and labels.dtype == torch.int32
        _, sizes = np.unique(labels[labels > 0], return_counts=True)
        assert (sizes >= 25).sum() >= 2 and -1 < float(image.mean()) < 2
        return spent

    seconds(2)
    return seconds


def main() -> None:
    """Measure all in turns, so that a busy machine slows all alike."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows: list[list[object]] = [
        [
            "files",
            "torch-em ms",
            "torch-em z-score ms",
            "cellseg ms",
            "nothing kept ms",
            "index ms/image",
            "patches/s",
            "times",
            "times, nothing kept",
        ]
    ]
    speedups = {}
    with tempfile.TemporaryDirectory() as temporary:
        for store, place in write(Path(temporary)).items():
            start = time.perf_counter()
            ours = Patches(store, place, cache=PatchOptions().cache)
            once = (time.perf_counter() - start) / IMAGES
            bare = Patches(store, place, cache=0)
            percentiles = get_raw_transform(normalize_percentile)
            loaders = [
                (drawn(peer(store, place, percentiles)), PEER_PATCHES),
                (drawn(peer(store, place, None)), PEER_PATCHES),
                (drawn(ours), OUR_PATCHES),
                (drawn(bare), PEER_PATCHES),
            ]
            spent = [[seconds(count) for seconds, count in loaders] for _ in range(ROUNDS)]
            theirs, standard, kept, direct = (
                statistics.median(times) for times in zip(*spent, strict=True)
            )
            speedups[store] = theirs / kept
            milliseconds = [1000 * value for value in (theirs, standard, kept, direct, once)]
            rows.append([store, *milliseconds, 1 / kept, theirs / kept, theirs / direct])
    table(rows)
    for name, store in zip(
        ("tiff", "tiff_uncompressed", "zarr", "zarr_uncompressed"), STORES, strict=True
    ):
        value = speedups[store]
        result(f"loading_speedup_{name}", value, ">=20", value >= 20)
    finish()


if __name__ == "__main__":
    main()
