"""A new backend package passes its own tests at once."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cellseg.errors import DataError, UsageError
from cellseg.workflows.new_backend import files, new_backend

EXAMPLE = Path(__file__).parents[3] / "examples" / "cellseg-otsu"


def test_it_passes_its_own_tests(tmp_path) -> None:
    folder = new_backend("my-cells", tmp_path / "package")
    info = folder / "cellseg_my_cells-0.1.0.dist-info"  # as an installation would leave it
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: cellseg-my-cells\nVersion: 0.1.0\n"
    )
    points = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"]
    (name, module) = points["cellseg"].popitem()
    (info / "entry_points.txt").write_text(f"[cellseg]\n{name} = {module}\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(folder),
            "OMP_NUM_THREADS": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # of others, which take seconds to import
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "failed" not in done.stdout


@pytest.mark.skipif(not EXAMPLE.exists(), reason="the examples are not part of a wheel")
def test_it_is_the_example_under_another_name() -> None:
    made = files("otsu")
    for ours, theirs in (
        (made["cellseg_otsu.py"], EXAMPLE / "cellseg_otsu.py"),
        (made["tests/test_otsu_conformance.py"], EXAMPLE / "tests" / "test_otsu_conformance.py"),
    ):
        assert _parts(ours) == _parts(theirs.read_text(encoding="utf-8"))


def _parts(code: str) -> tuple[set[str], list[str]]:
    """Imports in any order, and the rest, whatever the line breaks."""
    tree = ast.parse(code)
    imports = {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)}
    rest = ast.unparse(tree).splitlines()
    return imports, [line for line in rest if line.strip() and line.strip() not in imports]


@pytest.mark.parametrize("name", ["a", "vista3d", "my-own-cells"])
def test_all_files_are_sound(name: str) -> None:
    made = files(name)
    assert {path.split(".")[-1] for path in made} == {"toml", "md", "py"}
    for path, text in made.items():
        assert "$" not in text and all(len(line) <= 110 for line in text.splitlines()), path
        if path.endswith(".py"):
            ast.parse(text)
    project = tomllib.loads(made["pyproject.toml"])["project"]
    assert project["name"] == f"cellseg-{name}" and name in project["entry-points"]["cellseg"]


@pytest.mark.parametrize("name", ["", "Mine", "1st", "a_b", "a/b", "-a", "a--b", "a b"])
def test_names_that_users_could_not_type_are_refused(name: str, tmp_path) -> None:
    with pytest.raises(UsageError, match="no name for a backend"):
        new_backend(name, tmp_path / "package")
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path) -> None:
    (tmp_path / "package").mkdir()
    with pytest.raises(DataError, match="exists"):
        new_backend("mine", tmp_path / "package")
    assert not list((tmp_path / "package").iterdir())


def test_the_folder_is_named_after_the_package(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert new_backend("mine") == Path("cellseg-mine")
    assert (tmp_path / "cellseg-mine" / "README.md").exists()
