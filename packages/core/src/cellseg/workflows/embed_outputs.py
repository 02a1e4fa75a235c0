"""The files that ``cellseg embed`` leaves: tables, what they hold, and what they do not."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from cellseg.embeddings.parts import Parts
from cellseg.embeddings.run import Failure
from cellseg.embeddings.tables import (
    FILES,
    MANIFEST,
    SCHEMA,
    SKIPPED,
    SUMMARY,
    Layout,
    Place,
    Skipped,
    Tables,
    write_skipped,
)
from cellseg.embeddings.units import Unit
from cellseg.errors import UsageError
from cellseg.files import write_atomic
from cellseg.workflows.embed_request import Request
from cellseg.workflows.embed_summary import EmbedSummary

FORMAT = 1
_EVERY = (MANIFEST, *FILES.values(), SCHEMA, SKIPPED, SUMMARY)
_NUMBERS = {
    "emb_m": "mean over the voxels of the object",
    "emb_s": "population standard deviation over the voxels of the object",
    "emb_x": "maximum over the cells that the object touches",
}


@dataclass(frozen=True, slots=True)
class Result:
    """What came out of an embedding."""

    done: Sequence[Unit]
    parts: Parts
    failures: Sequence[Failure]
    dimension: int
    began: float
    """Of ``time.monotonic``."""


def refuse_to_overwrite(folder: Path) -> None:
    """Raise a UsageError where one of the outputs is there already."""
    for name in _EVERY:
        if (folder / name).exists():
            raise UsageError(
                f"{folder / name} exists already.",
                hint="Replace it with --overwrite, or write elsewhere with --output.",
            )


def all_there(summary: EmbedSummary, folder: Path) -> EmbedSummary:
    """The summary with the outputs where they are now, as the folder may have been moved.

    Raises:
        UsageError: an output has gone since it was written.
    """
    outputs = tuple(folder / path.name for path in summary.outputs)
    for path in outputs:
        if not path.exists():
            raise UsageError(f"{path} was written, but is gone.", hint="Start anew: --overwrite.")
    return replace(summary, outputs=outputs)


def write_outputs(request: Request, result: Result) -> EmbedSummary:
    """Write all files; those of an earlier embedding that are not replaced are removed.

    Raises:
        StorageError: the disk is full, or permission is missing.
    """
    folder = request.output
    layout, container = _layout(request, result), _container(request.images)
    names = (MANIFEST, *(FILES[pooling] for pooling in layout.poolings))
    for name in FILES.values():
        if name not in names:
            (folder / name).unlink(missing_ok=True)
    skipped = _left_out(request)
    empty = 0
    with Tables(folder, layout, container) as tables:
        for unit in result.done:
            found = result.parts.load(unit.number)
            tables.add(unit, found)
            empty += not found.found
            if not found.found:
                skipped.append(Skipped(unit.image, unit.frame, 0, "skipped", "has no objects"))
            elif len(found) < found.found:
                reason = f"--most-objects {request.settings.most_objects}"
                left = found.found - len(found)
                skipped.append(Skipped(unit.image, unit.frame, left, "left out", reason))
    failed = [Skipped(item.name, None, None, "failed", str(p)) for item, p in request.problems]
    failed += [Skipped(name, None, None, "failed", why) for name, why in request.unreadable.items()]
    failed += [
        Skipped(one.unit.image, one.unit.frame, None, "failed", one.reason)
        for one in result.failures
    ]
    write_skipped(folder / SKIPPED, [*skipped, *failed])
    outputs = (*names, SCHEMA, SUMMARY, SKIPPED)
    summary = EmbedSummary(
        images=len(result.done),
        objects=tables.rows,
        dimension=result.dimension,
        without_objects=empty,
        left_out=len(request.selection.left_out),
        failed=len(failed),
        outputs=tuple(folder / name for name in outputs),
        seconds=time.monotonic() - result.began,
    )
    schema = _schema(request, layout, tables.rows)
    write_atomic(folder / SCHEMA, json.dumps(schema, indent=2) + "\n")
    write_atomic(folder / SUMMARY, json.dumps(summary.to_dict(), indent=2) + "\n")
    return summary


def _layout(request: Request, result: Result) -> Layout:
    units, container = request.units, _container(request.images)
    return Layout(
        poolings=tuple(dict.fromkeys(request.settings.pooling)),
        dimension=result.dimension,
        frames=any(unit.frame is not None for unit in units),
        classes=any(unit.sample.classes for unit in units),
        plates=any(Place.of(unit, container) is not None for unit in units),
    )


def _container(images: Path) -> str:
    return images.resolve().name.removesuffix(".zarr").removesuffix(".ome")


def _left_out(request: Request) -> list[Skipped]:
    return [
        Skipped(item.name, None, None, "left out", reason)
        for item, reason in request.selection.left_out
    ]


def _schema(request: Request, layout: Layout, rows: int) -> dict[str, object]:
    """What the tables hold, and how it was made."""
    settings, bundle = request.settings, request.bundle
    files: dict[str, object] = {MANIFEST: {"columns": [name for name, _ in layout.manifest]}}
    keys = [name for name, _ in layout.keys]
    for pooling in layout.poolings:
        columns = layout.vectors(pooling)
        prefixes = dict.fromkeys(column.rpartition("_")[0] for column in columns)
        files[FILES[pooling]] = {
            "pooling": pooling,
            "keys": keys,
            "vectors": {prefix: _NUMBERS[prefix] for prefix in prefixes},
            "columns": [*keys, *columns],
        }
    return {
        "format": FORMAT,
        "dimension": layout.dimension,
        "rows": rows,
        "files": files,
        "backend": request.predictor.name,
        "backend_version": request.backend_version,
        "model": str(request.job.model.resolve()) if request.job.model else None,
        "weights": bundle.weights if bundle else {},
        "options": request.job.options.model_dump(mode="json"),
        "normaliser": request.normaliser.model_dump(mode="json"),
        "tiling": {"core": request.tiling.core, "halo": request.tiling.halo},
        "images": str(request.images.resolve()),
        "reader": request.reader.name,
        "reader_options": request.reading.model_dump(mode="json"),
        "labels": str(settings.labels.resolve()) if settings.labels is not None else None,
        "selection": settings.model_dump(
            mode="json", include={"include", "exclude", "most_images", "most_objects", "seed"}
        ),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("cellseg-core", "numpy", "pyarrow")},
        },
    }
