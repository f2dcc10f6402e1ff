"""Greedy accuracy on held-out problems at each validation.

The annotated rows are problems that the base model solved, so it is right on them by construction. The best epoch must be
chosen on problems that were not selected this way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import lightning.pytorch as pl
import torch
from transformers import PreTrainedModel

from cft.evaluation.evaluation import SampleRequest, Solver
from cft.training.callbacks.interruption import Interruption
from cft.training.distributed.sharding import whole_model
from cft.types import GREEDY_SAMPLE, Outcome, Problem


class GreedyAccuracy(pl.Callback):
    """Logs val/accuracy, 0-1. Problems are distributed over the ranks by position, and counts are summed.

    A sharded model is gathered on every rank first.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        make_solver: Callable[[PreTrainedModel], Solver],
        interruption: Interruption,
        *,
        max_new_tokens: int,
    ) -> None:
        self.problems = problems
        self.make_solver = make_solver
        self.interruption = interruption
        self.request = SampleRequest(0, 0.0, 1.0, 0, max_new_tokens)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        own = self.problems[trainer.global_rank :: trainer.world_size]
        model = whole_model(pl_module.lm.model)  # type: ignore[union-attr]
        right = self.interruption.unless_asked(lambda: self._right(model, own), otherwise=0)
        self.interruption.stop_if_agreed(trainer)
        counts = torch.tensor([right, len(own)], dtype=torch.float64, device=pl_module.device)
        total_right, total = trainer.strategy.reduce(counts, reduce_op="sum").tolist()  # type: ignore[union-attr]
        pl_module.log("val/accuracy", total_right / total, prog_bar=True)

    def _right(self, model: PreTrainedModel, problems: Sequence[Problem]) -> int:
        if not problems:
            return 0
        samples = self.make_solver(model).solve(problems, request=self.request, title="Validating")
        return sum(s.outcome == Outcome.RIGHT for s in samples if s.sample == GREEDY_SAMPLE)
