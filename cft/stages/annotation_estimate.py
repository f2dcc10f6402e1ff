"""Estimates the cost of annotating given responses, from their lengths and positions, before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cft.annotation.responses import GivenResponses
from cft.config.build import build
from cft.config.schema import AnnotateConfig
from cft.console import console
from cft.models.lazy import LazyModel
from cft.models.load import ModelSpec, load_tokenizer
from cft.positions import Positions, ResponseView
from cft.prompts.chat import Prompt, TextError
from cft.stages.annotation_worker import sample_design, tokens_after
from cft.types import Outcome, Problem, ThinkingTags

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected cost of an annotation.

    Args:
        responses: responses that can be encoded and fit into the context.
        tokens: their total number of tokens.
        positions: positions to try.
        decoded: tokens decoded with one alternative at each position, if each continuation is as long as the rest of the
            response.
        probes: prefixes that are continued to choose the positions.
        probed: tokens decoded by these probes.
    """

    responses: int
    tokens: int
    positions: float
    decoded: float
    probes: float
    probed: float

    def sentence(self, *, num_alternatives: int, num_samples: int = 0) -> str:
        """The estimate as a sentence. num_samples: per token at each position, in addition to the greedy continuations."""
        per_position = num_alternatives + num_samples * (num_alternatives + 1)
        share = self.positions / max(1, self.tokens)
        probes = f", after {self.probes:,.0f} probes of about {self.probed:,.0f} tokens" if self.probes else ""
        return (
            f"{self.responses:,} given responses of {self.tokens:,} tokens; about {self.positions:,.0f} positions to try "
            f"({share:.1%}): at most {per_position * self.positions:,.0f} continuations, about "
            f"{per_position * self.decoded:,.0f} tokens{probes}. Responses without the requested verdict (right or wrong) cost "
            "nothing"
        )


def print_estimate(cfg: AnnotateConfig, spec: ModelSpec, positions: Positions, problems: Sequence[Problem]) -> None:
    """Print the estimate for the data's responses; no weights are loaded for it."""
    if not problems:
        return
    prompt, tokenizer, samples = build(cfg.prompt), load_tokenizer(spec), sample_design(cfg)
    model = LazyModel(spec, tokenizer, ends=[prompt.end_id(tokenizer)], device="cpu")
    found = estimate(
        problems,
        tokenizer=tokenizer,
        prompt=prompt,
        positions=positions,
        eos_ids=model.facts.eos_ids,
        max_new_tokens=cfg.max_new_tokens,
        thinking=cfg.verify.thinking.tags,
    )
    num_samples = samples.num_samples if samples else 0
    console.print(found.sentence(num_alternatives=cfg.num_alternatives, num_samples=num_samples))


def estimate(
    problems: Iterable[Problem],
    *,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    positions: Positions,
    eos_ids: Sequence[int],
    max_new_tokens: int,
    thinking: ThinkingTags,
) -> Estimate:
    """Estimate the cost for the given responses, as if all had the requested verdict."""
    responses = tokens = 0
    tried = decoded = probes = probed = 0.0
    given = GivenResponses(tokenizer, prompt, eos_ids=eos_ids, max_new_tokens=max_new_tokens, thinking=thinking)
    for problem in problems:
        try:
            _, found = given(problem)
        except TextError:
            continue
        if found.finish == "length":
            continue  # cut-off responses are not annotated
        length = len(found.ids)
        expected = positions.expected(_view(problem, length))
        responses, tokens = responses + 1, tokens + length
        tried += float(expected.tries_R.sum())
        decoded += tokens_after(expected.tries_R)
        probes += expected.probes
        probed += expected.probes * length / 2
    return Estimate(responses, tokens, tried, decoded, probes, probed)


def _view(problem: Problem, length: int) -> ResponseView:
    """A view of a response with tokens of equal length, since exact spans are slow; the last token is the end token."""
    edges = np.linspace(0, len(problem.solution), max(1, length - 1) + 1).round().astype(np.int32)
    spans = np.stack([edges[:-1], edges[1:]], axis=1)
    end = np.full((length - len(spans), 2), len(problem.solution), dtype=np.int32)
    return ResponseView(
        problem.id,
        problem.solution,
        np.concatenate([spans, end]),
        np.zeros(length, dtype=np.float32),
        Outcome.RIGHT,
    )
