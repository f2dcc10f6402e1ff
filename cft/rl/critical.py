"""Restricts the GRPO loss of right responses to their critical tokens (grpo.token_mask=critical).

    rollouts -> verdicts -> right responses with a nonzero advantage -> counterfactuals by the current policy
        -> critical tokens keep the advantage of their response, its other tokens get 0

The test is that of `cft annotate responses=given` on the sampled responses, at the positions that `positions` selects; untested
positions are not critical. Right responses that are not tested (beyond `critical.responses` per group, too long to leave room
for counterfactuals, or in a step without tests) keep the advantage on all tokens, and so do wrong responses, which have no
critical tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from cft.annotation.annotator import Annotator
from cft.annotation.responses import NEAR_LIMIT, Solved
from cft.config.build import build
from cft.config.schema import RlConfig
from cft.masks.critical import Critical
from cft.models.lazy import LazyModel
from cft.rl.problems import Asked
from cft.types import AnnotatedResponse, Budget, Completion, Outcome, TokenSequence
from cft.verifiers.grader import Grader

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from cft.prompts.chat import Prompt


@dataclass(slots=True, kw_only=True)
class CriticalTokens:
    """Finds the critical tokens of each step's responses.

    Args:
        model: A second copy of the policy, not managed by TRL; it gets the policy's weights before each test.
        annotator: Makes an annotator with that model and responses=given; called for each set of weights.
        asked: The problems.
        num_generations: Responses per group; those of a group are adjacent.
        responses: Maximum number of right responses per group that are tested; -1 = all.
        every_n_steps: Responses are tested every n-th step.
        mask: Selects the tokens with loss.
        wrong: Whether tokens of wrong responses have loss.
        outcomes: Of the step's responses; set before `spread` is called.
        facts: Statistics of the last step by their names in metrics.csv; empty if nothing was tested.
        rows: Annotated responses of the last step, by index.
    """

    model: PreTrainedModel
    annotator: Callable[[], Annotator]
    asked: Asked
    num_generations: int
    responses: int
    every_n_steps: int
    mask: Critical
    wrong: bool
    outcomes: Sequence[Outcome] = ()
    facts: dict[str, float] = field(default_factory=dict)
    rows: dict[int, AnnotatedResponse] = field(default_factory=dict)

    def set_outcomes(self, outcomes: list[Outcome]) -> None:
        self.outcomes = outcomes

    def spread(
        self, found: Mapping[str, Any], names: Sequence[str], *, weights: Mapping[str, Any], step: int
    ) -> Tensor:
        """Advantages [B, T] of a step's tokens.

        Args:
            found: TRL's batch of rollouts.
            names: Problem ids of its rows.
            weights: State dict of the policy.
            step: Number of the step.
        """
        self.facts.clear()
        self.rows = {}
        advantages_B, kept_BT = found["advantages"], found["completion_mask"]
        weight_BT = kept_BT.to(advantages_B.dtype)
        if not self.wrong:
            weight_BT = weight_BT * (advantages_B.new_tensor([o == Outcome.RIGHT for o in self.outcomes])[:, None])
        if step % self.every_n_steps == 0:
            ids = [
                row[row_mask.bool()].tolist() for row, row_mask in zip(found["completion_ids"], kept_BT, strict=True)
            ]
            self.rows = self._tested(self._chosen(ids, advantages_B.tolist()), ids, names, weights=weights)
        for i, row in self.rows.items():
            weight_BT[i] = 0
            weight_BT[i, : len(row.response_ids)] = weight_BT.new_tensor(self.mask(row))
        return advantages_B[:, None] * weight_BT

    def _chosen(self, ids: Sequence[list[int]], advantages: Sequence[float]) -> list[int]:
        """Indices of the responses to test."""
        chosen: list[int] = []
        for start in range(0, len(ids), self.num_generations):
            group = [
                i
                for i in range(start, start + self.num_generations)
                if self.outcomes[i] == Outcome.RIGHT and advantages[i] != 0 and ids[i]
            ]
            chosen += group if self.responses < 0 else group[: self.responses]
        return chosen

    def _tested(
        self, chosen: Sequence[int], ids: Sequence[list[int]], names: Sequence[str], *, weights: Mapping[str, Any]
    ) -> dict[int, AnnotatedResponse]:
        if not chosen:
            return {}
        same_weights(weights, self.model)
        annotator = self.annotator()
        try:
            limit = NEAR_LIMIT * annotator.budget.max_new_tokens
            whole = [i for i in chosen if ids[i][-1] in annotator.eos_ids and len(ids[i]) <= limit]
            rows, tally = annotator.tested([self._solved(ids[i], names[i]) for i in whole])
        finally:
            annotator.engine.close()
        critical = [self.mask(row) > 0 for row in rows]
        self.facts |= {
            "train/annotated_responses": len(rows),
            "train/annotation_tokens": tally.tokens + tally.speculative_tokens + tally.probe_tokens,
        }
        if rows:
            self.facts["train/critical_fraction"] = float(np.concatenate(critical).mean())
        return dict(zip(whole, rows, strict=True))

    def _solved(self, ids: Sequence[int], name: str) -> Solved:
        prompt = self.asked.prompts[name]
        response = np.asarray(ids, dtype=np.int32)
        sequence = TokenSequence(np.concatenate([np.asarray(prompt, dtype=np.int32), response]), len(prompt))
        return Solved(self.asked.problem(name), sequence, Completion(response, "stop", 0), "annotated", "")


def critical_tokens(
    cfg: RlConfig, policy: LazyModel, asked: Asked, *, prompt: Prompt, grader: Grader
) -> CriticalTokens:
    """Build `CriticalTokens` with a second copy of the model, since TRL replaces the forward pass of the model it trains."""
    tokenizer, facts = policy.tokenizer, policy.facts
    copy = LazyModel(policy.spec, tokenizer, ends=[prompt.end_id(tokenizer)], device=cfg.device)
    make_engine, positions = build(cfg.engine), build(cfg.positions)

    def annotator() -> Annotator:
        return Annotator(
            engine=make_engine(copy),
            tokenizer=tokenizer,
            prompt=prompt,
            grader=grader,
            budget=Budget(cfg.rollout.max_new_tokens),
            eos_ids=facts.eos_ids,
            max_positions=facts.context,
            num_alternatives=cfg.critical.num_alternatives,
            short_circuit=True,
            replay_fraction=0.0,
            responses="given",
            positions=positions,
            padding_ids=facts.unnamed_ids,
        )

    return CriticalTokens(
        model=copy.load(),
        annotator=annotator,
        asked=asked,
        num_generations=cfg.rollout.num_generations,
        responses=cfg.critical.responses,
        every_n_steps=cfg.critical.every_n_steps,
        mask=Critical(num_alternatives=cfg.critical.num_alternatives, untried="leave_out"),
        wrong=cfg.critical.wrong == "all",
    )


def same_weights(weights: Mapping[str, Any], model: Any) -> None:
    """Load `weights` into `model`, in float32, the precision of the policy in memory."""
    model.float()
    model.load_state_dict(weights)
