"""The training step: one wrapper around model and objective, and one division by the count of the whole step.

Critical masks are sparse and uneven, so a mean per micro-batch would give a token in a sparse micro-batch many times the
weight of one in a dense one. `training_step` returns a sum. Lightning divides it by accumulate_grad_batches, and DDP
averages over ranks; before the optimizer step, and before clipping, gradients are scaled by

    accumulate_grad_batches * world_size / (count of all micro-batches of the step on all ranks)

which undoes both. A step without an eligible token on any rank leaves the weights alone (gradients None, not zero:
zero gradients would still decay weights).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import (
    PreTrainedModel,
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from cft.errors import BadValue, UserError
from cft.loss import LossSum, Objective, eligible_tokens, token_statistics
from cft.types import TokenBatch

# Sums in the order [nll critical, entropy critical, count critical, nll other, entropy other, count other].
PROBE_NAMES = ("loss_critical", "entropy_critical", "loss_other", "entropy_other")
HEAD_TOLERANCE = 1e-4


class SelectiveLM(nn.Module):
    """Backbone, selection of eligible positions, projection and loss inside one forward (sharded strategies need that)."""

    def __init__(self, model: PreTrainedModel, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: TokenBatch) -> LossSum:
        return self.objective(batch, self.hidden(batch), self.project)

    def probe(self, batch: TokenBatch) -> Tensor:
        """[6] float64 sums over response tokens (order: PROBE_NAMES). Call it without gradient."""
        tokens = eligible_tokens(batch, batch.probe_BT >= 0)
        statistics = token_statistics(
            tokens.hidden(self.hidden(batch)), tokens.target_N, self.project, chunk_tokens=self.objective.chunk_tokens
        )
        sums = []
        for group in (1, 0):
            chosen = tokens.probe_N == group
            sums += [statistics.nll_N[chosen].sum(), statistics.entropy_N[chosen].sum(), chosen.sum()]
        return torch.stack([s.double() for s in sums])

    def hidden(self, batch: TokenBatch) -> Tensor:
        """[B, T, D] last hidden states. Rows are padded on the right, which a causal mask never looks at."""
        position_T = torch.arange(batch.input_ids_BT.shape[1], device=batch.input_ids_BT.device)
        attention_BT = (position_T[None] < batch.lengths_B[:, None]).long()
        backbone = self.model.base_model
        return backbone(input_ids=batch.input_ids_BT, attention_mask=attention_BT, use_cache=False).last_hidden_state

    def project(self, hidden_ND: Tensor) -> Tensor:
        head = self.model.get_output_embeddings()
        assert head is not None, "a causal language model has an output head"
        return head(hidden_ND)

    @torch.no_grad()
    def check_head(self) -> None:
        """Refuse models whose logits are more than head(backbone): soft-caps and scales would be left out silently."""
        was_training = self.model.training
        self.model.eval()
        ids_BT = torch.arange(1, 9, device=self.model.device)[None] % self.model.config.vocab_size
        batch = TokenBatch(
            ids_BT, torch.tensor([8], device=ids_BT.device), ids_BT.float(), ids_BT.to(torch.int8), ("",)
        )
        ours = self.project(self.hidden(batch)).float()
        theirs = self.model(input_ids=ids_BT, use_cache=False).logits.float()
        self.model.train(was_training)
        difference = float((ours - theirs).abs().max())
        if difference > HEAD_TOLERANCE * max(1.0, float(theirs.abs().max())):
            raise BadValue(
                f"model {type(self.model).__name__}: its logits differ by {difference:.2g} from head(backbone), so it "
                "scales or caps them; training it here would optimise something else. Use a model without such a step."
            )


class TrainingDiverged(UserError, FloatingPointError):
    """The loss of a step is NaN or infinite; raised before the optimizer moves."""


class CausalLMModule(pl.LightningModule):
    """optimizer: parameters -> Optimizer. schedule: see conf/train.yaml. probe_every_n_steps: 0 = never."""

    _window: Tensor  # [sum, count] of the optimizer step under way, this rank
    _validation: Tensor  # [sum, count, probe sums] of the validation under way, this rank

    def __init__(
        self,
        model: PreTrainedModel,
        objective: Objective,
        *,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        schedule: Literal["cosine", "linear", "constant"],
        warmup_fraction: float,
        probe_every_n_steps: int,
    ) -> None:
        super().__init__()
        self.lm = SelectiveLM(model, objective)
        self.lm.check_head()
        self.build_optimizer = optimizer
        self.schedule, self.warmup_fraction = schedule, warmup_fraction
        self.probe_every_n_steps = probe_every_n_steps
        self.register_buffer("_window", torch.zeros(2, dtype=torch.float64), persistent=False)
        self.register_buffer("_validation", torch.zeros(8, dtype=torch.float64), persistent=False)

    # ---- training

    def on_fit_start(self) -> None:
        # from_pretrained gives eval mode and Lightning keeps it: dropout would stay off without this.
        self.lm.train()

    def on_train_epoch_start(self) -> None:
        if not self.lm.model.training:
            raise RuntimeError("the model is in eval mode at the start of a training epoch: dropout would be off")

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        if self._probe_due(batch_idx):
            # In eval mode: measured without dropout, and its random numbers stay those of the training step.
            self.lm.eval()
            with torch.no_grad():
                values = _probe_values("train", self._reduced(self.lm.probe(batch)))
            self.lm.train()
            # Not self.log: Lightning would repeat the values on every step until the next probe.
            for logger in self.loggers:
                logger.log_metrics(values, step=self.global_step)
        loss = self.lm(batch)
        self._window += torch.stack([loss.sum.detach().double(), loss.count])
        return loss.sum

    def _probe_due(self, batch_idx: int) -> bool:
        every, accumulate = self.probe_every_n_steps, self.trainer.accumulate_grad_batches
        return every > 0 and self.global_step % every == 0 and batch_idx % accumulate == 0

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        total, count = self._reduced(self._window).tolist()
        self._window.zero_()
        if not math.isfinite(total):
            raise TrainingDiverged(
                f"step {self.global_step}: the loss is {total}; nothing of this step was applied. Lower optimizer.lr "
                f"(now {optimizer.param_groups[0]['lr']:g}), or go on from the last checkpoint with another batch order "
                "(seed=...)"
            )
        if count == 0:
            for parameter in self.parameters():
                parameter.grad = None
            self.log("train/empty_steps", 1.0, on_step=True, reduce_fx="sum")
            return
        scale = self.trainer.accumulate_grad_batches * self.trainer.world_size / count
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
        self.log("train/loss", total / count, prog_bar=True)
        self.log("train/loss_tokens", count)

    def configure_optimizers(self) -> Any:
        optimizer = self.build_optimizer([p for p in self.parameters() if p.requires_grad])
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = round(self.warmup_fraction * steps)
        if self.schedule == "cosine":
            scheduler = get_cosine_schedule_with_warmup(optimizer, warmup, steps)
        elif self.schedule == "linear":
            scheduler = get_linear_schedule_with_warmup(optimizer, warmup, steps)
        else:
            scheduler = get_constant_schedule_with_warmup(optimizer, warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ---- validation

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        loss = self.lm(batch)
        own = torch.stack([loss.sum.double(), loss.count])
        self._validation += torch.cat([own, self.lm.probe(batch)])

    def on_validation_epoch_end(self) -> None:
        sums = self._reduced(self._validation)
        self._validation.zero_()
        if sums[1] > 0:
            self.log("val/loss", float(sums[0] / sums[1]), prog_bar=True)
        self.log_dict(_probe_values("val", sums[2:]))

    def _reduced(self, sums: Tensor) -> Tensor:
        """Sum over all ranks, on every rank."""
        return self.trainer.strategy.reduce(sums.clone(), reduce_op="sum")  # type: ignore[return-value]


def _probe_values(split: str, sums: Tensor) -> dict[str, float]:
    """Means from the sums of SelectiveLM.probe; a group without tokens has none."""
    (nll_critical, entropy_critical, critical), (nll_other, entropy_other, other) = sums.view(2, 3).tolist()
    totals = ((nll_critical, critical), (entropy_critical, critical), (nll_other, other), (entropy_other, other))
    return {f"{split}/{name}": total / n for name, (total, n) in zip(PROBE_NAMES, totals, strict=True) if n}
