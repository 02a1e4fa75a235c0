"""Write augmented copies of labelled images, as a data set to train on."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellseg.data import Sample
from cellseg.errors import ConfigError, DataError, InterruptedRunError
from cellseg.events import Emit, Progress
from cellseg.plugins import Plugins
from cellseg.workflows.augment_settings import AugmentSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellseg.outputs.pairs import Pair, PairFormat
    from cellseg.readers.origins import Origins

_SUFFIX = "_aug"
_FORBIDDEN = str.maketrans(dict.fromkeys('/\\:*?"<>|' + "".join(map(chr, range(32))), "_"))


@dataclass(frozen=True)
class Augmented:
    """What was written, or would be."""

    output: Path
    format: str
    originals: int
    """Images that are written as they are."""
    copies: int
    validation: int
    """How many of the originals only validate, and so are not copied."""
    bytes: int
    """Of all pixels and labels, before they are compressed."""
    dry_run: bool

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {
            "output": str(self.output)
        }

    def lines(self) -> list[str]:
        """For people."""
        done = "Would write" if self.dry_run else "Written"
        lines = [
            f"{done}: {self.output} ({self.copies} copies and {self.originals} originals as "
            f"{self.format}, {self.bytes / 1e6:.4g} MB before compression)"
        ]
        if self.validation:
            lines.append(f"{self.validation} images are for validation: these are not copied.")
        if not self.dry_run:
            lines.append(f"Next:    cellseg train {self.output} --backend NAME -o RUN")
        return lines


def augment(
    plugins: Plugins,
    data: Path,
    out: Path,
    settings: AugmentSettings | None = None,
    reader_options: Mapping[str, object] | None = None,
    *,
    emit: Emit = lambda event: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Augmented:
    """Make a new data set of augmented copies of whole images, and of the images themselves.

    Copies are named ``NAME_aug1`` and so on. Pixels keep their type: intensities change in
    normalised units (percentiles 1 and 99.8 of each channel are 0 and 1), and come back to the
    scale of the image, rounded and clipped to what its type holds. Objects keep their ids.
    ``cellseg-samples.json`` says which image each copy comes from; with it, training keeps them on
    one side of every split. Images that the data set has for validation are written without copies.

    Args:
        plugins: where to find the reader.
        data: images with labels, as some reader understands them.
        out: the folder to make; it appears when everything in it is written.
        settings: what to make.
        reader_options: options of the reader, by name.
        emit: gets a ``Progress`` for each image that is done with its copies.
        interrupted: asked after each image; True stops, and leaves nothing.

    Raises:
        ConfigError: an option does not suit these images.
        DataError: the images cannot be read, are too large, or cannot be stored in this format;
            all of them only validate; or ``out`` is there already, and no empty folder.
        StorageError: the disk is full, or permission is missing; nothing is left behind.
        InterruptedRunError: ``interrupted()`` said so.
    """
    from cellseg.files import remove_leftovers
    from cellseg.locks import beside, sole
    from cellseg.outputs.result import output_file
    from cellseg.readers import open_dataset

    settings = settings or AugmentSettings()
    place = _place(out)
    samples = open_dataset(plugins, data, settings.reader, reader_options or {}, labelled=True)
    format = _format(settings, samples)
    jobs = [_Job(sample, _stem(sample.name), settings, format) for sample in samples]
    _check(jobs)
    found = Augmented(
        out,
        format,
        originals=sum(job.keeps for job in jobs),
        copies=sum(job.copies for job in jobs),
        validation=sum(job.sample.split == "val" for job in jobs),
        bytes=sum(job.bytes for job in jobs),
        dry_run=settings.dry_run,
    )
    if settings.dry_run:
        return found
    with sole(out, beside(place), emit=emit), output_file(place) as folder:
        _place(out)  # again: another process may have made it
        remove_leftovers(place.parent, {place.name})
        folder.mkdir()
        for done in _run(jobs, folder, settings.workers):
            emit(Progress(done, len(jobs)))
            if interrupted():
                raise InterruptedRunError("Stopped; nothing was written.")
        _origins(jobs).save(folder)
    return found


def _place(out: Path) -> Path:
    """Where the folder is to appear, behind all links."""
    place = out.resolve()
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise DataError(f"{out} exists and is not empty.", hint="Choose another --output.")
    if place == Path.cwd() or os.path.ismount(place):
        raise DataError(
            f"{out} cannot be replaced: it is the current folder, or where a disk is mounted.",
            hint=f"Choose a folder in it: --output {out / 'augmented'}",
        )
    return place


@dataclass(frozen=True)
class _Job:
    """One image, with all that is written of it."""

    sample: Sample
    stem: str
    """What its files are called."""
    settings: AugmentSettings
    format: PairFormat

    @property
    def keeps(self) -> bool:
        """Whether the image itself is written."""
        return self.settings.include_originals or self.sample.split == "val"

    @property
    def copies(self) -> int:
        """How many copies are; none of what only validates."""
        return 0 if self.sample.split == "val" else self.settings.copies

    @property
    def names(self) -> list[str]:
        """Of everything that is written."""
        copies = [f"{self.stem}{_SUFFIX}{number}" for number in range(1, self.copies + 1)]
        return [self.stem] * self.keeps + copies

    @property
    def bytes(self) -> int:
        """Of the pixels and labels of all that is written."""
        from math import prod

        assert self.sample.labels is not None
        image, labels = self.sample.image, self.sample.labels
        each = prod(image.shape) * image.dtype.itemsize
        return len(self.names) * (each + prod(labels.shape) * _label_type(labels.dtype).itemsize)

    def run(self, folder: Path) -> None:
        """Write it all."""
        from cellseg.augment import Augmentation
        from cellseg.normalise import Normaliser
        from cellseg.outputs.pairs import write_pair

        image, labels = self._read()
        if self.keeps:
            write_pair(self._pair(self.stem, image, labels), folder, self.format)
        if not self.copies:
            return
        normaliser = Normaliser()
        statistics = normaliser.statistics(image, self.sample.name)
        normalised = normaliser.apply(image, statistics)
        change = Augmentation(self.settings)
        for number in range(1, self.copies + 1):
            rng = _generator(self.settings.seed, self.sample.name, number)
            changed, moved = change(normalised, labels, rng)
            restored = normaliser.restore(changed, statistics, image.dtype)
            pair = self._pair(f"{self.stem}{_SUFFIX}{number}", restored, moved)
            write_pair(pair, folder, self.format)

    def _read(self) -> tuple[NDArray[Any], NDArray[np.uint32]]:
        from cellseg.objects import as_ids

        assert self.sample.labels is not None
        whole = tuple(slice(0, length) for length in self.sample.image.shape)
        labels = self.sample.labels[whole[1:]]
        return self.sample.image[whole], as_ids(labels, self.sample.name)

    def _pair(self, name: str, image: NDArray[Any], labels: NDArray[np.uint32]) -> Pair:
        from cellseg.outputs.pairs import Pair

        assert self.sample.labels is not None
        stored = labels.astype(_label_type(self.sample.labels.dtype), copy=False)
        return Pair(name, image, stored, self.sample.spacing, self.sample.channels)


def _label_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type that labels are stored in: as they come, if that is one for ids."""
    import numpy as np

    return dtype if dtype.kind == "u" and dtype.itemsize <= 4 else np.dtype(np.uint32)


def _generator(seed: int, name: str, number: int) -> np.random.Generator:
    """All that is random in one copy of one image."""
    import numpy as np

    digest = hashlib.sha256(name.encode(errors="surrogatepass")).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:16], "big"), number])


def _stem(name: str) -> str:
    """The name of a sample as one of files, which readers give back as it is."""
    stem = name.encode(errors="replace").decode().translate(_FORBIDDEN).lstrip(".")
    for ending in (".ome", ".zarr"):  # readers cut these off
        stem = stem.removesuffix(ending) + "_" + ending[1:] if stem.endswith(ending) else stem
    return stem or "_"


def _format(settings: AugmentSettings, samples: Sequence[Sample]) -> PairFormat:
    if settings.format != "original":
        return settings.format
    found = {_format_of(sample) for sample in samples}
    if len(found) > 1:
        raise ConfigError(
            f"--format original: the images are of several formats: {', '.join(sorted(found))}.",
            hint="Choose one for all: --format tif, ome-zarr or hdf5",
        )
    return found.pop()


def _format_of(sample: Sample) -> PairFormat:
    from cellseg.readers.recognise import HDF5_SUFFIXES, TIFF_SUFFIXES, ome_attributes

    path = sample.path
    if path is not None:
        kind = path.suffix.lower()
        if path.is_dir() and "multiscales" in ome_attributes(path):
            return "ome-zarr"
        if kind in HDF5_SUFFIXES:
            return "hdf5"
        if kind in TIFF_SUFFIXES:
            return "tif"
        if kind == ".png":
            return "png"
    raise ConfigError(
        f"--format original: {sample.name} is in a format that cellseg does not write: "
        f"{path or 'no file'}.",
        hint="Choose another: --format tif, ome-zarr or hdf5",
    )


def _check(jobs: Sequence[_Job]) -> None:
    """Find what would go wrong before anything is written."""
    from cellseg.augment import LARGEST, are_cubes
    from cellseg.outputs.pairs import refuse

    names = Counter(name for job in jobs for name in job.names)
    twice = sorted(name for name, count in names.items() if count > 1)
    if twice:
        whose = [job.sample.name for job in jobs if twice[0] in job.names]
        raise DataError(
            f"Several images or copies would be called {', '.join(twice[:5])}: the first of these "
            f"names is for {' and '.join(whose)}.",
            hint="Rename one of the images; or if the data was augmented before, augment what it "
            "was made from instead.",
        )
    if not any(job.copies for job in jobs):
        raise DataError(
            "All images are for validation: these are not copied, so there is nothing to augment."
        )
    for job in jobs:
        shape = job.sample.image.shape
        refuse(job.format, job.sample.name, shape, job.sample.image.dtype)
        if not job.copies:
            continue
        deforms = job.settings.affine_probability or job.settings.elastic_probability
        if deforms and max(shape[2:]) > LARGEST:
            raise DataError(
                f"{job.sample.name} has {shape[2]} x {shape[3]} pixels (y, x); whole images are "
                f"deformed up to {LARGEST} x {LARGEST}.",
                hint="Cut it into smaller images first, or add --affine-probability 0 "
                "--elastic-probability 0. cellseg train augments patches, of images of any size.",
            )
        if job.settings.swap_depth_probability and len(set(shape[1:])) > 1:
            size = " x ".join(map(str, shape[1:]))
            raise ConfigError(
                f"--swap-depth-probability needs images as deep as high and wide; "
                f"{job.sample.name} has {size} voxels (z, y, x)."
            )
        if job.settings.swap_depth_probability and not are_cubes(job.sample.spacing):
            size = " x ".join(f"{length:g}" for length in job.sample.spacing)
            raise ConfigError(
                f"--swap-depth-probability: the voxels of {job.sample.name} are no cubes, but "
                f"{size} µm (z, y, x).",
                hint="Leave it out: what is deep does not look like what is wide.",
            )
    classes = {job.sample.classes for job in jobs}
    if len(classes) > 1:
        listed = " and ".join(", ".join(table) or "none" for table in sorted(classes))
        raise DataError(
            f"The images have different classes: {listed}.",
            hint="The reader collection brings those of several data sets into one table.",
        )


def _origins(jobs: Sequence[_Job]) -> Origins:
    from cellseg.readers.origins import Origin, Origins

    samples: dict[str, Origin] = {}
    for job in jobs:
        sample = job.sample
        source = sample.group.encode(errors="backslashreplace").decode()  # JSON is Unicode
        origin = Origin.model_validate(
            {"source": source, "split": sample.split, "weight": sample.weight}
        )
        samples |= dict.fromkeys(job.names, origin)
    return Origins(samples=samples, classes=jobs[0].sample.classes)


def _run(jobs: Sequence[_Job], folder: Path, workers: int) -> Iterator[int]:
    """Do all of them; the number that is done after each."""
    if workers == 1 or len(jobs) == 1:
        for done, job in enumerate(jobs, 1):
            job.run(folder)
            yield done
        return
    from cellseg.workflows.processes import spread

    work = [(job, folder) for job in jobs]
    for done, _ in enumerate(spread(_do, work, min(workers, len(jobs))), 1):
        yield done


def _do(work: tuple[_Job, Path]) -> None:
    """One image, in another process."""
    job, folder = work
    job.run(folder)
