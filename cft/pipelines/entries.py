"""Overrides of a step's stage, from the step's yaml and the command line."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from cft.config.schema import keys_of
from cft.config.stages import STAGES
from cft.config.step_words import decoded
from cft.quoting import setting
from cft.shipped import CONF_DIR

_REFERENCE = re.compile(r"<step:([^>]*)>")
_TEST_SETTINGS = (
    "num_samples",
    "temperature",
    "top_p",
)  # settings of tests; in annotation these keys have another meaning
# Texts that Hydra's grammar would read as another type.
_NOT_PLAIN_TEXT = re.compile(r"(?i)|null|true|false|nan|[+-]?inf|[+-]?[0-9][0-9_]*|[+-]?[0-9.][0-9_.]*(e[+-]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Entry:
    """One override of a stage. sign: Hydra's prefix for adding or deleting a key."""

    sign: str
    key: str
    value: Any

    @property
    def word(self) -> str:
        if self.sign == "~" and self.value is None:
            return f"~{self.key}"
        return f"{self.sign}{self.key}={_spelled(self.value)}"

    @property
    def part(self) -> str:
        """The top-level key that it overrides: `model` for model.path and model/lora; for key@place, that of the place."""
        name, _, place = self.key.partition("@")
        return re.split(r"[./]", place or name)[0]


def entries_of(node: Mapping[Any, Any], prefix: str = "") -> list[Entry]:
    """The entries of a mapping, with nested mappings flattened; for two entries with the same key, the later one counts."""
    found: dict[str, Entry] = {}
    for name, value in node.items():
        sign, key = decoded(str(name))
        key = f"{prefix}{key}"
        if isinstance(value, Mapping) and not sign:
            found |= {entry.key: entry for entry in entries_of(value, f"{key}.")}
        else:
            found[key] = Entry(sign, key, value)
    return list(found.values())


def referred(value: Any) -> Iterator[str]:
    """Paths of ${step:...} references in a value."""
    if isinstance(value, str):
        yield from _REFERENCE.findall(value)
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from referred(inner)


def filled(value: Any, known: Mapping[str, Any]) -> Any:
    """The value with each ${step:...} reference replaced by the value of its path in `known`."""
    if isinstance(value, str):
        whole = _REFERENCE.fullmatch(value)
        return known[whole[1]] if whole else _REFERENCE.sub(lambda found: str(known[found[1]]), value)
    if isinstance(value, Mapping):
        return {name: filled(inner, known) for name, inner in value.items()}
    return [filled(inner, known) for inner in value] if isinstance(value, list) else value


def shared_with(stage: str, shared: Sequence[Entry], *, annotated: bool = False) -> dict[str, Entry]:
    """The shared overrides of a pipeline that apply to a stage, with their keys for that stage.

    `data` are the problems: those to annotate, or the benchmark of training and test stages. Keys such as max_new_tokens are
    under `evaluation` in training stages. Sampling settings apply only to tests.

    Args:
        stage: name of the stage.
        shared: the shared overrides.
        annotated: whether the step reads an annotation, so that rows in `data` are already annotated.

    Returns:
        Key of the shared override -> the stage's override.
    """
    keys = keys_of(STAGES[stage].schema)
    problems = takes_problems(shared)
    takes_data = "data" in keys and keys["data"].node and (stage == "annotate" or not (problems or annotated))
    found = {}
    for entry in shared:
        key = entry.key
        of_data = key.split(".")[0] == "data" and key != "data.dir"
        if of_data and problems and "benchmark" in keys:
            if stage == "rl":  # it needs training problems in addition to test problems
                found[f"rl {key}"] = entry
            key = f"benchmark{key.removeprefix('data')}"
        elif (of_data and not takes_data) or (stage == "annotate" and key in _TEST_SETTINGS):
            continue
        elif entry.part not in keys and key in _inside(stage, "evaluation"):
            key = f"evaluation.{key}"
        elif entry.part not in keys:
            continue
        found[entry.key] = Entry(entry.sign, key, entry.value)
    return found


def takes_problems(shared: Sequence[Entry]) -> bool:
    """Whether the shared `data` are problems, not rows to train on."""
    chosen = next((str(entry.value) for entry in shared if entry.key == "data"), "arithmetic")
    return (CONF_DIR / "benchmark" / f"{chosen}.yaml").is_file() or not (CONF_DIR / "data" / f"{chosen}.yaml").is_file()


def _inside(stage: str, record: str) -> Collection[str]:
    found = get_type_hints(STAGES[stage].schema).get(record)
    return {entry.name for entry in fields(found)} if is_dataclass(found) else ()


def _spelled(value: Any) -> str:
    """The value in Hydra's grammar."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_spelled(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_spelled, value)) + "]"
    if isinstance(value, str):
        return f"'{value}'" if _NOT_PLAIN_TEXT.fullmatch(value) else setting("", value)[1:]
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)
