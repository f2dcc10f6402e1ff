"""What annotating given responses will cost, told before a model is loaded: their lengths are known, and which positions."""

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
    """responses: that can be encoded and fit. tokens: of them. positions: to try. decoded: by one alternative at each of
    these, if each continuation continues for as long as the response did. probes, probed: beginnings that are continued to
    choose the positions, and what these decode."""

    responses: int
    tokens: int
    positions: float
    decoded: float
    probes: float
    probed: float

    def sentence(self, *, num_alternatives: int, num_samples: int = 0) -> str:
        """num_samples: of each token at each position, beside the greedy continuations."""
        a_position = num_alternatives + num_samples * (num_alternatives + 1)
        share = self.positions / max(1, self.tokens)
        probes = f", after {self.probes:,.0f} probes of about {self.probed:,.0f} tokens" if self.probes else ""
        return (
            f"{self.responses:,} given responses of {self.tokens:,} tokens; about {self.positions:,.0f} positions to try "
            f"({share:.1%}): at most {a_position * self.positions:,.0f} continuations, about "
            f"{a_position * self.decoded:,.0f} tokens{probes}. Responses that are not as asked for (right or wrong) cost "
            "nothing"
        )


def print_estimate(cfg: AnnotateConfig, spec: ModelSpec, positions: Positions, problems: Sequence[Problem]) -> None:
    """What annotating the responses of the data will cost; no weights are loaded for it."""
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
    """Of the responses that the data give, as if all were kept."""
    responses = tokens = 0
    tried = decoded = probes = probed = 0.0
    given = GivenResponses(tokenizer, prompt, eos_ids=eos_ids, max_new_tokens=max_new_tokens, thinking=thinking)
    for problem in problems:
        try:
            _, found = given(problem)
        except TextError:
            continue
        if found.finish == "length":
            continue  # cut off: it is not annotated
        length = len(found.ids)
        expected = positions.expected(_view(problem, length))
        responses, tokens = responses + 1, tokens + length
        tried += float(expected.tries_R.sum())
        decoded += tokens_after(expected.tries_R)
        probes += expected.probes
        probed += expected.probes * length / 2
    return Estimate(responses, tokens, tried, decoded, probes, probed)


def _view(problem: Problem, length: int) -> ResponseView:
    """With tokens of equal length, since exact spans take a while; the last one is the end."""
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
