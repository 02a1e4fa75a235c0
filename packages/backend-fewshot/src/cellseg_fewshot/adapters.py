"""Low-rank adapters of the attention of a Segment Anything model.

LoRA (Hu et al., arXiv:2106.09685): to the weights of a linear layer the product of two narrow
matrices is added, and these alone are trained. The adapters are those of the library peft, in the
attention of the image encoder and of the mask decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from cellseg.errors import ConfigError, WeightsError
from cellseg.torch.weights import seeded

_TARGETS = (
    r"image_encoder\.blocks\.\d+\.attn\.(qkv|proj)"
    r"|mask_decoder\.transformer\..*\.(q|k|v|out)_proj"
)
_MARK = ".lora_"


def check_peft() -> None:
    """Make sure that the package is there.

    Raises:
        ConfigError: it is not.
    """
    if find_spec("peft") is None:
        raise ConfigError(
            "--refine needs the package peft, which is not installed.",
            hint='Install it: uv pip install "cellseg-fewshot[refine]"',
        )


def add_adapters(sam: nn.Module, rank: int, seed: int) -> list[nn.Parameter]:
    """Add adapters to a model in place. They change nothing yet; all else is frozen.

    Args:
        sam: a ``segment_anything.modeling.Sam``.
        rank: of the products.
        seed: of the adapters' first weights.

    Returns:
        What is to be trained.

    Raises:
        ConfigError: the package peft is missing.
    """
    check_peft()
    from peft import LoraConfig, inject_adapter_in_model

    where = next(sam.parameters()).device
    # As many units of alpha as ranks: the product is added as it is.
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=_TARGETS)
    with seeded(seed):
        inject_adapter_in_model(config, sam.cpu())  # so that no device draws other numbers
    sam.to(where)
    return [each for name, each in sam.named_parameters() if _MARK in name]


def adapter_tensors(sam: nn.Module) -> dict[str, Tensor]:
    """The adapters of a model, by name, on the CPU."""
    return {
        name: each.detach().cpu().clone()
        for name, each in sam.state_dict().items()
        if _MARK in name
    }


@torch.no_grad()
def merge_adapters(sam: nn.Module) -> None:
    """Make the adapters part of the weights, in place, so that the model has plain layers again."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(sam.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            sam.set_submodule(name, module.get_base_layer())
    if hasattr(sam, "peft_config"):
        del sam.peft_config
    sam.requires_grad_(False)


@torch.no_grad()
def apply_adapters(sam: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Make stored adapters part of the weights of the model that they were trained for, in place.
    It needs no peft.

    Args:
        sam: a ``segment_anything.modeling.Sam`` without adapters.
        tensors: what ``adapter_tensors`` gave.

    Raises:
        WeightsError: they are of another model.
    """
    ends = {side: f"{_MARK}{side}.default.weight" for side in "AB"}
    names = {name.removesuffix(end) for name in tensors for end in ends.values()} - tensors.keys()
    try:
        if 2 * len(names) != len(tensors):
            raise LookupError(f"{len(tensors)} tensors are no pairs")
        for name in names:
            down, up = (tensors[name + end] for end in ends.values())
            weight = sam.get_submodule(name).weight
            weight += (up @ down).to(weight.device)
    except (AttributeError, LookupError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise WeightsError(
            f"The model's adapters do not fit its encoder: {reason}",
            hint="Train again, or copy the whole model directory.",
        ) from error
