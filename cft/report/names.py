"""What an arm is called: every choice of its method that is not plain SFT's, by a short name where there is one.

    SFT   CFT   DFT   CFT + DFT   gem   CFT + gem   sft_go, groups=critical   probability, exponent=0.3

A short name stands for an option with the values of its yaml; `cft/runs/arm.py` records every value that is not. SFT is every
token, equal weights, plain -log p and no regularizer. What its loss is divided by, and a reference or groups that it does
not use, are no part of its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from cft.report.arms import BASE, is_base
from cft.runs.arm import part_of

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


def is_sft(key: dict[str, Any]) -> bool:
    """Plain supervised fine-tuning, whatever it is divided by."""
    plain = all(key.get(part) == option for part, option in _PLAIN.items())
    return plain and not _changed(key) and not _inner(key)


def name_of(key: dict[str, Any]) -> str:
    if is_base(key):
        return BASE
    if "mask" not in key:
        return f"checkpoint {key.get('model')} (weights {key['weights']})"
    changed = _changed(key)
    words = {part: _option(part, key) for part, plain in _PLAIN.items() if key.get(part) != plain or _has(part, key)}
    if all(key.get(part) == option and not _has(part, key) for part, option in _ASFT.items()):
        words = {part: word for part, word in words.items() if part == "mask"} | {"loss": "ASFT"}
    terms = _terms(key)
    values = [said(name, value) for name, value in changed.items() if not _under(name, _written(key))]
    if (groups := key.get("groups")) is not None and groups != _GROUPS.get(str(key.get("loss")), groups):
        values.append(said("groups", groups))
    named = [*words.values()] or [SFT] * bool(terms)
    return ", ".join([" + ".join([*named, *terms.values()]) or SFT, *values])


def said(name: str, value: Any) -> str:
    """`weighting.exponent` 0.3 -> exponent=0.3"""
    if name.endswith("._target_"):
        name, value = name.removesuffix("._target_"), str(value).rpartition(".")[2]
    return f"{name.removeprefix(_TERM) if name.startswith(_TERM) else name.rpartition('.')[2]}={_text(value)}"


def order_of(key: dict[str, Any]) -> int:
    """Well-known arms come first."""
    name = name_of(key)
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)


def _changed(key: dict[str, Any]) -> dict[str, Any]:
    """Values of mask, weighting and loss that are not their options' own. None: this arm has no such value."""
    return {
        name: value
        for name, value in key.items()
        if "." in name and "@" not in name and part_of(name) in _PLAIN and name not in _NO_METHOD and value is not None
    }


def _inner(key: dict[str, Any]) -> dict[str, Any]:
    """Options within the options: `mask@mask.of: numeric`."""
    return {name: option for name, option in key.items() if "@" in name and part_of(name) in _PLAIN}


def _has(part: str, key: dict[str, Any]) -> bool:
    """Whether values of this part, or options within it, are its own; a term is named by itself."""
    terms = _terms(key)
    return any(part_of(name) == part and not _under(name, terms) for name in _changed(key) | _inner(key))


def _option(part: str, key: dict[str, Any]) -> str:
    option, terms = _text(key.get(part)), _terms(key)
    inner = [_text(o) for name, o in _inner(key).items() if part_of(name) == part and not _under(name, terms)]
    if inner:
        return f"{option}({', '.join(inner)})"
    return option if _has(part, key) else _SHORT.get((part, option), option)


def _terms(key: dict[str, Any]) -> dict[str, str]:
    """Regularisers that the loss's option does not bring, by their place in the config."""
    return {name.partition("@")[2]: _text(o) for name, o in _inner(key).items() if _TERM in name} | _written(key)


def _written(key: dict[str, Any]) -> dict[str, str]:
    """Those that an experiment's yaml spells out: the name of their class stands for all their values."""
    changed = _changed(key)
    places = [name.removesuffix("._target_") for name in changed if name.startswith(_TERM)]
    places = [place for place in places if f"{place}._target_" in changed and place.count(".") == 2]
    return {p: str(changed.get(f"{p}.token_loss._target_", p)).rpartition(".")[2] for p in places}


def _under(name: str, places: Iterable[str]) -> bool:
    where = name.partition("@")[2] or name
    return any(f"{where}.".startswith(f"{place}.") for place in places)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
