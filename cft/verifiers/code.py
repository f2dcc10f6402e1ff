r"""A response is a program: it is right if the test of its problem holds, tried in locked processes (`cft/locked`).

The gold answer is the test, as JSON (`gold_of`). Which part of a response is the program: the last fenced block that defines
what is tested, else the last fenced block, else the text, without prose before it. What does not define it continues the
problem's text, and ends where the field ends such completions: before a new line that begins with class, def, #, if, print
(arXiv 2107.03374), or [DONE].
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from cft.locked import Trial, require_lock, tried
from cft.ranges import AtLeastOne, require_in_range
from cft.types import Decision, Verdict
from cft.verifiers.verdict import LastAnswer, shown

WAIT = 8  # times the processor time, by the clock

_BLOCK = re.compile(
    r"^[ \t]*(```+|~~~+)[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:(^[ \t]*\1[ \t]*$)|\Z)", re.MULTILINE | re.DOTALL
)
_PYTHON = ("", "py", "python", "python3")
_STOP = re.compile(r"\n(?:class|def|#|if|print|```|\[DONE\])")
_BEGIN = re.compile(r"^(?:from|import|def|class|async def|@)\b", re.MULTILINE)
_GOLD = {"before": str, "setup": str, "test": str, "entry": str, "names": list}


@dataclass(frozen=True, slots=True, kw_only=True)
class Code(LastAnswer):
    """The response's program passes the test: runs in a process that can only compute, apart from the test. Deadline, lack of
    memory and a crash are undecided; so is what needs a module that is not loaded there.

    Args:
        cpu_s: seconds of processor time for the program, and for the test; by the clock 8 times as many for both.
        memory_mb: MiB for each.
        modules: to load beside those of the standard library that need neither files nor network.
    """

    name: ClassVar[str] = "code"
    version: ClassVar[str] = "1"
    cpu_s: AtLeastOne
    memory_mb: AtLeastOne
    modules: Sequence[str] = ()

    def __post_init__(self) -> None:
        require_in_range(self)
        object.__setattr__(self, "modules", tuple(self.modules))

    def require_ready(self) -> None:
        """Raises CannotLock where this machine cannot run a program under lock."""
        require_lock(tuple(self.modules))

    def __call__(self, response: str, answer: str) -> Verdict:
        gold = _gold(answer)
        if gold is None:
            return Verdict(Decision.UNDECIDED, "", False, "the gold answer is no test of a program")
        program, closed = program_of(response, before=gold["before"], names=gold["names"])
        trial = Trial(program, gold["setup"], gold["test"], tuple(gold["names"]), gold["entry"])
        report = tried(
            trial,
            cpu_s=self.cpu_s,
            wall_s=WAIT * self.cpu_s,
            memory_bytes=self.memory_mb << 20,
            modules=tuple(self.modules),
        )
        digest = hashlib.sha256(program.encode("utf-8", errors="replace")).hexdigest()
        return Verdict(Decision(report.decision), f"program {digest[:12]}", closed, shown(report.reason))


def gold_of(*, before: str = "", setup: str = "", test: str, names: Sequence[str], entry: str = "") -> str:
    """The gold answer of a problem.

    Args:
        before: what a completion continues, such as the head of a function; "" where the response is the whole program.
        setup: run beside the test, such as imports and helpers of its own.
        test: statements, with assertions.
        names: what the test takes from the program.
        entry: the one of them that the test calls `candidate`, "" for none.
    """
    return json.dumps({"before": before, "setup": setup, "test": test, "names": list(names), "entry": entry})


def program_of(response: str, *, before: str, names: Sequence[str]) -> tuple[str, bool]:
    """(the program, whether more of the response could not change it: its block is closed, or it came to a stop)."""
    defined = re.compile(
        rf"^[ \t]*(?:(?:async[ \t]+)?def|class)[ \t]+(?:{'|'.join(map(re.escape, names))})\b", re.MULTILINE
    )
    blocks = [found for found in _BLOCK.finditer(response) if found[2].lower() in _PYTHON or defined.search(found[3])]
    chosen = next((block for block in reversed(blocks) if defined.search(block[3])), blocks[-1] if blocks else None)
    if chosen is None:
        text, closed = response, False
    else:
        text, closed = chosen[3], chosen[4] is not None
    if defined.search(text):
        if chosen is None:
            text, done, _ = text.partition("[DONE]")
            begin = None if _parses(text) else _BEGIN.search(text)
            text, closed = text[begin.start() if begin else 0 :], bool(done)
        return (f"{before}\n\n" if before else "") + textwrap.dedent(text), closed
    stop = None if chosen else _STOP.search(text)
    return before + (text[: stop.start() + 1] if stop else text), closed or stop is not None


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


def _gold(answer: str) -> dict[str, Any] | None:
    try:
        found = json.loads(answer)
    except ValueError:
        return None
    fits = isinstance(found, dict) and all(isinstance(found.get(key), kind) for key, kind in _GOLD.items())
    return found if fits and found["names"] and all(isinstance(name, str) for name in found["names"]) else None
