"""What is refused before a training of cellsam starts, and what users are told about it. Light."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cellseg import TrainJob
from cellseg.errors import ConfigError
from cellseg_cellsam.options import MOST_QUERIES, CellSamOptions

if TYPE_CHECKING:
    from cellseg_cellsam.weights import Start


def refuse_idle_patience(job: TrainJob[CellSamOptions]) -> None:
    """Patience counts validations.

    Raises:
        ConfigError: there are none.
    """
    for name in ("stage1_patience", "stage2_patience"):
        if getattr(job.options, name) and not job.val:
            raise ConfigError(
                f"--{name.replace('_', '-')} does nothing: there are no images to validate on.",
                hint="Leave it out, or keep some images for validation.",
            )


def refuse_start(options: CellSamOptions, start: Start, shares: tuple[int, int]) -> None:
    """Refuse a stage that does not suit what it starts from.

    Args:
        options: of the training.
        start: its model.
        shares: epochs of stage 1 and of stage 2.

    Raises:
        ConfigError: stage 1 could learn nothing of use, or an option would do nothing.
    """
    kind = options.stage1_type
    if options.recompute and start.model.architecture.tiny_vit:
        raise ConfigError(
            "--recompute does nothing with MobileSAM's encoder (vit_t).",
            hint="Leave it out; to save memory, give a smaller --batch-size.",
        )
    if shares[0] and kind in ("image_encoder", "head_only") and not start.boxes_trained:
        raise ConfigError(
            f"--stage1-type {kind} leaves most of the detector as it is, but that has random"
            " weights.",
            hint="Train it: --stage1-type cellfinder or all_backbones; or start from a run of"
            " cellsam: --checkpoint RUN",
        )


def of_data(job: TrainJob[CellSamOptions]) -> Iterator[str]:
    """What to know of the images."""
    if any(sample.classes for sample in job.train):
        yield "The classes of the objects are not learned: cellsam has none."


def of_start(options: CellSamOptions, start: Start, shares: tuple[int, int]) -> Iterator[str]:
    """What stays random, or is not trained.

    Args:
        options: of the training.
        start: its model.
        shares: epochs of stage 1 and of stage 2.
    """
    first, second = shares
    if second and not first and not start.boxes_trained:
        yield (
            "The detector has random weights, which stay as they are without stage 1: the model"
            " will find no cells by itself."
        )
    if first and not second and options.stage == "both":
        yield (
            "Stage 2 gets none of the epochs, so masks are not learned: give more --epochs, or say"
            " so by --stage 1."
        )
    if first and options.stage1_type == "cellfinder" and not start.masks_trained:
        yield "The image encoder has random weights, which stage 1 leaves as they are."
    if second and options.stage2_type == "neck" and not start.masks_trained:
        yield (
            "The mask decoder has random weights, which stay as they are with --stage2-type neck:"
            " masks will be coarse. Train it too: --stage2-type neck_and_decoder."
        )


def of_skipped(names: Sequence[str]) -> Iterator[str]:
    """Images that no patch is drawn from.

    Args:
        names: of the images.
    """
    if names:
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        yield f"Not trained on, for want of objects (--min-instances): {listed}"


def of_crowd(cells: int, queries: int) -> Iterator[str]:
    """Cells that no anchor point is left for.

    Args:
        cells: how many a patch shows at most.
        queries: anchor points of the detector.
    """
    if cells > queries:
        yield (
            f"Patches show up to {cells} cells, but the detector finds {queries} at most, one for"
            " each of its anchor points, and learns nothing from the others. Train one with more,"
            f" such as --queries {min(2 * cells, MOST_QUERIES)}, or with smaller patches:"
            " --patch-size."
        )
