"""What the diagnosis says of published models and of how they are downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import cellseg as cs
from cellseg.download.environment import MIRROR, OFFLINE
from cellseg.download.remote import Remote
from cellseg.plugins import Plugins
from cellseg.specs import Finding, PublishedModel
from cellseg.workflows.doctor_weights import weights

cellseg_otsu = pytest.importorskip("cellseg_otsu")
Kept = Callable[..., list[Finding]]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    """The findings where these files are in the folder of two models."""
    for name in (OFFLINE, MIRROR):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "cache" / "models"
    models = tuple(
        PublishedModel(
            name=name,
            licence="MIT",
            files=(Remote(url=f"https://example.org/{name}", name=f"{name}.pt", size=4),),
            folder=lambda: folder,
            token="A_TOKEN" if name == "big" else "",
        )
        for name in ("big", "small")
    )
    module: Any = ModuleType("starting")
    card = replace(next(iter(cellseg_otsu.cellseg_trainers())), name="starting", models=models)
    module.cellseg_trainers = cs.hookimpl(lambda: [card])
    plugins = Plugins([])
    plugins.register(module, "starting")

    def found(*files: str, backend: str | None = None) -> list[Finding]:
        for name in files:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"1234")
        return list(weights(plugins, backend))

    return found


def test_none_is_here(kept: Kept, tmp_path: Path) -> None:
    folder, token = kept()
    assert folder.state == "ok" and folder.what == "models in cache"
    assert "0 of 2 here; " in folder.value and str(tmp_path) in folder.value
    assert token.what == "A_TOKEN" and "not set" in token.value
    assert not list(tmp_path.iterdir()), "the folder was made"


def test_those_that_are_here_are_named(kept: Kept) -> None:
    assert "1 of 2 here, 0.0 GiB (small)" in kept("small.pt")[0].value


def test_a_stopped_download_says_how_to_finish_it(kept: Kept) -> None:
    folder, partly, _ = kept("small.pt", ".part-big.pt")
    assert "1 of 2" in folder.value
    assert partly.state == "warning" and partly.advice == "Finish it: cellseg models pull big"


def test_a_token_is_never_printed(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "secret-1")
    assert kept()[-1] == Finding("ok", "A_TOKEN", "set")


def test_only_the_models_of_one_backend(kept: Kept) -> None:
    assert [f.what for f in kept(backend="otsu")] == ["models"]
    assert len(kept(backend="starting")) == 2


def test_a_folder_that_cannot_be_written(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    folder = kept()[0]
    assert folder.state == "warning" and "no permission" in folder.value and folder.advice


@pytest.mark.parametrize(
    ("name", "value", "state", "said"),
    [
        (OFFLINE, "1", "ok", "nothing is downloaded"),
        (OFFLINE, "perhaps", "problem", "neither yes nor no"),
        (MIRROR, "/no/such/folder", "problem", "no such folder"),
        (MIRROR, "ftp://example.org", "problem", "no http"),
        (MIRROR, "https://me:secret@example.org/m", "ok", "https://example.org/m instead"),
    ],
)
def test_variables_of_downloads(
    name: str, value: str, state: str, said: str, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    (found,) = [f for f in kept() if f.what == name]
    assert found.state == state and said in found.value and bool(found.advice) == (state != "ok")
    assert "secret" not in found.value + found.advice


def test_a_mirror_that_is_a_folder(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MIRROR, str(tmp_path))
    assert kept()[0] == Finding("ok", MIRROR, f"{tmp_path} instead of the publishers")
