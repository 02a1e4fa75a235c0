"""SAM 2.1 (Ravi et al., arXiv:2408.00714) as an encoder of planes; its package is optional."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from cellseg.download import Remote
from cellseg.errors import ConfigError, WeightsError
from cellseg.events import Emit
from cellseg.specs import BaseWeights
from cellseg.torch.frames import Frame
from cellseg.torch.mask_generation import Decode
from cellseg.torch.sam.weights import base_of, fetch_weights, read_tensors
from cellseg_fewshot.encoders import EncoderSettings
from cellseg_fewshot.encoders.asked import AskedEncoder, Asking, arithmetic

_META = "https://dl.fbaipublicfiles.com/segment_anything_2/092824"
_CONFIGS = {
    "sam2.1_hiera_tiny": "sam2.1_hiera_t",
    "sam2.1_hiera_small": "sam2.1_hiera_s",
    "sam2.1_hiera_base_plus": "sam2.1_hiera_b+",
    "sam2.1_hiera_large": "sam2.1_hiera_l",
}
_TRUNK = "image_encoder.trunk."
_SIZES = {
    (96, 12): "sam2.1_hiera_tiny",
    (96, 16): "sam2.1_hiera_small",
    (112, 24): "sam2.1_hiera_base_plus",
    (144, 48): "sam2.1_hiera_large",
}
"""Width and number of blocks of the image encoder."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the red, green and blue of SAM 2's training images, 0..1."""
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
            torch.tensor(each, device=device).view(3, 1, 1) for each in (_MEAN, _STD)
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
        model = build(name)
        remote = Remote(url=f"{_META}/{name}.pt", name=f"{name}.pt")
        path, base = fetch_weights(remote, "Apache-2.0", emit)
        _fill(model, tensors_of(read_tensors(path)), str(path))
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
        config = _config_of(tensors, path)
        if settings.name is not None and settings.name != config:
            raise ConfigError(
                f"--checkpoint {path}: holds a {config}, not --encoder {settings.name}.",
                hint="Leave out --encoder: the file says what it holds.",
            )
        model = build(config)
        _fill(model, tensors, str(path))
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
        _fill(model, state, "The model's encoder")
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


def build(name: str) -> nn.Module:
    """SAM 2.1 of a size among ``ENCODERS``, with random weights.

    It is put together from the file that its package brings, without hydra's global state.

    Raises:
        ConfigError: the package is not installed.
    """
    if find_spec("sam2") is None:
        raise ConfigError(
            f"The encoder {name} needs the package sam2, which is not installed.",
            hint='Install it: SAM2_BUILD_CUDA=0 uv pip install "cellseg-fewshot[sam2]"',
        )
    from hydra.utils import instantiate

    model: nn.Module = instantiate(_config(name).model)
    return model


def _config(name: str) -> Any:
    """The file of the package that describes a size."""
    import sam2
    from omegaconf import OmegaConf

    folder = Path(sam2.__path__[0]) / "configs" / "sam2.1"
    config = OmegaConf.load(folder / f"{_CONFIGS[name]}.yaml")
    OmegaConf.resolve(config)
    return config


def holds_sam2(values: Mapping[str, Any]) -> bool:
    """Whether the tensors of a file are those of SAM 2."""
    return any(name.startswith(_TRUNK) for name in tensors_of(values))


def tensors_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a file of SAM 2, which has them under ``model``, or at the top."""
    inner = values.get("model")
    return {str(n): v for n, v in (inner if isinstance(inner, Mapping) else values).items()}


def _config_of(tensors: Mapping[str, Tensor], path: Path) -> str:
    blocks = {n.split(".")[3] for n in tensors if n.startswith(f"{_TRUNK}blocks.")}
    first = tensors.get(f"{_TRUNK}patch_embed.proj.weight")
    width = 0 if first is None else len(first)
    if (width, len(blocks)) not in _SIZES:
        raise WeightsError(
            f"{path} holds a SAM 2 of {len(blocks)} blocks of width {width}, which is none of the"
            " published sizes.",
            hint=f"There are: {', '.join(_CONFIGS)}.",
        )
    return _SIZES[width, len(blocks)]


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    try:
        model.load_state_dict(dict(tensors))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise WeightsError(
            f"{what} does not fit SAM 2.1: {reason}",
            hint="Weights of SAM 2.0 are of another network: take those of SAM 2.1.",
        ) from error
