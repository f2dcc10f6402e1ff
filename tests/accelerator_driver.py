"""Runs checks on the fake accelerator and on the CPU; writes a JSON of {check: {value by name} or {"error": text}}.

python tests/accelerator_driver.py OUT.json [METHOD ...]        (in a separate process: see `fake_accelerator.install`)
"""

from __future__ import annotations

import copy
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cft.annotation.counterfactual import ListSource
from cft.engines import sampling, shared_prefix
from cft.engines.reference import ReferenceEngine
from cft.engines.shared_prefix import SharedPrefixEngine
from cft.losses.objective import FrozenPrediction
from cft.training import layout, selective_lm
from cft.training.selective_lm import SelectiveLM
from cft.types import GREEDY, Budget, Completion, Fork, Sampling, TokenSequence
from tests.fake_accelerator import DeviceMismatch, install, watching
from tests.fakes import random_llama
from tests.group_rows import SIZES, batches_of, group_rows, sampler_of
from tests.methods import OF_GROUPS, OPTIONS, VOCABULARY, batch_of, objective, token_rows
from tests.objectives import sft

DEVICE = install()
EOS = (1, 2)
SAMPLED = (GREEDY, Sampling(1.0, 1.0, 7, "a"), Sampling(1.0, 0.9, 7, "b"))


def on_device(model: Any) -> Any:
    """Copy a model to the device. Wrapped parameters lose their ties."""
    moved = copy.deepcopy(model).to(DEVICE)
    moved.tie_weights()
    return moved


def forks(*, sampled: bool, lone: int = 3) -> list[Fork]:
    rng = np.random.default_rng(0)
    sequence = TokenSequence(rng.integers(3, 60, 20).astype(np.int32), 2)
    how = SAMPLED if sampled else (GREEDY,)
    made = [Fork(sequence, 3 + i, 5 + i, how[i % len(how)], i) for i in range(6)]
    for i in range(lone):
        own = TokenSequence(rng.integers(3, 60, 5 + i).astype(np.int32), 1)
        made.append(Fork(own, len(own.ids), None, how[i % len(how)], 100 + i))
    return made


def decoded(engine: Any, work: list[Fork]) -> dict[Any, Completion]:
    return dict(engine.run(ListSource(work), budget=Budget(9)))


def same_ids(sampled: bool) -> dict[str, Any]:
    model, work = random_llama(tie_word_embeddings=True), forks(sampled=sampled)
    expected = decoded(SharedPrefixEngine(model, EOS), work)
    with watching():
        there = on_device(model)
        found = [decoded(kind(there, EOS), work) for kind in (SharedPrefixEngine, ReferenceEngine)]
    equal = [sum(bool(np.array_equal(run[k].ids, c.ids)) for k, c in expected.items()) for run in found]
    return {"forks": len(work), "equal": equal}


def scores() -> dict[str, Any]:
    model, sequence = random_llama(), forks(sampled=False)[0].sequence
    expected = ReferenceEngine(model, EOS).score(sequence, k=3)
    with watching() as counts:
        found = ReferenceEngine(on_device(model), EOS).score(sequence, k=3)
    difference = max(
        float(np.abs(getattr(found, name) - getattr(expected, name)).max()) for name in ("logprob_R", "entropy_R")
    )
    return {
        "difference": difference,
        "same_ranks": bool((found.top_ids_RK == expected.top_ids_RK).all()),
        **counts.totals(),
    }


def decode_step(*, sampled: bool, shared: int) -> dict[str, int]:
    """Cost of one decode step over all forks: the difference of two runs whose token limits differ by one."""
    model = random_llama()
    work = [fork for fork in forks(sampled=sampled, lone=0 if shared else 6) if shared or fork.key >= 100]
    totals = []
    for limit in (22, 23) if shared else (6, 7):
        with watching() as counts:
            engine = SharedPrefixEngine(on_device(model), (), tie_margin=0.0)
            for counter in (counts.kernels, counts.syncs, counts.copies):
                counter.clear()
            whole = [
                Fork(
                    TokenSequence(f.sequence.ids[: f.prefix_len], f.prefix_len),
                    f.prefix_len,
                    f.first_token,
                    f.sampling,
                    f.key,
                )
                for f in work
            ]
            if shared:  # from one prompt, so that all end at the same step
                whole = [Fork(work[0].sequence, 20, 5 + i, f.sampling, i) for i, f in enumerate(work)]
            dict(engine.run(ListSource(whole), budget=Budget(limit)))
            totals.append(counts.totals())
    return {name: totals[1][name] - totals[0][name] for name in totals[0]}


def step(model: Any, method: Any, *, at: layout.Layout) -> tuple[float, float]:
    """Loss and gradient norm; if the loss needs a reference distribution, the model itself is the reference."""
    lm = SelectiveLM(model, method, layout=at)
    batch = batch_of(token_rows()).to(model.device)
    if method.rejected:
        rows = group_rows()
        (batch,) = batches_of(rows, sampler_of(rows, rejected=method.rejected, batch_size=len(SIZES)))
        batch = batch.to(model.device)
    if method.state is not None:
        method.state.begin(len(SIZES))
    if "reference_distribution" in method.needs:
        frozen = copy.deepcopy(model) if model.device.type == "cpu" else model

        def reference_of(placement: Any) -> FrozenPrediction:
            with torch.no_grad():
                return FrozenPrediction(lm._hidden(placement).detach() * 0.9, lm.project)

        del frozen
        lm._reference_of = reference_of  # type: ignore[method-assign]
    terms = lm(batch)
    loss = torch.stack([term.mean(batch.step_counts) for term in terms]).sum()
    loss.backward()
    norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    with torch.no_grad():
        lm.probe(batch)
    return float(loss.detach()), float(torch.stack(norms).norm())


def training(method: str) -> dict[str, Any]:
    found = {}
    for at in ("padded", "packed"):
        model = random_llama(vocab=VOCABULARY)
        expected = step(copy.deepcopy(model), objective(method), at=at)
        with watching():
            found[at] = [*step(on_device(model), objective(method), at=at), *expected]
    return found


def training_step(at: layout.Layout) -> dict[str, int]:
    """Forward and backward pass of one micro-batch of plain fine-tuning, without the probe."""
    model = random_llama(vocab=VOCABULARY)
    with watching() as counts:
        lm = SelectiveLM(on_device(model), sft(), layout=at)
        batch = batch_of(token_rows()).to(DEVICE)
        for counter in (counts.kernels, counts.syncs, counts.copies):
            counter.clear()
        loss = torch.stack([term.mean(batch.step_counts) for term in lm(batch)]).sum()
        loss.backward()
        return {**counts.totals(), "where": dict(counts.syncs)}  # type: ignore[dict-item]


def planted(patch: Any, work: Callable[[], object]) -> dict[str, str]:
    """The message of the error found."""
    with patch, watching():
        try:
            work()
        except DeviceMismatch as mistake:
            return {"found": str(mistake)}
    return {"found": ""}


def engine_run() -> None:
    decoded(SharedPrefixEngine(on_device(random_llama()), EOS), forks(sampled=True))


def train_run() -> None:
    step(on_device(random_llama(vocab=VOCABULARY)), sft(), at="packed")


def mistakes() -> dict[str, dict[str, str]]:
    """Typical errors: random numbers on the CPU, an index on the CPU, numpy() of a device tensor."""

    def on_cpu(logits_NV: torch.Tensor, *, uniform_N: torch.Tensor, **options: Any) -> Any:
        return sampled(logits_NV, uniform_N=uniform_N.cpu(), **options)

    def misplaced(*args: Any, **options: Any) -> Any:
        found = placed(*args, **options)
        return replace(found, inputs={**found.inputs, "position_ids": found.inputs["position_ids"].cpu()})

    def as_array(logits_NV: torch.Tensor) -> Any:
        token_N, margin_N = greedy(logits_NV)
        token_N.numpy()
        return token_N, margin_N

    sampled, placed, greedy = sampling.sampled, selective_lm.placed, sampling.greedy
    return {
        "uniform": planted(mock.patch.object(sampling, "sampled", on_cpu), engine_run),
        "positions": planted(mock.patch.object(selective_lm, "placed", misplaced), train_run),
        "array": planted(mock.patch.object(sampling, "greedy", as_array), engine_run),
        "none": planted(mock.patch.object(shared_prefix, "EngineError", shared_prefix.EngineError), engine_run),
    }


def checks() -> dict[str, Callable[[], Any]]:
    found: dict[str, Callable[[], Any]] = {
        "greedy ids": lambda: same_ids(False),
        "sampled ids": lambda: same_ids(True),
        "scores": scores,
        "decode step, greedy": lambda: decode_step(sampled=False, shared=0),
        "decode step, greedy, shared": lambda: decode_step(sampled=False, shared=1),
        "decode step, sampled": lambda: decode_step(sampled=True, shared=0),
        "training step, padded": lambda: training_step("padded"),
        "training step, packed": lambda: training_step("packed"),
        "planted": mistakes,
    }
    for method in (*OPTIONS, *OF_GROUPS):
        found[method] = lambda method=method: training(method)
    return found


def main(out: Path, names: Sequence[str]) -> None:
    """Run checks. names: names of the checks; none = all."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name, check in checks().items():
        if names and name not in names:
            continue
        try:
            results[name] = check()
        except Exception as error:  # noqa: BLE001  (one check must not hide the others)
            where = "".join(traceback.format_tb(error.__traceback__)[-6:])
            results[name] = {"error": f"{type(error).__name__}: {str(error)[:500]}\n{where}"}
        out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
