"""Facts about one job from the command line, collected before its stage starts (`cft/cli/job.py`)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cft.commands import command


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job of a command.

    Args:
        stage: Name of the command.
        folder: Folder of the job.
        group: Name of its multirun, or of the folder.
        multirun: Whether it is one of several jobs.
        config: The resolved config with secrets replaced, as saved, compared and logged.
        digest: Of the config before secrets were replaced, twelve hexadecimal digits.
        of_seed: Dotted names of values that depend on the run's seed.
        choices: Config group -> option.
        method: Of a training: the options of the method by group, then values that are not the options' own
            (`cft/cli/method.py`).
        overrides: As typed, the values of a sweep filled in.
        flags: As typed, for further folders of yaml files.
    """

    stage: str
    folder: Path
    group: str
    multirun: bool
    config: dict[str, Any]
    digest: str
    of_seed: frozenset[str] = frozenset()
    choices: dict[str, str] = field(default_factory=dict)
    method: dict[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """What was typed."""
        return command(self.stage, self.overrides, flags=self.flags)

    def command_without(self, key: str) -> str:
        """The overrides as typed, without those of one key."""
        words = [word for word in self.overrides if word.lstrip("+").split("=")[0] != key]
        return command(self.stage, words, flags=self.flags)

    def as_json(self) -> dict[str, Any]:
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        return values | {"folder": str(self.folder), "of_seed": sorted(self.of_seed)}

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> Job:
        """Inverse of `as_json`."""
        read: dict[str, Any] = {
            **values,
            "folder": Path(values["folder"]),
            "of_seed": frozenset(values["of_seed"]),
            "overrides": tuple(values["overrides"]),
            "flags": tuple(values["flags"]),
        }
        return cls(**read)
