"""Engines beside each other on the same forks, in one run: python -m experiments.bench_engines

    python -m experiments.bench_engines [--engines shared_prefix continuous] [--problems 24] [--rounds 3] [overrides ...]

The first engine solves problems and ranks the tokens of the responses; from every position the second most probable token
is continued, as an annotation would, by each engine in turn, several rounds. Overrides are those of `cft annotate`:
model=smollm2 data=..., device=cuda, max_new_tokens=N, verifier and so on. Ends in one line of JSON: decoded tokens per
second of wall and of processor time (median over rounds), continuations equal to the first engine's, processor, device.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from cft.annotation.counterfactual import ListSource, alternatives
from cft.cli.job import composed
from cft.config.build import build
from cft.models.lazy import LazyModel
from cft.models.load import load_tokenizer
from cft.quiet import quiet_libraries
from cft.types import GREEDY, Budget, Engine, Fork, TokenSequence

console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description="Engines on the same forks.")
    parser.add_argument("--engines", nargs="+", default=["shared_prefix", "continuous"])
    parser.add_argument("--problems", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="of cft annotate")
    arguments = parser.parse_args()
    quiet_libraries()
    print(json.dumps(measured(arguments.engines, arguments.overrides, arguments.problems, rounds=arguments.rounds)))


def measured(names: list[str], overrides: list[str], problems: int, *, rounds: int) -> dict[str, Any]:
    cfg, _ = composed("annotate", overrides)
    spec, prompt = build(cfg.model), build(cfg.prompt)
    tokenizer = load_tokenizer(spec)
    model = LazyModel(spec, tokenizer, device=cfg.device, ends=[prompt.end_id(tokenizer)])
    budget = Budget(cfg.max_new_tokens)
    engines = {name: build(composed("annotate", [*overrides, f"engine={name}"])[0].engine)(model) for name in names}
    first = engines[names[0]]
    asked = build(cfg.data).of(cfg.split)[:problems]
    prompts = [np.asarray(prompt.ids(tokenizer, problem.question), dtype=np.int32) for problem in asked]
    forks = counterfactuals(first, prompts, budget=budget, eos_ids=model.facts.eos_ids)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    ids: dict[str, dict[Any, list[int]]] = {}
    tokens: dict[str, int] = {}
    for _ in range(rounds + 1):  # the first one warms up
        for name, engine in engines.items():
            wall, cpu = time.perf_counter(), time.process_time()
            found = dict(engine.run(ListSource(forks), budget=budget))
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
            ids[name] = {key: completion.ids.tolist() for key, completion in found.items()}
            tokens[name] = sum(completion.num_decoded for completion in found.values())
    rates = {
        name: {
            "tokens_per_s": round(tokens[name] / statistics.median(wall for wall, _ in timed[1:])),
            "tokens_per_cpu_s": round(tokens[name] / statistics.median(cpu for _, cpu in timed[1:])),
            "equal": sum(ids[name][key] == other for key, other in ids[names[0]].items()),
        }
        for name, timed in seconds.items()
    }
    facts = {"model": spec.name, "dtype": spec.dtype, "forks": len(forks), "tokens": tokens[names[0]], "rounds": rounds}
    machine = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "device": engines[names[0]].facts()["device"],
    }
    show(rates, title=f"{spec.name}, {len(forks)} continuations, {machine['device']}, {machine['threads']} threads")
    for engine in engines.values():
        with closing(engine):
            pass
    return {**facts, **machine, "engines": rates}


def counterfactuals(
    engine: Engine, prompts: list[np.ndarray], *, budget: Budget, eos_ids: tuple[int, ...]
) -> list[Fork]:
    """The second most probable token in the place of each token of each response that came to an end."""
    sequences = [TokenSequence(ids, len(ids)) for ids in prompts]
    solving = [Fork(sequence, sequence.prompt_len, None, GREEDY, i) for i, sequence in enumerate(sequences)]
    whole = [
        TokenSequence(np.concatenate([prompts[key], completion.ids]), len(prompts[key]))  # type: ignore[index]
        for key, completion in engine.run(ListSource(solving), budget=budget)
        if completion.finish == "stop"
    ]
    forks = []
    for index, top in engine.score_all(whole, k=1 + len(eos_ids)):
        sequence = whole[index]
        ids_RK, _ = alternatives(sequence.ids[sequence.prompt_len :], top, k=1, eos_ids=eos_ids)
        forks += [
            Fork(sequence, sequence.prompt_len + t, int(first), GREEDY, (index, t))
            for t, first in enumerate(ids_RK[:, 0])
        ]
    return forks


def show(rates: dict[str, dict[str, int]], *, title: str) -> None:
    table = Table("engine", "tokens/s", "tokens/s of processor time", "equal to the first", title=title)
    for name, found in rates.items():
        table.add_row(name, *(f"{found[key]:,}" for key in ("tokens_per_s", "tokens_per_cpu_s", "equal")))
    console.print(table)


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
