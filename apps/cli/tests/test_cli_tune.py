"""``cellseg tune``, and ``cellseg resume`` of what it wrote."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

pytest.importorskip("optuna")

FAST = ("--backend", "otsu", "--epochs", 1)


def test_the_best_options_are_told_and_train_again(cellseg, data, tmp_path) -> None:
    out = tmp_path / "out"
    search = ("--search", "sigma=0.5,1", "--search", "predict.min-size=10..20")
    done = cellseg(
        "tune", data, "-o", out, *FAST, *search, "--trials", 2, "--json", "--test-fraction", 0.3
    )
    assert done.code == 0, done.err
    assert done.json["trials"] == {"complete": 2, "pruned": 0, "failed": 0}
    assert set(done.json["best"]["options"]) == {"sigma", "predict.min_size"}
    assert done.json["test"]["images"] >= 1 and 0 <= done.json["test"]["score"] <= 1
    assert "Trial 1:" in done.err and "trial 2/2" in done.err
    config = yaml.safe_load((out / "best.yaml").read_text())
    assert config["sigma"] == done.json["best"]["options"]["sigma"]
    again = cellseg("train", data, "--config", out / "best.yaml", "-o", tmp_path / "run")
    assert again.code == 0, again.err
    predict = ("--model", done.json["best"]["run"], "--config", out / "predict.yaml")
    assert cellseg("predict", data / "images", *predict, "-o", tmp_path / "p").code == 0
    second = cellseg("tune", data, "-o", out, *FAST, *search)
    assert second.code == 4 and f"cellseg resume {out}" in second.err
    finished = cellseg("resume", out)
    assert finished.code == 0 and "Best:   trial" in finished.out
    assert "took no part, judged once" in finished.out
    assert cellseg("resume", out, "--epochs", 4).code == 2


def test_a_space_in_a_file_and_options_in_another(cellseg, data, tmp_path) -> None:
    space, config = tmp_path / "space.yaml", tmp_path / "c.yaml"
    space.write_text("min_size: {low: 5, high: 20, step: 5}\n")
    config.write_text("backend: otsu\nepochs: 1\nsampler: grid\nsigma: 0.7\n")
    out = tmp_path / "out"
    done = cellseg("tune", data, "-o", out, "--space", space, "--config", config, "--json")
    assert done.code == 0, done.err
    assert done.json["trials"]["complete"] == 4
    assert yaml.safe_load((out / "best.yaml").read_text())["sigma"] == 0.7


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 3, "Nothing is searched"),
        (("--search", "sigm=1,2"), 3, "Did you mean 'sigma'?"),
        (("--search", "sigma=1,2", "--sigma", "3"), 3, "also given a value"),
        (("--search", "sigma=1,2", "--metric", "f1"), 3, "no such score"),
        (("--search", "sigma=1,2", "--metric", "f1@0.5"), 3, "Did you mean f1@0.50?"),
        (("--search", "sigma=1,2", "--study", "me"), 3, "--storage"),
        (("--search", "sigma=0..1", "--sampler", "grid"), 3, "has no end"),
    ],
)
def test_mistakes_are_named(cellseg, data, tmp_path, words, code, message) -> None:
    done = cellseg("tune", data, "-o", tmp_path / "out", *FAST, *words)
    assert done.code == code and message in done.err
    assert not (tmp_path / "out").exists()


def test_equal_scores_are_told(cellseg, data, tmp_path) -> None:
    out = tmp_path / "out"
    done = cellseg("tune", data, "-o", out, *FAST, "--search", "sigma=1,1.001", "--sampler", "grid")
    assert done.code == 0 and "All trials score the same" in done.out, done.err
    assert "All trials score the same" in (out / "report.html").read_text()


def test_without_optuna_it_says_what_to_install(cellseg, data, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = cellseg("tune", data, "-o", tmp_path / "out", *FAST, "--search", "sigma=1,2")
    assert done.code == 5 and "uv pip install 'cellseg-core[tune]'" in done.err
    assert not (tmp_path / "out").exists()


def test_failed_trials_make_exit_code_9(cellseg, data, tmp_path) -> None:
    out = tmp_path / "out"
    words = ("--search", "channels=0,9", "--sampler", "grid")
    done = cellseg("tune", data, "-o", out, *FAST, *words)
    assert done.code == 9 and "1 of 2 trials failed: trial 1" in done.err
    assert f"cellseg resume {out}" in done.err and "Best:   trial 0" in done.out


@pytest.mark.skipif(os.name == "nt", reason="signals differ on Windows")
@pytest.mark.slow
def test_ctrl_c_saves_the_state_of_all_workers(cellseg, data, faulty, tmp_path) -> None:
    out = tmp_path / "out"
    command = [
        *(sys.executable, "-m", "cellseg_cli.main", "tune", str(data), "-o", str(out)),
        *("--backend", "otsu", "--epochs", "3000", "--search", "sigma=0..3", "--trials", "4"),
        *("--workers", "2"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while len(list(out.glob("trials/*/checkpoint/state.json"))) < 2:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert f"cellseg resume {out}" in err and "Stopped after 0 of 4 trials" in err
