"""Options as flags: how types are typed, and what a config file may say."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

from cellseg.errors import ConfigError, PluginError
from cellseg.options import Options
from cellseg_cli.arguments import Arguments
from cellseg_cli.console import Console
from cellseg_cli.flags import Command, Given, Group, in_order, with_flags


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Inherited(Options):
    seed: int = 0
    """A seed."""


class All(Inherited):
    """One option of each kind."""

    whole: int = Field(3, ge=1)
    """A whole number."""
    real: float | None = None
    """A real number."""
    switch: bool = True
    """A switch."""
    path: Path = Path("here")
    """A path."""
    choice: Literal["a", "b"] = "a"
    """A choice."""
    number: Literal[2, 3] = 2
    """A choice of numbers."""
    colour: Colour = Colour.RED
    """A choice of an enumeration."""
    pair: tuple[int, float] = (1, 2.0)
    """A fixed tuple."""
    many: tuple[int, ...] = ()
    """A list."""
    either: int | Literal["auto"] = "auto"
    """A number or a word."""


def parsed(*words: str, config: dict[str, object] | None = None) -> All:
    kept: list[All] = []

    def run(console: Console, given: Given) -> None:
        """Keep what was given."""
        kept.append(given.options(All))

    command = Command(run, [Group(All, "All")], Path("c.yaml") if config else None, config or {})
    app = typer.Typer()
    app.command()(with_flags(command))
    done = CliRunner().invoke(app, list(words))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return kept[0]


@pytest.mark.parametrize(
    "words, field, value",
    [
        (["--whole", "5"], "whole", 5),
        (["--real", "1e-4"], "real", 1e-4),
        (["--no-switch"], "switch", False),
        (["--path", "there"], "path", Path("there")),
        (["--choice", "b"], "choice", "b"),
        (["--number", "3"], "number", 3),
        (["--colour", "blue"], "colour", Colour.BLUE),
        (["--pair", "4,0.5"], "pair", (4, 0.5)),
        (["--many", "1, 2", "--many=3"], "many", (1, 2, 3)),
        (["--many", ""], "many", ()),
        (["--either", "auto"], "either", "auto"),
        (["--seed", "7"], "seed", 7),
    ],
)
def test_a_flag_sets_its_option_and_nothing_else(words, field, value) -> None:
    options = parsed(*words)
    assert getattr(options, field) == value
    assert options.model_fields_set == {field}


def test_what_is_not_typed_is_not_given() -> None:
    assert parsed() == All()
    assert parsed().model_fields_set == set()


def test_flags_win_over_the_config_file() -> None:
    options = parsed("--whole", "5", config={"whole": 4, "real": 0.5})
    assert (options.whole, options.real) == (5, 0.5)


def test_a_flag_equal_to_the_default_wins_too() -> None:
    assert parsed("--whole", "3", config={"whole": 4}).whole == 3


def test_an_unknown_key_names_the_file_and_the_nearest_key() -> None:
    with pytest.raises(ConfigError, match=r"c\.yaml: unknown option 'whoel'") as error:
        parsed(config={"whoel": 4})
    assert error.value.hint == "Did you mean 'whole'?"


def test_a_bad_value_blames_the_file_or_the_flag() -> None:
    with pytest.raises(ConfigError, match=r"^c\.yaml: --whole: .* \(got 0\)"):
        parsed(config={"whole": 0})
    with pytest.raises(ConfigError, match=r"^--whole: .* \(got -1\)"):
        parsed("--whole", "-1", config={"real": 2})


def test_two_classes_must_not_share_a_flag() -> None:
    def run() -> None: ...

    with pytest.raises(PluginError, match="All and Inherited both have an option --seed"):
        with_flags(Command(run, [Group(Inherited, "x"), Group(All, "y")]))


def test_a_class_must_not_take_a_flag_of_the_command() -> None:
    def run(seed: Annotated[int, typer.Option()] = 1) -> None: ...

    with pytest.raises(PluginError, match="cellseg itself"):
        with_flags(Command(run, [Group(Inherited, "x")]))


def test_own_options_come_before_inherited_ones() -> None:
    assert [name for name, _ in in_order(All)][-1] == "seed"


def test_positionals_are_found_among_flags() -> None:
    line = Arguments(
        ("--epochs", "3", "-o", "run", "data", "--unknown", "x", "--json", "more", "--", "--last")
    )
    assert line.positionals({"--epochs", "-o"}, {"--json"}) == ["data", "more", "--last"]


def test_the_last_of_several_values_counts() -> None:
    line = Arguments(("--backend", "a", "--backend=b", "data"))
    assert line.value("--backend") == "b"
    assert line.value("--config") is None


class Dependent(Options):
    learns: bool = True
    """A switch."""
    rate: float = 1.0
    """Means something only where it learns."""

    @classmethod
    def over(cls, stored: Mapping[str, object], given: Mapping[str, object]) -> dict[str, object]:
        left = {} if given.get("learns") is False else stored
        return super().over(left, given)


@pytest.mark.parametrize("where", ["typed", "configured"])
def test_options_of_a_preset_give_way_as_their_class_says(where: str) -> None:
    preset = {"rate": 2.0, "seed": 5}
    assert Given(**{where: {}}, preset=preset).values(Dependent) == {"rate": 2.0}
    given = Given(**{where: {"learns": False}}, preset=preset)
    assert given.values(Dependent) == {"learns": False}
    assert given.values(Inherited) == {"seed": 5}
