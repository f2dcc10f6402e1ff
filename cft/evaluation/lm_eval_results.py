"""Results in the format of lm-evaluation-harness' results_<date>.json, for tools that read it.

Keys as there: results ("<metric>,none" and "<metric>_stderr,none" a task), groups, group_subtasks, configs, versions,
n-shot, higher_is_better, n-samples, config, task_hashes, and facts about the model. The numbers are this package's: greedy
accuracy is `exact_match`; the harness itself did not run, so `lm_eval_version` is null. A suite is a group, whose numbers
weight its tasks equally, with standard error sqrt(sum of squares) / number of tasks.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import hypot
from typing import Any

import numpy as np

from cft import __version__
from cft.evaluation.intervals import Interval

VERSION = 1  # of this package's reading of the benchmarks
FILTER = "none"
_NAMES = {"accuracy": "exact_match"}
_NEITHER = frozenset(("entropy",))  # neither higher nor lower is better
_LOWER_IS_BETTER = frozenset(
    ("cut_off_rate", "sampled_cut_off_rate", "undecided_rate", "sampled_undecided_rate", "response_tokens", "self_bleu")
)


@dataclass(frozen=True, slots=True)
class Measured:
    """Facts in the file besides the results by task.

    available: problems of each task before the limit. hashes: fingerprint of each task's problems.
    started, ended: seconds since 1970.
    """

    model: str
    dtype: str
    device: str
    chat_template: str
    system: str
    limit: int
    seed: int
    available: Mapping[str, int]
    hashes: Mapping[str, str]
    started: float
    ended: float


def lm_eval_results(
    results: Mapping[str, Mapping[str, Any]], *, facts: Measured, group: str, averages: Mapping[str, Interval]
) -> dict[str, Any]:
    """results: by task, as in results.json. group: name of a suite with its macro averages, "" for a single task."""
    tasks = {task: _scores(task, entry) for task, entry in results.items()}
    aggregated: dict[str, Any] = {}
    if group:
        aggregated = {group: {"alias": group, **_group_scores(list(tasks.values()), averages)}}
    sanitized = re.sub(r"[\"<>:/|\\?*\[\]]+", "__", facts.model)
    return {
        "results": {**aggregated, **tasks},
        **({"groups": aggregated} if group else {}),
        "group_subtasks": {
            **({group: list(tasks)} if group else {}),
            **({} if group else {task: [] for task in tasks}),
        },
        "configs": {task: _config(task, entry) for task, entry in results.items()},
        "versions": dict.fromkeys((*aggregated, *tasks), VERSION),
        "n-shot": dict.fromkeys((*aggregated, *tasks), 0),
        "higher_is_better": {
            **{name: _higher_is_better(averages) for name in aggregated},
            **{task: _higher_is_better(entry["metrics"]) for task, entry in results.items()},
        },
        "n-samples": {
            task: {"original": facts.available[task], "effective": entry["problems"]} for task, entry in results.items()
        },
        "config": {
            "model": "hf",
            "model_args": f"pretrained={facts.model},dtype={facts.dtype}",
            "batch_size": "auto",
            "device": facts.device,
            "limit": float(facts.limit) if facts.limit >= 0 else None,
            "bootstrap_iters": 2000,
            "gen_kwargs": None,
            "random_seed": facts.seed,
        },
        "git_hash": None,
        "date": facts.started,
        "lm_eval_version": None,
        "cft_version": __version__,
        "task_hashes": dict(facts.hashes),
        "model_source": "hf",
        "model_name": facts.model,
        "model_name_sanitized": sanitized,
        "system_instruction": facts.system or None,
        "system_instruction_sha": _sha(facts.system),
        "fewshot_as_multiturn": False,
        "chat_template": facts.chat_template or None,
        "chat_template_sha": _sha(facts.chat_template),
        "start_time": facts.started,
        "end_time": facts.ended,
        "total_evaluation_time_seconds": str(facts.ended - facts.started),
    }


def _scores(task: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    scores: dict[str, Any] = {"alias": task}
    for metric, found in entry["metrics"].items():
        key = metric.removeprefix("eval/")
        column = entry["per_problem"].get("correct" if key == "accuracy" else key)
        scores[f"{_name(metric)},{FILTER}"] = found["value"]
        scores[f"{_name(metric)}_stderr,{FILTER}"] = _standard_error(column)
    return scores


def _group_scores(tasks: Sequence[Mapping[str, Any]], averages: Mapping[str, Interval]) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    for metric, average in averages.items():
        errors = [task[f"{_name(metric)}_stderr,{FILTER}"] for task in tasks]
        known = "N/A" not in errors
        scores[f"{_name(metric)},{FILTER}"] = average.value
        scores[f"{_name(metric)}_stderr,{FILTER}"] = hypot(*errors) / len(errors) if known else "N/A"
    return scores


def _higher_is_better(metrics: Iterable[str]) -> dict[str, bool | None]:
    keys = [metric.removeprefix("eval/") for metric in metrics]
    return {_name(key): None if key in _NEITHER else key not in _LOWER_IS_BETTER for key in keys}


def _config(task: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    request = entry["evaluation"]
    return {
        "task": task,
        "test_split": entry["split"],
        "output_type": "generate_until",
        "num_fewshot": 0,
        "repeats": 1,  # of the greedy response; those that were sampled are told of in metadata
        "generation_kwargs": {
            "until": [],
            "max_gen_toks": request["max_new_tokens"],
            "do_sample": False,
            "temperature": 0.0,
        },
        "metric_list": [{"metric": _name(m), "aggregation": "mean"} for m in entry["metrics"]],
        "metadata": {"version": VERSION, "verifier": request["verifier"], "sampling": _sampling(request)},
    }


def _sampling(request: Mapping[str, Any]) -> dict[str, Any]:
    return {key: request[key] for key in ("num_samples", "temperature", "top_p", "seed")}


def _name(metric: str) -> str:
    key = metric.removeprefix("eval/")
    return _NAMES.get(key, re.sub(r"_at_(\d+)$", r"@\1", key))


def _standard_error(column: Any) -> float | str:
    """Standard error of the mean over problems; "N/A", as in the harness, if unknown."""
    if not column or len(column) < 2:
        return "N/A"
    return float(np.std(column, ddof=1) / np.sqrt(len(column)))


def _sha(text: str) -> str | None:
    return hashlib.sha256(text.encode()).hexdigest() if text else None
