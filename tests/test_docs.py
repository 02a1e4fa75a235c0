"""What is offered is documented, and what is documented is true."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from cellseg import events, hookspecs, specs
from cellseg.plugins import KINDS, Plugins
from cellseg.specs import DatasetSpec, PredictorSpec, TrainerSpec

REPO = Path(__file__).parents[1]
PAGES = {path: path.read_text(encoding="utf-8") for path in (REPO / "docs").rglob("*.md")}
ALL = "\n".join(PAGES.values())
WRITING = (REPO / "docs/write-a-backend.md").read_text(encoding="utf-8")
REFERENCE = (REPO / "docs/reference.md").read_text(encoding="utf-8")


def test_every_hook_is_documented() -> None:
    for name in vars(hookspecs):
        if name.startswith("cellseg_"):
            assert f"`{name}`" in WRITING, name


def test_every_card_field_is_documented() -> None:
    cards = [
        *KINDS,
        specs.TrainJob,
        specs.PredictJob,
        specs.CalibrateJob,
        specs.ExportJob,
        specs.Trained,
    ]
    for card in cards:
        assert f"`{card.__name__}`" in WRITING, card
        for field in dataclasses.fields(card):
            assert f"`{field.name}`" in WRITING, f"{card.__name__}.{field.name}"


def test_every_event_is_documented() -> None:
    for name, kind in vars(events).items():
        if dataclasses.is_dataclass(kind):
            assert f"`{name}`" in WRITING, name


def test_every_option_is_in_the_reference() -> None:
    plugins = Plugins()
    cards = [
        c for kind in (DatasetSpec, TrainerSpec, PredictorSpec) for c in plugins.all(kind).values()
    ]
    assert not plugins.broken
    for card in cards:
        for field in card.options.model_fields:
            assert f"--{field.replace('_', '-')}" in REFERENCE, f"{card.name}: {field}"


def test_the_reference_is_what_the_classes_say() -> None:
    from cellseg_cli.docs import render_reference

    assert render_reference() == REFERENCE, (
        "uv run python -m cellseg_cli.docs --write docs/reference.md"
    )


def test_every_command_is_documented() -> None:
    from cellseg_cli.commands import COMMANDS

    for name in COMMANDS:
        assert f"cellseg {name}" in ALL, name


def test_every_backend_has_its_page_with_its_options() -> None:
    from cellseg_cli.docs import filled

    for name in Plugins().all(TrainerSpec):
        if name != "otsu":
            text = (REPO / f"docs/backends/{name}.md").read_text(encoding="utf-8")
            assert f"<!-- options of {name} -->" in text
            assert filled(text) == text, (
                f"python -m cellseg_cli.docs --write docs/backends/{name}.md"
            )


def test_links_between_pages_exist() -> None:
    for path, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def code_blocks(text: str) -> list[str]:
    return re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)


def documented_commands() -> list[str]:
    found = []
    for text in [(REPO / "README.md").read_text(encoding="utf-8"), *PAGES.values()]:
        for block in code_blocks(text):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.split("  #")[0].strip().removeprefix("uv run ")
                if line.startswith("cellseg "):
                    found.append(line)
    return sorted(set(found))


@pytest.mark.parametrize("command", documented_commands())
def test_documented_commands_are_understood(command: str) -> None:
    """Each command in the docs exists, and has only flags that its help page knows."""
    import typer

    from cellseg_cli.main import make_app

    words = shlex.split(command)[1:]
    if "--" in words:  # what comes after is a command by itself
        at = words.index("--")
        test_documented_commands_are_understood(shlex.join(["cellseg", *words[at + 1 :]]))
        words = words[:at]
    if words[0].startswith("-"):
        return
    line = [words[0]]
    for choice in ("--backend", "--reader"):  # which bring flags of their own
        at = words.index(choice) if choice in words else len(words)
        line += words[at : at + 2]
    parsed: Any = typer.main.get_command(make_app(line))
    page = parsed.commands[words[0]]
    while hasattr(page, "commands") and len(words) > 1 and words[1] in page.commands:
        words, page = words[1:], page.commands[words[1]]
    known = {flag for option in page.params for flag in (*option.opts, *option.secondary_opts)}
    flags = {word.split("=")[0] for word in words if word.startswith("-")}
    assert flags <= known | {"--help"}


def test_readme_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's first commands, in a new folder, as a new user types them."""
    from cellseg_cli.main import main

    first = [c for c in code_blocks((REPO / "README.md").read_text()) if "cellseg demo" in c]
    assert first, "the README starts with the demo"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--fast"])
    assert not ended.value.code, capsys.readouterr().err
    assert list(tmp_path.rglob("report.html"))
