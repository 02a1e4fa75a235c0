"""SIGKILL at random moments of a training; resumed, it ends with the very same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from cellseg.plugins import Plugins  # noqa: E402
from cellseg.specs import TrainerSpec, TrainJob  # noqa: E402
from cellseg.testing import blobs  # noqa: E402

KILLS = 20
OPTIONS = {
    "feature_size": 4,
    "emb_dim": 4,
    "patch_size": 32,
    "patches_per_image": 12,
    "batch_size": 4,
    "checkpoint_every": 2,
    "warmup_steps": 2,
    "save_top_k": 2,
}


def train(folder: Path) -> None:
    spec = Plugins().get(TrainerSpec, "vista2d")
    for name in ("checkpoint", "model", "previews"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    job = TrainJob(
        options=spec.options(**OPTIONS),
        train=[blobs(1), blobs(2)],
        val=[blobs(3)],
        epochs=4,
        seed=5,
        device="cpu",
        checkpoint=folder / "checkpoint",
        model=folder / "model",
        previews=folder / "previews",
    )
    spec.train(job, lambda event: None)


def start(folder: Path) -> int:
    """Train in a copy of this process: everything is imported already, so it begins at once."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            train(folder)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for part in ("model", "checkpoint")
        for path in sorted((folder / part).rglob("*"))
        if path.suffix != ".ckpt"
    }


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_anywhere_and_resumed_it_ends_the_same(tmp_path: Path) -> None:
    # In a fresh process: threads that other tests have left in this one do not survive a fork.
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"killed {KILLS} times\n"


def kill_and_resume(tmp_path: Path) -> None:
    """What the test does, asserted by itself."""
    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    train(tmp_path / "imported")
    began = time.monotonic()
    assert os.waitpid(start(tmp_path / "whole"), 0)[1] == 0
    lasts = time.monotonic() - began

    rng = random.Random(0)
    killed = 0
    for turn in range(100):
        if killed == KILLS:
            break
        folder = tmp_path / f"cut-{killed % 4}"  # each of four trainings is killed several times
        child = start(folder)
        # Evenly spread over what is left of a training, the first moments included.
        time.sleep(lasts * (turn % 10 + rng.random()) / 10)
        os.kill(child, signal.SIGKILL)
        killed += os.waitpid(child, 0)[1] == signal.SIGKILL
        if (folder / "model/weights.safetensors").exists() and killed < KILLS:
            assert files(folder) == files(tmp_path / "whole")
            folder.rename(tmp_path / f"done-{turn}")
    assert killed == KILLS
    for number in range(4):
        folder = tmp_path / f"cut-{number}"
        assert os.waitpid(start(folder), 0)[1] == 0
        assert files(folder) == files(tmp_path / "whole")
    print(f"killed {killed} times")


if __name__ == "__main__":
    kill_and_resume(Path(sys.argv[1]))
