"""Checks the steps of a pipeline before anything is started, like the command line of a stage.

The keys of a single step are composed and checked in `plan.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cft.config.check import ErrorDetail, Unknown
from cft.pipelines.comparison import comparison_errors
from cft.pipelines.plan import Planner, Settings, Step
from cft.pipelines.reporting import REPORT
from cft.pipelines.sequence import Continual

_UNUSED_FOLDER = Path("outputs/pipeline/check")  # nothing is written while a configuration is checked


def pipeline_errors(tree: Mapping[str, Any]) -> list[ErrorDetail]:
    """Errors of all steps, each with the step's name. tree: the resolved config of cft pipeline."""
    _, errors = planned(_known(tree), Settings(folder=_UNUSED_FOLDER, allowed=tuple(tree["allow_targets"])))
    return errors


def compare_errors(tree: Mapping[str, Any]) -> list[ErrorDetail]:
    """Errors in the arms, learning rates and steps of cft compare."""
    known = _known(tree)
    return comparison_errors(known, Settings(folder=_UNUSED_FOLDER, allowed=tuple(tree["allow_targets"])))


def planned(tree: Mapping[str, Any], settings: Settings) -> tuple[list[Step], list[ErrorDetail]]:
    """(the steps, ending with a report; the errors of all steps)."""
    planner = Planner(settings, tree.get("shared") or {})
    if (continual := Continual.of(tree)) is not None:
        if errors := list(continual.errors()):
            return [], errors
        continual.add_to(planner)
        return planner.steps, [*planner.errors, *planner.unused()]
    nodes = {str(name): node for name, node in (tree.get("steps") or {}).items()}
    if not nodes:
        return [], [
            ErrorDetail(
                "steps",
                "no steps are given; choose a pipeline with pipeline=..., or add a step: +steps.train.stage=train",
            )
        ]
    for name, node in nodes.items():
        planner.add(name, node)
    if not any(step.stage == REPORT for step in planner.steps):
        planner.add(REPORT, {})
    return planner.steps, [*planner.errors, *planner.unused()]


def _known(value: Any) -> Any:
    """The value without entries that are known only in a job."""
    if isinstance(value, Mapping):
        return {name: _known(inner) for name, inner in value.items() if not isinstance(inner, Unknown)}
    return [_known(inner) for inner in value if not isinstance(inner, Unknown)] if isinstance(value, list) else value
