"""Folders of image files, each with its label image found by name."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from cellseg.data import Sample
from cellseg.errors import DataError
from cellseg.readers import raster, tiff
from cellseg.readers.options import FolderOptions, TiffOptions
from cellseg.readers.problems import Problems
from cellseg.readers.recognise import IMAGE_SUFFIXES
from cellseg.readers.stored import Stored
from cellseg.readers.view import samples_of


class Pair(NamedTuple):
    """An image file and its label file."""

    name: str
    """What both are called, without suffix and extension."""
    image: Path
    labels: Path | None


class Matching(NamedTuple):
    """Which files of a folder belong together."""

    pairs: list[Pair]
    """Sorted by name."""
    lonely: list[Path]
    """Images without labels, and files that are neither."""
    orphans: list[Path]
    """Label files without an image."""


def stem(path: Path) -> str:
    """The name of a file without its extension, ``.ome.tif`` being one."""
    return path.stem[:-4] if path.stem.lower().endswith(".ome") else path.stem


def image_file(path: Path) -> Stored:
    """The image in a file, by its extension; only headers are read.

    Raises:
        DataError: it is no image that can be read, or is damaged.
    """
    kind = path.suffix.lower()
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty: the file has 0 bytes.")
    if kind in tiff.SUFFIXES:
        return tiff.tiff_image(path)
    if kind in raster.PNG + raster.JPEG:
        return raster.raster_image(path)
    raise DataError(
        f"{path}: cannot read {kind or 'such'} files.",
        hint=f"Convert it to one of {', '.join(IMAGE_SUFFIXES)} or OME-Zarr.",
    )


def label_image(path: Path) -> Stored:
    """Like :func:`image_file`, for labels."""
    if path.suffix.lower() in raster.JPEG:
        raise DataError(
            f"{path}: labels cannot be JPEG, which does not keep values exactly.",
            hint="Save them as TIFF or PNG.",
        )
    return image_file(path)


def label_file(image: Path, given: str | None) -> Path:
    """The label image that the user names for a single image file."""
    if given is None:
        raise DataError(
            f"{image}: which file holds its labels?", hint="Name it: --labels labels.tif"
        )
    return _beside(image.parent, given)


def open_file(path: Path, options: FolderOptions | TiffOptions, labelled: bool) -> list[Sample]:
    """One image file: an image, a stack, or a movie, which gives a sample for each frame."""
    labels = label_image(label_file(path, options.labels)) if labelled else None
    return samples_of(stem(path), image_file(path), labels, options, path)


def open_folder(path: Path, options: FolderOptions, labelled: bool) -> list[Sample]:
    """All images of a folder (not of its subfolders), sorted by name, or a single image."""
    if path.is_file():
        return open_file(path, options, labelled)
    pairs = _pairs(path, options) if labelled else _images(path, options)
    problems = Problems()
    samples: list[Sample] = []
    for pair in pairs:
        with problems.kept(pair.name):
            labels = label_image(pair.labels) if pair.labels is not None else None
            samples += samples_of(pair.name, image_file(pair.image), labels, options, pair.image)
    problems.refuse(samples)
    return samples


def _image_folder(path: Path, options: FolderOptions) -> Path:
    if options.images is not None:
        folder = _beside(path, options.images)
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder.", hint=_subfolders(path))
        return folder
    return path / "images" if (path / "images").is_dir() else path


def _label_folder(path: Path, images: Path, options: FolderOptions) -> Path:
    if options.labels is None and not (path / "labels").is_dir():
        if options.label_suffix is not None:
            return images
        raise DataError(
            f"{path}: has no folder labels/ with label images.",
            hint="Name it with --labels; or, for files like t01_img.tif and t01_mask.tif, give "
            f"--image-suffix _img --label-suffix _mask. {_subfolders(path)}",
        )
    folder = _beside(path, options.labels or "labels")
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder.", hint=_subfolders(path))
    return folder


def _subfolders(path: Path) -> str:
    names = sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    return f"Subfolders of {path.name}: {', '.join(names) or 'none'}."


def _beside(folder: Path, name: str) -> Path:
    """A path that the user gave: in ``folder`` if it is there, else as it stands."""
    given = Path(name).expanduser()
    return folder / given if (folder / given).exists() or not given.exists() else given


def _files(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES
        and not file.name.startswith(".")
        and file.is_file()
    )


def _images(path: Path, options: FolderOptions) -> list[Pair]:
    folder = _image_folder(path, options)
    files = [file for file in _files(folder) if _is_image(file, options)]
    if not files:
        raise DataError(f"{folder}: holds no images.", hint=_expected(folder, options))
    named = _by_name(files, options.image_suffix)
    return [Pair(name, file, None) for name, file in named.items()]


def match(path: Path, options: FolderOptions) -> Matching:
    """Find the label image of each image of a folder, by name; no file is opened.

    Raises:
        DataError: a folder is missing or empty, or two files have one name.
    """
    folder = _image_folder(path, options)
    labels = _label_folder(path, folder, options)
    together = labels.resolve() == folder.resolve()
    if together and options.label_suffix is None:
        raise DataError(
            f"{folder}: images and labels are in one folder.",
            hint="Tell them apart with --label-suffix, such as --label-suffix _mask.",
        )
    image_files = [file for file in _files(folder) if _is_image(file, options, together)]
    label_files = [
        file
        for file in _files(labels)
        if options.label_suffix is None or stem(file).endswith(options.label_suffix)
    ]
    if not image_files:
        raise DataError(f"{folder}: holds no images.", hint=_expected(folder, options))
    images = _by_name(image_files, options.image_suffix)
    truths = _by_name(label_files, options.label_suffix)
    lonely = [images[name] for name in images if name not in truths]
    orphans = [truths[name] for name in truths if name not in images]
    if together:
        used = {*image_files, *label_files}
        lonely += [file for file in _files(folder) if file not in used]
    pairs = [Pair(name, images[name], truths[name]) for name in images if name in truths]
    return Matching(pairs, lonely, orphans)


def _pairs(path: Path, options: FolderOptions) -> list[Pair]:
    found = match(path, options)
    parts = []
    if found.lonely:
        parts.append(f"images without labels: {_listed(path, found.lonely)}")
    if found.orphans:
        parts.append(f"labels without an image: {_listed(path, found.orphans)}")
    if parts:
        raise DataError(
            f"{path}: {len(found.lonely) + len(found.orphans)} files have no partner; "
            f"{'; '.join(parts)}.",
            hint="A pair has one name; --image-suffix and --label-suffix are cut off first.",
        )
    return found.pairs


def _is_image(file: Path, options: FolderOptions, together: bool = True) -> bool:
    name = stem(file)
    if options.image_suffix is not None:
        return name.endswith(options.image_suffix)
    return not (together and options.label_suffix and name.endswith(options.label_suffix))


def _by_name(files: list[Path], suffix: str | None) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for file in files:
        name = stem(file).removesuffix(suffix or "")
        if name in named:
            raise DataError(
                f"{named[name]} and {file.name} have one name: {name!r}.",
                hint="Keep one of them, or rename it.",
            )
        named[name] = file
    return dict(sorted(named.items()))


def _listed(root: Path, files: list[Path]) -> str:
    return ", ".join(
        file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)
        for file in files
    )


def _expected(folder: Path, options: FolderOptions) -> str:
    others = sorted({p.suffix for p in folder.iterdir() if p.is_file() and p.suffix})
    wanted = f"Expected files ending in {', '.join(IMAGE_SUFFIXES)}"
    if options.image_suffix:
        wanted += f" whose names end in {options.image_suffix}"
    return f"{wanted}; found {', '.join(others) or 'none'}."
