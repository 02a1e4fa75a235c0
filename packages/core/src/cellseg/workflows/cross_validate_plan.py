"""What a cross-validation is to do: resolved and checked before any work begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellseg.data import Dataset, Sample
from cellseg.errors import ConfigError
from cellseg.options import parse, unaliased
from cellseg.plugins import Plugins
from cellseg.readers import open_dataset, reader_for
from cellseg.specs import PredictorSpec, TrainerSpec
from cellseg.splits import Splits, held_out
from cellseg.workflows.aliases import sorted_out
from cellseg.workflows.cross_validate_folds import folds_of
from cellseg.workflows.cross_validate_settings import IDLE, CrossValidateSettings, refuse_idle
from cellseg.workflows.train import refuse_clashes
from cellseg.workflows.train_data import with_epochs
from cellseg.workflows.train_settings import TrainSettings


@dataclass(frozen=True)
class Plan:
    """A cross-validation that is checked, and has not begun."""

    spec: TrainerSpec[Any]
    version: str
    data: Path
    settings: TrainSettings
    reader: str
    reading: dict[str, Any]
    """Options of the reader, as they were given."""
    read: dict[str, Any]
    """All of them."""
    options: dict[str, Any]
    """Of the backend, as they were given."""
    chosen: dict[str, Any]
    """All of them."""
    untrained: dict[str, Any]
    """Options with which no epoch is trained, for the model that a training starts from."""
    samples: Dataset
    folds: list[Splits]

    @classmethod
    def of(
        cls,
        plugins: Plugins,
        backend: str,
        data: Path,
        how: CrossValidateSettings,
        settings: TrainSettings,
        reader_options: Mapping[str, object],
        options: Mapping[str, object],
    ) -> Plan:
        """Resolve and check everything; see ``cross_validate``."""
        spec = plugins.get(TrainerSpec, backend)
        if spec.examples:
            raise ConfigError(
                f"The backend {backend!r} learns from a few examples, and not from folds of "
                "labelled images.",
                hint="Segment other images than those of the examples with cellseg predict "
                "--examples, and score these with cellseg evaluate.",
            )
        plugins.get(PredictorSpec, backend)
        settings, reading, own = sorted_out(spec, settings, reader_options, options)
        refuse_idle(settings)
        chosen = parse(spec.options, own)
        with_epochs(spec, settings, chosen)
        reader = reader_for(plugins, data, settings.reader)
        reading = unaliased(reading, reader.aliases)
        read = parse(reader.options, reading)
        refuse_clashes(settings, read, chosen)
        samples = open_dataset(plugins, data, reader.name, reading, labelled=True)
        return cls(
            spec=spec,
            version=plugins.version(backend),
            data=data.absolute(),
            settings=settings,
            reader=reader.name,
            reading=reading,
            read=read.model_dump(mode="json"),
            options=own,
            chosen=chosen.model_dump(mode="json"),
            untrained=_untrained(spec, own),
            samples=samples,
            folds=folds_of(samples, how.folds, settings.val_fraction, settings.seed),
        )

    def request(self) -> dict[str, Any]:
        """What must be the same when it goes on, and versions; the device may be another one."""
        from importlib.metadata import version

        return {
            "backend": self.spec.name,
            "backend_version": self.version,
            "cellseg_version": version("cellseg-core"),
            "data": str(self.data),
            "reader": self.reader,
            "reader_options": self.read,
            "settings": self.settings.model_dump(mode="json", exclude={*IDLE, "reader", "device"}),
            "options": self.chosen,
            "folds": [splits.model_dump(mode="json") for splits in self.folds],
        }

    def held_out(self, fold: int) -> list[Sample]:
        """The images that the model of a fold is judged on."""
        return held_out(self.samples, self.folds[fold])

    def sources(self, names: tuple[str, ...]) -> int:
        """How many source images some samples come from."""
        wanted = set(names)
        return len({sample.group for sample in self.samples if sample.name in wanted})


def _untrained(spec: TrainerSpec[Any], own: Mapping[str, object]) -> dict[str, object]:
    """The options of the backend without those that would train in spite of ``--epochs 0``."""
    left = {name: value for name, value in own.items() if name != "fast_dev_run"}
    if spec.epochs is not None and spec.epochs(parse(spec.options, left)) is not None:
        left = {name: value for name, value in left.items() if not name.endswith("_epochs")}
    return left
