"""Reads examples from files of the user, and finds the images in which they lie.

``docs/examples.md`` describes the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cellseg.data import Dataset, Tiling
from cellseg.engine.items import Item, make_items
from cellseg.errors import DataError
from cellseg.example_shapes import SUFFIXES, Shape, read_shapes
from cellseg.examples import Examples, Wanted, placed
from cellseg.plugins import Plugins
from cellseg.prompting import ImageNames, files_of
from cellseg.workflows import evaluate_pairs
from cellseg.workflows.evaluate_pairs import label_images


def read_examples(
    plugins: Plugins,
    path: Path,
    samples: Dataset,
    *,
    tags: Sequence[str] = (),
    negative_tags: Sequence[str] = (),
    axes: str | None = None,
) -> Examples:
    """Read examples, and find the images in which they lie.

    Args:
        plugins: where to find the readers of label images.
        path: GeoJSON, a CSV table, ImageJ ROIs or a label image, or a folder with a file for each
            image; in a folder that holds others too, label images do not count.
        samples: all images in which examples may lie.
        tags: the classes to look for, in this order; all that there are, if empty.
        negative_tags: classes of objects to be left alone.
        axes: of label images that do not say.

    Raises:
        DataError: a file is missing or damaged; an example lies in no image or not within it,
            crosses itself, covers no pixel or is there twice; a tag has no example.
        ConfigError: a tag is given twice.
    """
    items = make_items(samples, Tiling(), False)
    names = ImageNames(tuple(item.name for item in items), "the images")
    if path.is_dir() and (files := files_of(path, SUFFIXES)):
        shapes = [
            shape for file in files for shape in _of_image(file, names, file.relative_to(path))
        ]
    elif path.suffix.lower() in SUFFIXES and not path.is_dir():
        shapes = [
            replace(shape, image=_image_of(shape, names, path, len(items)))
            for shape in read_shapes(path)
        ]
    else:
        shapes = _of_labels(plugins, path, items, names, axes)
    return placed(shapes, items, Wanted(tuple(tags), tuple(negative_tags), str(path)))


def _of_image(file: Path, names: ImageNames, inside: Path) -> list[Shape]:
    """The shapes of a file that is named like its image."""
    image = names.find(inside.as_posix(), str(file))
    shapes = read_shapes(file)
    for shape in shapes:
        if shape.image is not None and names.find(shape.image, shape.where) != image:
            raise DataError(
                f"{shape.where}: is for {shape.image!r}, but its file is named like {image}."
            )
    return [replace(shape, image=image) for shape in shapes]


def _image_of(shape: Shape, names: ImageNames, path: Path, count: int) -> str:
    """The image that a shape says; else the only one, or that with the name of the file."""
    if shape.image is None and count > 1:
        try:
            return names.find(path.name, str(path))
        except DataError:
            raise DataError(
                f"{shape.where}: does not say in which of the {count} images it lies.",
                hint="Name the file like its image, give a folder with a file for each image, or "
                "add the property image (in tables, a column).",
            ) from None
    return names.of(shape.image, shape.where)


def _of_labels(
    plugins: Plugins, path: Path, items: Sequence[Item], names: ImageNames, axes: str | None
) -> list[Shape]:
    from cellseg.example_labels import shapes_of_labels

    wanted = evaluate_pairs.Wanted("examples", path, None, None, None, "--examples")
    try:
        found = label_images(plugins, wanted)
    except DataError:
        if axes is None:
            raise
        plain = "".join(axis for axis in axes.upper() if axis not in "CS")
        found = label_images(plugins, replace(wanted, axes=plain))
    sources = {one.name.rpartition("#")[0] or one.name for one in found}
    alone = len(items) == 1 and len(sources) == 1
    shapes: list[Shape] = []
    for one in found:
        source, _, number = one.name.rpartition("#")
        frame = int(number) if source and number.isdecimal() else None
        image = (
            items[0].name
            if alone
            else names.find(one.name if frame is None else source, str(one.path))
        )
        item = next(item for item in items if item.name == image)
        if tuple(one.labels.shape) != item.plan.shape:
            raise DataError(
                f"{one.path}: the label image is {_size(one.labels.shape)}, but {image} is "
                f"{_size(item.plan.shape)} (z, y, x).",
                hint="A label image has the size of its image; --axes states axes that were not "
                "understood.",
            )
        shapes += shapes_of_labels(one.labels, str(one.path), image, frame)
    return shapes


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
