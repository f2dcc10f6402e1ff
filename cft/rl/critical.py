"""Loss on only the critical tokens of correct responses (grpo.token_mask=critical).

    rollouts -> verdicts -> correct responses of groups with a nonzero advantage -> counterfactuals by the current policy
        -> critical tokens keep the advantage of their response, its other tokens get 0

The test is that of `cft annotate responses=given`, applied to the rollouts, at the positions that `positions` selects; a
position that is not tested is not critical. Correct responses that are not tested (more than `critical.responses` in a group,
too long to leave room for counterfactuals, or from a step that `critical.every_n_steps` skips) keep the advantage on all
tokens. So do wrong responses, for which critical tokens are not defined.
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
    """Finds the critical tokens of each step's rollouts and turns advantages per response into advantages per token.

    Args:
        model: A second copy of the policy, independent of TRL's; it gets the policy's weights before each test.
        annotator: Creates an annotator of that model, with responses=given; called again for each set of weights.
        asked: The problems.
        num_generations: Responses per group; a group's responses are consecutive.
        responses: Maximum number of correct responses tested per group; -1 = all.
        every_n_steps: Responses are tested every this many optimizer steps.
        mask: Selects the tokens that carry loss.
        wrong: Whether tokens of wrong responses carry loss.
        outcomes: Outcomes of the current step's responses, set before `token_advantages` is called.
        facts: Metrics of the last step, by their names in metrics.csv; empty if nothing was tested.
        rows: Annotated responses of the last step, by their index in the batch.
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

    def token_advantages(
        self, found: Mapping[str, Any], names: Sequence[str], *, weights: Mapping[str, Any], step: int
    ) -> Tensor:
        """Advantages [B, T] of the tokens of a step's rollouts.

        Args:
            found: TRL's output for the rollouts: completion ids, mask [B, T] and advantages [B].
            names: Problem ids of the rollouts.
            weights: State dict of the policy.
            step: Index of the optimizer step.
        """
        self.facts.clear()
        self.rows = {}
        advantages_B, kept_BT = found["advantages"], found["completion_mask"]
        share_BT = kept_BT.to(advantages_B.dtype)
        if not self.wrong:
            share_BT = share_BT * (advantages_B.new_tensor([o == Outcome.RIGHT for o in self.outcomes])[:, None])
        if step % self.every_n_steps == 0:
            ids = [
                row[row_mask.bool()].tolist() for row, row_mask in zip(found["completion_ids"], kept_BT, strict=True)
            ]
            self.rows = self._tested(self._chosen(ids, advantages_B.tolist()), ids, names, weights=weights)
        for i, row in self.rows.items():
            share_BT[i] = 0
            share_BT[i, : len(row.response_ids)] = share_BT.new_tensor(self.mask(row))
        return advantages_B[:, None] * share_BT

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
    """Build `CriticalTokens` with a second copy of the model, since TRL replaces the forward pass of the trained one."""
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
    """Load the policy's current weights into another copy, in float32."""
    model.float()
    model.load_state_dict(weights)
