"""The diagnosis of a computer, and the list of backends."""

from __future__ import annotations

import shutil
from importlib.metadata import EntryPoint, PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from cellseg.errors import PluginError, UnknownPluginError
from cellseg.plugins import Plugins
from cellseg.workflows import doctor
from cellseg.workflows.doctor import diagnose, installed_backend, installed_backends

BROKEN = EntryPoint("broken", "a_module_that_is_not_there", "cellseg")
OTSU = EntryPoint("otsu", "cellseg_otsu", "cellseg")


def named(diagnosis: doctor.Diagnosis, what: str) -> doctor.Finding:
    (found,) = [finding for finding in diagnosis.findings if finding.what == what]
    return found


def test_a_sound_computer(tmp_path) -> None:
    pytest.importorskip("cellseg_otsu")
    found = diagnose(Plugins([OTSU]), tmp_path)
    assert found.ok, [f for f in found.findings if f.state == "problem"]
    assert named(found, "Backend otsu").state == "ok"
    assert named(found, "Python").value[0].isdigit()
    assert named(found, "Working directory").value.startswith(str(tmp_path))
    assert found.to_dict()["ok"] is True
    assert len(found.lines()) >= len(found.findings)


def test_a_broken_backend_is_a_problem_with_advice(tmp_path) -> None:
    found = diagnose(Plugins([BROKEN]), tmp_path)
    problem = named(found, "Backend broken")
    assert not found.ok and problem.state == "problem"
    assert "a_module_that_is_not_there" in problem.value and "uv pip install" in problem.advice
    assert any(line.startswith("PROBLEM") for line in found.lines())
    assert any(line.strip() == problem.advice for line in found.lines())


def test_two_backends_of_one_name_are_a_problem(tmp_path, monkeypatch) -> None:
    def clash() -> Plugins:
        return Plugins([OTSU, EntryPoint("otsu", "other", "cellseg")])

    monkeypatch.setattr(doctor, "Plugins", clash)
    found = diagnose(directory=tmp_path)
    assert named(found, "Backends").state == "problem"
    assert "Two packages" in named(found, "Backends").value


def test_no_backend_is_a_warning(tmp_path) -> None:
    found = diagnose(Plugins([]), tmp_path)
    assert found.ok and named(found, "Backends").state == "warning"


def test_a_directory_that_is_not_there_is_a_problem(tmp_path) -> None:
    found = diagnose(Plugins([]), tmp_path / "gone")
    assert named(found, "Working directory").state == "problem"


def test_little_memory_and_little_disk_are_warnings(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "_memory", lambda: 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    found = diagnose(Plugins([]), tmp_path)
    assert found.ok
    assert named(found, "Memory").state == named(found, "Working directory").state == "warning"


def test_a_missing_package_is_a_problem_but_torch_is_optional(tmp_path, monkeypatch) -> None:
    def version(name: str) -> str:
        if name in ("torch", "lightning", "tifffile"):
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    found = diagnose(Plugins([]), tmp_path)
    assert named(found, "tifffile").state == "problem"
    assert named(found, "torch").state == "ok"


def test_the_list_has_broken_ones_too() -> None:
    pytest.importorskip("cellseg_otsu")
    broken, otsu = installed_backends(Plugins([BROKEN, OTSU]))
    assert broken.error is not None and broken.trainer is None and broken.tasks == ()
    assert otsu.error is None and otsu.tasks == ("2d",) and otsu.summary
    assert otsu.to_dict()["trains"] is True and broken.to_dict()["broken"]


def test_one_backend_by_name() -> None:
    pytest.importorskip("cellseg_otsu")
    plugins = Plugins([BROKEN, OTSU])
    assert installed_backend(plugins, "otsu").name == "otsu"
    with pytest.raises(PluginError, match="cannot be imported"):
        installed_backend(plugins, "broken")
    with pytest.raises(UnknownPluginError, match="ostu") as error:
        installed_backend(plugins, "ostu")
    assert error.value.hint == "Did you mean 'otsu'?"


def test_the_module_is_light() -> None:
    import subprocess
    import sys

    code = "import sys, cellseg.workflows.doctor\nsys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_memory_and_processors_are_measured() -> None:
    memory = doctor._memory()
    assert memory is None or memory > 2**27
    assert doctor._processors() >= 1
    assert Path.cwd().exists()
