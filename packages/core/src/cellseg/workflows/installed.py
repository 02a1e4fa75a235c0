"""The installed backends, with all their cards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cellseg.errors import PluginError, UnknownPluginError
from cellseg.plugins import Plugins
from cellseg.specs import ExporterSpec, PredictorSpec, PublishedModel, Spec, TrainerSpec


@dataclass(frozen=True)
class InstalledBackend:
    """One installed backend."""

    name: str
    version: str
    package: str
    trainer: TrainerSpec[Any] | None = None
    predictor: PredictorSpec[Any] | None = None
    exporters: tuple[ExporterSpec[Any], ...] = ()
    error: PluginError | None = None
    """Why it is broken; None where it works."""

    @property
    def cards(self) -> tuple[Spec[Any], ...]:
        """All that it offers."""
        cards = (self.trainer, self.predictor, *self.exporters)
        return tuple(card for card in cards if card is not None)

    @property
    def summary(self) -> str:
        """One line about it."""
        card = self.trainer or self.predictor
        return card.summary if card else ""

    @property
    def tasks(self) -> tuple[str, ...]:
        """What its models are for."""
        return tuple(
            sorted({t for card in (self.trainer, self.predictor) if card for t in card.tasks})
        )

    @property
    def models(self) -> tuple[PublishedModel, ...]:
        """Published models that it can start from or predict with, each once."""
        cards = (self.trainer, self.predictor)
        return tuple({m.name: m for card in cards if card for m in card.models}.values())

    def to_dict(self) -> dict[str, object]:
        """For ``--json``."""
        return {
            "name": self.name,
            "summary": self.summary,
            "version": self.version,
            "package": self.package,
            "tasks": list(self.tasks),
            "trains": self.trainer is not None,
            "predicts": self.predictor is not None,
            "exports": [card.name for card in self.exporters],
            "broken": str(self.error) if self.error else None,
            "hint": self.error.hint if self.error else None,
        }


def installed_backends(plugins: Plugins) -> list[InstalledBackend]:
    """All backends, by name, the broken ones too; imports every plugin.

    Raises:
        PluginError: two plugins clash, which makes the list itself meaningless.
    """
    trainers, predictors = plugins.all(TrainerSpec), plugins.all(PredictorSpec)
    names = sorted({*plugins.names(), *trainers, *predictors})
    return [_backend(plugins, name, trainers.get(name), predictors.get(name)) for name in names]


def installed_backend(plugins: Plugins, name: str) -> InstalledBackend:
    """One backend, by name.

    Raises:
        UnknownPluginError: there is none of that name.
        PluginError: it is broken.
    """
    found = [backend for backend in installed_backends(plugins) if backend.name == name]
    if not found:
        plugins.get(PredictorSpec, name)  # raises, with the nearest name
        raise UnknownPluginError(f"No backend called {name!r}.")
    if found[0].error is not None:
        raise found[0].error
    return found[0]


def _backend(
    plugins: Plugins,
    name: str,
    trainer: TrainerSpec[Any] | None,
    predictor: PredictorSpec[Any] | None,
) -> InstalledBackend:
    error = plugins.broken.get(name)
    exporters = plugins.exporters(name) if error is None and trainer else []
    return InstalledBackend(
        name=name,
        version=plugins.version(name),
        package=plugins.package(name),
        trainer=trainer,
        predictor=predictor,
        exporters=tuple(exporters),
        error=error,
    )
