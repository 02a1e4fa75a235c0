"""What a trial of a search does: train a model, and score it on the validation images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cellseg.data import Sample
from cellseg.errors import DataError
from cellseg.events import Event, Progress, Validated
from cellseg.files import remove
from cellseg.options import parse
from cellseg.plugins import Plugins
from cellseg.readers import open_dataset
from cellseg.runs import FILE as RUN_FILE
from cellseg.runs import RunDir
from cellseg.specs import TrainerSpec
from cellseg.splits import SplitOptions, Splits, held_out
from cellseg.tuning.searched import PREDICT
from cellseg.tuning.worker import Report
from cellseg.workflows.judge import judge
from cellseg.workflows.train import resume, samples_of, train
from cellseg.workflows.train_data import _LABELS
from cellseg.workflows.train_settings import TrainSettings


@dataclass(frozen=True)
class Chosen:
    """The options of a trial, by whose they are."""

    settings: dict[str, Any]
    reader: dict[str, Any]
    options: dict[str, Any]
    predict: dict[str, Any]

    @property
    def training(self) -> dict[str, Any]:
        """Those that ``cellseg train`` takes."""
        return {**self.settings, **self.reader, **self.options}


@dataclass(frozen=True, kw_only=True)
class TrainAndJudge:
    """Trains with the options of a trial and some fixed ones, and scores the model."""

    backend: str
    data: Path
    reader: str
    settings: Mapping[str, Any]
    """What is fixed of the training's settings."""
    reader_options: Mapping[str, Any]
    options: Mapping[str, Any]
    splits: Path
    """What trains and validates, in each trial."""
    metric: str
    trained: Path | None = None
    """A run to judge, where only options of prediction are searched."""
    plugins: Plugins = field(default_factory=Plugins, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """What is sent to other processes, which find the plugins by themselves."""
        return {name: value for name, value in vars(self).items() if name != "plugins"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive in another process."""
        vars(self).update(state, plugins=Plugins())

    def __call__(self, options: Mapping[str, Any], folder: Path, report: Report) -> float:
        """The score of a model that is trained with the options; see ``cellseg.tuning.worker``."""
        chosen = self.chosen(options)
        if self.trained is None:
            run = self.run(options, folder, report)
        else:
            run = RunDir(self.trained)
        judged = judge(
            self.plugins,
            run.path,
            self.scored(run),
            options=chosen.predict,
            device=self._device(report.worker),
            interrupted=report.called_off,
        )
        report.measured(judged.scores)
        return float(judged.scores[self.metric])

    def run(self, options: Mapping[str, Any], folder: Path, report: Report) -> RunDir:
        """Train, or go on with a training that was stopped."""

        def told(event: Event) -> None:
            if isinstance(event, Progress):
                report.step(event.step)
            elif isinstance(event, Validated) and event.monitor in event.metrics:
                step = event.step if event.epoch is None else event.epoch
                report.validated(step, event.metrics[event.monitor])

        if (folder / RUN_FILE).exists():
            for event in RunDir(folder).events():
                told(event)
            device = self._device(report.worker)
            return resume(
                self.plugins, folder, device=device, emit=told, interrupted=report.stopped
            )
        for left in folder.iterdir() if folder.is_dir() else ():
            remove(left)
        chosen = self.chosen(options)
        return train(
            self.plugins,
            self.backend,
            self.data,
            folder,
            settings=self._settings(chosen, report.worker),
            reader_options=self.reading(chosen),
            options=chosen.options,
            emit=told,
            interrupted=report.stopped,
        )

    def chosen(self, options: Mapping[str, Any]) -> Chosen:
        """The options of a trial over those that are fixed."""
        own, settings = dict(self.options), dict(self.settings)
        reader, predict = dict(self.reader_options), dict[str, Any]()
        known = self.plugins.get(TrainerSpec, self.backend).options.model_fields
        for name, value in options.items():
            if name.startswith(PREDICT):
                predict[name.removeprefix(PREDICT)] = value
            else:
                place = own if name in known else reader
                (settings if name in TrainSettings.model_fields else place)[name] = value
        return Chosen(settings, reader, own, predict)

    def scored(self, run: RunDir) -> list[Sample]:
        """The images whose score counts, with labels; not normalised.

        Raises:
            DataError: there are none, or they cannot be read.
        """
        request = run.request()
        if not request.examples:
            return samples_of(self.plugins, run)[1]
        given = {**request.reader_options, **self.reader_options}
        learned = set(Splits.load(run.splits).train)
        val = self.settings.get("val")
        source = Path(str(val)) if val is not None else self.data
        samples = open_dataset(self.plugins, source, self.reader, given, labelled=True)
        if val is None:
            samples = [sample for sample in samples if sample.name not in learned]
        if not samples:
            raise DataError(
                "All images have examples to learn from, so none is left to score on.",
                hint="Give others with labels: --val FOLDER",
            )
        return list(samples)

    def tested(self, run: RunDir) -> list[Sample]:
        """The images that neither trained nor validated, with labels; empty where there are none.

        Raises:
            DataError: they cannot be read.
        """
        splits = Splits.load(self.splits)
        if not splits.test:
            return []
        request = run.request()
        samples = open_dataset(
            self.plugins, request.data, request.reader, request.reader_options, labelled=True
        )
        return held_out(samples, splits)

    def _settings(self, chosen: Chosen, worker: int) -> TrainSettings:
        values = {**chosen.settings, "reader": self.reader, "device": self._device(worker)}
        if self.plugins.get(TrainerSpec, self.backend).examples:
            values.pop("val", None)
        elif values.get("val") is None:
            values = {n: v for n, v in values.items() if n not in SplitOptions.model_fields}
            values["splits"] = self.splits
        return parse(TrainSettings, values)

    def reading(self, chosen: Chosen) -> dict[str, Any]:
        """The reader's options for the training; with examples, those of labels are for scoring."""
        if self.settings.get("examples") is None:
            return chosen.reader
        return {name: value for name, value in chosen.reader.items() if name not in _LABELS}

    def _device(self, worker: int) -> str:
        """Where a worker trains: each on the next GPU, where there are several."""
        device = str(self.settings.get("device", "auto"))
        if device != "auto" or not worker or find_spec("torch") is None:
            return device
        gpus = import_module("torch").cuda.device_count()
        return f"cuda:{worker % gpus}" if gpus > 1 else device
