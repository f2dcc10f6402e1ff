"""Checks of what an engine supports, before a model is loaded where possible. Messages name an engine that can do it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cft.engines.factory import EngineError, EngineFactory
from cft.models.architecture import class_name, fork_obstacles, paging_obstacles, window
from cft.types import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SHORTEST_WINDOW = 16  # tokens; the self-check of engine=shared_prefix uses fewer


def require_local(factory: EngineFactory) -> None:
    """Raise EngineError unless the engine decodes with the model of this process."""
    if not factory.local:
        raise EngineError(
            f"engine={factory.name}: validation during training uses the weights in memory, and this engine decodes with a "
            "copy of its own; expected engine=shared_prefix or engine=reference (the trained checkpoint can be evaluated with "
            f"it: cft evaluate engine={factory.name} checkpoint=...)"
        )


def require_samples(factory: EngineFactory, *, num_samples: int, key: str) -> None:
    """Raise EngineError if samples are requested from a greedy-only engine. key: the config key of their number."""
    if num_samples and not factory.samples:
        raise EngineError(
            f"{key}={num_samples}: engine={factory.name} decodes greedily only; expected {key}=0, or an engine whose samples "
            "do not depend on the batch, such as engine=shared_prefix"
        )


def require_adjusts(factory: EngineFactory, *, rule: str) -> None:
    """Raise EngineError if the engine cannot apply the configured decoding rule. rule: its name, "" for none."""
    if rule and not getattr(factory, "adjusts", False):
        raise EngineError(f"decoding={rule}: {_chosen_elsewhere(factory.name)}")


def require_unadjusted(sampling: Sampling, *, name: str) -> None:
    """Raise EngineError for a fork with a logit adjustment. For engines whose tokens are chosen by external code."""
    if sampling.adjustment is not None:
        raise EngineError(f"a decoding rule was given: {_chosen_elsewhere(name)}")


def _chosen_elsewhere(name: str) -> str:
    return (
        f"engine={name} leaves the choice of tokens to external code, which would not apply the rule; expected "
        "engine=shared_prefix or engine=reference, or decoding=none"
    )


def require_decodes(name: str, config: PreTrainedConfig) -> None:
    """Raise EngineError if this engine cannot decode correctly with a model of this config; the message names one that can."""
    if name == "shared_prefix":
        found, why = (
            fork_obstacles(config),
            "its forks share the keys of a prefix, which requires a plain softmax over all of them",
        )
        if (seen := window(config)) is not None and seen < SHORTEST_WINDOW:
            found.append(f"attention to a window of {seen} tokens")
    elif name == "continuous":
        found, why = (
            paging_obstacles(config),
            "transformers' continuous batching requires a paged KV cache and replaceable attention",
        )
    else:
        return
    if found:
        raise EngineError(
            f"engine={name} cannot decode with {class_name(config)} ({config.name_or_path}), which has "
            f"{' and '.join(found)}: {why}; {other_engines(config)}"
        )


def require_within_window(config: PreTrainedConfig, *, length: int) -> None:
    """Raise EngineError if a layer's window is shorter than `length` (prompt included): this engine attends to all keys."""
    seen = window(config)
    if seen is not None and length > seen:
        raise EngineError(
            f"engine=shared_prefix attends to all earlier tokens, and layers of {class_name(config)} "
            f"({config.name_or_path}) attend to {seen} at most: prompt and max_new_tokens add up to {length}, expected at most "
            f"{seen}; lower max_new_tokens, or {other_engines(config)}"
        )


def other_engines(config: PreTrainedConfig) -> str:
    """Advice naming the engine that decodes with any model, and those that may be faster."""
    faster = "" if paging_obstacles(config) else " or engine=continuous"
    return f"use engine=reference{faster} (engine=vllm and engine=server decode what they can serve)"


def require_greedy(sampling: Sampling, *, name: str) -> None:
    """Raise EngineError for a sampled fork. For engines whose samples would depend on the rest of the batch."""
    if sampling.temperature != 0:
        raise EngineError(
            f"engine={name} decodes greedily only: its samples would depend on the batch; use engine=shared_prefix"
        )
