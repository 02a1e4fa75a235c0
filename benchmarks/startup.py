"""How long `cellseg --help` takes, against a bare Typer program and against micro-sam.

    .venv/bin/python benchmarks/startup.py [--peer PATH/micro_sam.train]

The bare program is what a command line of this kind pays as Typer comes: Typer, pluggy and rich,
two commands, of which only the one asked for gets its flags. Each program runs several times, in
turns, with its byte code compiled; the medians count.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _table import finish, result, table

RUNS = 7
PEER = "micro_sam.train"
BARE = '''
import sys
from typing import Annotated
import pluggy
import rich.console
import typer

app = typer.Typer(no_args_is_help=True)
plugins = pluggy.PluginManager("bare")

def train(
    data: Annotated[str, typer.Argument(help="Images with labels.")],
    epochs: Annotated[int, typer.Option(help="How many epochs to train.", min=0)] = 100,
) -> None:
    """Train a model."""

def predict(
    images: Annotated[str, typer.Argument(help="Images.")],
    tile: Annotated[int, typer.Option(help="Width of a tile.", min=1)] = 1024,
) -> None:
    """Segment images."""

def listed() -> None:
    pass

for command in (train, predict):
    asked = command.__name__ in sys.argv
    app.command(command.__name__, help=command.__doc__)(command if asked else listed)
app()
'''


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--peer", help=f"the program {PEER}; by default the one on the PATH")
    peer = options.parse_args().peer or shutil.which(PEER)
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.py"
        bare.write_text(BARE)
        cellseg = [sys.executable, "-m", "cellseg_cli.main"]
        programs = {
            "bare --help": [sys.executable, str(bare), "--help"],
            "cellseg --help": [*cellseg, "--help"],
            "bare train --help": [sys.executable, str(bare), "train", "--help"],
            "cellseg train --backend vista2d --help": [
                *cellseg, "train", "--backend", "vista2d", "--help",
            ],
        }  # fmt: skip
        if peer is not None:
            programs[f"{PEER} --help"] = [peer, "--help"]
        seconds = medians(programs, RUNS)
    table([("command", "seconds, median"), *seconds.items()])
    ratio = seconds["cellseg --help"] / seconds["bare --help"]
    result("startup_help_ratio", ratio, "<=1.5", ratio <= 1.5)
    slowest = seconds["cellseg train --backend vista2d --help"]
    ratio = slowest / seconds["bare train --help"]
    result("startup_train_help_ratio", ratio, "<=1.5", ratio <= 1.5)
    if peer is None:
        print(f"{PEER} is not on the PATH: uv run python benchmarks/startup.py")
        result("startup_peer_ratio", float("nan"), ">=25", False)
    else:
        ratio = seconds[f"{PEER} --help"] / slowest
        result("startup_peer_ratio", ratio, ">=25", ratio >= 25)
    finish()


def medians(commands: dict[str, list[str]], runs: int) -> dict[str, float]:
    """Median wall seconds of each command; the first run of each, which compiles, is left out."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(runs + 1):
        for name, command in commands.items():
            start = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            elapsed = time.perf_counter() - start
            if done.returncode != 0:
                sys.exit(f"{name} failed with code {done.returncode}:\n{done.stderr}")
            if turn:
                times[name].append(elapsed)
    return {name: statistics.median(each) for name, each in times.items()}


if __name__ == "__main__":
    main()
