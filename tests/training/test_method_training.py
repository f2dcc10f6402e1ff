"""Every method in batches: the same sums for any split into micro-batches and chunks, and a few steps of training."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from torch import Tensor
from transformers import LlamaForCausalLM

import cft.api
from cft.annotation.store import SHIPPED, AnnotationStore
from cft.config.build import CONF_DIR, build
from cft.data.annotated import to_token_row
from cft.data.batches import GlobalOrderSampler, TokenRow, collate, loader
from cft.data.columns import columns_for
from cft.losses.normalizer import TermSum
from cft.masks import Critical, Mask
from cft.references.models import Initial
from cft.report.catalogue import entries
from cft.scores.column import OWN_LOGPROB, REFERENCE_DISTRIBUTION, REFERENCE_LOGPROB
from cft.training.layout import Layout
from cft.training.selective_lm import SelectiveLM
from cft.types import AnnotatedResponse, Outcome, StepCounts, TokenBatch
from tests.fakes import exact_llama, random_llama
from tests.gradient_driver import Recorder, Rows
from tests.methods import OPTIONS, VOCABULARY, objective, random_logits, step_loss, terms_of, token_rows
from tests.objectives import sft
from tests.precision import assert_same, float64

STEPS = 20
FEW_STEPS = 7  # two epochs of three steps, the last of which is short, and the first of a third
# With other settings than their files', so that gradient through weights and rows is tried too.
METHODS = (*OPTIONS, "weighting=propagation weighting.detached=true", "loss=shad loss.aggregation.detached=false")
METHODS = (*METHODS, "loss=sft_go weighting=focal", "regularizer=sed loss=shad weighting=excess_loss")
# No shipped response has thinking (tests/masks/test_masks.py has some).
MASKS = tuple(sorted(file.stem for file in (CONF_DIR / "mask").glob("*.yaml") if file.stem != "thinking"))
SCORES = ("attention_received", "attention_to_prompt", "reference", "shuffled")
# On the model that ships; the others there are slow tests.
SHOWN = (
    "weighting=focal",
    "weighting=sstoken",
    "weighting=iw_sft",
    "loss=psft",
    "loss=asft",
    "loss=sed",
    "loss=sft_go",
)
FROM_STORED_SCORES = ("attention", "reasoning", "token_cleaning")


def sums(method: str, *, rows_at_a_time: int, chunk_tokens: int) -> tuple[list[list[TermSum]], Tensor]:
    """The terms of each micro-batch, and the gradient of the step's loss."""
    rows = token_rows()
    leaves = [z.requires_grad_() for z in random_logits(rows, seed=1)]
    reference = random_logits(rows, seed=2)
    counts = sum((row.counts() for row in rows), StepCounts())
    built = objective(method, chunk_tokens=chunk_tokens)
    found = []
    for start in range(0, len(rows), rows_at_a_time):
        part = slice(start, start + rows_at_a_time)
        terms = terms_of(built, rows[part], leaves[part], reference[part], progress=0.25)
        step_loss(terms, counts).backward()
        found.append(list(terms))
    return found, torch.cat([leaf.grad for leaf in leaves if leaf.grad is not None])


ALL_SPLITS = ((4, 1), (2, 5), (1, 1024))


@pytest.mark.parametrize("splits", [((2, 5),), pytest.param(ALL_SPLITS, marks=pytest.mark.slow)], ids=["one", "all"])
@pytest.mark.parametrize("method", METHODS)
def test_sums_do_not_depend_on_the_split_into_micro_batches_and_chunks(
    method: str, splits: tuple[tuple[int, int], ...]
) -> None:
    """Uneven rows, one of them without an eligible token. Chunks but the last are computed again in the backward pass."""
    whole, gradient = sums(method, rows_at_a_time=4, chunk_tokens=1024)
    for rows_at_a_time, chunk_tokens in splits:
        parts, again = sums(method, rows_at_a_time=rows_at_a_time, chunk_tokens=chunk_tokens)
        for term, split in zip(whole[0], zip(*parts, strict=True), strict=True):
            assert sum(t.count for t in split) == term.count > 0
            assert sum(float(t.sum.detach()) for t in split) == pytest.approx(float(term.sum.detach()), rel=1e-12)
        torch.testing.assert_close(again, gradient, rtol=0, atol=1e-13)


# What is placed for no row does not depend on the method, nor what a method makes of it on the layout.
@pytest.mark.parametrize(("method", "layout"), [*((method, "packed") for method in METHODS), (METHODS[0], "padded")])
def test_a_rank_for_which_no_row_is_left_adds_zero(method: str, layout: Layout) -> None:
    """As the second of two ranks gets it, when a step has one row."""
    model: Any = random_llama(vocab=VOCABULARY, spread=0.1)
    built = objective(method)
    reference = Initial().attach(model) if "reference_distribution" in built.needs else None
    lm = SelectiveLM(model, built, reference=reference, layout=layout).train()
    (row,) = rows = token_rows()[:1]
    sampler = GlobalOrderSampler([row.counts()], batch_size=1, accumulate=2, rank=1, world=2, seed=0, shuffle=True)
    (empty,) = loader(rows, sampler)
    assert empty.row_ids == ()
    terms = lm(empty, progress=0.5)
    assert [(float(term.sum.detach()), term.count) for term in terms] == [(0.0, 0)] * len(built.names)
    step_loss(terms, row.counts()).backward()  # DDP waits for the gradients of every rank
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    assert lm.probe(empty).tolist() == [0.0] * 6


class Losses(Recorder):
    """Keeps every micro-batch's loss beside the gradients."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.losses: list[float] = []

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(float(loss.detach()))
        return loss


def trained(
    method: str,
    *,
    accumulate: int,
    batch: int,
    rows: list[TokenRow],
    layout: Layout = "packed",
    model: Any = None,
    lr: float = 0.1,
    steps: int = STEPS,
) -> Losses:
    """model: by default a random one with weights of float64, so that a selection by rank cannot turn on a rounding."""
    if model is None:
        model = exact_llama(vocab=VOCABULARY, spread=0.1)
    built = objective(method)
    reference = Initial().attach(model) if "reference_distribution" in built.needs else None
    module = Losses(
        model=model,
        objective=built,
        optimizer=partial(torch.optim.SGD, lr=lr),
        schedule="constant",
        warmup_fraction=0.0,
        probe_every_n_steps=0,
        reference=reference,
        layout=layout,
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with float64() if model.dtype == torch.float64 else nullcontext():
        trainer.fit(module, datamodule=Rows(batch, rows))
    return module


def slow_unless(options: Iterable[str], quick: Callable[[str], bool]) -> list[Any]:
    return [option if quick(option) else pytest.param(option, marks=pytest.mark.slow) for option in options]


def uneven_rows() -> list[TokenRow]:
    """Ten rows, two of them without an eligible token: windows of four leave the last one of an epoch short."""
    return [row for seed in range(3) for row in token_rows(seed=seed)][:10]


@pytest.mark.parametrize("method", slow_unless(METHODS, lambda method: method in SHOWN))
def test_it_trains_under_accumulation(method: str) -> None:
    """Micro-batches of two packed rows: a loss or gradient that is not finite would raise."""
    found = trained(method, accumulate=2, batch=2, rows=uneven_rows(), steps=FEW_STEPS)
    require_trained(found, steps=FEW_STEPS)


def require_trained(module: Losses, *, steps: int = STEPS) -> None:
    """Every step moved, by numbers that are finite."""
    gradients = [g for g in module.recorded if g is not None]
    assert len(gradients) == steps
    assert all(bool(torch.isfinite(g).all()) for g in gradients)
    assert max(float(g.abs().max()) for g in gradients) > 1e-6
    assert len(module.losses) > steps  # micro-batches
    assert all(map(math.isfinite, module.losses))


# One of each kind: selection by rank, whole rows, groups with a schedule, a term with a count of its own.
@pytest.mark.numerics
@pytest.mark.parametrize(
    "method", ["weighting=excess_loss", "weighting=propagation", "loss=sft_go", "loss=nll_entropy"]
)
def test_accumulated_packed_steps_are_those_of_large_padded_batches(method: str) -> None:
    """Every gradient before clipping; the objective's own sums are tried for all methods above."""
    small = trained(method, accumulate=2, batch=2, rows=uneven_rows(), layout="packed", steps=FEW_STEPS)
    large = trained(method, accumulate=1, batch=4, rows=uneven_rows(), layout="padded", steps=FEW_STEPS)
    for ours, theirs in zip(small.recorded, large.recorded, strict=True):
        assert ours is not None
        assert theirs is not None
        assert_same(ours, theirs)


@cache
def annotated() -> list[AnnotatedResponse]:
    """Seven of the rows that ship with the package, with scores that stand for stored ones and every alternative tried."""
    made = []
    for i, row in enumerate(AnnotationStore(SHIPPED / "tiny_arith").rows()[:7]):
        rng, length = np.random.default_rng(i), len(row.response_ids)
        scores = {name: rng.permutation(length).astype(np.float32) / length - 1 for name in SCORES}
        outcome = np.where(row.alt_outcome == Outcome.UNTRIED, Outcome.RIGHT, row.alt_outcome).astype(np.int8)
        samples = {
            "sampled": np.full((length, 3), 4, np.int16),
            "sampled_right": rng.integers(0, 5, (length, 3)).astype(np.int16),
            **{name: np.zeros((length, 3), np.int16) for name in ("sampled_cut_off", "sampled_undecided")},
        }
        made.append(dataclasses.replace(row, scores=scores, alt_outcome=outcome, **samples))
    return made


def rows_of(mask_option: str, *, needs: frozenset[str] = frozenset()) -> list[TokenRow]:
    """What train.py would make of them, but for two rows without an eligible token: no window of four is without one,
    nor the last one of three. needs: of an objective."""
    mask: Mask = mask_of(mask_option)
    rows = [dataclasses.replace(row, verdict="wrong" if mask_option == "turning" else "right") for row in annotated()]
    given = {REFERENCE_LOGPROB, REFERENCE_DISTRIBUTION}
    columns = columns_for(needs, given=given, stored_logprob=OWN_LOGPROB, grouping=Critical())
    mask.fit(rows)
    made = [to_token_row(row, mask=mask, group_mask=Critical(), columns=columns) for row in rows]
    return [
        TokenRow(r.row_id, r.ids, r.weight * (i not in (0, 5)), r.token_group, r.scores) for i, r in enumerate(made)
    ]


def mask_of(option: str) -> Any:
    settings = {"seed": 0, "annotations_dir": "nowhere"}
    ConfigStore.instance().store("tried_mask", {"defaults": [{"mask": "all"}, "_self_"], **settings})
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("tried_mask", [f"mask={option}"])
    if OmegaConf.is_missing(cfg.mask, "from_annotation"):
        cfg.mask.from_annotation = "tiny_arith"  # of the same tokenizer: projected onto itself
    return build(cfg.mask)


@pytest.fixture(scope="module")
def shipped(tiny_arith_path: Path) -> Any:
    """The small model that ships with the package."""
    return LlamaForCausalLM.from_pretrained(tiny_arith_path)


def nll(model: Any, rows: list[TokenRow]) -> float:
    """Mean over the eligible tokens."""
    with torch.no_grad():
        (term,) = SelectiveLM(model, sft())(collate(rows, step_counts=StepCounts()))
    return float(term.sum) / term.count


@pytest.mark.parametrize("mask", slow_unless(MASKS, lambda mask: mask in ("critical", "random_like")))
def test_the_shipped_model_learns_what_the_mask_picks(mask: str, shipped: Any) -> None:
    """Steps of two micro-batches with rows that carry no loss."""
    model, rows = copy.deepcopy(shipped), rows_of(mask)
    before = nll(model, rows)
    module = trained("loss=nll", accumulate=2, batch=2, rows=rows, model=model, lr=0.001, steps=FEW_STEPS)
    require_trained(module, steps=FEW_STEPS)
    assert nll(model, rows) < before


@pytest.mark.parametrize("method", slow_unless(METHODS, lambda method: method in SHOWN[::3]))
def test_the_shipped_model_trains_by_every_method(method: str, shipped: Any) -> None:
    rows, model = rows_of("critical", needs=objective(method).needs), copy.deepcopy(shipped)
    module = trained(method, accumulate=2, batch=2, rows=rows, model=model, lr=0.003, steps=FEW_STEPS)
    require_trained(module, steps=FEW_STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_the_documented_command_trains(option: str, tmp_path: Path) -> None:
    """Each section of the page on methods that needs nothing made beforehand; the model that ships is its own teacher."""
    (entry,) = [e for e in entries() if e.name == option]
    if entry.before:
        pytest.skip(f"needs {entry.before}")
    given = [f"{key}=package:tiny_arith" for key in entry.missing]
    short = ("data.max_rows=60", "data.batch_size=4", "trainer.accumulate_grad_batches=2", "trainer.max_epochs=3")
    untested = ("evaluation.problems=0", "validation.problems=0", "callbacks=best_loss")
    cft.api.train(*entry.overrides, *given, *short, *untested, f"hydra.run.dir={tmp_path}")
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["budget"]["steps"] >= STEPS
    assert math.isfinite(results["best_validation"]["value"])
    assert set(results["calibration"]) == ({"sed.tau"} if entry.option == "sed" else set())
