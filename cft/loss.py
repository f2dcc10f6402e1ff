"""The token-weighted objective: eligible positions -> log-probs -> (sum, count). Only the module divides.

    sum   = sum over eligible t of  static_t * sg(dynamic_t) * f(p_t)
    count = what the optimizer step's whole sum is divided by, by name:
            critical   eligible tokens (static weight > 0 under this arm's mask)
            response   all response tokens
            sequence   rows with an eligible token; each token then weighs 1 / (eligible tokens of its row)

Labels are shifted in one place, `eligible_tokens`. Logits exist for eligible positions only, `chunk_tokens` at a time,
and are computed again in the backward pass, so that memory does not grow with the vocabulary times the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cft.types import TokenBatch
from cft.weighting import TokenScores, TokenWeighting

Normalizer = Literal["critical", "response", "sequence"]
Projection = Callable[[Tensor], Tensor]


class TokenLoss(Protocol):
    """Called per chunk. logprob_NV: log-softmax of the logits, float32; a loss that wants logits may take these, since
    they differ by a constant a row. target_N: int64. Returns [N], with gradient."""

    def __call__(self, logprob_NV: Tensor, target_N: Tensor) -> Tensor: ...


class NLL:
    """f = -log p(y_t), nats."""

    def __call__(self, logprob_NV: Tensor, target_N: Tensor) -> Tensor:
        return -logprob_NV.gather(1, target_N[:, None])[:, 0]


class EligibleTokens(NamedTuple):
    """Flattened [N]: row and position of the token that is predicted, its id, its static weight, its probe group."""

    row_N: Tensor
    position_N: Tensor
    target_N: Tensor
    weight_N: Tensor
    probe_N: Tensor

    def hidden(self, hidden_BTD: Tensor) -> Tensor:
        """[N, D] hidden states that predict the tokens: those of the position before."""
        return hidden_BTD[self.row_N, self.position_N - 1]


@dataclass(frozen=True, slots=True)
class LossSum:
    """sum: scalar with gradient. count: scalar float64 without. Their quotient over a step is the loss."""

    sum: Tensor
    count: Tensor


class TokenStatistics(NamedTuple):
    """[N] float32 without gradient: negative log-likelihood and entropy of the prediction, nats."""

    nll_N: Tensor
    entropy_N: Tensor


def eligible_tokens(batch: TokenBatch, chosen_BT: Tensor) -> EligibleTokens:
    """The tokens where chosen_BT (bool) holds. The first token of a row is predicted by nothing and never eligible."""
    row_N, before_N = chosen_BT[:, 1:].nonzero(as_tuple=True)
    position_N = before_N + 1
    return EligibleTokens(
        row_N,
        position_N,
        batch.input_ids_BT[row_N, position_N],
        batch.weight_BT[row_N, position_N],
        batch.probe_BT[row_N, position_N],
    )


def token_statistics(hidden_ND: Tensor, target_N: Tensor, project: Projection, *, chunk_tokens: int) -> TokenStatistics:
    """Loss and entropy of each token; call it without gradient."""
    nll, entropy = [], []
    for start in range(0, max(1, len(target_N)), chunk_tokens):
        chunk = slice(start, start + chunk_tokens)
        logprob_NV = torch.log_softmax(project(hidden_ND[chunk]).float(), dim=-1)
        nll.append(-logprob_NV.gather(1, target_N[chunk, None])[:, 0])
        entropy.append(torch.special.entr(logprob_NV.exp()).sum(-1))
    return TokenStatistics(torch.cat(nll), torch.cat(entropy))


class Objective:
    """Weighting x token loss x normaliser. Configured by conf/loss; the weighting is handed in at run time."""

    def __init__(
        self, weighting: TokenWeighting, *, token_loss: TokenLoss, normalizer: Normalizer, chunk_tokens: int = 1024
    ) -> None:
        if chunk_tokens < 1:
            raise ValueError(f"loss.chunk_tokens: expected at least 1, found {chunk_tokens}")
        self.weighting = weighting
        self.token_loss = token_loss
        self.normalizer = normalizer
        self.chunk_tokens = chunk_tokens

    def __call__(self, batch: TokenBatch, hidden_BTD: Tensor, project: Projection) -> LossSum:
        """hidden_BTD: last hidden states. project: hidden [N, D] -> logits [N, V]."""
        eligible = eligible_tokens(batch, batch.weight_BT > 0)
        loss_N, logprob_N = self._token_losses(eligible.hidden(hidden_BTD), eligible.target_N, project)
        with torch.no_grad():  # weights are constants to the gradient, whatever a weighting does
            scores = TokenScores(logprob_N, eligible.row_N, eligible.position_N)
            weight_N = eligible.weight_N * self.weighting(scores)
            if self.normalizer == "sequence":
                weight_N = weight_N / eligible.row_N.bincount(minlength=len(batch.lengths_B))[eligible.row_N]
        return LossSum((weight_N * loss_N).sum(), self._count(batch, eligible))

    def _count(self, batch: TokenBatch, eligible: EligibleTokens) -> Tensor:
        if self.normalizer == "critical":
            count = torch.tensor(len(eligible.row_N))
        elif self.normalizer == "response":
            count = (batch.probe_BT >= 0).sum()
        else:
            count = eligible.row_N.unique().numel() * torch.ones(())
        return count.to(device=batch.weight_BT.device, dtype=torch.float64)

    def _token_losses(self, hidden_ND: Tensor, target_N: Tensor, project: Projection) -> tuple[Tensor, Tensor]:
        """([N] loss, [N] log-prob of the token), both with gradient."""

        def of_chunk(hidden_CD: Tensor, target_C: Tensor) -> tuple[Tensor, Tensor]:
            logprob_CV = torch.log_softmax(project(hidden_CD).float(), dim=-1)
            logprob_C = logprob_CV.gather(1, target_C[:, None])[:, 0]
            return self.token_loss(logprob_CV, target_C), logprob_C

        losses, logprobs = [], []
        # One chunk even when nothing is eligible: under DDP every parameter must take part on every rank.
        for start in range(0, max(1, len(target_N)), self.chunk_tokens):
            chunk = slice(start, start + self.chunk_tokens)
            loss_C, logprob_C = checkpoint(of_chunk, hidden_ND[chunk], target_N[chunk], use_reentrant=False)
            losses.append(loss_C)
            logprobs.append(logprob_C)
        return torch.cat(losses), torch.cat(logprobs)
