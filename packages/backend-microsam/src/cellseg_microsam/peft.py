"""Parameter-efficient fine-tuning of the image encoder, by micro-SAM's methods.

LoRA: Hu et al., arXiv:2106.09685; QLoRA: Dettmers et al., arXiv:2305.14314; FacT: Jie and Deng,
arXiv:2212.03145; SSF: Lian et al., arXiv:2210.08823; AdaptFormer: Chen et al., arXiv:2205.13535;
in Segment Anything for microscopy: Teuber et al., arXiv:2502.00418.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from cellseg.errors import ConfigError, DeviceError
from cellseg_microsam.model import MicroSam

METHODS = (
    "lora",
    "fact",
    "ssf",
    "adaptformer",
    "attention",
    "bias",
    "layernorm",
    "last-blocks",
    "qlora",
)


def apply_peft(
    model: MicroSam,
    method: str,
    rank: int = 4,
    alpha: float = 1.0,
    blocks: Sequence[int] = (),
) -> None:
    """Freeze the image encoder but for few weights, in place; the results do not change yet.

    ``attention``, ``bias``, ``layernorm`` and ``last-blocks`` train some of the weights that are
    there. The others add weights, which start so that they do nothing.

    Args:
        model: not on a GPU yet.
        method: one of ``METHODS``.
        rank: of the updates of lora, qlora and fact.
        alpha: factor of the updates of lora and qlora.
        blocks: of the encoder, counted from 0; none means all.

    Raises:
        ConfigError: there is no such method or block, the encoder is MobileSAM's, it has such
            weights already, or a package is missing.
        DeviceError: qlora without a CUDA device.
    """
    if method not in METHODS:
        raise ConfigError(
            f"There is no method {method!r}.", hint=f"There are {', '.join(METHODS)}."
        )
    if model.architecture.tiny_vit:
        raise ConfigError("--peft does not work with vit_t, whose encoder has no such blocks.")
    depth = model.architecture.depth
    if wrong := [block for block in blocks if not 0 <= block < depth]:
        raise ConfigError(f"--peft-blocks {wrong[0]}: the encoder has the blocks 0 to {depth - 1}.")
    if any(True for _ in _added(model.sam.image_encoder)):
        raise ConfigError(
            "--peft: the model has updates of an earlier training already, which are not part of"
            " its plain weights.",
            hint="Start from another model, or train without --peft.",
        )
    if method == "qlora":
        _check_quantising()
    from micro_sam.models import peft_sam

    surgery = {
        "lora": peft_sam.LoRASurgery,
        "qlora": peft_sam.LoRASurgery,
        "fact": peft_sam.FacTSurgery,
        "ssf": peft_sam.SSFSurgery,
        "adaptformer": _adapter(),
        "attention": peft_sam.AttentionSurgery,
        "bias": peft_sam.BiasSurgery,
        "layernorm": peft_sam.LayerNormSurgery,
        "last-blocks": peft_sam.ClassicalSurgery,
    }[method]
    peft_sam.PEFT_Sam(
        model.sam,
        rank=rank,
        peft_module=surgery,
        attention_layers_to_update=list(blocks) or None,
        quantize=method == "qlora",
    )
    for _, module in _added(model.sam.image_encoder):
        _do_nothing(module, alpha)
    model.train(model.training)  # what was added too


def merge_peft(model: MicroSam) -> bool:
    """Make added weights part of those that they are added to, in place; results stay the same.

    Returns:
        Whether the encoder has plain weights alone now. What AdaptFormer adds is not linear, and
        stays.
    """
    encoder = model.sam.image_encoder
    merge = _merges()
    for name, module in list(_added(encoder)):
        if type(module) in merge:
            encoder.set_submodule(name, merge[type(module)](module))
    for name, module in list(encoder.named_modules()):
        if type(module).__name__ == "Linear4bit":
            encoder.set_submodule(name, _dequantised(module))
    return not any(True for _ in _added(encoder))


def changed_by_merging(model: MicroSam) -> tuple[str, ...]:
    """Names of the model's plain tensors, such as ``sam.image_encoder.blocks.0.attn.qkv.weight``,
    that ``merge_peft`` will change."""
    plain = []
    for name, module in _added(model.sam.image_encoder):
        tensors = ("weight",) if hasattr(module, "qkv_proj") else ("weight", "bias")
        if type(module) in _merges():
            plain += [f"sam.image_encoder.{name}.{tensor}" for tensor in tensors]
    return tuple(plain)


def _added(encoder: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that a method put in the place of others, by the others' names."""
    from micro_sam.models import peft_sam

    kinds = (peft_sam.AttentionLoRA, peft_sam.FacTSurgery, peft_sam.ScaleShiftLayer)
    for name, module in encoder.named_modules():
        if isinstance(module, (*kinds, peft_sam.AdaptFormer)):
            yield name, module


def _do_nothing(module: Any, alpha: float) -> None:
    """Give added weights values with which they change nothing; LoRA has them by itself."""
    from micro_sam.models import peft_sam

    if isinstance(module, peft_sam.AttentionLoRA):
        module.alpha = alpha
    elif isinstance(module, peft_sam.FacTSurgery):
        nn.init.zeros_(module.FacTv.weight)
    elif isinstance(module, peft_sam.ScaleShiftLayer):
        nn.init.ones_(module.scale)
        nn.init.zeros_(module.shift)


def _adapter() -> type[nn.Module]:
    """AdaptFormer as its paper has it. micro-SAM's adds its input once more to the result, which
    the block around it does already, so that a model that begins to train is another at once."""
    from micro_sam.models.peft_sam import AdaptFormer

    class Adapter(AdaptFormer):
        def forward(self, x: Tensor) -> Tensor:
            added = self.up_proj(self.non_linear_func(self.down_proj(x)))
            return self.mlp_proj(x) + self.alpha * added

    return Adapter


def _merges() -> dict[type[nn.Module], Callable[[Any], nn.Module]]:
    from micro_sam.models import peft_sam

    return {
        peft_sam.AttentionLoRA: _merged_lora,
        peft_sam.FacTSurgery: _merged_fact,
        peft_sam.ScaleShiftLayer: _merged_scale,
    }


@torch.no_grad()
def _merged_lora(module: Any) -> nn.Module:
    return _with_updates(
        _dequantised(module.qkv_proj),
        module.alpha * module.w_b_linear_q.weight @ module.w_a_linear_q.weight,
        module.alpha * module.w_b_linear_v.weight @ module.w_a_linear_v.weight,
    )


@torch.no_grad()
def _merged_fact(module: Any) -> nn.Module:
    into, out = module.FacTu.weight, module.FacTv.weight
    return _with_updates(
        module.qkv_proj, out @ module.q_FacTs.weight @ into, out @ module.v_FacTs.weight @ into
    )


def _with_updates(linear: Any, q: Tensor, v: Tensor) -> nn.Module:
    """The layer of query, key and value with updates of the first and of the last."""
    linear.weight[: q.shape[0]] += q
    linear.weight[-v.shape[0] :] += v
    return linear


@torch.no_grad()
def _merged_scale(module: Any) -> nn.Module:
    """A linear layer, a convolution or a layer norm, with its results scaled and shifted."""
    layer, scale = module.layer, module.scale
    layer.weight.mul_(scale.view(-1, *(1,) * (layer.weight.ndim - 1)))
    layer.bias.mul_(scale).add_(module.shift)
    return layer


def _check_quantising() -> None:
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            "--peft qlora needs the package bitsandbytes.",
            hint="Install it: uv pip install bitsandbytes; or use --peft lora.",
        )
    if not torch.cuda.is_available():
        raise DeviceError("--peft qlora needs a CUDA device.", hint="Use --peft lora.")


@torch.no_grad()
def _dequantised(linear: Any) -> nn.Module:
    """A plain linear layer with the weights of a quantised one; others as they are."""
    if type(linear).__name__ != "Linear4bit":
        return linear
    from bitsandbytes.functional import dequantize_4bit

    weight = linear.weight
    if weight.quant_state is not None:
        weight = dequantize_4bit(weight.data, weight.quant_state)
    plain = nn.Linear(linear.in_features, linear.out_features, linear.bias is not None)
    plain.weight.copy_(weight)
    if linear.bias is not None:
        plain.bias.copy_(linear.bias)
    return plain.to(linear.weight.device)
