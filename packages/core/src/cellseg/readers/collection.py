"""Several data sets as one: their classes under common names, each with a weight.

The YAML file looks like this; all keys of a data set but ``path`` may be left out:

    datasets:
      - path: cremi           # relative to this file
        name: cremi           # else the name of the folder or file
        reader: cremi         # else the one that recognises the path
        weight: 2             # else 1; not for one that only validates
        split: train          # all of it trains; or val; else as the data set says
        class_name: neuron    # only for labels without classes; else cell
        options: {}           # of the reader
    classes: [background, neuron, cleft]    # else in the order in which they appear
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cellseg.classes import MOST_CLASSES
from cellseg.data import Dataset, Sample
from cellseg.errors import ConfigError, DataError, UnreadableImagesError
from cellseg.locations import is_remote, location
from cellseg.options import read_config, refuse_unknown
from cellseg.plugins import Plugins
from cellseg.readers import AUTO, open_dataset
from cellseg.readers.composed import ClassLabels, Layer, Recoded
from cellseg.readers.options import ReaderOptions
from cellseg.readers.problems import Problems
from cellseg.readers.recognise import COLLECTION, is_collection

_BACKGROUND = "background"
_PLAIN = "cell"
"""The class of labels that have none."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One data set of a collection."""

    path: Path
    name: str
    reader: str = AUTO
    weight: float = 1.0
    split: str | None = None
    class_name: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)


def open_collection(path: Path, options: ReaderOptions, labelled: bool) -> list[Sample]:
    """The samples of all data sets, in their order, named ``DATASET/SAMPLE``.

    Each data set shares its weight among its samples, those that only validate left out.

    Args:
        path: a YAML file, a folder with a ``datasets.yaml``, or a folder of data sets.
        options: ``channels`` and ``axes`` hold for the data sets that do not state their own.
        labelled: look for labels.

    Raises:
        ConfigError: the YAML file is not as described above, or a data set's options are wrong.
        DataError: a data set cannot be read.
    """
    entries, classes = _read(path)
    plugins = Plugins()
    common = {k: v for k, v in options.model_dump().items() if v is not None}
    opened: list[tuple[Entry, Dataset]] = []
    problems = Problems()
    for entry in entries:
        given = {**common, **entry.options}
        samples: Dataset = ()
        try:
            samples = open_dataset(plugins, entry.path, entry.reader, given, labelled)
        except UnreadableImagesError as error:
            problems.add(_of_entry(error, entry), entry.name)
            samples = error.samples
        except DataError as error:
            problems.add(
                DataError(f"data set {entry.name!r}: {error}", hint=error.hint), entry.name
            )
            continue
        except ConfigError as error:
            raise ConfigError(f"data set {entry.name!r}: {error}", hint=error.hint) from error
        _refuse_ignored(entry, samples)
        opened.append((entry, samples))
    placed = [_placed(entry, sample) for entry, samples in opened for sample in samples]
    problems.refuse(placed)
    if not labelled:
        return placed
    table = _classes(path, opened, classes)
    made: list[Sample] = []
    for entry, samples in opened:
        training = [sample for sample in samples if _split(entry, sample) != "val"]
        total = sum(sample.weight for sample in training or samples)
        for sample in samples:
            split = _split(entry, sample)
            weight = entry.weight * sample.weight / total if total else 0.0
            coded = _coded(entry, sample, table)
            made.append(replace(_placed(entry, coded), split=split, weight=weight, classes=table))
    return made


def _of_entry(error: UnreadableImagesError, entry: Entry) -> UnreadableImagesError:
    """The same with the name of the data set."""
    named = {f"{entry.name}/{name}": problem for name, problem in error.problems.items()}
    message = f"data set {entry.name!r}: {error}"
    return UnreadableImagesError(message, error.samples, named, hint=error.hint)


def _refuse_ignored(entry: Entry, samples: Sequence[Sample]) -> None:
    if entry.class_name is not None and all(sample.classes for sample in samples):
        raise ConfigError(
            f"data set {entry.name!r}: class_name does nothing: it has the classes "
            f"{', '.join(samples[0].classes[1:])}.",
            hint="Leave class_name out.",
        )


def _split(entry: Entry, sample: Sample) -> str | None:
    return entry.split or sample.split


def _placed(entry: Entry, sample: Sample) -> Sample:
    return replace(
        sample, name=f"{entry.name}/{sample.name}", source=f"{entry.name}/{sample.group}"
    )


def _own_classes(entry: Entry, sample: Sample) -> tuple[str, ...]:
    return sample.classes or (_BACKGROUND, entry.class_name or _PLAIN)


def _classes(
    path: Path, opened: Sequence[tuple[Entry, Sequence[Sample]]], given: tuple[str, ...]
) -> tuple[str, ...]:
    """The common table: that of the file, or all names in order of appearance."""
    found = dict.fromkeys([_BACKGROUND])
    for entry, samples in opened:
        for sample in samples:
            found |= dict.fromkeys(_own_classes(entry, sample)[1:])
    table = given or tuple(found)
    missing = [name for name in found if name not in table]
    if missing:
        raise ConfigError(
            f"{path}: classes lacks {', '.join(missing)}, which the data sets have.",
            hint=f"They have: {', '.join(found)}.",
        )
    if len(table) - 1 > MOST_CLASSES:
        raise ConfigError(f"{path}: has {len(table) - 1} classes in all; {MOST_CLASSES} fit.")
    return table


def _coded(entry: Entry, sample: Sample, table: tuple[str, ...]) -> Sample:
    """The sample with ids in the classes of ``table``."""
    assert sample.labels is not None
    if sample.classes:
        kinds = (0, *(table.index(name) for name in sample.classes[1:]))
        if kinds == tuple(range(len(kinds))):
            return sample
        return replace(sample, labels=Recoded(sample.labels, kinds))
    near = sample.path is not None and not is_remote(sample.path)
    modified = sample.path.stat().st_mtime_ns if near and sample.path is not None else 0
    layer = Layer(sample.labels, table.index(_own_classes(entry, sample)[1]), modified=modified)
    return replace(sample, labels=ClassLabels((layer,)))


def _read(path: Path) -> tuple[list[Entry], tuple[str, ...]]:
    file = path / COLLECTION if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not folders:
            raise DataError(
                f"{path}: holds no data sets.", hint=f"Expected folders, or a {COLLECTION}."
            )
        return [Entry(folder, folder.name) for folder in folders], ()
    values = read_config(file)
    refuse_unknown(values, ("datasets", "classes"), str(file))
    listed = values.get("datasets")
    if not isinstance(listed, list) or not listed:
        raise ConfigError(f"{file}: expected a list of data sets under 'datasets'.")
    entries = [_entry(file, number, one) for number, one in enumerate(listed, 1)]
    names = [entry.name for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"{file}: several data sets are called {', '.join(twice)}.",
            hint="Give each a name of its own: name: NAME",
        )
    return entries, _table(file, values.get("classes"))


def _table(file: Path, given: object) -> tuple[str, ...]:
    if given is None:
        return ()
    names = tuple(given) if isinstance(given, list) else ()
    if (
        len(names) < 2
        or not all(isinstance(name, str) for name in names)
        or (names[0] != _BACKGROUND or len(set(names)) < len(names))
    ):
        raise ConfigError(f"{file}: classes: expected different names, {_BACKGROUND!r} first.")
    return names


def _entry(file: Path, number: int, values: Any) -> Entry:
    where = f"{file}: data set {number}"
    if not isinstance(values, dict) or not isinstance(values.get("path"), str):
        raise ConfigError(f"{where}: expected 'path: FOLDER' and what else there is to say.")
    refuse_unknown(map(str, values), Entry.__dataclass_fields__, where)
    path = location(values["path"]).expanduser()
    path = path if is_remote(path) else file.parent / path
    if path.resolve() in (file.resolve(), file.parent.resolve()) and is_collection(path):
        raise ConfigError(f"{where}: path: {values['path']} is this collection itself.")
    weight = values.get("weight", 1.0)
    if (
        isinstance(weight, bool)
        or not isinstance(weight, int | float)
        or not (0 < weight < math.inf)
    ):
        raise ConfigError(f"{where}: weight: expected a number above 0, not {weight!r}.")
    split = values.get("split")
    if split not in (None, "train", "val"):
        raise ConfigError(f"{where}: split: expected train or val, not {split!r}.")
    if split == "val" and "weight" in values:
        raise ConfigError(
            f"{where}: weight does nothing with split: val.",
            hint="Weights are how often something is trained on: leave one of the two out.",
        )
    options = values.get("options", {})
    if not isinstance(options, dict):
        raise ConfigError(f"{where}: options: expected 'option: value' lines.")
    texts = {key: values[key] for key in ("name", "reader", "class_name") if key in values}
    for key, text in texts.items():
        if not isinstance(text, str) or not text or text == _BACKGROUND:
            raise ConfigError(f"{where}: {key}: expected a name, not {text!r}.")
    name = texts.pop("name", path.name)
    return Entry(path, name, weight=float(weight), split=split, options=options, **texts)
