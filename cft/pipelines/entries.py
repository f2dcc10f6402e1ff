"""What a step's yaml and the command line say of it, as overrides of its stage."""

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
_OF_TESTS = ("num_samples", "temperature", "top_p")  # of an annotation's evidence they are other settings
# A text that the grammar would read as another type.
_NO_TEXT = re.compile(r"(?i)|null|true|false|nan|[+-]?inf|[+-]?[0-9][0-9_]*|[+-]?[0-9.][0-9_.]*(e[+-]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Entry:
    """One override of a stage. sign: of adding or deleting a key, as Hydra has it."""

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
        """The key of the stage's config that it is about: `model` of model.path, model/lora and model@reference.model less
        the place."""
        name, _, place = self.key.partition("@")
        return re.split(r"[./]", place or name)[0]


def entries_of(node: Mapping[Any, Any], prefix: str = "") -> list[Entry]:
    """Of a mapping, nested ones spelled out; of two about one key the later counts."""
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
    """Paths behind ${step:...} in a value."""
    if isinstance(value, str):
        yield from _REFERENCE.findall(value)
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from referred(inner)


def filled(value: Any, known: Mapping[str, Any]) -> Any:
    """With what `known` says of each path that ${step:...} names."""
    if isinstance(value, str):
        whole = _REFERENCE.fullmatch(value)
        return known[whole[1]] if whole else _REFERENCE.sub(lambda found: str(known[found[1]]), value)
    if isinstance(value, Mapping):
        return {name: filled(inner, known) for name, inner in value.items()}
    return [filled(inner, known) for inner in value] if isinstance(value, list) else value


def shared_with(stage: str, shared: Sequence[Entry], *, annotated: bool = False) -> dict[str, Entry]:
    """Those of a pipeline's shared overrides that a stage takes, as it takes them: by the key they had.

    `data` are the problems: to annotate, or the benchmark of what is trained and tested. What `evaluation` holds of a
    training, such as max_new_tokens, is so called by other stages. How many samples are drawn, and how, is of tests.

    annotated: the step trains on an annotation, so that `data` that are rows are those which were annotated.
    """
    keys = keys_of(STAGES[stage].schema)
    benchmark = "benchmark" in keys and takes_problems(shared)
    found = {}
    for entry in shared:
        key = entry.key
        of_data = key.split(".")[0] == "data" and key != "data.dir"
        if of_data and benchmark:
            if stage == "rl":  # it takes problems to respond to beside those that it is tested on
                found[f"rl {key}"] = entry
            key = f"benchmark{key.removeprefix('data')}"
        elif (of_data and (annotated or not _takes_data(stage, shared))) or (stage == "annotate" and key in _OF_TESTS):
            continue
        elif entry.part not in keys and key in _inside(stage, "evaluation"):
            key = f"evaluation.{key}"
        elif entry.part not in keys:
            continue
        found[entry.key] = Entry(entry.sign, key, entry.value)
    return found


def _takes_data(stage: str, shared: Sequence[Entry]) -> bool:
    """Whether the shared `data` are something that the stage reads; scores are of an annotation, or of rows."""
    keys = keys_of(STAGES[stage].schema)
    rows = any(entry.key == "data" and entry.value == "rows" for entry in shared)
    return "data" in keys and bool(keys["data"].node) and (stage != "score" or rows)


def takes_problems(shared: Sequence[Entry]) -> bool:
    """Whether the shared `data` are problems, and no rows to train on."""
    chosen = next((str(entry.value) for entry in shared if entry.key == "data"), "arithmetic")
    return (CONF_DIR / "benchmark" / f"{chosen}.yaml").is_file() or not (CONF_DIR / "data" / f"{chosen}.yaml").is_file()


def _inside(stage: str, record: str) -> Collection[str]:
    found = get_type_hints(STAGES[stage].schema).get(record)
    return {entry.name for entry in fields(found)} if is_dataclass(found) else ()


def _spelled(value: Any) -> str:
    """As Hydra's grammar reads it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_spelled(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_spelled, value)) + "]"
    if isinstance(value, str):
        return f"'{value}'" if _NO_TEXT.fullmatch(value) else setting("", value)[1:]
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)
