"""Presets: named sets of options of a backend, from the command line, a config file and Python."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from cellseg.errors import ConfigError
from cellseg.options import parse, read_config
from cellseg.plugins import Plugins
from cellseg.specs import TrainerSpec
from cellseg.workflows.presets import options_of_reader, preset_options, with_preset
from cellseg.workflows.train import train
from cellseg.workflows.train_settings import TrainSettings
from cellseg_cli.docs import filled

PRESETS = '''
import cellseg as cs


class FormerOptions(cs.Options):
    size: int = 1
    """A number."""
    widths: tuple[float, ...] = ()
    """Numbers."""
    precise: bool = False
    """A switch."""

    @cs.options.model_validator(mode="after")
    def _fits(self):
        if self.precise and self.size > 50:
            raise ValueError("--precise and --size above 50 exclude each other")
        return self


def train(job, emit):
    emit(cs.Progress(1, 1, {}))
    (job.model / "weights").write_text("1")
    return cs.Trained()


@cs.hookimpl
def cellseg_trainers():
    presets = {
        "small": {"reader": "folder", "images": "images", "epochs": 7, "size": 5,
                  "widths": (0.5, 2.0), "precise": True},
        "large": {"epochs": 9, "size": 90},
        "cut": {"size": 4, "split": "blocks", "split_axis": "x", "val_gap": 0},
    }
    yield cs.TrainerSpec(name="former", summary="Has presets", options=FormerOptions, train=train,
                         presets=presets)
    wrong = {"wrong": {"sise": 3}}
    yield cs.TrainerSpec(name="former-wrong", summary="Has a wrong one", options=FormerOptions,
                         train=train, presets=wrong)
'''.replace("cs.options.model_validator", "model_validator").replace(
    "import cellseg as cs\n", "from pydantic import model_validator\n\nimport cellseg as cs\n"
)


@pytest.fixture(autouse=True)
def former(tmp_path, monkeypatch, install) -> None:
    text = PRESETS
    monkeypatch.syspath_prepend(install(tmp_path / "former", "former", "former_backend", text))


def kept(run: Path) -> dict[str, object]:
    return dict(yaml.safe_load((run / "config.yaml").read_text()))


def test_flags_win_over_the_file_and_the_file_over_the_preset(cellseg, data, tmp_path) -> None:
    config, out = tmp_path / "c.yaml", tmp_path / "run"
    config.write_text("backend: former\nsize: 8\nepochs: 3\n")
    line = ("train", data, "-o", out, "--config", config, "--preset", "small", "--epochs", 2)
    done = cellseg(*line)
    assert done.code == 0, done.err
    values = kept(out)
    assert (values["epochs"], values["size"], values["widths"]) == (2, 8, [0.5, 2.0])
    assert values["precise"] is True and values["reader"] == "folder"
    assert "preset" not in values, "the resolved options say it all"
    assert cellseg("train", data, "-o", tmp_path / "b", "--config", out / "config.yaml").code == 0
    assert kept(tmp_path / "b") == values


def test_a_config_file_may_name_the_preset(cellseg, data, tmp_path) -> None:
    config, out = tmp_path / "c.yaml", tmp_path / "run"
    config.write_text("backend: former\npreset: large\n")
    assert cellseg("train", data, "-o", out, "--config", config).code == 0
    assert kept(out)["size"] == 90 and kept(out)["epochs"] == 9
    assert cellseg("check-data", data, "--config", config).code == 3, "backend is no key of it"
    config.write_text("preset: large\n")
    assert cellseg("check-data", data, "--config", config).code in (0, 4)


def test_another_reader_takes_the_place_of_that_of_the_preset(cellseg, data, tmp_path) -> None:
    out = tmp_path / "run"
    line = ("train", data, "-o", out, "--backend", "former", "--preset", "small")
    assert cellseg(*line, "--reader", "auto").code == 0
    plugins = Plugins()
    former = plugins.get(TrainerSpec, "former")
    assert "images" not in preset_options(plugins, former, "small", {"reader": "ome-zarr"})
    assert preset_options(plugins, former, "small", {"reader": "ome-zarr"})["size"] == 5


def test_another_way_to_validate_takes_the_place_of_that_of_the_preset(
    cellseg, data, tmp_path
) -> None:
    line = ("train", data, "--backend", "former", "--preset", "cut", "-o")
    assert cellseg(*line, tmp_path / "a").code == 0
    assert kept(tmp_path / "a")["split"] == "blocks" and kept(tmp_path / "a")["val_gap"] == 0
    shutil.copytree(data, tmp_path / "other")
    for number, words in enumerate(
        [
            ("--split", "full"),
            ("--splits", tmp_path / "a" / "splits.json"),
            ("--val", tmp_path / "other"),
        ]
    ):
        run = tmp_path / str(number)
        done = cellseg(*line, run, *words)
        assert done.code == 0, done.err
        assert kept(run)["size"] == 4 and kept(run)["split_axis"] == "auto"
    assert cellseg(*line, tmp_path / "b", "--split", "blocks").code == 0
    assert kept(tmp_path / "b")["split_axis"] == "x", "the same choice changes nothing"


@pytest.mark.parametrize(
    ("backend", "preset", "said"),
    [
        ("former", "smal", ["Did you mean 'small'?", "small, large"]),
        ("former", "zzz", ["small, large"]),
        ("otsu", "small", ["has no presets"]),
    ],
)
def test_a_preset_that_is_not_there_is_an_error(
    cellseg, data, tmp_path, backend, preset, said
) -> None:
    line = ("train", data, "-o", tmp_path / "run", "--backend", backend, "--preset", preset)
    done = cellseg(*line)
    assert done.code == 3
    assert all(words in done.err for words in said), done.err
    assert not (tmp_path / "run").exists()


def test_a_preset_with_an_option_that_nobody_has_is_a_broken_plugin(
    cellseg, data, tmp_path
) -> None:
    line = ("train", data, "-o", tmp_path / "run", "--backend", "former-wrong")
    done = cellseg(*line, "--preset", "wrong")
    assert done.code == 5 and "'sise'" in done.err
    assert cellseg(*line).code == 0


def test_a_flag_that_the_preset_forbids_is_blamed_on_both(cellseg, data, tmp_path) -> None:
    line = ("train", data, "-o", tmp_path / "run", "--backend", "former", "--preset", "small")
    done = cellseg(*line, "--size", 60)
    assert done.code == 3
    assert "together with the preset" in done.err and "exclude each other" in done.err


def test_help_shows_the_names_and_the_values(cellseg) -> None:
    page = cellseg("train", "--backend", "former", "--help").out
    assert "--preset" in page and "small, large" in " ".join(page.replace("│", " ").split())
    page = cellseg("train", "--backend", "former", "--preset", "large", "--help").out
    assert "90" in page, "the values of the preset stand for the defaults"
    assert "--preset" not in cellseg("train", "--backend", "otsu", "--help").out


def test_info_and_the_documentation_list_them(cellseg) -> None:
    page = cellseg("backends", "info", "former").out
    assert "large  epochs: 9, size: 90" in " ".join(page.split("\n")).replace("   ", " ")
    assert cellseg("backends", "info", "former", "--json").json["presets"]["large"]["size"] == 90
    text = filled("<!-- options of former -->\n<!-- end of options -->\n", Plugins())
    assert "| `large` | `epochs: 9`, `size: 90` |" in text
    assert "`widths: [0.5, 2.0]`" in text


def test_init_writes_the_values_of_a_preset(cellseg, data, tmp_path) -> None:
    config = tmp_path / "c.yaml"
    assert cellseg("init", "--backend", "former", "--preset", "small", "-o", config).code == 0
    values = read_config(config)
    assert values["size"] == 5 and values["widths"] == [0.5, 2.0] and values["images"] == "images"
    cellseg("train", data, "-o", tmp_path / "a", "--config", config)
    cellseg("train", data, "-o", tmp_path / "b", "--backend", "former", "--preset", "small")
    assert kept(tmp_path / "a") == kept(tmp_path / "b")


def test_python_takes_a_preset_with_changes(data, tmp_path) -> None:
    plugins = Plugins()
    given = with_preset(plugins, "former", "small", epochs=2, size=6)
    train(plugins, "former", data, tmp_path / "run", **given)
    values = kept(tmp_path / "run")
    assert (values["epochs"], values["size"], values["widths"]) == (2, 6, [0.5, 2.0])
    with pytest.raises(ConfigError, match="no preset"):
        with_preset(plugins, "former", "tiny")


INSTALLED = [
    (name, preset)
    for name, spec in sorted(Plugins().all(TrainerSpec).items())
    for preset in spec.presets
]


@pytest.mark.parametrize(("backend", "preset"), INSTALLED)
def test_every_installed_preset_is_valid(backend: str, preset: str) -> None:
    plugins = Plugins()
    spec = plugins.get(TrainerSpec, backend)
    values = preset_options(plugins, spec, preset)
    reader = options_of_reader(plugins, str(values.get("reader", "auto")))
    for model in (TrainSettings, spec.options, reader):
        parse(model, {n: v for n, v in values.items() if n in model.model_fields})
