"""The whole job from the command line, with the example backend."""

from __future__ import annotations

import csv
import json
import logging
import sys
import warnings
from pathlib import Path

import pytest
import yaml


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    """A finished training."""
    from cellseg_cli.main import main

    folder = tmp_path_factory.mktemp("job") / "run"
    line = ["train", str(data), "-o", str(folder), "--backend", "otsu", "--epochs", "2", "--json"]
    with pytest.raises(SystemExit) as exit:
        main(line)
    assert not exit.value.code
    return folder


def test_train_prints_where_all_is_and_what_is_next(cellseg, data, tmp_path) -> None:
    out = tmp_path / "run"
    done = cellseg("train", data, "-o", out, "--backend", "otsu", "--epochs", 1)
    assert done.code == 0
    assert str(out / "model") in done.out and f"cellseg predict IMAGES --model {out}" in done.out
    assert "Training: step 1/" in done.err


def test_options_reach_the_run_from_flags_and_config(cellseg, data, tmp_path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("backend: otsu\nmin_size: 7\nsigma: 2.5\nseed: 3\n")
    out = tmp_path / "run"
    done = cellseg("train", data, "-o", out, "--config", config, "--min-size", 9, "--epochs", 1)
    assert done.code == 0, done.err
    kept = yaml.safe_load((out / "config.yaml").read_text())
    assert (kept["min_size"], kept["sigma"], kept["seed"]) == (9, 2.5, 3)


def test_the_config_of_a_run_starts_another(cellseg, data, run, tmp_path) -> None:
    out = tmp_path / "again"
    done = cellseg("train", data, "-o", out, "--config", run / "config.yaml")
    assert done.code == 0, done.err
    assert (out / "config.yaml").read_text() == (run / "config.yaml").read_text()


def test_what_init_writes_trains_as_the_defaults_do(cellseg, data, tmp_path) -> None:
    config = tmp_path / "mine.yaml"
    assert cellseg("init", "--backend", "otsu", "-o", config).code == 0
    cellseg("train", data, "-o", tmp_path / "a", "--config", config, "--epochs", 1)
    cellseg("train", data, "-o", tmp_path / "b", "--backend", "otsu", "--epochs", 1)
    read = (tmp_path / "a" / "config.yaml").read_text()
    assert read == (tmp_path / "b" / "config.yaml").read_text()
    assert cellseg("init", "--backend", "otsu", "-o", config).code == 4, "it is there already"
    assert "min_size: 20" in cellseg("init", "--backend", "otsu", "-o", "-").out


def test_resume_needs_nothing_but_the_run(cellseg, data, tmp_path) -> None:
    out = tmp_path / "run"
    cellseg("train", data, "-o", out, "--backend", "otsu", "--epochs", 1)
    done = cellseg("resume", out, "--epochs", 3, "--json")
    assert done.code == 0, done.err
    assert done.json["steps"] == 3 * 2, "three epochs of two training images"
    assert cellseg("resume", out).code == 0


def test_predict_evaluate_and_report(cellseg, data, run, tmp_path) -> None:
    out = tmp_path / "out"
    predicted = cellseg("predict", data / "images", "--model", run, "-o", out, "--json")
    assert predicted.code == 0, predicted.err
    assert predicted.json["images"] == 3
    table, page = tmp_path / "scores.csv", tmp_path / "scores.html"
    scored = cellseg(
        "evaluate", out, data / "labels", "--json", "--csv", table, "--report", page,
        "--images", data / "images",
    )  # fmt: skip
    assert scored.code == 0, scored.err
    assert 0 < scored.json["pooled"]["f1@0.50"] <= 1
    assert len(list(csv.DictReader(table.open()))) >= 3
    assert "<html" in page.read_text() and str(page) == scored.json["report"]
    assert "f1@0.50" in cellseg("evaluate", out, data / "labels").out
    (run / "report.html").unlink()
    assert cellseg("report", run).code == 0
    assert (run / "report.html").exists()


def test_predict_shows_and_takes_the_options_of_the_model(cellseg, data, run, tmp_path) -> None:
    assert "--sigma" in cellseg("predict", "--model", run, "--help").out
    done = cellseg(
        "predict", data / "images", "--model", run, "-o", tmp_path / "o", "--format", "tiff",
        "--format", "geojson,csv", "--min-size", 10**6, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["objects"] == 0, "an empty result is no error"
    assert {Path(path).suffix for path in done.json["outputs"]} == {".tif", ".geojson", ".csv"}


def test_export(cellseg, run, tmp_path) -> None:
    target = tmp_path / "model.zip"
    assert cellseg("export", run, "-o", target, "--format", "zip").code == 0
    assert target.exists()
    assert cellseg("export", run, "-o", target).code == 4, "it is there already"
    assert cellseg("export", run, "-o", target, "--overwrite").code == 0
    unknown = cellseg("export", run, "-o", target, "--format", "zpi")
    assert unknown.code == 5 and "zip" in unknown.err


def test_check_data(cellseg, data) -> None:
    done = cellseg("check-data", data, "--json")
    assert done.code == 0
    assert done.json["ok"] is True
    assert "ok" in cellseg("check-data", data).out


def test_check_data_refuses_a_mask(cellseg, data, tmp_path) -> None:
    import shutil

    import numpy as np
    import tifffile

    copy = Path(shutil.copytree(data, tmp_path / "data"))
    for file in (copy / "labels").iterdir():
        mask = np.zeros(tifffile.imread(file).shape, np.uint8)
        for corner in range(4, 60, 12):
            mask[corner : corner + 8, corner : corner + 8] = 255
        tifffile.imwrite(file, mask)
    done = cellseg("check-data", copy, "--json")
    assert done.code == 4
    assert done.json["ok"] is False


def test_backends(cellseg) -> None:
    listed = {entry["name"]: entry for entry in cellseg("backends", "--json").json}
    assert listed["otsu"]["trains"] and listed["otsu"]["predicts"]
    assert listed["otsu"]["tasks"] == ["2d"] and "zip" in listed["otsu"]["exports"]
    assert listed["otsu"]["broken"] is None and listed["otsu"]["version"]
    out = cellseg("backends").out
    assert "otsu" in out and "Learn a threshold" in out


def test_backends_info_shows_options_with_defaults(cellseg) -> None:
    out = cellseg("backends", "info", "otsu").out
    assert "--min-size" in out and "20" in out and "dropped" in out and "Models:" in out
    options = cellseg("backends", "info", "otsu", "--json").json["options"]["train"]
    assert {"flag": "--sigma", "default": 1.0} in [
        {k: o[k] for k in ("flag", "default")} for o in options
    ]
    assert cellseg("backends", "--json", "info", "otsu").code == 2, "the flag would be ignored"


def test_doctor(cellseg) -> None:
    done = cellseg("doctor", "--json")
    found = {finding["what"]: finding for finding in done.json["findings"]}
    assert found["Backend otsu"]["state"] == "ok"
    assert {"Python", "Processors", "Memory", "Working directory", "numpy"} <= found.keys()
    assert done.code == (0 if done.json["ok"] else 5)


def test_doctor_looks_at_one_backend_and_one_folder(cellseg, tmp_path) -> None:
    done = cellseg("doctor", "--backend", "otsu", "-o", tmp_path / "out")
    assert "Backend otsu" in done.out and "Backend vista2d" not in done.out
    assert not (tmp_path / "out").exists()
    found = cellseg("doctor", "--backend", "otsu", "-o", tmp_path / "out", "--json").json
    assert any(one["value"].startswith(f"{tmp_path}: ") for one in found["findings"])
    assert cellseg("doctor", "--backend", "ostu").code == 5


def test_new_backend(cellseg, tmp_path) -> None:
    done = cellseg("new-backend", "mine", "-o", tmp_path / "p")
    assert done.code == 0 and (tmp_path / "p" / "pyproject.toml").exists()
    assert cellseg("new-backend", "mine", "-o", tmp_path / "p").code == 4


def test_preview_augmentation_says_which_backend_has_none(cellseg, data, tmp_path) -> None:
    target = tmp_path / "p.png"
    done = cellseg("preview-augmentation", data, "--backend", "otsu", "-o", target)
    assert done.code == 2 and not target.exists()


def test_preview_augmentation(cellseg, data, tmp_path) -> None:
    pytest.importorskip("cellseg_vista")
    target = tmp_path / "p.png"
    done = cellseg(
        "preview-augmentation", data, "--backend", "vista2d", "-o", target, "--patch-size", 32,
        "--count", 2,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert target.read_bytes().startswith(b"\x89PNG")


def test_json_is_alone_on_stdout_and_valid(cellseg, data, faulty, tmp_path) -> None:
    done = cellseg(
        "train", data, "-o", tmp_path / "r", "--backend", "faulty", "--epochs", 3, "--json"
    )
    assert done.code == 0, done.err
    assert done.json["best"] == {"step": 3, "metrics": {"f1": 0.5, "bad": None}}
    assert "NaN" not in done.out


def test_lists_and_pairs_reach_the_backend(cellseg, data, faulty, tmp_path) -> None:
    done = cellseg(
        "train", data, "-o", tmp_path / "r", "--backend", "faulty", "--epochs", 1,
        "--weights", "0.1,2", "--names", "x", "--names", "y,z",
    )  # fmt: skip
    assert done.code == 0, done.err
    kept = json.loads((tmp_path / "r" / "run.json").read_text())["options"]
    assert kept["weights"] == [0.1, 2.0] and kept["names"] == ["x", "y", "z"]


def test_quiet_says_nothing_but_the_result(cellseg, data, faulty, tmp_path) -> None:
    done = cellseg(
        "train", data, "-o", tmp_path / "r", "--backend", "faulty", "--epochs", 3, "--quiet"
    )
    assert done.err == "" and "Model:" in done.out


def test_verbose_shows_each_step(cellseg, data, faulty, tmp_path) -> None:
    line = ["train", data, "--backend", "faulty", "--epochs", 5]
    plain = cellseg(*line, "-o", tmp_path / "a").err
    verbose = cellseg(*line, "-o", tmp_path / "b", "-v").err
    assert "step 3/5" not in plain and "step 1/5" in plain and "step 5/5" in plain
    assert "step 3/5" in verbose
    assert "Validation after step 5: f1 0.5, bad nan (best so far)" in plain


def test_warnings_of_libraries_are_for_verbose(monkeypatch) -> None:
    from cellseg_cli.console import Console

    monkeypatch.setattr(sys, "warnoptions", [])
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        Console()
        assert warnings.filters[0][0] == "ignore"
    assert logging.getLogger().level == logging.WARNING


@pytest.mark.slow
def test_demo(cellseg, tmp_path) -> None:
    pytest.importorskip("cellseg_vista")
    folder = tmp_path / "demo"
    done = cellseg("demo", "--fast", "-o", folder, "--json")
    assert done.code == 0, done.err
    for what in ("picture", "report", "run"):
        assert Path(done.json[what]).exists()
    again = cellseg("demo", "--fast", "-o", folder)
    assert again.code == 4 and "--overwrite" in again.err


def test_demo_without_its_backend(cellseg, tmp_path, monkeypatch) -> None:
    from cellseg.plugins import Plugins

    monkeypatch.setattr("cellseg_cli.commands.setup.Plugins", lambda: Plugins([]))
    done = cellseg("demo", "-o", tmp_path / "demo")
    assert done.code == 5 and "uv pip install cellseg-vista" in done.err
    assert not (tmp_path / "demo").exists()
