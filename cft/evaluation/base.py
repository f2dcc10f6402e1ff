"""Greedy accuracy of the model before training, to report beside the trained one.

It is measured once on the same problems under the same settings and cached under CFT_CACHE (default ~/.cache/cft), by the hash
of everything that determines it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cft import __version__
from cft.evaluation.evaluation import SampleRequest, Solver, summarize, verdict_counts
from cft.files import sha256_json, write_json
from cft.types import Problem


def base_accuracy(
    make_solver: Callable[[], Solver],
    problems: Sequence[Problem],
    *,
    max_new_tokens: int,
    decided_by: Mapping[str, Any],
) -> dict[str, Any]:
    """{"metrics", "per_problem", "verdicts"} as in results.json, of the greedy responses.

    decided_by: everything that determines them besides problems and max_new_tokens: weights, prompt, tokenizer, verifier. JSON.
    """
    questions = [[problem.id, problem.question, problem.answer] for problem in problems]
    key = sha256_json([dict(decided_by), questions, max_new_tokens, __version__])
    path = cache_folder() / "base" / f"{key[:32]}.json"
    try:
        known = json.loads(path.read_bytes())
        if known["key"] == key:
            return known["base"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # missing or damaged: measured again
    samples = make_solver().solve(problems, request=SampleRequest(0, 0.0, 1.0, 0, max_new_tokens), title="Base model")
    intervals, per_problem = summarize(samples, seed=0)
    base = {
        "metrics": {name: interval.as_dict() for name, interval in intervals.items() if math.isfinite(interval.value)},
        "per_problem": per_problem,
        "verdicts": verdict_counts(samples),
    }
    write_json(path, {"key": key, "base": base})
    return base


def cache_folder() -> Path:
    return Path(os.environ.get("CFT_CACHE", "") or Path.home() / ".cache" / "cft").expanduser()
