"""Positions: which tokens of a response get counterfactuals. An annotation of all of them costs R^2 / 2 tokens a response
and alternative, so a long response is tried where its user thinks that the answer is decided.

    choice = positions.search(view)          a generator; most return at once
    wanted = next(choice) ...                some first ask what the model makes of a beginning of the response
    choice.send({t: outcome, ...})           the model's own greedy continuation of the response before position t
    return [R] bool                          the positions to try; the others stay `Outcome.UNTRIED`

To add one, write a frozen dataclass of its keys and a yaml in conf/positions/ that names it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from cft.errors import UserError
from cft.types import Outcome

Wanted = NDArray[np.bool_]  # [R]
Search = Generator[list[int], Mapping[int, Outcome], Wanted]


class PositionsError(UserError, ValueError):
    """Positions that cannot be chosen; the message names the key to change."""


@dataclass(frozen=True, slots=True)
class ResponseView:
    """What is known of a response before anything of it is tried.

    text, char_span: as the store has them, [R, 2]. entropy_R: of the scoring pass, nats; NaN from engines that do not know
    it. outcome: of the response itself.
    """

    problem_id: str
    text: str
    char_span: NDArray[np.int32]
    entropy_R: NDArray[np.float32]
    outcome: Outcome

    def __len__(self) -> int:
        return len(self.char_span)


@dataclass(frozen=True, slots=True)
class Expected:
    """Work on one response, before it is known. tries_R: how likely each position is tried. probes: beginnings of the
    response that are continued to find the positions."""

    tries_R: NDArray[np.float64]
    probes: float = 0.0


class Positions(Protocol):
    """A frozen dataclass whose fields are the keys of its yaml; travels to where units are annotated.

    name: as in positions=NAME. needs_entropy: `search` reads the entropies. probes: `search` asks for outcomes.
    """

    name: ClassVar[str]
    needs_entropy: ClassVar[bool]
    probes: ClassVar[bool]

    def settings(self) -> dict[str, Any]:
        """What the choice depends on, for the fingerprint; {} where all positions are tried. JSON."""
        ...

    def search(self, view: ResponseView) -> Search: ...

    def expected(self, view: ResponseView) -> Expected:
        """Without the model: entropies are not looked at, and spans may be approximate."""
        ...
