"""Continual training: trains on data sets in sequence, each starting from the previous model, and tests each model on all.

    sequence: {addition: {+data.operations: ["+"]}, multiplication: {+data.operations: ["*"]}}
    steps: {annotate: ..., train: ..., first: ..., evaluate: ...}       templates, overrides of these stages

annotate-A               rows of each data set, annotated with the initial model
base-on-A                tests of the initial model on each test set
train-A, then A-on-B     for each data set: training from the previous export, and tests on every test set
report                   the matrix of accuracies, mean accuracy, forgetting and backward transfer (`cft/report/continual.py`)

`sequence` gives for each data set the overrides that `data=...` has in a pipeline: problems to annotate, and the benchmark of
training and test. `first` are additional overrides of the first training run, which starts from the initial model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cft.config.check import ErrorDetail, suggestion
from cft.files import write_json
from cft.pipelines.entries import Entry, entries_of
from cft.pipelines.plan import Planner
from cft.pipelines.reporting import REPORT
from cft.runs.run import SEQUENCE

TEMPLATES = ("annotate", "train", "first", "evaluate", REPORT)


@dataclass(frozen=True, slots=True)
class Continual:
    """A sequence of data sets.

    Args:
        sets: overrides by data set, in the order of training.
        templates: overrides of steps by kind.
    """

    sets: Mapping[str, Mapping[str, Any]]
    templates: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> Continual | None:
        """The sequence in a config of cft pipeline, None if it has none."""
        sets = {str(name): node or {} for name, node in (tree.get("sequence") or {}).items()}
        return cls(sets, {str(name): node or {} for name, node in (tree.get("steps") or {}).items()}) if sets else None

    def errors(self) -> Iterator[ErrorDetail]:
        for name in self.templates:
            if name not in TEMPLATES:
                near = suggestion(name, TEMPLATES) or f", they are {', '.join(TEMPLATES)}"
                yield ErrorDetail(f"steps.{name}", f"no such step of a sequence of data sets{near}")
        for name, node in self.sets.items():
            if not isinstance(node, Mapping):
                yield ErrorDetail(
                    f"sequence.{name}", f"expected overrides of data, such as {{data: gsm8k}}, found {node!r}"
                )
            elif not name.replace("-", "_").isidentifier() or "-on-" in name:
                yield ErrorDetail(f"sequence.{name}", "expected a name of letters, digits and _")
        if len(self.sets) < 2:
            yield ErrorDetail("sequence", "expected at least two data sets, so that forgetting can be measured")

    def add_to(self, planner: Planner) -> None:
        """Add all steps in order. Steps similar to an earlier one are not checked again, since a check is slow."""
        for name in self.sets:
            planner.add(f"annotate-{name}", self._node("annotate"), more=self._data(name, called=True))
        for name in self.sets:
            planner.add(f"base-on-{name}", self._node("evaluate"), more=self._data(name))
        before = ""
        for name in self.sets:
            node: dict[str, Any] = {"stage": "train", "data.annotation": f"<step:annotate-{name}.config.annotation>"}
            if before:
                start = {"model": "hub", "model.name": before, "model.path": f"<step:train-{before}.dir>/export"}
                node |= start
            node |= self._template("train") | ({} if before else self._template("first"))
            like_another = len(self.sets) > 2 and name == list(self.sets)[-1]
            node["evaluation.problems"] = 0  # tested by separate steps
            planner.add(f"train-{name}", node, more=self._data(name), check=not like_another)
            for other in self.sets:
                tested = {**self._node("evaluate"), "checkpoint": f"<step:train-{name}.dir>"}
                planner.add(cell(name, other), tested, more=self._data(other), check=False)  # similar to base-on-...
            before = name
        planner.add(REPORT, {"stage": REPORT, **self._template(REPORT)})

    def write(self, folder: Path) -> None:
        """Write the step of each cell of the accuracy matrix, for the report."""
        names = list(self.sets)
        rows = [[f"base-on-{other}" for other in names], *([cell(name, other) for other in names] for name in names)]
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SEQUENCE, {"data": names, "tests": rows})

    def _data(self, name: str, *, called: bool = False) -> list[Entry]:
        """Overrides of a data set. called: whether to name the annotation after the data set."""
        own = [Entry("", "annotation", name)] if called else []
        return [*own, *entries_of(self.sets[name])]

    def _node(self, stage: str) -> dict[str, Any]:
        return {"stage": stage, **self._template(stage)}

    def _template(self, name: str) -> dict[str, Any]:
        """The template's overrides with their keys as in yaml."""
        return {f"{entry.sign}{entry.key}": entry.value for entry in entries_of(self.templates.get(name) or {})}


def cell(trained: str, tested: str) -> str:
    return f"{trained}-on-{tested}"
