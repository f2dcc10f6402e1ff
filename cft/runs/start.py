"""The start of a run with `checkpoint=...`: a run folder of this package or any Hugging Face model folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cft.config.build import ConfigError
from cft.prompts.chat import prompt_conflict
from cft.runs.results import RunResults
from cft.runs.run import EXPORT, NO_WEIGHTS, weights_folder

# Settings that are taken from the checkpoint.
REPLACED = ("checkpoint", "model.path", "model.name", "model.revision")


def checkpoint_folder(checkpoint: str, *, key: str = "checkpoint") -> tuple[Path, RunResults | None]:
    """(Hugging Face folder, results of the training run or None) of a run folder or a model folder. Raises ConfigError.

    key: that names it, for messages.
    """
    if (folder := weights_folder(checkpoint)) is None:
        raise ConfigError(f"{key}={checkpoint}: {NO_WEIGHTS}")
    return folder, RunResults.find(Path(checkpoint).expanduser())


def require_same_prompt(
    trained: RunResults | None, now: dict[str, Any], *, checkpoint: str, prompt_config: Mapping[str, Any], doing: str
) -> None:
    """Refuses a model trained with another prompt or tokenizer.

    doing: the kind of run, for the message.
    """
    then = (trained.data or {}).get("prompting") if trained else None
    if trained is None or then is None:
        return
    settings = {
        key.removeprefix("prompt."): value for key, value in trained.settings.items() if key.startswith("prompt.")
    }
    if differing := prompt_conflict(then, now, then_config=settings, now_config=prompt_config):
        raise ConfigError(
            f"checkpoint={checkpoint}: {differing} differs between the training and this {doing}; set prompt=... as in "
            f"training, or take the export folder itself: checkpoint={checkpoint}/{EXPORT}"
        )
