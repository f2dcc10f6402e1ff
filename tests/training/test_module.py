"""One division by the global count: the same gradients however a step is split over micro-batches and processes."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.optim import Optimizer

from cft.data.batches import GlobalOrderSampler, RowDataset, TokenRow
from cft.errors import BadValue
from cft.losses.aggregation import TokenMean, WorstGroup
from cft.losses.coefficient import Coefficient
from cft.losses.normalizer import Normalizer
from cft.losses.objective import Objective
from cft.losses.regularizers import Regularizer
from cft.losses.token import NLL
from cft.training.callbacks.guards import TrainingDiverged
from tests import gradient_driver
from tests.fakes import exact_llama, random_llama
from tests.gradient_driver import EPOCHS, Recorder, rows, run
from tests.objectives import sft
from tests.precision import ROUNDING, assert_same, float64_training
from tests.two_ranks import on_two_ranks

STEPS = 2 * EPOCHS  # 13 rows, 8 a step
CLOSE = {"rel": ROUNDING, "abs": 0.0}


pytestmark = pytest.mark.numerics


def assert_equal_gradients(found: list[torch.Tensor | None], expected: list[torch.Tensor | None]) -> None:
    assert len(found) == len(expected) == STEPS
    for one, other in zip(found, expected, strict=True):
        assert one is not None
        assert other is not None
        assert_same(one, other)


@pytest.fixture(scope="module")
def one_big_batch() -> list[torch.Tensor | None]:
    return run(world=1, accumulate=1, batch=8)[0]


@pytest.mark.parametrize(("accumulate", "batch"), [(4, 2), (8, 1), (2, 4)])
def test_accumulation_equals_one_big_batch(
    one_big_batch: list[torch.Tensor | None], accumulate: int, batch: int
) -> None:
    assert_equal_gradients(run(world=1, accumulate=accumulate, batch=batch)[0], one_big_batch)


def test_two_processes_equal_one_big_batch(one_big_batch: list[torch.Tensor | None], tmp_path: Path) -> None:
    out = tmp_path / "gradients.pt"
    on_two_ranks(gradient_driver.save_gradients, out, 2, 2, 2)
    assert_equal_gradients(torch.load(out, weights_only=True), one_big_batch)


@pytest.mark.parametrize("normalizer", ["response", "sequence"])
def test_other_normalizers_do_not_depend_on_the_split_either(normalizer: Normalizer) -> None:
    whole = run(world=1, accumulate=1, batch=8, normalizer=normalizer)[0]
    assert_equal_gradients(run(world=1, accumulate=4, batch=2, normalizer=normalizer)[0], whole)


@pytest.mark.usefixtures("in_float64")
def test_gradient_is_the_mean_over_the_eligible_tokens_of_the_step() -> None:
    """Against a plain loop over rows that shares nothing with the module but the model."""
    recorded, module, trainer = run(world=1, accumulate=4, batch=2, optimizer=partial(torch.optim.SGD, lr=0.0))
    sampler = trainer.train_dataloader.sampler  # type: ignore[union-attr]
    sampler.set_epoch(EPOCHS - 1)
    order, data = sampler.order().tolist(), rows()
    for step, chosen in ((STEPS - 2, order[:8]), (STEPS - 1, order[8:])):
        module.zero_grad()
        total, count = torch.zeros(()), 0
        for i in chosen:
            ids = torch.tensor(data[i].ids)
            logprob = module.lm.model(input_ids=ids[None]).logits[0].log_softmax(-1)
            for t in range(1, len(ids)):
                if data[i].weight[t] > 0:
                    total, count = total - logprob[t - 1, ids[t]], count + 1
        (total / count).backward()
        expected = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
        assert_same(recorded[step], expected)


def test_a_micro_batch_that_was_dropped_is_noticed() -> None:
    """The sum would be divided by tokens that were never seen."""

    class Lossy(Recorder):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            if batch_idx == 1:
                self._window -= 1
            return loss

    with pytest.raises(RuntimeError, match="the sampler expected"):
        run(world=1, accumulate=4, batch=2, module_class=Lossy)


class MeanOfMeans(Recorder):
    """The mistake: every micro-batch divided by its own count."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        (loss,) = self.lm(batch)
        return loss.sum / max(1, loss.count)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        pass


def test_a_mean_of_means_would_be_noticed(one_big_batch: list[torch.Tensor | None]) -> None:
    found = run(world=1, accumulate=4, batch=2, module_class=MeanOfMeans)[0]
    assert found[0] is not None
    assert one_big_batch[0] is not None
    error = float((found[0] - one_big_batch[0]).norm() / one_big_batch[0].norm())
    assert error > 0.1


def test_a_step_without_eligible_tokens_moves_nothing() -> None:
    """Zero gradients would still decay the weights; None leaves them alone."""
    decaying = partial(torch.optim.AdamW, lr=0.1, weight_decay=0.5)
    data = rows(empty=tuple(range(13)))
    recorded, module, _ = run(world=1, accumulate=4, batch=2, data=data, optimizer=decaying)
    assert recorded == [None] * STEPS
    fresh = exact_llama(spread=0.1)
    for found, expected in zip(module.lm.model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_the_model_is_in_training_mode() -> None:
    modes: list[bool] = []

    class Modes(Recorder):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            modes.append(self.lm.model.training)
            return super().training_step(batch, batch_idx)

    run(world=1, accumulate=4, batch=2, module_class=Modes)
    assert modes
    assert all(modes)


def test_training_metrics_are_split_every_n_steps_and_not_repeated(tmp_path: Path) -> None:
    run(world=1, accumulate=4, batch=2, logger=CSVLogger(tmp_path, name="", version=""))
    with (tmp_path / "metrics.csv").open() as handle:
        logged = list(csv.DictReader(handle))
    for name in ("loss_critical", "entropy_critical", "loss_other", "entropy_other"):
        steps = [int(line["step"]) for line in logged if line[f"train/{name}"]]
        assert steps == [0, 2], name  # probe_every_n_steps=2 of 4 steps
    assert len([line for line in logged if line["train/loss"]]) == STEPS


def scheduled(name: str = "others") -> Objective:
    """Plain fine-tuning of the critical tokens and, from 0 to 3 over the run, that of the others."""
    rising = Coefficient(initial=0.0, final=3.0, shape="linear")
    return sft(regularizers={name: Regularizer(where="other", token_loss=NLL(), coefficient=rising)})


def standing_still(
    objective: Objective, folder: Path, data: list[TokenRow] | None = None
) -> tuple[Recorder, dict[str, list[float]]]:
    """Three epochs of one step, all rows in two micro-batches, at a learning rate of 0: the model stays what it was. Also
    what was logged, by name."""

    class Validated(gradient_driver.Rows):
        def val_dataloader(self) -> Any:
            return self.train_dataloader()

    module = Recorder(
        model=exact_llama(spread=0.1),
        objective=objective,
        optimizer=partial(torch.optim.SGD, lr=0.0),
        schedule="constant",
        warmup_fraction=0.0,
        probe_every_n_steps=1,
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        accumulate_grad_batches=2,
        use_distributed_sampler=False,
        logger=CSVLogger(folder, name="", version=""),
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with float64_training():
        trainer.fit(module, datamodule=Validated(7, data or rows()))
    with (folder / "metrics.csv").open() as handle:
        lines = list(csv.DictReader(handle))
    return module, {name: [float(line[name]) for line in lines if line[name]] for name in lines[0]}


def test_every_step_has_the_coefficients_of_its_progress(tmp_path: Path) -> None:
    """0, 1 and 2, in the gradient and in what is logged; the probe measures both parts by a way of its own."""
    module, logged = standing_still(scheduled(), tmp_path)
    critical, others = logged["val/loss_critical"][0], logged["val/loss_other"][0]
    assert logged["train/term/others"] == pytest.approx([others] * 3, **CLOSE)
    assert logged["train/loss"] == pytest.approx([critical + k * others for k in (0, 1, 2)], **CLOSE)
    first, second, third = (g for g in module.recorded if g is not None)
    assert float((second - first).abs().max()) > 1e-3
    assert_same(third - first, 2 * (second - first))


def test_every_validation_is_of_the_objective_that_training_ends_with(tmp_path: Path) -> None:
    """The model stands still, so its loss does: else the schedule would choose the best epoch."""
    logged = standing_still(scheduled(), tmp_path)[1]
    critical, others = logged["val/loss_critical"][0], logged["val/loss_other"][0]
    assert logged["val/loss"] == pytest.approx([critical + 3 * others] * 3, **CLOSE)


def test_a_share_that_decays_does_not_choose_the_best_epoch(tmp_path: Path) -> None:
    """SFT-GO's share of the worse group falls to 0: what is validated is the mean of all tokens."""
    data = [
        TokenRow(
            r.row_id,
            r.ids,
            (r.token_group >= 0).astype(np.float32),
            r.token_group,
            {"group": (r.token_group > 0).astype(np.float32)},
        )
        for r in rows()
    ]
    share = Coefficient(initial=0.9, final=0.0, shape="linear")
    validated = [
        standing_still(sft(normalizer="sequence", aggregation=aggregation), tmp_path / str(i), data)[1]["val/loss"]
        for i, aggregation in enumerate((WorstGroup(weight=share), TokenMean()))
    ]
    assert validated[0] == pytest.approx(validated[1], **CLOSE)
    assert len(set(validated[0])) == 1


@pytest.mark.parametrize("name", ["loss_critical", "gradient_norm"])
def test_a_regularizer_may_be_called_like_another_metric(name: str, tmp_path: Path) -> None:
    plain = standing_still(scheduled(), tmp_path / "plain")[1]
    found = standing_still(scheduled(name), tmp_path / "found")[1]
    assert {key.replace(f"term/{name}", "term/others"): values for key, values in found.items()} == plain


def test_a_regularizer_is_not_called_loss() -> None:
    """The main term's name: results would hold one of the two."""
    with pytest.raises(BadValue, match=r"loss\.regularizers\.loss: .* choose another"):
        scheduled("loss")


def test_one_small_step_changes_float32_weights() -> None:
    _, module, _ = run(world=1, accumulate=1, batch=8, optimizer=partial(torch.optim.SGD, lr=1e-6), dtype=torch.float32)
    fresh = random_llama(spread=0.1)
    changed = [not torch.equal(a, b) for a, b in zip(module.lm.model.parameters(), fresh.parameters(), strict=True)]
    assert all(p.dtype == torch.float32 for p in module.parameters())
    assert sum(changed) > len(changed) / 2


def test_epochs_are_ordered_by_seed_and_epoch_alone() -> None:
    seen: list[tuple[str, ...]] = []

    class Order(Recorder):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            seen.append(batch.row_ids)
            return super().training_step(batch, batch_idx)

    _, _, trainer = run(world=1, accumulate=1, batch=8, module_class=Order)
    sampler = trainer.train_dataloader.sampler  # type: ignore[union-attr]
    expected = []
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        order = [f"r{i}" for i in sampler.order()]
        expected += [tuple(order[:8]), tuple(order[8:])]
    assert seen == expected
    assert seen[:2] != seen[2:]


def test_schedule_warms_up_and_ends_at_zero() -> None:
    rates: list[float] = []

    class Rates(Recorder):
        def configure_gradient_clipping(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    class Scheduled(Rates):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**{**kwargs, "schedule": "cosine", "warmup_fraction": 0.25})

    run(world=1, accumulate=1, batch=8, module_class=Scheduled)
    assert rates[0] == 0.0
    assert rates[1] == pytest.approx(0.05)
    assert rates[1] > rates[2] > rates[3] > 0


def test_batches_conserve_every_token_and_weight() -> None:
    data = rows()
    for world, batch in ((1, 8), (2, 2), (3, 4)):
        seen: dict[str, tuple[list[int], list[float]]] = {}
        for rank in range(world):
            sampler = GlobalOrderSampler(
                [row.counts() for row in data],
                batch_size=batch,
                accumulate=2,
                rank=rank,
                world=world,
                seed=1,
                shuffle=True,
            )
            for micro in sampler:
                made = RowDataset(data, score_names=())[micro]
                for b, name in enumerate(made.row_ids):
                    length = int(made.lengths_B[b])
                    assert name not in seen
                    seen[name] = (
                        made.input_ids_BT[b, :length].tolist(),
                        made.weight_BT[b, :length].tolist(),
                    )
                    assert (made.weight_BT[b, length:] == 0).all()
                    assert (made.token_group_BT[b, length:] == -1).all()
        assert seen == {r.row_id: (r.ids.tolist(), r.weight.tolist()) for r in data}


def test_a_loss_that_is_not_finite_stops_before_the_optimizer_moves() -> None:
    class Broken(Recorder):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return super().training_step(batch, batch_idx) * (float("nan") if self.global_step == 1 else 1.0)

        def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
            if self.global_step == 1:
                self._window[0, 0] = float("nan")
                before.extend(p.detach().clone() for p in self.parameters())
            super().on_before_optimizer_step(optimizer)

    before: list[torch.Tensor] = []
    made: list[Broken] = []

    def keep(**kwargs: Any) -> Broken:
        made.append(Broken(**kwargs))
        return made[0]

    with pytest.raises(TrainingDiverged, match="step 1: the loss is nan"):
        run(world=1, accumulate=4, batch=2, module_class=keep)  # type: ignore[arg-type]
    assert before
    for found, expected in zip(made[0].parameters(), before, strict=True):
        assert torch.equal(found, expected)


def test_probing_changes_no_weight_even_with_dropout() -> None:
    def trained(probe_every_n_steps: int) -> list[torch.Tensor]:
        class Probed(Recorder):
            def __init__(self, **kwargs: Any) -> None:
                super().__init__(**{**kwargs, "probe_every_n_steps": probe_every_n_steps})
                for layer in self.lm.model.model.layers:  # type: ignore[union-attr]
                    layer.self_attn.attention_dropout = 0.5

        torch.manual_seed(0)
        return list(run(world=1, accumulate=4, batch=2, module_class=Probed)[1].parameters())

    for one, other in zip(trained(0), trained(1), strict=True):
        assert torch.equal(one, other)
