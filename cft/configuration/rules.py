"""What the values of a config must satisfy beyond their types and the ranges that constructors declare
(`cft/ranges.py`): ranges of what the stages own and libraries take, and rules that tie several keys together.

A rule is skipped where a key it reads is absent or of a wrong type: that has its own message. Add a rule to RULES.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cft.configuration.needs import strings
from cft.configuration.value_types import show


class _NotApplicable(LookupError):
    pass


@dataclass(frozen=True, slots=True)
class Values:
    """A resolved config, read by dotted path. Raises _NotApplicable where the value asked for is not there."""

    tree: Mapping[str, object]

    def get(self, path: str, default: object = ...) -> object:
        node: object = self.tree
        for part in path.split("."):
            if not isinstance(node, Mapping) or part not in node:
                if default is ...:
                    raise _NotApplicable(path)
                return default
            node = node[part]
        return node

    def number(self, path: str, default: float | None = None) -> float:
        value = self.get(path, ... if default is None else default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _NotApplicable(path)
        return value

    def text(self, path: str) -> str:
        value = self.get(path)
        if not isinstance(value, str):
            raise _NotApplicable(path)
        return value


@dataclass(frozen=True, slots=True)
class Rule:
    """key: what the message names. expected: the condition in words, with the reason and the remedy."""

    key: str
    expected: str
    holds: Callable[[Values], bool]

    def broken_by(self, values: Values) -> str | None:
        try:
            if self.holds(values):
                return None
        except _NotApplicable:
            return None
        found = values.get(self.key, None)
        return f"expected {self.expected}, found {show(found)}"


def at_least(key: str, least: float) -> Rule:
    return Rule(key, f"at least {least:g}", lambda v: v.number(key) >= least)


def above_zero(key: str) -> Rule:
    return Rule(key, "a number above 0", lambda v: 0 < v.number(key) < math.inf)


def fraction(key: str) -> Rule:
    return Rule(key, "a share from 0 to 1", lambda v: 0 <= v.number(key) <= 1)


def share(key: str) -> Rule:
    return Rule(key, "above 0 and at most 1 (1 = all)", lambda v: 0 < v.number(key) <= 1)


def top_p(key: str) -> Rule:
    return Rule(key, "above 0 and at most 1 (1 = all tokens)", lambda v: 0 < v.number(key) <= 1)


def count_or_all(key: str) -> Rule:
    return Rule(key, "at least 1, or -1 for all", lambda v: v.number(key) >= 1 or v.number(key) == -1)


def temperature(prefix: str = "") -> Rule:
    return Rule(
        f"{prefix}temperature",
        f"a number above 0 when samples are drawn ({prefix}num_samples=0 for greedy only)",
        lambda v: v.number(f"{prefix}num_samples") == 0 or 0 < v.number(f"{prefix}temperature") < math.inf,
    )


def seed(key: str) -> Rule:
    return Rule(key, "from 0 to 2^32 - 1", lambda v: 0 <= v.number(key) < 2**32)


def monitor(metric: str, expected: str, holds: Callable[[Values], bool]) -> Rule:
    return Rule(
        "callbacks.best.monitor",
        expected,
        lambda v: v.text("callbacks.best.monitor") != metric or holds(v),
    )


def _mode_suits_monitor(v: Values) -> bool:
    metric = v.text("callbacks.best.monitor").rsplit("/", 1)[-1]
    better = "min" if metric.startswith("loss") else "max" if "accuracy" in metric else v.text("callbacks.best.mode")
    return v.text("callbacks.best.mode") == better


def _trained_in_float32(v: Values) -> bool:
    frozen = v.get("model.lora", None) is not None
    return v.text("model.dtype") in (("float32", "bfloat16") if frozen else ("float32",))


def _folder_name(v: Values) -> bool:
    name = v.text("annotation")
    return bool(name.strip()) and not any(c in name for c in "/\\\0") and not name.startswith(".")


def _betas_in_range(v: Values) -> bool:
    betas = v.get("optimizer.betas")
    if not isinstance(betas, list) or not all(isinstance(b, int | float) for b in betas):
        raise _NotApplicable
    return all(0 <= b < 1 for b in betas)


_EVERYWHERE = (
    seed("seed"),
    at_least("verify.workers", 1),
    above_zero("verify.timeout_s"),
    at_least("engine.max_rows", 1),
    at_least("engine.kv_budget_mb", 1),
    at_least("engine.tie_margin", 0),
    at_least("logger.wandb.transcripts", 0),
)

_MASKS = ("mask", "mask.like", "mask.of", "mask.inner", "groups")

_ROWS = (  # of an annotation, under a mask
    at_least("data.batch_size", 1),
    count_or_all("data.max_rows"),
    at_least("data.max_tokens", 2),
    Rule(
        "data.validation_fraction",
        "from 0 to below 1: some rows must be left to train on",
        lambda v: 0 <= v.number("data.validation_fraction") < 1,
    ),
    Rule(
        "data.annotation",
        "the name of an annotation (cft annotate makes one)",
        lambda v: v.text("data.annotation") != "",
    ),
    *(share(f"{part}.share") for part in _MASKS),
)

RULES: dict[str, tuple[Rule, ...]] = {  # by stage; `cft/configuration/stages.py` takes them from here
    "annotate": (
        *_EVERYWHERE,
        Rule(
            "data._target_",
            "a source of problems, such as data=arithmetic; an annotation is what cft annotate makes",
            lambda v: not v.text("data._target_").startswith("cft.data.annotated."),
        ),
        Rule(
            "responses",
            "solve: data.solution_field is empty, so the data has no solutions to give; name the field that holds them "
            "(data.solution_field=...)",
            lambda v: v.text("responses") != "given" or v.text("data.solution_field") != "",
        ),
        Rule(
            "responses",
            "solve: the problems of reasoning-gym come without solutions",
            lambda v: v.text("responses") != "given" or v.text("data._target_") != "cft.data.sources.reasoning_gym",
        ),
        count_or_all("limit"),
        at_least("num_alternatives", 1),
        Rule(
            "max_new_tokens",
            "at least 2: one token of answer and the end",
            lambda v: v.number("max_new_tokens") >= 2,
        ),
        at_least("unit_size", 1),
        at_least("num_shards", 1),
        Rule(
            "shard",
            "from 0 to below num_shards (cft annotate -m num_shards=3 shard=0,1,2)",
            lambda v: 0 <= v.number("shard") < v.number("num_shards"),
        ),
        fraction("replay_fraction"),
        Rule(
            "annotation",
            "a plain folder name, made under annotations_dir (the place itself is annotations_dir)",
            _folder_name,
        ),
    ),
    "train": (
        *_EVERYWHERE,
        Rule(
            "data._target_",
            "an annotation, data=annotated data.annotation=<name>; problems are chosen by benchmark=...",
            lambda v: not v.text("data._target_").startswith("cft.data.sources."),
        ),
        Rule(
            "trainer.use_distributed_sampler",
            "false: rows are shared out by global position, and Lightning's own sampler would shuffle them anew",
            lambda v: v.get("trainer.use_distributed_sampler", True) is False,
        ),
        Rule(
            "trainer.max_epochs",
            "at least 1, or -1 to go by trainer.max_steps",
            lambda v: v.number("trainer.max_epochs") >= 1 or v.number("trainer.max_epochs") == -1,
        ),
        Rule(
            "trainer.max_steps",
            "above 0 because trainer.max_epochs is -1: one of the two must end the training",
            lambda v: v.number("trainer.max_epochs") != -1 or v.number("trainer.max_steps", -1) > 0,
        ),
        Rule(
            "trainer.max_steps",
            "above 0, or -1 to go by trainer.max_epochs",
            lambda v: v.number("trainer.max_steps") > 0 or v.number("trainer.max_steps") == -1,
        ),
        Rule(
            "model.dtype",
            "float32 for training: weights in half precision round small steps to zero. For speed and memory set "
            "trainer.precision=bf16-mixed; a frozen base under adapters (model.lora) may be bfloat16",
            _trained_in_float32,
        ),
        at_least("trainer.accumulate_grad_batches", 1),
        at_least("trainer.gradient_clip_val", 0),
        above_zero("optimizer.lr"),
        at_least("optimizer.weight_decay", 0),
        at_least("optimizer.momentum", 0),
        Rule("optimizer.betas", "each from 0 to below 1", _betas_in_range),
        *_ROWS,
        at_least("loss.chunk_tokens", 1),
        fraction("loss.aggregation.share.initial"),
        fraction("loss.aggregation.share.final"),
        Rule(
            "weighting.lowest",
            "at most weighting.highest: else no token is left",
            lambda v: v.number("weighting.lowest") <= v.number("weighting.highest"),
        ),
        fraction("schedule.warmup_fraction"),
        at_least("probe.critical_alternatives", 1),
        at_least("probe.every_n_steps", 0),
        at_least("interruption.max_hours", 0),
        at_least("callbacks.last.every_n_steps", 0),
        at_least("callbacks.last.keep", 1),
        at_least("validation.problems", 0),
        at_least("evaluation.problems", 0),
        at_least("evaluation.num_samples", 0),
        at_least("evaluation.max_new_tokens", 1),
        fraction("evaluation.max_not_run"),
        temperature("evaluation."),
        top_p("evaluation.top_p"),
        seed("evaluation.seed"),
        monitor(
            "val/accuracy",
            "val/loss (callbacks=best_loss): no validation problem is solved with validation.problems=0",
            lambda v: v.number("validation.problems") > 0,
        ),
        monitor(
            "val/loss",
            "val/accuracy: no row is held out with data.validation_fraction=0",
            lambda v: v.number("data.validation_fraction") > 0,
        ),
        Rule("callbacks.best.mode", "max for an accuracy, min for a loss", _mode_suits_monitor),
    ),
    "score": (seed("seed"), at_least("batch_size", 1), at_least("score.layers", 1)),
    "labels": (seed("seed"), *_ROWS),
    "evaluate": (
        *_EVERYWHERE,
        count_or_all("limit"),
        at_least("num_samples", 0),
        at_least("max_new_tokens", 1),
        fraction("max_not_run"),
        temperature(),
        top_p("top_p"),
    ),
}


def broken_rules(tree: Mapping[str, object], *, rules: Sequence[Rule]) -> list[tuple[str, str]]:
    """(key, message) of every rule that the values break."""
    values = Values(tree)
    found = ((rule.key, rule.broken_by(values)) for rule in rules)
    broken = [(key, message) for key, message in found if message is not None]
    selecting = list(_selections(tree.get("weighting"), "weighting"))
    if len(selecting) > 1:
        text = (
            f"expected at most one selection by rank in a product, found {len(selecting)}: {', '.join(selecting)}. Each "
            "would rank all eligible tokens for itself and scale its share as if it stood alone; select by a mask instead, "
            "such as mask=entropy"
        )
        broken.append((selecting[-1], text))
    return broken


def _selections(node: object, path: str) -> Iterator[str]:
    """Paths of the weightings in a tree that keep a share of each row (`cft.weightings.token.Weighting.selects`)."""
    if not isinstance(node, Mapping):
        return
    target = node.get("_target_")
    if isinstance(target, str) and any(strings(target, "selects") or ()):
        yield path
    for name, inner in node.items():
        yield from _selections(inner, f"{path}.{name}")
