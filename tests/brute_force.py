"""Annotation by brute force: every cell with plain `transformers` generate, one continuation at a time.

Nothing is imported from cft.engines or cft.annotation.counterfactual: alternatives, truncation, limits, EOS and cut-offs are
implemented independently, from the method's description in the paper and README.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cft.types import AnnotatedResponse
from cft.verifiers import Numeric


class BruteForce:
    """The annotation method, one fork at a time."""

    def __init__(self, folder: Path, *, max_new_tokens: int) -> None:
        self.max_new_tokens = max_new_tokens
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.verifier = Numeric(fallback_last_number=True)
        eos = self.model.generation_config.eos_token_id
        self.eos = set(eos if isinstance(eos, list) else [eos]) | {self.tokenizer.eos_token_id}

    @torch.inference_mode()
    def outcomes(self, row: AnnotatedResponse, *, every: int = 1) -> Iterator[tuple[int, list[int], list[int]]]:
        """(position, alternatives, outcomes) of every n-th position; ranks are tried in order until one is right."""
        prompt, response = row.prompt_ids.tolist(), row.response_ids.tolist()
        logits = self.model(torch.tensor([prompt + response])).logits[0]
        for t, own in list(enumerate(response))[::every]:
            before = logits[len(prompt) + t - 1]
            ranked = sorted(range(len(before)), key=lambda i: (-float(before[i]), i))
            banned = self.eos if own in self.eos else {own}
            alternatives = [i for i in ranked if i not in banned][:2]
            outcomes = [-1, -1]
            for k, alternative in enumerate(alternatives):
                outcomes[k] = self.outcome(prompt, [*response[:t], alternative], row.answer)
                if outcomes[k] == 1:
                    break
            yield t, alternatives, outcomes

    def outcome(self, prompt: list[int], kept: list[int], answer: str) -> int:
        room = self.max_new_tokens - len(kept)
        if (not kept or kept[-1] not in self.eos) and room > 0:
            whole = self.model.generate(
                torch.tensor([prompt + kept]),
                max_new_tokens=room,
                do_sample=False,
                eos_token_id=sorted(self.eos),
                pad_token_id=0,
            )
            kept = whole[0, len(prompt) :].tolist()
        verdict = self.verifier(self.tokenizer.decode(kept, skip_special_tokens=True), answer)
        if kept[-1] not in self.eos and not verdict.explicit:
            return -2
        return {"right": 1, "wrong": 0, "undecided": -3}[verdict.decision.value]
