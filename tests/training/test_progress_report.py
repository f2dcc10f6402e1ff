"""What the progress line claims: arithmetic against torch's own counter, rates against a clock that the test moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cft.console import Bar
from cft.models.flops import arithmetic_of, matmul_rate
from cft.models.load import Lora, apply_lora
from cft.training.callbacks.progress_report import ShowProgress, peak_memory
from tests.fakes import random_llama
from tests.scale_driver import run

LENGTHS = (40, 40, 40)


def counted(model: Any, *, projected: int) -> tuple[float, float]:
    """(operations of matrix products with weights, those of attention) of forward and backward, as torch counts them."""
    ids = torch.randint(3, 60, (len(LENGTHS), LENGTHS[0]))
    model.train()
    with FlopCounterMode(display=False) as counter:
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)[:projected]
        model.get_output_embeddings()(hidden).square().sum().backward()
    by_kind = {str(kind): flops for kind, flops in counter.get_flop_counts()["Global"].items()}
    attention = sum(n for kind, n in by_kind.items() if "attention" in kind or "bmm" in kind)
    return sum(by_kind.values()) - attention, attention


@pytest.mark.parametrize("tied", [False, True])
def test_the_arithmetic_of_a_step_is_what_torch_counts(tied: bool) -> None:
    # Eager attention: torch counts no fused one on a CPU.
    model = random_llama(hidden_size=64, intermediate_size=96, tie_word_embeddings=tied, attn_implementation="eager")
    arithmetic = arithmetic_of(model)
    products, attention = counted(model, projected=17)
    assert arithmetic.block_token * sum(LENGTHS) + arithmetic.head_token * 17 == products
    ours = sum(arithmetic.attention_token * length**2 for length in LENGTHS)
    # torch counts what a causal mask leaves out, too; transformers before 5.20 makes its rotary table by a product.
    table = model.config.hidden_size // model.config.num_attention_heads * LENGTHS[0]
    assert attention - 2 * ours in (0, table)
    whole = arithmetic.of_rows(LENGTHS, projected=17)
    assert whole == products + ours


def test_frozen_weights_have_no_gradient_of_their_own() -> None:
    model = random_llama(hidden_size=64, intermediate_size=96)
    apply_lora(model, lora=Lora(r=4))
    products, _ = counted(model, projected=120)
    arithmetic = arithmetic_of(model)
    found = arithmetic.block_token * sum(LENGTHS) + arithmetic.head_token * 120
    assert found == pytest.approx(products, rel=0.1)  # the first layer's inputs need no gradient, either


def test_rates_are_counts_over_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = 100.0

    class Clock(pl.Callback):
        """A second passes in every micro-batch."""

        def on_before_backward(self, *args: Any) -> None:
            nonlocal now
            now += 1.0

    class Tokens(pl.Callback):
        """The counts of the last step, from the batches and from what the model was given."""

        def __init__(self) -> None:
            self.given = self.computed = self.counted = self.eligible = 0
            self.found: list[list[float]] = []

        def on_fit_start(self, trainer: pl.Trainer, module: Any) -> None:
            module.lm.model.base_model.register_forward_pre_hook(self.on_forward, with_kwargs=True)

        def on_forward(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            if torch.is_grad_enabled():  # not a probe
                self.computed += kwargs["input_ids"].numel()  # packed: no padding

        def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx % 4 == 0:
                self.computed = self.eligible = 0
            self.given += int(batch.lengths_B.sum())
            self.eligible += int((batch.weight_BT > 0).sum())

        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            metrics = trainer.callback_metrics
            if trainer.fit_loop.epoch_loop.batch_idx % 4 == 3:
                names = ("tokens_per_s", "eligible_tokens_per_s", "mfu")
                self.found.append([float(metrics[f"perf/{name}"]) for name in names])
                assert self.found[-1][:2] == pytest.approx([self.computed / 4, self.eligible / 4])
                self.counted += self.computed

    monkeypatch.setattr("cft.training.callbacks.progress_report.time.perf_counter", lambda: now)
    monkeypatch.setattr("cft.training.callbacks.progress_report.matmul_rate", lambda device, mixed: 1e9)
    tokens = Tokens()
    show = ShowProgress(Bar("Training", 1, None), arithmetic_of(random_llama(tie_word_embeddings=True)))
    run(tmp_path, strategy="auto", world=1, accumulate=4, batch=2, steps=6, more=(Clock(), show, tokens))
    assert len(tokens.found) == 6
    assert tokens.counted < tokens.given  # a row ends before its last wanted token
    assert all(0 < mfu < 1 for _, _, mfu in tokens.found)
    assert show.bar.done == 24
    assert show.bar.total == 24


def test_the_machine_is_measured() -> None:
    assert matmul_rate(torch.device("cpu"), mixed=False, seconds=0.05) > 1e8
    held = torch.zeros(40_000_000)  # 160 MB
    assert peak_memory(torch.device("cpu")) > held.nbytes
