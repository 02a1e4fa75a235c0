"""A model on its device, that sees tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from cellseg import Tile
from cellseg.errors import ConfigError
from cellseg.torch.devices import arithmetic, resolve_device
from cellseg.torch.frames import Frame
from cellseg.torch.pixels import check_plane, continued
from cellseg.torch.sam.model_types import RANDOM, backbone
from cellseg_microsam.model import MicroSam
from cellseg_microsam.predict_options import MicrosamPredictOptions, Mode
from cellseg_microsam.stored import load_model

MEMORY_HINT = (
    "Answer fewer prompts at once: --prompts-per-batch; compute with less: --precision bf16; or"
    " take a smaller model."
)
"""What helps where the memory does not suffice."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """A model, ready to encode."""

    model: MicroSam
    """On its device, set to evaluation."""
    model_type: str
    """What it is, or was trained from."""
    field: int
    """As in ``Frame.fit``. Where it is known, all that the model saw in training filled the square:
    tiles that do not, such as those at the border of an image, are continued by their reflection.
    Segment Anything itself was trained with 0 there, and so are published models used."""
    answers: bool
    """Whether its answers to prompts mean something."""
    dtype: torch.dtype
    """Of the arithmetic of the image encoder."""

    @classmethod
    def open(cls, options: MicrosamPredictOptions, device: str, model: Path | None) -> Encoder:
        """Load what the options ask for.

        Args:
            options: with the model to take where ``model`` is None, and how to compute.
            device: as users name it.
            model: the directory that training left, or None for published weights.

        Raises:
            ConfigError: options that exclude each other, or a model without weights.
            WeightsError: the weights are missing or damaged.
            DeviceError: the device is not there, or cannot compute in this precision.
        """
        where = resolve_device(device)
        dtype = arithmetic(options.precision, where)
        network, model_type, field, answers = _loaded(options, model)
        network = network.eval().requires_grad_(False).to(where)
        network.compiled = options.compile
        return cls(network, model_type, field, answers, dtype)

    def mode(self, options: MicrosamPredictOptions) -> Mode:
        """How to segment tiles without prompts; ``prompts`` only where the options say so.

        Raises:
            ConfigError: the model cannot do it, or options are given that it does not use.
        """
        decoder = self.model.decoder is not None
        mode = options.segmentation_mode
        if mode == "auto":
            mode = "ais" if decoder else "amg"
            idle = options.unused(mode, "prompts")
            if idle:
                raise ConfigError(
                    f"{' and '.join(idle)}: nothing to do with {mode}, which this model segments"
                    " by unless told otherwise.",
                    hint="Say how to segment: --segmentation-mode.",
                )
        if mode in ("ais", "apg") and not decoder:
            raise ConfigError(
                f"--segmentation-mode {mode}: the model has no decoder for it.",
                hint="Use amg, or train a decoder: cellseg train --mode decoder.",
            )
        if mode != "ais":
            self.check_answers(f"--segmentation-mode {mode}")
        return mode

    def check_answers(self, flag: str) -> None:
        """Refuse to prompt a model that never learned to answer.

        Raises:
            ConfigError: it is one.
        """
        if not self.answers:
            raise ConfigError(
                f"{flag}: this model started from random weights, and its answers to prompts were"
                " not trained.",
                hint="Train with --mode full or --mode interactive, or from published weights.",
            )

    def frame(self, tile: Tile) -> Frame:
        """The place of a tile in the square."""
        y, x = tile.image.shape[2:]
        return self.model.frame((y, x), self.field)

    def encode(self, tiles: Sequence[Tile]) -> Tensor:
        """Embeddings ``(n, channels, grid, grid)`` float32 of planes of one shape, in one call.

        Raises:
            DataError: the images have neither 1 nor 3 channels, or more than one plane.
        """
        for tile in tiles:
            check_plane(tile.image, "Segment Anything", "microsam")
        images = np.stack([tile.image[:, 0] for tile in tiles]).astype(np.float32, copy=False)
        frame = self.frame(tiles[0])
        if self.field:
            images = continued(images, max(*images.shape[2:], self.field))
            frame = self.model.frame(images.shape[2:])
        where = self.model.device
        prepared = self.model.prepare(torch.from_numpy(images).to(where), frame)
        with torch.autocast(where.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.model.encode(prepared).float()


def _loaded(options: MicrosamPredictOptions, model: Path | None) -> tuple[MicroSam, str, int, bool]:
    """The network, what it is, its field, and whether it can answer prompts."""
    given = [name for name in ("model_type", "checkpoint") if getattr(options, name) is not None]
    if model is not None:
        if given:
            flag = given[0].replace("_", "-")
            raise ConfigError(
                f"--{flag} and --model exclude each other: a model brings its weights.",
                hint=f"Leave out one: --model, or --{flag} with --backend microsam.",
            )
        network, described = load_model(model)
        answers = described.prompts_trained or described.model_type not in RANDOM
        return network, described.model_type, described.field, answers
    from cellseg_microsam.weights import load_checkpoint, load_published

    if options.model_type in RANDOM:
        raise ConfigError(
            f"--model-type {options.model_type}: it has no published weights.",
            hint=f"Train one: cellseg train --backend microsam --model-type {options.model_type}",
        )
    if options.checkpoint is None:
        found = load_published(options.model_type or "vit_b_lm", lambda event: None)
        return found.model, found.model_type, 0, True
    if options.checkpoint.is_dir():
        raise ConfigError(
            f"--checkpoint {options.checkpoint}: is a folder, not a file with weights.",
            hint=f"A model of cellseg says how to use it: --model {options.checkpoint}",
        )
    found = load_checkpoint(options.checkpoint)
    named = options.model_type
    if named is None:
        return found.model, found.model_type, 0, True
    if found.model_type != backbone(named):
        raise ConfigError(
            f"--checkpoint {options.checkpoint}: holds a {found.model_type}, not a {named}."
        )
    return found.model, named, 0, True
