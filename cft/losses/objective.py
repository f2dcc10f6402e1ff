"""The token-weighted objective: eligible positions -> log-probs -> one sum and one count per term.

    L = AGG( w_static * sg(w_dynamic) * f(p_t) ) / count  +  sum_k  lambda_k(step) * sum R_k / count_k

    count     the normalizer's count (`cft/losses/normalizer.py`)
    count_k   the number of tokens that the regularizer acts on

Logits are computed only for the tokens of a term, `chunk_tokens` at a time. All chunks but the last are recomputed in the
backward pass, so memory for logits does not grow with the batch, and a batch of one chunk has no recomputation cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cft.errors import BadValue
from cft.losses.aggregation import Aggregation, WeightedLosses
from cft.losses.eligible import EligibleTokens, tokens_on
from cft.losses.example_state import ExampleState
from cft.losses.group import GroupLoss
from cft.losses.normalizer import DIVISORS, Divisor, Normalizer, TermSum
from cft.losses.regularizers import KLFromReference, KLToReference, NegativeEntropy, Regularizer
from cft.losses.token import NLL, Prediction, TokenLoss
from cft.models.log_probs import log_probs
from cft.ranges import AtLeastOne, in_range
from cft.scores.column import GROUP, REFERENCE_LOGPROB
from cft.types import TokenBatch
from cft.weightings.statistics import LIVE, TokenScores, entropy
from cft.weightings.token import TokenWeighting, Uniform

Projection = Callable[[Tensor], Tensor]
FusedLogProbs = Callable[[Tensor, Tensor], Tensor]  # hidden [N, D], target [N] -> log p [N] with gradient
MAIN = "loss"  # the name of the main term


class FrozenPrediction(NamedTuple):
    """The reference model's prediction of the same tokens, without gradient: hidden states [N, D] and its head."""

    hidden_ND: Tensor
    project: Projection


class TokenStatistics(NamedTuple):
    """[N] float32 without gradient: negative log-likelihood and entropy of the prediction, nats."""

    nll_N: Tensor
    entropy_N: Tensor


def token_statistics(hidden_ND: Tensor, target_N: Tensor, project: Projection, *, chunk_tokens: int) -> TokenStatistics:
    """Loss and entropy of each token; call it under no_grad."""
    nlls, entropies = [], []
    for start in range(0, max(1, len(target_N)), chunk_tokens):
        chunk = slice(start, start + chunk_tokens)
        logprob_NV = log_probs(project(hidden_ND[chunk]))
        nlls.append(-logprob_NV.gather(1, target_N[chunk, None])[:, 0])
        entropies.append(entropy(logprob_NV, target_N[chunk]))
    return TokenStatistics(torch.cat(nlls), torch.cat(entropies))


class Objective:
    """Weighting x token loss x aggregation x normalizer, plus regularizers. Configured by conf/loss.

    Args:
        weighting: the token weighting, from its own config group.
        token_loss: f, nats per token.
        aggregation: reduces token losses to one sum.
        normalizer: divisor of the sum (`cft/losses/normalizer.py`).
        regularizers: additional terms, by the names of their metrics.
        chunk_tokens: tokens whose logits are computed at a time, at least 1.
        negative_weights: whether rows may give tokens a negative weight, which lowers their probability without bound;
            otherwise such rows are refused before training.

    Raises:
        BadValue: the aggregation requires another normalizer, or the parts cannot be combined.
    """

    @in_range
    def __init__(
        self,
        weighting: TokenWeighting,
        *,
        token_loss: TokenLoss,
        aggregation: Aggregation,
        normalizer: Normalizer,
        regularizers: Mapping[str, Regularizer],
        chunk_tokens: AtLeastOne = 1024,
        negative_weights: bool = False,
    ) -> None:
        if aggregation.normalizer not in (None, normalizer):
            raise BadValue(
                f"loss.normalizer: {type(aggregation).__name__} aggregates per {aggregation.normalizer} and is divided by "
                f"{aggregation.normalizer}s, found {normalizer}; set loss.normalizer={aggregation.normalizer}"
            )
        if normalizer == "problem" and aggregation.normalizer is None:
            raise BadValue(
                f"loss.normalizer: {type(aggregation).__name__} does not compare rows of a problem, found problem; expected "
                "critical, response or sequence"
            )
        if "responses" in aggregation.about and not isinstance(token_loss, NLL):
            raise BadValue(
                f"loss.token_loss: {type(aggregation).__name__} is a function of the log-probs of whole responses, found "
                f"{type(token_loss).__name__}; expected cft.losses.NLL"
            )
        if "responses" in aggregation.about and not isinstance(weighting, Uniform):
            raise BadValue(
                f"weighting: {type(aggregation).__name__} compares log-probs of whole responses, which weights from the "
                f"current prediction would change, found {type(weighting).__name__}; expected weighting=uniform"
            )
        if isinstance(aggregation, GroupLoss):
            _require_no_target_loss(regularizers, loss=type(aggregation).__name__)
        if MAIN in regularizers:
            raise BadValue(
                f"loss.regularizers.{MAIN}: this name is reserved for the main term; choose another name for the regularizer, "
                "as in +regularizer@loss.regularizers.kl=kl_to_reference"
            )
        self.weighting = weighting
        self.token_loss = token_loss
        self.aggregation = aggregation
        self.normalizer: Normalizer = normalizer
        self.regularizers = dict(regularizers)
        self.chunk_tokens = chunk_tokens
        self.negative_weights = negative_weights

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the terms, in the order of `__call__`; measures come last."""
        return (MAIN, *self.regularizers, *self.measures)

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the last terms, which are metrics and not part of the loss."""
        return self.aggregation.measures

    @property
    def divisors(self) -> tuple[Divisor, ...]:
        """The divisor of each term."""
        main = DIVISORS[self.normalizer]
        return (main, *(r.where for r in self.regularizers.values()), *(main for _ in self.measures))

    def coefficients(self, progress: float) -> tuple[float, ...]:
        """Coefficients of the terms. progress: fraction of the optimizer steps that are done, 0-1."""
        of_regularizers = [regularizer.coefficient(progress) for regularizer in self.regularizers.values()]
        return (1.0, *of_regularizers, *(0.0 for _ in self.measures))

    @property
    def rejected(self) -> int:
        """Number of rejected rows per chosen row; 0 if the loss does not compare rows."""
        return self.aggregation.rejected if isinstance(self.aggregation, GroupLoss) else 0

    @property
    def state(self) -> ExampleState | None:
        """The state that the loss keeps of each training example, or None."""
        return self.aggregation.state if isinstance(self.aggregation, GroupLoss) else None

    @property
    def needs(self) -> frozenset[str]:
        """Required inputs: names of stored scores, `reference_logprob`, `reference_distribution`."""
        wanted = {*self.token_loss.needs, *self.weighting.needs, *self.aggregation.needs}
        for regularizer in self.regularizers.values():
            wanted |= {*regularizer.token_loss.needs}
        return frozenset(wanted - LIVE.keys())

    @property
    def log_prob_alone(self) -> bool:
        """Whether all terms use only log p of the target, and no other statistic of the distribution."""
        token_losses = [self.token_loss, *(r.token_loss for r in self.regularizers.values())]
        return all(getattr(f, "log_prob_alone", False) for f in token_losses) and not LIVE.keys() & {
            *self.weighting.needs
        }

    def tokens(self, batch: TokenBatch) -> EligibleTokens:
        """The tokens that at least one term uses."""
        return tokens_on(batch, {"eligible", *(r.where for r in self.regularizers.values())})

    def __call__(
        self,
        tokens: EligibleTokens,
        hidden_ND: Tensor,
        project: Projection,
        *,
        response_tokens: int,
        reference: FrozenPrediction | None,
        progress: float,
        fused: FusedLogProbs | None = None,
    ) -> tuple[TermSum, ...]:
        """Compute the sum and count of each term.

        Args:
            tokens: the tokens, from `tokens`.
            hidden_ND: hidden states that predict them.
            project: hidden [N, D] -> logits [N, V].
            response_tokens: response tokens of the batch, for the `response` count.
            reference: prediction of the live reference model, if there is one.
            progress: fraction of the optimizer steps done, 0-1.
            fused: replaces `project`; only with `log_prob_alone` and without a live reference.
        """
        assert fused is None or (self.log_prob_alone and reference is None), "the whole distribution is needed"
        losses, scores = self._token_losses(tokens, hidden_ND, project, reference, fused)
        on_N = tokens.on("eligible")
        row_N = tokens.row_N[on_N]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.weighting.detached):
            weight_N = tokens.weight_N[on_N].to(losses[0].dtype) * self.weighting(scores)
        tokens_B = row_N.bincount(minlength=tokens.num_rows)
        if self.normalizer == "sequence" and not self.aggregation.of_sums:
            weight_N = weight_N / tokens_B[row_N]
        group_N = tokens.stored[GROUP][on_N].long() if GROUP in self.aggregation.needs else None
        weighted = WeightedLosses(
            losses[0], weight_N, row_N, tokens.num_rows, group_N, known=scores.known, groups=tokens.groups
        )
        counts = {"critical": len(row_N), "response": response_tokens, "sequence": int((tokens_B > 0).sum())}
        counts["problem"] = 0 if tokens.groups is None else len(tokens.groups.chosen_G)
        main_sum = self.aggregation(weighted, progress=progress)
        main = TermSum(main_sum, counts[self.normalizer], self.divisors[0], 1.0)
        further = [
            TermSum(loss_N.sum(), len(loss_N), regularizer.where, regularizer.coefficient(progress))
            for loss_N, regularizer in zip(losses[1:], self.regularizers.values(), strict=True)
        ]
        with torch.no_grad():
            measured = [
                TermSum(x, counts[self.normalizer], self.divisors[0], 0.0) for x in self.aggregation.measure(weighted)
            ]
        return (main, *further, *measured)

    def _token_losses(
        self,
        tokens: EligibleTokens,
        hidden_ND: Tensor,
        project: Projection,
        reference: FrozenPrediction | None,
        fused: FusedLogProbs | None,
    ) -> tuple[list[Tensor], TokenScores]:
        """([N of the term] loss of each term, statistics of the eligible tokens)."""
        live = [name for name in self.weighting.needs if name in LIVE]
        live_reference = REFERENCE_LOGPROB in self.needs and reference is not None
        on: list[Tensor] = [tokens.on("eligible"), *(tokens.on(r.where) for r in self.regularizers.values())]
        token_losses = [self.token_loss, *(r.token_loss for r in self.regularizers.values())]

        def of_chunk(hidden_CD: Tensor, chunk: slice) -> tuple[Tensor, ...]:
            """Log-prob and live statistics of the eligible tokens, then the loss of each term."""
            target_C = tokens.target_N[chunk]
            if fused is None:
                logprob_CV = log_probs(project(hidden_CD))
            else:  # a vocabulary of one token, the target
                logprob_CV, target_C = fused(hidden_CD, target_C)[:, None], torch.zeros_like(target_C)
            reference_CV = None
            stored = {name: column_N[chunk] for name, column_N in tokens.stored.items()}
            if reference is not None:
                with torch.no_grad():
                    reference_CV = log_probs(reference.project(reference.hidden_ND[chunk]))
                    stored[REFERENCE_LOGPROB] = reference_CV.gather(1, target_C[:, None])[:, 0]
            whole = Prediction(logprob_CV, target_C, reference_CV, stored)
            main = _restricted(whole, on[0][chunk])
            with torch.no_grad():
                statistics = [LIVE[name](main.logprob_NV, main.target_N) for name in live]
            if live_reference:
                statistics.append(main.stored[REFERENCE_LOGPROB])
            losses = [
                token_loss(main if i == 0 else _restricted(whole, on[i][chunk]))
                for i, token_loss in enumerate(token_losses)
            ]
            return (main.logprob_N(), *statistics, *losses)

        parts = []
        # At least one chunk, even without eligible tokens: under DDP every parameter must take part on every rank.
        chunk_tokens = self.chunk_tokens if fused is None else max(1, len(tokens.target_N))  # fused has its own chunks
        starts = range(0, max(1, len(tokens.target_N)), chunk_tokens)
        for start in starts:
            chunk = slice(start, start + chunk_tokens)
            again = start != starts[-1] and torch.is_grad_enabled()
            parts.append(
                checkpoint(of_chunk, hidden_ND[chunk], chunk, use_reentrant=False)
                if again
                else of_chunk(hidden_ND[chunk], chunk)
            )
        logprob_N, *rest = (torch.cat(column) for column in zip(*parts, strict=True))
        known = {name: column_N[on[0]] for name, column_N in tokens.stored.items()}
        known |= dict(zip([*live, *([REFERENCE_LOGPROB] if live_reference else [])], rest, strict=False))
        losses = rest[len(live) + live_reference :]
        if self.weighting.detached:
            logprob_N = logprob_N.detach()
        return losses, TokenScores(logprob_N, tokens.row_N[on[0]], tokens.position_N[on[0]], tokens.num_rows, known)


def _require_no_target_loss(regularizers: Mapping[str, Regularizer], *, loss: str) -> None:
    """Refuse regularizers that raise the probability of the targets, since they would act on rejected responses too."""
    for name, regularizer in regularizers.items():
        if not isinstance(regularizer.token_loss, KLFromReference | KLToReference | NegativeEntropy):
            raise BadValue(
                f"loss.regularizers.{name}: {type(regularizer.token_loss).__name__} acts on the tokens of a response, which "
                f"with {loss} include those of rejected responses; expected a regularizer of the whole distribution: "
                "kl_from_reference, kl_to_reference or entropy_bonus"
            )


def _restricted(prediction: Prediction, on_C: Tensor) -> Prediction:
    """The predictions of the selected tokens; not copied if all are selected."""
    if bool(on_C.all()):
        return prediction
    return Prediction(
        prediction.logprob_NV[on_C],
        prediction.target_N[on_C],
        None if prediction.reference_NV is None else prediction.reference_NV[on_C],
        {name: column[on_C] for name, column in prediction.stored.items()},
    )
