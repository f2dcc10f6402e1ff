"""The steps of `cft compare`: a pipeline whose training runs are repeated for each arm, learning rate and seed.

annotate                 once, unless an annotation is given. If the data are rows, their responses are annotated, and only if
                         an arm needs evidence; otherwise all arms train on the rows directly
base                     tests the untrained model, once
search-ARM-lrRATE-seedN  a training run for each learning rate, measured on validation problems only
ARM-seedN                training with the best learning rate and new seeds, with tests
report                   the arms at their chosen learning rates; intervals over seeds and problems, Holm-corrected p-values
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cft.config.check import ErrorDetail, suggestion
from cft.config.needs import GIVEN_ROWS, lacking_evidence
from cft.pipelines.entries import entries_of, takes_problems
from cft.pipelines.plan import Planner, Settings, Step
from cft.pipelines.reporting import REPORT
from cft.shipped import CONF_DIR

SEARCH_SEED = 100  # first seed of the learning-rate search; tested seeds count from 0
RATE = "optimizer.lr"


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """The design of a comparison.

    Args:
        arms: Names of the arms.
        methods: Overrides of cft train by arm.
        rates: Learning rates to search.
        seeds: Number of tested seeds.
        search_seeds: Number of seeds per learning rate in the search.
        annotation: An existing annotation, or "".
        templates: Overrides of steps by kind.
        problems: Whether the data are problems; otherwise they are rows with responses.
        annotates: Whether an annotation is made first; otherwise all arms train on the existing annotation or rows.
    """

    arms: tuple[str, ...]
    methods: Mapping[str, Mapping[str, Any]]
    rates: tuple[float, ...]
    seeds: int
    search_seeds: int
    annotation: str
    templates: Mapping[str, Mapping[str, Any]]
    problems: bool
    annotates: bool

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> Design:
        """Read the design. tree: the config of cft compare."""
        shared = tree.get("shared") or {}
        problems = takes_problems(entries_of(shared))
        design = cls(
            arms=tuple(dict.fromkeys(map(str, tree["arms"]))),
            methods=tree.get("methods") or {},
            rates=tuple(sorted(map(float, tree["rates"]))),
            seeds=int(tree["seeds"]),
            search_seeds=int(tree["search_seeds"]),
            annotation=str(tree["annotation"]),
            templates={name: dict(node or {}) for name, node in (tree.get("steps") or {}).items()},
            problems=problems,
            annotates=problems and not tree["annotation"],
        )
        if problems or design.annotation or any(design.errors()):
            return design
        allowed = tuple(tree.get("allow_targets") or ())
        return replace(
            design, annotates=any(_reads_evidence(design, arm, shared, allowed=allowed) for arm in design.arms)
        )

    @property
    def trainings(self) -> int:
        return len(self.arms) * (len(self.rates) * self.search_seeds + self.seeds)

    def errors(self) -> Iterator[ErrorDetail]:
        known = ("annotate", "evaluate", "train", "search", REPORT)
        for name in self.templates:
            if name not in known:
                yield ErrorDetail(
                    f"steps.{name}", f"no such step{suggestion(name, known) or ', they are ' + ', '.join(known)}"
                )
            for key in ({RATE, "seed"} & set(self._template(name))) if name in ("train", "search") else ():
                text = f"is varied by the comparison; set it with {'rates' if key == RATE else 'seeds'}=..."
                yield ErrorDetail(f"steps.{name}.{key}", text)
        arms = [*self.methods, *sorted(path.stem for path in (CONF_DIR / "experiment").glob("*.yaml"))]
        for arm in self.arms:
            if arm not in arms:
                near = suggestion(arm, arms) or f"; they are {', '.join(dict.fromkeys(arms))}"
                yield ErrorDetail("arms", f"no such arm: {arm}{near}")
        for key, values in (("arms", self.arms), ("rates", self.rates)):
            if not values:
                yield ErrorDetail(key, "is empty; give at least one")
        if any(rate <= 0 for rate in self.rates):
            yield ErrorDetail(
                "rates", f"expected numbers above 0, found {', '.join(f'{rate:g}' for rate in self.rates)}"
            )

    # ---- steps

    def fixed(self) -> dict[str, dict[str, Any]]:
        """Nodes of the annotation and of the test of the untrained model."""
        nodes: dict[str, dict[str, Any]] = {}
        if self.annotates:
            given = {} if self.problems else {"responses": "given"}
            nodes["annotate"] = {"stage": "annotate", **given, **self._template("annotate")}
        nodes["base"] = {"stage": "evaluate", **self._template("evaluate")}
        return nodes

    def before(self, planner: Planner) -> list[Step]:
        return _added(planner, self.fixed())

    def searches(self, planner: Planner) -> dict[str, list[Step]]:
        """Steps of the learning-rate search by arm. A training run that diverges does not stop the pipeline."""
        found = {}
        for arm in self.arms:
            nodes = {
                f"search-{arm}-lr{rate:g}-seed{seed}".replace(".", "_"): self.training(
                    arm, rate=rate, seed=seed, more={**self._template("search"), "evaluation.problems": 0}
                )
                for rate in self.rates
                for seed in range(SEARCH_SEED, SEARCH_SEED + self.search_seeds)
            }
            found[arm] = _added(planner, nodes, may_fail=True)
        return found

    def finals(self, planner: Planner, rates: Mapping[str, float]) -> list[Step]:
        nodes = {
            name: self.training(arm, rate=rates[arm], seed=seed) for name, (arm, seed) in self.final_names().items()
        }
        return _added(planner, nodes)

    def final_names(self) -> dict[str, tuple[str, int]]:
        """Step name -> (arm, seed)."""
        return {f"{arm}-seed{seed}": (arm, seed) for arm in self.arms for seed in range(self.seeds)}

    def report(self, planner: Planner) -> list[Step]:
        return _added(planner, {REPORT: {"stage": REPORT, "choose": RATE, **self._template(REPORT)}})

    def training(self, arm: str, *, rate: float, seed: int, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The node of a training step: the method, then the settings that all arms share."""
        rows = {"data.annotation": self.annotation} if self.annotation else {}
        if self.annotates:
            rows = {"data.annotation": "<step:annotate.config.annotation>"}
        method = {entry.key: entry.value for entry in entries_of(self.methods.get(arm) or {"experiment": arm})}
        return {"stage": "train", **rows, **method, **self._template("train"), **(more or {}), RATE: rate, "seed": seed}

    def _template(self, name: str) -> dict[str, Any]:
        """The template's overrides with their keys as in yaml."""
        return {f"{entry.sign}{entry.key}": entry.value for entry in entries_of(self.templates.get(name) or {})}


def comparison_errors(tree: Mapping[str, Any], settings: Settings) -> list[ErrorDetail]:
    """Errors in the design, and in one step of each kind and arm."""
    design = Design.of(tree)
    errors = list(design.errors())
    if errors:
        return errors
    planner = Planner(settings, tree.get("shared") or {})
    for name, node in design.fixed().items():
        planner.add(name, node)
    for arm in design.arms:
        planner.add(arm, design.training(arm, rate=design.rates[0], seed=0))
    design.report(planner)
    return [*planner.errors, *planner.unused()]


def chosen_rate(steps: Sequence[Step]) -> float:
    """An arm's best learning rate by its mean score on validation problems; test problems are not used.

    Raises:
        ReportError: no learning rate has a score.
    """
    from cft.report.choice import searched
    from cft.report.read import ReportError, collect

    folders = [step.folder for step in steps if step.folder.is_dir()]
    choices = [choice for choice, _ in searched(collect(folders), key=RATE)] if folders else []
    if len(choices) != 1 or not choices[0].chosen:
        name = steps[0].name.rpartition("-lr")[0]
        raise ReportError(
            f"{name}: no learning rate has a validation score (all diverged?); set lower ones with rates=..., see "
            f"{', '.join(str(folder / 'run.log') for folder in folders[:3])}"
        )
    return float(choices[0].chosen)


def _reads_evidence(design: Design, arm: str, shared: Mapping[str, Any], *, allowed: tuple[str, ...]) -> bool:
    """Whether an arm's method needs evidence, which rows have only after annotation."""
    planner = Planner(Settings(folder=Path("outputs/compare/evidence"), allowed=allowed), shared)
    step = planner.add(arm, {"data.annotation": "rows", **design.training(arm, rate=design.rates[0], seed=0)})
    rows = {"_target_": GIVEN_ROWS, "path": ""}
    return step is not None and any(lacking_evidence({**step.config, "data": rows}))


def _added(planner: Planner, nodes: Mapping[str, Mapping[str, Any]], *, may_fail: bool = False) -> list[Step]:
    found = [planner.add(name, node, check=False, may_fail=may_fail) for name, node in nodes.items()]
    return [step for step in found if step is not None]
