"""Plans the steps of a pipeline from its configuration: the complete overrides of each stage, checked as by the stage itself.

Steps are processed in order. ${step:NAME.dir} refers to the output folder of an earlier step, and ${step:NAME.config.KEY} to a
value of its configuration. All errors of all steps are reported together; no step is started and no large library imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from cft.cli.job import composed_config
from cft.config.check import ErrorDetail, named, suggestion
from cft.config.command_line import command_line_errors, read_command_line
from cft.config.needs import missing_scores, stored_scores
from cft.config.preflight import missing_inputs, unreadable_problems
from cft.config.schema import keys_of
from cft.config.stages import STAGES, Stage
from cft.pipelines.entries import Entry, entries_of, filled, referred, shared_with
from cft.pipelines.reporting import REPORT, ReportSettings, report_errors
from cft.runs.run import flat
from cft.shipped import CONF_DIR

ANNOTATIONS = "annotations"  # folders in the pipeline's folder: annotations,
STEPS = "steps"  # records of steps,
EARLIER = "earlier"  # and earlier outputs of changed steps
_RESERVED = (ANNOTATIONS, STEPS, EARLIER)
# Keys that the runner sets: output folder, resuming, and the allowed classes.
_SET_BY_RUNNER = ("hydra", "resume", "allow_targets")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One run of a stage.

    Args:
        name: Name in the pipeline.
        stage: A stage of `STAGES`, or "report".
        overrides: The stage's command line, except for the output folder.
        folder: The job's folder.
        out: The output folder, often the same.
        config: The resolved config, with secrets replaced.
        may_fail: Whether the pipeline continues if it fails.
    """

    name: str
    stage: str
    overrides: tuple[str, ...]
    folder: Path
    out: Path
    config: dict[str, Any]
    may_fail: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of all steps.

    Args:
        folder: The pipeline's folder.
        group: Group of its W&B runs.
        allowed: Target prefixes allowed on the command line.
        conf_dirs: The user's folders of yaml files.
    """

    folder: Path
    group: str = ""
    allowed: tuple[str, ...] = ()
    conf_dirs: tuple[str, ...] = ()


class Planner:
    """Plans steps one by one. errors: of all steps so far."""

    def __init__(self, settings: Settings, shared: Mapping[str, Any]) -> None:
        self.settings, self.shared = settings, entries_of(shared)
        self.steps: list[Step] = []
        self.errors: list[ErrorDetail] = []
        self._stages: set[str] = set()
        self._taken: set[str] = set()  # shared keys that some step uses
        self._known: dict[str, Any] = {}  # values of ${step:...} references by path
        self._faulty: set[str] = set()

    def add(
        self, name: str, node: Any, *, check: bool = True, may_fail: bool = False, more: Sequence[Entry] = ()
    ) -> Step | None:
        """Add the step that a yaml node describes.

        Args:
            name: name of the step.
            node: overrides of its stage.
            check: False if a similar step was already checked.
            may_fail: whether the pipeline continues if it fails.
            more: additional shared overrides for this step.

        Returns:
            The step, None if it has errors that prevent it from being composed.
        """
        errors: list[ErrorDetail] = []
        step = self._step(name, node, errors, check=check, more=more)
        self.errors += [replace(error, key=f"steps.{name}.{error.key}".rstrip(".")) for error in errors]
        if step is None or errors:
            self._faulty.add(name)
            self._known[f"{name}.dir"] = str(self.settings.folder / name)
        if step is None:
            return None
        step = replace(step, may_fail=may_fail)
        self.steps.append(step)
        self._known[f"{name}.dir"] = str(step.out)
        self._known |= {f"{name}.config.{key}": value for key, value in flat(step.config).items()}
        return step

    def unused(self) -> Iterator[ErrorDetail]:
        """Errors of shared overrides that no step uses."""
        stages = sorted(self._stages)
        keys = [key for stage in stages for key in keys_of(STAGES[stage].schema)]
        for entry in self.shared:
            if entry.key not in self._taken:
                near = suggestion(entry.part, [*keys, "pipeline", "steps", "arms", "seeds", "rates"])
                text = f"no step has this key{near or f'; the stages of the steps are {chr(44).join(stages)}'}"
                yield ErrorDetail(entry.key, f"{text} (for a single step: steps.NAME.{entry.key}=...)")

    def missing(self) -> Iterator[ErrorDetail]:
        """Errors of inputs that do not exist and that no earlier step makes, each once. Reads the file system."""
        found: dict[tuple[str, str], list[str]] = {}
        unreadable = cache(unreadable_problems)
        for at, step in enumerate(self.steps):
            if step.stage != REPORT:
                for error in _missing(step, self.steps[:at], unreadable):
                    found.setdefault(error, []).append(step.name)
        for (key, text), names in found.items():
            others = f" (so for {len(names) - 1} other steps)" if len(names) > 1 else ""
            yield ErrorDetail(f"steps.{names[0]}.{key}".rstrip("."), f"{text}{others}")

    # ---- one step

    def _step(
        self, name: str, node: Any, errors: list[ErrorDetail], *, check: bool, more: Sequence[Entry] = ()
    ) -> Step | None:
        if not isinstance(node, Mapping):
            errors.append(ErrorDetail("", f"expected overrides of a stage, found {node!r}"))
            return None
        stage = str(node.get("stage", name))
        if stage not in (*STAGES, REPORT) or (stage in STAGES and not STAGES[stage].step):
            known = [one for one, entry in STAGES.items() if entry.step]
            near = suggestion(stage, known) or f"; they are {', '.join([*known, REPORT])}"
            errors.append(ErrorDetail("stage", f"'{stage}' is not a stage that can be a step{near}"))
            return None
        if name in _RESERVED or not name.replace("-", "_").isidentifier():
            errors.append(
                ErrorDetail("", "expected a name of letters, digits and _, other than " + ", ".join(_RESERVED))
            )
            return None
        own = self._filled(entries_of({key: value for key, value in node.items() if key != "stage"}), errors)
        if stage == REPORT:
            return self._report(name, own, errors)
        for entry in [entry for entry in own if entry.part in _SET_BY_RUNNER]:
            text = "is set by the pipeline, which decides where a step writes and what it resumes"
            if entry.part == "allow_targets":
                text = "is accepted on the command line only, for all steps: allow_targets=[...]"
            errors.append(ErrorDetail(entry.key, text))
            own.remove(entry)
        folder = self.settings.folder / name
        given = {entry.key for entry in own}
        everywhere = [*self.shared, *more]
        taken = shared_with(stage, everywhere, annotated=bool(given & {"data.annotation", "annotation"}))
        self._taken |= set(taken)
        self._stages.add(stage)
        shared = [entry for entry in taken.values() if entry.key not in given]
        words = [entry.word for entry in (*self._defaults(STAGES[stage], folder), *shared, *own)]
        found = _composed(stage, tuple(words), self.settings, check=check)
        errors += found.errors
        if found.config is None:
            return None
        out = _out(STAGES[stage], found.config, folder)
        if (twin := next((step for step in self.steps if step.out == out and step.stage == stage), None)) is not None:
            key = (STAGES[stage].out or ("",))[-1]
            errors.append(ErrorDetail(key, f"writes to {out}, like step {twin.name}; set another {key}"))
        words += self._wandb_group(found.config)
        return Step(name=name, stage=stage, overrides=tuple(words), folder=folder, out=out, config=dict(found.config))

    def _filled(self, own: Sequence[Entry], errors: list[ErrorDetail]) -> list[Entry]:
        """The entries with references replaced; references to faulty steps are omitted, since these have their own errors."""
        found = []
        for entry in own:
            paths = list(referred(entry.value))
            if any(path.split(".")[0] in self._faulty and path not in self._known for path in paths):
                continue
            unknown = [path for path in paths if path not in self._known]
            for path in unknown:
                near = suggestion(path, self._known)
                names = ", ".join(step.name for step in self.steps) or "none"
                text = f"${{step:{path}}} is not an output of an earlier step{near}; the earlier steps are {names}"
                errors.append(ErrorDetail(entry.key, f"{text}, each with dir and config.KEY"))
            if not unknown:
                found.append(replace(entry, value=filled(entry.value, self._known)))
        return found

    def _report(self, name: str, own: Sequence[Entry], errors: list[ErrorDetail]) -> Step:
        folder = self.settings.folder / name
        errors += report_errors(own)
        known = {entry.key: entry.value for entry in own if entry.key in ReportSettings.__dataclass_fields__}
        read = [str(step.folder) for step in self.steps if step.stage in ("train", "rl", "evaluate")]
        config = {"folders": read, **known}
        return Step(name=name, stage=REPORT, overrides=(), folder=folder, out=folder, config=config)

    def _defaults(self, stage: Stage, folder: Path) -> Iterator[Entry]:
        """The runner's overrides of a step, which come first."""
        if self.settings.allowed:
            yield Entry("", "allow_targets", list(self.settings.allowed))
        if "annotations_dir" in keys_of(stage.schema):
            yield Entry("", "annotations_dir", str(self.settings.folder / ANNOTATIONS))
        if len(stage.out) == 1:
            yield Entry("", stage.out[0], str(folder))

    def _wandb_group(self, config: Mapping[str, Any]) -> list[str]:
        loggers = config.get("logger") or {}
        ungrouped = [name for name, node in loggers.items() if isinstance(node, Mapping) and node.get("group") == ""]
        return [
            Entry("", f"logger.{name}.group", self.settings.group).word for name in ungrouped if self.settings.group
        ]


@dataclass(frozen=True, slots=True)
class _Composed:
    errors: tuple[ErrorDetail, ...]
    config: dict[str, Any] | None


@cache
def _composed(stage: str, words: tuple[str, ...], settings: Settings, *, check: bool) -> _Composed:
    """Cached, since the steps of a pipeline are checked on the command line and again in its job."""
    argv = list(spelled_out(stage, words))
    errors: list[ErrorDetail] = []
    if check:
        flags = [word for folder in settings.conf_dirs for word in ("--config-dir", folder)]
        line = read_command_line([*argv, *flags[-2:]], stage=stage, conf_dir=CONF_DIR)
        around, HydraConfig.instance().cfg = (
            HydraConfig.instance().cfg,
            None,
        )  # the Hydra config is that of the pipeline's job, not of the step
        try:
            errors = command_line_errors(line, stage=stage)
        finally:
            HydraConfig.instance().cfg = around
    if errors:
        return _Composed(tuple(errors), None)
    return _Composed((), composed_config(stage, argv, conf_dirs=settings.conf_dirs))


def spelled_out(stage: str, words: Sequence[str]) -> list[str]:
    """The overrides after the stage's command has rewritten its arguments."""
    if not STAGES[stage].arguments:
        return list(words)
    return named(STAGES[stage].arguments)(words)


def _out(stage: Stage, config: Mapping[str, Any], folder: Path) -> Path:
    return Path(*(str(config[key]) for key in stage.out)) if stage.out else folder


def _missing(step: Step, earlier: Sequence[Step], unreadable: Callable[[str, str], str]) -> Iterator[tuple[str, str]]:
    """(key, message) of inputs that do not exist and that no earlier step makes."""
    annotations = [one.out for one in earlier if one.stage == "annotate"]
    data = step.config.get("data")
    name = str(data.get("annotation", "")) if isinstance(data, Mapping) else ""
    annotations_dir = str(step.config.get("annotations_dir", ""))

    def makes(name: str) -> bool:
        return Path(annotations_dir, name) in annotations or Path(name) in annotations

    made = makes(name)
    for key, text in missing_inputs(step.config, unreadable=unreadable):
        named, _, value = key.partition("=")
        in_earlier = value and any(Path(value).is_relative_to(one.folder) for one in earlier)
        if not (in_earlier or (named.endswith("annotation") and makes(value))):
            yield key, text
    scores = {str(one.config["name"]) for one in earlier if one.stage == "score"}
    lacking = stored_scores(step.config) - scores
    if made and lacking:
        for score in sorted(lacking):
            yield "data.annotation", f"this method needs the stored score {score}, which no earlier step makes"
    elif lacking or not scores:
        yield from missing_scores(step.config)


def conf_dirs_of(flags: Sequence[str]) -> tuple[str, ...]:
    """Folders of --config-dir FOLDER flags."""
    return tuple(flags[1::2])
