"""Finding and loading plugins, as late and as few as possible."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

import pluggy

from cellseg import hookspecs
from cellseg.errors import PluginError, UnknownPluginError
from cellseg.hookspecs import PROJECT
from cellseg.options import Options
from cellseg.specs import DatasetSpec, ExporterSpec, PredictorSpec, Spec, TrainerSpec

S = TypeVar("S", bound=Spec[Any])
KINDS: tuple[type[Spec[Any]], ...] = (DatasetSpec, TrainerSpec, PredictorSpec, ExporterSpec)
BUILTIN = "builtin"


class Plugins:
    """The installed plugins. Listing names imports none of them.

    Args:
        installed: entry points to use instead of those of the environment, for tests.

    Raises:
        PluginError: two packages provide plugins of one name.
    """

    def __init__(self, installed: Iterable[EntryPoint] | None = None) -> None:
        self.broken: dict[str, PluginError] = {}
        self._pm = pluggy.PluginManager(PROJECT)
        self._pm.add_hookspecs(hookspecs)
        self._installed: dict[str, EntryPoint] = {}
        self._plugins: dict[str, object] = {}
        for ep in entry_points(group=PROJECT) if installed is None else installed:
            other = self._installed.setdefault(ep.name, ep)
            if (other.value, _owner(other)) != (ep.value, _owner(ep)):
                raise PluginError(
                    f"Two packages provide the plugin {ep.name!r}: "
                    f"{_owner(other)} ({other.value}) and {_owner(ep)} ({ep.value}).",
                    hint=f"Uninstall one of them: uv pip uninstall {_owner(ep)}",
                )

    def names(self) -> list[str]:
        """Names of the installed plugins, none of them imported."""
        return sorted(self._installed)

    def version(self, name: str) -> str:
        """Version of the package that provides the plugin ``name``; empty where unknown."""
        ep = self._installed.get(name)
        return ep.dist.version if ep and ep.dist else ""

    def package(self, name: str) -> str:
        """The package that provides the plugin ``name``; empty where unknown."""
        ep = self._installed.get(name)
        return _owner(ep) if ep else ""

    def get(self, kind: type[S], name: str) -> S:
        """The card called ``name``; imports one plugin if it can, all if it must.

        Raises:
            UnknownPluginError: nobody offers such a card.
            PluginError: the plugin of that name is broken.
        """
        if name in self._installed:
            self._load(name)
        cards = self._cards(kind)
        if name not in cards:
            cards = self.all(kind)
        if name in cards:
            return cards[name]
        close = get_close_matches(name, [*cards, *self._installed], n=1)
        if name in self._installed:
            hint = f"The backend {name!r} has none: cellseg backends info {name}"
        elif close:
            hint = f"Did you mean {close[0]!r}?"
        else:
            hint = f"If a package that you trust provides it: uv pip install cellseg-{name}"
        listed = ", ".join(sorted(cards)) or "none"
        raise UnknownPluginError(f"No {kind.noun} called {name!r}. Installed: {listed}.", hint=hint)

    def exporter(self, backend: str, name: str) -> ExporterSpec[Any]:
        """The exporter ``name`` for models of ``backend``, its own before everybody's."""
        offered = {card.name: card for card in self.exporters(backend)}
        if name in offered:
            return offered[name]
        close = get_close_matches(name, offered, n=1)
        raise UnknownPluginError(
            f"No exporter {name!r} for {backend} models. "
            f"Installed: {', '.join(sorted(offered)) or 'none'}.",
            hint=f"Did you mean {close[0]!r}?" if close else None,
        )

    def exporters(self, backend: str) -> list[ExporterSpec[Any]]:
        """All exporters for models of ``backend``."""
        self._load(BUILTIN)
        if backend in self._installed:
            self._load(backend)
        cards = {c.name: c for c in self._yielded(ExporterSpec) if c.backend is None}
        cards |= {c.name: c for c in self._yielded(ExporterSpec) if c.backend == backend}
        return list(cards.values())

    def all(self, kind: type[S]) -> dict[str, S]:
        """Every card of one kind, by name. Imports every plugin; notes the broken ones."""
        for name in self._installed:
            try:
                self._load(name)
            except PluginError as error:
                self.broken[name] = error
        return self._cards(kind)

    def register(self, plugin: object, name: str) -> None:
        """Add a plugin by hand, for tests and notebooks.

        Raises:
            PluginError: it implements no known hook, misspells one, or yields a wrong card.
        """
        if any(plugin is known for known in self._plugins.values()):
            self._plugins[name] = plugin  # one module may serve several names
            return
        try:
            self._pm.register(plugin, name)
            self._pm.check_pending()
            self._check(name)
        except pluggy.PluginValidationError as error:
            self._pm.unregister(plugin)
            raise PluginError(f"Plugin {name!r} is broken: {_misspelt(error)}") from error
        except PluginError:
            self._pm.unregister(plugin)
            raise
        self._plugins[name] = plugin

    def _load(self, name: str) -> None:
        if name in self._plugins:
            return
        if name in self.broken:
            raise self.broken[name]
        if name == BUILTIN:
            from cellseg import builtin

            self.register(builtin, BUILTIN)
            return
        try:
            plugin = self._installed[name].load()
        except Exception as error:  # whatever a stranger's module raises, named and passed on
            owner = _owner(self._installed[name])
            raise PluginError(
                f"Plugin {name!r} is installed but cannot be imported: "
                f"{type(error).__name__}: {error}",
                hint=f"Reinstall it: uv pip install --force-reinstall {owner}",
            ) from error
        self.register(plugin, name)

    def _check(self, name: str) -> None:
        """Refuse wrong cards when the plugin arrives, not when somebody uses them."""
        if not self._pm.get_hookcallers(self._pm.get_plugin(name)):
            raise PluginError(
                f"Plugin {name!r} implements no hook of cellseg.",
                hint="Decorate its functions with cellseg.hookimpl; see docs/write-a-backend.md.",
            )
        for kind in KINDS:
            self._cards(kind)

    def _cards(self, kind: type[S]) -> dict[str, S]:
        self._load_builtin_if_ready()
        cards: dict[str, S] = {}
        exporters: set[tuple[str, str | None]] = set()
        for card in self._yielded(kind):
            if isinstance(card, ExporterSpec):
                clash = (card.name, card.backend) in exporters
                exporters.add((card.name, card.backend))
            else:
                clash = card.name in cards
            if clash:
                raise PluginError(f"Two plugins offer a {kind.noun} called {card.name!r}.")
            cards[card.name] = card
        return cards

    def _load_builtin_if_ready(self) -> None:
        if BUILTIN not in self._plugins and self._pm.get_plugin(BUILTIN) is None:
            self._load(BUILTIN)

    def _yielded(self, kind: type[S]) -> Iterable[S]:
        hook: pluggy.HookCaller = getattr(self._pm.hook, f"cellseg_{kind.noun}s")
        for impl in hook.get_hookimpls():
            offered: Any = impl.function()
            if not isinstance(offered, Iterable):
                raise PluginError(
                    f"Plugin {impl.plugin_name!r}: {hook.name}() must yield cards, "
                    f"not return {offered!r}."
                )
            for card in offered:
                if not isinstance(card, kind):
                    raise PluginError(
                        f"Plugin {impl.plugin_name!r}: {hook.name}() yields {card!r}; "
                        f"it must yield a {kind.__name__}."
                    )
                if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", card.name):
                    raise PluginError(
                        f"Plugin {impl.plugin_name!r}: {card.name!r} is no name for a {kind.noun}; "
                        "use lower-case letters, digits and hyphens."
                    )
                if not (isinstance(card.options, type) and issubclass(card.options, Options)):
                    raise PluginError(
                        f"Plugin {impl.plugin_name!r}: the options of {card.name!r} must be a "
                        f"subclass of cellseg.Options, not {card.options!r}."
                    )
                yield card


def _owner(ep: EntryPoint) -> str:
    return ep.dist.name if ep.dist else ep.value


def _misspelt(error: pluggy.PluginValidationError) -> str:
    text = str(error)
    found = re.search(r"unknown hook '(\w+)'", text)
    known = [name for name in vars(hookspecs) if name.startswith("cellseg_")]
    close = get_close_matches(found.group(1), known, n=1) if found else []
    return text + (f" (did you mean {close[0]!r}?)" if close else "")
