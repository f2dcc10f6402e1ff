"""What an engine cannot do, said before a model loads where that is possible, with one that can."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cft.engines.factory import EngineError, EngineFactory
from cft.models.architecture import class_name, fork_obstacles, paging_obstacles, window
from cft.types import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SHORTEST_WINDOW = 16  # tokens; the check of engine=shared_prefix against a plain pass looks at fewer


def require_local(factory: EngineFactory) -> None:
    """Raise EngineError unless the engine decodes with a model of this process."""
    if not factory.local:
        raise EngineError(
            f"engine={factory.name}: a training validates the weights that it has in memory, and this engine decodes with "
            "a copy of its own; expected engine=shared_prefix or engine=reference (the trained checkpoint can be evaluated "
            f"with it: cft evaluate engine={factory.name} checkpoint=...)"
        )


def require_samples(factory: EngineFactory, *, num_samples: int, key: str) -> None:
    """Raise EngineError where samples are asked for and the engine decodes greedily only. key: what holds their number."""
    if num_samples and not factory.samples:
        raise EngineError(
            f"{key}={num_samples}: engine={factory.name} decodes greedily only; expected {key}=0, or an engine that draws "
            "samples which do not depend on the batch, such as engine=shared_prefix"
        )


def require_adjusts(factory: EngineFactory, *, rule: str) -> None:
    """Raise EngineError where a decoding rule is asked for and the engine cannot apply it. rule: its name, "" for none."""
    if rule and not getattr(factory, "adjusts", False):
        raise EngineError(f"decoding={rule}: {_chosen_elsewhere(factory.name)}")


def require_unadjusted(sampling: Sampling, *, name: str) -> None:
    """Raise EngineError for a fork whose logits are to be adjusted. For engines that choose tokens where they cannot be."""
    if sampling.adjustment is not None:
        raise EngineError(f"a decoding rule was given: {_chosen_elsewhere(name)}")


def _chosen_elsewhere(name: str) -> str:
    return (
        f"engine={name} has its tokens chosen by code that is not this program's, which would not apply the rule; expected "
        "engine=shared_prefix or engine=reference, or decoding=none"
    )


def require_decodes(name: str, config: PreTrainedConfig) -> None:
    """Raise EngineError where this engine would not decode what a model of this config does, with one that can."""
    if name == "shared_prefix":
        found, why = (
            fork_obstacles(config),
            "its forks share the keys of a prefix under a plain softmax over all of them",
        )
        if (seen := window(config)) is not None and seen < SHORTEST_WINDOW:
            found.append(f"attention to a window of {seen} tokens")
    elif name == "continuous":
        found, why = (
            paging_obstacles(config),
            "transformers' continuous batching keeps pages of keys and exchanges attention",
        )
    else:
        return
    if found:
        raise EngineError(
            f"engine={name} cannot decode with {class_name(config)} ({config.name_or_path}), which has "
            f"{' and '.join(found)}: {why}; {other_engines(config)}"
        )


def require_within_window(config: PreTrainedConfig, *, length: int) -> None:
    """Raise EngineError if a layer sees less than `length` tokens, prompt included: keys of a prefix are all seen here."""
    seen = window(config)
    if seen is not None and length > seen:
        raise EngineError(
            f"engine=shared_prefix shows a layer all earlier tokens, and layers of {class_name(config)} "
            f"({config.name_or_path}) see {seen} at most: prompt and max_new_tokens come to {length}, expected at most "
            f"{seen}; lower max_new_tokens, or {other_engines(config)}"
        )


def other_engines(config: PreTrainedConfig) -> str:
    """What decodes with any model, and what may be faster."""
    faster = "" if paging_obstacles(config) else " or engine=continuous"
    return f"use engine=reference{faster} (engine=vllm and engine=server decode what they can serve)"


def require_greedy(sampling: Sampling, *, name: str) -> None:
    """Raise EngineError for a sampled fork. For engines whose samples would depend on what else is in the batch."""
    if sampling.temperature != 0:
        raise EngineError(
            f"engine={name} decodes greedily only: its samples would depend on the batch; use engine=shared_prefix"
        )
