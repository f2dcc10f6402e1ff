"""Commands that are printed for people to repeat: they run as they stand, in the folder that they were printed in.

One place makes them, as `cft <stage> ...`, with the flags that say where yaml files lie, quoted for Hydra and for the shell.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from cft.config.redaction import redacted_text
from cft.quoting import setting

# What cft annotate leaves to its defaults is left to those of cft train where they are the same.
_SAME_DEFAULT = {"model": "tiny_arith", "prompt": "chat", "verifier": "numeric", "data": "arithmetic"}
# Group of cft annotate -> group of cft train that chooses the same thing.
_CARRIED = {"model": "model", "prompt": "prompt", "verifier": "verifier", "data": "benchmark"}
_RENAMED = {"max_new_tokens": "evaluation.max_new_tokens", "data.dir": "data.dir", "allow_targets": "allow_targets"}


def command(stage: str, overrides: Sequence[str]) -> str:
    """What to type to run a stage with these overrides, secrets left out."""
    return shlex.join(["cft", stage, *_flags(), *map(redacted_text, overrides)])


def job_overrides() -> list[str]:
    """Of the Hydra job that is running, the values of a sweep filled in."""
    return list(HydraConfig.get().overrides.task)


def train_command(annotation: Path) -> str:
    """Train on an annotation that the Hydra job which is running has made: with the annotated model, prompt, verifier and
    limit, and the same problems as benchmark. annotation: its folder."""
    words = [setting("data.annotation", annotation.name), setting("annotations_dir", str(annotation.parent))]
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        words += _carried(job_overrides(), choices=hydra.runtime.choices)
    return command("train", words)


def _carried(overrides: Sequence[str], *, choices: Mapping[str, str | None]) -> list[str]:
    """Overrides of cft annotate as cft train has them. choices: the option of each group."""
    split = [re.fullmatch(r"([+~]*)([^=]+)(=.*)?", word, re.DOTALL) for word in overrides]
    parts = [(m[1], m[2], m[3] or "") for m in split if m]
    changed = {name.split(".")[0] for _, name, _ in parts if "." in name}
    words = [
        f"{new}={choices[group]}"
        for group, new in _CARRIED.items()
        # A value of an option is one of the option: stated where train.py's default may be another.
        if choices.get(group) and (choices[group] != _SAME_DEFAULT[group] or (group == "verifier" and group in changed))
    ]
    for signs, name, value in parts:
        group = re.split(r"[.@/]", name)[0]
        if name in _RENAMED:
            words.append(f"{signs}{_RENAMED[name]}{value}")
        elif group in _CARRIED and name != group:
            words.append(f"{signs}{_CARRIED[group]}{name.removeprefix(group)}{value}")
    return words


def _flags() -> list[str]:
    """Where the job that is running looked for yaml files beside its own."""
    if not HydraConfig.initialized():
        return []
    folders = [s.path for s in HydraConfig.get().runtime.config_sources if s.provider == "command-line"]
    return [word for folder in folders for word in ("--config-dir", folder)]
