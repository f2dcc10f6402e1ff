"""Backbone, selection of eligible positions, projection and loss in one forward method, as sharded strategies require."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cft.errors import BadValue
from cft.inputs import Inputs, Mixed, Tokens
from cft.inputs.mixed import embedding_of, guesses
from cft.losses.eligible import EligibleTokens, eligible_tokens
from cft.losses.normalizer import Divisor, TermSum
from cft.losses.objective import FrozenPrediction, FusedLogProbs, Objective, token_statistics
from cft.losses.router import balance_of_rows
from cft.models.architecture import require_packable
from cft.models.attention import usable_attention, uses_flash
from cft.models.experts import KEY, Experts, experts_of
from cft.models.fused_head import fused_log_probs, has_fused_head
from cft.models.head import backbone, project
from cft.models.kernels import training_pass
from cft.models.rounding import half_of_the_digits
from cft.references.models import LiveReference
from cft.training.layout import Layout, Placement, attend_by_rows, computed_positions, needs_mask, placed
from cft.types import TokenBatch

# Sums in the order [nll critical, entropy critical, count critical, nll other, entropy other, count other].
PROBE_NAMES = ("loss_critical", "entropy_critical", "loss_other", "entropy_other")
ROUTER = "router"  # the name of the term that balances experts


class SelectiveLM(nn.Module):
    """A causal language model that computes logits and loss at the selected positions only.

    Args:
        model: the causal language model.
        objective: the training objective.
        inputs: the model's inputs in training (`cft/inputs`); default: the true tokens.
        reference: the live reference model, None if the objective needs none. Not a submodule.
        layout: see `cft/training/layout.py`.
        fused_loss: compute log-probs without materializing all logits, where `cft/models/fused_head.py` supports it.
        router: coefficient of the load-balancing loss of a mixture-of-experts model (`cft/losses/router.py`), a term after
            those of the objective; 0 = none.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        objective: Objective,
        *,
        inputs: Inputs | None = None,
        reference: LiveReference | None = None,
        layout: Layout = "padded",
        fused_loss: bool = False,
        router: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.inputs: Inputs = inputs or Tokens()
        self.router = router
        self._experts: Experts | None = experts_of(model.config) if router else None
        self.layout: Layout = layout
        self.fused_loss = fused_loss
        # Only packed rows need another attention function.
        models = [] if layout == "padded" else [model] if reference is None else [model, reference.model]
        switched = [attend_by_rows(m) for m in models]
        self._by_rows = all(switched)
        self._masked = any(needs_mask(m) for m in models)
        self._reference = (
            reference,
        )  # in a tuple, so that torch does not register it as a submodule to train and save

    def forward(self, batch: TokenBatch, *, progress: float = 0.0, mixed: bool = False) -> tuple[TermSum, ...]:
        """Compute the sums of the objective's terms over this batch, followed by the router's term, if any.

        Args:
            batch: the micro-batch.
            progress: fraction of the optimizer steps that are done, 0-1, for coefficient schedules.
            mixed: use the configured `inputs` instead of the true tokens. In training only: at inference a model reads real
                tokens, and a validation loss on mixed inputs could not be compared with that of other arms.
        """
        tokens = self.objective.tokens(batch)
        placement = self._placed(batch, tokens)
        with training_pass():
            read = self._mixed(batch, tokens, placement, progress=progress) if mixed else placement
            output = self._output(read)
            hidden_ND = placement.states(output.last_hidden_state)
            terms = self.objective(
                tokens,
                hidden_ND,
                self.project,
                response_tokens=int((batch.token_group_BT >= 0).sum()),
                reference=self._reference_of(placement),
                progress=progress,
                fused=self._fused(hidden_ND),
            )
            return terms if self._experts is None else (*terms, self._balance(output, placement, tokens))

    def guessed(self, batch: TokenBatch, tokens: EligibleTokens) -> EligibleTokens:
        """The response tokens within the computed positions of `tokens`, which mixed inputs replace."""
        position_T = torch.arange(batch.input_ids_BT.shape[1], device=batch.input_ids_BT.device)
        read_BT = position_T < computed_positions(tokens)[:, None]
        return eligible_tokens(batch, (batch.token_group_BT >= 0) & read_BT)

    def _mixed(self, batch: TokenBatch, tokens: EligibleTokens, placement: Placement, *, progress: float) -> Placement:
        """The same placement with mixed embeddings instead of ids, if the configured inputs are mixed."""
        inputs = self.inputs
        if not isinstance(inputs, Mixed):
            return placement
        mix = inputs.mix(progress)
        if not mix and not inputs.frozen:
            return placement
        guessed = self.guessed(batch, tokens)
        place_M = placement.start_B[guessed.row_N] + guessed.position_N
        guess_M = guessed.target_N
        if mix:  # the same on every rank
            with torch.no_grad():
                hidden_BTD = self._output(placement).last_hidden_state
                before_MD = hidden_BTD.flatten(0, 1)[place_M - 1]
                guess_M = guesses(before_MD, self.project, chunk_tokens=self.objective.chunk_tokens)
        ids_BT = placement.inputs["input_ids"]
        embedded_BTD = inputs.embeddings(self.model, ids_BT, guess_M=guess_M, place_M=place_M, mix=mix)
        rest = {name: value for name, value in placement.inputs.items() if name != "input_ids"}
        return dataclasses.replace(placement, inputs={**rest, "inputs_embeds": embedded_BTD})

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the terms, in the order of `forward`."""
        return self.objective.names if self._experts is None else (*self.objective.names, ROUTER)

    @property
    def divisors(self) -> tuple[Divisor, ...]:
        """The divisor of each term."""
        return self.objective.divisors if self._experts is None else (*self.objective.divisors, "sequence")

    def coefficients(self, progress: float) -> tuple[float, ...]:
        """Coefficients of the terms. progress: fraction of the optimizer steps that are done, 0-1."""
        return (*self.objective.coefficients(progress), *([] if self._experts is None else [self.router]))

    def _balance(self, output: Any, placement: Placement, tokens: EligibleTokens) -> TermSum:
        """The load-balancing term, over the rows that have an eligible token."""
        assert self._experts is not None
        assert placement.row_P is not None
        rows_B = tokens.row_N[tokens.on("eligible")].bincount(minlength=tokens.num_rows) > 0
        loss_B = balance_of_rows(
            output.router_logits, placement.row_P, num_rows=tokens.num_rows, chosen=self._experts.chosen
        )
        return TermSum((loss_B * rows_B).sum(), int(rows_B.sum()), "sequence", self.router)

    def probe(self, batch: TokenBatch) -> Tensor:
        """[6] float64 sums over response tokens (order: PROBE_NAMES). Call it under no_grad."""
        tokens = eligible_tokens(batch, batch.token_group_BT >= 0)
        with training_pass():
            statistics = token_statistics(
                self._hidden(self._placed(batch, tokens)),
                tokens.target_N,
                self.project,
                chunk_tokens=self.objective.chunk_tokens,
            )
        sums = []
        for group in (1, 0):
            chosen = tokens.token_group_N == group
            sums += [statistics.nll_N[chosen].sum(), statistics.entropy_N[chosen].sum(), chosen.sum()]
        return torch.stack([s.double() for s in sums])

    def _placed(self, batch: TokenBatch, tokens: EligibleTokens) -> Placement:
        return self._placed_ids(batch.input_ids_BT, tokens, flash=uses_flash(self.model))

    def _placed_ids(self, input_ids_BT: Tensor, tokens: EligibleTokens, *, flash: bool = False) -> Placement:
        return placed(
            input_ids_BT,
            tokens,
            layout=self.layout,
            by_rows=self._by_rows,
            masked=self._masked,
            flash=flash,
            rows=self._experts is not None,
        )

    def _hidden(self, placement: Placement) -> Tensor:
        """[N, D] last hidden states that predict the placed tokens."""
        return placement.states(self._output(placement).last_hidden_state)

    def _output(self, placement: Placement) -> Any:
        further = {} if self._experts is None else {"output_router_logits": True}
        return backbone(self.model)(**placement.inputs, use_cache=False, **further)

    def project(self, hidden_ND: Tensor) -> Tensor:
        return project(self.model, hidden_ND)

    def _fused(self, hidden_ND: Tensor) -> FusedLogProbs | None:
        (reference,) = self._reference
        if not (self.fused_loss and self.objective.log_prob_alone and reference is None):
            return None
        if not has_fused_head(self.model, hidden_ND):
            return None
        return partial(fused_log_probs, self.model, chunk_tokens=self.objective.chunk_tokens)

    @property
    def reference_model(self) -> PreTrainedModel | None:
        """The live reference model if it is separate from the trained model, else None."""
        (reference,) = self._reference
        return reference.model if reference is not None and reference.is_own else None

    def _reference_of(self, placement: Placement) -> FrozenPrediction | None:
        (reference,) = self._reference
        if reference is None:
            return None
        reference.to(placement.index_N.device)
        return FrozenPrediction(placement.states(reference.hidden(**placement.inputs)), reference.project)

    @contextmanager
    def _checking(self) -> Iterator[None]:
        """Eval mode under no_grad, with an attention function that works before training begins.

        Flash attention supports neither float32, the dtype of the weights in mixed precision, nor the CPU, where the models of
        a multi-process run are until training begins.
        """
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), usable_attention(self.model, mixed=True):
                mixed = uses_flash(self.model) and self.model.dtype == torch.float32
                with torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=mixed):
                    yield
        finally:
            self.model.train(was_training)

    def _rounding(self) -> float:
        """Tolerance of the checks for rounding, relative to the largest value."""
        return half_of_the_digits(torch.bfloat16 if uses_flash(self.model) else self.model.dtype)

    def check_head(self) -> None:
        """Raises BadValue if the model's logits are not those of `cft/models/head.py`: a transformation would be missed."""
        ids_BT = torch.arange(1, 9, device=self.model.device)[None] % self.model.config.vocab_size
        with self._checking():
            hidden_BTD = backbone(self.model)(input_ids=ids_BT, use_cache=False).last_hidden_state
            ours = self.project(hidden_BTD[0]).float()
            theirs = self.model(input_ids=ids_BT, use_cache=False).logits[0].float()
        difference = float((ours - theirs).abs().max())
        if not difference <= self._rounding() * float(theirs.abs().max()):
            raise BadValue(
                f"model {type(self.model).__name__}: its logits differ by {difference:.2g} from what cft/models/head.py "
                "computes from its hidden states, so the model scales or caps its logits in another way, and training would "
                "optimize something else. Use another model, or add that step to cft/models/head.py."
            )

    def check_inputs(self) -> None:
        """Raises BadValue if mixed inputs are configured and the model uses its token ids for more than embeddings."""
        if not self.inputs.mixes:
            return
        ids_BT = torch.arange(1, 9, device=self.model.device)[None] % self.model.config.vocab_size
        with self._checking():
            of_ids = backbone(self.model)(input_ids=ids_BT, use_cache=False).last_hidden_state.float()
            try:
                embedded_BTD = embedding_of(self.model)(ids_BT)
                found = backbone(self.model)(inputs_embeds=embedded_BTD, use_cache=False).last_hidden_state.float()
                difference = float((found - of_ids).abs().max())
            except (TypeError, ValueError, AttributeError, NotImplementedError):
                difference = float("nan")
        if not difference <= self._rounding() * float(of_ids.abs().max()):
            raise BadValue(
                f"inputs=mixed: hidden states of {type(self.model).__name__} change by {difference:.2g} when it is given the "
                "embeddings of its tokens instead of their ids, so it uses the ids for more, such as per-layer embeddings "
                "(Gemma 3n), which cannot be mixed here; use inputs=tokens, or another model"
            )

    def check_router(self) -> None:
        """Raises BadValue if a router loss is configured and the model does not return router logits."""
        if self._experts is None:
            return
        ids_BT = torch.arange(1, 9, device=self.model.device)[None] % self.model.config.vocab_size
        with self._checking():
            output = backbone(self.model)(input_ids=ids_BT, use_cache=False, output_router_logits=True)
        found = getattr(output, "router_logits", None) or ()
        if not found or {logits.shape[-1] for logits in found} != {self._experts.number}:
            raise BadValue(
                f"{KEY}={self.router:g}: {type(self.model).__name__} does not return its router logits in this version of "
                f"transformers, and the load-balancing loss is computed from them; {KEY}=0 trains without it"
            )

    def check_layout(self) -> None:
        """Raises BadValue if rows of this model depend on each other or on padding in the layout; tested with two rows."""
        if self.layout == "packed":
            require_packable(self.model.config)
        device = self.model.device
        ids_BT = torch.arange(1, 15, device=device).view(2, 7) % self.model.config.vocab_size
        row_N, position_N = torch.tensor([0, 0, 1, 1, 1], device=device), torch.tensor([1, 4, 2, 5, 6], device=device)
        target_N = ids_BT[row_N, position_N]
        tokens = EligibleTokens(row_N, position_N, target_N, target_N.float(), target_N, {}, 2)
        with self._checking():
            ours_ND = self._hidden(self._placed_ids(ids_BT, tokens)).float()
            alone = [
                backbone(self.model)(input_ids=ids_BT[b : b + 1, :p], use_cache=False).last_hidden_state[0, -1]
                for b, p in zip(row_N.tolist(), position_N.tolist(), strict=True)
            ]
        alone_ND = torch.stack(alone).float()
        difference, size = float((ours_ND - alone_ND).abs().max()), float(alone_ND.abs().max())
        remedy = "compute.layout=padded"
        if self.layout == "padded":
            remedy = "a causal model, whose layers see earlier tokens only"
        if not difference <= self._rounding() * size:
            raise BadValue(
                f"compute.layout={self.layout}: hidden states of {type(self.model).__name__} differ by {difference:.2g} (of "
                f"{size:.2g}) from those of each row alone, so its rows depend on each other or on later tokens; use {remedy}"
            )
