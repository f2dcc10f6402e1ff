"""The training step: sums of the objective's terms, each divided once by its count over the whole optimizer step.

Critical masks are sparse and uneven, so a mean per micro-batch would give a token in a sparse micro-batch many times the
weight of one in a dense one. Masks are static, so the sampler knows the counts of a step over all its micro-batches and
ranks beforehand (`TokenBatch.step_counts`), and `training_step` returns

    accumulate_grad_batches * world_size * sum over terms of  coefficient * sum / count of the whole step

where the first two undo Lightning's division and DDP's mean. Before the optimizer moves, the counts that were seen must be
the expected counts. A step without an eligible token on any rank leaves the weights alone (gradients None, not
zero: zero gradients would still decay weights).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import (
    PreTrainedModel,
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from cft.inputs import Inputs, Mixed
from cft.losses.normalizer import TermSum
from cft.losses.objective import Objective
from cft.models import kernels
from cft.models.hashes import hash_of
from cft.references.models import LiveReference
from cft.training.calibration import share_thresholds
from cft.training.callbacks.guards import gradient_norm, require_finite
from cft.training.checkpointing.checkpoints import CheckpointError
from cft.training.checkpointing.position import step_is_done
from cft.training.distributed.sharding import FullySharded, is_sharded, shard, shard_frozen, sum_over_replicas
from cft.training.distributed.weights import FirstRanksWeights, is_empty
from cft.training.layout import Layout
from cft.training.parameter_groups import Groups, OptimizerFactory, freeze, optimizer_of
from cft.training.selective_lm import PROBE_NAMES, SelectiveLM
from cft.types import StepCounts, TokenBatch

# val/loss is of the objective that training ends with: under a schedule's coefficients of the moment two epochs would be
# measured with two objectives, and the best one be chosen by the schedule.
_VALIDATED_AT = 1.0
FROZEN = "frozen_sha256"  # in the checkpoint
GROUPED = "parameter_groups"
EXAMPLE_STATE = "example_state"


class CausalLMModule(pl.LightningModule):
    """optimizer: parameters, or groups of them -> Optimizer. groups: see `cft/training/parameter_groups.py`. schedule: see
    conf/train.yaml. probe_every_n_steps: 0 = never. inputs, layout, fused_loss, router: see `SelectiveLM`. examples: groups of
    rows that are trained on, where the loss keeps a state of each (`cft/losses/example_state.py`).

    Raises ConfigError where a group is about no parameter of the model, or two are about one."""

    _window: Tensor  # [terms, 2] sum and count of the optimizer step under way, this rank
    _validation: Tensor  # [terms, 2] of the validation under way, this rank
    _probes: Tensor  # [6] probe sums of the validation under way, this rank

    def __init__(
        self,
        model: PreTrainedModel,
        objective: Objective,
        *,
        optimizer: OptimizerFactory,
        groups: Groups | None = None,
        schedule: Literal["cosine", "linear", "constant"],
        warmup_fraction: float,
        probe_every_n_steps: int,
        inputs: Inputs | None = None,
        reference: LiveReference | None = None,
        layout: Layout = "packed",
        fused_loss: bool = False,
        router: float = 0.0,
        examples: int = 0,
    ) -> None:
        super().__init__()
        if objective.state is not None:
            objective.state.begin(examples)
        self.lm = SelectiveLM(
            model, objective, inputs=inputs, reference=reference, layout=layout, fused_loss=fused_loss, router=router
        )
        if not is_empty(model):  # the first process looks for all
            self.lm.check_inputs()
            self.lm.check_head()
            self.lm.check_layout()
            self.lm.check_router()
        self.of_inputs = self.lm.inputs.prepare(model)  # may freeze the embeddings
        self.groups = groups or {}
        self.assigned = freeze(model, self.groups)
        self.strict_loading = not frozen_names(self)  # where not, `on_load_checkpoint` looks at what is there
        self.build_optimizer = optimizer
        self.schedule, self.warmup_fraction = schedule, warmup_fraction
        self.probe_every_n_steps = probe_every_n_steps
        self._expected = StepCounts()
        self._frozen: str | None = None
        self._configured = False
        self._norm: Tensor | None = None  # of the gradient of the step under way
        terms = len(self.lm.names)
        self.register_buffer("_window", torch.zeros(terms, 2, dtype=torch.float64), persistent=False)
        self.register_buffer("_validation", torch.zeros(terms, 2, dtype=torch.float64), persistent=False)
        self.register_buffer("_probes", torch.zeros(6, dtype=torch.float64), persistent=False)

    # ---- checkpoints: what is frozen is the model that is loaded anyway, or the base model under adapters

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.assigned:
            checkpoint[GROUPED] = self.assigned.names()
        if (state := self.lm.objective.state) is not None:
            checkpoint[EXAMPLE_STATE] = state.saved()
        if frozen := frozen_names(self):
            checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}
            checkpoint[FROZEN] = self._frozen_hash()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if (state := self.lm.objective.state) is not None:
            state.load(checkpoint[EXAMPLE_STATE])
        here = self.assigned.names() if self.assigned else {}
        if (there := checkpoint.get(GROUPED, {})) != here:
            before, now = ({(group, name) for group, names in of.items() for name in names} for of in (there, here))
            then, instead = (
                ", ".join(f"{name} in {group}" for group, name in sorted(only)[:3]) or "none"
                for only in (before - now, now - before)
            )
            raise CheckpointError(
                f"resume: the run began with other parameters in its groups (then {then}; now {instead}); repeat its "
                "optimizer.groups with the model that it began with, or start a new run"
            )
        if not (frozen := frozen_names(self)):
            return
        found, wanted = checkpoint["state_dict"].keys(), {*self.state_dict()} - frozen
        if found != wanted:
            raise RuntimeError(
                f"the checkpoint holds other weights than are trained here: {sorted(found ^ wanted)[:6]}"
            )
        hashes = checkpoint.get(FROZEN), self._frozen_hash()
        if "" not in hashes and hashes[0] != hashes[1]:
            raise CheckpointError(
                "resume: what is not trained (the base model under the adapters, parameters with lr_multiplier 0) is another "
                "than what the run began with; bring back the files of model.path, or start a new run"
            )

    def _frozen_hash(self) -> str:
        """Of the frozen weights, once; "" where they are shared out over ranks."""
        if self._frozen is None:
            frozen = frozen_names(self)
            weights = {name: tensor for name, tensor in self.state_dict().items() if name in frozen}
            self._frozen = "" if is_sharded(self) else hash_of(weights)
        return self._frozen

    # ---- training

    def configure_model(self) -> None:
        # The hook runs once the processes know of each other.
        if self._configured:
            return
        self._configured = True
        strategy, frozen = self.trainer.strategy, self.lm.reference_model
        weights: list[FirstRanksWeights | None] = [None, None]
        if self.trainer.world_size > 1:
            share_thresholds(self.lm.objective)
            parts, device = (self.lm, frozen), strategy.root_device
            weights = [FirstRanksWeights(part, device=device) if part is not None else None for part in parts]
        if self.device_mesh is not None:  # set by a strategy that shares out the weights
            replicas = strategy.replicas if isinstance(strategy, FullySharded) else 1
            mixed = self.trainer.precision == "bf16-mixed"
            shard(self.lm, self.lm.model, self.device_mesh, weights=weights[0], replicas=replicas, mixed=mixed)
            if frozen is not None:
                shard_frozen(frozen, self.device_mesh, weights=weights[1], replicas=replicas)
        else:
            for part, its_weights in zip((self.lm, frozen), weights, strict=True):
                if part is not None and its_weights is not None:
                    its_weights.fill(part)

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
        terms = self.lm(batch, progress=self._progress(), mixed=True)
        self._window += _sums(terms, self._window)
        self._expected = batch.step_counts
        scale = self.trainer.accumulate_grad_batches * self.trainer.world_size
        return torch.stack([term.mean(batch.step_counts) for term in terms]).sum() * scale

    def _progress(self) -> float:
        """Share of the optimizer steps that are done, 0-1: what coefficients are scheduled by."""
        steps = self.trainer.estimated_stepping_batches
        return min(1.0, self.global_step / steps) if 0 < steps < math.inf else 0.0

    def _probe_due(self, batch_idx: int) -> bool:
        every, accumulate = self.probe_every_n_steps, self.trainer.accumulate_grad_batches
        return every > 0 and self.global_step % every == 0 and batch_idx % accumulate == 0

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if isinstance(self.trainer.strategy, FullySharded):
            sum_over_replicas(self.lm, last=step_is_done(self.trainer))
        with kernels.backward_pass(keep_gradients=self._keeps_gradients()):
            loss.backward(*args, **kwargs)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        optimizer.zero_grad(set_to_none=not self._keeps_gradients())

    def _keeps_gradients(self) -> bool:
        alone = isinstance(self.trainer.strategy, SingleDeviceStrategy)
        return kernels.keeps_gradients(self.device, alone=alone)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        window = self._reduced(self._window)
        self._window.zero_()
        if (state := self.lm.objective.state) is not None:
            state.commit(self._reduced, device=self.device)
        sums, counts = window[:, 0].tolist(), [round(count) for count in window[:, 1].tolist()]
        self._norm = gradient_norm(self.parameters())
        rate = max(group["lr"] for group in optimizer.param_groups)
        require_finite(self, loss=sum(sums), norm=float(self._norm), step=self.global_step, learning_rate=rate)
        expected = [getattr(self._expected, of) for of in self.lm.divisors]
        if counts != expected:
            raise RuntimeError(
                f"step {self.global_step}: the sampler expected {expected} tokens or rows to divide the loss by, the "
                f"micro-batches held {counts}; the step would be weighted wrongly. Micro-batches were dropped or repeated: "
                "expected every one of the sampler's, as with limit_train_batches=1.0"
            )
        if not any([self._expected.eligible, *counts[1:]]):
            for parameter in self.parameters():
                parameter.grad = None
            self._norm = None
            self.log("train/empty_steps", 1.0, on_step=True, reduce_fx="sum")
            return
        self.log("train/loss", self._total(sums, counts, progress=self._progress()), prog_bar=True)
        self.log("train/loss_tokens", float(counts[0]))
        self.log("train/gradient_norm", float(self._norm))
        if isinstance(inputs := self.lm.inputs, Mixed):
            self.log("train/mix", inputs.mix(self._progress()))
        self.log_dict(self._measured("train", sums, counts))
        for name, total, count in zip(self.lm.names[1:], sums[1:], counts[1:], strict=True):
            if name not in self.lm.objective.measures:
                # In a place of their own: whatever a regularizer is called, no other metric has that name.
                self.log(f"train/term/{name}", total / max(1, count))

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """With the norm that the guard computed, instead of a second pass over the gradients."""
        if gradient_clip_algorithm == "value":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val and self._norm is not None:
            torch.nn.utils.clip_grads_with_norm_(list(self.parameters()), gradient_clip_val, self._norm)

    def _total(self, sums: list[float], counts: list[int], *, progress: float) -> float:
        """The loss: every term's mean times its coefficient then."""
        coefficients = self.lm.coefficients(progress)
        return sum(c * s / max(1, n) for c, s, n in zip(coefficients, sums, counts, strict=True))

    def _measured(self, split: str, sums: list[float], counts: list[int]) -> dict[str, float]:
        """Means of what the loss measures beside itself."""
        found = dict(zip(self.lm.names, zip(sums, counts, strict=True), strict=True))
        measured = {name: found[name] for name in self.lm.objective.measures}
        return {f"{split}/{name}": total / count for name, (total, count) in measured.items() if count}

    def configure_optimizers(self) -> Any:
        if self.assigned:
            optimizer = optimizer_of(self.build_optimizer, self.assigned, self.groups, model=self.lm.model)
        else:
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
        self._validation += _sums(self.lm(batch, progress=_VALIDATED_AT), self._validation)
        self._probes += self.lm.probe(batch)

    def on_validation_epoch_end(self) -> None:
        window, probes = self._reduced(self._validation), self._reduced(self._probes)
        self._validation.zero_()
        self._probes.zero_()
        sums, counts = window[:, 0].tolist(), [round(count) for count in window[:, 1].tolist()]
        if counts[0] > 0:
            self.log("val/loss", self._total(sums, counts, progress=_VALIDATED_AT), prog_bar=True)
        self.log_dict(self._measured("val", sums, counts))
        self.log_dict(_probe_values("val", probes))

    def _reduced(self, sums: Tensor) -> Tensor:
        """Sum over all ranks, on every rank."""
        return self.trainer.strategy.reduce(sums.clone(), reduce_op="sum")  # type: ignore[return-value]


def frozen_names(module: nn.Module) -> set[str]:
    """Weights that no step changes: the base model under adapters, parameters whose group is frozen."""
    return {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}


def _sums(terms: tuple[TermSum, ...], like: Tensor) -> Tensor:
    """[terms, 2] sum and count of each, without gradient."""
    return torch.stack([torch.stack([t.sum.detach().to(like), like.new_tensor(t.count)]) for t in terms])


def _probe_values(split: str, sums: Tensor) -> dict[str, float]:
    """Means from the sums of SelectiveLM.probe; a group without tokens has none."""
    (nll_critical, entropy_critical, critical), (nll_other, entropy_other, other) = sums.view(2, 3).tolist()
    totals = ((nll_critical, critical), (entropy_critical, critical), (nll_other, other), (entropy_other, other))
    return {f"{split}/{name}": total / n for name, (total, n) in zip(PROBE_NAMES, totals, strict=True) if n}
