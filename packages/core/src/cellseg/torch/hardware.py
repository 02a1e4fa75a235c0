"""Set Lightning's Fabric up for a training, and say what a wish for hardware lacks."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

import torch  # noqa: TID253

from cellseg.errors import ConfigError, DeviceError
from cellseg.specs import TrainJob
from cellseg.torch.devices import resolve_device
from cellseg.torch.options import FitOptions
from cellseg.torch.ranks import Ranks


def check_hardware(options: FitOptions, device: torch.device) -> None:
    """Refuse what this computer, or what is installed on it, cannot do.

    Raises:
        DeviceError: a device is missing, or does not support the strategy or precision.
        ConfigError: two options exclude each other, or a package for one is not installed.
    """
    if options.precision == "16-mixed" and device.type != "cuda":
        raise DeviceError(
            f"--precision 16-mixed needs CUDA, not {device.type}.",
            hint="Use --precision bf16-mixed or 32-true.",
        )
    if options.strategy in ("fsdp", "deepspeed_stage_2") and device.type != "cuda":
        raise DeviceError(
            f"--strategy {options.strategy} needs CUDA devices, not {device.type}.",
            hint="Use --strategy ddp.",
        )
    if options.strategy == "deepspeed_stage_2" and find_spec("deepspeed") is None:
        raise ConfigError(
            "--strategy deepspeed_stage_2 needs the package deepspeed.",
            hint="Install it: uv pip install deepspeed; or use --strategy ddp.",
        )
    if options.strategy == "fsdp" and options.average:
        raise ConfigError(
            "--strategy fsdp cannot average weights that lie on several devices.",
            hint="Add --average 0.",
        )
    if options.devices > 1 and device.type == "mps":
        raise DeviceError("--devices: an Apple computer has one GPU.", hint="Use --devices 1.")
    if device.type == "cuda" and options.devices > torch.cuda.device_count():
        raise DeviceError(
            f"--devices {options.devices}: there are only {torch.cuda.device_count()} CUDA devices."
        )
    if options.devices > 1 and device.type == "cuda" and device.index:
        raise ConfigError(
            f"--device cuda:{device.index} is one device, but --devices is {options.devices}.",
            hint="Use --device cuda, with CUDA_VISIBLE_DEVICES to choose.",
        )
    for logger, package in (("tensorboard", "tensorboard"), ("wandb", "wandb")):
        if options.logger == logger and find_spec(package) is None:
            raise ConfigError(
                f"--logger {logger} needs the package {package}.",
                hint=f"Install it: uv pip install {package}",
            )


def make_fabric(rank: int, port: int, job: TrainJob[Any]) -> Any:
    """A launched Fabric for process ``rank``."""
    from lightning.fabric import Fabric

    options: FitOptions = job.options
    device = resolve_device(job.device)
    strategy: Any = options.strategy
    if strategy == "auto" and options.devices > 1:
        strategy = "ddp"
    if strategy == "fsdp":
        from lightning.fabric.strategies import FSDPStrategy

        strategy = FSDPStrategy(state_dict_type="full")
    devices: int | list[int] = options.devices
    if device.type == "cuda" and options.devices == 1:
        devices = [device.index]
    fabric = Fabric(
        accelerator=device.type,
        devices=devices,
        strategy=strategy,
        precision=options.precision,
        plugins=[Ranks(rank, options.devices, port)],
        loggers=_logger(options, job) if rank == 0 else None,
    )
    fabric.launch()
    return fabric


def _logger(options: FitOptions, job: TrainJob[Any]) -> Any:
    if options.logger == "tensorboard":
        from lightning.fabric.loggers import TensorBoardLogger

        return TensorBoardLogger(job.checkpoint, name="tensorboard", version="")
    if options.logger == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        return WandbLogger(name=job.model.parent.name, save_dir=job.checkpoint)
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's and torch's own messages are not for the user: errors and events are."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        for module in ("lightning", "torch"):
            warnings.filterwarnings("ignore", module=rf"{module}\b.*")
        for part in ("fabric", "fabric.utilities.rank_zero", "pytorch.utilities.rank_zero"):
            logger = logging.getLogger(f"lightning.{part}")
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        yield
