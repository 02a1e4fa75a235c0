"""Get published models, several files at a time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cellseg.download import Fetched, Settings
from cellseg.download.published import fetch_file
from cellseg.errors import CellsegError, ConfigError, WeightsError
from cellseg.events import Emit, Event, Note, Progress
from cellseg.workflows.stored_models import StoredModel


@dataclass(frozen=True)
class PulledModels:
    """Models that are here now."""

    models: tuple[StoredModel, ...]
    files: Mapping[str, Sequence[Fetched]]
    """Those of each model, by its name."""

    def to_dict(self) -> dict[str, object]:
        """For ``--json``."""
        return {
            "models": [
                {
                    "name": model.name,
                    "licence": model.model.licence,
                    "citation": model.model.citation,
                    "files": [_as_json(file) for file in self.files[model.name]],
                }
                for model in self.models
            ]
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        for model in self.models:
            got = self.files[model.name]
            size = sum(file.path.stat().st_size for file in got) / 1e6
            came = "downloaded" if any(file.fresh for file in got) else "was here"
            yield f"{model.name}: {came}, {size:.1f} MB; licence: {model.model.licence}"
            if model.model.citation:
                yield f"  Cite: {model.model.citation}"
            for file in got:
                yield f"  {file.path}"
                if not file.compared:
                    yield f"    No checksum is published; its SHA-256 is noted: {file.sha256}"


def pull_models(
    models: Sequence[StoredModel], settings: Settings, emit: Emit, *, jobs: int = 4
) -> PulledModels:
    """Download what is not here yet, and check it all.

    One that fails does not stop the others.

    Args:
        models: which.
        settings: how. Headers are sent for each model whose publisher wants a token, so these
            must be of one publisher.
        emit: gets ``Progress`` in megabytes over all files, and notes; from one thread at a time.
        jobs: how many files at a time.

    Raises:
        CellsegError: that of the file which failed; several are one ``WeightsError`` that lists
            them.
    """
    wanted = {file.path: (model.model, file.remote) for model in models for file in model.files}
    meter = _Meter(emit, len(wanted))
    todo: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
    ended: queue.SimpleQueue[tuple[Path, Fetched | BaseException]] = queue.SimpleQueue()
    for path in [*wanted, *[None] * jobs]:
        todo.put(path)

    def work() -> None:
        while (path := todo.get()) is not None:
            model, remote = wanted[path]
            try:
                ended.put((path, fetch_file(model, remote, settings, meter.of(path))))
            except BaseException as error:  # raised again, by who waits for it
                ended.put((path, error))

    for _ in range(min(jobs, len(wanted))):
        # Daemons: Ctrl-C ends the command at once; what came so far is kept for the next try.
        threading.Thread(target=work, daemon=True).start()
    got: dict[Path, Fetched] = {}
    errors: dict[Path, CellsegError] = {}
    for _ in wanted:
        path, result = ended.get()
        if isinstance(result, Fetched):
            got[path] = result
            meter.done(path)
        elif isinstance(result, CellsegError):
            errors[path] = result
            if len(got) + len(errors) < len(wanted):
                emit(Note(f"{path.name}: could not be had; the others go on."))
        else:
            raise result
    _raise_together(errors)
    return PulledModels(
        tuple(models), {m.name: [got[file.path] for file in m.files] for m in models}
    )


def refuse_shared_token(models: Sequence[StoredModel]) -> None:
    """Refuse to send one token to several publishers.

    Raises:
        ConfigError: the models want tokens of several variables, or none at all.
    """
    variables = {model.model.token for model in models if model.model.token}
    if len(variables) != 1:
        what = f"want several tokens: {', '.join(sorted(variables))}" if variables else "want none"
        raise ConfigError(
            f"--token-file: the models {what}.", hint="Name the models of one publisher."
        )


def _raise_together(errors: Mapping[Path, CellsegError]) -> None:
    if len(errors) == 1:
        raise next(iter(errors.values()))
    if errors:
        raise WeightsError(
            f"{len(errors)} files could not be had.\n" + "\n".join(map(str, errors.values())),
            hint=next((error.hint for error in errors.values() if error.hint), None),
        )


class _Meter:
    """Adds up the megabytes of files that come at the same time."""

    def __init__(self, emit: Emit, files: int) -> None:
        self._emit, self._files = emit, files
        self._lock = threading.Lock()
        self._steps: dict[Path, int] = {}
        self._totals: dict[Path, int | None] = {}
        self._last = 0

    def of(self, path: Path) -> Emit:
        """What one file reports to."""

        def report(event: Event) -> None:
            with self._lock:
                if isinstance(event, Progress):
                    self._add(path, event)
                else:
                    self._emit(event)

        return report

    def done(self, path: Path) -> None:
        """One file is here; it may have been before."""
        with self._lock:
            self._totals[path] = self._steps.get(path, 0)

    def _add(self, path: Path, event: Progress) -> None:
        self._steps[path] = max(self._steps.get(path, 0), event.step)
        self._totals[path] = event.total
        step, totals = sum(self._steps.values()), self._totals.values()
        if step > self._last:
            self._last = step
            known = None not in totals and len(totals) == self._files
            total = sum(total or 0 for total in totals) if known else None
            self._emit(replace(event, step=step, total=total))


def _as_json(file: Fetched) -> dict[str, object]:
    return {
        "path": str(file.path),
        "bytes": file.path.stat().st_size,
        "sha256": file.sha256,
        "compared": file.compared,
        "downloaded": file.fresh,
    }
