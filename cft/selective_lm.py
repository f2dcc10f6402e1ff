"""Backbone, selection of eligible positions, projection and loss inside one forward (sharded strategies need that)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cft.eligible import EligibleTokens, eligible_tokens
from cft.errors import BadValue
from cft.loss import FrozenPrediction, Objective, TermSum, token_statistics
from cft.reference_model import LiveReference
from cft.types import TokenBatch

# Sums in the order [nll critical, entropy critical, count critical, nll other, entropy other, count other].
PROBE_NAMES = ("loss_critical", "entropy_critical", "loss_other", "entropy_other")
HEAD_TOLERANCE = 1e-4


class SelectiveLM(nn.Module):
    """reference: the live reference model, None where the objective needs none; no part of the module's own weights."""

    def __init__(self, model: PreTrainedModel, objective: Objective, *, reference: LiveReference | None = None) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self._reference = (reference,)  # in a tuple, so that it is no submodule: neither trained nor saved

    def forward(self, batch: TokenBatch, *, progress: float = 0.0) -> tuple[TermSum, ...]:
        """The sums of the objective's terms over this batch."""
        tokens = self.objective.tokens(batch)
        return self.objective(
            tokens,
            self.hidden(batch, tokens),
            self.project,
            response_tokens=int((batch.probe_BT >= 0).sum()),
            reference=self._reference_of(batch, tokens),
            progress=progress,
        )

    def probe(self, batch: TokenBatch) -> Tensor:
        """[6] float64 sums over response tokens (order: PROBE_NAMES). Call it without gradient."""
        tokens = eligible_tokens(batch, batch.probe_BT >= 0)
        statistics = token_statistics(
            self.hidden(batch, tokens), tokens.target_N, self.project, chunk_tokens=self.objective.chunk_tokens
        )
        sums = []
        for group in (1, 0):
            chosen = tokens.probe_N == group
            sums += [statistics.nll_N[chosen].sum(), statistics.entropy_N[chosen].sum(), chosen.sum()]
        return torch.stack([s.double() for s in sums])

    def hidden(self, batch: TokenBatch, tokens: EligibleTokens) -> Tensor:
        """[N, D] last hidden states that predict `tokens`."""
        outputs = self.model.base_model(**_inputs(batch), use_cache=False)
        return tokens.hidden(outputs.last_hidden_state)

    def project(self, hidden_ND: Tensor) -> Tensor:
        head = self.model.get_output_embeddings()
        assert head is not None, "a causal language model has an output head"
        return head(hidden_ND)

    def _reference_of(self, batch: TokenBatch, tokens: EligibleTokens) -> FrozenPrediction | None:
        (reference,) = self._reference
        if reference is None:
            return None
        reference.to(batch.input_ids_BT.device)
        return FrozenPrediction(tokens.hidden(reference.hidden(**_inputs(batch))), reference.project)

    @torch.no_grad()
    def check_head(self) -> None:
        """Refuse models whose logits are more than head(backbone): soft-caps and scales would be left out silently."""
        was_training = self.model.training
        self.model.eval()
        ids_BT = torch.arange(1, 9, device=self.model.device)[None] % self.model.config.vocab_size
        hidden_BTD = self.model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
        ours = self.project(hidden_BTD[0]).float()
        theirs = self.model(input_ids=ids_BT, use_cache=False).logits[0].float()
        self.model.train(was_training)
        difference = float((ours - theirs).abs().max())
        if difference > HEAD_TOLERANCE * max(1.0, float(theirs.abs().max())):
            raise BadValue(
                f"model {type(self.model).__name__}: its logits differ by {difference:.2g} from head(backbone), so it "
                "scales or caps them; training it here would optimise something else. Use a model without such a step."
            )


def _inputs(batch: TokenBatch) -> dict[str, Tensor]:
    """Rows are padded on the right, which a causal mask never looks at."""
    position_T = torch.arange(batch.input_ids_BT.shape[1], device=batch.input_ids_BT.device)
    attention_BT = (position_T[None] < batch.lengths_B[:, None]).long()
    return {"input_ids": batch.input_ids_BT, "attention_mask": attention_BT}
