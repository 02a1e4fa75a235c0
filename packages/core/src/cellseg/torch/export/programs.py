"""A network as one file: a program of ``torch.export``, TorchScript, or ONNX."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from cellseg.errors import ConfigError, WeightsError
from cellseg.files import replacing
from cellseg.torch.weights import seeded

EXTRA = "cellseg-core[export]"
_ONNX_LIMIT = 2**31 - 2**24  # a protobuf message ends at 2 GiB; some of it is not weights
Run = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Program:
    """A network as a function of one image, and the images that it takes."""

    module: nn.Module
    """On the CPU, in eval mode. It maps ``image (n, c, *s)`` float32 to a tuple of tensors."""
    outputs: tuple[str, ...]
    """Names of those tensors."""
    channels: int
    least: tuple[int, ...]
    """Smallest size along each spatial axis, ``(y, x)`` or ``(z, y, x)``."""
    step: tuple[int, ...]
    """Larger images have this many pixels more, or a multiple of it. It goes twice or more into
    ``least``, because ``torch.export`` takes 1 for a constant. 0: the size is fixed."""

    def __post_init__(self) -> None:
        if len(self.least) != len(self.step) or len(self.least) not in (2, 3):
            raise ValueError(f"least {self.least} and step {self.step} must both have 2 or 3 axes")
        for least, step in zip(self.least, self.step, strict=True):
            if step and (least % step or least < 2 * step):
                raise ValueError(f"step {self.step} does not go twice or more into {self.least}")

    def size(self, *steps: int) -> tuple[int, ...]:
        """``least`` and so many steps more along each axis."""
        return tuple(a + n * b for a, b, n in zip(self.least, self.step, steps, strict=True))

    def image(self, count: int, size: tuple[int, ...]) -> Tensor:
        """Random numbers from 0 to 1, always the same, as ``count`` images of ``size``."""
        with seeded(0):
            return torch.rand(count, self.channels, *size)

    @property
    def examples(self) -> tuple[Tensor, Tensor]:
        """Two batches of other sizes and counts: the first to trace with, both to compare with."""
        several = self.size(*range(1, len(self.least) + 1))
        return self.image(2, several), self.image(1, self.least)


def write_pt2(program: Program, target: Path, tolerance: float) -> float:
    """Write a program of ``torch.export``, for any number and all sizes of images.

    Args:
        program: what to write.
        target: ends in ``.pt2``.
        tolerance: largest difference to the original that is accepted.

    Returns:
        The largest absolute difference between outputs of what was written and of the original.

    Raises:
        WeightsError: it is more than ``tolerance``; nothing is left behind.
        StorageError: the target cannot be written.
    """

    def write(path: Path) -> Run:
        with path.open("wb") as file:
            torch.export.save(_exported(program), file)
        with path.open("rb") as file:
            module: Run = torch.export.load(file).module()
        return module

    return _written(program, target, tolerance, write)


def write_torchscript(program: Program, target: Path, tolerance: float) -> float:
    """Write TorchScript, traced; PyTorch calls it deprecated, but much software reads it.

    Args, result and errors are those of ``write_pt2``.
    """

    def write(path: Path) -> Run:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated; constants of the trace: compared below
            traced = torch.jit.trace(program.module, program.examples[0], check_trace=False)
            with path.open("wb") as file:
                torch.jit.save(traced, file)
            with path.open("rb") as file:
                module: Run = torch.jit.load(file)
        return module

    return _written(program, target, tolerance, write)


def write_onnx(program: Program, target: Path, tolerance: float) -> float:
    """Write one ONNX file, its input named ``image``, its outputs as the program says.

    Args and result are those of ``write_pt2``; the comparison runs in ONNX Runtime.

    Raises:
        ConfigError: packages are missing.
        WeightsError: as ``write_pt2``, or the weights are too large for one ONNX file.
    """
    require("onnx", "onnxscript", "onnxruntime")
    size = sum(w.nbytes for w in program.module.state_dict().values())
    if size > _ONNX_LIMIT:
        raise WeightsError(
            f"The weights take {size / 2**30:.1f} GiB, but an ONNX file ends at 2.",
            hint="Choose another format.",
        )

    def write(path: Path) -> Run:
        import onnxruntime  # type: ignore[import-untyped]

        with warnings.catch_warnings(), _quiet("torch.onnx"):
            warnings.simplefilter("ignore")
            names = {"input_names": ["image"], "output_names": list(program.outputs)}
            model: Any = torch.onnx.export(_exported(program), dynamo=True, verbose=False, **names)
        model.save(path, external_data=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda image: [
            torch.from_numpy(a) for a in session.run(None, {"image": image.numpy()})
        ]

    return _written(program, target, tolerance, write)


def require(*packages: str) -> None:
    """Raise a ConfigError that says how to install those of the packages that are missing."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"This format needs packages that are not installed: {', '.join(missing)}.",
            hint=f'Install them: uv pip install "{EXTRA}"',
        )


def _written(
    program: Program, target: Path, tolerance: float, write: Callable[[Path], Run]
) -> float:
    with replacing(target) as temporary, torch.no_grad():
        run = write(temporary)
        worst = max(_difference(program, run, image) for image in program.examples)
        if worst > tolerance:
            raise WeightsError(
                f"The exported network differs from the original by {worst:g}, more than"
                f" {tolerance:g}.",
                hint="Raise --tolerance if that is good enough, or choose another format.",
            )
    return worst


def _difference(program: Program, run: Run, image: Tensor) -> float:
    """The largest one between outputs; infinity where numbers are no numbers, or shapes differ."""
    pairs = list(zip(program.module(image), run(image), strict=True))
    if len(pairs) != len(program.outputs) or any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    worst = float(torch.stack([(a - b).abs().max() for a, b in pairs]).max())
    return float("inf") if worst != worst else worst


def _exported(program: Program) -> Any:
    sizes: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    names = ("z", "y", "x")[-len(program.least) :]
    for axis, (name, least, step) in enumerate(
        zip(names, program.least, program.step, strict=True), 2
    ):
        if step:
            dim = torch.export.Dim(name, min=least // step)
            sizes[axis] = dim if step == 1 else step * dim
    return torch.export.export(
        program.module, (program.examples[0],), dynamic_shapes=(sizes,), strict=False
    )


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Less than errors is not logged inside: which packages the exporter also knows, and such."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
