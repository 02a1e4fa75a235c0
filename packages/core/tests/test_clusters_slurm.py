"""Workers as jobs of SLURM, with programs that run them as processes of this computer."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_slurm
import pytest

from cellseg.clusters import slurm
from cellseg.clusters.recipes import Recipe, read_recipe
from cellseg.clusters.slurm import slurm_script, slurm_workers
from cellseg.errors import ConfigError, DeviceError
from cellseg.options import parse

pytestmark = pytest.mark.skipif(os.name == "nt", reason="SLURM is for Linux")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A computer with SLURM; gives the folder of what it knows."""
    folder = tmp_path / "slurm"
    monkeypatch.setenv("PATH", f"{fake_slurm.install(folder)}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "_EVERY", 0.3)
    yield folder
    fake_slurm.end_all(folder)


def small(**values: object) -> Recipe:
    return parse(Recipe, {"gpus": 0, "cpus": 1, "memory": "1G", **values})


def eventually(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def test_the_script_says_what_the_recipe_asks_for(tmp_path: Path) -> None:
    recipe = read_recipe("a100").model_copy(update={"sbatch": ("--exclude=n1", "--exclusive")})
    script = slurm_script(recipe, tmp_path / "some logs", "tls://10.0.0.1:1")
    lines = script.splitlines()
    for asked in (
        "-p main",
        "-t 56:00:00",
        "--mem=150G",
        "--gres=gpu:1",
        "--cpus-per-task=8",
        "-n 1",
        "--nodes=1",
        "--exclude=n1",
        "--exclusive",
        f"--output='{tmp_path}/some logs/cellseg-worker-%j.log'",
    ):
        assert f"#SBATCH {asked}" in lines
    assert "export OMP_NUM_THREADS=8" in lines and "export MKL_NUM_THREADS=8" in lines
    (command,) = [line for line in lines if "dask_worker" in line]
    assert "--nthreads 1" in command and "--nworkers" not in command and "--no-nanny" in command
    words = command.split()
    lifetime, stagger = (
        int(words[words.index(f"--{name}") + 1].rstrip("s"))
        for name in ("lifetime", "lifetime-stagger")
    )
    assert lifetime + stagger <= 56 * 3600 - recipe.signal


def test_the_script_has_nothing_of_the_environment(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "very-secret")
    assert "very-secret" not in slurm_script(small(), tmp_path)


def test_setup_runs_before_the_worker(tmp_path: Path) -> None:
    script = slurm_script(small(setup=["module load cuda"]), tmp_path)
    assert script.index("module load cuda") < script.index("dask_worker")


def test_without_slurm_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="no SLURM") as error, slurm_workers(small(), 1, tmp_path):
        pass
    assert error.value.hint and "sbatch" in error.value.hint


def test_a_worker_with_idle_gpus_is_refused(tmp_path: Path) -> None:
    recipe = parse(Recipe, {"gpus": 4})
    with pytest.raises(ConfigError, match="gpus: 4"), slurm_workers(recipe, 1, tmp_path):
        pass


def test_workers_join_and_a_lost_one_is_replaced(cluster: Path, tmp_path: Path) -> None:
    from distributed import Client

    setup = ["export CELLSEG_TEST_SETUP=done"]
    with slurm_workers(small(setup=setup), 2, tmp_path / "my logs") as address:
        with Client(address) as client:
            client.wait_for_workers(2, timeout=60)
            assert address.startswith("tls://")
            (key,) = (tmp_path / "my logs").glob(".*.pem")
            assert key.stat().st_mode & 0o777 == 0o600
            seen = client.run(lambda: (os.getpid(), os.environ["CELLSEG_TEST_SETUP"]))
            assert {said for _, said in seen.values()} == {"done"}
            assert client.submit(sum, [1, 2, 3]).result(60) == 6
            first = fake_slurm.running(cluster)
            assert len(first) == 2
            os.kill(min(seen.values())[0], 9)
            eventually(lambda: len(set(fake_slurm.running(cluster)) - set(first)) == 1)
            client.wait_for_workers(2, timeout=60)
            pids = {pid for pid, _ in seen.values()} | set(client.run(os.getpid).values())
            assert len(pids) == 3
    eventually(lambda: not fake_slurm.running(cluster))
    for pid in pids:
        eventually(lambda pid=pid: not _alive(pid))
    assert len(list((tmp_path / "my logs").glob("*.log"))) == 3
    assert not list((tmp_path / "my logs").glob(".*")), "the key is gone"


def test_nobody_without_the_key_is_listened_to(cluster: Path, tmp_path: Path) -> None:
    from distributed import Client, Security

    with slurm_workers(small(), 1, tmp_path) as address:
        stranger = Security.temporary()
        with pytest.raises(OSError):
            Client(address, security=stranger, timeout=2)
        with pytest.raises(OSError):
            Client(address.replace("tls://", "tcp://"), timeout=2)


def test_a_job_that_slurm_refuses_is_an_error(cluster: Path, tmp_path: Path) -> None:
    (cluster / "refuse").write_text("sbatch: error: invalid partition specified: main")
    with (
        pytest.raises(DeviceError, match="invalid partition specified: main"),
        slurm_workers(small(), 2, tmp_path),
    ):
        pass


def test_jobs_that_end_at_once_are_given_up(cluster: Path, tmp_path: Path) -> None:
    recipe = small(setup=["echo no such module", "exit 1"])
    with pytest.raises(DeviceError, match="no such module") as error:
        with slurm_workers(recipe, 1, tmp_path / "logs") as address:
            _wait_for_the_end(address)
    assert error.value.hint and str(tmp_path / "logs") in error.value.hint


def _wait_for_the_end(address: str) -> None:
    """As a client, wait for a worker until the scheduler is gone."""
    host, _, port = address.removeprefix("tls://").rpartition(":")

    def gone() -> bool:
        with socket.socket() as asking:
            return asking.connect_ex((host, int(port))) != 0

    eventually(gone)
    raise OSError("the scheduler is gone")


def _alive(pid: int) -> bool:
    state: Any = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
    ).stdout.strip()
    return bool(state) and not state.startswith("Z")
