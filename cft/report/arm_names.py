"""Which runs form an arm, and what it is called. Nothing else in the report decides either.

An arm is a run's settings without the seed and without where it is measured: runs that agree in them are its seeds. It is
called by its method, every choice that is not plain SFT's by a short name where there is one, and then by as many of the
values that differ among the arms compared as it takes to distinguish them:

    SFT   CFT   DFT   CFT + DFT   gem   CFT + gem   sft_go, groups=critical   probability, exponent=0.3   CFT, lr=0.001

A short name is an option with the values of its yaml; results.json records as `arm` the options and every value that
is not the option's (`cft/runs/arm.py`). SFT is every token, equal weights, plain -log p and no regularizer. What its loss is
divided by, and a reference or groups that it does not use, are no part of its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cft.report.read import Run
from cft.runs.arm import part_of

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
_GROUPS = {"sft_go": "tfidf", "shad": "shad"}  # a loss over other groups is named by them
_NO_METHOD = ("loss.normalizer", "loss.chunk_tokens")
_ORDER = (BASE, SFT, "CFT", "random mask", "DFT", "CFT + DFT", "random mask + DFT")
_TERM = "loss.regularizers."

Method = Mapping[str, Any]  # the entry `arm` of results.json


@dataclass(frozen=True, slots=True)
class ArmName:
    """An arm among those compared.

    Args:
        label: No other of them has it.
        method: Options, and values that are not the options' own.
        key: Values of everything that any of the arms was given, and of the settings in which they differ.
    """

    label: str
    method: Method
    key: dict[str, Any]


def identity(run: Run, *, without: str = "") -> str:
    """The same for the runs of one arm. without: a key that counts as no part of it."""
    settings = run.results.settings
    parts = {part_of(name) for name in settings}
    # What was set beside the settings, such as how many validation problems choose the epoch.
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
    """Names whose values differ among the trained arms; of other models only what model it is."""
    trained = [arm.key for arm in arms if is_trained(arm.method)]
    every = [arm.key for arm in arms]
    found = {"model": every} | {name: trained or every for key in trained or every for name in key if name != "model"}
    return tuple(name for name, keys in found.items() if len({as_text(key.get(name)) for key in keys}) > 1)


def is_trained(method: Method) -> bool:
    """Whether cft train or cft rl made it."""
    return "mask" in method or RL in method


def is_base(method: Method) -> bool:
    """Neither trained nor a checkpoint of unknown training, decoded as it is."""
    return not (is_trained(method) or "weights" in method or "decoding" in method)


def is_sft(method: Method) -> bool:
    """Plain supervised fine-tuning, whatever it is divided by, decoded as it is."""
    plain = all(method.get(part) == option for part, option in _PLAIN.items())
    return plain and not {RL, "decoding"} & method.keys() and not _changed(method) and not _inner(method)


def order_of(method: Method) -> int:
    """Well-known arms come first."""
    name = name_of(method)
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _keys(runs: Sequence[Run], without: str) -> list[dict[str, Any]]:
    """Of each run: what any was given, and the settings that differ although all that was given above them agrees.

    `mask: critical` is above all of mask.*, `optimizer.lr` above itself alone: a rule that differs between two masks is
    explained by them, one that differs under a single mask is not.
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
    """Of a setting as the config resolved it, whether it was given or is a default; of an option its name."""
    settings = run.results.settings
    is_value = "." in name and "@" not in name and name in settings
    return settings[name] if is_value else run.arm.get(name)


def _place(name: str) -> str:
    """Where in the config an option or value is: `mask@mask.of` -> mask.of."""
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
    options = [*words.values()] or [SFT] * bool(terms)
    return ", ".join([" + ".join([*options, *terms.values()]) or SFT, *values])


def said(name: str, value: Any) -> str:
    """`weighting.exponent` 0.3 -> exponent=0.3"""
    if name.endswith("._target_"):
        name, value = name.removesuffix("._target_"), str(value).rpartition(".")[2]
    return f"{name.removeprefix(_TERM) if name.startswith(_TERM) else name.rpartition('.')[2]}={as_text(value)}"


def _changed(method: Method) -> dict[str, Any]:
    """Values of mask, weighting and loss that are not their options' own. None: this arm has no such value."""
    return {
        name: value
        for name, value in method.items()
        if "." in name and "@" not in name and part_of(name) in _PLAIN and name not in _NO_METHOD and value is not None
    }


def _inner(method: Method) -> dict[str, Any]:
    """Options within the options: `mask@mask.of: numeric`."""
    return {name: option for name, option in method.items() if "@" in name and part_of(name) in _PLAIN}


def _has(part: str, method: Method) -> bool:
    """Whether values of this part, or options within it, are its own; a term is named by itself."""
    terms = _terms(method)
    return any(part_of(name) == part and not _under(name, terms) for name in _changed(method) | _inner(method))


def _option(part: str, method: Method) -> str:
    option, terms = as_text(method.get(part)), _terms(method)
    inner = [as_text(o) for name, o in _inner(method).items() if part_of(name) == part and not _under(name, terms)]
    if inner:
        return f"{option}({', '.join(inner)})"
    return option if _has(part, method) else _SHORT.get((part, option), option)


def _terms(method: Method) -> dict[str, str]:
    """Regularizers that the loss's option does not bring, by their place in the config."""
    inner = {name.partition("@")[2]: as_text(o) for name, o in _inner(method).items() if _TERM in name}
    return inner | _written(method)


def _written(method: Method) -> dict[str, str]:
    """Those that an experiment's yaml spells out: the name of their class abbreviates all their values."""
    changed = _changed(method)
    places = [name.removesuffix("._target_") for name in changed if name.startswith(_TERM)]
    places = [place for place in places if f"{place}._target_" in changed and place.count(".") == 2]
    return {p: str(changed.get(f"{p}.token_loss._target_", p)).rpartition(".")[2] for p in places}


def _under(name: str, places: Iterable[str]) -> bool:
    return any(f"{_place(name)}.".startswith(f"{place}.") for place in places)
