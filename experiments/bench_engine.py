"""Cost by response length, n samples of a prompt, and the expected benefit of drafting (make bench-engine).

    python -m experiments.bench_engine [--parts growth sampling drafting] [--out outputs/bench_engine]

SmolLM2-135M-Instruct, float32, CPU. Growth: one rank-2 continuation from every position of a response of R = 50, 100, 200
and 400 tokens, each decoded up to R tokens (no EOS), so that both arms decode R^2 / 2 tokens: our engine in full;
left-padded `generate` on one batch of 16 continuations spread over the positions, scaled to R. Sampling: 16 answers to each
of eight prompts, up to 96 tokens, compared with `generate` (num_return_sequences=16) at its best number of prompts per batch.
Drafting (not part of the engine): if the last two tokens of a continuation also occur in the original response, the four
tokens that follow them there are proposed. Real continuations show how many would be accepted, timed steps what a larger batch
costs. expected_speedup = tokens per step with drafts, divided by the relative time of a step with that many more rows; below 1
drafting is slower. The last line of the output is JSON; the figure is growth.png.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from transformers import PreTrainedModel

from cft.annotation.counterfactual import ListSource
from cft.config.build import build, checked
from cft.engines.shared_prefix import SharedPrefixEngine
from cft.models.kernels import keep_freed_memory
from cft.models.load import eos_ids, load_causal_lm, load_tokenizer
from cft.quiet import quiet_libraries
from cft.types import GREEDY, Budget, Fork, Sampling, TokenSequence
from experiments.annotation_arms import generate_batch

PARTS = ("growth", "sampling", "drafting")
LENGTHS = (50, 100, 200, 400)
GENERATED_FORKS = 16
SAMPLES, PROMPTS, SAMPLE_TOKENS = 16, 8, 96
TEMPERATURE, TOP_P = 1.0, 0.95
DRAFT = 4
console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost by response length, and of n samples per prompt.")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_engine"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    quiet_libraries()
    with initialize_config_dir(str(Path(__file__).resolve().parent.parent / "conf"), version_base="1.3"):
        cfg = checked(
            compose("annotate", overrides=["model=smollm2", "data=reasoning_gym", "data.task=gsm_symbolic"]), "annotate"
        )
    spec = build(cfg.model)
    tokenizer, model = load_tokenizer(spec), load_causal_lm(spec)
    keep_freed_memory()
    problems, prompt = build(cfg.data).of("train")[:PROMPTS], build(cfg.prompt)
    prompts = [np.asarray(prompt.ids(tokenizer, problem.question), dtype=np.int32) for problem in problems]
    arguments.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {}
    if "growth" in arguments.parts:
        growth = {length: growth_at(model, prompts[0], length) for length in LENGTHS}
        report["seconds_per_response"] = {str(length): growth[length] for length in LENGTHS}
        report["exponent"] = {arm: exponent({n: growth[n][arm] for n in LENGTHS}) for arm in ("ours", "batched")}
        report["speedup_by_length"] = {str(n): growth[n]["batched"] / growth[n]["ours"] for n in LENGTHS}
        plot(growth, report["exponent"], arguments.out / "growth.png")
    if "sampling" in arguments.parts:
        report |= sampling(model, eos_ids(model, tokenizer), prompts)
    if "drafting" in arguments.parts:
        report["drafting"] = drafting(model, eos_ids(model, tokenizer), prompts)
    line = json.dumps(report)
    (arguments.out / "result.json").write_text(line + "\n", encoding="utf-8")
    print(line)


def growth_at(model: PreTrainedModel, prompt_ids: np.ndarray, length: int) -> dict[str, float]:
    """Seconds to decode a continuation from each of `length` positions of the model's own text, decoded without EOS."""
    engine = SharedPrefixEngine(model, ())
    budget = Budget(length)
    start = Fork(TokenSequence(prompt_ids, len(prompt_ids)), len(prompt_ids), None, GREEDY, 0)
    ((_, text),) = engine.run(ListSource([start]), budget=budget)
    sequence = TokenSequence(np.concatenate([prompt_ids, text.ids]), len(prompt_ids))
    second = engine.reference.score(sequence, k=2).top_ids_RK[:, 1]
    forks = [Fork(sequence, len(prompt_ids) + t, int(second[t]), GREEDY, t) for t in range(length)]
    started = time.perf_counter()
    for _ in engine.run(ListSource(forks), budget=budget):
        pass
    ours = time.perf_counter() - started
    chosen = [forks[int(t)] for t in np.linspace(0, length - 1, GENERATED_FORKS)]
    started = time.perf_counter()
    generate_batch(model, (), chosen, budget=budget)
    batched = (time.perf_counter() - started) * length / len(chosen)
    console.print(f"R = {length}: ours {ours:.1f} s, generate {batched:.1f} s", highlight=False)
    return {"ours": ours, "batched": batched}


def exponent(seconds: dict[int, float]) -> float:
    """Slope of the least-squares line through (log R, log seconds)."""
    return float(np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)[0])


def sampling(model: PreTrainedModel, eos: tuple[int, ...], prompts: list[np.ndarray]) -> dict[str, Any]:
    """Tokens/s of SAMPLES samples per prompt; ours all at once, generate with 4 and 8 prompts per call."""
    engine = SharedPrefixEngine(model, eos)
    sequences = [TokenSequence(ids, len(ids)) for ids in prompts]
    forks = [
        Fork(sequence, sequence.prompt_len, None, Sampling(TEMPERATURE, TOP_P, 0, f"{i} {n}"), (i, n))
        for i, sequence in enumerate(sequences)
        for n in range(SAMPLES)
    ]
    started = time.perf_counter()
    done = [completion for _, completion in engine.run(ListSource(forks), budget=Budget(SAMPLE_TOKENS))]
    ours = sum(c.num_decoded for c in done) / (time.perf_counter() - started)
    rates = {}
    for together in (4, 8):
        tokens, started = 0, time.perf_counter()
        for at in range(0, len(prompts), together):
            tokens += sampled_by_generate(model, eos, prompts[at : at + together])
        rates[together] = tokens / (time.perf_counter() - started)
        console.print(
            f"sampling: ours {ours:.0f} tokens/s, generate with {together} prompts {rates[together]:.0f}",
            highlight=False,
        )
    return {
        "sampling_speedup": ours / max(rates.values()),
        "sampling_tokens_per_s": {"ours": ours, **{f"generate_{n}_prompts": rate for n, rate in rates.items()}},
        "sampling_near_ties": sum(c.num_ties_rescored for c in done),
    }


@torch.inference_mode()
def sampled_by_generate(model: PreTrainedModel, eos: tuple[int, ...], prompts: list[np.ndarray]) -> int:
    """Number of tokens that one call decodes, up to each sample's EOS."""
    torch.manual_seed(0)
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p.tolist() for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    output = model.generate(  # pyright: ignore[reportCallIssue]
        ids,
        attention_mask=mask,
        max_new_tokens=SAMPLE_TOKENS,
        do_sample=True,
        temperature=TEMPERATURE,
        top_p=TOP_P,
        top_k=0,
        num_return_sequences=SAMPLES,
        eos_token_id=list(eos),
        pad_token_id=0,
    )
    rows = output[:, width:].tolist()
    return sum(next((i + 1 for i, token in enumerate(row) if token in eos), len(row)) for row in rows)


def drafting(model: PreTrainedModel, eos: tuple[int, ...], prompts: list[np.ndarray]) -> dict[str, Any]:
    """Expected benefit of n-gram drafts from the original response, from real continuations and measured step times."""
    engine = SharedPrefixEngine(model, eos)
    budget = Budget(128)
    steps = drafted = accepted = 0
    for ids in prompts[:4]:
        solve = Fork(TokenSequence(ids, len(ids)), len(ids), None, GREEDY, 0)
        ((_, text),) = engine.run(ListSource([solve]), budget=budget)
        sequence = TokenSequence(np.concatenate([ids, text.ids]), len(ids))
        second = engine.reference.score(sequence, k=2).top_ids_RK[:, 1]
        forks = [Fork(sequence, len(ids) + t, int(second[t]), GREEDY, t) for t in range(len(text.ids))]
        for t, completion in engine.run(ListSource(forks), budget=budget):
            counts = drafted_tokens(text.ids.tolist(), completion.ids.tolist(), start=int(t) + 1)  # type: ignore[arg-type]
            steps, drafted, accepted = (a + b for a, b in zip((steps, drafted, accepted), counts, strict=True))
    rows_a_step = 1 + drafted / steps
    tokens_a_step = 1 + accepted / steps
    seconds = {rows: step_seconds(engine, prompts[0], rows) for rows in (8, 16, 32, 64, 128, 256, 512)}
    sizes, times = list(seconds), list(seconds.values())
    gain = {
        str(rows): tokens_a_step * seconds[rows] / float(np.interp(rows * rows_a_step, sizes, times))
        for rows in sizes
        if rows * rows_a_step <= sizes[-1]
    }
    return {
        "accepted_share": accepted / max(1, drafted),
        "tokens_a_step": tokens_a_step,
        "rows_a_step": rows_a_step,
        "expected_speedup_by_rows": gain,
    }


def drafted_tokens(original: list[int], tokens: list[int], *, start: int) -> tuple[int, int, int]:
    """(steps, drafted, accepted) when decoding tokens[start:] with drafts from the first position after `start` in the original
    at which the last two tokens occur."""
    at, steps, drafted, accepted = start, 0, 0, 0
    while at < len(tokens):
        pair = tokens[max(0, at - 2) : at]
        places = [i for i in range(start, len(original) - 1) if original[i - 2 : i] == pair]
        draft = original[places[0] : places[0] + DRAFT] if places else []
        right = 0
        while right < len(draft) and at + right < len(tokens) and tokens[at + right] == draft[right]:
            right += 1
        steps, drafted, accepted = steps + 1, drafted + len(draft), accepted + min(right, len(tokens) - at - 1)
        at += right + 1
    return steps, drafted, accepted


def step_seconds(engine: SharedPrefixEngine, prompt_ids: np.ndarray, rows: int) -> float:
    """Seconds of one decode step with `rows` forks of one prompt."""
    sequence = TokenSequence(prompt_ids, len(prompt_ids))
    wide = SharedPrefixEngine(engine.model, (), max_rows=rows)
    forks = [Fork(sequence, sequence.prompt_len, 100 + i, GREEDY, i) for i in range(rows)]
    limit = 12
    started = time.perf_counter()
    for _ in wide.run(ListSource(forks), budget=Budget(limit)):
        pass
    return (time.perf_counter() - started) / limit


def plot(growth: dict[int, dict[str, float]], exponents: dict[str, float], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(5.5, 4), layout="constrained")
    for arm, name, marker in (("ours", "shared prefix", "o"), ("batched", "left-padded generate", "s")):
        axes.loglog(LENGTHS, [growth[n][arm] for n in LENGTHS], marker=marker, label=f"{name}: R^{exponents[arm]:.2f}")
    axes.set(
        xlabel="response length R (tokens)", ylabel="seconds per response, one alternative per position", xticks=LENGTHS
    )
    axes.set_xticklabels(map(str, LENGTHS))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
