"""The conformance tests catch checks that do what none may do."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import cellseg as cs
from cellseg import diagnosis_testing
from cellseg.diagnosis_testing import DiagnosisTests
from cellseg.plugins import Plugins
from cellseg.specs import Finding

cellseg_otsu = pytest.importorskip("cellseg_otsu")


def _writes() -> Iterable[Finding]:
    Path("left.txt").touch()
    yield Finding("ok", "x", "y")


def _connects() -> Iterable[Finding]:
    socket.create_connection(("127.0.0.1", 9))
    yield Finding("ok", "x", "y")


def _raises() -> Iterable[Finding]:
    raise ZeroDivisionError


FAULTS: dict[str, Callable[[], Iterable[Any]]] = {
    "no finding": lambda: ["all is well"],
    "a state that there is not": lambda: [Finding("fine", "x", "y")],  # type: ignore[arg-type]
    "advice where all is well": lambda: [Finding("ok", "x", "y", "do something")],
    "a problem without advice": lambda: [Finding("problem", "x", "y")],
    "nothing said": lambda: [Finding("ok", "x", " ")],
    "a file": _writes,
    "the network": _connects,
    "an error": _raises,
}


def conformance(check: Any, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The test, with this check on the card of a predictor."""
    module: Any = ModuleType("checked")
    card = replace(next(iter(cellseg_otsu.cellseg_predictors())), name="checked", checks=check)
    module.cellseg_predictors = cs.hookimpl(lambda: [card])

    def made() -> Plugins:
        plugins = Plugins([])
        plugins.register(module, "checked")
        return plugins

    monkeypatch.setattr(diagnosis_testing, "Plugins", made)
    kit = DiagnosisTests()
    kit.backend = "checked"  # type: ignore[misc]
    kit.test_checks_are_findings_and_leave_nothing(folder, monkeypatch)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_caught(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((AssertionError, ZeroDivisionError)):
        conformance(FAULTS[name], monkeypatch, tmp_path)


def test_good_checks_pass_and_none_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [Finding("ok", "x", "y"), Finding("problem", "x", "y", "do")]
    conformance(lambda: good, monkeypatch, tmp_path)
    with pytest.raises(pytest.skip.Exception):
        conformance(None, monkeypatch, tmp_path)
