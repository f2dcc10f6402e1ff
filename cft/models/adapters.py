"""Low-rank adapters: applying them, reporting their coverage, and merging them into the weights.

`all-linear` means every linear layer except the output head. For mixtures of experts, which transformers stores as stacked
matrices, peft adapts router and experts of the families that it knows (Qwen3-MoE, OLMoE, Mixtral ...) and skips them in others
(Granite, Qwen2-MoE, gpt-oss); `coverage` reports which. Fused kernels of state-space layers read the weights of the last
projections directly: an adapter there would work on one machine and be ignored on another, so these projections get none.
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cft.models.architecture import ModelError
from cft.models.experts import expert_weights

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from cft.models.load import Lora

# What peft adds to the name of a wrapped module, once per adapter.
BASE = re.compile(r"(\.base_layer)+(?=\.|$)")
READ_AS_WEIGHTS = ("out_proj", "dt_proj", "conv1d")  # projections of a state-space layer without adapters, see above


def apply_lora(model: PreTrainedModel, *, lora: Lora) -> None:
    """Add adapters to `model` in place and freeze all other weights; its class does not change. Raises ModelError."""
    if importlib.util.find_spec("peft") is None:
        raise ModelError(
            "model.lora needs the peft package: pip install 'critical-token-finetuning[lora]', or model.lora=null"
        )
    import torch
    from peft import LoraConfig, get_peft_model

    bypassed = set(_read_as_weights(model))
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    listed = [] if isinstance(targets, str) else targets
    if named := sorted(name for name in bypassed if name.rpartition(".")[2] in listed):
        raise ModelError(
            f"model.lora.target_modules: kernels of {type(model).__name__} read the weight of {named[0]} directly and would "
            f"ignore an adapter there; leave out {named[0].rpartition('.')[2]}"
        )
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        exclude_modules=sorted(bypassed) or None,
        bias=lora.bias,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(lora.seed)
        # About patterns that peft itself sets for stacked experts; they are applied (tests/models/test_families.py).
        warnings.filterwarnings("ignore", r"The following (rank|alpha)_pattern keys did not match", RuntimeWarning)
        try:
            get_peft_model(model, config)  # changes `model`; the wrapper it returns is not needed
        except ValueError as error:
            if "lora_dropout" in str(error):
                raise ModelError(
                    f"model.lora.dropout={lora.dropout:g}: adapters of stacked experts have no dropout; set "
                    "model.lora.dropout=0, or name model.lora.target_modules outside the experts"
                ) from error
            raise ModelError(f"model.lora.target_modules={lora.target_modules}: {error}") from error


def coverage(model: PreTrainedModel) -> str:
    """Which weights have adapters, and which weights of experts have none, as a sentence; "" without adapters."""
    layers = dict(_lora_layers(model))
    if not layers:
        return ""
    adapted = {_weight_of(name, layer) for name, layer in layers.items()}
    kinds = sorted({name.removesuffix(".weight").rpartition(".")[2] for name in adapted})
    said = f"Adapters on {len(adapted)} weights: {', '.join(kinds)}"
    left = {BASE.sub("", name): name for name in expert_weights(model)}
    if left := {name: left[name] for name in left if name not in adapted and "lora_" not in name}:
        count = sum(p.numel() for name, p in model.named_parameters() if name in left.values())
        total = sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)
        said += f"; none on the experts' weights ({count / total:.0%} of all), which are not trained"
    return said


def merged_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The state dict of `model` with its adapters merged: W + scale * B A. Tensors may be shared with the model."""
    weights = {BASE.sub("", name): tensor for name, tensor in model.state_dict().items() if ".lora_" not in name}
    if hasattr(model, "peft_config"):
        for name, layer in _lora_layers(model):
            key = _weight_of(name, layer)
            for adapter in layer.active_adapters:  # pyright: ignore[reportGeneralTypeIssues]
                delta = layer.get_delta_weight(adapter)  # pyright: ignore[reportCallIssue]
                weights[key] = weights[key] + delta.to(weights[key])
    return weights


def _lora_layers(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    if not hasattr(model, "peft_config"):
        return
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module  # pyright: ignore[reportReturnType]


def _weight_of(name: str, layer: nn.Module) -> str:
    """Name, in the model without adapters, of the weight that an adapter changes."""
    return f"{BASE.sub('', name)}.{getattr(layer, 'parameter_name', 'weight')}"


def _read_as_weights(model: PreTrainedModel) -> Iterator[str]:
    """Names of the projections of state-space layers whose weights kernels may read directly."""
    for name, module in model.named_modules():
        if hasattr(module, "A_log") and hasattr(module, "D") and hasattr(module, "conv1d"):
            yield from (f"{name}.{leaf}" for leaf in READ_AS_WEIGHTS if hasattr(module, leaf))
