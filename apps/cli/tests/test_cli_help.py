"""The help pages: complete, light, and in step with the commands."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cellseg.errors import CellsegError
from cellseg_cli.arguments import Arguments
from cellseg_cli.commands import COMMANDS
from cellseg_cli.flags import build

HEAVY = ("numpy", "scipy", "torch", "zarr", "ngio", "tifffile", "matplotlib", "jinja2", "skimage")
HELP = Arguments(("--help",))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_what_the_command_says(name: str) -> None:
    command = build(name, HELP)
    text = command.__doc__ if callable(command) and command.__doc__ else None
    if hasattr(command, "info"):
        text = command.info.help
    assert text is not None
    assert text.splitlines()[0] == COMMANDS[name].summary


def test_the_help_lists_every_command(cellseg) -> None:
    done = cellseg("--help")
    assert done.code == 0
    for name in COMMANDS:
        assert f" {name} " in done.out


def test_without_a_command_the_help_is_shown(cellseg) -> None:
    done = cellseg()
    assert "Usage: cellseg" in done.out + done.err


def test_the_first_help_page_imports_nothing_of_core() -> None:
    assert _imported([["--help"]], ("cellseg", "pydantic", "yaml", *HEAVY)) == ""


def test_no_help_page_imports_anything_heavy() -> None:
    lines = [[name, "--help"] for name in COMMANDS]
    lines += [["train", "--backend", "otsu", "--help"], ["backends", "info", "--help"]]
    assert _imported(lines, HEAVY) == ""


def _imported(lines: list[list[str]], names: tuple[str, ...]) -> str:
    code = f"""
import contextlib, io, sys
from cellseg_cli.main import main
for line in {lines!r}:
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            main(line)
        except SystemExit as exit:
            assert not exit.code, (line, exit.code)
print(*[name for name in {names!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_version_is_that_of_core(cellseg) -> None:
    from importlib.metadata import version

    assert cellseg("--version").out == f"cellseg {version('cellseg-core')}\n"


def test_train_help_shows_all_options_with_defaults_and_ranges(cellseg) -> None:
    out = " ".join(cellseg("train", "--backend", "otsu", "--help").out.split())
    assert "Backend: otsu:" in out and "--min-size" in out and "[default: 20]" in out
    assert "more than 0, less than 1" in out, "the range of --val-fraction"
    assert "percentile|min-max" in out, "the choices of --normalise"
    assert "--json" in out and "--quiet" in out


def test_reader_options_follow_the_data(cellseg, data) -> None:
    by_path = cellseg("train", data, "--backend", "otsu", "--help").out
    by_name = cellseg("train", "--reader", "hdf5", "--backend", "otsu", "--help").out
    assert "--images" in by_path
    assert "--raw-key" in by_name and "--raw-key" not in by_path


def test_a_broken_backend_breaks_no_help_page(cellseg, broken) -> None:
    assert cellseg("--help").code == 0
    assert cellseg("train", "--help").code == 0
    assert cellseg("train", "--backend", "otsu", "--help").code == 0


def test_help_keeps_brackets(cellseg, faulty) -> None:
    assert "with [brackets]" in cellseg("train", "--backend", "faulty", "--help").out


@pytest.mark.parametrize(
    "words, expected",
    [
        ("train --backend ", "otsu"),
        ("train --backend ot", "otsu"),
        ("train --backend otsu --min-s", "--min-size"),
        ("tra", "train"),
    ],
)
def test_the_shell_completes(words: str, expected: str, monkeypatch, capsys) -> None:
    from cellseg_cli.main import main

    monkeypatch.setenv("_CELLSEG_COMPLETE", "complete_zsh")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", f"cellseg {words}")
    with pytest.raises(SystemExit) as exit:
        main([])
    assert expected in capsys.readouterr().out
    assert not exit.value.code


def test_completing_a_bad_line_is_silent(monkeypatch, capsys) -> None:
    from cellseg_cli.main import main

    monkeypatch.setenv("_CELLSEG_COMPLETE", "complete_zsh")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "cellseg train --backend nobody --se")
    with pytest.raises(SystemExit):
        main([])
    captured = capsys.readouterr()
    assert "Error" not in captured.out + captured.err


def test_every_error_code_is_in_the_table_of_codes() -> None:
    from cellseg_cli import failures

    kinds = [CellsegError, *CellsegError.__subclasses__()]
    for kind in kinds:
        assert str(kind.exit_code) in (failures.__doc__ or "")


def test_bash_completes(monkeypatch, capsys) -> None:
    from cellseg_cli.main import main

    monkeypatch.setenv("_CELLSEG_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "cellseg train --backend otsu --min-s")
    monkeypatch.setenv("COMP_CWORD", "4")
    with pytest.raises(SystemExit):
        main([])
    assert "--min-size" in capsys.readouterr().out
