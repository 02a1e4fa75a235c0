"""The report of a training run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cellseg.bundle import FILE as BUNDLE_FILE
from cellseg.bundle import Bundle
from cellseg.errors import CellsegError
from cellseg.events import Checkpointed, Event, Failed, Note, Progress, Resumed, Validated
from cellseg.report.curves import Chart, Series, chart
from cellseg.report.page import data_uri, versions, write_page
from cellseg.runs import RunDir
from cellseg.splits import Splits
from cellseg.workflows.example_settings import UNSPLIT

_MOST_PREVIEWS = 8
_PREVIEW_SIDE = 1024
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_NOTES = 200


@dataclass(frozen=True, slots=True)
class _Picture:
    name: str
    uri: str
    wide: bool


def write_run_report(run: RunDir) -> Path:
    """Write ``report.html`` of a run, finished or not: curves, options, splits, previews.

    Returns:
        The page: one file that loads nothing else.

    Raises:
        DataError: this is no run.
        StorageError: the page cannot be written.
    """
    request = run.request()
    events = run.events()
    validated = [event for event in events if isinstance(event, Validated)]
    bundle, splits, problems = _read(run)
    previews, skipped = _previews(run.previews)
    notes = [event.text for event in events if isinstance(event, Note)]
    started, last = _times(run.log)
    idle = UNSPLIT if request.examples else ()
    page = {
        "name": run.path.absolute().name,
        "request": request,
        "finished": bundle is not None,
        "run": run.path,
        "started": started,
        "last": last,
        "progress": next((e for e in reversed(events) if isinstance(e, Progress)), None),
        "checkpoint": next((e for e in reversed(events) if isinstance(e, Checkpointed)), None),
        "resumed": sum(isinstance(event, Resumed) for event in events),
        "best": next((event for event in reversed(validated) if event.best), None),
        "validated": validated,
        "columns": sorted({name for event in validated for name in event.metrics}, key=_order),
        "charts": charts(events),
        "previews": previews,
        "previews_skipped": skipped,
        "notes": problems + notes[-_MOST_NOTES:],
        "notes_skipped": max(len(notes) - _MOST_NOTES, 0),
        "failures": [event for event in events if isinstance(event, Failed)],
        "bundle": bundle,
        "model_size": sum(f.stat().st_size for f in run.model.rglob("*") if f.is_file()),
        "splits": splits,
        "groups": {
            "Training": {k: v for k, v in request.settings.items() if k not in idle},
            "Reader": {"reader": request.reader, **request.reader_options},
            f"Backend {request.backend}": request.options,
            "Normalisation": request.normaliser,
        },
        "versions": versions(request.cellseg_version, request.backend, request.backend_version),
    }
    return write_page("run.html.j2", run.report, page)


def charts(events: Iterable[Event]) -> list[Chart]:
    """One chart for each metric; training and validation share it where both report it."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    best: dict[str, float] = {}
    for event in events:
        if isinstance(event, Progress | Validated):
            kind = "training" if isinstance(event, Progress) else "validation"
            for name, value in event.metrics.items():
                lines = found.setdefault(_plain(name), {})
                lines.setdefault(kind, []).append((event.step, value))
        if isinstance(event, Validated) and event.best:
            best |= {_plain(name): float(event.step) for name in event.metrics}
    drawn = []

    def place(name: str) -> tuple[int, bool, str]:
        # What was validated comes before the parts of the training loss.
        return _order(name)[0], "validation" not in found[name], name

    for name in sorted(found, key=place):
        lines, is_loss, is_rate = found[name], "loss" in name, _is_rate(name)
        series = []
        if "training" in lines:
            series.append(Series("training", lines["training"], smooth=not is_rate, style=0))
        if "validation" in lines:
            measured = lines["validation"]
            series.append(
                Series("validation", measured, markers=True, best=best.get(name), style=1)
            )
        title = name.replace("_", " ").replace("/", ": ")
        drawn.append(chart(title, series, whole=True, wide=is_loss or is_rate))
    return [one for one in drawn if one is not None]


def _plain(metric: str) -> str:
    """``val_loss`` and ``train/loss`` are both ``loss``."""
    return re.sub(r"^(train|val|validation)[_/]", "", metric)


def _is_rate(name: str) -> bool:
    name = name.rpartition("/")[2]
    return name in ("lr", "learning_rate") or name.startswith("lr-")


def _order(metric: str) -> tuple[int, str]:
    """The loss first, learning rates last."""
    name = _plain(metric).rpartition("/")[2]
    return (0 if name == "loss" else 2 if _is_rate(name) else 1), metric


def _read(run: RunDir) -> tuple[Bundle | None, Splits | None, list[str]]:
    """The bundle and the splits where they are there; what is wrong with them is shown."""
    problems = []
    bundle, splits = None, None
    try:
        bundle = Bundle.load(run.model) if (run.model / BUNDLE_FILE).exists() else None
        splits = Splits.load(run.splits) if run.splits.exists() else None
    except CellsegError as error:
        problems.append(str(error))
    return bundle, splits, problems


def _previews(directory: Path) -> tuple[list[_Picture], int]:
    """The newest pictures, newest first, as many of each folder, and how many more there are."""
    files = sorted(directory.rglob("*.png"), key=_natural) if directory.is_dir() else []
    folders: dict[Path, list[Path]] = {}
    for file in files:
        folders.setdefault(file.parent, []).append(file)
    each = max(_MOST_PREVIEWS // max(len(folders), 1), 1)
    shown = [file for folder in folders.values() for file in folder[-each:]][-_MOST_PREVIEWS:]
    pictures = []
    for file in reversed(shown):
        png = file.read_bytes()
        width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
        if png.startswith(_PNG) and (small := _small(png, width, height)):
            name = file.relative_to(directory).with_suffix("").as_posix()
            pictures.append(_Picture(name, data_uri(small), width > 2 * height))
    return pictures, len(files) - len(pictures)


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", str(path))]


def _small(png: bytes, width: int, height: int) -> bytes:
    """A picture at no more than the size that is shown; empty where it is damaged."""
    if max(width, height) <= _PREVIEW_SIDE:
        return png
    import cv2
    import numpy as np

    from cellseg.report.drawing import decoded, encoded

    scale = _PREVIEW_SIDE / max(width, height)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    picture = decoded(png)
    if picture is None:
        return b""
    return encoded(np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8))


def _times(log: Path) -> tuple[str, str]:
    """When the first and the last event happened; empty where nothing did yet."""
    if not log.exists():
        return "", ""
    stamps = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            stamps.append(str(json.loads(line)["at"]))
        except (ValueError, KeyError, TypeError):
            continue  # a line that a kill cut short
    if not stamps:
        return "", ""
    return tuple(stamp[:16].replace("T", " ") + " UTC" for stamp in (stamps[0], stamps[-1]))  # type: ignore[return-value]
