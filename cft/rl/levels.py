"""Levels of length: a sentence in the prompt names the level, and the level scales the length penalty (TLDR, arXiv 2505.07961).

A reconstruction: the paper trains with the levels short, moderate and long by prompt; its sentences and scales were not
available. Each problem has one level, by a hash of its id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cft.config.build import ConfigError
from cft.masks.base import hash_of
from cft.prompts.chat import TextError, response_ids
from cft.ranges import Fraction, require_in_range
from cft.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One level of length.

    Args:
        prompt: Text appended to the question, usually with a space in front.
        penalty_scale: Factor of `reward.length_penalty`, 0 to 1; 0 = length does not matter.

    Raises:
        BadValue: The scale is out of range.
    """

    prompt: str
    penalty_scale: Fraction

    def __post_init__(self) -> None:
        require_in_range(self)


Levels = Mapping[str, Level]
NO_LEVEL = Level(prompt="", penalty_scale=1.0)


def level_of(problem: Problem, levels: Levels) -> str:
    """Name of the problem's level."""
    names = sorted(levels)
    return names[hash_of("level", problem.id) % len(names)]


def require_spelt(levels: Levels, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse sentences that the model would not read as they are. Raises ConfigError."""
    for name, level in levels.items():
        try:
            response_ids(tokenizer, level.prompt, ends=())
        except TextError as error:
            raise ConfigError(
                f"reward.levels.{name}.prompt={level.prompt!r}: {error}; choose another sentence"
            ) from error
