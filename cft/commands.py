"""Commands that are printed for people to repeat: they run unchanged, in the folder that they were printed in.

One place makes them, as `cft <stage> ...`, with the flags that say where yaml files lie, quoted for Hydra and for the shell.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from cft.config.redaction import redacted_text
from cft.config.step_words import as_typed
from cft.quoting import setting

# What cft annotate leaves to its defaults is left to those of cft train where they are the same.
_SAME_DEFAULT = {"model": "tiny_arith", "prompt": "chat", "verifier": "benchmark", "data": "arithmetic"}
# Group of cft annotate -> group of cft train that chooses the same thing.
_CARRIED = {"model": "model", "prompt": "prompt", "verifier": "verifier", "data": "benchmark"}
# Of a training that no problems come with.
_NOT_TESTED = ("validation.problems=0", "evaluation.problems=0", "callbacks=best_loss")
_RENAMED = {"max_new_tokens": "evaluation.max_new_tokens", "data.dir": "data.dir", "allow_targets": "allow_targets"}


def command(stage: str, overrides: Sequence[str], *, flags: Sequence[str] = ()) -> str:
    """What to type to run a stage with these overrides, secrets left out."""
    return shlex.join(["cft", stage, *flags, *(redacted_text(as_typed(word)) for word in overrides)])


def train_command(
    annotation: Path, overrides: Sequence[str], *, choices: Mapping[str, str], flags: Sequence[str] = ()
) -> str:
    """Train on an annotation with the annotated model, prompt, verifier and limit, and the same problems as benchmark.

    annotation: its folder. overrides, choices, flags: of the job that made it.
    """
    words = [setting("data.annotation", annotation.name), setting("annotations_dir", str(annotation.parent))]
    return command("train", [*words, *_carried(overrides, choices=choices)], flags=flags)


def _carried(overrides: Sequence[str], *, choices: Mapping[str, str]) -> list[str]:
    """Overrides of cft annotate as cft train has them. choices: the option of each group."""
    split = [re.fullmatch(r"([+~]*)([^=]+)(=.*)?", word, re.DOTALL) for word in overrides]
    parts = [(m[1], m[2], m[3] or "") for m in split if m]
    if choices.get("data") == "rows":  # they are no benchmark
        parts = [part for part in parts if re.split(r"[.@/]", part[1])[0] != "data"]
        return [*_carried(["".join(part) for part in parts], choices={**choices, "data": "arithmetic"}), *_NOT_TESTED]
    words = [
        f"{new}={choices[group]}"
        for group, new in _CARRIED.items()
        if choices.get(group) and choices[group] != _SAME_DEFAULT[group]
    ]
    for signs, name, value in parts:
        group = re.split(r"[.@/]", name)[0]
        if name in _RENAMED:
            words.append(f"{signs}{_RENAMED[name]}{value}")
        elif group in _CARRIED and name != group:
            words.append(f"{signs}{_CARRIED[group]}{name.removeprefix(group)}{value}")
    return words
