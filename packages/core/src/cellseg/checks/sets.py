"""The rules for the set as a whole: duplicates, mixed polarity, channels, sizes against tiles."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from cellseg.checks.findings import FileVerdict, Finding, listed
from cellseg.checks.limits import Limits
from cellseg.checks.movies import about_movies
from cellseg.checks.samples import Examined


def compared(examined: Sequence[Examined]) -> list[FileVerdict]:
    """The verdicts, with what comes out when each file is compared with the others."""
    by_pixels: dict[str, list[int]] = defaultdict(list)
    by_labels: dict[str, list[int]] = defaultdict(list)
    for i, one in enumerate(examined):
        if one.image is not None and not all(c.constant for c in one.image.channels):
            by_pixels[one.image.fingerprint].append(i)
        if one.labels is not None and len(one.labels.ids):
            by_labels[one.labels.fingerprint].append(i)
    verdicts = [one.verdict for one in examined]
    for same in by_pixels.values():
        for i in same[1:]:
            verdicts[i] = verdicts[i].adding(_duplicate(examined, same, i))
    for same in by_labels.values():
        first = examined[same[0]]
        for i in same[1:]:
            other = examined[i]
            if first.sample.tracks is not None and first.sample.tracks is other.sample.tracks:
                continue  # cells that stay where they are
            if first.image and other.image and first.image.fingerprint != other.image.fingerprint:
                verdicts[i] = verdicts[i].adding(
                    Finding(
                        "labels-repeated",
                        "warning",
                        f"The labels are those of {first.verdict.name}, but the image is not.",
                        "Check that each image has its own labels.",
                    )
                )
    return verdicts


def _duplicate(examined: Sequence[Examined], same: Sequence[int], i: int) -> Finding:
    one = examined[i]
    others = [examined[j] for j in same if j != i]
    across = [
        other for other in others if len({other.verdict.split, one.verdict.split} - {""}) == 2
    ]
    differ = any(
        other.labels and one.labels and other.labels.fingerprint != one.labels.fingerprint
        for other in others
    )
    labelled = ", labelled in another way" if differ else ""
    if across:
        twin = across[0].verdict
        seen = "training" if "train" in (twin.split, one.verdict.split) else "validation"
        return Finding(
            "duplicate-across-splits",
            "error",
            f"The same image as {twin.name} ({twin.split}){labelled}: the scores would be of an "
            f"image seen in {seen}.",
            "Remove one of the two.",
        )
    return Finding(
        "duplicate",
        "warning",
        f"The same image as {examined[same[0]].verdict.name}{labelled}.",
        "Remove one of the two: other splits would put them on both sides.",
    )


def about_the_set(examined: Sequence[Examined], limits: Limits) -> Iterator[Finding]:
    """What is wrong with the set rather than with a file."""
    labelled = [one for one in examined if one.labels is not None]
    if labelled and not any(len(one.labels.ids) for one in labelled if one.labels):
        yield Finding(
            "no-objects",
            "error",
            "There is not one labelled object in all the images.",
            "Check that the labels are the right files.",
        )
    yield from about_movies(examined)
    yield from _channels(examined)
    yield from _classes(examined)
    yield from _dimensions(examined)
    yield from _polarity(examined)
    yield from _halo(examined, limits)


def _channels(examined: Sequence[Examined]) -> Iterator[Finding]:
    counts = Counter(one.sample.image.shape[0] for one in examined)
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        odd = [one.verdict.name for one in examined if one.sample.image.shape[0] != usual]
        yield Finding(
            "channels-differ",
            "error",
            f"Most images have {usual} channels, but not {listed(odd)}.",
            "Pick the same ones from each with --channels, such as --channels 0.",
        )
        return
    names = Counter(one.sample.channels for one in examined if one.sample.channels)
    if len(names) > 1:
        usual_names = names.most_common(1)[0][0]
        odd = [one.verdict.name for one in examined if one.sample.channels not in ((), usual_names)]
        yield Finding(
            "channels-differ",
            "error",
            f"Most images have the channels {listed(usual_names)}, but not {listed(odd)}.",
            "Pick them by name: --channels " + ",".join(usual_names),
        )


def _classes(examined: Sequence[Examined]) -> Iterator[Finding]:
    tables = Counter(one.sample.classes for one in examined if one.labels is not None)
    if len(tables) > 1:
        usual = tables.most_common(1)[0][0]
        odd = [
            one.verdict.name
            for one in examined
            if one.labels is not None and one.sample.classes != usual
        ]
        told = f"the classes {listed(usual, 16)}" if usual else "no classes"
        yield Finding(
            "classes-differ",
            "error",
            f"Most images have {told}, but not {listed(odd)}.",
            "Name them alike: the reader collection brings the classes of several data sets into "
            "one table by name.",
        )


def _dimensions(examined: Sequence[Examined]) -> Iterator[Finding]:
    flat = [one.verdict.name for one in examined if one.sample.image.shape[1] == 1]
    deep = [one.verdict.name for one in examined if one.sample.image.shape[1] > 1]
    if flat and deep:
        yield Finding(
            "dimensions-differ",
            "warning",
            f"{len(flat)} images are flat ({listed(flat, 2)}), {len(deep)} are volumes "
            f"({listed(deep, 2)}).",
            "Train on one kind at a time; --axes states the axes if they were not understood.",
        )
    spacings = np.array([one.sample.spacing for one in examined]).reshape(-1, 3)
    # Where nothing is known it is 1: files without a voxel size must not look different.
    known = [i for i, spacing in enumerate(spacings) if (spacing != 1.0).any()]
    if len(known) > 1:
        usual = np.median(spacings[known], axis=0)
        ratio = spacings[known] / usual
        odd = [
            examined[i].verdict.name
            for i, row in zip(known, ratio, strict=True)
            if row.max() > 2 or row.min() < 0.5
        ]
        if odd:
            told = " x ".join(f"{value:g}" for value in usual)
            yield Finding(
                "spacing-differs",
                "warning",
                f"Most images have voxels of {told} µm (z y x), but not {listed(odd)}.",
                "Resample them to one voxel size, or train on one kind at a time.",
            )


def _polarity(examined: Sequence[Examined]) -> Iterator[Finding]:
    channels = min((one.sample.image.shape[0] for one in examined), default=0)
    for c in range(channels):
        looks: dict[str, list[str]] = {"bright": [], "dark": [], "unclear": []}
        for one in examined:
            if one.image is not None and one.labels is not None and len(one.labels.ids):
                looks[one.image.channels[c].polarity].append(one.verdict.name)
        if looks["bright"] and looks["dark"]:
            rare, usual = sorted(("bright", "dark"), key=lambda look: len(looks[look]))
            yield Finding(
                "polarity-mixed",
                "warning",
                f"In channel {c}, objects are {usual} against their surroundings in "
                f"{len(looks[usual])} images, but {rare} in {listed(looks[rare])}.",
                "Train on one kind at a time, or turn them alike with --polarity measure.",
            )


def _halo(examined: Sequence[Examined], limits: Limits) -> Iterator[Finding]:
    """Only images that take several tiles have tile borders."""
    extents = [
        one.labels.extents[:, 1:].max(axis=1)
        for one in examined
        if one.labels is not None
        and len(one.labels.ids)
        and max(one.sample.image.shape[2:]) > limits.tile_size
    ]
    lengths = np.concatenate(extents) if extents else np.zeros(0, np.int64)
    long = int(np.count_nonzero(lengths > limits.halo))
    if long:
        want = -(-int(np.percentile(lengths, 99)) // 16) * 16
        yield Finding(
            "larger-than-halo",
            "warning",
            f"{long} of {len(lengths)} objects are longer than the halo of a prediction tile "
            f"({limits.halo} pixels), up to {lengths.max()}.",
            f"Predict with --halo {want}, so that cells at tile borders are seen whole.",
        )
