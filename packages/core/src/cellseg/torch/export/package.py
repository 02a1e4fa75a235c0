"""A bioimage.io model package: the network, how to feed it, and a test that it passes.

The format: https://bioimage.io, version 0.5. Neither writing nor testing needs a network.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from cellseg.bundle import FILE as BUNDLE
from cellseg.bundle import Bundle
from cellseg.data import Tiling
from cellseg.errors import ConfigError, UsageError, WeightsError
from cellseg.files import replacing
from cellseg.torch.export.descriptions import Package, describe
from cellseg.torch.export.programs import Program, require, write_onnx, write_torchscript
from cellseg.torch.export.samples import draw_cover, made_up_image
from cellseg.torch.export.texts import readme
from cellseg.torch.export_options import BioimageioOptions
from cellseg.torch.weights import seeded

_FLAGS = {"name": "--title", "description": "--description", "authors": "--author"}
_PROVIDERS = {"torchscript": "cpu", "onnx": "CPUExecutionProvider"}


def write_bioimageio(
    program: Program,
    package: Package,
    model: Path,
    target: Path,
    options: BioimageioOptions,
) -> float:
    """Write a zip file that bioimageio.core can run, and have it run: it must reproduce what
    cellseg's own normalisation and the original network give for a made-up image.

    Args:
        program: the network.
        package: what its inputs and outputs mean.
        model: the directory of the bundle.
        target: ends in ``.zip``.
        options: which weights, and what to say of the model.

    Returns:
        The largest difference between outputs of the weights written and of the original.

    Raises:
        ConfigError: packages are missing, or an option cannot be used.
        UsageError: the target is not named so.
        DataError: the bundle's normalisation cannot be expressed.
        WeightsError: what was written does not reproduce the original; nothing is left behind.
        StorageError: the target cannot be written.
    """
    require("bioimageio", *(("onnx", "onnxscript", "onnxruntime") if _onnx(options) else ()))
    if target.suffix != ".zip":
        raise UsageError(
            f"--output: a bioimage.io package must be named *.zip, not *{target.suffix}"
        )
    bundle = Bundle.load(model)
    halo = _halo(program, package.tiling)
    tiled = replace(program, least=_least(program, halo))
    with tempfile.TemporaryDirectory() as name, replacing(target) as temporary, _undisturbed():
        folder = Path(name)
        description = describe(tiled, package, bundle, options, halo)
        _write_samples(tiled, package, bundle, folder)
        shutil.copy(model / BUNDLE, folder / BUNDLE)
        text = readme(
            bundle, package.summary, package.usage, [(o.name, o.summary) for o in package.outputs]
        )
        (folder / "README.md").write_text(text, encoding="utf-8")
        worst, description["weights"] = _write_weights(program, folder, options)
        _pack(description, folder, temporary)
        for weights in description["weights"]:
            _test(temporary, weights)
    return worst


def _onnx(options: BioimageioOptions) -> bool:
    return options.weights in ("both", "onnx")


def _halo(program: Program, tiling: Tiling) -> tuple[int, ...]:
    """Along each axis; none where the size is fixed, because then there are no tiles."""
    halo = tiling.halo[-len(program.least) :]
    return tuple(h if step else 0 for h, step in zip(halo, program.step, strict=True))


def _least(program: Program, halo: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes that leave something when the halo is cut from both sides."""
    return tuple(
        max(least, (2 * h // step + 1) * step) if step else least
        for least, step, h in zip(program.least, program.step, halo, strict=True)
    )


def _write_samples(program: Program, package: Package, bundle: Bundle, folder: Path) -> None:
    """A made-up image, and what cellseg's normalisation and the original network make of it."""
    wanted = 128 if len(program.least) == 2 else 32
    steps_up = (
        -(-max(wanted - a, 0) // s) if s else 0
        for a, s in zip(program.least, program.step, strict=True)
    )
    size = program.size(*steps_up)
    raw = made_up_image(bundle.normaliser, program.channels, size)
    as_volume = raw.reshape(program.channels, *(1,) * (3 - len(size)), *size)
    statistics = bundle.normaliser.statistics(as_volume, "The made-up image")
    normalised = bundle.normaliser.apply(as_volume, statistics).reshape(raw.shape)
    with torch.no_grad():
        outputs = program.module(torch.from_numpy(normalised[None]))
    arrays = {"image": raw[None]}
    for output, tensor in zip(package.outputs, outputs, strict=True):
        arrays[output.name] = _activated(tensor, output.activation)
    for name, array in arrays.items():
        np.save(folder / f"test_{name}.npy", array.astype(np.float32))
    first = arrays[package.outputs[0].name][0]
    (folder / "cover.png").write_bytes(draw_cover(normalised, first))


def _activated(tensor: Tensor, activation: str) -> NDArray[np.float32]:
    if activation == "softmax":
        tensor = tensor.softmax(1)
    elif activation == "sigmoid":
        tensor = tensor.sigmoid()
    result: NDArray[np.float32] = tensor.numpy()
    return result


def _write_weights(
    program: Program, folder: Path, options: BioimageioOptions
) -> tuple[float, dict[str, dict[str, Any]]]:
    worst, entries = 0.0, {}
    version = torch.__version__.split("+")[0]
    if options.weights in ("both", "torchscript"):
        worst = write_torchscript(program, folder / "weights.pt", options.tolerance)
        entries["torchscript"] = {"source": "weights.pt", "pytorch_version": version}
    if _onnx(options):
        import onnx

        worst = max(worst, write_onnx(program, folder / "weights.onnx", options.tolerance))
        opset = onnx.load(folder / "weights.onnx").opset_import[0].version
        entries["onnx"] = {"source": "weights.onnx", "opset_version": opset}
        if "torchscript" in entries:
            entries["onnx"]["parent"] = "torchscript"
    return worst, entries


def _pack(description: dict[str, Any], folder: Path, target: Path) -> None:
    from bioimageio.spec import (
        InvalidDescr,
        ValidationContext,
        build_description,
        save_bioimageio_package,
    )

    with ValidationContext(root=folder, file_name="bioimageio.yaml", perform_io_checks=False):
        described = build_description(description)
    if isinstance(described, InvalidDescr):
        entries = [e for d in described.validation_summary.details for e in d.errors]
        for entry in entries:
            at = next((str(part) for part in entry.loc if str(part) in _FLAGS), None)
            if at:
                raise ConfigError(f"{_FLAGS[at]}: {entry.msg}")
        raise WeightsError(f"bioimage.io does not take this model: {described.get_reason()}")
    save_bioimageio_package(described, output_path=target)


def _test(target: Path, weights: Any) -> None:
    from bioimageio.core import test_model

    summary = test_model(target, weight_format=weights, devices=[_PROVIDERS[weights]])
    if summary.status != "passed":
        errors = "; ".join(e.msg for d in summary.details for e in d.errors)
        raise WeightsError(f"The package does not pass the test of bioimageio.core: {errors}")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """bioimageio logs to the terminal and seeds all random numbers; undo both."""
    import warnings

    from loguru import logger

    numpy_state = np.random.get_state()
    deterministic = torch.are_deterministic_algorithms_enabled()
    logger.disable("bioimageio")
    try:
        with seeded(0), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.enable("bioimageio")
        np.random.set_state(numpy_state)
        torch.use_deterministic_algorithms(deterministic)
