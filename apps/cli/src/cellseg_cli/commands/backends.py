"""``cellseg backends``: what is installed, and all about one of them."""

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Annotated, Any

import typer

from cellseg.errors import UsageError
from cellseg.options import Options, flag
from cellseg.plugins import Plugins
from cellseg.workflows.init import entry
from cellseg.workflows.installed import InstalledBackend, installed_backend, installed_backends
from cellseg_cli.arguments import Arguments
from cellseg_cli.console import Console, columns
from cellseg_cli.flags import Command, help_text, in_order, with_flags
from cellseg_cli.pages import CommandPage, settings
from cellseg_cli.spelling import spelling


def backends(arguments: Arguments) -> typer.Typer:
    """The group: a list by itself, ``info NAME`` for one."""
    app = typer.Typer(help="List the installed backends, or show one in full.", **settings())

    def listing(console: Console) -> None:
        """List the installed backends, or show one in full."""
        found = installed_backends(Plugins())
        console.result([backend.to_dict() for backend in found], _table(found))

    def info(
        console: Console,
        name: Annotated[
            str,
            typer.Argument(
                metavar="NAME",
                help="Name of a backend.",
                show_default=False,
                autocompletion=lambda: Plugins().names(),
            ),
        ],
    ) -> None:
        """Show one backend: what it can do, its options, and the licence of its weights."""
        backend = installed_backend(Plugins(), name)
        console.result(_in_full(backend), _page(backend))

    app.callback(invoke_without_command=True)(_by_itself(with_flags(Command(listing))))
    app.command(cls=CommandPage)(with_flags(Command(info)))
    return app


def _by_itself(command: Callable[..., None]) -> Callable[..., None]:
    """``command``, run only where no subcommand follows it."""

    @wraps(command)
    def wrapper(ctx: typer.Context, **kwargs: Any) -> None:
        if ctx.invoked_subcommand is None:
            command(ctx, **kwargs)
        elif any(kwargs.values()):
            raise UsageError(
                "A flag stands before 'info'.", hint="Put it at the end: backends info NAME --json"
            )

    return wrapper


def _table(found: Iterable[InstalledBackend]) -> Iterator[str]:
    rows = [("NAME", "VERSION", "TASKS", "TRAINS", "PREDICTS", "EXPORTS", "SUMMARY")]
    broken = []
    for backend in found:
        if backend.error is not None:
            broken.append(f"{backend.name} is broken: {backend.error}")
            broken += [f"  {backend.error.hint}"] if backend.error.hint else []
        rows.append(
            (
                backend.name,
                backend.version or "-",
                ", ".join(backend.tasks) or "-",
                "yes" if backend.trainer else "-",
                "yes" if backend.predictor else "-",
                ", ".join(card.name for card in backend.exporters) or "-",
                "BROKEN, see below" if backend.error else backend.summary,
            )
        )
    yield from columns(rows)
    if len(rows) == 1:
        yield "No backend is installed. Install one: uv pip install cellseg-vista"
    if broken:
        yield ""
        yield from broken


def _page(backend: InstalledBackend) -> Iterator[str]:
    yield f"{backend.name}: {backend.summary}"
    yield f"Package:  {backend.package} {backend.version}".rstrip()
    yield f"Tasks:    {', '.join(backend.tasks) or 'none'}"
    yield f"Trains:   {'yes' if backend.trainer else 'no'}"
    yield f"Predicts: {'yes' if backend.predictor else 'no'}"
    yield f"Exports:  {', '.join(card.name for card in backend.exporters) or 'none'}"
    yield "Models:   " + (
        "published ones, see cellseg models list"
        if backend.models
        else "trains from random weights; none published"
    )
    yield from (f"  {model.name}: licence {model.licence}" for model in backend.models)
    presets = _presets(backend)
    if presets:
        yield ""
        yield "Presets (cellseg train --preset NAME):"
        yield from columns([(f"  {name}", ", ".join(said)) for name, said in presets.items()])
    for title, model in _option_classes(backend):
        rows = [
            (f"  {flag(name)}", _shown(info), help_text(info)) for name, info in in_order(model)
        ]
        if rows:
            yield ""
            yield f"Options of {title} (with their defaults):"
            yield from columns(rows)
    aliases = _aliases(backend)
    if aliases:
        yield ""
        yield "Other names that it knows:"
        yield from columns([(f"  {flag(alias)}", flag(name)) for alias, name in aliases.items()])


def _in_full(backend: InstalledBackend) -> dict[str, object]:
    return {
        **backend.to_dict(),
        "models": [
            {"name": m.name, "licence": m.licence, "source": [file.url for file in m.files]}
            for m in backend.models
        ],
        "presets": {n: dict(p) for n, p in backend.trainer.presets.items()}
        if backend.trainer
        else {},
        "aliases": _aliases(backend),
        "options": {title: _as_json(model) for title, model in _option_classes(backend)},
    }


def _presets(backend: InstalledBackend) -> dict[str, list[str]]:
    """The options of each preset of a backend, as lines of a config file."""
    presets = backend.trainer.presets if backend.trainer is not None else {}
    return {n: [entry(*option) for option in p.items()] for n, p in presets.items()}


def _aliases(backend: InstalledBackend) -> dict[str, str]:
    """The other names of options that its cards have, and the option that each is."""
    cards = (backend.trainer, backend.predictor, *backend.exporters)
    return {alias: name for card in cards if card for alias, name in card.aliases.items()}


def _option_classes(backend: InstalledBackend) -> Iterator[tuple[str, type[Options]]]:
    if backend.trainer is not None:
        yield "train", backend.trainer.options
    if backend.predictor is not None:
        yield "predict", backend.predictor.options
    for card in backend.exporters:
        yield f"export --format {card.name}", card.options


def _as_json(model: type[Options]) -> list[dict[str, object]]:
    defaults = model().model_dump(mode="json")
    return [
        {"flag": flag(name), "name": name, "default": defaults[name], "help": info.description}
        for name, info in in_order(model)
    ]


def _shown(info: Any) -> str:
    value = spelling(info.annotation).write(info.get_default(call_default_factory=True))
    return "-" if value is None or value == "" else str(value)
