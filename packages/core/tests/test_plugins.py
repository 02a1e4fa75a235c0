from __future__ import annotations

import subprocess
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import cellseg as cs
from cellseg.errors import PluginError, UnknownPluginError
from cellseg.plugins import Plugins


def module(**hooks: object) -> types.ModuleType:
    made = types.ModuleType("made_for_a_test")
    for name, function in hooks.items():
        setattr(made, name, cs.hookimpl(function))
    return made


def trainer(name: str = "mine") -> cs.TrainerSpec[cs.NoOptions]:
    return cs.TrainerSpec(name=name, summary="A test", train=lambda job, emit: cs.Trained())


@pytest.fixture
def plugins() -> Plugins:
    return Plugins(installed=[])


def test_a_registered_card_is_found(plugins: Plugins) -> None:
    plugins.register(module(cellseg_trainers=lambda: [trainer()]), "mine")
    assert plugins.get(cs.TrainerSpec, "mine").summary == "A test"


def test_an_unknown_name_is_an_error_with_the_nearest_one(plugins: Plugins) -> None:
    plugins.register(module(cellseg_trainers=lambda: [trainer("otsu")]), "otsu")
    with pytest.raises(UnknownPluginError, match="No trainer called 'otzu'") as error:
        plugins.get(cs.TrainerSpec, "otzu")
    assert error.value.hint == "Did you mean 'otsu'?"


def test_a_misspelt_hook_is_an_error_that_names_the_right_one(plugins: Plugins) -> None:
    with pytest.raises(PluginError, match="did you mean 'cellseg_trainers'"):
        plugins.register(module(cellseg_trainer=lambda: [trainer()]), "mine")


def test_a_wrong_card_is_an_error_that_names_the_plugin(plugins: Plugins) -> None:
    with pytest.raises(PluginError, match=r"'mine': cellseg_predictors\(\) yields TrainerSpec"):
        plugins.register(module(cellseg_predictors=lambda: [trainer()]), "mine")


def test_a_hook_that_yields_nothing_iterable_is_an_error(plugins: Plugins) -> None:
    with pytest.raises(PluginError, match="must yield cards"):
        plugins.register(module(cellseg_trainers=lambda: None), "mine")


def test_a_card_with_a_bad_name_is_an_error(plugins: Plugins) -> None:
    with pytest.raises(PluginError, match="'My Model' is no name"):
        plugins.register(module(cellseg_trainers=lambda: [trainer("My Model")]), "mine")


def test_options_must_be_options(plugins: Plugins) -> None:
    card = cs.TrainerSpec(name="mine", summary="", options=dict, train=lambda job, emit: None)  # type: ignore
    with pytest.raises(PluginError, match=r"subclass of cellseg\.Options"):
        plugins.register(module(cellseg_trainers=lambda: [card]), "mine")


def test_a_module_without_hooks_is_an_error(plugins: Plugins) -> None:
    with pytest.raises(PluginError, match="implements no hook"):
        plugins.register(module(), "mine")


def test_two_cards_of_one_name_are_an_error_and_the_first_stays(plugins: Plugins) -> None:
    plugins.register(module(cellseg_trainers=lambda: [trainer()]), "one")
    with pytest.raises(PluginError, match="Two plugins offer a trainer called 'mine'"):
        plugins.register(module(cellseg_trainers=lambda: [trainer()]), "two")
    assert plugins.get(cs.TrainerSpec, "mine")


def test_two_packages_with_one_name_are_an_error_that_names_both() -> None:
    points = [EntryPoint("mine", value, "cellseg") for value in ("package_a.x", "package_b.y")]
    with pytest.raises(PluginError, match=r"'mine'.*package_a\.x.*package_b\.y"):
        Plugins(installed=points)


def test_a_broken_plugin_harms_nobody_else() -> None:
    points = [
        EntryPoint("broken", "no_such_module_anywhere", "cellseg"),
        EntryPoint("otsu", "cellseg_otsu", "cellseg"),
    ]
    plugins = Plugins(installed=points)
    assert plugins.names() == ["broken", "otsu"]
    assert "otsu" in plugins.all(cs.TrainerSpec)
    assert "no_such_module_anywhere" in str(plugins.broken["broken"])
    with pytest.raises(PluginError, match="installed but cannot be imported"):
        plugins.get(cs.TrainerSpec, "broken")


def test_only_the_plugin_asked_for_is_imported(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text("raise SystemExit('imported')")
    code = (
        "from importlib.metadata import EntryPoint as E\nfrom cellseg.plugins import Plugins\n"
        "import cellseg as cs\n"
        "p = Plugins([E('loud', 'loud', 'cellseg'), E('otsu', 'cellseg_otsu', 'cellseg')])\n"
        "p.get(cs.TrainerSpec, 'otsu')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_one_module_may_serve_two_names(plugins: Plugins) -> None:
    both = module(cellseg_trainers=lambda: [trainer("mine2d"), trainer("mine3d")])
    plugins.register(both, "mine2d")
    plugins.register(both, "mine3d")
    assert plugins.get(cs.TrainerSpec, "mine3d").name == "mine3d"


def test_an_exporter_belongs_to_its_backend(plugins: Plugins) -> None:
    def card(backend: str | None, summary: str) -> cs.ExporterSpec[cs.NoOptions]:
        return cs.ExporterSpec(
            name="onnx", summary=summary, backend=backend, export=lambda job, emit: job.target
        )

    offered = [card(None, "all"), card("mine", "own")]
    plugins.register(module(cellseg_exporters=lambda: offered), "mine")
    assert plugins.exporter("mine", "onnx").summary == "own"
    assert plugins.exporter("other", "onnx").summary == "all"
    with pytest.raises(UnknownPluginError, match="No exporter 'onxn' for mine models") as error:
        plugins.exporter("mine", "onxn")
    assert error.value.hint == "Did you mean 'onnx'?"
