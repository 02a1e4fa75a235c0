"""Config files: complete, readable, and what the defaults say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cellseg.errors import DataError, StorageError, UnknownPluginError
from cellseg.hookspecs import hookimpl
from cellseg.options import Options, parse, read_config
from cellseg.plugins import Plugins
from cellseg.specs import TrainerSpec
from cellseg.workflows.init import config_text, init
from cellseg.workflows.train_settings import TrainSettings


class TrickyOptions(Options):
    """Values that YAML could misread."""

    panels = {"First": ("colon", "many")}  # noqa: RUF012

    colon: str = "a: b # c"
    """Text with marks of YAML."""
    yes: str = "yes"
    """Not a switch."""
    small: float = 1e-5
    """A small number."""
    nothing: int | None = None
    """Not given."""
    many: tuple[int, ...] = (1, 2, 3)
    """A list."""
    empty: tuple[str, ...] = ()
    """An empty list."""
    path: Path = Path("a b")
    """A path."""
    long: int = 1
    """A help text that is so long that it takes more than one line of the file, which is why it is
    wrapped, with `backquotes` and ``code``."""


class Tricky:
    """A plugin."""

    @hookimpl
    def cellseg_trainers(self):
        yield TrainerSpec(name="tricky", summary="Tricky", options=TrickyOptions, train=_train)


def _train(job, emit): ...


@pytest.fixture
def plugins() -> Plugins:
    plugins = Plugins([])
    plugins.register(Tricky(), "tricky")
    return plugins


def test_the_file_reads_back_as_the_defaults(plugins, tmp_path) -> None:
    values = read_config(init(plugins, "tricky", tmp_path / "c.yaml"))
    assert values.pop("backend") == "tricky"
    mine = {name: values.pop(name) for name in TrickyOptions.model_fields}
    assert parse(TrickyOptions, mine) == TrickyOptions()
    assert parse(TrainSettings, values) == TrainSettings()


def test_every_option_has_its_help_above_it(plugins) -> None:
    lines = config_text(plugins, "tricky").splitlines()
    for model in (TrainSettings, TrickyOptions):
        for name in model.model_fields:
            (at,) = [
                i for i, line in enumerate(lines) if line.replace("'", "").startswith(f"{name}:")
            ]
            assert lines[at - 1].startswith("# "), name


def test_lines_are_short_and_panels_are_headings(plugins) -> None:
    text = config_text(plugins, "tricky")
    assert all(len(line) <= 100 for line in text.splitlines())
    assert "# --- First ---" in text and "# --- Backend tricky ---" in text


def test_each_option_is_one_line_of_flat_yaml(plugins) -> None:
    values = yaml.safe_load(config_text(plugins, "tricky"))
    assert values["many"] == [1, 2, 3] and values["colon"] == "a: b # c"


def test_an_existing_file_is_kept(plugins, tmp_path) -> None:
    target = tmp_path / "c.yaml"
    target.write_text("mine")
    with pytest.raises(DataError, match=r"c\.yaml exists"):
        init(plugins, "tricky", target)
    assert target.read_text() == "mine"
    init(plugins, "tricky", target, overwrite=True)
    assert target.read_text() != "mine"


def test_an_unknown_backend_writes_nothing(plugins, tmp_path) -> None:
    with pytest.raises(UnknownPluginError):
        init(plugins, "trikcy", tmp_path / "c.yaml")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(plugins, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((StorageError, OSError)):
        init(plugins, "tricky", tmp_path / "file" / "c.yaml")
