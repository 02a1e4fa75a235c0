"""The numbers of images, which stay the same when a broken one among them is mended.

``images.json`` in the work directory lists the images in the order of their numbers, and what could
not be read. Images that can be read only later are numbered after all others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from cellseg.engine.items import Item
from cellseg.engine.state import WorkDir
from cellseg.errors import ConfigError, DataError
from cellseg.files import locked, write_atomic

_FILE = "images.json"


def numbered(work: WorkDir, items: Sequence[Item], unreadable: Mapping[str, str]) -> list[Item]:
    """Items with the numbers that they have had since the work began, in this order.

    Args:
        work: which has begun.
        items: what can be read now.
        unreadable: what cannot, and why, by the name or path of an image.

    Raises:
        ConfigError: these are not the images that the work began with.
        DataError: an image of these can be read no longer.
    """
    file = work.path / _FILE
    with locked(work.path / "images.lock", wait=True):
        known: dict[str, Any] = {"images": [], "unreadable": {}}
        if file.is_file():
            known = _known(file)
            _refuse_others(work, known, items, unreadable)
        shapes = dict(map(_entry, items))
        order = {name: shape for name, shape in known["images"]} | {
            name: shape for name, shape in shapes.items()
        }
        said = known["unreadable"] | dict(unreadable)
        found = {"images": list(order.items()), "unreadable": said}
        if found != known:
            write_atomic(file, json.dumps(found, indent=2) + "\n")
    by_name = {item.name: item for item in items}
    return [replace(by_name[name], index=index) for index, name in enumerate(order)]


def _known(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_bytes()))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file} cannot be read: {error}", hint="Start anew with --overwrite."
        ) from error


def _entry(item: Item) -> tuple[str, list[int]]:
    return item.name, [*item.plan.shape, len(item.frames)]


def _refuse_others(
    work: WorkDir, known: Mapping[str, Any], items: Sequence[Item], unreadable: Mapping[str, str]
) -> None:
    """Raise an error unless these are the known images, or were unreadable before."""
    shapes = dict(map(_entry, items))
    before = dict(known["images"])
    for name, shape in shapes.items():
        if name not in before and (not known["unreadable"] or work.summary() is not None):
            _refuse(work, f"without the image {name}")
        if before.get(name, shape) != shape:
            size = " x ".join(map(str, before[name][:3]))
            _refuse(work, f"with {before[name][3]} frame(s) of {size} in {name}")
    for name in before:
        if name in shapes:
            continue
        if not unreadable:
            _refuse(work, f"with the image {name}, which is not there")
        why = unreadable.get(name) or next(iter(unreadable.values()))
        raise DataError(
            f"{name}: could be read when this {work.what} began, and cannot be now: {why}",
            hint="Mend it and resume, or start anew with --overwrite.",
        )


def _refuse(work: WorkDir, how: str) -> NoReturn:
    raise ConfigError(
        f"{work.path.parent}: this {work.what} began {how}.",
        hint="Resume it with the images it began with, or start anew with --overwrite.",
    )
