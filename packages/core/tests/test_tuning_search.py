from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")

import optuna
import tuning_fakes
from tuning_fakes import SPACE, Deadly, DiesOnce, Parabola, run

from cellseg.errors import ConfigError, DataError, InterruptedRunError, PluginError
from cellseg.events import Event, Failed, Note, Progress
from cellseg.machine import me
from cellseg.tuning.library import lasting, masked, open_storage
from cellseg.tuning.options import SearchOptions
from cellseg.tuning.search import Tuned, address_of, begin
from cellseg.tuning.space import Space, identity
from cellseg.tuning.study import Study


def distinct(found: Tuned) -> int:
    return len({identity(trial.options) for trial in found.trials})


def study_in(folder: Path, **options: Any) -> Study:
    return Study(address_of(folder, SPACE, SearchOptions.model_validate(options), 0, True))


def test_random_trials_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    first = run(tmp_path / "a", trials=6)
    second = run(tmp_path / "b", trials=6)
    assert [t.options for t in first.trials] == [t.options for t in second.trials]
    assert [t.state for t in first.trials] == ["complete"] * 6
    best = max(first.trials, key=lambda trial: trial.score or -100)
    assert first.options == best.options and first.score == best.score and first.best == best
    assert best.scores == {"score": best.score}


def test_a_grid_tries_each_point_once_in_two_processes(tmp_path: Path) -> None:
    space = Space.of({"x": [1.0, 3.0], "kind": ["a", "b"], "n": [[1, 2], [3]]})
    found = run(tmp_path, space=space, sampler="grid", workers=2)
    assert [t.options for t in found.trials] == list(space.grid())
    assert found.options["x"] == 3.0 and found.options["kind"] == "a"
    runs = sorted((tmp_path / "trials").iterdir())
    assert len(runs) == 8
    assert all(len((each / "began").read_text().splitlines()) == 1 for each in runs)


def test_tpe_never_repeats_itself_and_ends_with_the_space(tmp_path: Path) -> None:
    space = Space.of({"x": [1.0, 2.0, 3.0], "kind": ["a", "b"]})
    found = run(tmp_path, space=space, sampler="tpe", trials=30)
    assert distinct(found) == len(found.trials) == 6
    assert found.count("complete") == 6


def test_tpe_looks_where_it_is_good(tmp_path: Path) -> None:
    space = Space.of({"x": {"low": 0.0, "high": 8.0}, "kind": ["a", "b"]})
    found = run(tmp_path, space=space, sampler="tpe", trials=24, prune=False)
    late = [abs(trial.options["x"] - 3) for trial in found.trials[14:]]
    early = [abs(trial.options["x"] - 3) for trial in found.trials[:10]]
    assert sum(late) / len(late) < sum(early) / len(early)
    assert set(found.importance) == {"x", "kind"}


def test_equal_scores_make_nothing_important(tmp_path: Path) -> None:
    assert run(tmp_path, lambda options, folder, report: 1.0, trials=4).importance == {}


def test_points_that_are_not_allowed_are_left_out(tmp_path: Path) -> None:
    def allow(options: Mapping[str, Any]) -> str:
        return "b needs a small x" if options["kind"] == "b" and options["x"] > 1 else ""

    space = Space.of({"x": [1.0, 2.0, 3.0], "kind": ["a", "b"]})
    for sampler in ("grid", "tpe"):
        found = run(tmp_path / sampler, space=space, sampler=sampler, allow=allow)
        assert len(found.trials) == 4
        assert not any(allow(trial.options) for trial in found.trials)
    with pytest.raises(ConfigError, match="None of the combinations"):
        run(tmp_path / "none", space=space, sampler="grid", allow=lambda options: "never")


def test_a_failure_is_kept_and_the_search_goes_on(tmp_path: Path) -> None:
    events: list[Event] = []
    found = run(tmp_path, Parabola(fails_from=4), trials=8, emit=events.append)
    failed = [trial for trial in found.trials if trial.state == "failed"]
    assert failed and found.count("complete") == 8 - len(failed)
    assert all(t.score is None and "x is" in t.message for t in failed)
    assert "DataError" in (tmp_path / failed[0].folder / "error.txt").read_text()
    assert sum(isinstance(event, Failed) for event in events) == len(failed)
    assert [e for e in events if isinstance(e, Progress)][-1] == Progress(8, 8)
    again = run(tmp_path, trials=8, retry=True)
    assert again.count("complete") == 8 and distinct(again) == 8
    assert again.replaced == len(failed)


def test_nothing_but_failures_end_the_search(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"All of the first 3 trials failed.*x is"):
        run(tmp_path, Parabola(fails_from=0), trials=8)
    assert len(list((tmp_path / "trials").iterdir())) == 3


def test_a_score_that_is_none_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing could be measured"):
        run(tmp_path, lambda options, folder, report: float("nan"), trials=3)


def test_lower_can_be_better(tmp_path: Path) -> None:
    found = run(tmp_path, trials=5, maximise=False)
    assert found.score == min(trial.score or 0.0 for trial in found.trials)


def test_bad_trials_are_stopped_early(tmp_path: Path) -> None:
    found = run(tmp_path, Parabola(steps=4), trials=14)
    pruned = [trial for trial in found.trials if trial.state == "pruned"]
    assert pruned and found.count("complete") + len(pruned) == 14
    assert all(max(trial.reported) < 4 and trial.score is None for trial in pruned)
    assert all(trial.number >= 5 for trial in pruned)
    whole = run(tmp_path / "whole", Parabola(steps=4), trials=14, prune=False)
    assert whole.count("complete") == 14 and whole.options == found.options


def test_only_the_best_keep_their_models(tmp_path: Path) -> None:
    found = run(tmp_path, trials=6, keep_models=2)
    ranked = sorted(found.trials, key=lambda trial: -(trial.score or 0.0))
    kept = {path.parent.name for path in (tmp_path / "trials").glob("*/model")}
    assert kept == {f"{trial.number:04d}" for trial in ranked[:2]}
    run(tmp_path / "all", trials=6, keep_trials=True)
    assert len(list((tmp_path / "all/trials").glob("*/model"))) == 6


@pytest.mark.parametrize("folder", ["../kept", "trials/../../kept", "/kept", "trials"])
def test_a_database_does_not_say_which_folders_are_removed(tmp_path: Path, folder: str) -> None:
    kept = tmp_path / "kept" / "model"
    kept.mkdir(parents=True)
    run(tmp_path / "out", trials=2)
    study = study_in(tmp_path / "out")
    named = folder.replace("/kept", str(tmp_path / "kept")) if folder[0] == "/" else folder
    study.optuna_study.enqueue_trial({}, user_attrs={"folder": named})
    with pytest.raises(DataError, match="no folder of a trial"):
        study.trials()
    assert kept.is_dir()


def test_a_stop_gives_back_what_is_under_way(tmp_path: Path) -> None:
    asked = iter([False] * 9)
    with pytest.raises(InterruptedRunError, match=r"Stopped after \d of 6 trials"):
        run(
            tmp_path,
            Parabola(steps=5),
            trials=6,
            prune=False,
            interrupted=lambda: next(asked, True),
        )
    states = [trial.state for trial in study_in(tmp_path).trials()]
    assert "running" not in states and "waiting" in states
    found = run(tmp_path, Parabola(steps=5), trials=6, prune=False)
    assert found.count("complete") == 6 and distinct(found) == 6 and found.replaced == 1
    resumed = next(trial for trial in found.trials if trial.resumes is not None)
    assert (tmp_path / resumed.folder / "began").read_text().count("\n") == 2
    assert resumed.folder == f"trials/{resumed.resumes:04d}"


@pytest.mark.skipif(os.name == "nt", reason="signals differ on Windows")
def test_a_killed_search_ends_with_as_many_distinct_trials(tmp_path: Path) -> None:
    """SIGKILL of all its processes in the middle; then it goes on."""
    script = [sys.executable, str(Path(tuning_fakes.__file__)), str(tmp_path)]
    process = subprocess.Popen(script, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("trials/*/model"))) < 1 or _count(tmp_path, "complete") < 4:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    states = [trial.state for trial in study_in(tmp_path).trials()]
    assert "running" in states and 4 <= states.count("complete") < 12
    found = run(tmp_path, Parabola(steps=3, seconds=0.05), trials=12, workers=2)
    assert len(found.trials) == distinct(found) == 12
    assert all(trial.finished for trial in found.trials)
    drawn = {identity(point) for point in SPACE.drawn(12, 0)}
    assert {identity(trial.options) for trial in found.trials} == drawn
    resumed = [trial for trial in found.trials if trial.resumes is not None]
    assert resumed and len(resumed) <= found.replaced
    twice = [p for p in tmp_path.glob("trials/*") if (p / "began").read_text().count("\n") > 1]
    assert {str(path.relative_to(tmp_path)) for path in twice} <= {t.folder for t in resumed}
    assert len(list(tmp_path.glob("trials/*"))) == 12


def _count(folder: Path, state: str) -> int:
    if not (folder / "study.db").exists():
        return 0
    try:
        return sum(trial.state == state for trial in study_in(folder).trials())
    except (DataError, OSError):  # it is being made
        return 0


@pytest.mark.skipif(os.name == "nt", reason="signals differ on Windows")
def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    found = run(tmp_path, DiesOnce(), trials=4, workers=2)
    assert found.count("complete") == 4 and distinct(found) == 4


@pytest.mark.skipif(os.name == "nt", reason="signals differ on Windows")
def test_a_trial_that_kills_its_process_again_and_again_fails(tmp_path: Path) -> None:
    found = run(tmp_path, Deadly(), trials=3, workers=2)
    assert found.count("complete") == 2 and found.count("failed") == 1
    failed = next(trial for trial in found.trials if trial.state == "failed")
    assert "died 3 times" in failed.message


def test_a_trial_that_never_said_what_it_tries_is_tried_again_as_it_was_drawn(
    tmp_path: Path,
) -> None:
    address = address_of(tmp_path, SPACE, SearchOptions(), 0, True)
    points = SPACE.drawn(1, 0)
    begin(address, {}, [*points])
    study = Study(address)
    claim = study.claim()
    assert claim is not None and claim.fail("killed three times")
    assert study.retry() == 1
    [again] = [trial for trial in study.trials() if trial.state == "waiting"]
    assert again.options == points[0] and again.resumes == 0


def test_a_trial_that_two_gave_back_goes_on_once(tmp_path: Path) -> None:
    """Also where the process that was to drop the second one dies before it does."""
    address = address_of(tmp_path, SPACE, SearchOptions(), 0, True)
    begin(address, {}, [*SPACE.drawn(1, 0)])
    study = Study(address)
    claim = study.claim()
    assert claim is not None and claim.fail("a mistake")
    assert study.retry() == 1 and Study(address).retry() == 0
    study.optuna_study.enqueue_trial({}, user_attrs={"resumes": 0})  # of another process
    second = next(f for f in study.frozen() if f.number == 2)
    study.storage.set_trial_state_values(second._trial_id, study.optuna.trial.TrialState.RUNNING)
    dead = {**me(), "born": "never"}
    study.storage.set_trial_user_attr(second._trial_id, "process", dead)
    assert study.reclaim() == [2]
    assert [trial.state for trial in study.trials()] == ["replaced", "waiting", "replaced"]


def test_a_search_that_another_one_is_just_making_is_joined(tmp_path: Path) -> None:
    address = address_of(tmp_path, SPACE, SearchOptions(), 0, True)
    storage = open_storage(address.url)
    direction = optuna.study.StudyDirection.MAXIMIZE
    number = storage.create_new_study([direction], address.name)

    def goes_on() -> None:
        storage.set_study_user_attr(number, "request", "the same")
        storage.set_study_user_attr(number, "enlisted", True)

    other = threading.Timer(0.3, goes_on)
    other.start()
    assert not begin(address, {"request": "the same"}, [*SPACE.drawn(2, 0)])
    other.join()
    assert not Study(address).trials(), "the other one writes them down"


def test_a_database_whose_tables_others_make_at_once_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    open_storage(url)
    create = optuna.storages._rdb.models.BaseModel.metadata.create_all
    calls: list[bool] = []

    def late(engine: Any) -> None:
        """Once as if another process had made them since they were looked for."""
        calls.append(not calls)
        create(engine, checkfirst=not calls[-1])

    monkeypatch.setattr(optuna.storages._rdb.models.BaseModel.metadata, "create_all", late)
    open_storage(url).get_all_studies()
    assert calls == [True, False]


def test_addresses_mean_the_same_everywhere(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert lasting("sqlite:///a.db") == f"sqlite:///{tmp_path / 'a.db'}"
    assert lasting(f"sqlite:///{tmp_path}/a.db") == f"sqlite:///{tmp_path}/a.db"
    assert lasting("postgresql://me@host/name") == "postgresql://me@host/name"
    for address in ("sqlite://", "sqlite:///:memory:"):
        with pytest.raises(ConfigError, match="gone when the process ends"):
            lasting(address)


def test_another_search_does_not_take_the_name(tmp_path: Path) -> None:
    run(tmp_path, trials=2)
    address = address_of(tmp_path, SPACE, SearchOptions(), 0, True)
    with pytest.raises(DataError, match="another search called"):
        begin(address, {"request": "another"}, [])


def test_what_cannot_be_sent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="cannot be sent"):
        run(tmp_path, lambda options, folder, report: 0.0, trials=2, workers=2)


def test_a_wrong_address_is_named_without_its_password(tmp_path: Path) -> None:
    address = "postgres://me:secret@host/name"
    assert masked(address) == "postgres://me:***@host/name"
    assert masked("postgres://me:se/cr:et@host/name") == "postgres://me:***@host/name"
    assert masked("a://host/name?password=secret&x=1") == "a://host/name?password=***&x=1"
    assert masked("sqlite:////me/a:b.db") == "sqlite:////me/a:b.db"
    with pytest.raises(ConfigError, match=r"me:\*\*\*@host") as error:
        run(tmp_path, trials=2, storage=address)
    assert "secret" not in str(error.value)


def test_notes_say_what_happens(tmp_path: Path) -> None:
    events: list[Event] = []
    run(tmp_path, trials=3, emit=events.append)
    texts = [event.text for event in events if isinstance(event, Note)]
    assert "Trial 0: scores" in " ".join(texts) and "(best so far)" in " ".join(texts)
