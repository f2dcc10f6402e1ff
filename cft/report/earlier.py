"""Results from before `arm` held the whole method: what is missing is taken from their recorded settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cft.runs.arm import METHOD, part_of

_NONE = {"reference": "cft.references.models.NoReference", "groups": "cft.data.columns.NoGroups"}
_PLAIN_LOSS = {"token_loss": "cft.losses.token.NLL", "aggregation": "cft.losses.aggregation.TokenMean"}
# Values of the options that have a name of their own (`cft/report/names.py`).
_VALUES: dict[tuple[str, str], dict[str, Any]] = {
    ("mask", "all"): {"mask._target_": "cft.masks.base.All"},
    ("mask", "critical"): {"mask.rule": "all", "mask.cut_off": "wrong", "mask.num_alternatives": 2},
    ("weighting", "uniform"): {"weighting._target_": "cft.weightings.token.Uniform"},
    ("weighting", "probability"): {"weighting.exponent": 1.0},
}


def with_method(arm: Mapping[str, Any], *, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arm with loss, reference and groups. A loss that is not plain -log p is named by its classes.

    Without settings the choices are taken for the plain ones: such results are older than all others.
    """
    if "mask" not in arm or {"loss", "reference", "groups"} <= arm.keys():
        return dict(arm)
    known = settings or {}
    # Overrides were kept as text.
    found = {name: known.get(name, value) if part_of(name) in METHOD else value for name, value in arm.items()}
    found.setdefault("loss", _loss(known))
    for part, none in _NONE.items():
        target = str(known.get(f"{part}._target_", none))
        found.setdefault(part, "none" if target == none else target.rpartition(".")[2])
    for (part, option), values in _VALUES.items():
        if arm.get(part) == option:
            for name, value in values.items():
                if found.setdefault(name, known.get(name, value)) == value:
                    del found[name]
    return found


def _loss(settings: Mapping[str, Any]) -> str:
    targets = [str(settings.get(f"loss.{part}._target_", plain)) for part, plain in _PLAIN_LOSS.items()]
    targets = [target for target in targets if target not in _PLAIN_LOSS.values()]
    ends = ("loss.regularizers.", ".token_loss._target_")
    targets += [str(v) for name, v in settings.items() if name.startswith(ends[0]) and name.endswith(ends[1])]
    return " + ".join(target.rpartition(".")[2] for target in targets) or "nll"
