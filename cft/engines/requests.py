"""What is asked of an engine that runs elsewhere, in a server or in vLLM's own process, and what it answers: token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from cft.engines.factory import EngineError
from cft.types import GREEDY, Sampling, TopTokens


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """Continue `ids` by at most `limit` tokens, up to and with the first of `eos_ids`.

    top: so many most probable tokens with their log-probs for each decoded token; 0 = none.
    score_from: the same for the tokens of `ids` from this position on; None = none.
    """

    ids: list[int]
    limit: int
    eos_ids: frozenset[int]
    sampling: Sampling = GREEDY
    top: int = 0
    score_from: int | None = None

    @property
    def seed(self) -> int:
        """Of the server's random numbers: a function of the sampling's seed and purpose alone."""
        text = f"{self.sampling.seed}\x1f{self.sampling.purpose}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) >> 1


@dataclass(frozen=True, slots=True)
class Ranked:
    """One position: the log-prob of the token that stands there, and the most probable tokens with theirs."""

    own: float
    top: dict[int, float]


@dataclass(frozen=True, slots=True)
class DecodeResponse:
    """What came. decoded, prompt: one entry a token, where they were asked for. ended: what the server says of it."""

    ids: list[int]
    ended: Literal["stop", "length", "abort"]
    decoded: list[Ranked] = field(default_factory=list)
    prompt: list[Ranked] = field(default_factory=list)


def top_tokens_of(positions: Sequence[Ranked], *, k: int) -> TopTokens:
    """By falling log-prob, equal ones by rising id. Entropies are NaN: nobody sends the whole distribution.

    Raises EngineError if a position has fewer than k tokens.
    """
    ids_RK = np.zeros((len(positions), k), dtype=np.int32)
    logprob_RK = np.zeros((len(positions), k), dtype=np.float32)
    for t, position in enumerate(positions):
        best = sorted(position.top.items(), key=lambda item: (-item[1], item[0]))[:k]
        if len(best) < k:
            raise EngineError(
                f"{k} most probable tokens were asked for at each position, {len(best)} came at position {t} of a response; "
                f"start the server with --max-logprobs {k} or more, or lower num_alternatives"
            )
        ids_RK[t] = [token for token, _ in best]
        logprob_RK[t] = [logprob for _, logprob in best]
    own_R = np.array([position.own for position in positions], dtype=np.float32)
    return TopTokens(own_R, np.full(len(positions), np.nan, dtype=np.float32), ids_RK, logprob_RK)
