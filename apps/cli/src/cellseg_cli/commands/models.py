"""``cellseg models``: published models, listed, downloaded, checked and copied."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from cellseg.errors import UsageError
from cellseg.plugins import Plugins
from cellseg.workflows.stored_models import (
    StoredModel,
    chosen_models,
    model_paths,
    stored_models,
)
from cellseg_cli.arguments import Arguments
from cellseg_cli.console import Console, columns
from cellseg_cli.flags import Command, with_flags
from cellseg_cli.lookup import Force, Mirror
from cellseg_cli.pages import CommandPage, settings

_Backend: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--backend",
        help="Only models that this backend can start from.",
        autocompletion=lambda: Plugins().names(),
    ),
]
_Names: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME]...",
        help="Models; cellseg models list shows them.",
        show_default=False,
        autocompletion=lambda: [name for m in stored_models(Plugins()) for name in m.names],
    ),
]
_Remove: TypeAlias = Annotated[
    bool, typer.Option("--remove", help="Remove the files that are damaged.")
]


def models(arguments: Arguments) -> typer.Typer:
    """The group: ``list``, ``pull``, ``verify``, ``path`` and ``export-cache``."""
    app = typer.Typer(
        help="List, download, check and copy published models.",
        no_args_is_help=True,
        **settings(),
    )
    app.command("list", cls=CommandPage)(with_flags(Command(_listing)))
    app.command("pull", cls=CommandPage)(with_flags(Command(_pull, downloads=True)))
    app.command("verify", cls=CommandPage)(with_flags(Command(_verify)))
    app.command("path", cls=CommandPage)(with_flags(Command(_path)))
    app.command("export-cache", cls=CommandPage)(with_flags(Command(_export)))
    return app


def _listing(
    console: Console,
    backend: _Backend = None,
    here: Annotated[
        bool, typer.Option("--here", help="Only models of which something is here.")
    ] = False,
) -> None:
    """List the published models: sizes, licences, what they are checked by, and which are here.

    Nothing is downloaded, and no file is read in full.
    """
    found = _chosen((), backend, here=here)
    console.result([model.to_dict() for model in found], _table(found))


def _pull(
    console: Console,
    names: _Names = None,
    backend: _Backend = None,
    every: Annotated[bool, typer.Option("--all", help="All models there are.")] = False,
    mirror: Mirror = "",
    force: Force = False,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="How many files at a time.")] = 4,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            help="A file with the token that the publisher wants, instead of an environment "
            "variable; nobody else may be able to read it.",
        ),
    ] = None,
) -> None:
    """Download models; what is there already is not fetched again.

    A download that was cut goes on where it stopped. Files are compared with the checksums of their
    publishers; where there are none, with what came first.
    """
    from cellseg.download import environment
    from cellseg.download.published import read_token
    from cellseg.errors import WeightsError
    from cellseg.workflows.pull_models import pull_models, refuse_shared_token

    if sum((bool(names), backend is not None, every)) != 1:
        raise UsageError("Say which models: NAME..., --backend BACKEND or --all.")
    wanted = _chosen(names or (), backend)
    how = environment(mirror=mirror, error=WeightsError, force=force)
    if token_file is not None:
        refuse_shared_token(wanted)
        how = replace(how, headers=read_token(token_file))
    with console.following("Downloading", "megabyte") as emit:
        pulled = pull_models(wanted, how, emit, jobs=jobs)
    console.result(pulled.to_dict(), pulled.lines())


def _verify(console: Console, names: _Names = None, remove: _Remove = False) -> None:
    """Read the models that are here in full, and compare them with their checksums.

    Damaged files are listed, and the exit code is 6. Nothing is changed without --remove.
    """
    from cellseg.workflows.verify_models import refuse_damaged, remove_damaged, verify_models

    chosen = _chosen(names or (), here=not names)
    for model in chosen:
        if names and model.state == "missing":
            model_paths(model)  # raises
    with console.following("Reading", "file") as emit:
        found = verify_models(chosen, emit)
    if remove:
        remove_damaged(found)
    if not any(each.wrong for each in found) or not console.json:
        console.result(
            [each.to_dict() for each in found],
            [str(each) for each in found] or ["No model is here."],
        )
    refuse_damaged(found, removed=remove)


def _path(
    console: Console,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A model; cellseg models list shows them.", show_default=False
        ),
    ],
) -> None:
    """Print where the files of a model are; if one is missing, the exit code is 6."""
    (model,) = _chosen([name])
    paths = model_paths(model)
    console.result([str(path) for path in paths], map(str, paths))


def _export(
    console: Console,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where to; made if it is not there.")
    ],
    names: _Names = None,
) -> None:
    """Copy the models that are here to a folder, for computers that cannot download.

    Each file is compared before and after. The folder then serves as --mirror or CELLSEG_MIRROR;
    manifest.json in it says what each file is, its SHA-256 and its licence.
    """
    from cellseg.workflows.export_models import export_cache

    chosen = _chosen(names or (), here=not names)
    for model in chosen:
        if names:
            model_paths(model)  # all of it must be here
    with console.following("Copying", "file") as emit:
        exported = export_cache(folder, chosen, emit)
    console.result(exported.to_dict(), exported.lines())


def _chosen(
    names: Sequence[str], backend: str | None = None, *, here: bool = False
) -> list[StoredModel]:
    plugins = Plugins()
    if backend is not None:
        from cellseg.workflows.installed import installed_backend

        installed_backend(plugins, backend)  # raises where there is none
    return chosen_models(stored_models(plugins), names, backend=backend, here=here)


def _table(found: Sequence[StoredModel]) -> Iterator[str]:
    rows = [("NAME", "BACKENDS", "SIZE", "STATE", "CHECKED BY", "LICENCE")]
    rows += [
        (
            model.name,
            ", ".join(model.backends),
            "unknown" if model.size is None else f"{model.size / 1e6:.0f} MB",
            model.state,
            model.checked_by,
            model.model.licence,
        )
        for model in found
    ]
    if not found:
        yield "There are none."
        return
    yield from columns(rows)
    yield ""
    for model in found:
        for backend, name in model.called.items():
            yield f"{model.name}: {backend} calls it {name}"
        yield from (f"{model.name}: {file.remote.url}" for file in model.files)
        if model.model.token:
            yield f"{model.name}: its publisher wants a token, in {model.model.token}"
