"""Every error on a command line and in the yaml files behind it, before Hydra stops at the first one.

Faulty overrides are removed, the others are composed with non-strict schemas, and the result is checked
(`cft/config/check.py`). A sweep is checked one axis at a time: the first value of each axis, then every other value of one
axis with the others fixed; each job checks its own combination again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cft.config.allow_list import bad_prefix
from cft.config.check import ErrorDetail, find_errors
from cft.config.compose import nested
from cft.config.hydra_internals import argument_parser
from cft.config.hydra_keys import hydra_errors
from cft.config.override_value import has_path, set_value
from cft.config.overrides import Item, Reader, lists_in_defaults, reason, shown
from cft.config.preflight import unwritable
from cft.config.redaction import redacted_text
from cft.config.stages import register_schemas

_COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)  # Hydra raises bare ones, too
_FLAGS_WITH_VALUES = {"--cfg", "--package", "--config-path", "--config-name", "--config-dir", "--info"}
_FLAGS_WITH_VALUES |= {"--experimental-rerun", "-c", "-p", "-cp", "-cn", "-cd", "-i"}


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A parsed argument vector. shows_only: --help, --cfg and the like, which start nothing."""

    overrides: tuple[str, ...]
    multirun: bool
    shows_only: bool
    config_name: str
    config_dir: Path
    extra_dirs: tuple[Path, ...]
    errors: tuple[ErrorDetail, ...]


def read_command_line(argv: Sequence[str], *, stage: str, conf_dir: Path) -> CommandLine:
    # Removed first, because argparse ends its list of overrides at an unknown word.
    dashed = [w for w in argv if w.startswith("-") and "=" in w and w.partition("=")[0] not in _FLAGS_WITH_VALUES]
    args, unknown = argument_parser().parse_known_args([w for w in argv if w not in dashed])
    errors = []
    for word in map(redacted_text, [*dashed, *unknown]):
        bare = word.lstrip("-")
        if bare == word:
            hint = "flags such as -m go before or after all overrides, not between them"
        else:
            hint = f"write {bare}, without dashes" if "=" in bare else "see --help for the flags there are"
        errors.append(ErrorDetail(word, f"not understood; {hint}"))
    shows = args.help or args.hydra_help or args.cfg or args.info or args.shell_completion or args.experimental_rerun
    return CommandLine(
        overrides=tuple(args.overrides),
        multirun=args.multirun or any(o.lstrip("+") == "hydra.mode=MULTIRUN" for o in args.overrides),
        shows_only=bool(shows),
        config_name=(args.config_name or stage).removesuffix(".yaml"),
        config_dir=Path(args.config_path or conf_dir).resolve(),
        extra_dirs=(Path(args.config_dir).resolve(),) if args.config_dir else (),
        errors=tuple(errors),
    )


def command_line_errors(line: CommandLine, *, stage: str) -> list[ErrorDetail]:
    for folder in (line.config_dir, *line.extra_dirs):
        if not folder.is_dir():
            return [*line.errors, ErrorDetail(str(folder), "there is no such config folder")]
    strict = register_schemas(strict=False)  # already non-strict when the steps of a pipeline are checked
    try:
        with nested(), initialize_config_dir(str(line.config_dir), job_name=stage, version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            folders = [o for o in line.overrides if o.lstrip("+").startswith("hydra.searchpath=")]
            folders = folders or [f"hydra.searchpath=['file://{d}']" for d in line.extra_dirs]
            errors = list(line.errors)
            reader = Reader(hydra.config_loader, line.multirun, folders, errors)
            _Check(stage, line, hydra.config_loader, reader, errors).run()
    finally:
        register_schemas(strict=strict)
    return list(dict.fromkeys(errors))


@dataclass(frozen=True, slots=True)
class _Job:
    """One composition: its group choices, the config, and the overrides still to be applied."""

    groups: tuple[Override, ...]
    config: DictConfig
    values: tuple[Override, ...]


@dataclass(slots=True)
class _Check:
    stage: str
    line: CommandLine
    loader: ConfigLoader
    reader: Reader
    errors: list[ErrorDetail]
    extra: tuple[str, ...] = ()  # the user's own target prefixes
    read_files: set[Path] = field(default_factory=set)  # whose defaults lists are checked
    found_files: dict[tuple[str, ...], list[tuple[Path, str, str]]] = field(default_factory=dict)

    def run(self) -> None:
        try:
            base = self.compose([])
        except _COMPOSE_ERRORS as error:
            self.errors.append(ErrorDetail(f"{self.line.config_name}.yaml", reason(error)))
            return
        self.check_order()
        texts = [o for o in self.line.overrides if o not in self.reader.search_path]
        items = [item for text in texts if (item := self.reader.read(text)) is not None]
        self.extra = self.prefixes(items)
        choices = [str(c) for c in base.hydra.runtime.choices]
        groups = [good for item in items if item.group and (good := self.existing(item, choices)) is not None]
        groups, config = self.composable(groups, base)
        values = [i for i in items if not i.group]
        if self.line.multirun:
            swept = self.items_of_yaml_sweep(config, taken={i.key for i in items})
            values += [i for i in swept if not i.group]
            more = [good for i in swept if i.group and (good := self.existing(i, choices)) is not None]
            if more:
                groups, config = self.composable([*groups, *more], config)
        first = _Job(tuple(g.values[0] for g in groups), config, tuple(v.values[0] for v in values))
        self.check_defaults(first.groups)
        baseline = self.check(first)
        self.errors += baseline
        for changed, job in self.other_jobs(first, groups, values):
            for error in self.check(job):
                if error not in baseline:
                    self.errors.append(ErrorDetail(error.key, f"{error.text} [with {shown(changed)}]"))

    def check_order(self) -> None:
        """The order of a defaults list decides which value wins; an overridden experiment would go unnoticed."""
        file = self.line.config_dir / f"{self.line.config_name}.yaml"
        if not file.is_file():
            return
        defaults = OmegaConf.select(OmegaConf.load(file), "defaults") or []
        names = [next(iter(entry)) if isinstance(entry, DictConfig) else entry for entry in defaults]
        if "experiment" in names and "_self_" not in names[: names.index("experiment")]:
            text = "_self_ must come before experiment in the defaults list, or this file overrides the experiment"
            self.errors.append(ErrorDetail(f"{self.line.config_name}.yaml", text))

    def existing(self, item: Item, choices: Sequence[str]) -> Item | None:
        return self.reader.existing_options(item, choices=choices, stage=self.stage)

    def prefixes(self, items: list[Item]) -> tuple[str, ...]:
        """The user's own target prefixes. Only the command line may set them, since a yaml may come from anywhere."""
        found: list[str] = []
        for item in items:
            if item.key != "allow_targets":
                continue
            value = item.override.value()
            for prefix in value if isinstance(value, list) else [value]:
                problem = bad_prefix(prefix)
                if problem is None:
                    found.append(str(prefix))
                else:
                    self.errors.append(ErrorDetail("allow_targets", problem))
        return tuple(found)

    def items_of_yaml_sweep(self, config: DictConfig, *, taken: set[str]) -> list[Item]:
        """Sweep axes from hydra.sweeper.params in a yaml; the command line overrides them."""
        params = OmegaConf.select(config, "hydra.sweeper.params") or {}
        texts = [f"{key}={value}" for key, value in params.items() if str(key) not in taken]
        return [item for text in texts if (item := self.reader.read(text)) is not None]

    def composable(self, groups: list[Item], base: DictConfig) -> tuple[list[Item], DictConfig]:
        """The groups that compose at their first values, and the composition; a group that does not compose is reported."""
        if not groups:
            return groups, base
        try:
            return groups, self.compose([g.values[0] for g in groups])
        except _COMPOSE_ERRORS:
            good: list[Item] = []
            for item in sorted(groups, key=lambda g: g.override.package is not None):
                try:
                    base = self.compose([g.values[0] for g in [*good, item]])
                    good.append(item)
                except _COMPOSE_ERRORS as error:
                    self.errors.append(ErrorDetail(item.shown, reason(error)))
            return good, base

    def compose(self, groups: Sequence[Override]) -> DictConfig:
        lines = [*self.reader.search_path, *(o.input_line or "" for o in groups)]
        return compose(self.line.config_name, lines, return_hydra_config=True)

    def other_jobs(self, first: _Job, groups: list[Item], values: list[Item]) -> Iterator[tuple[Override, _Job]]:
        """The jobs that differ from the first one in a single axis, each with the override that differs."""
        for at, item in enumerate(groups):
            for other in item.values[1:]:
                chosen = (*first.groups[:at], other, *first.groups[at + 1 :])
                try:
                    job = _Job(chosen, self.compose(chosen), first.values)
                    self.check_defaults(chosen)
                    yield other, job
                except _COMPOSE_ERRORS as error:
                    self.errors.append(ErrorDetail(shown(other), reason(error)))
        for at, item in enumerate(values):
            for other in item.values[1:]:
                yield other, _Job(first.groups, first.config, (*first.values[:at], other, *first.values[at + 1 :]))

    def check(self, job: _Job) -> list[ErrorDetail]:
        config = copy.deepcopy(job.config)
        found = list(hydra_errors(config))
        if OmegaConf.select(config, "allow_targets"):
            found.append(ErrorDetail("allow_targets", "is accepted on the command line only, not from a yaml"))
        chosen = [str(c) for c in config.hydra.runtime.choices]
        for override in job.values:
            named = self.reader.option_at_inner_place(override, choices=chosen)
            found += filter(None, [named or set_value(override, config, stage=self.stage)])
        found += _unwritable_folder(config, multirun=self.line.multirun)
        with open_dict(config):
            del config["hydra"]
        by_hand = tuple(override.key_or_group for override in job.values)
        for error in find_errors(config, stage=self.stage, extra=self.extra):
            if any(m.key == error.key for m in found):
                continue
            typed = any(error.key == key or error.key.startswith(f"{key}.") for key in by_hand)
            file = "" if typed else self.file_that_sets(error.key, job.groups)
            found.append(ErrorDetail(error.key, error.text + (f" ({file})" if file else "")))
        return found

    def file_that_sets(self, key: str, groups: Sequence[Override]) -> str:
        """The last yaml that sets a key, "" if none does."""
        for file, name, package in reversed(self.files(groups)):
            inside = _within(key, package)
            if inside is not None and has_path(OmegaConf.load(file), inside):
                return name
        return ""

    def check_defaults(self, groups: Sequence[Override]) -> None:
        new = {file: name for file, name, _ in self.files(groups) if file not in self.read_files}
        self.read_files |= new.keys()
        for file, name in new.items():
            for error in lists_in_defaults(OmegaConf.load(file), stage=self.stage):
                self.errors.append(ErrorDetail(error.key, f"{error.text} ({name})"))

    def files(self, groups: Sequence[Override]) -> list[tuple[Path, str, str]]:
        """(file, its name in messages, package) of each yaml that a job is composed of; later ones win."""
        lines = (*self.reader.search_path, *(o.input_line or "" for o in groups))
        if lines not in self.found_files:
            self.found_files[lines] = list(self.files_of(lines))
        return self.found_files[lines]

    def files_of(self, lines: Sequence[str]) -> Iterator[tuple[Path, str, str]]:
        for default in self.loader.compute_defaults_list(self.line.config_name, list(lines), RunMode.RUN).defaults:
            for folder in (self.line.config_dir, *self.line.extra_dirs):
                file = folder / f"{default.config_path}.yaml"
                if file.is_file():
                    yield file, str(file.relative_to(folder.parent)), default.package or ""
                    break


def _unwritable_folder(config: DictConfig, *, multirun: bool) -> list[ErrorDetail]:
    """Hydra creates the output folder before a job starts, and a failure there would be a traceback."""
    key = "hydra.sweep.dir" if multirun else "hydra.run.dir"
    try:
        folder = str(OmegaConf.select(config, key) or "")
    except OmegaConfBaseException:  # known in the job only
        return []
    return [ErrorDetail(key, text)] if (text := unwritable(folder)) else []


def _within(key: str, package: str) -> list[str] | None:
    """The parts of a key relative to the file's package, None if the file cannot contain it."""
    parts = key.split("[")[0].split(".")
    outer = package.split(".") if package else []
    return parts[len(outer) :] if parts[: len(outer)] == outer and len(parts) > len(outer) else None
