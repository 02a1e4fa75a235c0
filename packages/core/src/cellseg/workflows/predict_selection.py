"""Which images, planes and frames ``cellseg predict`` segments."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from cellseg.engine.items import Item
from cellseg.errors import ConfigError
from cellseg.options import flag
from cellseg.prompting import Prompts
from cellseg.ranges import Ranges, is_current, read_ranges
from cellseg.specs import PredictorSpec
from cellseg.texts import counted
from cellseg.workflows.predict_settings import PredictSettings

Place: TypeAlias = tuple[str, int, int]
"""The name of an image or a movie, the index of a frame (``Sample.frame``; 0 for a still image),
and a plane, counted from 0."""
_SHOWN = 3
"""Notes about kinds of images."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is segmented of all images; None is all of them."""

    images: Ranges | None
    planes: Ranges | None
    frames: Ranges | None

    @property
    def identity(self) -> dict[str, object]:
        """What must be the same when a prediction is resumed: ``current`` as the numbers meant."""
        values = {"batch_xy": self.images, "batch_z": self.planes, "batch_time": self.frames}
        return {name: value and str(value) for name, value in values.items()}

    def of(self, items: Sequence[Item]) -> list[Item]:
        """The images that are segmented, each knowing which of its planes and frames are.

        Raises:
            ConfigError: there are fewer images, or one of them has fewer planes or frames.
        """
        kept: Sequence[int] = range(len(items))
        if self.images is not None:
            kept = self.images.among(len(items), f"the input has {counted(len(items), 'image')}")
        return [self._within(items[place], index) for index, place in enumerate(kept)]

    def notes(self, items: Sequence[Item], found: int) -> list[str]:
        """What is said of images, planes and frames that are left out.

        Args:
            items: the images that are segmented.
            found: how many images there are.
        """
        notes = []
        if self.images is not None and len(items) < found:
            what = _numbered("image", self.images, found)
            notes.append(f"{what} {_verb(what)} segmented.".capitalize())
        groups: dict[str, list[str]] = {}
        for item in items:
            groups.setdefault(part_of(item), []).append(item.name)
        groups.pop("", None)
        for what, names in list(groups.items())[:_SHOWN]:
            more = f" and {len(names) - 1} more image(s)" if len(names) > 1 else ""
            notes.append(f"{names[0]}{more}: {what} {_verb(what)} segmented, the rest stays 0.")
        if len(groups) > _SHOWN:
            left = sum(map(len, list(groups.values())[_SHOWN:]))
            notes.append(f"... and likewise of {left} more image(s).")
        return notes

    def _within(self, item: Item, index: int) -> Item:
        depth, length = item.plan.shape[0], len(item.frames)
        planes = times = None
        if self.planes is not None:
            planes = self.planes.among(depth, f"{item.name} has {counted(depth, 'plane')}")
        if self.frames is not None:
            times = self.frames.among(length, f"{item.name} has {counted(length, 'frame')}")
        return replace(
            item,
            index=index,
            planes=planes if planes is not None and len(planes) < depth else None,
            times=times if times is not None and len(times) < length else None,
        )


def selection_of(
    settings: PredictSettings,
    items: Sequence[Item],
    predictor: PredictorSpec[Any],
    volumetric: bool,
    current: Collection[Place] | None,
) -> Selection:
    """Which images, planes and frames the settings ask for.

    Args:
        settings: of the prediction.
        items: all images, in the order in which they are listed.
        predictor: the backend's.
        volumetric: whether it sees volumes, and not planes one by one.
        current: where examples or prompts lie; None where there are neither. Images, planes and
            frames count each by themselves: a plane with an example in one image is ``current`` in
            all of them.

    Raises:
        ConfigError: a range is unreadable; it says ``current``, and nothing shows where that is;
            or planes are chosen for a model that sees volumes as a whole.
    """
    places = {item.name: number for number, item in enumerate(items)}

    def read(name: str, place: Callable[[Place], int | None]) -> Ranges | None:
        text = getattr(settings, name)
        if text is None or not is_current(text):
            return None if text is None else read_ranges(text, flag(name))
        if not current:
            raise ConfigError(
                f"{flag(name)} {text}: there are no examples or prompts that show where that is.",
                hint="Give --examples or --prompts, or numbers, as in 1-3.",
            )
        found = {number for one in current if (number := place(one)) is not None}
        if not found:
            raise ConfigError(
                f"{flag(name)} {text}: none of the images holds an example or a prompt.",
                hint="Give numbers, as in 1-3.",
            )
        return Ranges.of(flag(name), found)

    def frame(place: Place) -> int | None:
        name, number, _ = place
        if name not in places:
            return number
        known = [sample.frame or 0 for sample in items[places[name]].frames]
        return known.index(number) if number in known else None

    images = read("batch_xy", lambda place: places.get(place[0]))
    planes = read("batch_z", lambda place: place[2])
    if planes is not None and volumetric:
        raise ConfigError(
            f"--batch-z: the backend {predictor.name!r} segments a volume as a whole, not plane by "
            "plane.",
            hint="Leave it out, or cut the planes out of the images before.",
        )
    return Selection(images, planes, read("batch_time", frame))


def places_of(prompts: Prompts) -> set[Place]:
    """Where prompts lie: where their first positive points do, or the centres of their boxes."""
    return {
        (name, frame, int(one.anchor[0]))
        for (name, frame), placed in prompts.placed.items()
        for one in placed
    }


def prompt_notes(prompts: Prompts | None, items: Sequence[Item]) -> list[str]:
    """What is said of prompts that lie in what is not segmented.

    Raises:
        ConfigError: all of them do.
    """
    if prompts is None or not prompts.count:
        return []
    by_name = {item.name: item for item in items}
    outside = [
        one
        for (name, frame), placed in prompts.placed.items()
        for one in placed
        if not _segmented(by_name.get(name), frame, int(one.anchor[0]))
    ]
    if not outside:
        return []
    first = min(outside, key=lambda one: one.number)
    if len(outside) == prompts.count:
        raise ConfigError(
            "--prompts: all of them lie in images, planes or frames that --batch-xy, --batch-z and "
            f"--batch-time leave out, such as {first.where}.",
            hint="Give other ranges, or current, which is where the prompts are.",
        )
    return [
        f"{len(outside)} of {prompts.count} prompts do nothing, as they lie in what is not "
        f"segmented; {first.where} is the first."
    ]


def part_of(item: Item) -> str:
    """Which planes and frames of an image are segmented, such as "planes 2-4 of 10"; empty for all
    of them."""
    parts = (
        ("plane", item.planes, item.plan.shape[0]),
        ("frame", item.times, len(item.frames)),
    )
    said = [
        _numbered(name, Ranges.of("", chosen), count)
        for name, chosen, count in parts
        if chosen is not None
    ]
    return " and ".join(said)


def _segmented(item: Item | None, frame: int, plane: int) -> bool:
    if item is None:
        return False
    if item.planes is not None and plane not in item.planes:
        return False
    chosen = range(len(item.frames)) if item.times is None else item.times
    return any((item.frames[place].frame or 0) == frame for place in chosen)


def _numbered(what: str, ranges: Ranges, count: int) -> str:
    (first, last), *others = ranges.spans
    return f"{what}{'s' if others or first < last else ''} {ranges} of {count}"


def _verb(what: str) -> str:
    return (
        "is" if what.startswith(("image ", "plane ", "frame ")) and " and " not in what else "are"
    )
