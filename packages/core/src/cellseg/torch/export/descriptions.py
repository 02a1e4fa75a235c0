"""A network and its bundle as a bioimage.io model description, version 0.5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, get_args

import torch  # noqa: TID253

from cellseg.bundle import FILE as BUNDLE
from cellseg.bundle import Bundle
from cellseg.data import Tiling
from cellseg.errors import ConfigError
from cellseg.torch.export.preprocessing import steps
from cellseg.torch.export.programs import Program
from cellseg.torch.export_options import BioimageioOptions


@dataclass(frozen=True, kw_only=True)
class Output:
    """An output of the program, as it leaves the package."""

    name: str
    """Lower-case letters."""
    summary: str
    """What the numbers mean, in at most 128 characters."""
    channels: tuple[str, ...]
    """Names of its channels, all different."""
    activation: Literal["identity", "softmax", "sigmoid"] = "identity"
    """What the package does to the program's output; the softmax is over the channels."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """What a backend says about a model, beside what its bundle says."""

    summary: str
    """One or two sentences: what the network is."""
    usage: str
    """Markdown: what must still be done with the outputs."""
    outputs: tuple[Output, ...]
    """In the order of the program's."""
    tiling: Tiling
    """Its halo is what is cut from each side of a tile's outputs."""
    cite: tuple[tuple[str, str], ...] = ()
    """Papers of the method: text and DOI."""


def describe(
    program: Program,
    package: Package,
    bundle: Bundle,
    options: BioimageioOptions,
    halo: Sequence[int],
) -> dict[str, Any]:
    """All of ``bioimageio.yaml`` but the weights.

    Args:
        program: the network, and the sizes of images that the package allows.
        package: what its outputs mean.
        bundle: of the model.
        options: what to say of the model.
        halo: for each spatial axis.

    Raises:
        ConfigError: the licence is unknown.
        DataError: the bundle's normalisation cannot be expressed.
    """
    from bioimageio.spec.model.v0_5 import ModelDescr

    dims = len(program.least)
    measured = bundle.spacing != (1.0, 1.0, 1.0)
    space = [
        {"type": "space", "id": name, "scale": size} | ({"unit": "micrometer"} if measured else {})
        for name, size in zip("zyx"[-dims:], bundle.spacing[-dims:], strict=True)
    ]
    names = bundle.channel_names
    if len(set(names)) != program.channels:
        names = tuple(f"channel{i}" for i in range(program.channels))
    sizes = [
        {"size": {"min": least, "step": step} if step else least}
        for least, step in zip(program.least, program.step, strict=True)
    ]
    image = {
        "id": "image",
        "description": "an image, as the microscope gives it",
        "axes": _axes(names, [axis | size for axis, size in zip(space, sizes, strict=True)]),
        "test_tensor": {"source": "test_image.npy"},
        "data": {"type": "float32"},
        "preprocessing": steps(bundle.normaliser, program.channels, "zyx"[-dims:]),
    }
    return {
        "type": "model",
        "format_version": ModelDescr.implemented_format_version,
        "name": options.title or f"cellseg {bundle.backend}",
        "description": options.description or package.summary,
        "authors": [{"name": name} for name in options.author],
        "license": _licence(options.licence),
        "cite": [{"text": text, "doi": doi} for text, doi in package.cite],
        "tags": ["cellseg", bundle.backend, f"{dims}d", "instance-segmentation", "pytorch"],
        "documentation": {"source": "README.md"},
        "covers": [{"source": "cover.png"}],
        "attachments": [{"source": BUNDLE}],
        "inputs": [image],
        "outputs": _outputs(program, package, space, halo),
        "config": {"bioimageio": {"model_parameter_count": _parameters(program)}},
    }


def _outputs(
    program: Program, package: Package, space: list[dict[str, Any]], halo: Sequence[int]
) -> list[dict[str, Any]]:
    with torch.no_grad():
        tensors = program.module(program.image(1, program.least))
    found = []
    for output, tensor in zip(package.outputs, tensors, strict=True):
        axes = []
        for axis, least, size, step, cut in zip(
            space, program.least, tensor.shape[2:], program.step, halo, strict=True
        ):
            like = {"tensor_id": "image", "axis_id": axis["id"]} if step else size
            scale = {"scale": axis["scale"] * least / size, "size": like}
            axes.append(axis | scale | ({"halo": cut} if cut and least == size else {}))
        found.append(
            {
                "id": output.name,
                "description": output.summary,
                "axes": _axes(output.channels, axes),
                "test_tensor": {"source": f"test_{output.name}.npy"},
                "data": {"type": "float32"},
                "postprocessing": _ACTIVATIONS[output.activation],
            }
        )
    return found


_ACTIVATIONS: dict[str, list[dict[str, Any]]] = {
    "identity": [],
    "softmax": [{"id": "softmax", "kwargs": {"axis": "channel"}}],
    "sigmoid": [{"id": "sigmoid"}],
}


def _axes(channels: Sequence[str], space: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "batch"}, {"type": "channel", "channel_names": list(channels)}, *space]


def _parameters(program: Program) -> int:
    return sum(weights.numel() for weights in program.module.parameters())


def _licence(name: str) -> str | None:
    from bioimageio.spec.generic.v0_3 import LicenseId

    if not name:
        return None
    known = get_args(LicenseId.root_model.model_fields["root"].annotation)
    if name not in known:
        spelt = {one.lower(): one for one in known}
        close = get_close_matches(name.lower(), spelt, n=1, cutoff=0.4)
        raise ConfigError(
            f"--licence {name} is no identifier of SPDX.",
            hint=f"Did you mean {spelt[close[0]]}?" if close else "The list: spdx.org/licenses",
        )
    return name
