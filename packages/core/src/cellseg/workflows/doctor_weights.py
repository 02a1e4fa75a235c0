"""What ``cellseg doctor`` says of published models: which are here, and how others would come."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from cellseg.diagnosis import GIB, nearest_folder
from cellseg.download.environment import MIRROR, OFFLINE, environment
from cellseg.download.remote import shown
from cellseg.errors import CellsegError, ConfigError, WeightsError
from cellseg.plugins import Plugins
from cellseg.specs import Finding
from cellseg.workflows.stored_models import StoredModel, chosen_models, stored_models


def weights(plugins: Plugins, backend: str | None) -> Iterator[Finding]:
    """How models are downloaded, where they are kept, and which are here.

    Args:
        plugins: the installed plugins.
        backend: only the models of this one; all if None.
    """
    yield from _downloads()
    try:
        models = chosen_models(stored_models(plugins), backend=backend)
    except CellsegError as error:
        yield Finding("problem", "models", str(error), error.hint or "")
        return
    if not models:
        yield Finding("ok", "models", "no backend starts from published ones")
    folders: dict[Path, list[StoredModel]] = {}
    for model in models:
        folders.setdefault(model.model.folder(), []).append(model)
    for folder, kept in folders.items():
        yield from _folder(folder, kept)
    for name in sorted({model.model.token for model in models} - {""}):
        there = "set" if os.environ.get(name) else "not set; some publishers ask for this token"
        yield Finding("ok", name, there)  # never its value


def _downloads() -> Iterator[Finding]:
    try:
        settings = environment(error=WeightsError)
    except ConfigError as error:
        yield Finding("problem", OFFLINE, str(error), error.hint or "")
        return
    if settings.offline:
        yield Finding("ok", OFFLINE, "set: nothing is downloaded")
    if not settings.mirror:
        return
    folder = settings.mirror_folder
    if folder is not None and not folder.is_dir():
        advice = f"Make it with cellseg models export-cache, or: unset {MIRROR}"
        yield Finding("problem", MIRROR, f"{folder}: there is no such folder", advice)
    elif folder is None and not settings.mirror.startswith(("http://", "https://")):
        value = f"{shown(settings.mirror)}: is no http or https address"
        yield Finding("problem", MIRROR, value, f"Set it to a folder or an address: {MIRROR}=…")
    else:
        value = str(folder) if folder is not None else shown(settings.mirror)
        yield Finding("ok", MIRROR, f"{value} instead of the publishers")


def _folder(folder: Path, models: Sequence[StoredModel]) -> Iterator[Finding]:
    """A folder that models are kept in, and those of them that are here."""
    what = f"models in {folder.parent.name}"
    place = nearest_folder(folder)
    free = shutil.disk_usage(place).free
    here = [model for model in models if model.state == "here"]
    value = f"{folder}: {len(here)} of {len(models)} here"
    if here:
        size = sum(model.size or 0 for model in here)
        value += f", {size / GIB:.1f} GiB ({', '.join(model.name for model in here)})"
    value += f"; {free / GIB:.1f} GiB free"
    if os.access(place, os.W_OK | os.X_OK):
        yield Finding("ok", what, value)
    else:
        advice = "Use another folder (docs/models.md), or have the models put there by who may."
        yield Finding("warning", what, f"{value}; no permission to write", advice)
    partly = [model.name for model in models if model.state == "partial"]
    if partly:
        value = f"not all of {', '.join(partly)} is here: a download was stopped, or still runs"
        yield Finding("warning", what, value, f"Finish it: cellseg models pull {' '.join(partly)}")
