"""A predictor that can be held up, that kills its process, and that tells who did what."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import engine_fakes
from engine_fakes import LabelOptions, load_label

import cellseg as cs
from cellseg.options import parse
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings

FORMATS = ("tiff", "csv")


@contextmanager
def in_this_process(threads: int) -> Iterator[str]:
    """A cluster with one worker in this process; gives the address of its scheduler."""
    import distributed

    with distributed.LocalCluster(
        n_workers=1,
        threads_per_worker=threads,
        processes=False,
        protocol="tcp",
        host="127.0.0.1",
        dashboard_address=None,
        memory_limit=0,
    ) as started:
        yield started.scheduler_address


SOON = 60.0


class ClusterOptions(LabelOptions):
    log: str = ""
    """A file that gets a line for each tile: process, size of the foreground, device, mirror."""
    hold: str = ""
    """A file: while it is there, each process waits after its first tile."""
    deadly: str = ""
    """Numbers of foreground voxels of tiles that kill the process, with commas."""
    survives: int = 0
    """Tiles of at most so many voxels do not."""


def load_logged(job: cs.PredictJob[ClusterOptions]) -> cs.Predictor:
    options, label = job.options, load_label(job)
    began = 0

    def predict(tiles: Sequence[cs.Tile]) -> Sequence[cs.Segmentation]:
        nonlocal began
        for tile in tiles:
            size = int((tile.image[0] > 0.5).sum())
            if options.log:
                mirror = os.environ.get("CELLSEG_MIRROR", "none")
                with Path(options.log).open("a") as file:
                    file.write(f"{os.getpid()} {size} {job.device} {mirror}\n")
            deadly = options.deadly.split(",")
            if str(size) in deadly and tile.image[0].size > options.survives:
                os.kill(os.getpid(), signal.SIGKILL)
            began += 1
            while began > 1 and options.hold and Path(options.hold).exists():
                time.sleep(0.01)
        return label(tiles)

    return predict


@cs.hookimpl
def cellseg_predictors():
    yield cs.PredictorSpec(
        name="logged",
        summary="Label planes",
        options=ClusterOptions,
        load=load_logged,
        tiling=cs.Tiling((8, 64, 64), (8, 24, 24)),
    )


def plugins() -> cs.plugins.Plugins:
    found = engine_fakes.plugins()
    found.register(sys.modules[__name__], "cluster-fakes")
    return found


def run(images, out, emit=None, interrupted=lambda: False, options=None, **values):
    given = {"backend": "logged", "reader": "npy", "output": out, "device": "cpu", **values}
    settings = parse(PredictSettings, {"format": FORMATS, **given})
    events = []
    summary = predict(
        plugins(),
        images,
        settings,
        options=options or {},
        emit=emit or events.append,
        interrupted=interrupted,
    )
    return summary, events


def until(true):
    end = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def logged(file):
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []
