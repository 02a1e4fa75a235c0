"""Recipes: what a job on a cluster asks for, as YAML that users edit. Light."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from cellseg.errors import ConfigError
from cellseg.options import Options, parse, read_config
from cellseg.texts import did_you_mean

_FOLDER = Path(__file__).with_name("nodes")
_WORD = r"^[^\s'\"\\]+$"
"""What can stand in a line of a script as it is."""
_CLOCK = re.compile(r"(?:(?P<d>\d+)-)?(?P<h>\d+):(?P<m>\d\d):(?P<s>\d\d)")
_SPOKEN = re.compile(r"(?:(?P<d>\d+)\s*d)?\s*(?:(?P<h>\d+)\s*h)?\s*(?:(?P<m>\d+)\s*m(?:in)?)?")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])(?:i?B)?", flags=re.IGNORECASE)
_DIRECTIVE = re.compile(r"--([a-z][a-z0-9-]*)(?:[= ](\S.*))?")
_OWN = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "time": "walltime",
    "mem": "memory",
    "cpus-per-task": "cpus",
    "gres": "gpus",
    "gpus": "gpus",
    "gpus-per-node": "gpus",
    "gpus-per-task": "gpus",
    "requeue": "requeue",
    "no-requeue": "requeue",
    "signal": "signal",
    "output": "logs",
    "error": "logs",
}
"""Directives that other options of a recipe write, and which."""
_FIXED = ("array", "job-name", "nodes", "ntasks", "ntasks-per-node", "open-mode", "wrap")
"""Directives that cellseg decides."""
_SHORTEST = 3600
"""Seconds from which a bare number in YAML can only be a clock time, which YAML 1.1 adds up."""


class Recipe(Options):
    """What one job asks for: always one node, and one task on it."""

    panels: ClassVar = {
        "Recipe: node": (
            "partition",
            "account",
            "qos",
            "constraint",
            "cpus",
            "gpus",
            "gpu_type",
            "memory",
            "threads",
        ),
        "Recipe: job": ("walltime", "signal", "requeue", "interface", "sbatch", "setup", "logs"),
    }

    partition: str | None = Field(None, pattern=_WORD)
    """Partition (queue) of the cluster. By default the cluster's own choice."""
    account: str | None = Field(None, pattern=_WORD)
    """Account that the time is charged to."""
    qos: str | None = Field(None, pattern=_WORD)
    """Quality of service."""
    constraint: str | None = Field(None, pattern=_WORD)
    """Features that the node must have, such as a100_80gb."""
    walltime: str = "56:00:00"
    """The longest that a job runs: 56:00:00 (hours, minutes, seconds), 2-08:00:00 (days first),
    56h, 2d, 90min."""
    memory: str = "150G"
    """Memory of the node for the job, such as 150GB; 0 is all that the node has."""
    cpus: int = Field(8, ge=1)
    """CPU cores."""
    gpus: int = Field(1, ge=0)
    """GPUs on the node."""
    gpu_type: str | None = Field(None, pattern=_WORD)
    """Kind of GPU as the cluster calls it, such as a100. By default any that the partition has."""
    threads: int | None = Field(None, ge=1)
    """Threads of each process (OMP_NUM_THREADS, MKL_NUM_THREADS, OPENBLAS_NUM_THREADS). By default
    as many as there are CPU cores."""
    signal: int = Field(300, ge=30)
    """Seconds before the limit at which the work is asked to save its state and stop."""
    requeue: bool = True
    """Queue the job again when it reaches its limit or its node fails; it goes on where it was."""
    interface: str | None = Field(None, pattern=_WORD)
    """Network interface over which workers reach the scheduler, such as ib0; only for cellseg
    predict. By default what the computer's name stands for."""
    sbatch: tuple[str, ...] = ()
    """More directives for sbatch, each in its long form, such as --exclude=node07."""
    setup: tuple[str, ...] = ()
    """Lines of shell that run on the node first, such as module load cuda."""
    logs: Path | None = None
    """Folder for the logs, on a file system that all nodes see. By default cellseg-jobs in the
    working folder, and for workers of cellseg predict a folder beside the results."""

    @field_validator("walltime", mode="before")
    @classmethod
    def _duration(cls, value: object) -> str:
        seconds = _seconds(value)
        if not seconds:
            raise ValueError("write it as 56:00:00, 2-08:00:00, 56h, 2d or 90min")
        minutes, left = divmod(seconds, 60)
        return f"{minutes // 60:02d}:{minutes % 60:02d}:{left:02d}"

    @field_validator("memory", mode="before")
    @classmethod
    def _size(cls, value: object) -> str:
        if str(value).strip() == "0":
            return "0"
        found = _MEMORY.fullmatch(str(value).strip())
        if found is None or not float(found[1]):
            raise ValueError("write it with its unit, such as 150GB or 600GB")
        number, unit = float(found[1]), found[2].upper()
        if not number.is_integer() and unit != "K":  # SLURM takes whole numbers
            number, unit = number * 1024, "KMGT"["KMGT".index(unit) - 1]
        return f"{int(number)}{unit}"

    @field_validator("sbatch", "setup", mode="before")
    @classmethod
    def _lines(cls, value: object) -> object:
        return value.strip().splitlines() if isinstance(value, str) else value

    @field_validator("sbatch", "setup")
    @classmethod
    def _one_line_each(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        for line in lines:
            if not line.isprintable() or not line.strip():
                raise ValueError(f"{line!r} is not one line of text")
        return tuple(line.strip() for line in lines)

    @field_validator("sbatch")
    @classmethod
    def _directives(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        for line in lines:
            found = _DIRECTIVE.fullmatch(line)
            if found is None:
                raise ValueError(f"{line!r}: write it as --name=value, without #SBATCH")
            if found[1] in _OWN:
                raise ValueError(f"{line!r}: that is what {_OWN[found[1]]!r} is for")
            if found[1] in _FIXED:
                raise ValueError(f"{line!r}: cellseg itself decides on --{found[1]}")
        return lines

    @field_validator("logs")
    @classmethod
    def _plain_folder(cls, folder: Path | None) -> Path | None:
        if folder is not None:
            refuse_odd(folder)
        return folder

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        if self.threads is not None and self.threads > self.cpus:
            raise ValueError(f"--threads {self.threads} is more than --cpus {self.cpus}")
        if self.gpu_type is not None and not self.gpus:
            raise ValueError("--gpu-type does nothing with --gpus 0")
        if 2 * self.signal > self.seconds:
            raise ValueError(
                f"--signal {self.signal} leaves less than half of --walltime {self.walltime}"
            )
        return self

    @property
    def seconds(self) -> int:
        """The longest that a job runs."""
        return _seconds(self.walltime)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that say how many threads to use."""
        count = str(self.threads or self.cpus)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        return dict.fromkeys(names, count)

    @property
    def gres(self) -> str | None:
        """The GPUs as SLURM wants them, such as ``gpu:a100:1``."""
        if not self.gpus:
            return None
        return ":".join(["gpu", *([self.gpu_type] if self.gpu_type else []), str(self.gpus)])

    @property
    def directives(self) -> dict[str, str | bool]:
        """The further directives by name; True for one without a value."""
        found = (_DIRECTIVE.fullmatch(line) for line in self.sbatch)
        return {one[1]: one[2] or True for one in found if one is not None}

    def brief(self) -> str:
        """What is asked for, in a few words."""
        where = f"partition {self.partition}, " if self.partition else ""
        kind = f" ({self.gpu_type})" if self.gpu_type else ""
        memory = "all memory" if self.memory == "0" else self.memory
        return f"{where}{self.gpus} GPU{kind}, {self.cpus} CPU, {memory}, at most {self.walltime}"


def recipe_names() -> list[str]:
    """The recipes that come with cellseg."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def recipe_text(name: str) -> str:
    """The YAML of a recipe that comes with cellseg, with its comments.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in recipe_names():
        raise _unknown(name)
    return (_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def read_recipe(text: str) -> Recipe:
    """A recipe that comes with cellseg, by name, or one in a YAML file, by path.

    Raises:
        ConfigError: there is none of that name, or the file says something unknown.
    """
    values, file = recipe_values(text)
    return parse(Recipe, values, str(file))


def recipe_values(text: str) -> tuple[Mapping[str, Any], Path]:
    """What a recipe says, and the file that says it.

    Raises:
        ConfigError: there is none of that name, or the file cannot be read.
    """
    if text in recipe_names():
        file = _FOLDER / f"{text}.yaml"
    else:
        file = Path(text)
        if not file.exists() and file.suffix.lower() not in (".yaml", ".yml"):
            raise _unknown(text)
    return read_config(file), file


def refuse_odd(folder: Path) -> None:
    """Refuse the name of a folder that SLURM would read as something else.

    Raises:
        ValueError: it has a percent sign or a line break.
    """
    if "%" in str(folder) or not str(folder).isprintable():
        raise ValueError(f"{str(folder)!r}: the logs cannot be in a folder with % or a line break")


def _unknown(name: str) -> ConfigError:
    names = recipe_names()
    return ConfigError(
        f"There is no recipe {name!r}.",
        hint=did_you_mean(
            name, names, f"There are {', '.join(names)}, and any YAML file by its path."
        ),
    )


def _seconds(value: object) -> int:
    """A duration; 0 for what is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if value >= _SHORTEST else 0
    text = str(value).strip().lower()
    found = _CLOCK.fullmatch(text) or _SPOKEN.fullmatch(text)
    if found is None:
        return 0
    part = {name: int(digits or 0) for name, digits in found.groupdict().items()}
    return ((part["d"] * 24 + part["h"]) * 60 + part["m"]) * 60 + part.get("s", 0)
