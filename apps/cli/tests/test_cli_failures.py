"""Every exit code, and what the user reads with it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cellseg.errors import PartialError
from cellseg_cli.failures import report

CODES = {
    "UsageError": 2,
    "ConfigError": 3,
    "DataError": 4,
    "PluginError": 5,
    "WeightsError": 6,
    "DeviceError": 7,
    "StorageError": 7,
    "MemoryError": 7,
    "DivergedError": 8,
    "PartialError": 9,
    "InterruptedRunError": 130,
    "KeyboardInterrupt": 130,
}


def train(cellseg, data, out, *words: object):
    return cellseg("train", data, "-o", out, "--backend", "faulty", "--epochs", 2, *words)


@pytest.mark.parametrize("error, code", CODES.items())
def test_each_error_has_its_code_and_one_line(
    error: str, code: int, cellseg, data, faulty, tmp_path
) -> None:
    done = train(cellseg, data, tmp_path / "run", "--error", error, "--quiet")
    assert done.code == code
    assert done.out == ""
    assert done.err.startswith("Error: ") and "Traceback" not in done.err
    assert len(done.err.splitlines()) <= 2, "a line, and a hint"


def test_a_bug_shows_where_it_is_and_how_to_report_it(cellseg, data, faulty, tmp_path) -> None:
    done = train(cellseg, data, tmp_path / "run", "--error", "RuntimeError")
    assert done.code == 1
    assert "Traceback" in done.err and "RuntimeError: on purpose" in done.err
    assert "This is a bug" in done.err and "cellseg doctor" in done.err


def test_with_json_an_error_is_json_too(cellseg, data, faulty, tmp_path) -> None:
    done = train(cellseg, data, tmp_path / "run", "--error", "WeightsError", "--json")
    assert done.json == {
        "error": {
            "type": "WeightsError",
            "message": "on purpose",
            "hint": None,
            "exit_code": 6,
        }
    }


def test_verbose_shows_where_an_error_comes_from(cellseg, data, faulty, tmp_path) -> None:
    done = train(cellseg, data, tmp_path / "run", "--error", "WeightsError", "-v")
    assert "Traceback" in done.err and done.code == 6


@pytest.mark.parametrize(
    "words, code, said",
    [
        (["trian"], 2, "train"),
        (["train", "{data}", "-o", "{out}", "--backend", "otsu", "--epcohs", "3"], 2, "--epochs"),
        (["train", "{data}", "-o", "{out}", "--backend", "otsu", "--epochs", "many"], 2, "epochs"),
        (["train", "{data}", "-o", "{out}"], 2, "--backend"),
        (["train", "{data}", "--backend", "otsu"], 2, "output"),
        (["predict", "{data}", "-o", "{out}"], 2, "--model"),
        (["train", "{data}", "-o", "{out}", "--backend", "otsu", "--epochs", "-1"], 3, "--epochs"),
        (["train", "{data}", "-o", "{out}", "--backend", "otsu", "--min-size=-1"], 3, "--min-size"),
        (["train", "{data}", "-o", "{out}", "--backend", "otsu", "--config", "x.y"], 3, "x.y"),
        (["train", "nowhere", "-o", "{out}", "--backend", "otsu"], 4, "nowhere"),
        (["resume", "{data}"], 4, "not a cellseg run"),
        (["predict", "{data}", "--model", "{data}", "-o", "{out}"], 4, "no trained model"),
        (["evaluate", "nowhere", "{data}"], 4, "nowhere"),
        (["export", "{data}", "-o", "{out}"], 4, "no trained model"),
        (["report", "{data}"], 4, "not a cellseg run"),
        (["train", "{data}", "-o", "{out}", "--backend", "ostu"], 5, "otsu"),
        (["train", "{data}", "-o", "{out}", "--backend", "otsu", "--reader", "czi"], 5, "czi"),
        (["backends", "info", "ostu"], 5, "otsu"),
        (["new-backend", "No Name"], 2, "lower-case"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(words, code, said, cellseg, data, tmp_path) -> None:
    out = tmp_path / "out"
    done = cellseg(*(word.format(data=data, out=out) for word in words))
    assert done.code == code, done.err
    assert said in _unboxed(done.err)
    assert "Traceback" not in done.err
    assert not out.exists(), "nothing half-made is left"


def _unboxed(text: str) -> str:
    """What Typer prints in a box, as one line."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


def test_a_typo_in_a_config_file_names_file_and_key(cellseg, data, tmp_path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("backend: otsu\nepcohs: 3\n")
    done = cellseg("train", data, "-o", tmp_path / "run", "--config", config)
    assert done.code == 3
    assert f"{config}: unknown option 'epcohs'" in done.err
    assert "Did you mean 'epochs'?" in done.err
    assert not (tmp_path / "run").exists()


def test_a_config_file_that_is_no_yaml(cellseg, data, tmp_path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("epochs: [3\n")
    done = cellseg("train", data, "-o", tmp_path / "run", "--backend", "otsu", "--config", config)
    assert (done.code, str(config) in done.err) == (3, True)


@pytest.fixture
def copy(data, tmp_path) -> Path:
    return Path(shutil.copytree(data, tmp_path / "data"))


def _first(folder: Path) -> Path:
    return min(path for path in folder.rglob("*.tif"))


def test_a_truncated_image(cellseg, copy, tmp_path) -> None:
    image = _first(copy / "images")
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    _refused(cellseg, copy, tmp_path, image)


def test_an_empty_file(cellseg, copy, tmp_path) -> None:
    image = _first(copy / "images")
    image.write_bytes(b"")
    _refused(cellseg, copy, tmp_path, image)


@pytest.mark.parametrize("damage", ["truncated", "empty", "nan"])
def test_predict_refuses_a_damaged_image(damage, cellseg, data, copy, tmp_path) -> None:
    import numpy as np
    import tifffile

    cellseg("train", data, "-o", tmp_path / "run", "--backend", "otsu", "--epochs", 1)
    image = _first(copy / "images")
    if damage == "truncated":
        image.write_bytes(image.read_bytes()[:-2000])
    elif damage == "empty":
        image.write_bytes(b"")
    else:
        pixels = tifffile.imread(image).astype(np.float32)
        pixels[3, 4] = np.nan
        tifffile.imwrite(image, pixels)
    out = tmp_path / "out"
    line = ("predict", copy / "images", "--model", tmp_path / "run", "-o", out, "--quiet")
    done = cellseg(*line, "--json")
    assert done.code in (4, 9), done.err
    assert image.stem in done.err and "Traceback" not in done.err
    assert done.json["error"]["exit_code"] == done.code
    assert not (out / f"{image.stem}.tif").exists(), "no labels of a damaged image"


def test_labels_of_another_shape(cellseg, copy, tmp_path) -> None:
    import numpy as np
    import tifffile

    labels = _first(copy / "labels")
    tifffile.imwrite(labels, np.ones((32, 48), np.uint16))
    _refused(cellseg, copy, tmp_path, labels)


def _refused(cellseg, data, tmp_path, file: Path) -> None:
    """Every command that reads it says so, in one line that names the file."""
    out = tmp_path / "run"
    done = cellseg("train", data, "-o", out, "--backend", "otsu", "--epochs", 1, "--quiet")
    assert done.code == 4, done.err
    assert file.stem in done.err and "Traceback" not in done.err
    assert not (out / "model" / "bundle.json").exists()
    checked = cellseg("check-data", data, "--quiet")
    assert checked.code == 4
    assert file.stem in checked.out + checked.err


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_run_directory_without_write_permission(cellseg, data, tmp_path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    done = cellseg("train", data, "-o", locked / "run", "--backend", "otsu", "--epochs", 1)
    assert done.code == 7
    assert str(locked) in done.err and "permission denied" in done.err


def test_an_output_below_a_file(cellseg, data, tmp_path) -> None:
    """As root, permissions do not count; a file in the way does."""
    file = tmp_path / "file"
    file.write_text("")
    done = cellseg("train", data, "-o", file / "run", "--backend", "otsu", "--epochs", 1, "-q")
    assert done.code in (4, 7), done.err
    assert str(file) in done.err and "Traceback" not in done.err


@pytest.mark.parametrize(
    "options, fill, said",
    [("size=100k", 94000, "the disk is full"), ("ro", 0, "the file system is read-only")],
)
def test_a_disk_that_is_full_or_read_only(options, fill, said, data, tmp_path) -> None:
    """A real one: a small file system that only a new mount namespace sees."""
    small = tmp_path / "small"
    small.mkdir()
    mount = f"mount -t tmpfs -o {options} none {small}"
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", *mount.split()]).returncode:
        pytest.skip("may not mount a file system")
    train = f"{sys.executable} -m cellseg_cli.main train {data} -o {small}/run --backend otsu -q"
    junk = f"head -c {fill} /dev/zero > {small}/junk" if fill else "true"
    script = f"{mount} && {junk}; {train}; code=$?; ls -A {small}/run/model; exit $code"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert said in done.stderr and str(small) in done.stderr
    assert "Traceback" not in done.stderr
    assert "bundle.json" not in done.stdout


def test_a_broken_backend_is_listed_with_its_reason(cellseg, broken) -> None:
    done = cellseg("backends")
    assert done.code == 0
    assert "broken is broken" in done.out and "a_module_that_is_not_there" in done.out
    assert "uv pip install" in done.out and "otsu" in done.out


def test_a_broken_backend_asked_for_is_an_error(cellseg, broken, data, tmp_path) -> None:
    done = cellseg("train", data, "-o", tmp_path / "run", "--backend", "broken")
    assert done.code == 5
    assert "cannot be imported" in done.err and "Reinstall" in done.err
    assert cellseg("backends", "info", "broken").code == 5
    assert cellseg("doctor").code == 5


def test_two_packages_of_one_name_are_both_named(
    cellseg, faulty, install, tmp_path, monkeypatch
) -> None:
    other = install(tmp_path / "other", "faulty", "other_module", "", package="cellseg-other")
    monkeypatch.syspath_prepend(other)
    done = cellseg("backends")
    assert done.code == 5
    assert "cellseg-faulty" in done.err and "cellseg-other" in done.err
    assert cellseg("--help").code == 0


def test_a_reader_that_stops_early_makes_no_noise(tmp_path) -> None:
    """As in ``cellseg backends | head -1``."""
    command = [sys.executable, "-m", "cellseg_cli.main", "backends"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.wait()
    assert errors == b""


def test_json_lists_all_that_failed(capsys: pytest.CaptureFixture[str]) -> None:
    failed = {f"image{number}": "is damaged." for number in range(30)}
    assert report(PartialError("30 image(s) failed", failed), ["predict", "--json"]) == 9
    assert json.loads(capsys.readouterr().out)["error"]["failed"] == failed


def test_a_device_without_memory_is_no_bug(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), ["export"]) == 7
    said = capsys.readouterr().err
    assert said.startswith("Error: The memory does not suffice.") and "Traceback" not in said
