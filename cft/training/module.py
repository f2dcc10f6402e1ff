"""The training step: sums of the objective's terms, each divided once by its count over the whole optimizer step.

Critical masks are sparse and uneven, so a mean per micro-batch would give a token in a sparse micro-batch many times the
weight of one in a dense micro-batch. Masks are static, so the sampler knows the counts of a step over all its micro-batches
and ranks in advance (`TokenBatch.step_counts`), and `training_step` returns

    accumulate_grad_batches * world_size * sum over terms of  coefficient * sum / count of the whole step

where the first two factors undo Lightning's division and DDP's mean. Before the optimizer step, the accumulated counts must
equal the expected counts. A step without an eligible token on any rank leaves the weights unchanged (gradients are None, not
zero: with zero gradients, weight decay would still apply).
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

# val/loss uses the coefficients of the end of training: with the current coefficients of a schedule, epochs would be measured
# with different objectives, and the schedule would decide which epoch is the best.
_VALIDATED_AT = 1.0
FROZEN = "frozen_sha256"  # checkpoint keys
GROUPED = "parameter_groups"
EXAMPLE_STATE = "example_state"


class CausalLMModule(pl.LightningModule):
    """Lightning module of a causal language model under an objective.

    Args:
        model: the causal language model.
        objective: the training objective.
        optimizer: parameters, or groups of them -> Optimizer.
        groups: parameter groups by name, see `cft/training/parameter_groups.py`.
        schedule: learning-rate schedule, see conf/train.yaml.
        warmup_fraction: fraction of the optimizer steps with linear warmup, 0-1.
        probe_every_n_steps: optimizer steps between two probes (loss and entropy by token group); 0 = never.
        inputs: see `SelectiveLM`.
        reference: see `SelectiveLM`.
        layout: see `SelectiveLM`.
        fused_loss: see `SelectiveLM`.
        router: see `SelectiveLM`.
        examples: number of training examples (groups of rows), for a loss that keeps a state per example
            (`cft/losses/example_state.py`).

    Raises:
        ConfigError: a parameter group matches no parameter of the model, or two groups match the same one.
    """

    _window: Tensor  # [terms, 2] accumulated sum and count of the current optimizer step, this rank
    _validation: Tensor  # [terms, 2] accumulated sum and count of the current validation, this rank
    _probes: Tensor  # [6] probe sums of the current validation, this rank

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
        if not is_empty(model):  # only rank 0 has weights to check
            self.lm.check_inputs()
            self.lm.check_head()
            self.lm.check_layout()
            self.lm.check_router()
        self.of_inputs = self.lm.inputs.prepare(model)  # may freeze the embeddings
        self.groups = groups or {}
        self.assigned = freeze(model, self.groups)
        self.strict_loading = not frozen_names(self)  # otherwise `on_load_checkpoint` checks the keys
        self.build_optimizer = optimizer
        self.schedule, self.warmup_fraction = schedule, warmup_fraction
        self.probe_every_n_steps = probe_every_n_steps
        self._expected = StepCounts()
        self._frozen: str | None = None
        self._configured = False
        self._norm: Tensor | None = None  # gradient norm of the current step
        terms = len(self.lm.names)
        self.register_buffer("_window", torch.zeros(terms, 2, dtype=torch.float64), persistent=False)
        self.register_buffer("_validation", torch.zeros(terms, 2, dtype=torch.float64), persistent=False)
        self.register_buffer("_probes", torch.zeros(6, dtype=torch.float64), persistent=False)

    # ---- checkpoints: frozen weights are not saved, since they are loaded from model.path

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
                f"resume: the run started with other parameters in its groups (then {then}; now {instead}); use the same "
                "optimizer.groups and the same model, or start a new run"
            )
        if not (frozen := frozen_names(self)):
            return
        found, wanted = checkpoint["state_dict"].keys(), {*self.state_dict()} - frozen
        if found != wanted:
            raise RuntimeError(
                f"the weights in the checkpoint are not those trained here; they differ in {sorted(found ^ wanted)[:6]}"
            )
        hashes = checkpoint.get(FROZEN), self._frozen_hash()
        if "" not in hashes and hashes[0] != hashes[1]:
            raise CheckpointError(
                "resume: the frozen weights (the base model of adapters, parameters with lr_multiplier 0) differ from those "
                "the run started with; restore the files of model.path, or start a new run"
            )

    def _frozen_hash(self) -> str:
        """Hash of the frozen weights, computed once; "" if they are sharded."""
        if self._frozen is None:
            frozen = frozen_names(self)
            weights = {name: tensor for name, tensor in self.state_dict().items() if name in frozen}
            self._frozen = "" if is_sharded(self) else hash_of(weights)
        return self._frozen

    # ---- training

    def configure_model(self) -> None:
        # Lightning calls this hook after the process group is initialized.
        if self._configured:
            return
        self._configured = True
        strategy, frozen = self.trainer.strategy, self.lm.reference_model
        weights: list[FirstRanksWeights | None] = [None, None]
        if self.trainer.world_size > 1:
            share_thresholds(self.lm.objective)
            parts, device = (self.lm, frozen), strategy.root_device
            weights = [FirstRanksWeights(part, device=device) if part is not None else None for part in parts]
        if self.device_mesh is not None:  # set by strategies that shard the weights
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
        # from_pretrained returns the model in eval mode and Lightning keeps it: without this, dropout would stay off.
        self.lm.train()

    def on_train_epoch_start(self) -> None:
        if not self.lm.model.training:
            raise RuntimeError("the model is in eval mode at the start of a training epoch: dropout would be off")

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        if self._probe_due(batch_idx):
            # In eval mode, the probe measures without dropout and consumes none of the training step's random numbers.
            self.lm.eval()
            with torch.no_grad():
                values = _probe_values("train", self._reduced(self.lm.probe(batch)))
            self.lm.train()
            # Not self.log: Lightning would log the same values at every step until the next probe.
            for logger in self.loggers:
                logger.log_metrics(values, step=self.global_step)
        terms = self.lm(batch, progress=self._progress(), mixed=True)
        self._window += _sums(terms, self._window)
        self._expected = batch.step_counts
        scale = self.trainer.accumulate_grad_batches * self.trainer.world_size
        return torch.stack([term.mean(batch.step_counts) for term in terms]).sum() * scale

    def _progress(self) -> float:
        """Fraction of the optimizer steps that are done, 0-1; the input of coefficient schedules."""
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
                f"step {self.global_step}: the sampler expected to divide the loss by {expected} tokens or rows, but the "
                f"micro-batches held {counts}, so the step would be weighted wrongly. Micro-batches were dropped or repeated: "
                "expected all micro-batches of the sampler, as with limit_train_batches=1.0"
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
                # Under their own prefix, so that a regularizer's name cannot collide with another metric.
                self.log(f"train/term/{name}", total / max(1, count))

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip with the norm that the finite check computed, instead of a second pass over the gradients."""
        if gradient_clip_algorithm == "value":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val and self._norm is not None:
            torch.nn.utils.clip_grads_with_norm_(list(self.parameters()), gradient_clip_val, self._norm)

    def _total(self, sums: list[float], counts: list[int], *, progress: float) -> float:
        """The loss: the sum over terms of coefficient * mean, with the coefficients at `progress`."""
        coefficients = self.lm.coefficients(progress)
        return sum(c * s / max(1, n) for c, s, n in zip(coefficients, sums, counts, strict=True))

    def _measured(self, split: str, sums: list[float], counts: list[int]) -> dict[str, float]:
        """Means of the additional measures of the loss."""
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
    """Names of the frozen weights: the base model of adapters, and the parameters of frozen groups."""
    return {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}


def _sums(terms: tuple[TermSum, ...], like: Tensor) -> Tensor:
    """[terms, 2] sum and count of each term, without gradient."""
    return torch.stack([torch.stack([t.sum.detach().to(like), like.new_tensor(t.count)]) for t in terms])


def _probe_values(split: str, sums: Tensor) -> dict[str, float]:
    """Means from the sums of SelectiveLM.probe; token groups without tokens are omitted."""
    (nll_critical, entropy_critical, critical), (nll_other, entropy_other, other) = sums.view(2, 3).tolist()
    totals = ((nll_critical, critical), (entropy_critical, critical), (nll_other, other), (entropy_other, other))
    return {f"{split}/{name}": total / n for name, (total, n) in zip(PROBE_NAMES, totals, strict=True) if n}
