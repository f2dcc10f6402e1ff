"""Mixtures of experts, by the model's config: number of experts, experts per token, and the load-balancing loss."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cft.errors import BadValue
from cft.models.architecture import class_name

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

KEY = "router.aux_coef"
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts")
_SINGLE = re.compile(r"\.experts\.\d+\.")  # weights of models in which each expert has its own linear layers


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of a model.

    number: experts per layer. chosen: experts per token. coefficient: of the load-balancing loss in the config, None if it has
    none. asked_for: whether the config adds it to the model's own loss (`output_router_logits`).
    """

    number: int
    chosen: int
    coefficient: float | None
    asked_for: bool


def experts_of(config: PreTrainedConfig) -> Experts | None:
    """The experts of a model with this config, None for a dense model."""
    text: Any = config.get_text_config(decoder=True)
    numbers = [n for name in _COUNTS if isinstance(n := getattr(text, name, None), int) and n > 1]
    if not numbers:
        return None
    chosen = [n for name in _CHOSEN if isinstance(n := getattr(text, name, None), int) and n > 0]
    return Experts(
        numbers[0],
        chosen[0] if chosen else 1,
        getattr(text, "router_aux_loss_coef", None),
        bool(getattr(text, "output_router_logits", False)),
    )


def router_coefficient(config: PreTrainedConfig, *, asked: float | None) -> float:
    """Coefficient of the load-balancing loss; 0 if the loss is not used.

    Args:
        config: The model's config.
        asked: `router.aux_coef`; None: as in the model's own loss.

    Raises:
        BadValue: A coefficient is given for a model without experts.
    """
    experts = experts_of(config)
    if experts is None:
        if asked:
            raise BadValue(
                f"{KEY}={asked:g}: {class_name(config)} ({config.name_or_path}) has no experts, so there is no router to "
                f"balance; set {KEY}=null"
            )
        return 0.0
    if asked is not None:
        return asked
    return experts.coefficient or 0.0 if experts.asked_for else 0.0


def router_note(config: PreTrainedConfig, *, asked: float | None) -> str:
    """Console message about the load-balancing loss before training; "" for a dense model."""
    experts = experts_of(config)
    if experts is None:
        return ""
    used, of_config = router_coefficient(config, asked=asked), experts.coefficient
    if used:
        return (
            f"{experts.number} experts, {experts.chosen} per token: load-balancing loss with coefficient {used:g}, the mean of "
            "the rows' own losses"
        )
    if asked is not None:
        return f"{experts.number} experts, {experts.chosen} per token: no load-balancing loss ({KEY}={asked:g})"
    if of_config is None:
        return f"{experts.number} experts, {experts.chosen} per token: no load-balancing loss, as in the model's config"
    return (
        f"{experts.number} experts, {experts.chosen} per token: no load-balancing loss, since the model's config has "
        f"output_router_logits=false; {KEY}={of_config:g} adds it with the coefficient of that config"
    )


def active_fraction(config: PreTrainedConfig, *, name: str, weight: Tensor) -> float:
    """The fraction of a weight that each token is multiplied with. name: of the parameter."""
    experts = experts_of(config)
    if experts is None:
        return 1.0
    stacked = weight.ndim == 3 and weight.shape[0] == experts.number
    return experts.chosen / experts.number if stacked or _SINGLE.search(name) else 1.0


def expert_weights(model: PreTrainedModel) -> set[str]:
    """Names of the expert weights, of which each token uses only a part."""
    return {name for name, p in model.named_parameters() if active_fraction(model.config, name=name, weight=p) < 1.0}
