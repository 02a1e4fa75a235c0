"""The list of installed backends."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from cellseg.errors import PluginError, UnknownPluginError
from cellseg.plugins import Plugins
from cellseg.workflows.installed import installed_backend, installed_backends

BROKEN = EntryPoint("broken", "a_module_that_is_not_there", "cellseg")
OTSU = EntryPoint("otsu", "cellseg_otsu", "cellseg")


def test_the_list_has_broken_ones_too() -> None:
    pytest.importorskip("cellseg_otsu")
    broken, otsu = installed_backends(Plugins([BROKEN, OTSU]))
    assert broken.error is not None and broken.trainer is None and broken.tasks == ()
    assert otsu.error is None and otsu.tasks == ("2d",) and otsu.summary
    assert otsu.to_dict()["trains"] is True and broken.to_dict()["broken"]
    assert [card.noun for card in otsu.cards][:2] == ["trainer", "predictor"]


def test_one_backend_by_name() -> None:
    pytest.importorskip("cellseg_otsu")
    plugins = Plugins([BROKEN, OTSU])
    assert installed_backend(plugins, "otsu").name == "otsu"
    with pytest.raises(PluginError, match="cannot be imported"):
        installed_backend(plugins, "broken")
    with pytest.raises(UnknownPluginError, match="ostu") as error:
        installed_backend(plugins, "ostu")
    assert error.value.hint == "Did you mean 'otsu'?"
