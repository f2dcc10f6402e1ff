"""Time to decide counterfactuals: our engine compared with batched and sequential `generate` (make bench-annotate).

    python -m experiments.bench_annotate [--responses 3] [--gsm8k FOLDER] [--out outputs/bench_annotate]

SmolLM2-135M-Instruct, float32, CPU. Word problems of GSM8K's length (reasoning-gym's gsm_symbolic, or GSM8K itself) are
solved; responses of 80 to 105 tokens that ended with EOS are annotated. The model's own final answer counts as the right one,
so that both verdicts occur; a run with under 10 % of either verdict is refused. Every arm decides the same positions of the
same responses, prefill and verification included:

    same tokens       every alternative of every position, ours compared with left-padded generate at its best batch size
    everything        short-circuit; ours also stops where the first explicit answer (####, boxed) is complete, which is exact
                      for the verifier used here (cft.verifiers FirstAnswer); generate uses short-circuit as well
    sequential        generate one at a time on 96 seeded continuations, extrapolated to every alternative

The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from torch import nn
from transformers import PreTrainedModel

from cft.annotation.counterfactual import ListSource, alternatives
from cft.config.build import build, checked
from cft.engines.scheduler import Scheduler
from cft.engines.shared_prefix import Row, SharedPrefixEngine
from cft.models.cpu.packed_linear import PackedLinears
from cft.models.kernels import keep_freed_memory
from cft.models.load import eos_ids, load_causal_lm, load_tokenizer
from cft.quiet import quiet_libraries
from cft.types import GREEDY, Budget, Fork, Outcome, TokenSequence
from cft.verifiers.grader import Grader
from cft.verifiers.pool import VerifierPool
from experiments.annotation_arms import Arm, Cell, Response, cells, collected, generated, ours

BUDGET = Budget(192)
MIN_TOKENS, MAX_TOKENS = 80, 105
BATCH_SIZES = (16, 32, 64, 128)
TRIAL_STEPS = 48  # tokens per continuation in the search for the best batch size
SEQUENTIAL_FORKS = 96
MIN_SHARE = 0.1
K = 2
SEED = 0
console = Console()


class Stopwatch:
    """Measures the time that an engine spends on decoding: forward passes, choices, near ties."""

    def __init__(self, engine: SharedPrefixEngine) -> None:
        self.seconds, self.steps = 0.0, 0
        self._inner = engine._step
        engine._step = self  # type: ignore[method-assign]

    def __call__(self, scheduler: Scheduler[Row], **options: Any) -> Any:
        started = time.perf_counter()
        ended = self._inner(scheduler, **options)
        self.seconds += time.perf_counter() - started
        self.steps += 1
        return ended


def main() -> None:
    parser = argparse.ArgumentParser(description="Time to decide the same positions, per engine.")
    parser.add_argument("--responses", type=int, default=3)
    parser.add_argument("--gsm8k", default="", help="folder of GSM8K, used instead of generated problems")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_annotate"))
    arguments = parser.parse_args()
    quiet_libraries()
    began = time.perf_counter()
    data = (
        ["data=gsm8k", f"data.dir={arguments.gsm8k}"]
        if arguments.gsm8k
        else ["data=reasoning_gym", "data.task=gsm_symbolic"]
    )
    with initialize_config_dir(str(Path(__file__).resolve().parent.parent / "conf"), version_base="1.3"):
        overrides = ["model=smollm2", "verifier=numeric_first", *data]
        cfg = checked(compose("annotate", overrides=overrides), "annotate")
    spec, verifier = build(cfg.model), build(cfg.verifier)
    tokenizer, model = load_tokenizer(spec), load_causal_lm(spec)
    eos = eos_ids(model, tokenizer)
    by_default = forward_seconds(model)
    keep_freed_memory()  # as the entry points do; applies to all arms
    kept = forward_seconds(model)
    engine = SharedPrefixEngine(model, eos)
    report: dict[str, Any] = {"model": spec.name, "threads": torch.get_num_threads(), **matmul_rates(model)}
    report["allocator_speedup"] = by_default / kept
    with VerifierPool(verifier, workers=1, timeout_s=3.0) as pool:
        whole = Grader(tokenizer, pool.verify_all)
        stopping = Grader(tokenizer, pool.verify_all, verifier.final)
        responses = solved(engine, cfg, tokenizer, verifier, count=arguments.responses)
        say(f"{len(responses)} responses of {[len(r.alt_ids_RK) for r in responses]} tokens")

        watch = Stopwatch(engine)
        all_ranks = ours(engine, responses, grader=whole, budget=BUDGET, short_circuit=False)
        decoding_s = watch.seconds
        describe("ours, every alternative", all_ranks)
        refuse_one_sided(all_ranks)
        everything = ours(engine, responses, grader=stopping, budget=BUDGET, short_circuit=True)
        describe("ours, everything", everything)

        first, second = (cells(responses, rank=rank) for rank in range(K))
        options: dict[str, Any] = {"grader": whole, "budget": BUDGET}
        trial: dict[int, Arm] = {}
        group = sorted(stratified(first, count=BATCH_SIZES[-1]))
        for size in BATCH_SIZES:  # one batch each, with continuations spread evenly over the positions
            tried = stratified(group, count=size)
            trial[size] = generated(model, eos, responses, tried, batch_size=size, max_steps=TRIAL_STEPS, **options)
            describe(f"generate, a batch of {size}", trial[size])
        best = max(trial, key=lambda size: trial[size].tokens / trial[size].seconds)
        ranks_2 = generated(model, eos, responses, first, batch_size=best, **options)
        failed = [(i, t, 1) for i, t, rank in first if ranks_2.outcomes[i, t, rank] != Outcome.RIGHT]
        needed = generated(model, eos, responses, failed, batch_size=best, **options)
        rest = generated(model, eos, responses, sorted({*second} - {*failed}), batch_size=best, **options)
        batched, batched_all = ranks_2 + needed, ranks_2 + needed + rest
        describe(f"generate, batch {best}, short-circuit", batched)
        describe(f"generate, batch {best}, every alternative", batched_all)

        every = sorted([*first, *second])
        sample = stratified(every, count=SEQUENTIAL_FORKS)
        single = generated(model, eos, responses, sample, batch_size=1, **options)
        sequential_s = single.seconds * len(every) / len(sample)
        describe(f"generate, one at a time ({len(sample)} of {len(every)})", single)
    own_ids = collected(engine, responses, every, budget=BUDGET)

    parameters = multiplied_parameters(model)
    gflops = 2 * parameters * all_ranks.tokens / decoding_s / 1e9
    report |= {
        "speedup_vs_batched_same_tokens": batched_all.seconds / all_ranks.seconds,
        "speedup_vs_batched": batched.seconds / everything.seconds,
        "speedup_vs_sequential": sequential_s / everything.seconds,
        "speedup_vs_sequential_same_tokens": sequential_s / all_ranks.seconds,
        "matmul_share": gflops / report["matmul_gflops"],
        "matmul_share_of_packed": gflops / report["packed_matmul_gflops"],
        "outcomes_equal": agreement(
            [
                (all_ranks.outcomes, batched_all.outcomes),
                (everything.outcomes, batched.outcomes),
                (all_ranks.outcomes, single.outcomes),
            ]
        ),
        "ids_equal": agreement([(own_ids, single.ids), (own_ids, batched_all.ids)]),
        "ids_equal_sequential": agreement([(own_ids, single.ids)]),
        "best_batch_size": best,
        "batch_trials": {str(size): trial[size].tokens / trial[size].seconds for size in BATCH_SIZES},
        "positions": len(first),
        "response_tokens": [len(r.alt_ids_RK) for r in responses],
        "right_share": share(all_ranks, Outcome.RIGHT),
        "decoding_gflops": gflops,
        "arms": {
            name: {
                "seconds": arm.seconds,
                "tokens": arm.tokens,
                "tokens_per_s": arm.tokens / arm.seconds,
                "forks": len(arm.outcomes),
            }
            for name, arm in {
                "ours_all": all_ranks,
                "ours": everything,
                "batched_all": batched_all,
                "batched": batched,
                "sequential_sample": single,
            }.items()
        },
        "sequential_seconds_scaled": sequential_s,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "bench_seconds": time.perf_counter() - began,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    line = json.dumps(rounded(report))
    (arguments.out / "result.json").write_text(line + "\n", encoding="utf-8")
    print(line)


def stratified(every: list[Cell], *, count: int) -> list[Cell]:
    """A seeded draw of one cell from each of `count` segments of equal length, so that all positions are represented."""
    edges = np.linspace(0, len(every), count + 1).astype(int).tolist()
    rng = np.random.default_rng(SEED)
    return [every[rng.integers(start, end)] for start, end in pairwise(edges) if end > start]


def solved(engine: SharedPrefixEngine, cfg: Any, tokenizer: Any, verifier: Any, *, count: int) -> list[Response]:
    """Greedy responses of the required length that ended with EOS and state an answer, in the order of the data."""
    problems, prompt = build(cfg.data).of("train"), build(cfg.prompt)
    found: list[Response] = []
    group = 64
    for start in range(0, len(problems), group):
        sequences = []
        for problem in problems[start : start + group]:
            ids = np.asarray(prompt.ids(tokenizer, problem.question), dtype=np.int32)
            sequences.append(TokenSequence(ids, len(ids)))
        forks = [Fork(sequence, sequence.prompt_len, None, GREEDY, i) for i, sequence in enumerate(sequences)]
        for i, completion in sorted(engine.run(ListSource(forks), budget=BUDGET), key=lambda pair: pair[0]):  # type: ignore[arg-type, return-value]
            text = tokenizer.decode(completion.ids, skip_special_tokens=True)
            gold = verifier(text, "0").extracted
            if completion.finish == "stop" and gold and MIN_TOKENS <= len(completion.ids) <= MAX_TOKENS:
                prompt_ids = sequences[i].ids  # type: ignore[index]
                sequence = TokenSequence(np.concatenate([prompt_ids, completion.ids]), len(prompt_ids))
                top = engine.reference.score(sequence, k=K + len(engine.eos_ids))
                alt_ids, _ = alternatives(completion.ids, top, k=K, eos_ids=engine.eos_ids)
                found.append(Response(sequence, alt_ids, gold))
        if len(found) >= count:
            return found[:count]
    raise SystemExit(
        f"only {len(found)} of {len(problems)} responses had {MIN_TOKENS} to {MAX_TOKENS} tokens, wanted {count}"
    )


def matmul_rates(model: PreTrainedModel) -> dict[str, float]:
    """GFLOP/s of float32 products: the best of torch's own over several shapes, and the packed kernel's at 256 rows."""
    rates = []
    for rows, inner, columns in ((2048, 2048, 2048), (256, 576, 1536), (256, 1536, 576), (1024, 576, 1536)):
        a, b = torch.randn(rows, inner), torch.randn(inner, columns)
        rates.append(2 * rows * inner * columns / best_seconds(lambda a=a, b=b: a @ b) / 1e9)
    layer = max(
        (m for m in model.modules() if type(m) is nn.Linear and m.out_features < 10_000), key=lambda m: m.weight.numel()
    )
    packed = PackedLinears(layer)
    x = torch.randn(256, layer.in_features)
    with torch.inference_mode(), packed.active():
        rate = 2 * 256 * layer.weight.numel() / best_seconds(lambda: layer(x)) / 1e9
    return {"matmul_gflops": max(rates), "packed_matmul_gflops": rate}


@torch.inference_mode()
def forward_seconds(model: PreTrainedModel) -> float:
    """Median time of five forward passes over 1,024 tokens, with logits of the last token only."""
    ids = torch.arange(1024)[None] % 1000
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        model(ids, use_cache=False, logits_to_keep=1)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


def best_seconds(product: Any, *, repeats: int = 30) -> float:
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - started)
    return best


def multiplied_parameters(model: PreTrainedModel) -> int:
    """Number of weights that every decoded token is multiplied with: all linear layers, including the head."""
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))


def agreement(pairs: list[tuple[dict[Cell, Any], dict[Cell, Any]]]) -> float:
    """Fraction of equal cells among those that both arms have."""
    equal = [a[cell] == b[cell] for a, b in pairs for cell in a.keys() & b.keys()]
    return sum(equal) / len(equal)


def share(arm: Arm, outcome: Outcome) -> float:
    return sum(found == outcome for found in arm.outcomes.values()) / len(arm.outcomes)


def refuse_one_sided(arm: Arm) -> None:
    right = share(arm, Outcome.RIGHT)
    if not MIN_SHARE <= right <= 1 - MIN_SHARE:
        raise SystemExit(
            f"{right:.0%} of the continuations end right; expected at least {MIN_SHARE:.0%} of either verdict, since otherwise "
            "the comparison shows nothing"
        )


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def describe(name: str, arm: Arm) -> None:
    rate = arm.tokens / arm.seconds
    say(f"{name}: {len(arm.outcomes)} continuations, {arm.tokens:,} tokens in {arm.seconds:.1f} s, {rate:.0f} tokens/s")


def say(text: str) -> None:
    console.print(text, highlight=False)


if __name__ == "__main__":
    main()
