"""Compares engines on the same forks in one run: python -m experiments.bench_engines

    python -m experiments.bench_engines [--engines shared_prefix continuous] [--problems 24] [--rounds 3] [overrides ...]

The first engine solves problems and ranks the tokens of the responses. In each round, every engine in turn continues one
alternative of every position, as in an annotation: the second most probable token in the first round (a warm-up that is not
counted), the third in the next. So no fork occurs twice, and prefix caches are as effective as in an annotation.

An engine is a name, optionally followed by its settings: --engines shared_prefix "vllm engine.enforce_eager=true".
Overrides are those of `cft annotate`: model=smollm2 data=..., device=cuda, max_new_tokens=N and so on. The last line of the
output is JSON: decoded tokens per second of wall time and of CPU time, child processes of an engine included (median over
rounds), number of continuations equal to the first engine's, processor, device.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table

from cft.annotation.counterfactual import ListSource, alternatives
from cft.cli.job import composed
from cft.config.build import build
from cft.models.lazy import LazyModel
from cft.models.load import load_tokenizer
from cft.quiet import quiet_libraries
from cft.types import GREEDY, Budget, Engine, Fork, Key, TokenSequence

console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares engines on the same forks.")
    parser.add_argument("--engines", nargs="+", default=["shared_prefix", "continuous"])
    parser.add_argument("--problems", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="of cft annotate")
    arguments = parser.parse_args()
    quiet_libraries()
    found = measured(arguments.engines, arguments.overrides, problems=arguments.problems, rounds=arguments.rounds)
    print(json.dumps(found))


def measured(engines: list[str], overrides: list[str], *, problems: int, rounds: int) -> dict[str, Any]:
    cfg, _ = composed("annotate", overrides)
    spec, prompt = build(cfg.model), build(cfg.prompt)
    tokenizer = load_tokenizer(spec)
    model = LazyModel(spec, tokenizer, device=cfg.device, ends=[prompt.end_id(tokenizer)])
    budget = Budget(cfg.max_new_tokens)
    settings = {name: own for name, *own in map(str.split, engines)}
    asked = build(cfg.data).of(cfg.split)[:problems]
    prompts = [np.asarray(prompt.ids(tokenizer, problem.question), dtype=np.int32) for problem in asked]
    with ExitStack() as held:
        made: dict[str, Engine] = {}
        for name, own in settings.items():
            config, _ = composed("annotate", [*overrides, f"engine={name}", *own])
            made[name] = held.enter_context(closing(build(config.engine)(model)))
        first = next(iter(made))
        forks_by_round = counterfactuals(
            made[first], prompts, rounds=rounds + 1, budget=budget, eos_ids=model.facts.eos_ids
        )
        timed = {name: [decoded(engine, forks, budget) for forks in forks_by_round] for name, engine in made.items()}
        device = made[first].facts()["device"]
    counted = {name: found[1:] for name, found in timed.items()}
    rates = {name: rates_of(found, counted[first]) for name, found in counted.items()}
    for rate in rates.values():
        rate["of_the_first"] = round(rate["tokens_per_cpu_s"] / rates[first]["tokens_per_cpu_s"], 3)
    machine = {"processor": processor(), "threads": torch.get_num_threads(), "device": device}
    number = sum(len(forks) for forks in forks_by_round[1:])
    show(rates, title=f"{spec.name}, {number} continuations, {device}, {machine['threads']} threads")
    tokens = sum(round_.tokens for round_ in counted[first])
    return {
        "model": spec.name,
        "dtype": spec.dtype,
        "forks": number,
        "tokens": tokens,
        "rounds": rounds,
        **machine,
        "settings": {name: " ".join(own) for name, own in settings.items()},
        "engines": rates,
    }


@dataclass(frozen=True, slots=True)
class Round:
    wall_s: float
    cpu_s: float
    tokens: int
    ids: dict[Key, list[int]]


def decoded(engine: Engine, forks: list[Fork], budget: Budget) -> Round:
    wall, cpu = time.perf_counter(), processor_seconds()
    found = dict(engine.run(ListSource(forks), budget=budget))
    wall, cpu = time.perf_counter() - wall, processor_seconds() - cpu
    tokens = sum(completion.num_decoded for completion in found.values())
    return Round(wall, cpu, tokens, {key: completion.ids.tolist() for key, completion in found.items()})


def rates_of(rounds: list[Round], first: list[Round]) -> dict[str, float]:
    equal = sum(
        mine.ids[key] == ids for mine, other in zip(rounds, first, strict=True) for key, ids in other.ids.items()
    )
    return {
        "tokens_per_s": round(statistics.median(r.tokens / r.wall_s for r in rounds)),
        "tokens_per_cpu_s": round(statistics.median(r.tokens / r.cpu_s for r in rounds)),
        "equal": equal,
    }


def processor_seconds() -> float:
    """CPU seconds of this process and its child processes; vLLM decodes in a child process."""
    own = psutil.Process()
    times = [own.cpu_times()]
    for process in own.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            times.append(process.cpu_times())
    return sum(spent.user + spent.system for spent in times)


def counterfactuals(
    engine: Engine, prompts: list[np.ndarray], *, rounds: int, budget: Budget, eos_ids: tuple[int, ...]
) -> list[list[Fork]]:
    """Forks of each round: each token of each response that ended with EOS, replaced by another alternative per round."""
    sequences = [TokenSequence(ids, len(ids)) for ids in prompts]
    solving = [Fork(sequence, sequence.prompt_len, None, GREEDY, i) for i, sequence in enumerate(sequences)]
    whole = [
        TokenSequence(np.concatenate([prompts[key], completion.ids]), len(prompts[key]))  # type: ignore[index]
        for key, completion in engine.run(ListSource(solving), budget=budget)
        if completion.finish == "stop"
    ]
    if not whole:
        raise SystemExit(
            f"none of the {len(prompts)} responses ended within max_new_tokens={budget.max_new_tokens}, so there is nothing to "
            "replace tokens of: raise max_new_tokens or --problems"
        )
    forks: list[list[Fork]] = [[] for _ in range(rounds)]
    for index, top in engine.score_all(whole, k=rounds + len(eos_ids)):
        sequence = whole[index]
        ids_RK, _ = alternatives(sequence.ids[sequence.prompt_len :], top, k=rounds, eos_ids=eos_ids)
        for k, of_round in enumerate(forks):
            of_round += [
                Fork(sequence, sequence.prompt_len + t, int(first), GREEDY, (index, t, k))
                for t, first in enumerate(ids_RK[:, k])
            ]
    return forks


def show(rates: dict[str, dict[str, float]], *, title: str) -> None:
    columns = ("tokens_per_s", "tokens_per_cpu_s", "of_the_first", "equal")
    table = Table("engine", "tokens/s", "tokens/s of CPU time", "relative to first", "equal to first", title=title)
    for name, found in rates.items():
        table.add_row(name, *(f"{found[key]:,}" for key in columns))
    console.print(table)


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
