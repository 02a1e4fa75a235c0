"""Which labels belong to which images: those of a prediction, or those the images come with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cellseg.data import LazyArray
from cellseg.engine.items import Item
from cellseg.errors import ConfigError, DataError
from cellseg.locations import is_remote
from cellseg.options import Options
from cellseg.plugins import Plugins
from cellseg.readers.options import OmeZarrOptions
from cellseg.readers.problems import Problems
from cellseg.readers.recognise import IMAGE_SUFFIXES, is_zarr_node
from cellseg.specs import DatasetSpec
from cellseg.workflows.evaluate_pairs import LabelImage, Wanted, label_images

_LISTED = 10


@dataclass(frozen=True, slots=True)
class Found:
    """The label images of an image or movie, frame by frame, or why there are none."""

    labels: tuple[LazyArray, ...] = ()
    """``(z, y, x)`` each."""
    problem: DataError | None = None


def inside_images(reader: DatasetSpec[Any]) -> bool:
    """Whether a reader's images are OME-Zarr, where each holds its own labels."""
    return issubclass(reader.options, OmeZarrOptions)


def labels_at(
    plugins: Plugins,
    images: Path,
    labels: Path,
    reading: Mapping[str, object],
    items: Sequence[Item],
) -> list[Found]:
    """The label images of each image, by name, at the path that the user gives.

    Args:
        plugins: where to find the readers.
        images: the images' path; ``labels`` may be relative to it.
        labels: file, folder or container.
        reading: the options that the reader of the images got; their ``label`` or ``label_key``,
            ``label_suffix`` and ``axes`` hold for the labels too.
        items: the images.

    Raises:
        DataError: nothing is there, or what is there are no label images.
        ConfigError: an option does nothing.
    """
    path = _placed(images, labels)
    key_name = "label_key" if "label_key" in reading else "label"
    key, suffix, axes = (reading.get(name) for name in (key_name, "label_suffix", "axes"))
    flag = "--" + key_name.replace("_", "-")
    wanted = Wanted("labels", path, _text(key), _text(suffix), None, flag)
    problems = Problems()
    try:
        found = label_images(plugins, wanted)
    except DataError:
        if axes is not None:
            # Label images that do not say their axes have those of the images, without channels.
            plain = "".join(axis for axis in str(axes).upper() if axis not in "CS")
            wanted = replace(wanted, axes=plain)
        found = label_images(plugins, wanted, problems)
    if key is not None and all(one.path.suffix.lower() in IMAGE_SUFFIXES for one in found):
        raise ConfigError(f"{flag} does nothing: {path} holds label images as files.")
    frames = len(items[0].frames) if len(items) == 1 else 0
    single = path.is_file() or is_zarr_node(path)
    if single and frames == len(found):  # one image and its labels need not share a name
        return [_fitting(items[0], [one.labels for one in found])]
    by_name = {one.name: one for one in found}
    return [_named(item, by_name, path, problems.named) for item in items]


def labels_inside(reading: Options, items: Sequence[Item]) -> list[Found]:
    """The labels in each OME-Zarr image itself.

    Args:
        reading: the options of the images' reader, ``label`` among them.
        items: the images.
    """
    from cellseg.readers.ome_zarr import open_ome_zarr

    known = OmeZarrOptions.model_fields
    options = OmeZarrOptions(**{k: v for k, v in reading.model_dump().items() if k in known})

    def opened(item: Item) -> Found:
        path = item.frames[0].path
        assert path is not None  # these readers always tell
        samples = open_ome_zarr(path, options, True)
        return _fitting(item, [sample.labels for sample in samples])

    return [_kept(opened, item) for item in items]


def labels_of_samples(items: Sequence[Item]) -> list[Found]:
    """The labels that the reader found with the images."""
    return [_fitting(item, [sample.labels for sample in item.frames]) for item in items]


def refuse_none(images: Path, items: Sequence[Item], found: Sequence[Found]) -> None:
    """Raise a DataError where not a single image has usable labels."""
    problems = [one.problem for one in found if one.problem is not None]
    if len(problems) < len(items):
        return
    listed = "; ".join(str(problem).rstrip(".") for problem in problems[:_LISTED])
    if len(problems) > _LISTED:
        listed += f"; and {len(problems) - _LISTED} more"
    hints = [problem.hint for problem in problems if problem.hint]
    raise DataError(
        f"{images}: no image has usable labels: {listed}.",
        hint=hints[0]
        if hints
        else "Name them with --labels, such as the folder that cellseg predict wrote.",
    )


def _placed(images: Path, labels: Path) -> Path:
    """As it stands, or else inside the images' folder."""
    if is_remote(labels):
        return labels
    inside = (images if images.is_dir() else images.parent) / labels.expanduser()
    return inside if inside.exists() and not labels.expanduser().exists() else labels.expanduser()


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _named(
    item: Item, found: Mapping[str, LabelImage], where: Path, problems: Mapping[str, str]
) -> Found:
    """What the folder of labels has for an image: one file, or one with all frames of a movie."""
    numbered = [f"{item.name}#{number}" for number in range(len(item.frames))]
    own = [frame.name for frame in item.frames]
    for names in (numbered, own) if len(item.frames) > 1 else ([item.name], own, numbered):
        if all(name in found for name in names):
            return _fitting(item, [found[name].labels for name in names])
    why = next((problems[name] for name in (item.name, *own, *numbered) if name in problems), None)
    return Found(problem=DataError(why or f"{item.name}: has no label image in {where}."))


def _kept(open: Callable[[Item], Found], item: Item) -> Found:
    try:
        return open(item)
    except DataError as problem:
        return Found(problem=problem)


def _fitting(item: Item, labels: Sequence[LazyArray | None]) -> Found:
    """The labels, if there is an image of integers of the right shape for each frame."""
    shape = item.plan.shape
    if len(labels) != len(item.frames):
        text = f"has labels of {len(labels)} frame(s), but {len(item.frames)} frame(s)"
        return Found(problem=DataError(f"{item.name}: {text}."))
    fitting: list[LazyArray] = []
    for one in labels:
        problem = None
        if one is None:
            problem = "has no labels"
        elif tuple(one.shape) != shape:
            problem = f"the labels are {tuple(one.shape)}, the image is {shape} (z, y, x)"
        elif one.dtype.kind not in "ui":
            problem = f"the labels are {one.dtype}, not integers"
        if problem is not None or one is None:
            return Found(problem=DataError(f"{item.name}: {problem}."))
        fitting.append(one)
    return Found(tuple(fitting))
