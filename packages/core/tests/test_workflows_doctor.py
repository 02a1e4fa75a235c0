"""The diagnosis of a computer as a whole, and what plugins say to it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import cellseg as cs
from cellseg.errors import UnknownPluginError
from cellseg.plugins import Plugins
from cellseg.specs import Finding
from cellseg.workflows import doctor
from cellseg.workflows.doctor import diagnose

BROKEN = EntryPoint("broken", "a_module_that_is_not_there", "cellseg")
OTSU = EntryPoint("otsu", "cellseg_otsu", "cellseg")


def named(diagnosis: doctor.Diagnosis, what: str) -> Finding:
    (found,) = [finding for finding in diagnosis.findings if finding.what == what]
    return found


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[doctor.Diagnosis]:
    """This computer with one backend, found without a network and without leaving files."""
    pytest.importorskip("cellseg_otsu")
    folder = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", lambda *args: pytest.fail("uses the network"))
        yield diagnose(Plugins([OTSU]), folder, output=folder / "not" / "yet")
    assert not list(folder.iterdir())


def test_a_sound_computer(here: doctor.Diagnosis) -> None:
    assert here.ok, [f for f in here.findings if f.state == "problem"]
    assert named(here, "Backend otsu").state == "ok"
    assert named(here, "otsu: scikit-image").state == "ok"
    assert named(here, "Python").value[0].isdigit()
    folder = named(here, "Working directory").value
    assert "GiB free" in folder and named(here, "Output").value.split(":")[0] in folder


def test_findings_stand_under_headings(here: doctor.Diagnosis) -> None:
    lines = here.lines()
    headings = [line for line in lines if line and not line.startswith(" ")]
    assert headings[:4] == ["System", "Packages", "Devices", "Storage"]
    assert headings.index("Weights") < headings.index("Backends") == len(headings) - 2
    assert max(map(len, lines)) <= doctor.WIDTH
    told = here.to_dict()
    assert told["ok"] is True
    first: dict[str, str] = told["findings"][0]  # type: ignore[index]
    assert first["heading"] == "System" and first["what"] == "Python" and first["advice"] == ""


def test_what_is_wrong_is_said_again_at_the_end_with_what_to_do() -> None:
    found = doctor.Diagnosis(
        (
            doctor.Section("A", (Finding("warning", "w", "little " * 30, "buy more"),)),
            doctor.Section("B", (Finding("ok", "o", "fine"), Finding("problem", "p", "bad", "do"))),
        )
    )
    lines = found.lines()
    end = lines[lines.index("1 problem, 1 warning:") :]
    assert end[1:3] == ["  PROBLEM  p: bad", "           -> do"]
    assert end[3].startswith("  warning  w: little") and end[-1] == "           -> buy more"
    assert not found.ok and sum("bad" in line for line in lines) == 2
    assert doctor.Diagnosis(found.sections[:1]).ok
    assert doctor.Diagnosis(found.sections[:1]).lines().count("No problem, 1 warning:") == 1
    assert doctor.Diagnosis(()).lines() == ["All is well."]


@pytest.fixture
def without_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the backends are looked at."""
    for name in ("system", "packages", "devices", "storage", "cluster"):
        monkeypatch.setattr(doctor, name, lambda *args: ())


@pytest.mark.usefixtures("without_the_rest")
def test_a_broken_backend_is_a_problem_with_advice(tmp_path: Path) -> None:
    found = diagnose(Plugins([BROKEN]), tmp_path)
    problem = named(found, "Backend broken")
    assert not found.ok and problem.state == "problem"
    assert "a_module_that_is_not_there" in problem.value and "uv pip install" in problem.advice


@pytest.mark.usefixtures("without_the_rest")
def test_two_backends_of_one_name_are_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clash() -> Plugins:
        return Plugins([OTSU, EntryPoint("otsu", "other", "cellseg")])

    monkeypatch.setattr(doctor, "Plugins", clash)
    found = diagnose(directory=tmp_path)
    assert named(found, "Backends").state == "problem"
    assert "Two packages" in named(found, "Backends").value


@pytest.mark.usefixtures("without_the_rest")
def test_no_backend_is_a_warning(tmp_path: Path) -> None:
    found = diagnose(Plugins([]), tmp_path)
    assert found.ok and named(found, "Backends").state == "warning"


def plugins_with(*checks: Any) -> Plugins:
    """The installed otsu, and backends a, b, ... with these checks."""
    pytest.importorskip("cellseg_otsu")
    import cellseg_otsu

    plugins = Plugins([OTSU])
    card = next(iter(cellseg_otsu.cellseg_predictors()))
    for name, check in zip("abc", checks, strict=False):
        module: Any = ModuleType(name)
        cards = [replace(card, name=name, checks=check)]
        module.cellseg_predictors = cs.hookimpl(lambda cards=cards: cards)
        plugins.register(module, name)
    return plugins


@pytest.mark.usefixtures("without_the_rest")
def test_a_check_that_fails_is_a_problem_and_what_it_said_before_stays(tmp_path: Path) -> None:
    def check() -> Iterator[Finding]:
        yield Finding("ok", "first", "fine")
        raise ZeroDivisionError("oh")

    found = diagnose(plugins_with(check), tmp_path)
    assert named(found, "a: first").state == "ok"
    problem = named(found, "a: checks")
    assert problem.state == "problem" and "failed: ZeroDivisionError: oh" in problem.value
    assert named(found, "Backend otsu").state == "ok", "others are looked at nevertheless"


@pytest.mark.usefixtures("without_the_rest")
def test_checks_of_two_backends_are_done_once(tmp_path: Path) -> None:
    calls = []

    def check() -> list[Finding]:
        calls.append(1)
        return [Finding("ok", "x", "y")]

    found = diagnose(plugins_with(check, check), tmp_path)
    assert len(calls) == 1
    assert named(found, "b: checks").value == "those of a"


@pytest.mark.usefixtures("without_the_rest")
def test_one_backend_alone(tmp_path: Path) -> None:
    plugins = plugins_with(lambda: [Finding("problem", "x", "y", "z")])
    assert diagnose(plugins, tmp_path, backend="otsu").ok
    assert not diagnose(plugins, tmp_path, backend="a").ok
    with pytest.raises(UnknownPluginError, match="ostu"):
        diagnose(plugins, tmp_path, backend="ostu")
