"""Start the encoder ``segresnet_ds`` from a checkpoint of VISTA3D (He et al., arXiv:2406.05285)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from cellseg.errors import ConfigError, WeightsError
from cellseg.files import sha256_of
from cellseg.torch.reading import read_file

if TYPE_CHECKING:
    from cellseg_vista.network import Network

_NESTED = ("state_dict", "model", "network", "network_weights")
_ENCODER = re.compile(r"(?:.*\.)?image_encoder\.(encoder\.layers\.(\d+)\..*|encoder\..*)")
_DECODER = re.compile(r"(?:.*\.)?image_encoder\.up_layers_auto\.(\d+)\.(.*)")
_FIRST = "encoder.conv_init.weight"


@dataclass(frozen=True)
class LoadedEncoder:
    """Which tensors came from where."""

    used: tuple[str, ...]
    """The network's tensors that were filled."""
    untouched: tuple[str, ...]
    """Those of its encoder and decoder that the checkpoint does not have."""
    left_out: tuple[str, ...]
    """The checkpoint's tensors that were not used: prompts, the classes' embeddings, the decoder
    for points, and levels that the network lacks."""
    sha256: str

    def __str__(self) -> str:
        parts = [f"{len(self.used)} tensors of the encoder and decoder come from the checkpoint"]
        if self.untouched:
            few = ", ".join(self.untouched[:3]) + (", ..." if len(self.untouched) > 3 else "")
            parts.append(f"{len(self.untouched)} are not in it and start from random ({few})")
        if self.left_out:
            groups = dict.fromkeys(_group(name) for name in self.left_out)
            parts.append(f"{len(self.left_out)} of its tensors are not used ({', '.join(groups)})")
        return "; ".join(parts) + "."


def load_encoder(network: Network, path: Path) -> LoadedEncoder:
    """Fill the encoder and the decoder of ``network`` from a checkpoint of MONAI's VISTA3D.

    Of its two decoders the one for automatic segmentation is taken. Where the network has fewer
    levels than the checkpoint, the finest of them are filled.

    Args:
        network: with the encoder ``segresnet_ds`` in three dimensions.
        path: a state dict of ``monai.networks.nets.vista3d132`` or of VISTA3D in another size, as
            ``torch.save`` writes it, or as a safetensors file. It may lie under ``state_dict``,
            ``model``, ``network`` or ``network_weights``, and its names may have a prefix.

    Raises:
        ConfigError: the network has another encoder, or two dimensions.
        WeightsError: the file is missing, damaged or holds more than tensors; it is none of
            VISTA3D; or its shapes differ from the network's.
    """
    architecture = network.architecture
    if architecture.encoder != "segresnet_ds" or architecture.dims != 3:
        raise ConfigError(
            "--encoder-weights fills the encoder segresnet_ds in three dimensions, not"
            f" {architecture.encoder} in {architecture.dims}"
        )
    tensors = _read(path)
    ours = {
        name.removeprefix("trunk.net."): tensor
        for name, tensor in network.state_dict().items()
        if name.startswith("trunk.")
    }
    sources = _sources(tensors, architecture.levels)
    fitting = {name: source for name, source in sources.items() if name in ours}
    if _FIRST not in fitting:
        raise WeightsError(
            f"{path} is no checkpoint of VISTA3D: it has no tensor image_encoder.{_FIRST}",
            hint="Give the state dict of monai.networks.nets.vista3d132.",
        )
    _check(path, tensors[fitting[_FIRST]], ours[_FIRST])
    for name, source in fitting.items():
        if tensors[source].shape != ours[name].shape:
            raise WeightsError(
                f"{path}: {source} is {_times(tensors[source])}, but {_times(ours[name])} in the"
                " network"
            )
    with torch.no_grad():
        for name, source in fitting.items():
            ours[name].copy_(tensors[source])
    taken = set(fitting.values())
    return LoadedEncoder(
        used=tuple(f"trunk.net.{name}" for name in ours if name in fitting),
        untouched=tuple(f"trunk.net.{name}" for name in ours if name not in fitting),
        left_out=tuple(name for name in tensors if name not in taken),
        sha256=sha256_of(path),
    )


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint; nothing in it is executed."""
    values = read_file(path)
    while isinstance(values, Mapping):
        inner = [values[key] for key in _NESTED if isinstance(values.get(key), Mapping)]
        if not inner:
            break
        values = inner[0]
    if not isinstance(values, Mapping):
        raise WeightsError(f"{path} holds no state dict, but a {type(values).__name__}.")
    return {str(name): value for name, value in values.items() if isinstance(value, Tensor)}


def _sources(tensors: Mapping[str, Tensor], levels: int) -> dict[str, str]:
    """For each tensor of MONAI's SegResNetDS, its name in the checkpoint.

    The decoder's levels are counted from the coarsest.
    """
    found = [match for name in tensors if (match := _ENCODER.fullmatch(name))]
    depth = 1 + max((int(match[2]) for match in found if match[2]), default=0)
    sources = {match[1]: match[0] for match in found}
    for name in tensors:
        if match := _DECODER.fullmatch(name):
            level = int(match[1]) - (depth - levels)
            sources[f"up_layers.{level}.{match[2]}"] = name
    return sources


def _check(path: Path, theirs: Tensor, ours: Tensor) -> None:
    """Compare the first convolution, which tells what the rest must be."""
    if theirs.ndim != ours.ndim:
        raise WeightsError(f"{path} is not for volumes: its first tensor is {_times(theirs)}")
    if theirs.shape[0] != ours.shape[0]:
        raise WeightsError(
            f"{path} has {theirs.shape[0]} features, the network {ours.shape[0]}.",
            hint=f"--feature-size {theirs.shape[0]}",
        )
    if theirs.shape[1] != ours.shape[1]:
        raise WeightsError(
            f"{path} is for images of {theirs.shape[1]} channels, these have {ours.shape[1]}.",
            hint=f"Choose {theirs.shape[1]} of them with --channels.",
        )
    if theirs.shape != ours.shape:
        raise WeightsError(
            f"{path} has kernels of {_times(theirs[0, 0])}, the network {_times(ours[0, 0])}, to"
            " suit the voxels' shape.",
            hint="VISTA3D is for voxels of about equal edges: resample the volumes, or train"
            " without --encoder-weights.",
        )


def _times(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def _group(name: str) -> str:
    """The part of VISTA3D that a tensor belongs to, with its level where others may be used."""
    before, _, part = name.partition("image_encoder.")
    if not part:
        return next((each for each in name.split(".") if each.endswith("_head")), before)
    if match := re.match(r"(encoder\.layers|up_layers_auto)\.\d+", part):
        return match[0]
    return part.split(".")[0]
