"""The cards of trained weights: of cft train, of its adapters, of cft rl (`cft/runs/cards.py`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from cft import __version__
from cft.runs.arm import METHOD, part_of
from cft.runs.cards import HUB_ID, PAPER, TAGS, card, code, commands, digests, table, write_card
from cft.runs.lineage import annotation_contents
from cft.runs.results import RESULTS, RunResults
from cft.runs.run import EXPORT


def write_model_card(folder: Path) -> Path:
    """Write README.md in the export of a finished run of cft train or cft rl."""
    told = rl_card if RunResults.read(folder / RESULTS).stage == "rl" else model_card
    return write_card(folder / EXPORT, told(folder))


def model_card(folder: Path, *, adapter: bool = False) -> str:
    """folder: of a finished run of cft train. adapter: for the adapters alone, which are loaded on top of the base model."""
    results = RunResults.read(folder / RESULTS)
    settings, data, arm = results.settings, results.data or {}, results.arm
    budget, chosen_by, best_epoch = results.budget or {}, results.best_validation or {}, results.best_epoch or 0
    base = settings["model.path"]
    kind = "annotation" if "annotation" in data else "rows"
    title = f"{arm['model']}, fine-tuned on {arm['mask']} tokens of {data[kind]}"
    metrics = {name: found for name, found in results.metrics.items() if found.get("value") is not None}
    published = HUB_ID.fullmatch(base) is not None and not Path(base).exists()
    header = ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        license="unknown",
        tags=TAGS,
        base_model=base if published else None,
        model_name=title if metrics else None,
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=results.benchmark,
                dataset_name=results.benchmark,
                dataset_split=results.split,
                metric_type=name.removeprefix("eval/"),
                metric_name=name.removeprefix("eval/"),
                metric_value=metric["value"],
            )
            for name, metric in metrics.items()
        ]
        or None,
    )
    method = {name: value for name, value in arm.items() if part_of(name) in METHOD and value not in (None, "none")}
    method = {**method, "loss.normalizer": settings["loss.normalizer"]}
    loss = ", ".join(f"{name} {value}" for name, value in method.items())
    facts = {
        "base model": f"`{base}` at `{settings['model.revision']}`",
        **_trained_on(data, results),
        "rows": f"{data['train_rows']:,} for training, {data['validation_rows']:,} for validation, SHA-256 "
        f"{data['rows_sha256']}",
        "loss on": f"{data['eligible_tokens']:,} of {data['response_tokens']:,} response tokens "
        f"({results.eligible_fraction:.1%}): {loss}",
        "training": f"epochs: {budget['epochs']}, steps: {budget['steps']} of "
        f"{budget['rows_per_step']} rows, learning rate: {settings['optimizer.lr']}, seed: {results.seed}",
        "these weights": f"epoch {best_epoch + 1}, chosen by {chosen_by['metric']}",
        "settings (identity)": results.identity,
    }
    told = f" Training began from the base model and saw only responses of the {kind} below."
    return card(header, _of_weights(results, title, facts, metrics, told=told, bound_by="data", adapter=adapter))


def _of_weights(
    results: RunResults,
    title: str,
    facts: Mapping[str, str],
    metrics: dict[str, dict[str, float]],
    *,
    bound_by: str,
    told: str = "",
    adapter: bool = False,
) -> list[str]:
    """The parts of a card of trained weights. bound_by: other licensed inputs. told: a sentence on the training."""
    return [
        f"# {title}",
        f"Made with Critical Token Fine-tuning ({PAPER}), cft {__version__}.{told}",
        "## Made from",
        table(("", ""), facts.items()),
        commands(results.lineage),
        "## Results",
        _numbers(results, metrics),
        "## Use",
        *_use(adapter=adapter),
        "## All settings",
        code("yaml", yaml.safe_dump(results.settings, sort_keys=True, allow_unicode=True).strip()),
        "## Limits",
        f"This is one run with one seed. The licenses of the base model and of the {bound_by} were not recorded here; both "
        "bind what may be done with these weights.",
    ]


def rl_card(folder: Path) -> str:
    """folder: of a finished run of cft rl."""
    results = RunResults.read(folder / RESULTS)
    settings, data, arm, budget = results.settings, results.data or {}, results.arm, results.budget or {}
    title = f"{arm['model']} after reinforcement learning on {data['problems']}"
    metrics = {name: found for name, found in results.metrics.items() if found.get("value") is not None}
    base = settings.get("model.path", "")
    header = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        license="unknown",
        tags=TAGS,
        base_model=base if HUB_ID.fullmatch(base) and not Path(base).exists() else None,
    )
    method = ", ".join(f"{name} {value}" for name, value in arm.items() if part_of(name) in METHOD and value != "none")
    facts = {
        "started from": f"{arm['model']}{f', fine-tuned: {method}' if method else ''}",
        "problems": f"{data['train_problems']:,} of {data['problems']}, SHA-256 {data['fingerprint']}",
        "reward": f"verdicts of `{data['verifier']}`; undecided ones left out; length penalty "
        f"{settings['reward.length_penalty']}{_levels(settings)}",
        "training": f"GRPOTrainer of TRL, loss {settings['grpo.loss_type']}, steps: {budget['steps']} of "
        f"{budget['rows_per_step']} responses, learning rate: {settings['optimizer.lr']}, seed: {results.seed}",
        "settings (identity)": results.identity,
    }
    return card(header, _of_weights(results, title, facts, metrics, bound_by="problems"))


def _levels(settings: Mapping[str, Any]) -> str:
    """What a user of the weights must write into the prompt."""
    names = sorted(key.split(".")[2] for key in settings if re.fullmatch(r"reward\.levels\.[^.]+\.prompt", key))
    level = "reward.levels.{}.{}".format
    said = [
        f"{name} {settings[level(name, 'penalty_scale')]} with {settings[level(name, 'prompt')]!r}" for name in names
    ]
    return f", times (by a sentence after the question) {', '.join(said)}" if said else ""


def _use(*, adapter: bool) -> list[str]:
    if adapter:
        lines = (
            'base = transformers.AutoModelForCausalLM.from_pretrained("<the base model>")',
            'peft.PeftModel.from_pretrained(base, "<this folder>")',
        )
        return [code("python", "\n".join(lines)), "These are the adapters; their base model is named above."]
    return [
        code("python", 'transformers.AutoModelForCausalLM.from_pretrained("<this folder>")'),
        code("bash", "cft evaluate checkpoint=<this folder>"),
    ]


def _trained_on(data: dict[str, Any], results: RunResults) -> dict[str, str]:
    """Origin of the rows: an annotation, or data=rows, which may have been exported from an annotation."""
    contents = annotation_contents(results.lineage)
    if "annotation" in data:
        return {"annotation": data["annotation"], **dict(digests(data["fingerprint"], contents, of="annotation's "))}
    origin = {"annotation's contents, SHA-256": contents} if contents else {}
    return {"rows of": data["rows"], "rows' file or data set, SHA-256": data["fingerprint"], **origin}


def _numbers(results: RunResults, metrics: dict[str, dict[str, float]]) -> str:
    if not metrics:
        return "The model was not tested after training."
    evaluation = results.evaluation
    lines = [
        (f"`{name.removeprefix('eval/')}`", f"{m['value']:.4f}", f"[{m['low']:.4f}, {m['high']:.4f}]")
        for name, m in metrics.items()
    ]
    settings = ", ".join(f"{key} {value}" for key, value in evaluation.items() if key != "verifier")
    return (
        f"{results.problems:,} problems of {results.benchmark}, split {results.split}; {settings}; verifier "
        f"`{evaluation['verifier']}`. Intervals are 95 % bootstrap intervals over problems, of this one run.\n\n"
        + table(("metric", "value", "interval"), lines)
    )
