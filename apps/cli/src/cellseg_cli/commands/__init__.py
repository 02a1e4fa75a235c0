"""The table of commands. It imports none of them: their modules need the whole of core."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """A command as the help page lists it."""

    module: str
    """The module of this package whose function, of the command's name, builds it."""
    summary: str
    """The first line of its docstring; a test keeps the two equal."""
    panel: str
    """The heading it stands under."""


_USE = "Train and use models"
_LOOK = "Look at data and results"
_SET_UP = "Set up"

COMMANDS = {
    "train": Entry("training", "Train a model on labelled images.", _USE),
    "resume": Entry("training", "Continue a training that was stopped, or train longer.", _USE),
    "cross-validate": Entry(
        "cross_validating",
        "Train on all folds but one, in turn, and score the models on the fold left out.",
        _USE,
    ),
    "tune": Entry("tuning", "Search for the options that score best, in many trainings.", _USE),
    "calibrate": Entry(
        "calibrating", "Find the options of prediction that suit labelled images best.", _USE
    ),
    "predict": Entry("predicting", "Segment images with a trained model.", _USE),
    "track": Entry(
        "tracking", "Link the objects of labelled movies to tracks, divisions included.", _USE
    ),
    "embed": Entry("embedding", "Describe each object by a vector, from what a model sees.", _USE),
    "export": Entry("exporting", "Convert a trained model to another format.", _USE),
    "submit": Entry("submitting", "Run a command of cellseg as a job on a SLURM cluster.", _USE),
    "evaluate": Entry("scoring", "Score predicted labels against the truth.", _LOOK),
    "data": Entry("datasets", "Download public data sets to train on, or list them.", _LOOK),
    "check-data": Entry("data", "Check images and labels before training on them.", _LOOK),
    "augment": Entry(
        "augmenting", "Write augmented copies of labelled images, to train on.", _LOOK
    ),
    "preview-augmentation": Entry("data", "Draw what augmentation does to your images.", _LOOK),
    "report": Entry("scoring", "Write the report page of a run again.", _LOOK),
    "demo": Entry("setup", "Train, predict and score on synthetic cells; needs no data.", _SET_UP),
    "backends": Entry("backends", "List the installed backends, or show one in full.", _SET_UP),
    "models": Entry("models", "List, download, check and copy published models.", _SET_UP),
    "init": Entry("setup", "Write a commented config file for a backend.", _SET_UP),
    "new-backend": Entry("setup", "Write a backend package that passes its own tests.", _SET_UP),
    "doctor": Entry("setup", "Check this computer and what is installed on it.", _SET_UP),
}
"""All commands, in the order of the help page."""
