"""results.json files like those of cft train and cft evaluate, and their comparison."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from cft.evaluation.intervals import bootstrap_interval
from cft.report.arms import Comparison
from cft.report.compare import compare
from cft.report.read import collect
from cft.report.tables import cells

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\x07\u202e{{ 7*7 }}"
TARGETS = {"all": "cft.masks.All", "critical": "cft.masks.Critical"}


def write_run(root: Path, name: str, arm: dict[str, Any], *, seed: int, correct: list[int], **more: Any) -> Path:
    """Write a results.json like `cft train`; `budget` and `data` are the same for all trained arms unless given."""
    folder = root / name
    folder.mkdir(parents=True)
    ids = more.pop("ids", [f"p{i}" for i in range(len(correct))])
    results: dict[str, Any] = {
        "schema": 1,
        "stage": "train",
        "run": name,
        "arm": arm,
        "seed": seed,
        "benchmark": "arithmetic",
        "split": "test",
        "problems": len(correct),
        "metrics": {
            "eval/accuracy": bootstrap_interval(correct).as_dict(),
            "eval/entropy": {"value": 0.1 * (seed + 1), "low": 0.0, "high": 1.0},
            "eval/distinct_2": {"value": None, "low": None, "high": None},
        },
        "per_problem": {"id": ids, "correct": correct},
        "eligible_fraction": 0.25,
        "train_seconds": 3.0,
        "best_epoch": 1,
        "base": None,
    }
    if "mask" in arm:
        results["budget"] = {"epochs": 2, "steps": 10, "rows_per_step": 16}
        results["data"] = {"fingerprint": "f", "rows_sha256": "r"}
    (folder / "results.json").write_text(json.dumps(results | more), encoding="utf-8")
    return folder


def arm(mask: str, weighting: str = "uniform", **more: Any) -> dict[str, Any]:
    method = {"mask": mask, "weighting": weighting, "loss": "nll", "reference": "none", "groups": "none"}
    return {"model": "tiny", **method, "loss.normalizer": "critical", **more}


def draws(seed: int, share: float, size: int = 40) -> list[int]:
    return (np.random.default_rng(seed).random(size) < share).astype(int).tolist()


def compared(root: Path) -> Comparison:
    """The comparison of all runs in a folder, on one benchmark."""
    (found,) = compare(collect([root]))
    return found


def grid(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """(titles, rows) of the comparison's table."""
    table = cells(comparison)
    return [*table], table.to_numpy().tolist()


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))
