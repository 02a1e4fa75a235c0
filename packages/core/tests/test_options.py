from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field

from cellseg.errors import ConfigError
from cellseg.options import Options, parse, read_config, refuse_unknown


class Optimiser(Options):
    panels: ClassVar = {"Optimiser": ("learning_rate",)}

    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate."""


class Mine(Optimiser):
    panels: ClassVar = {"Network": ("depth",)}

    depth: int = 3
    """Levels."""


def test_help_text_stands_under_the_field() -> None:
    assert Mine.model_fields["learning_rate"].description == "Peak learning rate."


def test_panels_are_inherited() -> None:
    assert Mine.panel_of("learning_rate") == "Optimiser"
    assert Mine.panel_of("depth") == "Network"


def test_an_unknown_option_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"a.yaml: unknown option 'lerning_rate'") as error:
        parse(Mine, {"lerning_rate": 1}, "a.yaml")
    assert error.value.hint == "Did you mean 'learning_rate'?"


def test_known_options_are_listed_once() -> None:
    with pytest.raises(ConfigError) as error:
        refuse_unknown(["zzz"], ["epochs", "seed", "epochs"])
    assert error.value.hint == "Known: epochs, seed."


def test_a_bad_value_names_the_flag() -> None:
    with pytest.raises(ConfigError, match=r"--learning-rate: .*greater than 0 \(got -1\)"):
        parse(Mine, {"learning_rate": -1})


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not valid YAML"), ("- a\n- b", "one 'option: value' a line"), ("1: 2", "a line")],
)
def test_a_config_file_is_a_flat_mapping(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_config(file)
    assert str(file) in str(error.value)


def test_yaml_tags_run_no_code(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"a: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']")
    with pytest.raises(ConfigError):
        read_config(file)
    assert not (tmp_path / "made").exists()


def test_a_missing_config_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "none.yaml")
