"""Saving and loading a network's weights as safetensors, and drawing its first ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch  # noqa: TID253

from cellseg.errors import WeightsError
from cellseg.files import replacing

FILE = "weights.safetensors"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of torch (on the CPU) inside start from ``seed``; outside, nothing changes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        yield


def save_weights(module: torch.nn.Module, path: Path) -> None:
    """Write the parameters and buffers of ``module`` to a safetensors file, atomically.

    Raises:
        StorageError: the file cannot be written.
    """
    save_tensors(module.state_dict(), path)


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write named tensors to a safetensors file, atomically."""
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(plain))


def load_weights(module: torch.nn.Module, path: Path) -> None:
    """Fill ``module`` with the weights in a safetensors file; every name and shape must match.

    Raises:
        WeightsError: the file is missing or damaged, or belongs to another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise WeightsError(
            f"{path} is missing.", hint="Train again, or copy the whole model directory."
        ) from None
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} cannot be read: {error}",
            hint="It is damaged: copy the whole model directory again, or train again.",
        ) from error
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise WeightsError(
            f"{path} does not fit the network: {reason}",
            hint="The options in bundle.json and the weights must come from the same training.",
        ) from error
