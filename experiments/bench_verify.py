"""Speed and correctness of verifiers: python -m experiments.bench_verify [--data DIR] [--hostile 3000] [--seed 0] [--workers 2]

1. Answers per second through the pool of verifier processes, one worker, on easy answers: those that plain Python decides
   (numbers, units, fractions, lists, words), as most answers of a benchmark are. Besides wall time, the worker's own CPU time
   is reported, which other programs on the machine do not affect.
2. --data: the benchmarks' rows in a folder (`data.dir`). Gold answers in every style (all should be right), changed answers
   (none should be), equivalent forms (all should be), compared with math-verify alone on the same boxed answers.
3. --hostile: number of answers that make evaluation explode, under a deadline of 3 s of CPU time: how many are graded as right,
   and how many end at the deadline. -> outputs/bench_verify/result.json
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from cft.benchmarks.sets import members_of, verifier_for
from cft.config.build import CONF_DIR, build, checked
from cft.files import write_json
from cft.types import Verdict, Verifier
from cft.verifiers import Math, MultipleChoice, Numeric, Options
from cft.verifiers.pool import VerifierPool
from experiments.verify_samples import BOXED, STYLES, MathVerify, changed, equal_forms, hostile

OUT = Path("outputs/bench_verify")
NUM_ITEMS = 4000
SAMPLE_DEADLINE_S = 20.0  # deadline for the samples, none of which are hostile; long, since a busy machine is slow

Item = tuple[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the benchmarks' files, as data.dir")
    parser.add_argument("--rows", type=int, default=60, help="of each benchmark")
    parser.add_argument("--hostile", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    numeric = Numeric(fallback_last_number=True)
    cases: dict[str, tuple[Verifier, list[Item]]] = {
        "numeric": (numeric, _numbers()),
        "math": (Math(fallback_last_number=True, lists="set"), _formulas()),
        "options": (Options(inner=numeric), _options()),
        "multiple_choice": (MultipleChoice(choices="ABCDE"), [(f"The answer is ({c}).", "B") for c in "ABCD"] * 1000),
    }
    results["throughput"] = {name: measured(verifier, items) for name, (verifier, items) in cases.items()}
    for name, found in results["throughput"].items():
        print(
            f"{name:16} {found['per_second']:>8.0f} answers/s, {found['per_cpu_second']:>8.0f} a second of the worker's CPU"
        )
    if arguments.data:
        results["samples"] = on_samples(arguments.data, rows=arguments.rows, workers=arguments.workers)
    if arguments.hostile:
        results["hostile"] = on_hostile(arguments.hostile, seed=arguments.seed, workers=arguments.workers)
    write_json(OUT / "result.json", results)
    print(f"-> {OUT / 'result.json'}")


def on_samples(data: Path, *, rows: int, workers: int) -> dict[str, Any]:
    """Verdicts on all sample rows: each row is (kind, verifier, response, gold answer, expected verdict)."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = checked(compose("evaluate", overrides=["benchmark=cft11", f"data.dir={data}"]), "evaluate")
    chosen = build(cfg.verifier)
    ours: dict[Verifier, list[tuple[str, Item]]] = {}
    for splits in members_of(build(cfg.benchmark)).values():
        items = ours.setdefault(verifier_for(splits, chosen=chosen, thinking=cfg.verify.thinking.tags), [])
        for problem in splits.of("test")[:rows]:
            gold = problem.answer
            items += [("gold", (style % gold, gold)) for style in STYLES.values()]
            items += [("changed", (BOXED % text, gold)) for text in changed(gold)]
            items += [("equal", (BOXED % text, gold)) for text in equal_forms(gold)]
    verdicts: list[tuple[str, Item, Verdict]] = []
    for verifier, items in ours.items():
        verdicts += _graded(verifier, items, workers)
    boxed = [(kind, item) for kind, item, _ in verdicts if item[0].startswith(BOXED[:6])]
    theirs = {item: verdict for _, item, verdict in _graded(MathVerify(), boxed, workers)}
    table = {
        who: {
            kind: dict(Counter(str(v.decision) for k, _, v in found if k == kind))
            for kind in ("gold", "changed", "equal")
        }
        for who, found in {"ours": verdicts, "math-verify": [(k, i, theirs[i]) for k, i in boxed]}.items()
    }
    both = [
        (k, i, v, theirs[i])
        for k, i, v in verdicts
        if i in theirs and "undecided" not in (v.decision, theirs[i].decision)
    ]
    agree = sum(v.decision == other.decision for _, _, v, other in both)
    for who, kinds in table.items():
        print(f"{who:12} " + "   ".join(f"{kind}: {counts}" for kind, counts in kinds.items()))
    print(f"both decide {len(both)} boxed answers, and agree on {agree} ({agree / max(len(both), 1):.2%})")
    unlike = [
        {
            "kind": kind,
            "response": item[0],
            "gold": item[1],
            "decision": str(v.decision),
            "reason": v.reason,
            "failed": v.failed,
        }
        for kind, item, v in verdicts
        if (kind == "changed") == (v.decision == "right")
    ]
    differing = [
        {"kind": kind, "response": i[0], "gold": i[1], "ours": str(v.decision), "math-verify": str(other.decision)}
        for kind, i, v, other in both
        if v.decision != other.decision
    ]
    failed = [{"response": item[0], "gold": item[1], "reason": v.reason} for _, item, v in verdicts if v.failed]
    print(f"failed (deadline or crash): {len(failed)} of {len(verdicts)}")
    return {
        "table": table,
        "decided_by_both": len(both),
        "agree": agree,
        "failed": failed,
        "unlike": unlike,
        "differing": differing,
    }


def _graded(verifier: Verifier, items: list[tuple[str, Item]], workers: int) -> list[tuple[str, Item, Verdict]]:
    with VerifierPool(verifier, workers=workers, timeout_s=SAMPLE_DEADLINE_S) as pool:
        found = pool.verify_all([item for _, item in items])
    return [(kind, item, verdict) for (kind, item), verdict in zip(items, found, strict=True)]


def on_hostile(count: int, *, seed: int, workers: int) -> dict[str, Any]:
    """Results on hostile answers with the deadline of the configs."""
    items = hostile(count, seed=seed)
    started = time.monotonic()
    with VerifierPool(Math(fallback_last_number=True, lists="unknown"), workers=workers, timeout_s=3.0) as pool:
        verdicts = pool.verify_all(items)
    seconds = time.monotonic() - started
    counts = Counter(str(verdict.decision) for verdict in verdicts)
    failed = [
        {"response": i[0][:600], "gold": i[1], "reason": v.reason}
        for i, v in zip(items, verdicts, strict=True)
        if v.failed
    ]
    right = [
        {"response": i[0][:600], "gold": i[1]} for i, v in zip(items, verdicts, strict=True) if v.decision == "right"
    ]
    print(f"hostile: {dict(counts)} of {count}, {len(failed)} ended by the deadline or a crash, {seconds:.0f} s")
    return {"items": count, "seed": seed, "verdicts": counts, "failed": failed, "right": right, "seconds": seconds}


def measured(verifier: Verifier, items: list[Item]) -> dict[str, object]:
    """Rates of one worker, without its start-up time."""
    with VerifierPool(verifier, workers=1, timeout_s=10.0) as pool:
        pool.verify_all(items[:8])
        (pid,) = pool.worker_pids()
        cpu, started = _cpu_seconds(pid), time.monotonic()
        verdicts = pool.verify_all(items)
        wall, cpu = time.monotonic() - started, _cpu_seconds(pid) - cpu
    counts = Counter(str(verdict.decision) for verdict in verdicts)
    return {
        "items": len(items),
        "per_second": len(items) / wall,
        "per_cpu_second": len(items) / max(cpu, 1e-9),
        "verdicts": dict(sorted(counts.items())),
    }


def _numbers() -> list[Item]:
    return [
        (f"First {i}, then one more makes {i + 1}.\n#### {i + 1 + (i % 5 == 0)}", str(i + 1)) for i in range(NUM_ITEMS)
    ]


def _formulas() -> list[Item]:
    """Right and wrong answers in the forms of MATH's gold answers; none of them needs algebra."""
    forms = [
        lambda i: (f"{i}", f"{i + i % 2}"),
        lambda i: (f"\\dfrac{{{i}}}{{7}}", f"\\frac{{{i}}}7"),
        lambda i: (f"{i} \\text{{ cm}}^2", f"{i}"),
        lambda i: (f"({i}, {i + 1})", f"\\left({i},{i + 1}\\right)"),
        lambda i: (f"{i},\\!000", f"{i}000"),
        lambda i: (f"\\{{{i},2\\}}", f"\\{{2,{i + i % 2}\\}}"),
        lambda i: (f"x \\le {i}", f"(-\\infty,{i}]"),
        lambda i: ("\\text{ellipse}", "\\text{hyperbola}" if i % 2 else "\\text{ellipse}"),
        lambda i: (f"\\begin{{pmatrix}}{i}\\\\2\\end{{pmatrix}}", f"\\begin{{bmatrix}}{i} \\\\ 2\\end{{bmatrix}}"),
        lambda i: (f"{i}^\\circ", f"{i}"),
    ]
    made = [forms[i % len(forms)](i) for i in range(NUM_ITEMS)]
    return [(f"So we get $\\boxed{{{answer}}}$.", gold) for answer, gold in made]


def _options() -> list[Item]:
    days = ("Monday", "Tuesday", "Wednesday", "Thursday")
    return [(f"The answer is {days[i % 4]}.", "(B) Tuesday") for i in range(NUM_ITEMS)]


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
