"""Write a model for other software: micro-SAM itself, ONNX Runtime, bioimage.io."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from cellseg import ConfigError, Emit, ExportJob, PredictorSpec, WeightsError
from cellseg.bundle import Bundle
from cellseg.errors import UsageError
from cellseg.events import Note
from cellseg.files import replacing
from cellseg.plugins import Plugins
from cellseg.torch.export import (
    Output,
    Package,
    Program,
    tell_difference,
    tell_missing,
    write_bioimageio,
)
from cellseg.torch.export.programs import require
from cellseg.torch.frames import Frame
from cellseg.torch.sam.model_types import RANDOM, backbone
from cellseg.torch.weights import seeded
from cellseg_microsam.export_options import NativeOptions, OnnxOptions, PackageOptions
from cellseg_microsam.model import MicroSam
from cellseg_microsam.stored import load_model

_SUMMARY = (
    "Segment Anything's image encoder with a UNETR decoder (micro-SAM), which says of each pixel"
    " how probably it lies in an object, and how far from its centre and its boundary."
)
_USAGE = """Objects are not part of the package. To make them: smooth the maps; the seeds are the
connected components where both distances are below their thresholds and the foreground is above
its own; flood the distance to the boundary from them, inside the foreground. `cellseg predict`
does this; the thresholds found on the validation images are under `predict` in `bundle.json`.

The image must fill the square: scale it so that its longer side does, and pad it at the bottom and
at the right."""
_CITE = (
    ("Archit et al.: Segment Anything for Microscopy", "10.1038/s41592-024-02580-4"),
    ("Kirillov et al.: Segment Anything", "10.48550/arXiv.2304.02643"),
)


def export_native(job: ExportJob[NativeOptions], emit: Emit) -> Path:
    """Write micro-SAM's own format, for its napari plugin, command line and Python API.

    Raises:
        ConfigError: micro-SAM has no such network.
        WeightsError: micro-SAM does not read what was written; nothing is left behind.
        StorageError: the target cannot be written.
    """
    model, description = load_model(job.model)
    if description.model_type in RANDOM:
        raise ConfigError(
            f"micro-SAM has no network like {description.model_type!r}, which is cellseg's own.",
            hint="Fine-tune one of micro-SAM's, such as --model-type vit_b_lm.",
        )
    if description.peft is not None:
        raise ConfigError(
            f"The updates of --peft {description.peft.get('method')} cannot be merged into plain"
            " weights, which micro-SAM's tools read.",
            hint="Train with --peft lora, fact or ssf to export the model.",
        )
    name = backbone(description.model_type)
    write_native(model, job.target, check_as=name if job.options.check else None)
    kind = "AIS, APG and AMG" if model.decoder is not None else "AMG and prompts"
    emit(Note(f"micro-SAM reads it as checkpoint of {name}, for {kind}."))
    normaliser = Bundle.load(job.model).normaliser
    if normaliser.method == "percentile":
        low, high = normaliser.percentiles
        emit(
            Note(
                "micro-SAM stretches images from their minimum to their maximum. This model saw"
                f" the percentiles {low:g} and {high:g} as 0 and 255: give it such images."
            )
        )
    return job.target


def write_microsam(model: Path, target: Path) -> None:
    """Write the model in the directory ``model`` in micro-SAM's format, without a check.

    Raises:
        WeightsError: the model cannot be read.
        StorageError: the target cannot be written.
    """
    write_native(load_model(model)[0], target, check_as=None)


def write_native(model: MicroSam, target: Path, *, check_as: str | None) -> None:
    """Write what ``micro_sam.util.get_sam_model`` reads: the states of Segment Anything and, where
    there is one, of the decoder.

    Args:
        model: plain, without updates of PEFT.
        target: a file.
        check_as: micro-SAM's name of the architecture, to load it back with; None does not.

    Raises:
        WeightsError: what micro-SAM loads is not the model; nothing is left behind.
        StorageError: the target cannot be written.
    """
    state: dict[str, dict[str, Tensor]] = {"model_state": _plain(model.sam)}
    if model.decoder is not None:
        state["decoder_state"] = _plain(model.decoder)
    with replacing(target) as temporary:
        with temporary.open("wb") as file:  # torch refuses names that are a suffix only
            torch.save(state, file)
        if check_as is not None:
            _check(temporary, state, check_as)


def _plain(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}


def _check(path: Path, state: dict[str, dict[str, Tensor]], name: str) -> None:
    """Have micro-SAM load a file, and compare all that it then has."""
    with _undisturbed():
        from micro_sam.instance_segmentation import get_unetr
        from micro_sam.util import get_sam_model

        try:
            predictor, loaded = get_sam_model(name, "cpu", path, return_state=True)
            found = {"model_state": predictor.model.state_dict()}
            if "decoder_state" in state:
                unetr = get_unetr(predictor.model.image_encoder, loaded["decoder_state"], "cpu")
                found["decoder_state"] = {
                    k: v for k, v in unetr.state_dict().items() if not k.startswith("encoder.")
                }
        except (RuntimeError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise WeightsError(f"micro-SAM cannot read what was written: {reason}") from error
    for part, tensors in state.items():
        same = found[part].keys() == tensors.keys() and all(
            torch.equal(found[part][k], v) for k, v in tensors.items()
        )
        if not same:
            raise WeightsError(f"micro-SAM reads other weights than were written: {part}.")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """micro-SAM replaces ``pickle.Unpickler`` for the whole process when it loads; undo that."""
    import pickle

    unpickler = pickle.Unpickler
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        pickle.Unpickler = unpickler  # type: ignore[misc]


@dataclass(frozen=True)
class _Question:
    """Inputs of the ONNX decoder."""

    points: int
    size: tuple[int, int]

    def tensors(self, model: MicroSam) -> dict[str, Tensor]:
        prompts = model.sam.prompt_encoder
        y, x = prompts.image_embedding_size
        side = model.architecture.side
        with seeded(self.points):
            return {
                "image_embeddings": torch.randn(1, prompts.embed_dim, y, x),
                "point_coords": torch.rand(1, self.points, 2) * side,
                "point_labels": torch.randint(0, 4, (1, self.points)).float(),
                "mask_input": torch.randn(1, 1, 4 * y, 4 * x),
                "has_mask_input": torch.tensor([float(self.points % 2)]),
                "orig_im_size": torch.tensor(self.size, dtype=torch.float32),
            }


def export_onnx(job: ExportJob[OnnxOptions], emit: Emit) -> Path:
    """Write prompt encoder and mask decoder as one ONNX file, as Segment Anything's own tools
    expect it: ``image_embeddings``, ``point_coords``, ``point_labels`` (2 and 3 are the corners of
    a box), ``mask_input``, ``has_mask_input``, ``orig_im_size`` to ``masks``, ``iou_predictions``
    and ``low_res_masks``. ONNX Runtime must then give the original's results.

    Raises:
        ConfigError: packages are missing.
        UsageError: the target is not named ``*.onnx``.
        WeightsError: the results differ by more than ``tolerance``; nothing is left behind.
        StorageError: the target cannot be written.
    """
    require("onnx", "onnxruntime")
    if job.target.suffix != ".onnx":
        raise UsageError(f"--output: an ONNX file must be named *.onnx, not *{job.target.suffix}")
    import numpy as np
    import onnxruntime
    from segment_anything.utils.onnx import SamOnnxModel

    model, _ = load_model(job.model)
    decoder = SamOnnxModel(model.sam.eval(), return_single_mask=job.options.masks == "best").eval()
    side = model.architecture.side
    asked = [_Question(5, (side, side // 2)), _Question(2, (side // 2, side)), _Question(1, (9, 7))]
    example = asked[0].tensors(model)
    outputs = ("masks", "iou_predictions", "low_res_masks")
    with replacing(job.target) as temporary, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constants of the trace: compared below
        torch.onnx.export(
            decoder,
            tuple(example.values()),
            temporary,
            input_names=list(example),
            output_names=list(outputs),
            dynamic_axes={"point_coords": {1: "points"}, "point_labels": {1: "points"}},
            opset_version=17,
            dynamo=False,  # the sizes of the image are numbers within the network
        )
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        worst = 0.0
        for question in asked:
            inputs = question.tensors(model)
            found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
            for right, given in zip(decoder(*inputs.values()), found, strict=True):
                same = right.shape == given.shape
                worst = max(worst, float(np.abs(right.numpy() - given).max()) if same else np.inf)
        if not worst <= job.options.tolerance:
            raise WeightsError(
                f"The exported decoder differs from the original by {worst:g}, more than"
                f" {job.options.tolerance:g}.",
                hint="Raise --tolerance if that is good enough.",
            )
    tell_difference(worst, emit)
    return job.target


class _Maps(nn.Module):
    """Image to maps, in the square; the maps are probabilities and distances from 0 to 1."""

    def __init__(self, model: MicroSam) -> None:
        super().__init__()
        self.model = model
        side = model.architecture.side
        self.frame = Frame((side, side), (side, side), side)

    def forward(self, image: Tensor) -> tuple[Tensor]:
        embeddings = self.model.encode(self.model.prepare(image, self.frame))
        return (self.model.maps(embeddings, self.frame),)


def export_bioimageio(job: ExportJob[PackageOptions], emit: Emit) -> Path:
    """Write a bioimage.io package of encoder and decoder, as
    ``cellseg.torch.export.write_bioimageio``: from the image to the three maps.

    Raises:
        ConfigError: the model has no decoder.
    """
    model, _ = load_model(job.model)
    if model.decoder is None:
        raise ConfigError(
            "This model answers prompts and has no decoder, so it makes no maps to package.",
            hint="Write it for micro-SAM (--format micro-sam) or its answers as --format onnx.",
        )
    bundle = Bundle.load(job.model)
    side = model.architecture.side
    program = Program(
        module=_Maps(model).eval(),
        outputs=("maps",),
        channels=bundle.channels,
        least=(side, side),
        step=(0, 0),
    )
    maps = Output(
        name="maps",
        summary="probability of an object; distance to its centre; 1 - distance to its boundary",
        channels=("foreground", "centre", "boundary"),
    )
    package = Package(
        summary=_SUMMARY,
        usage=_USAGE,
        outputs=(maps,),
        tiling=bundle.tiling or Plugins().get(PredictorSpec, bundle.backend).tiling,
        cite=_CITE,
    )
    worst = write_bioimageio(program, package, job.model, job.target, job.options)
    tell_difference(worst, emit)
    tell_missing(job.options, emit)
    return job.target
