"""Write a model for other software: Segment Anything itself, ONNX Runtime."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from cellseg import ConfigError, Emit, ExportJob, WeightsError
from cellseg.bundle import Bundle
from cellseg.errors import UsageError
from cellseg.events import Note
from cellseg.files import replacing
from cellseg.torch.export import Program, tell_difference, write_onnx
from cellseg.torch.export.programs import require
from cellseg.torch.frames import Frame
from cellseg.torch.sam.answering import decode_masks
from cellseg.torch.sam.model_types import RANDOM, backbone
from cellseg.torch.weights import seeded
from cellseg_cellsam.description import Description
from cellseg_cellsam.encoding import check_learned
from cellseg_cellsam.export_options import OnnxOptions, SamOptions
from cellseg_cellsam.model import CellSam, drawing
from cellseg_cellsam.predict_options import CellSamPredictOptions
from cellseg_cellsam.stored import load_model

FIND, SEGMENT, ABOUT = "find.onnx", "segment.onnx", "model.json"
"""The files of an export to ONNX: from images to boxes, from boxes to masks, and what to know."""
_COMPUTING = {"precision", "compile", "boxes_per_batch"}
"""Options of prediction that are not of the model."""
_PUBLISHED = ("vit_b", "vit_l", "vit_h")


def export_sam(job: ExportJob[SamOptions], emit: Emit) -> Path:
    """Write a checkpoint of Segment Anything, for its own tools and all that build on them: what
    answers prompts. The detector, which Segment Anything does not have, is not part of it.

    Raises:
        ConfigError: segment_anything has no such network, or the model has not learned to answer.
        WeightsError: segment_anything does not read what was written; nothing is left behind.
        StorageError: the target cannot be written.
    """
    model, description = load_model(job.model)
    name = backbone(description.model_type)
    if name not in _PUBLISHED:
        whose = "cellseg's" if description.model_type in RANDOM else "MobileSAM's"
        raise ConfigError(
            f"segment_anything has no network like {description.model_type!r}, which is {whose}.",
            hint=f"Fine-tune one of {', '.join(_PUBLISHED)}, or write --format onnx.",
        )
    if model.draws_boxes:
        raise ConfigError(
            "The model gets boxes as drawings too, which segment_anything's tools do not draw.",
            hint="Write --format onnx.",
        )
    check_learned(description, job.model, boxes=False)
    write_sam(model, job.target, check_as=name if job.options.check else None)
    _tell_licence(description, emit)
    emit(
        Note(
            f"segment_anything reads it as checkpoint of {name}, to segment boxes and points. It"
            " does not find cells by itself: the detector is not part of it. The images were"
            f" normalised ({Bundle.load(job.model).normaliser.method}) to 0 to 1, which is 0 to 255"
            " there."
        )
    )
    return job.target


def write_sam(model: CellSam, target: Path, *, check_as: str | None) -> None:
    """Write what ``segment_anything.sam_model_registry`` reads.

    Args:
        model: without low-rank updates.
        target: a file.
        check_as: segment_anything's name of the architecture, to load it back with; None does not.

    Raises:
        WeightsError: what segment_anything loads is not the model; nothing is left behind.
        StorageError: the target cannot be written.
    """
    state = {n: v.detach().cpu().contiguous() for n, v in model.sam.state_dict().items()}
    with replacing(target) as temporary:
        with temporary.open("wb") as file:  # torch refuses names that are a suffix only
            torch.save(state, file)
        if check_as is not None:
            _check(temporary, state, check_as)


def _check(path: Path, state: Mapping[str, Tensor], name: str) -> None:
    """Have segment_anything load a file, and compare all that it then has."""
    from segment_anything import sam_model_registry

    try:
        found = sam_model_registry[name](checkpoint=str(path)).state_dict()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"segment_anything cannot read what was written: {reason}") from error
    if found.keys() != state.keys() or not all(torch.equal(found[n], v) for n, v in state.items()):
        raise WeightsError("segment_anything reads other weights than were written.")


class Finding(nn.Module):
    """From images that fill the square to boxes."""

    def __init__(self, model: CellSam) -> None:
        super().__init__()
        self.model = model
        side = model.architecture.side
        self.frame = Frame((side, side), (side, side), side)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images ``(n, c, side, side)``, 0..1, to scores ``(n, q)``, boxes ``(n, q, 4)`` in pixels
        of the square, ``x0 y0 x1 y1``, and embeddings ``(n, out_channels, grid, grid)``."""
        features = self.model.trunk(self.model.prepare(image, self.frame))
        scores, boxes = self.model.detect(features).best()
        return scores, boxes * self.frame.side, self.model.neck(features)


class Segmenting(nn.Module):
    """From boxes of one image to their masks."""

    def __init__(self, model: CellSam) -> None:
        super().__init__()
        self.sam, a = model.sam, model.architecture
        self.pictured = (a.side, a.mask_side) if model.draws_boxes else None
        self.register_buffer("positions", model.sam.prompt_encoder.get_dense_pe())

    def forward(self, embedding: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """An embedding ``(1, out_channels, grid, grid)`` and boxes ``(k, 4)`` to logits of masks
        ``(k, m, m)`` of the square, and their estimated IoU with the true mask ``(k,)``."""
        masks = None
        if self.pictured is not None:
            masks = drawing(boxes, *self.pictured)
        sparse, dense = self.sam.prompt_encoder(points=None, boxes=boxes, masks=masks)
        logits, iou = decode_masks(
            self.sam.mask_decoder,
            embedding,
            self.positions,
            sparse,
            dense[:1] if masks is None else dense,
            multimask=False,
        )
        return logits[:, 0], iou[:, 0]


def export_onnx(job: ExportJob[OnnxOptions], emit: Emit) -> Path:
    """Write a folder with two networks and what is needed to use them.

    ``find.onnx`` takes ``image`` and gives ``scores``, ``boxes`` and ``embedding``;
    ``segment.onnx`` takes the ``embedding`` of one image and any number of ``boxes``, and gives
    ``masks`` (logits) and ``iou``. ``model.json`` says how images are brought to the square, and
    the thresholds. ONNX Runtime must give the original's results.

    Raises:
        ConfigError: packages are missing, or a part of the model has not learned.
        UsageError: the target is named like a file.
        WeightsError: the results differ by more than ``tolerance``, or the weights are too large
            for ONNX; nothing is left behind.
        StorageError: the target cannot be written.
    """
    require("onnx", "onnxscript", "onnxruntime")
    if job.target.suffix == ".onnx":
        raise UsageError(
            f"--output {job.target}: the model becomes a folder with two ONNX files.",
            hint=f"Name a folder: --output {job.target.with_suffix('')}",
        )
    model, description = load_model(job.model)
    check_learned(description, job.model)
    bundle = Bundle.load(job.model)
    model.requires_grad_(False)
    side = model.architecture.side
    program = Program(
        module=Finding(model).eval(),
        outputs=("scores", "boxes", "embedding"),
        channels=bundle.channels,
        least=(side, side),
        step=(0, 0),
    )
    with replacing(job.target) as temporary:
        temporary.mkdir(parents=True)
        worst = write_onnx(program, temporary / FIND, job.options.tolerance)
        worst = max(worst, write_segmenting(model, temporary / SEGMENT, job.options.tolerance))
        about = json.dumps(_about(model, description, bundle), indent=1)
        (temporary / ABOUT).write_text(about + "\n", encoding="utf-8")
    tell_difference(worst, emit)
    _tell_licence(description, emit)
    return job.target


def write_segmenting(model: CellSam, target: Path, tolerance: float) -> float:
    """Write ``Segmenting`` as ONNX, run it with other numbers of boxes, and compare.

    Returns:
        The largest absolute difference to the original.

    Raises:
        WeightsError: it is more than ``tolerance``.
    """
    import onnxruntime  # type: ignore[import-untyped]

    network = Segmenting(model).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constants of the trace: compared below
        written: Any = torch.onnx.export(
            network,
            _question(model, 3),
            input_names=["embedding", "boxes"],
            output_names=["masks", "iou"],
            dynamic_shapes=({}, {0: torch.export.Dim("count", min=2)}),
            dynamo=True,
            verbose=False,
        )
        written.save(target, external_data=False)
        session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
        worst = 0.0
        for count in (3, 1, 8):
            embedding, boxes = _question(model, count)
            inputs = {"embedding": embedding.numpy(), "boxes": boxes.numpy()}
            found = [torch.from_numpy(one) for one in session.run(None, inputs)]
            for right, given in zip(network(embedding, boxes), found, strict=True):
                same = right.shape == given.shape
                worst = max(worst, float((right - given).abs().max()) if same else float("inf"))
    if not worst <= tolerance:
        raise WeightsError(
            f"The exported masks differ from the original by {worst:g}, more than {tolerance:g}.",
            hint="Raise --tolerance if that is good enough.",
        )
    return worst


def _question(model: CellSam, count: int) -> tuple[Tensor, Tensor]:
    a = model.architecture
    with seeded(count):
        corners = torch.rand(count, 2, 2).sort(1).values.flatten(1) * a.side
        return torch.randn(1, a.out_channels, a.grid, a.grid), corners


def _tell_licence(description: Description, emit: Emit) -> None:
    if description.licence:
        emit(Note(f"The model was trained from {description.licence}. They bind the export, too."))


def _about(model: CellSam, description: Description, bundle: Bundle) -> dict[str, Any]:
    """What is not part of the networks."""
    return {
        "side": model.architecture.side,
        "field": description.field,
        "image": (
            "normalised to 0..1 as under bundle: normaliser; its longer side, or field pixels if"
            " that is more, scaled to side; then padded with 0 at the bottom and at the right"
        ),
        "boxes": "x0 y0 x1 y1 in pixels of the square",
        "masks": "logits, at a quarter of the resolution of the square",
        "thresholds": CellSamPredictOptions(**bundle.predict).model_dump(exclude=_COMPUTING),
        "licence": description.licence,
        "bundle": json.loads(bundle.model_dump_json()),
    }
