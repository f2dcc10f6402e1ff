"""Requests to an external decoder (a server, or vLLM's own process) and its responses, as token ids."""

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
    """Continue `ids` by at most `limit` tokens, up to and including the first token of `eos_ids`.

    top: number of most probable tokens to return, with log-probs, at each decoded position; 0 = none.
    score_from: return the same for the tokens of `ids` from this position; None = none.
    """

    ids: list[int]
    limit: int
    eos_ids: frozenset[int]
    sampling: Sampling = GREEDY
    top: int = 0
    score_from: int | None = None

    @property
    def seed(self) -> int:
        """Seed of the server's random numbers; depends only on the seed and purpose of `sampling`."""
        text = f"{self.sampling.seed}\x1f{self.sampling.purpose}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) >> 1


@dataclass(frozen=True, slots=True)
class Ranked:
    """One position: the log-prob of the sequence's own token, and the most probable tokens with their log-probs."""

    own: float
    top: dict[int, float]


@dataclass(frozen=True, slots=True)
class DecodeResponse:
    """A response. decoded, prompt: one entry per token, if requested. ended: the finish reason that the server reports."""

    ids: list[int]
    ended: Literal["stop", "length", "abort"]
    decoded: list[Ranked] = field(default_factory=list)
    prompt: list[Ranked] = field(default_factory=list)


def top_tokens_of(positions: Sequence[Ranked], *, k: int) -> TopTokens:
    """The k most probable tokens of each position, sorted by descending log-prob, then by ascending id.

    Entropies are NaN, since no server sends the whole distribution. Raises EngineError if a position has fewer than k tokens.
    """
    ids_RK = np.zeros((len(positions), k), dtype=np.int32)
    logprob_RK = np.zeros((len(positions), k), dtype=np.float32)
    for t, position in enumerate(positions):
        best = sorted(position.top.items(), key=lambda item: (-item[1], item[0]))[:k]
        if len(best) < k:
            raise EngineError(
                f"{k} most probable tokens were requested per position, {len(best)} came at position {t} of a response; "
                f"start the server with --max-logprobs {k} or more, or lower num_alternatives"
            )
        ids_RK[t] = [token for token, _ in best]
        logprob_RK[t] = [logprob for _, logprob in best]
    own_R = np.array([position.own for position in positions], dtype=np.float32)
    return TopTokens(own_R, np.full(len(positions), np.nan, dtype=np.float32), ids_RK, logprob_RK)
