"""The stages, one entry each: whatever must know of a stage reads it here.

A new stage is a function of its config, a dataclass of its keys (`cft/config/schema.py`), conf/<name>.yaml, and an
entry of STAGES.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from hydra.core.config_store import ConfigNode, ConfigStore

from cft.config import schema
from cft.config.rules import RULES, Rule
from cft.config.step_words import register_references


@dataclass(frozen=True, slots=True)
class Stage:
    """A command that runs from a config: `cft <name>`, of conf/<name>.yaml.

    Args:
        summary: What the command does, in the list of commands.
        schema: The keys it owns.
        run: module:function of (that config, `cft.runs.job.Job`), imported after the check.
        rules: What their values must satisfy beyond the types.
        arguments: module:function that rewrites the arguments before the check, "" where none does.
        errors: module:function of (resolved config), further errors of it, "" where there are none to find.
        step: Whether it can be a step of a pipeline.
        out: Keys whose values, one below the other, are the folder of what it makes; none where that is the job's own.
        grows: Keys of which a change extends what is there (cft/pipelines/runner.py).
        redo: Overrides that let it replace what it made before.
    """

    summary: str
    schema: type
    run: str
    rules: tuple[Rule, ...] = ()
    arguments: str = ""
    errors: str = ""
    step: bool = True
    out: tuple[str, ...] = ()
    grows: tuple[str, ...] = ()
    redo: tuple[str, ...] = ()


STAGES: dict[str, Stage] = {
    "annotate": Stage(
        "find the tokens of correct responses that decide the answer",
        schema.AnnotateConfig,
        "cft.stages.annotate:annotate",
        RULES["annotate"],
        out=("annotations_dir", "annotation"),
        grows=("limit", "num_alternatives", "short_circuit", "complete"),
    ),
    "train": Stage(
        "fine-tune on the tokens that a mask picks, and test the result",
        schema.TrainConfig,
        "cft.stages.train:train",
        RULES["train"],
        grows=("trainer.max_epochs", "trainer.max_steps"),
    ),
    "evaluate": Stage(
        "accuracy, pass@k, diversity and entropy of a model or a checkpoint",
        schema.EvaluateConfig,
        "cft.stages.evaluate:evaluate",
        RULES["evaluate"],
        arguments="cft.benchmarks.sweep:in_one_run",
    ),
    "rl": Stage(
        "reinforcement learning from a checkpoint: the verifier's verdicts as rewards (TRL's GRPOTrainer)",
        schema.RlConfig,
        "cft.stages.rl:rl",
        RULES["rl"],
    ),
    "score": Stage(
        "what a frozen model says of each token of an annotation, stored for methods that ask for it",
        schema.ScoreConfig,
        "cft.stages.score:score",
        RULES["score"],
        redo=("replace=true",),
    ),
    "export": Stage(
        "an annotation under a mask as a data set for TRL, Axolotl, LLaMA-Factory, ms-swift, Tinker, DPO or verl",
        schema.RowsExportConfig,
        "cft.stages.export:export",
        RULES["export"],
        out=("out",),
    ),
    "push": Stage(
        "an annotation, an export, a model or its adapters to the Hugging Face hub",
        schema.PushConfig,
        "cft.stages.push:push",
    ),
    "agreement": Stage(
        "how far two annotations of the same problems agree, such as those of two engines; shown in the card of the first",
        schema.AgreementConfig,
        "cft.stages.agreement:agreement",
    ),
    "pipeline": Stage(
        "several stages with one command: named steps, checked together, skipped where they are done",
        schema.PipelineConfig,
        "cft.stages.pipeline:pipeline",
        arguments="cft.config.step_words:of_pipeline",
        errors="cft.pipelines.check:pipeline_errors",
        step=False,
    ),
    "compare": Stage(
        "from problems to a table for a paper: annotate, search a rate for each arm, train, test, report",
        schema.CompareConfig,
        "cft.stages.compare:compare",
        arguments="cft.config.step_words:of_compare",
        errors="cft.pipelines.check:compare_errors",
        step=False,
    ),
}


def register_schemas(*, strict: bool = True) -> bool:
    """Put <stage>_schema, the first entry of each stage's defaults list, into Hydra's ConfigStore. Returns whether those
    before were strict.

    Strict schemas make Hydra stop at the first unknown key or wrong type; the config check composes with loose ones so
    that it can report every error instead.
    """
    repo = ConfigStore.instance().repo
    before = all(bool(repo[f"{name}_schema.yaml"].node) for name in STAGES if f"{name}_schema.yaml" in repo)
    repo.update(_schema_nodes(strict))
    return before


@cache
def _schema_nodes(strict: bool) -> dict[str, ConfigNode]:
    """What the ConfigStore holds of each stage, by its key there. Hydra composes with copies."""
    store = ConfigStore.instance()
    for name, stage in STAGES.items():
        store.store(name=f"{name}_schema", node=schema.without_literals(stage.schema) if strict else {})
    return {file: store.repo[file] for name in STAGES if (file := f"{name}_schema.yaml")}


register_schemas()
register_references()
