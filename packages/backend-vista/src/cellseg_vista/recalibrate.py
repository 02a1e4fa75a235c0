"""Find the thresholds of a trained model again, on labelled images of the user."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch  # noqa: TID253

from cellseg import ConfigError, Emit, PredictJob, Tiling
from cellseg.classes import UNKNOWN, classes_of
from cellseg.events import Note
from cellseg.options import flag
from cellseg.specs import CalibrateJob
from cellseg.torch.patches import Grid
from cellseg_vista.calibrate import PLANE, look, pieces, search
from cellseg_vista.description import Description
from cellseg_vista.network import Network
from cellseg_vista.predict import load
from cellseg_vista.predict_options import VistaPredictOptions


def recalibrate(
    job: CalibrateJob[VistaPredictOptions], emit: Emit, dims: int
) -> Mapping[str, object]:
    """The method and the thresholds that segment labelled images best.

    They replace the model's own only where they score clearly better.

    Args:
        job: its images are looked at in pieces as large as prediction sees them.
        emit: told the scores of the methods, and those before and after.
        dims: 2 for vista2d, 3 for vista3d.

    Raises:
        ConfigError: prediction by windows is asked for, or a class that the model does not have.
        WeightsError: there is no model, or it is damaged or of the other backend.
        DeviceError: the device is not there, or its memory does not suffice.
    """
    for name in ("patch_size", "aggregation"):
        if name in job.given:
            raise ConfigError(
                f"{flag(name)} does nothing here: calibration looks at whole tiles.",
                hint="Leave it out; thresholds are found without windows.",
            )
    # It refuses all that prediction would refuse.
    load(PredictJob(options=job.options, device=job.device, model=job.model), dims)
    assert job.model is not None
    described, tiling = Description.load(job.model), job.tiling
    if dims == 2:
        tiling = Tiling(core=(1, *(min(side, PLANE) for side in tiling.core[1:])))
    pairs = look(
        Network.load(job.model),
        _Pieces(pieces(job.samples, tiling), dims, job.options.class_id),
        job.device,
        len(described.classes),
        "Use another --device, such as cpu.",
        job.options.precision,
    )
    spacing = described.spacing or job.samples[0].spacing[3 - dims :]
    choice = search(pairs, type(job.options), spacing, job.options, job.given)
    assert choice.before is not None
    emit(Note(f"Looked at {choice.pieces} piece(s) of images. Scores: {choice.tried}."))
    emit(
        Note(
            f"Segments by {choice.options.method}: score {choice.reached:.3f}, before calibration "
            f"{choice.before:.3f}."
        )
    )
    return choice.stored


class _Pieces:
    """Labelled pieces as ``look`` takes them."""

    def __init__(self, grid: Grid, dims: int, kind: int | None) -> None:
        self._grid, self._dims, self._kind = grid, dims, kind

    def __len__(self) -> int:
        return len(self._grid)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        patch = self._grid[index]
        image, labels = patch.image, patch.labels
        if self._dims == 2:
            image, labels = image[:, 0], labels[0]
        kinds = classes_of(labels)
        objects = (labels != UNKNOWN) & (kinds == self._kind if self._kind else kinds > 0)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image, np.float32))[None],
            "labels": torch.from_numpy(np.where(objects, labels, 0).astype(np.int64))[None],
            "classes": torch.from_numpy(kinds)[None],
        }
