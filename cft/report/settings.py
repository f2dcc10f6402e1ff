"""Settings that tell arms apart although their `arm` entries agree, such as a batch size that an experiment's yaml sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

Arm = dict[str, Any]
Settings = dict[str, Any]
NOT_RECORDED = {"settings": "not recorded"}


def distinguished(runs: Sequence[tuple[Arm, Settings | None]]) -> list[Arm]:
    """Each run's arm and, beside it, its values of the settings that differ without an entry of the arms explaining it.

    An arm's entry explains the settings below it: `mask: critical` all of mask.*, `optimizer.lr` itself. A setting that
    differs between runs whose explaining entries agree is added to all runs. None: a run from before settings were
    recorded; it is kept apart from runs that have them. Trained and untrained models are looked at apart.
    """
    arms = [dict(arm) for arm, _ in runs]
    for trained in (True, False):
        chosen = [i for i, (arm, _) in enumerate(runs) if ("mask" in arm) == trained]
        known = [(runs[i][0], settings) for i in chosen if (settings := runs[i][1]) is not None]
        names = _unexplained(known)
        for i in chosen:
            settings = runs[i][1]
            if settings is not None:
                arms[i] |= {name: settings.get(name) for name in names if name not in arms[i]}
            elif known:
                arms[i] |= NOT_RECORDED
    return arms


def _unexplained(runs: Sequence[tuple[Arm, Settings]]) -> list[str]:
    entries = sorted({name for arm, _ in runs for name in arm})
    return [name for name in sorted({n for _, settings in runs for n in settings}) if _differs(name, runs, entries)]


def _differs(name: str, runs: Sequence[tuple[Arm, Settings]], entries: Sequence[str]) -> bool:
    """Whether two runs that agree in the entries above `name` differ in it."""
    explaining = [entry for entry in entries if f"{name}.".startswith(f"{_place(entry)}.")]
    found: dict[str, str] = {}
    for arm, settings in runs:
        explained = _text([arm.get(entry) for entry in explaining])
        value = _text(settings.get(name))
        if found.setdefault(explained, value) != value:
            return True
    return False


def _place(entry: str) -> str:
    """Where in the config an entry's option or value stands: `mask@mask.of` -> mask.of."""
    return (entry.partition("@")[2] or entry).replace("/", ".")


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def differing(arms: Sequence[Sequence[Settings | None]]) -> dict[str, list[str]]:
    """Settings whose values are not the same in all arms: name -> one text an arm. arms: the settings of its runs.

    Values that differ within an arm stand side by side; a setting that an arm does not have is left empty.
    """
    known = [[settings for settings in runs if settings is not None] for runs in arms]
    names = sorted({name for runs in known for settings in runs for name in settings})
    table = {name: [_shown(name, runs) for runs in known] for name in names}
    return {name: cells for name, cells in table.items() if len(set(cells)) > 1}


def _shown(name: str, runs: Sequence[Settings]) -> str:
    values = dict.fromkeys(_text(settings[name]) for settings in runs if name in settings)
    return " | ".join(value.strip('"') for value in values)
