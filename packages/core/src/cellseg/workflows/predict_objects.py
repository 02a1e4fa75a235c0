"""What the settings of ``cellseg predict`` say about objects: given, inverted, linked, left out."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from cellseg.bundle import Bundle
from cellseg.engine.items import Item
from cellseg.engine.linking import Linking
from cellseg.engine.refine import Refinement
from cellseg.errors import ConfigError
from cellseg.normalise import Normaliser
from cellseg.options import flag
from cellseg.prompting import Prompts, files_of, read_prompts
from cellseg.specs import PredictorSpec
from cellseg.workflows.models import PolaritySettings
from cellseg.workflows.predict_settings import PredictSettings

LINK_OVERLAP = 0.25
"""IoU from which objects of neighbouring planes are one, unless the user says otherwise."""


def refinement_of(
    settings: PredictSettings, predictor: PredictorSpec[Any], volumetric: bool
) -> Refinement:
    """What is done to the objects once they are found.

    Raises:
        ConfigError: planes are to be linked that are not segmented one by one, or it is said how
            though they are not linked.
    """
    if settings.link_slices and volumetric:
        raise ConfigError(
            f"--link-slices: the backend {predictor.name!r} segments volumes as a whole; there "
            "are no planes to link.",
            hint="Leave it out.",
        )
    wanted = predictor.link_slices if settings.link_slices is None else settings.link_slices
    linked = wanted and not volumetric
    for name in ("link_overlap", "link_gap"):
        if getattr(settings, name) is not None and not linked:
            raise ConfigError(
                f"{flag(name)} does nothing where planes are not linked.",
                hint="Leave it out." if volumetric else "Link them with --link-slices.",
            )
    overlap = LINK_OVERLAP if settings.link_overlap is None else settings.link_overlap
    return Refinement(
        link=Linking(overlap, settings.link_gap or 0) if linked else None,
        fill_holes=settings.fill_holes or 0,
        min_area=settings.min_area or 0,
        border_margin=settings.border_margin or 0,
        keep_largest=settings.keep_largest or 0,
    )


def refuse_unlinked(settings: PredictSettings, items: Sequence[Item]) -> None:
    """Raise a ConfigError where linking is asked for, but no image has several planes to link."""
    if any(item.depth > 1 for item in items):
        return
    volumes = any(item.plan.shape[0] > 1 for item in items)
    for name in ("link_slices", "link_overlap", "link_gap"):
        if getattr(settings, name) and volumes:
            raise ConfigError(
                f"{flag(name)} does nothing: --batch-z leaves a single plane of each volume.",
                hint="Leave it out, or segment neighbouring planes.",
            )
        if getattr(settings, name):
            raise ConfigError(
                f"{flag(name)} does nothing: none of the images has more than one plane.",
                hint="Leave it out; or, if a stack was read as a movie or as channels, say what "
                "its axes are, such as --axes ZYX.",
            )


def hole_notes(items: Sequence[Item], refinement: Refinement) -> list[str]:
    """What is said where holes of the size asked for do not fit into the halo of the tiles."""
    cut = [
        (item.name, height, width)
        for item in items
        for _, height, width in [item.plan.surely_whole]
        if refinement.fill_holes > height * width
    ]
    if not cut:
        return []
    name, height, width = cut[0]
    others = f" (and {len(cut) - 1} more image(s) likewise)" if len(cut) > 1 else ""
    return [
        f"{name}: holes of more than {height} x {width} pixels (y, x) stay: tiles see no more "
        f"beyond their borders. A larger --halo fills larger ones{others}."
    ]


def linking_notes(items: Sequence[Item], refinement: Refinement, volumetric: bool) -> list[str]:
    """What is said before planes are linked."""
    volumes = [item for item in items if item.depth > 1]
    how = refinement.link
    if how is None or volumetric or not volumes:
        return []
    gap = f", across up to {how.gap} plane(s) without it" if how.gap else ""
    return [
        f"{len(volumes)} volume(s) are segmented plane by plane: objects of neighbouring planes "
        f"that overlap by an IoU of {how.overlap:g} or more become one{gap}."
    ]


def normaliser_of(settings: PolaritySettings, bundle: Bundle | None) -> Normaliser:
    """How the images are normalised.

    Raises:
        ConfigError: a polarity is given, though the model knows its own.
    """
    if bundle is None:
        return Normaliser(inverted=(True,) if settings.polarity == "dark" else ())
    if settings.polarity is not None:
        raise ConfigError(
            f"--polarity: {settings.model} was trained with a polarity of its own, which is used.",
            hint="Leave it out; cellseg train --polarity sets it.",
        )
    return bundle.normaliser


def prompts_of(
    settings: PredictSettings,
    predictor: PredictorSpec[Any],
    items: Sequence[Item],
    unreadable: Collection[str] = (),
) -> tuple[Prompts | None, str | None]:
    """The objects that the user shows, and what tells one file of them from another.

    Those in images that cannot be read (``unreadable``) are no mistake.

    Raises:
        ConfigError: the backend takes no prompts.
        DataError: the file cannot be read, is not for these images, or shows places outside them.
    """
    if settings.prompts is None:
        return None, None
    if not predictor.prompts:
        raise ConfigError(
            f"--prompts: the backend {predictor.name!r} finds objects by itself and takes no "
            "prompts.",
            hint="Leave it out, or use a backend that takes prompts.",
        )
    movies = {item.name for item in items if item.movie and item.plan.shape[0] == 1}
    names = list(dict.fromkeys([*(item.name for item in items), *unreadable]))
    prompts = read_prompts(settings.prompts, names, movies)
    for item in items:
        frames = [frame.frame or 0 for frame in item.frames] if item.movie else None
        prompts.check(item.name, item.plan.shape, frames)
    return prompts, _digest(settings.prompts)


def _digest(path: Path) -> str:
    """Of a file, or of all files of prompts in a folder with their names."""
    digest = hashlib.sha256()
    for file in files_of(path):
        digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return f"sha256:{digest.hexdigest()}"
