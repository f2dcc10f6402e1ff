"""Cost of weightings: python -m experiments.bench_weighting

Forward and backward pass of one micro-batch on SmolLM2-135M, float32, for plain fine-tuning and for every weighting that needs
only target log-probs (of the policy, or stored ones of a reference). The arms take turns within one run, so that a noisy
machine slows all of them alike; each figure is the median ratio to the plain step of the same turn. The last line of the output
is JSON.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from cft.config.build import CONF_DIR, build
from cft.console import console
from cft.data.batches import TokenRow, collate
from cft.models.device import place
from cft.models.load import load_causal_lm
from cft.report.catalogue import Entry, entries
from cft.scores.column import REFERENCE_LOGPROB
from cft.training.selective_lm import SelectiveLM
from cft.types import StepCounts, TokenBatch
from cft.weightings.statistics import LIVE

TURNS = 7
ROWS, PROMPT, RESPONSE = 4, 60, 100
GOAL = 1.10


def main() -> None:
    overrides = {entry.option: list(entry.overrides) for entry in weightings()}
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        plain = compose("train", overrides=["model=smollm2", "mask=all"])
        objectives = {"plain": build(plain.loss)(build(plain.weighting))}
        for option, chosen in overrides.items():
            cfg = compose("train", overrides=chosen)
            weighting = build(cfg.weighting)
            if not set(weighting.needs) & LIVE.keys():
                objectives[option] = build(cfg.loss)(weighting)
    model = load_causal_lm(build(plain.model))
    place(model, device="cpu")
    model.train()
    batch = collate(rows(model.config.vocab_size), step_counts=StepCounts())
    seconds: dict[str, list[float]] = {name: [] for name in objectives}
    for turn in range(TURNS + 1):
        for name, objective in objectives.items():
            taken = step(SelectiveLM(model, objective), batch)
            if turn > 0:  # the first turn is a warm-up
                seconds[name].append(taken)
    ratios = {
        name: float(np.median(np.array(taken) / np.array(seconds["plain"])))
        for name, taken in seconds.items()
        if name != "plain"
    }
    for name, ratio in sorted(ratios.items(), key=lambda item: item[1]):
        console.print(f"{name:20s} {ratio:.3f}", highlight=False)
    result = {
        "largest_ratio": max(ratios.values()),
        "goal": GOAL,
        "ratios": ratios,
        "plain_seconds": float(np.median(seconds["plain"])),
        "eligible_tokens": ROWS * RESPONSE,
    }
    print(json.dumps(result))


def weightings() -> list[Entry]:
    """Weightings that need no stored score."""
    return [e for e in entries() if e.group == "weighting" and e.option != "uniform" and not e.before and not e.missing]


def rows(vocabulary: int) -> list[TokenRow]:
    rng = np.random.default_rng(0)
    weight = np.r_[np.zeros(PROMPT), np.ones(RESPONSE)].astype(np.float32)
    probe = np.r_[np.full(PROMPT, -1), np.ones(RESPONSE)].astype(np.int8)
    reference = {REFERENCE_LOGPROB: -weight}
    return [
        TokenRow(str(i), rng.integers(0, vocabulary, PROMPT + RESPONSE), weight, probe, reference) for i in range(ROWS)
    ]


def step(lm: SelectiveLM, batch: TokenBatch) -> float:
    started = time.perf_counter()
    (term, *_) = lm(batch)
    term.sum.backward()
    taken = time.perf_counter() - started
    for parameter in lm.parameters():
        parameter.grad = None
    return taken


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.manual_seed(0)
    main()
