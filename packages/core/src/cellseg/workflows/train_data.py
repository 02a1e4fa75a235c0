"""What a training learns from: labelled images in two splits, or examples in images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cellseg.data import ExampleImage, Sample
from cellseg.errors import ConfigError, DataError
from cellseg.examples import Examples, examples_of_labels
from cellseg.options import Options, flag
from cellseg.plugins import Plugins
from cellseg.readers import open_dataset, reader_for
from cellseg.specs import TrainerSpec
from cellseg.splits import Splits, make_splits, select, weighted
from cellseg.workflows.example_settings import UNSPLIT
from cellseg.workflows.examples import read_examples
from cellseg.workflows.train_settings import TrainSettings

_LABELS = ("labels", "label_kind", "label", "label_key", "class_key", "class_names")
"""Options of readers that do nothing where no labels are read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """The images, as they are read; nothing is normalised."""

    train: tuple[Sample, ...]
    """What is learned from; the images of the examples, where there are some."""
    val: tuple[Sample, ...]
    splits: Splits
    examples: tuple[ExampleImage, ...] = ()
    classes: tuple[str, ...] = ()
    """Of the examples."""
    digest: str = ""
    """What tells the examples from others; empty where there are none."""
    places: frozenset[tuple[str, int, int]] = frozenset()
    """Where the examples lie: in which image or movie, frame and plane."""
    notes: tuple[str, ...] = ()

    @property
    def labelled(self) -> tuple[Sample, ...]:
        """What is learned from, with labels; those of examples say nothing of other objects."""
        if not self.examples:
            return self.train
        from cellseg.example_masks import ShownLabels

        return tuple(
            replace(sample, labels=ShownLabels(image.examples, tuple(sample.image.shape[1:])))
            for sample, image in zip(self.train, self.examples, strict=True)
        )


def material_of(
    plugins: Plugins,
    spec: TrainerSpec[Any],
    data: Path,
    settings: TrainSettings,
    reader: str,
    options: Options,
    saved: Path | None = None,
) -> Material:
    """What a training learns from.

    Args:
        plugins: where to find the readers.
        spec: the trainer.
        data: where the images are.
        settings: core's options.
        reader: the name of the data's reader.
        options: of the reader.
        saved: the splits of a run that goes on.

    Raises:
        ConfigError: an option does nothing.
        DataError: images, labels or examples cannot be used.
    """
    given = options.model_dump(exclude_unset=True)
    if spec.examples:
        found = _examples(plugins, data, settings, reader, given)
        images = tuple(image.sample for image in found.images)
        _check_samples(images)
        return Material(
            train=images,
            val=(),
            splits=Splits(train=tuple(image.name for image in images)),
            examples=found.images,
            classes=found.classes,
            digest=found.digest,
            places=found.places,
            notes=(*found.notes, _summary(found)),
        )
    train_set, val_set, splits = _split(plugins, data, settings, reader, given, saved)
    _check_samples([*train_set, *val_set])
    return Material(train=tuple(train_set), val=tuple(val_set), splits=splits)


def with_epochs(spec: TrainerSpec[Any], settings: TrainSettings, options: Options) -> TrainSettings:
    """The settings with as many epochs as the trainer's own options ask for, if they do.

    Raises:
        ConfigError: ``--epochs`` asks for another number.
    """
    wanted = None if spec.epochs is None else spec.epochs(options)
    if wanted is None or wanted == settings.epochs:
        return settings
    if "epochs" in settings.model_fields_set:
        own = [name for name in type(options).model_fields if name.endswith("_epochs")]
        asking = [flag(name) for name in own if name in options.model_fields_set]
        raise ConfigError(
            f"--epochs {settings.epochs} contradicts {' and '.join(asking) or 'other options'},"
            f" with which there are {wanted}.",
            hint="Leave --epochs out.",
        )
    return settings.model_copy(update={"epochs": wanted})


def refuse_idle(spec: TrainerSpec[Any], settings: TrainSettings, reading: Options) -> None:
    """Refuse options that do nothing with a trainer.

    Args:
        spec: the trainer.
        settings: core's options, as they were given.
        reading: those of the reader.

    Raises:
        ConfigError: examples are given to a trainer that takes none, splits or epochs to one that
            learns from examples, or labels beside examples.
    """
    if not spec.examples:
        if settings.examples is not None:
            raise ConfigError(
                f"--examples: the backend {spec.name!r} learns from labelled images.",
                hint="Leave it out, or use a backend that learns from examples.",
            )
        return
    for name in UNSPLIT:
        if name in settings.model_fields_set:
            raise ConfigError(
                f"{flag(name)} does nothing with {spec.name}: it learns from all examples, in one "
                "go.",
                hint="Leave it out.",
            )
    known = type(reading).model_fields
    for name in known if settings.examples is not None else ():
        if name in _LABELS and getattr(reading, name) != known[name].default:
            raise ConfigError(
                f"{flag(name)} does nothing: --examples says what the objects are.",
                hint="Leave one of them out.",
            )


def _examples(
    plugins: Plugins, data: Path, settings: TrainSettings, reader: str, given: dict[str, Any]
) -> Examples:
    if settings.examples is None:
        try:
            samples = weighted(open_dataset(plugins, data, reader, given, labelled=True))
        except DataError as error:
            hint = "Without labels, show some objects: --examples FILE."
            hint = "\n".join(one for one in (error.hint, hint) if one)
            raise DataError(str(error), hint=hint) from error
        _check_samples(samples)
        return examples_of_labels(samples)
    samples = list(open_dataset(plugins, data, reader, given, labelled=False))
    axes = given.get("axes")
    return read_examples(
        plugins,
        settings.examples,
        samples,
        tags=settings.tag,
        negative_tags=settings.negative_tag,
        axes=None if axes is None else str(axes),
    )


def _summary(found: Examples) -> str:
    every = [one for image in found.images for one in image.examples]
    count = {
        name: sum(one.kind == kind for one in every)
        for kind, name in enumerate(found.classes[1:], 1)
    }
    positive = sum(one.positive for one in every)
    named = f" ({', '.join(f'{name}: {number}' for name, number in count.items())})"
    negative = f", {len(every) - positive} to leave alone" if positive < len(every) else ""
    return (
        f"{positive} example(s){named if count else ''}{negative} in {len(found.images)} image(s)."
    )


def _split(
    plugins: Plugins,
    data: Path,
    settings: TrainSettings,
    reader: str,
    given: dict[str, Any],
    saved: Path | None,
) -> tuple[list[Sample], list[Sample], Splits]:
    """The training and validation samples, and the splits that say so.

    Training images of weight 0 are in the splits, but not among the samples. One reader, with one
    set of options, reads them all.
    """
    samples = open_dataset(plugins, data, reader, given, labelled=True)
    if settings.val is not None:
        other = reader_for(plugins, settings.val, settings.reader).name
        if other != reader:
            raise ConfigError(
                f"--val {settings.val}: is read as {other}, but {data} as {reader}.",
                hint="Give both in one format; or choose how to read them: --reader.",
            )
        val = list(open_dataset(plugins, settings.val, settings.reader, given, labelled=True))
        _refuse_shared(samples, val, settings.val)
        names = Splits(train=tuple(s.name for s in samples), val=tuple(s.name for s in val))
        return weighted(samples), val, names
    if saved is not None:
        splits = Splits.load(saved)
    else:
        splits = make_splits(samples, settings, settings.seed)
    train_set, val_set = select(samples, splits)
    return weighted(train_set), val_set, splits


def _refuse_shared(train_set: Any, val_set: list[Sample], val: Path) -> None:
    ours, theirs = (
        {s.path.resolve() for s in side if s.path is not None} for side in (train_set, val_set)
    )
    shared = ours & theirs
    if shared:
        raise DataError(
            f"--val {val}: {min(str(path) for path in shared)} is also a training image.",
            hint="Validation images must not be trained on; leave --val out to split by itself.",
        )


def _check_samples(samples: Sequence[Sample]) -> None:
    """All images of one training have the same channels and classes."""
    first = samples[0]
    for sample in samples:
        if sample.image.shape[0] != first.image.shape[0]:
            raise DataError(
                f"{sample.name} has {sample.image.shape[0]} channels, but {first.name} has "
                f"{first.image.shape[0]}.",
                hint="Pick the same ones from each with --channels, such as --channels 0.",
            )
        if first.channels and sample.channels and sample.channels != first.channels:
            raise DataError(
                f"{sample.name} has the channels {', '.join(sample.channels)}, but {first.name} "
                f"has {', '.join(first.channels)}.",
                hint="Pick them by name: --channels " + ",".join(first.channels),
            )
        if sample.classes != first.classes:
            raise DataError(
                f"{sample.name} has {_table(sample.classes)}, but {first.name} has "
                f"{_table(first.classes)}.",
                hint="One training takes one table of classes: the reader collection brings those "
                "of several data sets into one, by name.",
            )


def _table(classes: tuple[str, ...]) -> str:
    return f"the classes {', '.join(classes)}" if classes else "no classes"
