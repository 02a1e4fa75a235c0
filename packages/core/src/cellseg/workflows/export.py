"""Turn a trained model into another format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cellseg.bundle import Bundle
from cellseg.errors import DataError
from cellseg.events import Emit, Note
from cellseg.files import remove_leftovers, replacing
from cellseg.locks import beside, sole
from cellseg.options import parse, unaliased
from cellseg.plugins import Plugins
from cellseg.specs import ExportJob


def export(
    plugins: Plugins,
    model: Path,
    name: str,
    target: Path,
    *,
    overwrite: bool = False,
    options: Mapping[str, object] | None = None,
    emit: Emit = lambda event: None,
) -> Path:
    """Write the trained ``model`` (a run or a bundle) to ``target`` as the format ``name``.

    The exporter writes beside the target; only what it finished, and checked, gets its name.

    Args:
        plugins: where to find the exporter.
        model: a run directory or a bundle.
        name: of the format; ``cellseg backends info`` lists those of a backend.
        target: file or directory to make.
        overwrite: replace the target if it exists.
        options: options of the exporter, by name.
        emit: gets each event.

    Raises:
        DataError: there is no model, or the target exists.
        StorageError: the target cannot be written, or another process writes it.
        UnknownPluginError: no such format for this backend.
    """
    directory, bundle = Bundle.find(model)
    spec = plugins.exporter(bundle.backend, name)
    chosen = parse(spec.options, unaliased(options or {}, spec.aliases))
    with sole(target, beside(target), emit=emit):
        remove_leftovers(target.parent, {target.name})
        if target.exists() and not overwrite:
            hint = "Add --overwrite, or choose another --output."
            raise DataError(f"{target} exists.", hint=hint)
        with replacing(target) as temporary:
            job: ExportJob[Any] = ExportJob(options=chosen, model=directory, target=temporary)
            spec.export(job, emit)
    steps = bundle.normaliser.special
    if steps and spec.backend is not None:
        emit(
            Note(
                f"The model was trained with {', '.join(steps)}, which what was written does not "
                "do: give it images that went through this. `normaliser` in bundle.json has all "
                "numbers."
            )
        )
    return target
