"""Which runs form an arm, and the arm's label. No other part of the report decides either.

An arm is the settings of a run without the seed and without how it is measured; runs with the same settings are its seeds. Its
label names the method, with a short name for every choice that differs from plain SFT, followed by as many of the differing
values as are needed to distinguish the compared arms:

    SFT   CFT   DFT   CFT + DFT   gem   CFT + gem   sft_go, groups=critical   probability, exponent=0.3   CFT, lr=0.001

A short name stands for an option with the values of its yaml; the entry `arm` of results.json has the options and every value
that differs from its option (`cft/runs/arm.py`). SFT is every token, equal weights, plain -log p and no regularizer. The
normalizer, and an unused reference or grouping, are not part of the label.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cft.report.read import Run
from cft.runs.arm import OTHER_ROWS, part_of

RL = "rl"  # of cft rl: its loss; the rest is the arm that it started from
BASE = "base model"
SFT = "SFT"
_PLAIN = {"mask": "all", "weighting": "uniform", "loss": "nll"}
_SHORT = {
    ("mask", "critical"): "CFT",
    ("mask", "random_like_critical"): "random mask",
    ("weighting", "probability"): "DFT",
    ("loss", "asft"): "KL of asft",  # ASFT with the weights of DFT alone
}
_ASFT = {"weighting": "probability", "loss": "asft"}
_GROUPS = {"sft_go": "tfidf", "shad": "shad"}  # the default groups of a loss; other groups are part of the label
_NO_METHOD = ("loss.normalizer", "loss.chunk_tokens")
_ORDER = (BASE, SFT, "CFT", "random mask", "DFT", "CFT + DFT", "random mask + DFT")
_TERM = "loss.regularizers."

Method = Mapping[str, Any]  # the entry `arm` of results.json


@dataclass(frozen=True, slots=True)
class ArmName:
    """An arm among those compared.

    Args:
        label: Unique among them.
        method: Options, and values that differ from the options' yaml.
        key: Values of everything that was set for any of the arms, and of the settings in which they differ.
    """

    label: str
    method: Method
    key: dict[str, Any]


def identity(run: Run, *, without: str = "") -> str:
    """Equal for the runs of one arm. without: a key to leave out."""
    settings = run.results.settings
    parts = {part_of(name) for name in settings}
    # Values that are not settings, such as the number of validation problems that choose the epoch.
    beside = {name: value for name, value in run.arm.items() if part_of(name) not in parts}
    return as_text([{name: v for name, v in given.items() if name != without} for given in (settings, beside)])


def named(runs: Sequence[Run], *, without: str = "") -> dict[str, ArmName]:
    """The arms that these runs form, by identity."""
    arms: dict[str, Run] = {}
    for run in runs:
        arms.setdefault(identity(run, without=without), run)
    keys = [{name: value for name, value in key.items() if name != without} for key in _keys([*arms.values()], without)]
    methods = [run.arm for run in arms.values()]
    labels = _labels(methods, keys)
    found = map(ArmName, labels, methods, keys)
    return dict(zip(arms, found, strict=True))


def varying(arms: Sequence[ArmName]) -> tuple[str, ...]:
    """Names whose values differ among the trained arms; for other models only the name of the model."""
    trained = [arm.key for arm in arms if is_trained(arm.method)]
    every = [arm.key for arm in arms]
    found = {"model": every} | {name: trained or every for key in trained or every for name in key if name != "model"}
    return tuple(name for name, keys in found.items() if len({as_text(key.get(name)) for key in keys}) > 1)


def is_trained(method: Method) -> bool:
    """Whether it is a run of cft train or cft rl."""
    return "mask" in method or RL in method


def is_base(method: Method) -> bool:
    """Whether it is an untrained model (no checkpoint of unknown training) decoded without a rule."""
    return not (is_trained(method) or "weights" in method or "decoding" in method)


def is_sft(method: Method) -> bool:
    """Whether it is plain supervised fine-tuning, with any normalizer, decoded without a rule."""
    plain = all(method.get(part) == option for part, option in _PLAIN.items())
    return plain and not {RL, "decoding", *OTHER_ROWS} & method.keys() and not _changed(method) and not _inner(method)


def order_of(method: Method) -> int:
    """Well-known arms come first."""
    name = name_of(method)
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _keys(runs: Sequence[Run], without: str) -> list[dict[str, Any]]:
    """For each run: everything set for any of them, and the settings that differ although every choice above them agrees.

    `mask: critical` is above all of mask.*, `optimizer.lr` only above itself: a rule that differs between two masks is
    explained by the masks, one that differs under a single mask is not.
    """
    given = list(dict.fromkeys(name for run in runs for name in run.arm))
    names = list(given)
    for setting in sorted({name for run in runs for name in run.results.settings} - {*given, without}):
        above = [name for name in given if f"{setting}.".startswith(f"{_place(name)}.")]
        explained: dict[str, str] = {}
        for run in runs:
            value = as_text([run.results.settings.get(setting)])
            if explained.setdefault(as_text([run.arm.get(name) for name in above]), value) != value:
                names.append(setting)
                break
    return [{name: value for name in names if (value := _value(name, run)) is not None} for run in runs]


def _value(name: str, run: Run) -> Any:
    """The resolved value of a setting, given or default; the name of an option."""
    settings = run.results.settings
    is_value = "." in name and "@" not in name and name in settings
    return settings[name] if is_value else run.arm.get(name)


def _place(name: str) -> str:
    """Path in the config of an option or value: `mask@mask.of` -> mask.of."""
    return (name.partition("@")[2] or name).replace("/", ".")


# ---- labels


def _labels(methods: Sequence[Method], keys: Sequence[dict[str, Any]]) -> list[str]:
    labels = [name_of(method) for method in methods]
    differing = varying([ArmName("", method, key) for method, key in zip(methods, keys, strict=True)])
    for name in [name for name in differing if name not in _PLAIN]:
        if len(set(labels)) == len(labels):
            break
        words = [said(name, key[name]) if name in key else "" for key in keys]
        labels = [
            f"{label}, {word}" if word and word not in label.split(", ") else label
            for label, word in zip(labels, words, strict=True)
        ]
    return labels


def name_of(method: Method) -> str:
    if "decoding" in method:
        rule = {name: value for name, value in method.items() if part_of(name) == "decoding"}
        plain = name_of({name: value for name, value in method.items() if name not in rule})
        return ", ".join([plain, *(said(name, value) for name, value in rule.items())])
    if RL in method:
        return f"{name_of({name: value for name, value in method.items() if name != RL})}, then RL"
    if is_base(method):
        return BASE
    if not is_trained(method):
        return f"checkpoint {method.get('model')} (weights {method['weights']})"
    words = {
        part: _option(part, method) for part, plain in _PLAIN.items() if method.get(part) != plain or _has(part, method)
    }
    if all(method.get(part) == option and not _has(part, method) for part, option in _ASFT.items()):
        words = {part: word for part, word in words.items() if part == "mask"} | {"loss": "ASFT"}
    terms, written = _terms(method), _written(method)
    values = [said(name, value) for name, value in _changed(method).items() if not _under(name, written)]
    if (groups := method.get("groups")) is not None and groups != _GROUPS.get(str(method.get("loss")), groups):
        values.append(said("groups", groups))
    values += [said(name, method[name]) for name in OTHER_ROWS if name in method]
    if (inputs := method.get("inputs", "tokens")) != "tokens":
        values.append(said("inputs", inputs))
    options = [*words.values()] or [SFT] * bool(terms)
    return ", ".join([" + ".join([*options, *terms.values()]) or SFT, *values])


def said(name: str, value: Any) -> str:
    """`weighting.exponent` 0.3 -> exponent=0.3"""
    if name.endswith("._target_"):
        name, value = name.removesuffix("._target_"), str(value).rpartition(".")[2]
    return f"{name.removeprefix(_TERM) if name.startswith(_TERM) else name.rpartition('.')[2]}={as_text(value)}"


def _changed(method: Method) -> dict[str, Any]:
    """Values of mask, weighting and loss that differ from their options' yaml. None: this arm has no such value."""
    return {
        name: value
        for name, value in method.items()
        if "." in name and "@" not in name and part_of(name) in _PLAIN and name not in _NO_METHOD and value is not None
    }


def _inner(method: Method) -> dict[str, Any]:
    """Nested options: `mask@mask.of: numeric`."""
    return {name: option for name, option in method.items() if "@" in name and part_of(name) in _PLAIN}


def _has(part: str, method: Method) -> bool:
    """Whether values of this part, or nested options, differ from its option; regularizers are named separately."""
    terms = _terms(method)
    return any(part_of(name) == part and not _under(name, terms) for name in _changed(method) | _inner(method))


def _option(part: str, method: Method) -> str:
    option, terms = as_text(method.get(part)), _terms(method)
    inner = [as_text(o) for name, o in _inner(method).items() if part_of(name) == part and not _under(name, terms)]
    if inner:
        return f"{option}({', '.join(inner)})"
    return option if _has(part, method) else _SHORT.get((part, option), option)


def _terms(method: Method) -> dict[str, str]:
    """Regularizers that are not part of the loss's option, by their path in the config."""
    inner = {name.partition("@")[2]: as_text(o) for name, o in _inner(method).items() if _TERM in name}
    return inner | _written(method)


def _written(method: Method) -> dict[str, str]:
    """Regularizers written out in an experiment's yaml; their class name stands for all of their values."""
    changed = _changed(method)
    places = [name.removesuffix("._target_") for name in changed if name.startswith(_TERM)]
    places = [place for place in places if f"{place}._target_" in changed and place.count(".") == 2]
    return {p: str(changed.get(f"{p}.token_loss._target_", p)).rpartition(".")[2] for p in places}


def _under(name: str, places: Iterable[str]) -> bool:
    return any(f"{_place(name)}.".startswith(f"{place}.") for place in places)
