"""Low-rank updates (LoRA: Hu et al., arXiv:2106.09685) of linear layers, by the package peft."""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from cellseg.errors import ConfigError

UPDATE = re.compile(r"\.lora_[AB]\.")
"""What is in the name of a parameter of an update."""
_OF_UPDATE = re.compile(r"\.lora_[AB]\..*$")


def add_lora(module: nn.Module, targets: str, rank: int, alpha: float, dropout: float) -> None:
    """Give layers updates, in place. They start as zero: what the module says stays the same.

    Args:
        module: without updates; its parameters but those of the updates stop to learn.
        targets: names of linear layers in it, as a regular expression.
        rank: of the updates.
        alpha: they are multiplied with ``alpha / rank``.
        dropout: share of what goes into them that is left out in training.

    Raises:
        ConfigError: the module has updates already.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if has_lora(module):
        raise ConfigError("The model has low-rank updates already.", hint="Merge them first.")
    settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout}
    config = LoraConfig(**settings, target_modules=targets, bias="none")
    inject_adapter_in_model(config, module)


def has_lora(module: nn.Module) -> bool:
    """Whether a module has updates that are not part of its weights."""
    return any(UPDATE.search(name) for name, _ in module.named_parameters())


def merge_lora(module: nn.Module) -> None:
    """Make updates part of the weights, in place; what the module says stays the same, and it has
    the parameters again that it had without. Nothing is done where there are none."""
    from peft.tuners.lora import LoraLayer

    with torch.no_grad():
        for name, layer in list(module.named_modules()):
            if isinstance(layer, LoraLayer):
                layer.merge()
                module.set_submodule(name, layer.get_base_layer())


def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict that a module has when its updates are merged; the module stays as it is."""
    if has_lora(module):
        module = deepcopy(module)
        merge_lora(module)
    state: dict[str, Tensor] = module.state_dict()
    return state


def merged_name(name: str) -> str:
    """The weight that a parameter of an update is merged into; others are their own."""
    return _OF_UPDATE.sub(".weight", name)
