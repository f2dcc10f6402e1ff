"""Peak memory of the loss part by tokens per step: python -m experiments.bench_train_memory OUT.json

From the hidden states of a step of 2k, 8k and 32k tokens to their gradient and the head's, with SmolLM2's head (576 x 49,152),
with loss on 12 % of the tokens and on all of them, compared with the naive loss that projects every position at once. Each
point is the rise of the process's peak resident memory, which Linux lets a process reset.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from cft.losses.aggregation import TokenMean
from cft.losses.eligible import EligibleTokens
from cft.losses.objective import Objective
from cft.losses.token import NLL
from cft.models.kernels import prepare_for_training
from cft.weightings.token import Uniform

WIDTH, VOCABULARY = 576, 49_152
TOKENS = (2048, 8192, 32_768)
DENSITY = 0.12
LARGEST = {"eligible": 32_768, "all": 8192, "naive": 8192}  # the others would take minutes, or all memory
MB = 2**20


def measured() -> dict[str, dict[int, float]]:
    """Peak memory in MB by kind and tokens."""
    return {kind: {n: peak_mb(kind, n) for n in TOKENS if n <= LARGEST[kind]} for kind in LARGEST}


def peak_mb(kind: str, tokens: int) -> float:
    torch.manual_seed(0)
    head: Any = nn.Sequential(nn.Linear(WIDTH, VOCABULARY, bias=False))
    prepare_for_training(head, kernels="auto")
    hidden_TD = torch.randn(tokens, WIDTH).requires_grad_()
    target_T = torch.randint(VOCABULARY, (tokens,))
    head.requires_grad_()
    before = reset_peak()
    if kind == "naive":
        cross_entropy(head(hidden_TD), target_T, reduction="sum").backward()
    else:
        eligible_T = torch.rand(tokens) < (DENSITY if kind == "eligible" else 1.0)
        ours(head, hidden_TD, target_T, eligible_T).backward()
    return (peak_bytes() - before) / MB


def ours(head: nn.Module, hidden_TD: torch.Tensor, target_T: torch.Tensor, eligible_T: torch.Tensor) -> torch.Tensor:
    objective = Objective(Uniform(), token_loss=NLL(), aggregation=TokenMean(), normalizer="critical", regularizers={})
    position_N = eligible_T.nonzero()[:, 0]
    ones_N = torch.ones(len(position_N))
    tokens = EligibleTokens(
        torch.zeros_like(position_N), position_N, target_T[position_N], ones_N, ones_N.to(torch.int8), {}, 1
    )
    options: dict[str, Any] = {"response_tokens": len(target_T), "reference": None, "progress": 0.0}
    return objective(tokens, hidden_TD[position_N], head, **options)[0].sum


def reset_peak() -> int:
    """Current resident memory in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak_bytes() -> int:
    return status("VmHWM")


def status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def plot(found: dict[str, dict[int, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    labels = {
        "eligible": f"ours, loss on {DENSITY:.0%}",
        "all": "ours, loss on all",
        "naive": "all positions projected",
    }
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    for kind, points in found.items():
        axes.plot([*map(int, points)], [*points.values()], "o-", label=labels[kind])
    axes.set(xscale="log", yscale="log", xlabel="tokens per step", ylabel="peak memory of the loss part (MB)")
    axes.set_xticks(TOKENS, [f"{n // 1024}k" for n in TOKENS])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file; the figure is written beside it")
    out = parser.parse_args().out
    result = measured()
    out.write_text(json.dumps(result), encoding="utf-8")
    plot(result, out.with_suffix(".png"))
