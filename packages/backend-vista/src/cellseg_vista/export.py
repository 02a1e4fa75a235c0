"""Write the network as a program of ``torch.export``, and check it against the original."""

from __future__ import annotations

from pathlib import Path

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from cellseg import Emit, ExportJob
from cellseg.errors import WeightsError
from cellseg.events import Note
from cellseg.files import storage_errors
from cellseg.torch.weights import seeded
from cellseg_vista.export_options import Pt2Options
from cellseg_vista.network import STRIDE, Network


class _Maps(nn.Module):
    """The network without padding, and with a plain tuple as its result."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = self.network.maps(image)
        return maps.semantic, maps.distance, maps.embedding


def export(job: ExportJob[Pt2Options], emit: Emit) -> Path:
    """Write ``job.target``: images ``(n, c, y, x)`` float32, normalised, with sides that are
    multiples of 8, to the logits of background and cell, the distance map's and the embedding.

    Raises:
        WeightsError: the program that was written gives other results than the network.
    """
    network = Network.load(job.model)
    maps = _Maps(network).eval()
    with seeded(0):
        example = torch.rand(2, network.architecture.channels, 8 * STRIDE, 12 * STRIDE)
        other = torch.rand(1, network.architecture.channels, 20 * STRIDE, 6 * STRIDE)
    size = {name: torch.export.Dim(name, min=2, max=4096) for name in ("rows", "columns")}
    batch = torch.export.Dim("batch", min=1, max=4096)
    shapes = {"image": {0: batch, 2: STRIDE * size["rows"], 3: STRIDE * size["columns"]}}
    with torch.no_grad():
        program = torch.export.export(maps, (example,), dynamic_shapes=shapes, strict=False)
        with storage_errors(job.target), job.target.open("wb") as file:
            torch.export.save(program, file)
        with job.target.open("rb") as file:
            again = torch.export.load(file).module()
        worst = 0.0
        for image in (example, other):
            for a, b in zip(maps(image), again(image), strict=True):
                worst = max(worst, float((a - b).abs().max()))
    if not worst <= job.options.tolerance:
        raise WeightsError(
            f"The exported network differs from the original by {worst:g}, more than"
            f" {job.options.tolerance:g}.",
            hint="Raise --tolerance if that is good enough.",
        )
    emit(Note(f"The exported network gives the original's results within {worst:.2g}."))
    return job.target
