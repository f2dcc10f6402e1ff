"""Memory and hours of 1.5B, 7B and 70B models on 80 GB GPUs, by arithmetic: python -m experiments.sizes

    python -m experiments.sizes [--problems 15000] [--solved 0.73] [--response 300] [--prompt 100] [--epochs 3]

Nothing here is measured. Parameters, weights, KV cache and operations follow from the shapes. The fraction of a GPU's peak that
is reached is assumed, as a range; docs/experiments/sizes.md gives the sources. Prints the page's tables.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config

from cft.models.flops import arithmetic_of

console = Console(width=140)

# An H100 of 80 GB: dense bfloat16, memory.
PEAK, BANDWIDTH, MEMORY = 989e12, 3.35e12, 80e9
USABLE = 0.9  # usable fraction of the memory
DECODING = (0.35, 0.55)  # fraction of the rate that weights, KV cache and arithmetic allow a serving engine
TRAINING = (0.20, 0.35)  # MFU
FORKS, FORK_TOKENS = 1.4, 0.5  # continuations per position (the second is rarely needed); their length in responses
GROWTH = 1.1  # size of the KV cache relative to that of the forks, for prefixes and partly filled pages
ROWS = 1024  # maximum batch size in continuations
MICRO_BATCH, CHUNK = 2400, 1024  # tokens of a micro-batch; tokens projected at a time
CARDS = (1, 2, 4, 8, 16, 32, 64)

SHAPES: dict[str, Any] = {
    "1.5B": Qwen2Config(
        vocab_size=151936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "7B": Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    ),
    "70B": LlamaConfig(
        vocab_size=128256,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The workload. problems: to annotate. solved: fraction of them that gives a row. response, prompt: tokens. epochs: of
    training."""

    problems: int
    solved: float
    response: int
    prompt: int
    epochs: int

    @property
    def rows(self) -> float:
        return self.problems * self.solved

    @property
    def decoded(self) -> float:
        """Decoded tokens of an annotation: a response per problem, and the forks of the solved ones."""
        return self.problems * self.response + self.rows * self.response * FORKS * FORK_TOKENS * self.response

    @property
    def trained(self) -> float:
        return self.rows * (self.prompt + self.response) * self.epochs


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and hours of 1.5B, 7B and 70B, estimated.")
    parser.add_argument("--problems", type=int, default=15_000)
    parser.add_argument("--solved", type=float, default=0.73)
    parser.add_argument("--response", type=int, default=300)
    parser.add_argument("--prompt", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=3)
    work = Work(**vars(parser.parse_args()))
    models = {name: empty(config) for name, config in SHAPES.items()}
    console.print(
        f"{work.problems:,} problems, {work.rows:,.0f} of them solved, {work.response} tokens per response: "
        f"{work.decoded / 1e9:.2f} G tokens to annotate, {work.trained / 1e6:.1f} M tokens to train ({work.epochs} epochs)"
    )
    for title, columns, row in (
        ("Annotating", ANNOTATING, annotating),
        ("Training", FITTING, fitting),
    ):
        console.print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", markup=False)
        for name, model in models.items():
            console.print(f"| {name} | {' | '.join(row(model, work))} |", markup=False)


def empty(config: Any) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


ANNOTATING = (
    "model",
    "parameters",
    "weights, bfloat16",
    "KV cache per token",
    "GPUs per replica",
    "batch size, rows",
    "tokens/s per GPU",
    "GPU hours",
)


def annotating(model: PreTrainedModel, work: Work) -> list[str]:
    """Estimates of annotation. A replica has the fewest GPUs that hold the weights and 1/4 of the rows' KV cache."""
    config: Any = model.config
    parameters = sum(p.numel() for p in model.parameters())
    weights = 2 * parameters
    keys = (
        2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    )
    held = (work.prompt + work.response * (0.5 + FORK_TOKENS)) * keys * GROWTH  # KV cache of a fork at its end
    cards = next(n for n in CARDS if USABLE * n * MEMORY > weights + held * ROWS / 4)
    rows = min(ROWS, int((USABLE * cards * MEMORY - weights) / held))
    # A step reads the weights and the KV cache once, and multiplies each row by the weights.
    seconds = max(weights / BANDWIDTH, 2 * parameters * rows / PEAK) / cards + rows * held / BANDWIDTH / cards
    rates = [share * rows / seconds / cards for share in DECODING]
    hours = [work.decoded / rate / 3600 for rate in rates]
    return [
        f"{parameters / 1e9:.2f} G",
        gigabytes(weights),
        f"{keys / 1024:.0f} KB",
        str(cards),
        f"{rows:,}",
        span(rates[0], rates[1], digits=-2),
        span(hours[1], hours[0]),
    ]


FITTING = (
    "model",
    "weights, gradients, moments",
    "GPUs",
    "per GPU, with gathered blocks",
    "one micro-batch per GPU",
    "checkpoint",
    "host memory of the first node",
    "GPU hours",
)


def fitting(model: PreTrainedModel, work: Work) -> list[str]:
    """Estimates of training on the fewest GPUs with trainer=fsdp, gradient checkpointing, bfloat16 mixed, AdamW."""
    config: Any = model.config
    parameters = sum(p.numel() for p in model.parameters())
    blocks = sum(p.numel() for p in model.model.layers.parameters())
    states = 16 * parameters
    residual = 4 * config.num_hidden_layers * config.hidden_size
    within_a_block = 2 * (10 * config.hidden_size + 4 * config.intermediate_size)
    batch = MICRO_BATCH * (residual + within_a_block) + 3 * CHUNK * config.vocab_size * 4
    gathered = 2 * (parameters - blocks) + 4 * (parameters - blocks) + 2 * 2 * blocks / config.num_hidden_layers
    cards = next(n for n in CARDS if states / n + batch + gathered < USABLE * MEMORY)
    found = arithmetic_of(model)
    lengths = [work.prompt + work.response]
    each = found.of_rows(lengths, projected=int(0.12 * work.response))  # only critical tokens are projected
    hours = [work.rows * work.epochs * each / (share * PEAK) / 3600 for share in TRAINING]
    return [
        gigabytes(states),
        str(cards),
        gigabytes(states / cards + gathered),
        gigabytes(batch),
        gigabytes(12 * parameters),
        gigabytes(4 * parameters),
        span(hours[1], hours[0], digits=1),
    ]


def gigabytes(count: float) -> str:
    return f"{count / 1e9:,.0f} GB" if count >= 1e10 else f"{count / 1e9:.1f} GB"


def span(low: float, high: float, *, digits: int = 0) -> str:
    return " to ".join(f"{round(value, digits):,.{max(0, digits)}f}" for value in (low, high))


if __name__ == "__main__":
    main()
