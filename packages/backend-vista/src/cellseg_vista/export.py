"""Write the network for other software, and check it against the original."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn  # noqa: TID253

from cellseg import Emit, ExportJob, PredictorSpec
from cellseg.bundle import Bundle
from cellseg.plugins import Plugins
from cellseg.torch.export import (
    Output,
    Package,
    Program,
    tell_difference,
    tell_missing,
    write_bioimageio,
    write_onnx,
    write_pt2,
    write_torchscript,
)
from cellseg.torch.export_options import BioimageioOptions, ExportOptions
from cellseg_vista.network import Network

_OUTPUTS = ("semantic", "distance", "embedding")
_SUMMARY = (
    "A network that gives each {voxel} a class, its depth in its object, and a point in an"
    " embedding where each object has a place of its own. Objects are made from these maps."
)
_USAGE = """Objects are not part of the package. To make them: flood the voxels that are no
background from the places where `distance` is high (a seeded watershed), and join neighbouring
pieces whose mean embeddings are near. `cellseg predict` does this, with thresholds found on the
validation images; they are under `predict` in `bundle.json`.

Embeddings of separate tiles do not compare: objects are made in each tile, and matched by their
overlap."""
_CITE = (
    (
        "De Brabandere et al.: Semantic instance segmentation with a discriminative loss function",
        "10.48550/arXiv.1708.02551",
    ),
)


class _Maps(nn.Module):
    """The network without padding, and with a plain tuple as its result."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = self.network.maps(image)
        return maps.semantic, maps.distance, maps.embedding


def program(network: Network) -> Program:
    """The network from images ``(n, c, *s)`` float32, normalised, with sides that are multiples of
    the stride and at least twice as long, to the logits of the classes, the logit of the depth,
    and the embedding."""
    least = zip(network.architecture.smallest, network.stride, strict=True)
    return Program(
        module=_Maps(network).eval(),
        outputs=_OUTPUTS,
        channels=network.architecture.channels,
        least=tuple(max(size, 2 * step) for size, step in least),
        step=network.stride,
    )


def export_pt2(job: ExportJob[Any], emit: Emit) -> Path:
    """Write a program of ``torch.export``, as ``cellseg.torch.export.write_pt2``."""
    return _export(write_pt2, job, emit)


def export_torchscript(job: ExportJob[Any], emit: Emit) -> Path:
    """Write TorchScript, as ``cellseg.torch.export.write_torchscript``."""
    return _export(write_torchscript, job, emit)


def export_onnx(job: ExportJob[Any], emit: Emit) -> Path:
    """Write ONNX, as ``cellseg.torch.export.write_onnx``."""
    return _export(write_onnx, job, emit)


def export_bioimageio(job: ExportJob[BioimageioOptions], emit: Emit) -> Path:
    """Write a bioimage.io model package, as ``cellseg.torch.export.write_bioimageio``.

    Its outputs are the probabilities of the classes, the depth from 0 to 1, and the embedding.
    """
    network = Network.load(job.model)
    worst = write_bioimageio(
        program(network),
        package(network, Bundle.load(job.model)),
        job.model,
        job.target,
        job.options,
    )
    tell_difference(worst, emit)
    tell_missing(job.options, emit)
    return job.target


def package(network: Network, bundle: Bundle) -> Package:
    """What a bioimage.io package says about a vista model."""
    architecture = network.architecture
    spare = (f"spare class {i}" for i in range(len(bundle.classes), architecture.num_classes))
    halo = bundle.tiling or Plugins().get(PredictorSpec, bundle.backend).tiling
    return Package(
        summary=_SUMMARY.format(voxel="pixel" if architecture.dims == 2 else "voxel"),
        usage=_USAGE,
        outputs=(
            Output(
                name="probabilities",
                summary="probability of each class",
                channels=(*bundle.classes, *spare)[: architecture.num_classes],
                activation="softmax",
            ),
            Output(
                name="distance",
                summary="how deep in its object a voxel lies: 0 at the edge, 1 from halfway in",
                channels=("distance",),
                activation="sigmoid",
            ),
            Output(
                name="embedding",
                summary="a point in a space where each object has its own place",
                channels=tuple(f"embedding{i}" for i in range(architecture.emb_dim)),
            ),
        ),
        tiling=halo,
        cite=_CITE,
    )


def _export(
    write: Callable[[Program, Path, float], float], job: ExportJob[ExportOptions], emit: Emit
) -> Path:
    worst = write(program(Network.load(job.model)), job.target, job.options.tolerance)
    tell_difference(worst, emit)
    return job.target
