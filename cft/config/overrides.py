"""The overrides of a command line, read with Hydra's own parser: those that choose a group's option, set a value, or sweep
over several values. Also the options that the defaults of a yaml file choose.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from cft.config.check import ErrorDetail, suggestion
from cft.config.redaction import redacted_text
from cft.config.schema import keys_of
from cft.config.stages import STAGES

_NOISE = ("full_key:", "object_type=", "reference_type=", "See https")
# Keys inside an object that a group can fill: mappings of objects by name, and masks made from another mask.
_GROUP_OF_MAPPING = {"factors": "weighting", "regularizers": "regularizer"}
_INNER_MASKS = ("of", "like", "inner")
_PLUGINS = {
    "hydra/launcher=joblib": "hydra-joblib-launcher",
    "hydra/launcher=submitit_slurm": "hydra-submitit-launcher",
    "hydra/launcher=submitit_local": "hydra-submitit-launcher",
    "hydra/launcher=ray": "hydra-ray-launcher",
    "hydra/sweeper=optuna": "hydra-optuna-sweeper",
    "hydra/sweeper=ax": "hydra-ax-sweeper",
    "hydra/sweeper=nevergrad": "hydra-nevergrad-sweeper",
}
_LONGEST_AXIS = 100  # of a longer axis the first values and the last are checked here, the others in their jobs


@dataclass(frozen=True, slots=True)
class Item:
    """One override. values: itself, or one override for each value of its sweep. group: whether it chooses an option."""

    override: Override
    values: tuple[Override, ...]
    group: bool

    @property
    def key(self) -> str:
        return self.override.key_or_group

    @property
    def shown(self) -> str:
        return shown(self.override)


def shown(override: Override) -> str:
    return redacted_text(override.input_line or "")


def reason(error: Exception) -> str:
    """An exception of Hydra, OmegaConf or yaml in one line."""
    text = str(error) or str(error.__cause__ or type(error).__name__)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(_NOISE)]
    return redacted_text(" ".join(lines))


@dataclass(slots=True)
class Reader:
    """Parses overrides into items; those that cannot be parsed become errors."""

    loader: ConfigLoader
    multirun: bool
    search_path: list[str]  # overrides that set hydra.searchpath, which determines the groups
    errors: list[ErrorDetail]
    known: dict[str, list[str]] = field(default_factory=dict)  # options by group

    def read(self, text: str) -> Item | None:
        try:
            override = self._parse(text)
        except HydraException as error:
            name = redacted_text(text)
            key, equals, _ = text.partition("=")
            if not equals:
                self._error(name, f"expected key=value, as in {name}=...")
            elif "Lexer" in str(error):  # a character that must be quoted
                self._error(redacted_text(key), f"the value needs quotes inside the shell's: \"{key}='...'\"")
            else:
                self._error(name, reason(error))
            return None
        key = override.key_or_group
        group = self.is_group(key) and not isinstance(override.value(), dict)
        if not override.is_sweep_override():
            return Item(override, (override,), group)
        if override.is_hydra_override():
            self._error(shown(override), "Hydra's own settings cannot be swept")
        elif not self.multirun:
            self._error(
                shown(override), "several values need -m" + ("" if group else f"; a list is written {key}=[a,b]")
            )
        elif key == "allow_targets":
            self._error(shown(override), "cannot be swept; a list is written allow_targets=[mylab.]")
        else:
            values = tuple(self._parse(f"{override.get_key_element()}={value}") for value in _axis(override))
            if values:
                return Item(override, values, group)
            self._error(shown(override), "the sweep has no values")
        return None

    def is_group(self, key: str) -> bool:
        return "." not in key and bool(self.options(key))

    def options(self, group: str) -> list[str]:
        if group not in self.known:  # Hydra reads all its sources again at every call
            self.known[group] = self._options(group)
        return self.known[group]

    def _options(self, group: str) -> list[str]:
        own = self.loader.get_group_options(group, results_filter=ObjectType.CONFIG, overrides=self.search_path)
        nested = self.loader.get_group_options(group, results_filter=ObjectType.GROUP, overrides=self.search_path)
        return [*own, *(f"{folder}/{option}" for folder in nested for option in self.options(f"{group}/{folder}"))]

    def existing_options(self, item: Item, *, choices: Collection[str], stage: str) -> Item | None:
        """The item reduced to values that name an option, None if none does. choices: the groups of the stage."""
        group, override = item.key, item.override
        parent = group.rpartition("/")[0]
        if group == "regularizer" and override.package is None and "loss" in choices:
            names = [f"+{group}@loss.regularizers.{v.value()}={v.value()}" for v in item.values]
            self._error(item.shown, f"a regularizer is added to the loss by a name: {' '.join(names)}")
            return None
        appends = override.is_add() or override.is_force_add() or override.package is not None
        # A nested group may belong to an option of its parent chosen elsewhere on the line; Hydra reports it otherwise.
        may_come = parent and (parent == "hydra" or any(c.startswith(parent) for c in choices))
        if group not in choices and not appends and not may_come:
            own = ", ".join(c for c in reversed(list(choices)) if not c.startswith("hydra/"))
            self._error(item.shown, f"cft {stage} has no group '{group}'; its groups are {own}")
            return None
        options = self.options(group)
        good = []
        for value in item.values:
            named = value.value()
            if named is None and not override.is_delete():
                self._error(item.shown, f"null is no option; ~{group} leaves the group out")
                continue
            if isinstance(named, list) and not _takes_several(group, stage):
                self._error(item.shown, _one_option(group))
                continue
            names = [] if named is None else named if isinstance(named, list) else [named]
            wrong = [str(name) for name in names if str(name).removesuffix(".yaml") not in options]
            for name in wrong:
                listing = f"the options are {', '.join(options)}" if options else "the group is empty"
                near = suggestion(name, options).removeprefix(", ")
                if package := _PLUGINS.get(f"{group}={name}"):
                    near = f"it comes with a package of its own: pip install {package};"
                self._error(f"{group}={name}", f"no such option; {near + ' ' if near else ''}{listing}")
            if not wrong:
                good.append(value)
        return Item(override, tuple(good), True) if good else None

    def option_at_inner_place(self, override: Override, *, choices: Collection[str]) -> ErrorDetail | None:
        """Suggestion for an option's name given as the value of a key that a group fills. choices: those of the config."""
        key, option = override.key_or_group, override.value()
        group = _group_of_place(key)
        if not group or not isinstance(option, str) or option not in self.options(group):
            return None
        entry = f"{group}@{key}"
        plus = "" if entry in choices else "+"
        return ErrorDetail(key, f"expected an object, found {option!r}; choose that option with {plus}{entry}={option}")

    def _parse(self, text: str) -> Override:
        return OverridesParser.create(config_loader=self.loader).parse_overrides([text])[0]

    def _error(self, key: str, text: str) -> None:
        self.errors.append(ErrorDetail(key, text))


def lists_in_defaults(contents: object, *, stage: str) -> Iterator[ErrorDetail]:
    """Defaults of a yaml file that give several options for one object. Hydra would mix their keys and record none of them as
    the choice."""
    defaults = OmegaConf.select(contents, "defaults") if isinstance(contents, DictConfig) else None
    for entry in defaults if isinstance(defaults, ListConfig) else ():
        for name, value in entry.items() if isinstance(entry, DictConfig) else ():
            place = str(name).split()[-1].lstrip("/")  # without `override` and `optional`
            group = place.partition("@")[0]
            if isinstance(value, ListConfig) and not _takes_several(group, stage):
                yield ErrorDetail(f"defaults: {name}", _one_option(group))


def _one_option(group: str) -> str:
    product = " (several weightings multiplied are weighting=product)" if group == "weighting" else ""
    return f"expected one option, found a list; {group}=a,b with -m tries each{product}"


def _takes_several(group: str, stage: str) -> bool:
    """Mappings of named objects may be combined; two options for one object would mix their keys."""
    several = {name for name, key in keys_of(STAGES[stage].schema).items() if key.many}
    return group in several | {"experiment"} or group.startswith("hydra/")


def _group_of_place(key: str) -> str:
    """The group whose options fill a key inside an object, "" if there is none."""
    parent, _, name = key.rpartition(".")
    if name in _INNER_MASKS and key.split(".")[0] in ("mask", "groups"):
        return "mask"
    return _GROUP_OF_MAPPING.get(parent.rpartition(".")[2], "")


def _axis(override: Override) -> Iterator[str]:
    value = override.value()
    if isinstance(value, IntervalSweep):
        yield from (str(value.start), str(value.end))
        return
    yield from islice(override.sweep_string_iterator(), _LONGEST_AXIS)
    if isinstance(value, RangeSweep) and isinstance(steps := value.range(), range) and len(steps) > _LONGEST_AXIS:
        yield str(steps[-1])
