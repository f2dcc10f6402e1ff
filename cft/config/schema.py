"""The keys that the entry points own, with their types: closed sets, one dataclass each.

A `Node` is an open place that a config group fills: `_target_` and that constructor's parameters, which are its schema.
Stages get instances of these classes (`cft/config/typed.py`), never the tree.
Values live in conf/*.yaml; here a key without one is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING as UNSET
from dataclasses import Field, dataclass, field, fields, is_dataclass, make_dataclass
from functools import cache
from types import NoneType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING
from pydantic import Field as Limits

from cft.config.part import Part
from cft.ranges import AboveZero, AtLeastOne, AtLeastZero, Count, CountOrAll, Fraction, Name, Seed
from cft.types import ThinkingTags

Split = Literal["train", "validation", "test"]
Node = Part  # one object
Nodes = dict[str, Part]  # objects by name; none at all is allowed
AnswerTokens = Annotated[int, Limits(ge=2, description="an integer of at least 2: one token of answer and the end")]
Alternatives = Annotated[int, Limits(ge=1, le=1000)]
Generations = Annotated[int, Limits(ge=2, description="an integer of at least 2: a group to compare")]
Samples = Annotated[int, Limits(ge=0, le=10_000)]  # the store counts them in 16 bits
FolderName = Annotated[
    str,
    Limits(
        pattern=r"^\s*[^./\\\x00\s][^/\\\x00]*$",
        description="a plain folder name, made under annotations_dir (the place itself is annotations_dir)",
    ),
]
Device = Annotated[
    str, Limits(pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$", description="auto, cpu, cuda, or one of several as cuda:1")
]
Nucleus = Annotated[float, Limits(gt=0, le=1, description="a number above 0 and at most 1 (1 = all tokens)")]


@dataclass
class ThinkingConfig:
    open: str = MISSING
    close: str = MISSING

    @property
    def tags(self) -> ThinkingTags:
        return ThinkingTags(self.open, self.close)


@dataclass
class VerifyConfig:
    workers: AtLeastOne = MISSING
    timeout_s: AboveZero = MISSING
    thinking: ThinkingConfig = field(default_factory=ThinkingConfig)
    strip: list[str] = field(default_factory=list)


@dataclass
class ScheduleConfig:
    shape: Literal["cosine", "linear", "constant"] = MISSING
    warmup_fraction: Fraction = MISSING


@dataclass
class ProbeConfig:
    critical_alternatives: AtLeastOne = MISSING
    every_n_steps: Count = MISSING


@dataclass
class ValidationConfig:
    problems: Count = MISSING


@dataclass
class EvaluationConfig:
    problems: Count = MISSING
    base: bool = MISSING
    num_samples: Count = MISSING
    temperature: float = MISSING
    top_p: Nucleus = MISSING
    seed: Seed = MISSING
    max_new_tokens: AtLeastOne = MISSING
    max_not_run: Fraction = MISSING


@dataclass
class InterruptionConfig:
    max_hours: AtLeastZero = MISSING


@dataclass
class ComputeConfig:
    layout: Literal["padded", "packed"] = MISSING
    kernels: Literal["auto", "torch", "compiled"] = MISSING


@dataclass
class RouterConfig:
    aux_coef: AtLeastZero | None = MISSING


@dataclass
class ExportConfig:
    dtype: Literal["float32", "bfloat16"] = MISSING


@dataclass
class FilesConfig:
    dir: str = MISSING


GROUPS = "groups"  # in the node of an optimizer, beside its constructor's parameters: ParameterGroupConfig by name


@dataclass
class ParameterGroupConfig:
    """match: a regular expression over parameters' names, null for what no other group matches."""

    match: str | None = MISSING
    lr_multiplier: AtLeastZero = 1.0
    weight_decay: AtLeastZero | None = None


@dataclass
class AnnotateConfig:
    model: Node = MISSING
    data: Node = MISSING
    prompt: Node = MISSING
    engine: Node = MISSING
    verifier: Node = MISSING
    positions: Node = MISSING
    fleet: Node = MISSING
    logger: Nodes = field(default_factory=dict)
    seed: Seed = MISSING
    annotation: FolderName = MISSING
    annotations_dir: Name = MISSING
    split: Split = MISSING
    limit: CountOrAll = MISSING
    max_new_tokens: AnswerTokens = MISSING
    num_alternatives: Alternatives = MISSING
    short_circuit: bool = MISSING
    complete: bool = MISSING
    responses: Literal["solve", "given", "wrong", "given_wrong", "rollouts"] = MISSING
    evidence: Literal["greedy", "sampled"] = MISSING
    num_samples: Samples = MISSING
    temperature: AboveZero = MISSING
    top_p: Nucleus = MISSING
    unit_size: AtLeastOne = MISSING
    num_shards: AtLeastOne = MISSING
    shard: Count = MISSING
    replay_fraction: Fraction = MISSING
    device: Device = MISSING
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    allow_targets: list[str] = field(default_factory=list)


@dataclass
class TrainConfig:
    model: Node = MISSING
    data: Node = MISSING
    benchmark: Node = MISSING
    prompt: Node = MISSING
    mask: Node = MISSING
    weighting: Node = MISSING
    loss: Node = MISSING
    reference: Node = MISSING
    groups: Node = MISSING
    inputs: Node = MISSING
    optimizer: Node = MISSING
    engine: Node = MISSING
    verifier: Node = MISSING
    trainer: Node = MISSING
    logger: Nodes = field(default_factory=dict)
    callbacks: Nodes = field(default_factory=dict)
    seed: Seed = MISSING
    annotations_dir: Name = MISSING
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    interruption: InterruptionConfig = field(default_factory=InterruptionConfig)
    resume: str = MISSING
    allow_targets: list[str] = field(default_factory=list)


@dataclass
class EvaluateConfig:
    model: Node = MISSING
    benchmark: Node = MISSING
    prompt: Node = MISSING
    engine: Node = MISSING
    decoding: Node = MISSING
    verifier: Node = MISSING
    fleet: Node = MISSING
    logger: Nodes = field(default_factory=dict)
    seed: Seed = MISSING
    checkpoint: str = MISSING
    data: FilesConfig = field(default_factory=FilesConfig)
    split: Split = MISSING
    limit: CountOrAll = MISSING
    num_samples: Count = MISSING
    temperature: float = MISSING
    top_p: Nucleus = MISSING
    max_new_tokens: AtLeastOne = MISSING
    max_not_run: Fraction = MISSING
    device: Device = MISSING
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    allow_targets: list[str] = field(default_factory=list)


@dataclass
class RolloutConfig:
    problems_per_step: AtLeastOne = MISSING
    num_generations: Generations = MISSING
    max_new_tokens: AnswerTokens = MISSING
    temperature: AboveZero = MISSING
    top_p: Nucleus = MISSING


@dataclass
class GrpoConfig:
    loss_type: Literal["dapo", "grpo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"] = MISSING
    beta: AtLeastZero = MISSING
    epsilon: AtLeastZero = MISSING
    epsilon_high: AtLeastZero | None = MISSING
    num_iterations: AtLeastOne = MISSING
    scale_rewards: Literal["group", "batch", "none"] = MISSING
    importance_sampling_level: Literal["token", "sequence"] = MISSING
    top_entropy_quantile: Fraction = MISSING
    mask_truncated_completions: bool = MISSING
    token_mask: Literal["none", "critical"] = MISSING


@dataclass
class CriticalTokensConfig:
    responses: CountOrAll = MISSING
    every_n_steps: AtLeastOne = MISSING
    num_alternatives: AtLeastOne = MISSING
    wrong: Literal["all", "none"] = MISSING


@dataclass
class RewardConfig:
    length_penalty: Fraction = MISSING
    levels: Nodes = field(default_factory=dict)


@dataclass
class PassRatesConfig:
    annotation: str = MISSING
    min: Fraction = MISSING
    max: Fraction = MISSING


@dataclass
class RlConfig:
    model: Node = MISSING
    data: Node = MISSING
    benchmark: Node = MISSING
    prompt: Node = MISSING
    optimizer: Node = MISSING
    engine: Node = MISSING
    positions: Node = MISSING
    verifier: Node = MISSING
    logger: Nodes = field(default_factory=dict)
    seed: Seed = MISSING
    checkpoint: str = MISSING
    annotations_dir: Name = MISSING
    pass_rates: PassRatesConfig = field(default_factory=PassRatesConfig)
    limit: CountOrAll = MISSING
    steps: AtLeastOne = MISSING
    micro_batch_size: AtLeastOne = MISSING
    max_grad_norm: AtLeastZero = MISSING
    precision: Literal["32-true", "bf16-mixed"] = MISSING
    device: Literal["auto", "cpu", "cuda"] = MISSING
    save_every_n_steps: AtLeastOne = MISSING
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    critical: CriticalTokensConfig = field(default_factory=CriticalTokensConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    interruption: InterruptionConfig = field(default_factory=InterruptionConfig)
    resume: str = MISSING
    allow_targets: list[str] = field(default_factory=list)


@dataclass
class ScoreConfig:
    model: Node = MISSING
    data: Node = MISSING
    prompt: Node = MISSING
    score: Node = MISSING
    fleet: Node = MISSING
    seed: Seed = MISSING
    annotation: Name = MISSING
    annotations_dir: Name = MISSING
    name: Name = MISSING
    checkpoint: str = MISSING
    batch_size: AtLeastOne = MISSING
    replace: bool = MISSING
    device: Device = MISSING
    allow_targets: list[str] = field(default_factory=list)


@dataclass
class RowsExportConfig:
    data: Node = MISSING
    benchmark: Node = MISSING
    mask: Node = MISSING
    format: Node = MISSING
    annotation: Name = MISSING
    annotations_dir: Name = MISSING
    out: Name = MISSING
    seed: Seed = MISSING
    allow_targets: list[str] = field(default_factory=list)


@dataclass
class PushConfig:
    path: Name = MISSING
    repo_id: Name = MISSING
    part: Literal["auto", "model", "adapter"] = MISSING
    private: bool = MISSING
    revision: Name = MISSING
    message: str = MISSING
    annotations_dir: Name = MISSING
    seed: Seed = MISSING
    allow_targets: list[str] = field(default_factory=list)


@dataclass
class AgreementConfig:
    annotation: Name = MISSING
    other: Name = MISSING
    annotations_dir: Name = MISSING
    seed: Seed = MISSING
    allow_targets: list[str] = field(default_factory=list)


@dataclass
class PipelineConfig:
    steps: dict[str, Any] = field(default_factory=dict)  # overrides of stages, which their own schemas check
    sequence: dict[str, Any] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)
    isolated: bool = MISSING
    allow_targets: list[str] = field(default_factory=list)


@dataclass
class CompareConfig:
    arms: list[str] = field(default_factory=list)
    annotation: str = MISSING
    methods: dict[str, Any] = field(default_factory=dict)
    seeds: AtLeastOne = MISSING
    rates: list[float] = field(default_factory=list)
    search_seeds: AtLeastOne = MISSING
    validation_problems: AtLeastOne = MISSING
    test_problems: AtLeastOne = MISSING
    keep: Literal["results", "exports", "all"] = MISSING
    probe_problems: AtLeastOne = MISSING
    estimate_only: bool = MISSING
    steps: dict[str, Any] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)
    isolated: bool = MISSING
    allow_targets: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a schema. hint: its type, with its range; record: the nested dataclass of a closed set; node: an open
    place; many: nodes by name."""

    name: str
    hint: Any
    required: bool
    record: type | None
    node: bool
    many: bool


@cache
def keys_of(schema: type) -> Mapping[str, Key]:
    hints, whole = get_type_hints(schema), get_type_hints(schema, include_extras=True)
    return {
        f.name: Key(
            name=f.name,
            hint=whole[f.name],
            required=f.default == MISSING,
            record=hints[f.name] if is_dataclass(hints[f.name]) else None,
            node=hints[f.name] in (Node, Nodes),
            many=hints[f.name] == Nodes,
        )
        for f in fields(schema)
    }


@cache
def without_literals(schema: type) -> type:
    """The same dataclass for OmegaConf, which knows no Literal: their choices are the config check's business."""
    hints = get_type_hints(schema)
    return make_dataclass(
        schema.__name__, [(f.name, _plain(hints[f.name]), _default(f, hints)) for f in fields(schema)]
    )


def _plain(hint: Any) -> Any:
    if hint in (Node, Nodes):
        return Any
    if is_dataclass(hint):
        return without_literals(hint)
    choices = get_args(hint) if get_origin(hint) in (Literal, Union) else ()
    if not choices:
        return hint
    plain = _plain(next(c if get_origin(hint) is Union else type(c) for c in choices))
    return plain | None if NoneType in choices else plain


def _default(original: Field[Any], hints: dict[str, Any]) -> Any:
    if is_dataclass(hints[original.name]):
        return field(default_factory=without_literals(hints[original.name]))
    if original.default_factory is not UNSET:
        return field(default_factory=original.default_factory)
    return field(default=original.default)
