"""``cellseg data``: public data sets, listed and downloaded."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cellseg.catalogue import CATALOGUE, DataSet
from cellseg_cli.arguments import Arguments
from cellseg_cli.console import Console, columns
from cellseg_cli.flags import Command, with_flags
from cellseg_cli.lookup import Force, Mirror
from cellseg_cli.pages import CommandPage, settings


def data(arguments: Arguments) -> typer.Typer:
    """The group: ``list`` and ``get NAME``."""
    app = typer.Typer(
        help="Download public data sets to train on, or list them.",
        no_args_is_help=True,
        **settings(),
    )

    def get(
        console: Console,
        name: Annotated[
            str,
            typer.Argument(
                metavar="NAME",
                help="A data set; cellseg data list shows them.",
                show_default=False,
                autocompletion=lambda: list(CATALOGUE),
            ),
        ],
        output: Annotated[
            Path | None,
            typer.Option("--output", "-o", help="The folder for it; by default one of its name."),
        ] = None,
        part: Annotated[
            list[str] | None,
            typer.Option("--part", help="Only this part; may be given several times."),
        ] = None,
        mirror: Mirror = "",
        force: Force = False,
        insecure: Annotated[
            bool,
            typer.Option(
                "--insecure",
                help="Accept a server without a valid certificate; the SHA-256 still decides.",
            ),
        ] = False,
    ) -> None:
        """Download one data set; what is there already is not fetched again.

        A download that was cut goes on where it stopped. Files are checked by their checksums.
        """
        from cellseg.download import environment
        from cellseg.workflows.get_data import get_data

        wanted = replace(environment(mirror=mirror, force=force), insecure=insecure)
        with console.following("Downloading", "megabyte") as emit:
            got = get_data(name, output, parts=tuple(part or ()), settings=wanted, emit=emit)
        console.result(got.to_dict(), got.lines())

    def listing(console: Console) -> None:
        """List the public data sets: sizes, licences, what to cite."""
        found = list(CATALOGUE.values())
        console.result([_as_json(one) for one in found], _table(found))

    app.command(cls=CommandPage)(with_flags(Command(get, downloads=True)))
    app.command("list", cls=CommandPage)(with_flags(Command(listing)))
    return app


def _table(found: list[DataSet]) -> Iterator[str]:
    rows = [("NAME", "FILES", "SIZE", "READER", "LICENCE", "SUMMARY")]
    rows += [
        (one.name, str(len(one.files)), _size(one), one.reader, one.licence, one.summary)
        for one in found
    ]
    yield from columns(rows)
    for one in found:
        yield ""
        yield f"{one.name}: {one.home}"
        parts = [file.part for file in one.files if file.part]
        if parts:
            yield f"  Parts: {', '.join(parts)}"
        yield f"  Cite:  {one.citation}"


def _size(one: DataSet) -> str:
    return "not known" if one.size is None else f"{one.size / 1e6:.0f} MB"


def _as_json(one: DataSet) -> dict[str, object]:
    return {
        "name": one.name,
        "summary": one.summary,
        "reader": one.reader,
        "licence": one.licence,
        "citation": one.citation,
        "home": one.home,
        "holds": one.holds,
        "bytes": one.size,
        "files": [
            {
                "name": file.remote.name,
                "part": file.part,
                "url": file.remote.url,
                "bytes": file.remote.size,
                "checksum": file.remote.checksum,
            }
            for file in one.files
        ],
    }
