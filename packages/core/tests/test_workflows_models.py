"""Published models, listed, pulled, verified and copied; from a server on loopback."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rough_server import Server, started

from cellseg import hookimpl
from cellseg.download import Remote, Settings, fetch
from cellseg.download.notes import read_note
from cellseg.download.published import bearer, fetch_weights, read_token
from cellseg.errors import ConfigError, PluginError, StorageError, UsageError, WeightsError
from cellseg.events import Event, Note, Progress
from cellseg.plugins import Plugins
from cellseg.specs import PredictorSpec, PublishedModel, TrainerSpec
from cellseg.workflows.export_models import export_cache
from cellseg.workflows.pull_models import pull_models, refuse_shared_token
from cellseg.workflows.stored_models import (
    StoredModel,
    chosen_models,
    model_paths,
    stored_models,
)
from cellseg.workflows.verify_models import refuse_damaged, remove_damaged, verify_models

FILES = {name: name.encode() * 300_000 for name in ("one", "two", "two_more", "gated")}
QUICK = Settings(pause=0.01, timeout=5, retries=1, error=WeightsError)


def ignored(event: Event) -> None:
    """Where nobody looks."""


@pytest.fixture
def server() -> Iterator[Server]:
    with started() as made:
        made.files = dict(FILES)
        yield made


@pytest.fixture
def make(server: Server, tmp_path: Path) -> Callable[..., PublishedModel]:
    """A model of files of the server; the first of them has a checksum."""
    folder = partial(Path, tmp_path / "cache")

    def made(name: str, *files: str, **more: Any) -> PublishedModel:
        remotes = [Remote(url=f"{server.url}/{file}", name=file) for file in files]
        digits = hashlib.sha256(FILES[files[0]]).hexdigest()
        remotes[0] = replace(remotes[0], checksum=f"sha256:{digits}")
        values = {"licence": "CC0", "citation": "doi:1", "folder": folder, **more}
        return PublishedModel(name=name, files=tuple(remotes), **values)

    return made


def card(kind: type, name: str, *models: PublishedModel) -> Any:
    does = {"train" if kind is TrainerSpec else "load": print}
    return kind(name=name, summary="A model", models=models, **does)


def plugins(trainers: list[Any], predictors: list[Any]) -> Plugins:
    found = Plugins([])
    module = SimpleNamespace(
        cellseg_trainers=hookimpl(lambda: trainers),
        cellseg_predictors=hookimpl(lambda: predictors),
    )
    found.register(module, "toys")
    return found


@pytest.fixture
def look(make: Callable[..., PublishedModel]) -> Callable[[], list[StoredModel]]:
    """The models of two trainers and a predictor, as they are now."""
    one, two = make("one", "one"), make("two", "two", "two_more")
    trainers = [card(TrainerSpec, "a", one, two), card(TrainerSpec, "b", replace(one, name="uno"))]
    found = plugins(trainers, [card(PredictorSpec, "c", two)])
    return lambda: stored_models(found)


def test_models_are_listed_once_with_all_who_use_them(look) -> None:
    one, two = look()
    assert (one.name, one.backends, one.called) == ("one", ("a", "b"), {"b": "uno"})
    assert (two.name, two.backends) == ("two", ("a", "c"))
    assert (one.state, one.size, one.checked_by) == ("missing", None, "sha256")
    assert two.checked_by == "sha256 | none published"
    assert json.loads(json.dumps(two.to_dict()))["files"][1]["state"] == "missing"


def test_files_that_are_here_are_seen(look, tmp_path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "two").write_bytes(FILES["two"])
    (folder / ".part-one").write_bytes(b"half")
    one, two = look()
    assert (one.state, two.state) == ("partial", "partial")
    assert [file.state for file in two.files] == ["here", "missing"]
    with pytest.raises(WeightsError, match="two_more is not here") as error:
        model_paths(two)
    assert "cellseg models pull two" in error.value.hint
    with pytest.raises(WeightsError, match="one is not whole here"):
        model_paths(one)


def test_models_are_chosen_by_any_name(look) -> None:
    models = look()
    assert [m.name for m in chosen_models(models, ["uno", "one"])] == ["one"]
    assert [m.name for m in chosen_models(models, backend="c")] == ["two"]
    assert chosen_models(models, here=True) == []
    with pytest.raises(UsageError) as error:
        chosen_models(models, ["tow"])
    assert "two" in error.value.hint


def test_two_models_of_one_name_are_an_error(make) -> None:
    clash = plugins(
        [card(TrainerSpec, "a", make("x", "one")), card(TrainerSpec, "b", make("x", "two"))], []
    )
    with pytest.raises(PluginError, match="a and b mean different models by 'x'"):
        stored_models(clash)


def test_all_files_come_at_once_with_one_progress(look, tmp_path, server) -> None:
    events: list[Event] = []
    pulled = pull_models(look(), QUICK, events.append)
    for name in ("one", "two", "two_more"):
        assert (tmp_path / "cache" / name).read_bytes() == FILES[name]
    steps = [event.step for event in events if isinstance(event, Progress)]
    assert steps == sorted(set(steps)) and steps[-1] == 1 + 1 + 3, "megabytes of all"
    assert [model.state for model in look()] == ["here", "here"]
    assert "noted on" in look()[1].checked_by and "not published" in look()[1].checked_by
    text = "\n".join(pulled.lines())
    assert "one: downloaded, 0.9 MB; licence: CC0" in text and "Cite: doi:1" in text
    assert text.count("No checksum is published; its SHA-256 is noted") == 1
    again = pull_models(look(), QUICK, ignored)
    assert "was here" in "\n".join(again.lines()) and len(server.seen) == 3


def test_one_that_fails_does_not_stop_the_others(look, tmp_path, server) -> None:
    server.files.pop("one")
    with pytest.raises(WeightsError, match=r"/one: cannot be downloaded: the server answers 404"):
        pull_models(look(), QUICK, ignored)
    assert [model.state for model in look()] == ["missing", "here"]
    server.files.pop("two")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(WeightsError, match=r"2 files could not be had\.\n.*/one: .*\n.*/two: "):
        pull_models(look(), QUICK, ignored, jobs=1)


def test_a_bug_in_a_download_is_raised_as_it_is(look, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("cellseg.workflows.pull_models.fetch_file", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        pull_models(look(), QUICK, ignored)


def test_damage_is_found_named_and_removed_only_if_asked(look, tmp_path, server) -> None:
    pull_models(look(), QUICK, ignored)
    assert [each.wrong for each in verify_models(look(), ignored)] == ["", "", ""]
    for name in ("one", "two_more"):  # one is known by its publisher's sum, the other by the note
        path = tmp_path / "cache" / name
        status, data = path.stat(), bytearray(path.read_bytes())
        data[1000] ^= 1
        path.write_bytes(data)
        import os

        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a bad disk does it
    found = verify_models(look(), ignored)
    assert [bool(each.wrong) for each in found] == [True, False, True]
    with pytest.raises(WeightsError, match="Of 3 files, 2 are damaged") as error:
        refuse_damaged(found, removed=False)
    assert all(str(tmp_path / "cache" / name) in str(error.value) for name in ("one", "two_more"))
    assert "cellseg models pull one two --force" in error.value.hint
    assert [model.state for model in look()] == ["here", "here"], "nothing is removed"
    with pytest.raises(WeightsError, match="is not the file expected"):  # though its time is right
        fetch_weights(look()[0].model, look()[0].files[0].remote, ignored)
    assert len(remove_damaged(found)) == 2
    assert [model.state for model in look()] == ["missing", "partial"]
    assert read_note(tmp_path / "cache/two_more") is not None, "the next one is compared with it"
    server.files["two_more"] = b"another"
    with pytest.raises(WeightsError, match="noted on"):
        pull_models(look(), QUICK, ignored)
    server.files["two_more"] = FILES["two_more"]
    pull_models(look(), QUICK, ignored)
    refuse_damaged(verify_models(look(), ignored), removed=False)


def test_a_copy_serves_as_a_mirror(look, tmp_path, server) -> None:
    mirror, cache = tmp_path / "mirror", tmp_path / "cache"
    with pytest.raises(WeightsError, match="None of these models is here"):
        export_cache(mirror, look(), ignored)
    assert not mirror.exists()
    pull_models(look(), QUICK, ignored)
    made = export_cache(mirror, look()[:1], ignored)
    assert (made.copied, made.there) == (("one",), ())
    before = (mirror / "one").stat().st_ino
    made = export_cache(mirror, look(), ignored)
    assert (made.copied, made.there) == (("two", "two_more"), ("one",))
    assert (mirror / "one").stat().st_ino == before, "what is there and the same is left alone"
    manifest = json.loads((mirror / "manifest.json").read_text())["files"]
    assert [entry["file"] for entry in manifest] == ["one", "two", "two_more"]
    assert manifest[2] == {
        "name": "two",
        "file": "two_more",
        "size": len(FILES["two_more"]),
        "sha256": hashlib.sha256(FILES["two_more"]).hexdigest(),
        "licence": "CC0",
        "citation": "doi:1",
        "source": f"{server.url}/two_more",
    }
    shutil.rmtree(cache)
    asked = len(server.seen)
    pull_models(look(), replace(QUICK, mirror=str(mirror), offline=True), ignored)
    assert [model.state for model in look()] == ["here", "here"] and len(server.seen) == asked


def test_nothing_damaged_is_copied_and_nothing_there_replaced(
    look, tmp_path, server, monkeypatch
) -> None:
    mirror = tmp_path / "mirror"
    pull_models(look(), QUICK, ignored)
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(StorageError, match=r"mirror: 0\.00 GB are needed"):
            export_cache(mirror, look(), ignored)
    assert not mirror.exists()
    mirror.mkdir()
    (mirror / "two").write_bytes(b"mine")
    with pytest.raises(WeightsError, match="mirror/two: is not what"):
        export_cache(mirror, look(), ignored)
    assert (mirror / "two").read_bytes() == b"mine"
    (tmp_path / "cache/one").write_bytes(b"damaged")
    shutil.rmtree(mirror)
    with pytest.raises(WeightsError, match="1 are damaged"):
        export_cache(mirror, look(), ignored)
    assert not mirror.exists()


def test_two_files_of_one_name_do_not_go_into_one_mirror(make, tmp_path, server) -> None:
    there = make("there", "one", folder=partial(Path, tmp_path / "elsewhere"))
    models = stored_models(plugins([card(TrainerSpec, "a", make("here", "one"), there)], []))
    pull_models(models, QUICK, ignored)
    found = stored_models(plugins([card(TrainerSpec, "a", make("here", "one"), there)], []))
    with pytest.raises(ConfigError, match="Two files are called one"):
        export_cache(tmp_path / "mirror", found, ignored)


def test_a_training_gets_notes_alone(make, monkeypatch) -> None:
    monkeypatch.delenv("CELLSEG_MIRROR", raising=False)
    events: list[Event] = []
    model = make("two", "two")
    path, base = fetch_weights(model, model.files[0], events.append)
    assert path.read_bytes() == FILES["two"]
    assert (base.source, base.licence) == (model.files[0].url, "CC0")
    assert base.sha256 == hashlib.sha256(FILES["two"]).hexdigest()
    assert [event.text for event in events if isinstance(event, Note)] == [
        "Getting two: 1 of 1 MB."
    ]
    assert len(events) == 1


@pytest.fixture
def gated(make, server) -> PublishedModel:
    server.token = "hush-hush"
    model: PublishedModel = make("gated", "gated", token="GATED_TOKEN")
    return model


def test_a_token_is_taken_from_its_variable(gated, monkeypatch, server) -> None:
    monkeypatch.delenv("GATED_TOKEN", raising=False)
    with pytest.raises(WeightsError, match="wants a token, and GATED_TOKEN is not set"):
        fetch_weights(gated, gated.files[0], ignored)
    assert server.seen == []
    monkeypatch.setenv("GATED_TOKEN", "wrong-one")
    with pytest.raises(WeightsError, match="the token in GATED_TOKEN is not accepted") as error:
        fetch_weights(gated, gated.files[0], ignored)
    assert "wrong-one" not in f"{error.value}{error.value.hint}"
    monkeypatch.setenv("GATED_TOKEN", " hush-hush\n")
    fetch_weights(gated, gated.files[0], ignored)
    monkeypatch.delenv("GATED_TOKEN")
    fetch_weights(gated, gated.files[0], ignored)  # it is here: nobody is asked


def test_a_token_stays_with_its_publisher(gated, monkeypatch, server) -> None:
    monkeypatch.setenv("GATED_TOKEN", "hush-hush")
    with started() as other:
        other.files = dict(FILES)
        server.moved["/gated"] = f"{other.elsewhere}/gated"
        fetch_weights(gated, gated.files[0], ignored)
        assert server.seen[0]["authorization"] == "Bearer hush-hush"
        assert "authorization" not in other.seen[0]
        for mirror in (other.elsewhere, server.elsewhere):
            gated.folder().joinpath("gated").unlink()
            monkeypatch.setenv("CELLSEG_MIRROR", mirror)
            server.moved.clear()
            server.token = ""
            fetch_weights(gated, gated.files[0], ignored)
        assert "authorization" not in other.seen[1] and "authorization" not in server.seen[-1]


def test_what_is_no_token_is_refused_without_showing_it(gated, monkeypatch, tmp_path) -> None:
    for text in ("hush\nhush", "hush hush", "húsh"):
        with pytest.raises(ConfigError, match="GATED_TOKEN does not hold a token") as error:
            bearer(text, "GATED_TOKEN")
        assert text not in str(error.value)
    file = tmp_path / "token"
    with pytest.raises(ConfigError, match="is missing"):
        read_token(file)
    file.write_text("hush-hush\n")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="others can read it") as error:
        read_token(file)
    assert f"chmod 600 {file}" in error.value.hint
    file.chmod(0o600)
    assert read_token(file) == {"Authorization": "Bearer hush-hush"}
    file.write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        read_token(file)
    plain = replace(gated, files=(replace(gated.files[0], url="http://data.invalid/a"),))
    monkeypatch.setenv("GATED_TOKEN", "hush-hush")
    with pytest.raises(ConfigError, match="sent to https addresses alone"):
        fetch_weights(plain, plain.files[0], ignored)


def test_one_token_is_not_sent_to_several_publishers(make) -> None:
    models = [make("one", "one", token="A"), make("two", "two", token="B"), make("x", "two_more")]
    stored = stored_models(plugins([card(TrainerSpec, "a", *models)], []))
    refuse_shared_token([stored[0], stored[2]])
    for some in (stored, stored[2:]):
        with pytest.raises(ConfigError, match="--token-file: the models want"):
            refuse_shared_token(some)


def test_a_token_is_not_sent_to_who_wants_none(gated, make, server) -> None:
    open_to_all = make("two", "two")
    found = stored_models(plugins([card(TrainerSpec, "a", gated, open_to_all)], []))
    refuse_shared_token(found)
    settings = replace(QUICK, headers=bearer("hush-hush", "FILE"))
    with pytest.raises(WeightsError, match="401"):  # the server wants it of everybody
        pull_models(found, settings, ignored)
    sent = {seen["path"]: seen.get("authorization") for seen in server.seen}
    assert sent == {"/gated": "Bearer hush-hush", "/two": None}


def test_a_plain_download_keeps_no_note(make, tmp_path) -> None:
    remote = make("one", "one").files[0]
    fetch(remote, tmp_path / "plain", QUICK, ignored)
    assert [path.name for path in (tmp_path / "plain").iterdir()] == ["one"]
