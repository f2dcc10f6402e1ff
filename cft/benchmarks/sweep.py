"""`cft evaluate benchmark=gsm8k,math` is one run on both with one loaded model; with -m it is a sweep, as Hydra has it.

The list is expanded into overrides that Hydra supports, before Hydra and the config check see the command line:

    benchmark=suite benchmark.name=gsm8k+math +benchmark@benchmark.members.gsm8k=gsm8k +benchmark@benchmark.members.math=math
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_LIST = re.compile(r"benchmark=\[?([\w./-]+(?:\s*,\s*[\w./-]+)+)\]?")


def in_one_run(argv: Sequence[str]) -> list[str]:
    """The command line with a list of benchmarks expanded; unchanged without one, or in a multirun."""
    if any(word in ("-m", "--multirun") or word.lstrip("+") == "hydra.mode=MULTIRUN" for word in argv):
        return list(argv)
    words: list[str] = []
    for word in argv:
        match = _LIST.fullmatch(word)
        words += _suite(re.split(r"\s*,\s*", match.group(1))) if match else [word]
    return words


def is_benchmark_override(name: str) -> bool:
    """Whether an override is about the benchmark: benchmark, benchmark.x, benchmark@benchmark.members.x."""
    return re.split(r"[@./]", name)[0] == "benchmark"


def _suite(names: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(names))
    members = [f"+benchmark@benchmark.members.{re.sub(r'[^0-9A-Za-z_]', '_', name)}={name}" for name in names]
    return ["benchmark=suite", f"benchmark.name={'+'.join(names)}", *members]
