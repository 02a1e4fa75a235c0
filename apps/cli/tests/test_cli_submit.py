"""``cellseg submit``: what it refuses, what it shows, and jobs that go on."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_slurm
import psutil
import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="jobs are for POSIX systems")


@pytest.fixture
def line(data: Path, faulty: Path, tmp_path: Path, monkeypatch) -> list[str]:
    """A training; in a folder of its own."""
    monkeypatch.setenv("PYTHONPATH", str(faulty))
    monkeypatch.chdir(tmp_path)
    return ["train", str(data), "-o", "run", "--backend", "faulty", "--epochs", "3"]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A computer with SLURM; gives the folder of what it knows."""
    folder = tmp_path / "slurm"
    monkeypatch.setenv("PATH", f"{fake_slurm.install(folder)}{os.pathsep}{os.environ['PATH']}")
    yield folder
    fake_slurm.end_all(folder)


def eventually(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "Which command"),
        (["--", "tran", "x"], 2, "Did you mean 'train'?"),
        (["--", "submit", "--", "train"], 2, "no use for 'submit'"),
        (["--", "train", "nowhere", "--backend", "faulty"], 2, "Missing option '--output'"),
        (["--", "train", "nowhere", "-o", "r"], 2, "Missing --backend"),
        (["--", "train", "nowhere", "-o", "r", "--backend", "faulty"], 4, "nothing at nowhere"),
        (["--recipe", "a10", "--", "doctor"], 3, "Did you mean 'a100'?"),
        (["--walltime", "soon", "--", "doctor"], 3, "--walltime: write it as"),
        (["--dry-run", "--wait", "--", "doctor"], 3, "--wait does nothing"),
        (["--cluster", "local", "--partition", "x", "--", "doctor"], 3, "--partition does nothing"),
        (["--show-recipe", "a10"], 3, "Did you mean 'a100'?"),
        (["train", "data"], 2, "two dashes"),
    ],
)
def test_mistakes_are_found_before_the_job_waits(
    words, code, said, cellseg, line, tmp_path
) -> None:
    found = cellseg("submit", *words)
    assert found.code == code, found.err
    assert said in found.err
    assert not (tmp_path / "cellseg-jobs").exists()


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--epoch", "3"], 2, "--epochs"),
        (["--val-fraction", "7"], 3, "--val-fraction"),
        (["--weights", "1"], 3, "--weights"),
        (["--preset", "none"], 3, "none"),
    ],
)
def test_options_of_the_command_are_checked(more, code, said, cellseg, line) -> None:
    found = cellseg("submit", "--dry-run", "--", *line, *more)
    assert found.code == code and said in found.err


def test_a_taken_folder_is_refused(cellseg, line, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    found = cellseg("submit", "--dry-run", "--", *line)
    assert found.code == 4 and "cellseg resume run" in found.err


def test_without_slurm_nothing_is_run_here_instead(cellseg, line, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    found = cellseg("submit", "--", *line)
    assert found.code == 7 and "no SLURM" in found.err
    assert not (tmp_path / "run").exists()


def test_flags_win_over_the_recipe_and_the_script_shows_it(
    cellseg, line, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "very-secret")
    (tmp_path / "my.yaml").write_text(
        "partition: gpu\nmemory: 100GB\nsetup: [module load cuda]\nthreads: 4\n"
    )
    words = ["--recipe", "my.yaml", "--memory", "600GB", "--gpus", "4", "--name", "mine"]
    found = cellseg("submit", "--dry-run", "--json", *words, "--", *line)
    assert found.code == 0, found.err
    script = found.json["script"].splitlines()
    for asked in ("partition=gpu", "mem=600G", "gres=gpu:4", "job-name=mine", "requeue"):
        assert f"#SBATCH --{asked}" in script
    assert script.index("module load cuda") < script.index("export SUBMITIT_EXECUTOR=slurm")
    assert "export OMP_NUM_THREADS=4" in script
    assert "very-secret" not in found.out
    assert found.json["job"] is None and not (tmp_path / "run").exists()


def test_a_mistake_in_a_recipe_names_its_file(cellseg, line, tmp_path) -> None:
    (tmp_path / "my.yaml").write_text("memory: 100\n")
    found = cellseg("submit", "--dry-run", "--recipe", "my.yaml", "--", *line)
    assert found.code == 3 and "my.yaml: --memory" in found.err


def test_a_recipe_to_edit_is_one(cellseg, line, tmp_path) -> None:
    found = cellseg("submit", "--show-recipe", "a40")
    (tmp_path / "my.yaml").write_text(found.out)
    shown = cellseg("submit", "--dry-run", "--recipe", "my.yaml", "--", *line)
    assert shown.code == 0 and "#SBATCH --gres=gpu:a40:1" in shown.out


def test_a_subcommand_is_only_parsed(cellseg, line) -> None:
    found = cellseg("submit", "--dry-run", "--", "data", "get", "nothing-like-that")
    assert found.code == 0 and "It would run: cellseg data get nothing-like-that" in found.out


def test_a_job_on_this_computer(cellseg, line, tmp_path) -> None:
    found = cellseg("submit", "--cluster", "local", "--wait", "--json", "--", *line)
    assert found.code == 0, found.err
    assert found.json["ended"]
    assert (tmp_path / "run" / "model" / "weights").exists()
    assert "Running: cellseg train" in Path(found.json["errors"]).read_text()
    assert "Model:" in Path(found.json["output"]).read_text()


@pytest.mark.slow
def test_a_job_that_fails_ends_as_its_command(cellseg, line) -> None:
    words = ["submit", "--cluster", "local", "--wait", "--", *line, "--error", "WeightsError"]
    found = cellseg(*words)
    assert found.code == 6, found.err
    assert "Error: on purpose" in found.err


@pytest.mark.slow
@pytest.mark.parametrize("how", ["time limit", "node failure"])
def test_a_job_that_is_queued_again_goes_on(how, cellseg, line, cluster, tmp_path) -> None:
    """Near its time limit it gets a signal; with its node all its processes end at once."""
    slow = ["--seconds", "0.02", "--epochs", "100", "--verbose"]
    found = cellseg("submit", "--json", "--", *line, *slow)
    assert found.code == 0, found.err
    job, log = found.json["job"], Path(found.json["errors"])
    eventually(lambda: log.exists() and "step 2/" in log.read_text())
    runner = psutil.Process(int((cluster / "jobs" / job).read_text()))
    processes = runner.children(recursive=True)
    if how == "time limit":
        (task,) = [p for p in processes if "submitit.core._submit" in p.cmdline()]
        task.send_signal(signal.SIGUSR2)
    else:
        (cluster / "jobs" / f"{job}.again").touch()  # SLURM starts it elsewhere
        for process in processes:
            process.kill()
    eventually(lambda: not fake_slurm.running(cluster))
    said = log.read_text()
    assert said.count("Running: cellseg train") == 1
    assert said.count("Running: cellseg resume run --verbose") == 1
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [e["event"] for e in events].count("Resumed") == 1
    steps = [e["step"] for e in events if e["event"] == "Progress"]
    if how == "time limit":
        assert "Stopping after this step" in said
        assert steps == list(range(1, 101)), "nothing is done twice"
    assert steps[-1] == 100
    assert (tmp_path / "run" / "model" / "bundle.json").exists()


@pytest.mark.slow
def test_a_prediction_by_workers_that_are_jobs(cellseg, data, cluster, tmp_path) -> None:
    (tmp_path / "my.yaml").write_text("{gpus: 0, cpus: 1, memory: 1GB, walltime: 1h}")
    line = ["predict", data / "images", "--backend", "otsu"]
    alone = cellseg(*line, "-o", tmp_path / "alone", "--json")
    jobs = ["--slurm", tmp_path / "my.yaml", "--workers", "2"]
    together = cellseg(*line, "-o", tmp_path / "together", *jobs, "--json")
    assert together.code == 0, together.err
    assert together.json["objects"] == alone.json["objects"] > 0
    for file in (tmp_path / "alone").glob("*.tif"):
        assert file.read_bytes() == (tmp_path / "together" / file.name).read_bytes()
    assert (tmp_path / "slurm" / "jobs" / "2.sh").exists()
    eventually(lambda: not fake_slurm.running(cluster))
