"""SAM 2.1 (Ravi et al., arXiv:2408.00714) as an encoder of planes; its package is optional."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from cellseg.errors import ConfigError, WeightsError
from cellseg.events import Emit
from cellseg.specs import BaseWeights
from cellseg.torch.frames import Frame
from cellseg.torch.mask_generation import Decode
from cellseg.torch.sam.weights import base_of
from cellseg.torch.sam2.model import MEAN, STD, build
from cellseg.torch.sam2.weights import fill, load_published, size_of, tensors_of
from cellseg_fewshot.encoders import EncoderSettings
from cellseg_fewshot.encoders.asked import AskedEncoder, Asking, arithmetic

_THRESHOLDS = (0.8, 0.95)
"""SAM 2's own, of the predicted IoU and of the stability."""


class Sam2Encoder(AskedEncoder):
    """An ``Encoder``. Planes are stretched to the square, as in SAM 2's training.

    Args:
        model: a ``sam2.modeling.sam2_base.SAM2Base``.
        config: the name that its sizes have among ``ENCODERS``.
        name: what users call it.
        published: whether its weights can be downloaded; a model keeps all others.
        asking: how points are answered.
        dtype: of the arithmetic of the image encoder.
        device: where to compute.
        bases: where the weights are from.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        config: str,
        name: str,
        published: bool,
        asking: Asking,
        dtype: torch.dtype,
        device: torch.device,
        bases: tuple[BaseWeights, ...] = (),
    ) -> None:
        super().__init__(
            name=name,
            side=model.image_size,
            asking=asking,
            dtype=dtype,
            device=device,
            bases=bases,
        )
        self.model: Any = model.eval().requires_grad_(False).to(device)
        self.config, self.is_published = config, published
        self._mean, self._std = (
            torch.tensor(each, device=device).view(3, 1, 1) for each in (MEAN, STD)
        )

    @classmethod
    def published(
        cls, settings: EncoderSettings, device: torch.device, emit: Emit, name: str | None = None
    ) -> Sam2Encoder:
        """With published weights, downloaded if they are not there. Nobody published checksums.

        Args:
            settings: with the name, unless ``name`` is given.
            device: where to compute.
            emit: gets the progress of a download.
            name: one of ``ENCODERS``.

        Raises:
            ConfigError: the package sam2 is not installed.
            DeviceError: the device cannot compute in this precision.
            WeightsError: they cannot be had.
        """
        name = name or settings.name
        assert name is not None
        dtype = arithmetic(settings, device)
        model, base = load_published(name, emit)
        return cls(
            model,
            config=name,
            name=name,
            published=True,
            asking=Asking.of(settings, device, _THRESHOLDS),
            dtype=dtype,
            device=device,
            bases=(base,),
        )

    @classmethod
    def of_file(
        cls,
        settings: EncoderSettings,
        path: Path,
        values: Mapping[str, Any],
        device: torch.device,
    ) -> Sam2Encoder:
        """With weights of a file.

        Args:
            settings: its name, if there is one, must be the size in the file.
            path: of the file.
            values: what ``read_tensors`` gives of it.
            device: where to compute.

        Raises:
            ConfigError: it holds another size than the settings name, or the package sam2 is not
                installed.
            DeviceError: the device cannot compute in this precision.
            WeightsError: it holds no SAM 2.1.
        """
        dtype = arithmetic(settings, device)
        tensors = tensors_of(values)
        config = size_of(tensors, path)
        if settings.name is not None and settings.name != config:
            raise ConfigError(
                f"--checkpoint {path}: holds a {config}, not --encoder {settings.name}.",
                hint="Leave out --encoder: the file says what it holds.",
            )
        model = build(config)
        fill(model, tensors, str(path))
        return cls(
            model,
            config=config,
            name=settings.name or path.name,
            published=False,
            asking=Asking.of(settings, device, _THRESHOLDS),
            dtype=dtype,
            device=device,
            bases=(base_of(path),),
        )

    @classmethod
    def restored(
        cls,
        description: Mapping[str, Any],
        state: Mapping[str, Tensor],
        settings: EncoderSettings,
        device: torch.device,
        emit: Emit,
    ) -> Sam2Encoder:
        """The one of a stored model.

        Raises:
            ConfigError: the package sam2 is not installed.
            DeviceError: the device cannot compute in this precision.
            WeightsError: published weights cannot be had, or have changed; or the tensors do not
                fit.
        """
        config = str(description["config"])
        if description["published"]:
            encoder = cls.published(settings, device, emit, config)
            if [base["sha256"] for base in description["bases"]] != [
                base.sha256 for base in encoder.bases
            ]:
                raise WeightsError(
                    f"The weights of {config} that were downloaded are not those that the model"
                    " has learned with.",
                    hint="Remove the file, so that it is downloaded again; or train again.",
                )
            return encoder
        dtype = arithmetic(settings, device)
        model = build(config)
        fill(model, state, "The model's encoder")
        return cls(
            model,
            config=config,
            name=str(description["name"]),
            published=False,
            asking=Asking.of(settings, device, _THRESHOLDS),
            dtype=dtype,
            device=device,
            bases=tuple(BaseWeights(**base) for base in description["bases"]),
        )

    @property
    def description(self) -> dict[str, Any]:
        """What ``restored`` needs beside the tensors."""
        return {
            "kind": "sam2",
            "name": self.name,
            "config": self.config,
            "published": self.is_published,
            "bases": [asdict(base) for base in self.bases],
        }

    def state(self) -> Mapping[str, Tensor]:
        """Nothing of published weights, and all of others."""
        return {} if self.is_published else self.model.state_dict()

    def frame(self, size: tuple[int, int], field: int = 0) -> Frame:
        """All of the square: SAM 2 was trained on images that were stretched to it."""
        return Frame(size, (self.side, self.side), self.side)

    def prepare(self, images: Tensor, frame: Frame) -> Tensor:
        """Images ``(n, 1 or 3, y, x)``, 0..1, standardised as SAM 2 takes them."""
        placed: Tensor = (frame.place(images.clamp(0, 1)) - self._mean) / self._std
        return placed

    def see(self, prepared: Tensor) -> list[tuple[Tensor, Decode]]:
        """For each image its embedding, at a stride of 16 pixels, and what answers points."""
        model = self.model
        with self.autocast():
            pyramid = model.forward_image(prepared)["backbone_fpn"]
        *fine, embeddings = (level.float() for level in pyramid[-model.num_feature_levels :])
        if model.directly_add_no_mem_embed:  # what stands for no frame before this one
            embeddings = embeddings + model.no_mem_embed.view(1, -1, 1, 1)
        return [
            (one, partial(self._decode, one[None], [level[i : i + 1] for level in fine]))
            for i, one in enumerate(embeddings)
        ]

    def _decode(
        self, embedding: Tensor, fine: list[Tensor], points: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Three masks for each point ``(n, 2)`` of the square, x and y."""
        points = points.to(embedding.device)
        prompts = self.model.sam_prompt_encoder
        labels = torch.ones(len(points), 1, dtype=torch.int32, device=points.device)
        sparse, dense = prompts(points=(points[:, None], labels), boxes=None, masks=None)
        logits, ious, _, _ = self.model.sam_mask_decoder(
            image_embeddings=embedding,
            image_pe=prompts.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
            repeat_image=True,
            high_res_features=fine or None,
        )
        return logits, ious
