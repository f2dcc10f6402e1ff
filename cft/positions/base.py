"""Positions: which tokens of a response get counterfactuals. Trying all of them costs R^2 / 2 tokens per response and
alternative, so in long responses the user chooses where the answer may be decided.

    choice = positions.search(view)          a generator; most return immediately
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
    """A response before any position of it is tried.

    text, char_span: as in the store, [R, 2]. entropy_R: from the scoring pass, nats; NaN from engines that do not provide it.
    outcome: of the response itself.
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
    """Estimated work on one response. tries_R: probability that each position is tried. probes: number of prefixes of the
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
        """Arguments of the choice, for the fingerprint; {} if all positions are tried. JSON."""
        ...

    def search(self, view: ResponseView) -> Search: ...

    def expected(self, view: ResponseView) -> Expected:
        """Estimate without the model: entropies are not used, and spans may be approximate."""
        ...
