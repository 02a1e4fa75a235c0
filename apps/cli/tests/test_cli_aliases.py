"""Other names of options, that a backend has for users of other tools."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cellseg.errors import ConfigError, PluginError
from cellseg.options import read_config
from cellseg.plugins import KINDS, Plugins
from cellseg.specs import TrainerSpec
from cellseg.workflows.aliases import check_aliases
from cellseg.workflows.presets import with_preset
from cellseg.workflows.train import train
from cellseg.workflows.train_settings import TrainSettings
from cellseg_cli.docs import filled

BACKEND = '''
import cellseg as cs


class LatterOptions(cs.Options):
    size: int = 1
    """A number."""
    precise: bool = False
    """A switch."""
    words: tuple[str, ...] = ()
    """Words."""


def train(job, emit):
    emit(cs.Progress(1, 1, {}))
    (job.model / "weights").write_text("1")
    return cs.Trained()


ALIASES = {"old_size": "size", "older": "size", "exact": "precise", "terms": "words",
           "n_epochs": "epochs", "images_dir": "images", "how": "reader", "raw_path": "raw_key"}


class FindOptions(cs.Options):
    radius: int = 3
    """A number."""


class PackOptions(cs.Options):
    level: int = 3
    """A number."""


def load(job):
    import numpy as np

    def find(tiles):
        labels = np.zeros(tiles[0].image.shape[1:], np.uint32)
        labels[:, : job.options.radius, 0] = 1
        return [cs.Segmentation(labels) for _ in tiles]

    return find


def export(job, emit):
    job.target.write_text(str(job.options.level))
    return job.target


@cs.hookimpl
def cellseg_predictors():
    yield cs.PredictorSpec(name="latter", summary="Finds", options=FindOptions, load=load,
                           aliases={"size_of_it": "radius"})


@cs.hookimpl
def cellseg_exporters():
    yield cs.ExporterSpec(name="text", backend="latter", summary="Text", options=PackOptions,
                          export=export, aliases={"depth": "level"})


@cs.hookimpl
def cellseg_trainers():
    yield cs.TrainerSpec(name="latter", summary="Has aliases", options=LatterOptions, train=train,
                         aliases=ALIASES, presets={"cut": {"reader": "ome-zarr", "size": 4}})
    yield cs.TrainerSpec(name="latter-wrong", summary="Has a wrong one", options=LatterOptions,
                         train=train, aliases={"old_size": "sise"})
    yield cs.TrainerSpec(name="latter-taken", summary="Has one that is taken",
                         options=LatterOptions, train=train, aliases={"seed": "size"})
'''


@pytest.fixture(autouse=True)
def latter(tmp_path, monkeypatch, install) -> None:
    monkeypatch.syspath_prepend(install(tmp_path / "latter", "latter", "latter_backend", BACKEND))


def kept(run: Path) -> dict[str, object]:
    return dict(yaml.safe_load((run / "config.yaml").read_text()))


@pytest.mark.parametrize(
    ("words", "option", "value"),
    [
        (("--old-size", 5), "size", 5),
        (("--old_size", 5), "size", 5),
        (("--old_size=5",), "size", 5),
        (("--older", 5), "size", 5),
        (("--exact",), "precise", True),
        (("--no-exact",), "precise", False),
        (("--terms", "a,b", "--terms", "c"), "words", ["a", "b", "c"]),
        (("--n-epochs", 3), "epochs", 3),
        (("--images-dir", "images"), "images", "images"),
        (("--how", "folder"), "reader", "folder"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_an_alias_is_the_option_itself(
    cellseg, data, tmp_path, words, option, value, first
) -> None:
    out = tmp_path / "run"
    line = ("train", "--backend", "latter", *words, data) if first else ("train", data, *words)
    done = cellseg(*line, "-o", out, *(() if first else ("--backend", "latter")))
    assert done.code == 0, done.err
    assert kept(out)[option] == value
    assert not {"old_size", "older", "exact", "terms", "n_epochs"} & kept(out).keys()


def test_two_names_of_one_option_are_refused(cellseg, data, tmp_path) -> None:
    line = ("train", data, "-o", tmp_path / "run", "--backend", "latter")
    for words in (("--size", 5, "--old-size", 5), ("--older", 5, "--old-size", 6)):
        done = cellseg(*line, *words)
        assert done.code == 3 and "two names of one option" in done.err
        assert words[0] in done.err and words[2] in done.err
    config = tmp_path / "c.yaml"
    config.write_text("older: 4\nsize: 5\n")
    done = cellseg(*line, "--config", config)
    assert done.code == 3 and "c.yaml: older and size are two names" in done.err
    assert not (tmp_path / "run").exists()


def test_a_config_file_may_use_them_and_a_flag_wins(cellseg, data, tmp_path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("backend: latter\nolder: 4\nexact: true\nn_epochs: 2\nimages_dir: images\n")
    assert cellseg("train", data, "-o", tmp_path / "a", "--config", config).code == 0
    values = kept(tmp_path / "a")
    assert (values["size"], values["precise"], values["epochs"]) == (4, True, 2)
    line = ("train", data, "-o", tmp_path / "b", "--config", config)
    assert cellseg(*line, "--old-size", 7, "--epochs", 1).code == 0
    assert (kept(tmp_path / "b")["size"], kept(tmp_path / "b")["epochs"]) == (7, 1)


def test_a_typo_finds_the_nearest_alias(cellseg, data, tmp_path) -> None:
    line = ("train", data, "-o", tmp_path / "run", "--backend", "latter")
    done = cellseg(*line, "--old-siz", 5)
    assert done.code == 2 and "--old-size" in done.err
    config = tmp_path / "c.yaml"
    config.write_text("n_epoch: 4\n")
    done = cellseg(*line, "--config", config)
    assert done.code == 3 and "Did you mean 'n_epochs'?" in done.err


def test_one_of_a_reader_that_is_not_in_use_is_unknown(cellseg, data, tmp_path) -> None:
    line = ("train", data, "-o", tmp_path / "run", "--backend", "latter")
    assert cellseg(*line, "--raw-path", "raw").code == 2
    config = tmp_path / "c.yaml"
    config.write_text("raw_path: raw\n")
    done = cellseg(*line, "--config", config)
    assert done.code == 3 and "unknown option 'raw_path'" in done.err


def test_an_alias_of_the_reader_takes_the_place_of_that_of_the_preset(
    cellseg, data, tmp_path
) -> None:
    line = ("train", data, "-o", tmp_path / "run", "--backend", "latter", "--preset", "cut")
    done = cellseg(*line, "--how", "folder")
    assert done.code == 0, done.err
    assert kept(tmp_path / "run")["reader"] == "folder"


def test_help_info_documentation_and_config_files_say_them(cellseg, tmp_path) -> None:
    page = " ".join(cellseg("train", "--backend", "latter", "--help").out.split())
    assert "A number. (also --old-size, --older)" in page
    assert "--old_size" not in page
    assert "(also" not in cellseg("train", "--help").out
    page = " ".join(cellseg("backends", "info", "latter").out.split())
    assert "Other names that it knows: --old-size --size" in page
    assert cellseg("backends", "info", "latter", "--json").json["aliases"]["n_epochs"] == "epochs"
    text = filled("<!-- options of latter -->\n<!-- end of options -->\n", Plugins())
    assert "A number. (also --old-size, --older) |" in text
    assert "`--n-epochs` for `--epochs`" in text
    cellseg("init", "--backend", "latter", "-o", tmp_path / "c.yaml")
    assert "# A number. (also old_size, older)" in (tmp_path / "c.yaml").read_text()
    assert read_config(tmp_path / "c.yaml")["size"] == 1


def test_python_takes_them_among_the_options_of_the_backend(data, tmp_path) -> None:
    plugins = Plugins()
    options = {"older": 6, "n_epochs": 2, "images_dir": "images"}
    train(plugins, "latter", data, tmp_path / "a", options=options)
    values = kept(tmp_path / "a")
    assert (values["size"], values["epochs"], values["images"]) == (6, 2, "images")
    settings = TrainSettings(epochs=1)
    for again in ({"older": 6, "size": 6}, {"size": 6, "old_size": 6}, {"n_epochs": 2}):
        with pytest.raises(ConfigError, match="two names of one option"):
            train(plugins, "latter", data, tmp_path / "b", settings=settings, options=again)
    with pytest.raises(ConfigError, match="two names of one option"):
        read = {"images": "images"}
        train(plugins, "latter", data, tmp_path / "b", reader_options=read, options=options)
    with pytest.raises(ConfigError, match="--epochs"):
        train(plugins, "latter", data, tmp_path / "b", options={"n_epochs": -1})
    assert not (tmp_path / "b").exists()


def test_python_takes_them_beside_a_preset() -> None:
    given = with_preset(Plugins(), "latter", "cut", how="folder", n_epochs=3, older=8)
    assert given["settings"].reader == "folder" and given["settings"].epochs == 3
    assert given["options"] == {"size": 8}


def test_predicting_and_exporting_know_them(cellseg, data, tmp_path) -> None:
    run = tmp_path / "run"
    assert cellseg("train", data, "-o", run, "--backend", "latter", "--epochs", 1).code == 0
    line = ("predict", data / "images", "--model", run, "--format", "csv", "-o")
    done = cellseg(*line, tmp_path / "out", "--size-of-it", 7)
    assert done.code == 0, done.err
    assert ",7," in next((tmp_path / "out").glob("*.csv")).read_text().splitlines()[1]
    assert cellseg(*line, tmp_path / "no", "--size-of-it", 7, "--radius", 7).code == 3
    done = cellseg("export", run, "-o", tmp_path / "a.txt", "--format", "text", "--depth", 9)
    assert done.code == 0 and (tmp_path / "a.txt").read_text() == "9", done.err


def test_one_that_is_none_is_a_broken_plugin(cellseg, data, tmp_path) -> None:
    plugins = Plugins()
    check_aliases(plugins, plugins.get(TrainerSpec, "latter"))
    with pytest.raises(PluginError, match="calls 'sise' also 'old_size'"):
        check_aliases(plugins, plugins.get(TrainerSpec, "latter-wrong"))
    with pytest.raises(PluginError, match="'seed', which is an option itself"):
        check_aliases(plugins, plugins.get(TrainerSpec, "latter-taken"))
    line = ("train", data, "-o", tmp_path / "run", "--backend", "latter-taken")
    assert cellseg(*line).code == 5


CARDS = [
    pytest.param(kind, name, id=f"{kind.noun}-{name}")
    for kind in KINDS
    for name in sorted(card.name for card in Plugins().all(kind).values())
]


@pytest.mark.parametrize(("kind", "name"), CARDS)
def test_those_of_every_installed_plugin_are_of_options_that_exist(kind, name: str) -> None:
    plugins = Plugins()
    for card in plugins.all(kind).values():
        if card.name == name:
            check_aliases(plugins, card)
