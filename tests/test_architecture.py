"""The rules that keep the architecture what it is."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellseg_cli.commands import COMMANDS

REPO = Path(__file__).parents[1]
CORE = REPO / "packages/core/src/cellseg"
HEAVY = {
    "numpy", "torch", "lightning", "zarr", "ngio", "dask", "pandas", "skimage", "scipy", "cv2",
    "matplotlib", "pyarrow", "h5py", "tifffile", "imagecodecs", "cc3d", "fastremap", "safetensors",
    "distributed", "dask_jobqueue", "submitit", "fsspec", "s3fs", "upath", "optuna",
}  # fmt: skip
LIGHT = ["errors", "events", "options", "data", "machine", "files", "locks", "specs", "hookspecs",
         "plugins", "builtin", "bundle", "runs", "splits", "parts", "classes", "catalogue",
         "sampling_options", "normalise", "geojson", "prompting", "prompt_files", "ranges",
         "tracks", "track_files", "readers.ctc_folders"]  # fmt: skip
LIGHT_SETTINGS = ["workflows.check", "workflows.doctor", "workflows.evaluate_settings"]
"""What command lines are built from."""
HELP = [
    "--help",
    *(f"{name} --help" for name in COMMANDS),
    *(f"{name} --backend vista2d --help" for name in ("train", "predict")),
]


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """All modules that a file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def backends() -> list[Path]:
    return sorted((REPO / "packages").glob("backend-*"))


@pytest.mark.parametrize("path", sources(CORE), ids=lambda p: str(p.relative_to(CORE)))
def test_core_imports_no_backend_and_no_cli(path: Path) -> None:
    foreign = {name for name in tops(path) if name.startswith("cellseg_")}
    assert not foreign


def test_a_backend_imports_no_other_and_not_the_cli() -> None:
    for backend in backends():
        own = {p.name for p in (backend / "src").iterdir()}
        for path in sources(backend / "src"):
            foreign = {n for n in tops(path) if n.startswith("cellseg_")} - own
            assert not foreign, f"{path} imports {foreign}"


def test_core_needs_no_ngio() -> None:
    users = [p.relative_to(CORE) for p in sources(CORE) if "ngio" in tops(p)]
    assert not users, "its import takes seconds; only tests and benchmarks may"


def test_core_without_its_extra_has_no_torch() -> None:
    for path in sources(CORE):
        tests = path.name.endswith("testing.py")
        if path.relative_to(CORE).parts[0] == "torch" or path.name == "doctor_devices.py" or tests:
            continue
        assert not tops(path) & {"torch", "lightning", "safetensors"}, path


def test_contracts_do_not_import_workflows() -> None:
    for name in LIGHT:
        wrong = [
            m
            for m in imports(CORE / f"{name.replace('.', '/')}.py")
            if m.startswith("cellseg.workflows")
        ]
        assert not wrong, f"{name}.py imports {wrong}"


def test_cards_know_neither_hooks_nor_plugins() -> None:
    order = ["errors", "events", "options", "data", "specs", "hookspecs", "plugins"]
    for rank, name in enumerate(order):
        later = {f"cellseg.{other}" for other in order[rank + 1 :]}
        assert not later & set(imports(CORE / f"{name}.py")), name


def test_modules_stay_small() -> None:
    packages = [*sources(REPO / "packages"), *sources(REPO / "apps")]
    long = {str(p.relative_to(REPO)): n for p in packages if (n := len(p.open().readlines())) > 400}
    assert not long


@pytest.fixture(scope="module")
def imported() -> dict[str, list[str]]:
    """The heavy modules that each light module and each help page is the first to import, all in
    one new interpreter; or how it failed."""
    code = f"""
import contextlib, importlib, io, json, sys
found, seen = {{}}, set()
def done(name, error=None):
    found[name] = [error] if error else sorted({HEAVY!r} & sys.modules.keys() - seen)
    seen.update(sys.modules)
for name in {LIGHT + LIGHT_SETTINGS!r}:
    importlib.import_module("cellseg." + name)
    done(name)
from cellseg_cli.main import main
for line in {HELP!r}:
    error = None
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as e:
        try:
            main(line.split())
        except SystemExit as exit:
            error = e.getvalue() if exit.code else None
    done(line, error)
print(json.dumps(found))
"""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    found: dict[str, list[str]] = json.loads(made.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", LIGHT + LIGHT_SETTINGS)
def test_light_modules_import_nothing_heavy(name: str, imported: dict[str, list[str]]) -> None:
    assert imported[name] == []


@pytest.mark.parametrize("line", HELP)
def test_help_imports_nothing_heavy(line: str, imported: dict[str, list[str]]) -> None:
    assert imported[line] == []


def test_every_hook_is_named_after_a_card() -> None:
    from cellseg import hookspecs
    from cellseg.plugins import KINDS

    hooks = {name for name in vars(hookspecs) if name.startswith("cellseg_")}
    assert hooks == {f"cellseg_{card.noun}s" for card in KINDS}


def test_no_commit_names_this_or_a_registrys_host() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=REPO, capture_output=True, text=True)
    assert "uv.lock" not in listed.stdout.split()
