"""Continual training: data sets one after the other, each from the model that the one before it left, each step tested on all.

    sequence: {addition: {+data.operations: ["+"]}, multiplication: {+data.operations: ["*"]}}
    steps: {annotate: ..., train: ..., first: ..., evaluate: ...}       templates, overrides of these stages

annotate-A               rows of each data set, by the model that everything starts from
base-on-A                that model on each test set
train-A, then A-on-B     for each data set in turn: a training from the export before it, and its accuracy on every test set
report                   the matrix of accuracies, mean accuracy, forgetting and backward transfer (`cft/report/continual.py`)

`sequence` says of each data set what `data=...` would say of a pipeline: problems to annotate and the benchmark of its training
and test. `first` are further overrides of the first training, which starts from no trained model.
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
    """sets: overrides by data set, in the order of training. templates: overrides of steps by kind."""

    sets: Mapping[str, Mapping[str, Any]]
    templates: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> Continual | None:
        """tree: the config of cft pipeline. None where it has no sequence."""
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
                    f"sequence.{name}", f"expected what data=... would say, such as {{data: gsm8k}}, found {node!r}"
                )
            elif not name.replace("-", "_").isidentifier() or "-on-" in name:
                yield ErrorDetail(f"sequence.{name}", "expected a name of letters, digits and _")
        if len(self.sets) < 2:
            yield ErrorDetail("sequence", "expected at least two data sets, of which the first may be forgotten")

    def add_to(self, planner: Planner) -> None:
        """The steps in their order. All are composed; a check takes as long, so that none is made of a step like another."""
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
            node["evaluation.problems"] = 0  # tested by steps of their own
            planner.add(f"train-{name}", node, more=self._data(name), check=not like_another)
            for other in self.sets:
                tested = {**self._node("evaluate"), "checkpoint": f"<step:train-{name}.dir>"}
                planner.add(cell(name, other), tested, more=self._data(other), check=False)  # as base-on-... was
            before = name
        planner.add(REPORT, {"stage": REPORT, **self._template(REPORT)})

    def write(self, folder: Path) -> None:
        """Which step is which cell of the matrix, as the report reads it."""
        names = list(self.sets)
        rows = [[f"base-on-{other}" for other in names], *([cell(name, other) for other in names] for name in names)]
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SEQUENCE, {"data": names, "tests": rows})

    def _data(self, name: str, *, called: bool = False) -> list[Entry]:
        """As of a shared override. called: the annotation is named after the data set."""
        own = [Entry("", "annotation", name)] if called else []
        return [*own, *entries_of(self.sets[name])]

    def _node(self, stage: str) -> dict[str, Any]:
        return {"stage": stage, **self._template(stage)}

    def _template(self, name: str) -> dict[str, Any]:
        """With keys as they are in yaml, whatever was typed."""
        return {f"{entry.sign}{entry.key}": entry.value for entry in entries_of(self.templates.get(name) or {})}


def cell(trained: str, tested: str) -> str:
    return f"{trained}-on-{tested}"
