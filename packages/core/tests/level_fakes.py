"""A backend that learns how bright objects are, and remembers what it was asked to do."""

from __future__ import annotations

import json

import cellseg as cs
from cellseg.errors import ConfigError, InterruptedRunError


class LevelOptions(cs.Options):
    gain: float = 1.0
    """The threshold becomes the mean of the training images times this."""
    long_epochs: int | None = None
    """Epochs, by another way."""
    fast_dev_run: bool = False
    """One step."""
    refuse: bool = False
    """Fail before the first step."""


class Jobs:
    """What the fake backend was asked to do."""

    def __init__(self) -> None:
        self.train: list[cs.TrainJob[LevelOptions]] = []
        self.predictors = 0
        self.refuses_untrained = False

    def trainer(self, job: cs.TrainJob[LevelOptions], emit: cs.Emit) -> cs.Trained:
        """Learn how bright objects are: the untrained model takes everything for one."""
        if job.options.refuse:
            raise ConfigError("--refuse: on purpose.")
        self.train.append(job)
        state = job.checkpoint / "state.json"
        seen = json.loads(state.read_text()) if state.exists() else []
        for step in range(len(seen), job.epochs * len(job.train)):
            sample = job.train[step % len(job.train)]
            seen.append(float(sample.image[(slice(None),) * 4].max() / 2))
            emit(cs.Progress(step + 1, job.epochs * len(job.train)))
            state.write_text(json.dumps(seen))
            if job.interrupted():
                raise InterruptedRunError("Stopped.", hint="Go on with cellseg resume.")
        level = job.options.gain * sum(seen) / len(seen) if seen else -100.0
        (job.model / "level.json").write_text(json.dumps(level))
        return cs.Trained()

    def loader(self, job: cs.PredictJob[cs.NoOptions]) -> cs.Predictor:
        import cc3d

        self.predictors += 1
        assert job.model is not None
        level = json.loads((job.model / "level.json").read_text())
        if self.refuses_untrained and level == -100:
            raise ConfigError(f"--model {job.model}: it is random.")
        return lambda tiles: [
            cs.Segmentation(cc3d.connected_components(tile.image[0] > level)) for tile in tiles
        ]
