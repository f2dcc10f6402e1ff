"""What ties several keys of a config together. What one key must satisfy is the annotation of the parameter or of the schema's
field that it is for (`cft/ranges.py`); for what libraries take: `cft/config/library_rules.py`.

A rule is skipped where a key it reads is absent or of a wrong type: that has its own message. Add a rule to RULES.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cft.config.needs import GIVEN_ROWS, strings
from cft.ranges import show

# What a validation logs (`cft/training/module.py`, `validation.py`): what the best epoch may be chosen by.
MONITORED = (
    "val/accuracy",
    "val/loss",
    "val/loss_critical",
    "val/loss_other",
    "val/entropy_critical",
    "val/entropy_other",
    "val/preference_accuracy",
    "val/preference_margin",
)


NO_ROWS = "cft.data.rows.no_rows"  # what data=none names
RAY = "cft.fleets.Ray"  # what fleet=ray names


class _NotApplicable(LookupError):
    pass


@dataclass(frozen=True, slots=True)
class Values:
    """A resolved config, read by dotted path. Raises _NotApplicable where the requested value is not there."""

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


def temperature(prefix: str = "") -> Rule:
    return Rule(
        f"{prefix}temperature",
        f"a number above 0 when samples are drawn ({prefix}num_samples=0 for greedy only)",
        lambda v: v.number(f"{prefix}num_samples") == 0 or 0 < v.number(f"{prefix}temperature") < math.inf,
    )


def monitor(metrics: tuple[str, ...], expected: str, holds: Callable[[Values], bool]) -> Rule:
    return Rule(
        "callbacks.best.monitor",
        expected,
        lambda v: v.text("callbacks.best.monitor") not in metrics or holds(v),
    )


def _mode_suits_monitor(v: Values) -> bool:
    metric = v.text("callbacks.best.monitor").rsplit("/", 1)[-1]
    better = "min" if metric.startswith("loss") else "max" if "accuracy" in metric else v.text("callbacks.best.mode")
    return v.text("callbacks.best.mode") == better


def _trained_in_float32(v: Values) -> bool:
    frozen = v.get("model.lora", None) is not None
    return v.text("model.dtype") in (("float32", "bfloat16") if frozen else ("float32",))


def _given(v: Values) -> bool:
    return v.text("responses") in ("given", "given_wrong")


def _rolled_out(v: Values) -> bool:
    return v.text("responses") == "rollouts"


_DATA_IS_READ = Rule(
    "data._target_",
    "an annotation, data=annotated data.annotation=<name>; problems are chosen by benchmark=...",
    lambda v: v.text("data._target_") != NO_ROWS and not v.text("data._target_").startswith("cft.data.sources."),
)

_PREFIX_WITHOUT_TAGS = Rule(
    "data.tags",
    "null with data/prefix=...: the beginning of a response has no answer to tag",
    lambda v: v.get("data.prefix") is None or v.get("data.tags") is None,
)

_PART_OF_PARTS = Rule(
    "data.part", "from 0 to below data.parts", lambda v: v.number("data.part") < v.number("data.parts")
)

_TIES_IN_FLOAT32 = Rule(
    "engine.tie_margin",
    "null or 0 with model.dtype in half precision, where no margin says what another batch would turn (the replays of an "
    "annotation measure it), or model.dtype=float32",
    lambda v: v.number("engine.tie_margin") == 0 or v.text("model.dtype") == "float32",
)

NO_RULE = "cft.decoding.no_rule"  # what decoding=none names

_RULE_IS_APPLIED = Rule(
    "engine._target_",
    "engine=shared_prefix or engine=reference with a decoding rule: tokens of the other engines are chosen by code that would "
    "not apply it; or decoding=none",
    lambda v: (
        v.text("decoding._target_") == NO_RULE
        or not v.text("engine._target_").endswith((".Continuous", ".Server", ".Vllm"))
    ),
)

_ON_RAY = (
    Rule(
        "device",
        "auto, cpu or cuda with fleet=ray: which GPU a worker gets is Ray's choice",
        lambda v: v.text("fleet._target_") != RAY or ":" not in v.text("device"),
    ),
    Rule(
        "fleet.num_gpus",
        "above 0, or null, with device=cuda",
        lambda v: v.text("device") != "cuda" or v.number("fleet.num_gpus") > 0,
    ),
)

CODE = "cft.verifiers.Code"
OF_PROBLEMS = "cft.benchmarks.BenchmarkVerifier"  # what verifier=benchmark names


def _patience_with(verifier: str) -> Rule:
    """verifier: key of one that runs programs; it waits for them while the pool waits for it."""

    def holds(v: Values) -> bool:
        unused = verifier != "verifier" and v.text("verifier._target_") != OF_PROBLEMS
        is_code = v.text(f"{verifier}._target_") == CODE
        return unused or not is_code or v.number(f"{verifier}.cpu_s") <= v.number("verify.timeout_s")

    return Rule(
        f"{verifier}.cpu_s",
        "at most verify.timeout_s: a program is given that many seconds of processor time, and the verifier that waits for it "
        "is ended after verify.timeout_s, so that every long program would be undecided; raise verify.timeout_s",
        holds,
    )


_OF_BENCHMARK = (_patience_with("verifier"), _patience_with("benchmark.verifier"))

RULES: dict[str, tuple[Rule, ...]] = {  # by stage; `cft/config/stages.py` takes them from here
    "annotate": (
        _TIES_IN_FLOAT32,
        _patience_with("verifier"),
        _patience_with("data.verifier"),
        Rule(
            "data._target_",
            "a source of problems, such as data=arithmetic or data=rows; an annotation is what cft annotate makes",
            lambda v: (
                v.text("data._target_") != NO_ROWS and not v.text("data._target_").startswith("cft.data.annotated.")
            ),
        ),
        Rule(
            "data.answer_field",
            "the field of the gold answers: with data=rows a response without one is its own, and none would be wrong "
            "(responses=given_wrong)",
            lambda v: (
                v.text("data._target_") != GIVEN_ROWS
                or v.text("responses") != "given_wrong"
                or v.text("data.answer_field") != ""
            ),
        ),
        Rule(
            "split",
            "train with data=rows: its rows are not split (data.split chooses among those of a data set)",
            lambda v: v.text("data._target_") != GIVEN_ROWS or v.text("split") == "train",
        ),
        Rule(
            "responses",
            "solve or wrong: data.solution_field is empty, so the data has no solutions to give; name the field that holds "
            "them (data.solution_field=...)",
            lambda v: not _given(v) or v.text("data.solution_field") != "",
        ),
        Rule(
            "responses",
            "solve or wrong: the problems of reasoning-gym come without solutions",
            lambda v: not _given(v) or v.text("data._target_") != "cft.data.sources.reasoning_gym",
        ),
        Rule(
            "responses",
            "given or given_wrong with positions=bisect: a model's own greedy response continues as itself from each of its "
            "beginnings, so that there is nothing to find",
            lambda v: _given(v) or not v.text("positions._target_").endswith(".Bisect"),
        ),
        Rule(
            "evidence",
            "greedy with responses=rollouts: these are kept without counterfactuals (num_samples is of each problem)",
            lambda v: not _rolled_out(v) or v.text("evidence") == "greedy",
        ),
        Rule(
            "positions._target_",
            "positions=all with responses=rollouts: nothing is tried at any position",
            lambda v: not _rolled_out(v) or v.text("positions._target_").endswith(".All"),
        ),
        Rule(
            "complete",
            "false with responses=rollouts: there are no alternatives to try",
            lambda v: not _rolled_out(v) or v.get("complete") is not True,
        ),
        Rule(
            "num_samples",
            "at least 1 with evidence=sampled",
            lambda v: v.text("evidence") != "sampled" or v.number("num_samples") >= 1,
        ),
        Rule(
            "positions.file",
            '"" with responses=solve or wrong: spans of a file are of the data\'s responses (responses=given)',
            lambda v: _given(v) or v.text("positions.file") == "",
        ),
        Rule(
            "positions._target_",
            "other positions than the most uncertain ones: this engine sees the most probable tokens only and knows no "
            "entropies; positions=spans or stride, or engine=shared_prefix, continuous or reference",
            lambda v: (
                not (
                    v.text("positions._target_").endswith(".TopEntropy")
                    and v.text("engine._target_").endswith((".Server", ".Vllm"))
                )
            ),
        ),
        *_ON_RAY,
        Rule(
            "num_shards",
            "1 with fleet=ray: its workers share the units among them (fleet.num_workers); shards are for commands that know "
            "nothing of each other, each with fleet=none",
            lambda v: v.text("fleet._target_") != RAY or v.number("num_shards") == 1,
        ),
        Rule(
            "shard",
            "from 0 to below num_shards (cft annotate -m num_shards=3 shard=0,1,2)",
            lambda v: v.number("shard") < v.number("num_shards"),
        ),
    ),
    "train": (
        _TIES_IN_FLOAT32,
        _DATA_IS_READ,
        _PART_OF_PARTS,
        *_OF_BENCHMARK,
        _PREFIX_WITHOUT_TAGS,
        Rule(
            "trainer.max_steps",
            "above 0 because trainer.max_epochs is -1: one of the two must end the training",
            lambda v: v.number("trainer.max_epochs") != -1 or v.number("trainer.max_steps", -1) > 0,
        ),
        Rule(
            "model.dtype",
            "float32 for training: weights in half precision round small steps to zero. For speed and memory set "
            "trainer.precision=bf16-mixed; a frozen base under adapters (model.lora) may be bfloat16",
            _trained_in_float32,
        ),
        Rule(
            "weighting.lowest",
            "at most weighting.highest: else no token is left",
            lambda v: v.number("weighting.lowest") <= v.number("weighting.highest"),
        ),
        # A coefficient may be any number from 0 on; as a weight or a share it is one of a whole.
        *(
            Rule(key, "a number from 0 to 1", lambda v, key=key: v.number(key) <= 1)
            for key in (
                *("loss.aggregation.weight.initial", "loss.aggregation.weight.final"),
                *("inputs.mix.initial", "inputs.mix.final"),
            )
        ),
        Rule(
            "optimizer.nesterov",
            "false, or optimizer.momentum above 0 and no dampening: it looks ahead along the momentum",
            lambda v: (
                v.get("optimizer.nesterov") is not True
                or (v.number("optimizer.momentum", 0) > 0 and v.number("optimizer.dampening", 0) == 0)
            ),
        ),
        temperature("evaluation."),
        Rule(
            "callbacks.best",
            "a callback that keeps the best epoch (callbacks=default or best_loss): its weights are what is exported",
            lambda v: v.get("callbacks.best", None) is not None,
        ),
        Rule(
            "callbacks.best.monitor",
            f"one of {', '.join(MONITORED)}",
            lambda v: v.text("callbacks.best.monitor") in MONITORED,
        ),
        monitor(
            ("val/accuracy",),
            "val/loss (callbacks=best_loss): no validation problem is solved with validation.problems=0",
            lambda v: v.number("validation.problems") > 0,
        ),
        monitor(
            tuple(metric for metric in MONITORED if metric.endswith(("_critical", "_other"))),
            "val/loss or val/accuracy: which tokens are critical is not known of rows that were not annotated",
            lambda v: v.text("data._target_") != GIVEN_ROWS,
        ),
        monitor(
            MONITORED[1:],
            "val/accuracy: no row is held out with data.validation_fraction=0",
            lambda v: (
                v.number("data.validation_fraction") > 0
                or bool(v.get("data.validation_path", "") or v.get("data.validation_split", ""))
            ),
        ),
        Rule("callbacks.best.mode", "max for an accuracy, min for a loss", _mode_suits_monitor),
    ),
    "rl": (
        _TIES_IN_FLOAT32,
        *_OF_BENCHMARK,
        Rule(
            "data._target_",
            "a source of problems, such as data=arithmetic or data=gsm8k: the model writes the responses itself",
            lambda v: v.text("data._target_").startswith("cft.data.sources."),
        ),
        Rule(
            "model.dtype",
            "float32: weights in half precision round small steps to zero; for speed and memory set precision=bf16-mixed",
            lambda v: v.text("model.dtype") == "float32",
        ),
        Rule(
            "model.lora",
            "null: cft rl trains all weights; for adapters train in TRL from the export",
            lambda v: v.get("model.lora", None) is None,
        ),
        Rule(
            "optimizer.groups",
            "none (optimizer/groups=none): cft rl trains all weights alike",
            lambda v: not v.get("optimizer.groups", None),
        ),
        Rule(
            "pass_rates.annotation",
            "rollouts of which these are the pass rates (cft annotate responses=rollouts), or pass_rates.min=0 and max=1",
            lambda v: (
                v.text("pass_rates.annotation") != ""
                or (v.number("pass_rates.min") == 0 and v.number("pass_rates.max") == 1)
            ),
        ),
        Rule(
            "micro_batch_size",
            "a divisor of rollout.problems_per_step * rollout.num_generations, the responses of a step",
            lambda v: (
                v.number("rollout.problems_per_step")
                * v.number("rollout.num_generations")
                % v.number("micro_batch_size")
                == 0
            ),
        ),
        Rule(
            "grpo.epsilon_high",
            "a limit of the ratio itself with grpo.loss_type=cispo, such as 5.0",
            lambda v: v.text("grpo.loss_type") != "cispo" or v.number("grpo.epsilon_high") >= 1,
        ),
        Rule(
            "grpo.importance_sampling_level",
            "sequence with grpo.loss_type=luspo, whose ratio is of the whole response",
            lambda v: v.text("grpo.loss_type") != "luspo" or v.text("grpo.importance_sampling_level") == "sequence",
        ),
        Rule(
            "positions.file",
            "empty: its spans are of responses that a file holds, and here the model writes new ones",
            lambda v: v.text("positions.file") == "",
        ),
        Rule(
            "save_every_n_steps",
            "a multiple of grpo.num_iterations: a checkpoint holds no responses, so that it must come before new ones",
            lambda v: v.number("save_every_n_steps") % v.number("grpo.num_iterations") == 0,
        ),
        temperature("evaluation."),
    ),
    "score": (
        *_ON_RAY,
        Rule(
            "data._target_",
            "none (the rows of annotation=...) or rows of one's own, data=rows data.path=...",
            lambda v: v.text("data._target_") in (GIVEN_ROWS, NO_ROWS),
        ),
    ),
    "export": (
        _DATA_IS_READ,
        _PART_OF_PARTS,
        Rule(
            "data._target_",
            "an annotation (data=annotated): labels are made of its evidence, and other rows hold their own",
            lambda v: v.text("data._target_") != GIVEN_ROWS,
        ),
    ),
    "evaluate": (_TIES_IN_FLOAT32, _RULE_IS_APPLIED, temperature(), *_OF_BENCHMARK, *_ON_RAY),
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
            "would rank all eligible tokens for itself and scale its fraction as if it were alone; select by a mask instead, "
            "such as mask=entropy"
        )
        broken.append((selecting[-1], text))
    return broken


def _selections(node: object, path: str) -> Iterator[str]:
    """Paths of the weightings in a tree that keep a fraction of each row (`cft.weightings.Weighting.selects`)."""
    if not isinstance(node, Mapping):
        return
    target = node.get("_target_")
    if isinstance(target, str) and any(strings(target, "selects") or ()):
        yield path
    for name, inner in node.items():
        yield from _selections(inner, f"{path}.{name}")
