from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from cellseg.bundle import Bundle
from cellseg.data import Tiling
from cellseg.errors import DataError, StorageError
from cellseg.events import Checkpointed, Note, Progress, Resumed, Validated
from cellseg.files import remove_leftovers, replacing, storage_errors, write_atomic
from cellseg.runs import Request, RunDir
from cellseg.specs import BaseWeights
from cellseg.splits import Splits

SPLITS = Splits(train=("a",), val=("b",))


def request(**changes: Any) -> Request:
    values: dict[str, Any] = {
        "backend": "otsu",
        "data": Path("data"),
        "settings": {"epochs": 3},
        "reader": "folder",
        "reader_options": {},
        "options": {},
        "normaliser": {},
    }
    return Request(**{**values, **changes})


def test_a_run_remembers_its_request(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", request(), {"sigma": 1.0}, SPLITS)
    assert RunDir(tmp_path / "run").request() == request()
    assert run.config.read_text() == "sigma: 1.0\n"


def test_a_second_run_in_the_same_place_is_refused(tmp_path: Path) -> None:
    RunDir.create(tmp_path / "run", request(), {}, SPLITS)
    with pytest.raises(DataError, match="already holds a run") as error:
        RunDir.create(tmp_path / "run", request(), {}, SPLITS)
    assert "cellseg resume" in str(error.value.hint)


def test_a_directory_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(DataError, match="not empty"):
        RunDir.create(tmp_path, request(), {}, SPLITS)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.doc"]


def test_events_come_back(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    happened = [
        Progress(1, 4, {"loss": 0.5}, epoch=1),
        Validated(1, {"val/loss": 1.0}, best=True),
        Checkpointed(1),
        Note("hello"),
    ]
    for event in happened:
        run.record(event)  # type: ignore[arg-type]
    assert run.events() == happened


def test_steps_done_again_are_given_once(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step in (1, 2, 3):
        run.record(Progress(step, metrics={"loss": step}))
    run.record(Resumed(1))
    run.record(Progress(2, metrics={"loss": 20}))
    steps = [(e.step, e.metrics) for e in run.events() if isinstance(e, Progress)]
    assert steps == [(1, {"loss": 1}), (2, {"loss": 20})]


def test_a_line_cut_short_by_a_kill_spoils_nothing(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.record(Progress(1))
    with run.log.open("a") as file:
        file.write('{"event": "Progr')
    run.record(Progress(2))
    assert run.events() == [Progress(1), Progress(2)]


def test_metrics_need_not_be_python_floats(tmp_path: Path) -> None:
    import numpy as np

    run = RunDir(tmp_path)
    run.record(Progress(1, metrics={"loss": np.float32(0.5)}))  # type: ignore[dict-item]
    assert run.events() == [Progress(1, metrics={"loss": 0.5})]


def test_a_damaged_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a cellseg run"):
        RunDir(tmp_path).request()
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        RunDir(tmp_path).request()


def test_a_bundle_comes_back_whole(tmp_path: Path) -> None:
    bundle = Bundle(
        backend="otsu",
        options={"sigma": 1.0},
        predict={"min_size": 3},
        channels=2,
        channel_names=("DAPI", "GFP"),
        tiling=Tiling((1, 8, 8), (0, 2, 2)),
        base_weights=(BaseWeights(name="w", source="s", licence="MIT"),),
    )
    bundle.save(tmp_path)
    assert Bundle.load(tmp_path) == bundle
    assert Bundle.find(tmp_path) == (tmp_path, bundle)


def test_a_bundle_is_found_in_its_run(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", request(), {}, SPLITS)
    with pytest.raises(DataError, match="has not finished"):
        Bundle.find(run.path)
    Bundle(backend="otsu").save(run.model)
    assert Bundle.find(run.path)[0] == run.model


def test_a_bundle_of_a_newer_version_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text(json.dumps({"format": 99, "backend": "otsu"}))
    with pytest.raises(DataError, match="newer"):
        Bundle.load(tmp_path)
    (tmp_path / "bundle.json").write_text('{"backend": "otsu", "surprise": 1}')
    with pytest.raises(DataError, match="cannot be read"):
        Bundle.load(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_atomic(target, "old")
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".part-1-weights").write_text("half")
    (tmp_path / ".part-2-out.zarr").mkdir()
    (tmp_path / "weights").write_text("whole")
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["weights"]


def test_a_directory_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "out.zarr"
    target.mkdir()
    (target / "old").touch()
    with replacing(target) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert [p.name for p in target.iterdir()] == ["new"]


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"a\.tif: cannot be written: the disk is full") as error:
        with storage_errors(tmp_path / "a.tif"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert error.value.exit_code == 7
