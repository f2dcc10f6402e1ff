"""python -m experiments.bench_verify

Answers a second through the pool of verifier processes, one worker, on easy answers: those that plain Python decides
(numbers, units, fractions, lists, words), as most answers of a benchmark are. Beside the wall clock stands the worker's
own processor time, which other programs on the machine do not stretch. -> outputs/bench_verify/result.json
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from pathlib import Path

from cft.files import write_json
from cft.judging.verify_pool import VerifierPool
from cft.types import Verifier
from cft.verify import Math, MultipleChoice, Numeric
from cft.verify_choice import Options

OUT = Path("outputs/bench_verify")
NUM_ITEMS = 4000

Item = tuple[str, str]


def main() -> None:
    numeric = Numeric(fallback_last_number=True)
    cases: dict[str, tuple[Verifier, list[Item]]] = {
        "numeric": (numeric, _numbers()),
        "math": (Math(fallback_last_number=True, lists="set"), _formulas()),
        "options": (Options(inner=numeric), _options()),
        "multiple_choice": (MultipleChoice(choices="ABCDE"), [(f"The answer is ({c}).", "B") for c in "ABCD"] * 1000),
    }
    results = {name: measured(verifier, items) for name, (verifier, items) in cases.items()}
    for name, found in results.items():
        print(
            f"{name:16} {found['per_second']:>8.0f} answers/s, {found['per_cpu_second']:>8.0f} a second of the worker's CPU"
        )
    write_json(OUT / "result.json", results)
    print(f"-> {OUT / 'result.json'}")


def measured(verifier: Verifier, items: list[Item]) -> dict[str, object]:
    """Rates of one worker, its start left out."""
    with VerifierPool(verifier, workers=1, timeout_s=10.0) as pool:
        pool.verify_all(items[:8])
        (pid,) = pool.worker_pids()
        cpu, started = _cpu_seconds(pid), time.monotonic()
        verdicts = pool.verify_all(items)
        wall, cpu = time.monotonic() - started, _cpu_seconds(pid) - cpu
    counts = Counter(str(verdict.judgement) for verdict in verdicts)
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
    """Right and wrong answers in the forms that MATH's gold answers take; none of them needs algebra."""
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
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
