"""The log of an experiment: what happened, line by line, in a file that is only appended to."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from cellseg.events import Checkpointed, Emit, Event, Failed, Note, Progress, Resumed, Validated
from cellseg.files import make_folder, storage_errors
from cellseg_cellsam.training.utils.memory import GPUMonitor, describe


class ExperimentLog:
    """Writes lines with the time to ``experiment.log``.

    Args:
        path: the file.
        debug: whether each step is written, with the terms of its loss and the memory in use;
            else only validations, notes and failures are.
        device: whose memory to measure, as ``GPUMonitor`` has it.
    """

    def __init__(
        self,
        path: Path,
        *,
        debug: bool = False,
        device: str = "auto",
    ) -> None:
        self.path, self.debug = path, debug
        self._monitor = GPUMonitor(device, self.line)
        make_folder(path.parent)

    def line(self, text: str) -> None:
        """Write a line.

        Raises:
            StorageError: it cannot be written.
        """
        said = f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}"
        with storage_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(said + "\n")

    def memory(self, title: str) -> None:
        """Write the memory in use; in debugging only."""
        if self.debug:
            self._monitor.print_memory_summary(title)

    def events(self, further: Emit) -> Emit:
        """What takes the events of trainings, writes them down, and passes them on."""

        def take(event: Event) -> None:
            text = self._said(event)
            if text:
                self.line(text)
            further(event)

        return take

    def _said(self, event: Event) -> str:
        if isinstance(event, Progress):
            if not self.debug:
                return ""
            epoch = f", epoch {event.epoch}" if event.epoch else ""
            total = f" of {event.total}" if event.total else ""
            memory = describe(self._monitor.memory())
            return f"step {event.step}{total}{epoch}: {listed(event.metrics)}; {memory}"
        if isinstance(event, Validated):
            best = " (the best so far)" if event.best else ""
            epoch = f"epoch {event.epoch}, " if event.epoch else ""
            return f"validated at {epoch}step {event.step}: {listed(event.metrics)}{best}"
        if isinstance(event, Checkpointed):
            return f"checkpoint at step {event.step}" if self.debug else ""
        if isinstance(event, Resumed):
            return f"goes on after step {event.step}"
        if isinstance(event, Failed):
            return f"failed: {event.item}: {event.reason}"
        return event.text if isinstance(event, Note) else ""


def listed(numbers: Mapping[str, float]) -> str:
    """Numbers by name, in one line."""
    return ", ".join(f"{name} {float(value):.5g}" for name, value in numbers.items())
