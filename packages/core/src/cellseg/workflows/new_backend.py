"""Start a backend: a package with a module, a README and tests that pass at once.

It begins as the Otsu example: learns one threshold, labels what is above it. Replace that by
something better, one function at a time, and keep the tests green.
"""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from cellseg.errors import DataError, UsageError
from cellseg.files import replacing

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

_MODULE = Template('''\
"""A complete cellseg backend: learns one threshold, labels what is above it."""

import json

from pydantic import Field

import cellseg as cs


class ${title}Options(cs.Options):
    sigma: float = Field(1.0, ge=0)
    """Width of the Gaussian blur applied first, in pixels."""
    min_size: int = Field(20, ge=0)
    """Objects of fewer pixels are dropped."""


def train(job: cs.TrainJob[${title}Options], emit: cs.Emit) -> cs.Trained:
    from skimage.filters import threshold_otsu

    from cellseg.files import write_atomic

    state = job.checkpoint / "state.json"
    seen = json.loads(state.read_text()) if state.exists() else []
    total = job.epochs * len(job.train)
    for step in range(len(seen), total):
        sample = job.train[step % len(job.train)]
        seen.append(float(threshold_otsu(sample.image[:, :, :, :])))
        emit(cs.Progress(step + 1, total, {"train/threshold": seen[-1]}))
        write_atomic(state, json.dumps(seen))
        emit(cs.Checkpointed(step + 1))
        if job.interrupted():
            raise cs.InterruptedRunError("Stopped; the state is saved.")
    write_atomic(job.model / "threshold.json", json.dumps(sum(seen) / len(seen) if seen else 0.5))
    return cs.Trained()


def load(job: cs.PredictJob[${title}Options]) -> cs.Predictor:
    from skimage.filters import gaussian
    from skimage.measure import label
    from skimage.morphology import remove_small_objects

    threshold = json.loads((job.model / "threshold.json").read_text()) if job.model else 0.5

    def segment(tile: cs.Tile) -> cs.Segmentation:
        blurred = gaussian(tile.image[0], (0, job.options.sigma, job.options.sigma))
        cells = label(blurred > threshold)
        return cs.Segmentation(remove_small_objects(cells, max_size=job.options.min_size - 1))

    return lambda tiles: [segment(tile) for tile in tiles]


def checks():
    from cellseg.diagnosis import needed

    yield needed("scikit-image", "skimage")


@cs.hookimpl
def cellseg_trainers():
    yield cs.TrainerSpec(
        name="$name", summary="Learn a threshold", options=${title}Options, train=train
    )


@cs.hookimpl
def cellseg_predictors():
    yield cs.PredictorSpec(
        name="$name",
        summary="Threshold and label",
        options=${title}Options,
        checks=checks,
        load=load,
    )
''')

_TEST = Template("""\
from cellseg.testing import BackendTests


class Test$title(BackendTests):
    backend = "$name"
""")

_PYPROJECT = Template("""\
[project]
name = "$package"
version = "0.1.0"
description = "The backend $name for cellseg"
requires-python = ">=3.11"
dependencies = ["cellseg-core", "scikit-image"]

[project.entry-points.cellseg]
$name = "$module"

[dependency-groups]
dev = ["cellseg-core[testing]"]

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[tool.hatch.build.targets.wheel]
include = ["$module.py"]
""")

_README = Template("""\
# $package

The backend `$name` for cellseg. For now it learns one threshold and labels what is above it.

Install it into the environment that has cellseg, and see that it is there:

    uv pip install -e .
    cellseg backends info $name

Its tests prove that it keeps all promises of a backend (`uv pip install "cellseg-core[testing]"`
where pytest is missing):

    pytest

Then make it yours, in `$module.py`:
the options, what `train` writes to `job.model`, and how `load` reads it back.
The guide is `docs/write-a-backend.md` in the repository of cellseg.
""")


def new_backend(name: str, folder: Path | None = None) -> Path:
    """Write the package ``cellseg-NAME``.

    Args:
        name: what users will type after ``--backend``: lower-case letters, digits, hyphens.
        folder: the directory to make; by default ``cellseg-NAME`` in the working directory.

    Returns:
        The directory.

    Raises:
        UsageError: the name is not allowed.
        DataError: the directory is there already.
        StorageError: it cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a backend.",
            hint="Use lower-case letters, digits and hyphens, such as my-backend.",
        )
    target = folder or Path(f"cellseg-{name}")
    if target.exists():
        raise DataError(f"{target} exists.", hint="Choose another --output.")
    with replacing(target) as temporary:
        for file, text in files(name).items():
            path = temporary / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
    return target


def files(name: str) -> dict[str, str]:
    """The files of the package, by their path in it."""
    plain = name.replace("-", "_")
    words = {
        "name": name,
        "package": f"cellseg-{name}",
        "module": f"cellseg_{plain}",
        "title": "".join(word.capitalize() for word in name.split("-")),
    }
    templates = {
        "pyproject.toml": _PYPROJECT,
        "README.md": _README,
        f"cellseg_{plain}.py": _MODULE,
        f"tests/test_{plain}_conformance.py": _TEST,
    }
    return {file: template.substitute(words) for file, template in templates.items()}
