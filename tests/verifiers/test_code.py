"""Programs of a model: what is the program, what is right, and that nothing else is, nor left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cft.benchmarks.rows import LAYOUTS
from cft.benchmarks.sets import verifier_for
from cft.config.build import build
from cft.data.problem_rows import json_lines
from cft.errors import BadValue
from cft.locked import CannotLock, require_lock, session
from cft.types import Decision, ThinkingTags, Verdict
from cft.verifiers import Code, FirstAnswer
from cft.verifiers.code import gold_of, program_of
from cft.verifiers.pool import VerifierPool
from cft.verifiers.verdict import require_ready
from tests.hostile_programs import HOSTILE, MODULES, NAMES, QUICK, RIGHT, TEST
from tests.stage import composed

ROOT = Path(__file__).parent.parent.parent
SAMPLES = ROOT / "tests" / "benchmarks" / "samples"
HEAD = 'def f(x):\n    """ Add one. """\n'


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are locked by seccomp filters")


def tried(
    program: str, *, test: str = TEST, names: tuple[str, ...] = NAMES, setup: str = "", cpu_s: int = 1
) -> Verdict:
    """One set of modules for all, so that one nursery serves them."""
    code = Code(cpu_s=cpu_s, memory_mb=256, modules=MODULES)
    return code(f"```python\n{program}\n```", gold_of(setup=setup, test=test, names=names))


def left_behind() -> list[str]:
    """Files of the hostile ones, and processes of theirs, which would be copies of the nursery."""
    files = [str(path) for path in (Path("/tmp/cft-hostile"), Path("cft-hostile")) if path.exists()]
    nursery = session._nursery(MODULES, os.getpid())._process.pid
    children = Path(f"/proc/{nursery}/task/{nursery}/children").read_text().split()
    return files + children


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in HOSTILE]
)
def test_no_hostile_program_is_right_and_nothing_of_it_is_left(name: str) -> None:
    kept = Path("/tmp/cft-kept")
    kept.touch()
    begun = time.monotonic()
    verdict = tried(HOSTILE[name])
    assert verdict.decision in (Decision.WRONG, Decision.UNDECIDED), verdict
    assert not verdict.failed  # the verifier came to an end, whatever the program did
    assert time.monotonic() - begun < 60  # ended after 8 s by the clock; a busy machine takes longer to see it
    assert left_behind() == []
    assert kept.exists()
    kept.unlink()


def test_after_all_of_that_a_right_program_is_right() -> None:
    assert tried(RIGHT) == Verdict(Decision.RIGHT, tried(RIGHT).extracted, True, "all assertions hold")
    assert tried("def f(x):\n    return x").reason == "an assertion failed: assert f(2) == 3"


@pytest.mark.parametrize(
    ("program", "decision", "reason"),
    [
        ("def g(x):\n    return x + 1", "wrong", "NameError: the program defines no f"),
        ("def f(x): return (", "wrong", "SyntaxError"),
        ("def f(x):\n    raise KeyError('no')", "wrong", "KeyError"),
        ("import numpy\n" + RIGHT, "undecided", "no module 'numpy'"),
        ("import os\nos._exit(0)", "wrong", "the program ended itself (exit code 0)"),
        ("x = bytearray(10 << 30)", "undecided", "out of memory"),
        ("def f(x):\n    return lambda: x", "wrong", "an assertion failed: assert f(2) == 3"),
        ("from __future__ import annotations\nimport math, re\nfrom collections import *\n" + RIGHT, "right", ""),
        ("if __name__ == '__main__':\n    raise SystemExit\n" + RIGHT, "right", ""),
    ],
)
def test_why(program: str, decision: str, reason: str) -> None:
    verdict = tried(program)
    assert verdict.decision == decision
    assert reason in verdict.reason


def test_what_goes_from_process_to_process() -> None:
    """Plain data by value, changes of arguments too; what is derived from it as its base; anything else stays."""
    program = (
        "from collections import Counter, namedtuple\nfrom fractions import Fraction\nP = namedtuple('P', 'x y')\n"
        "class Node:\n    def __init__(self, v): self.v, self.next = v, None\n    def last(self): return self.next or self\n"
        "def echo(x): return x\ndef count(x): return Counter(x)\ndef pair(): return P(1, Fraction(1, 3))\n"
        "def grow(x):\n    x.append(4)\ndef numbers(n):\n    yield from range(n)\n"
        "def fails():\n    raise ValueError('as told')\n"
    )
    test = (
        "for x in (None, True, 1, -1.5, float('inf'), 2j, 'a\\ud800', b'b', [1, (2, {3})], {'k': {1: []}}, range(3), int,\n"
        "          10**5000, frozenset([1])):\n    assert echo(x) == x and type(echo(x)) is type(x), x\n"
        "assert echo(float('nan')) != echo(float('nan'))\n"
        "assert count('aab') == {'a': 2, 'b': 1}\nassert pair() == (1, 1 / Fraction(3))\n"
        "x = [1]\ngrow(x)\nassert x == [1, 4]\nassert list(numbers(3)) == [0, 1, 2]\n"
        "first = Node(7)\nfirst.next = Node(8)\nassert first.next.v == 8 and first.last() is first.next\n"
        "assert echo(first) is first and first != 7\n"
        "try:\n    fails()\n    assert False\nexcept ValueError as error:\n    assert str(error) == 'as told'\n"
    )
    names = ("echo", "count", "pair", "grow", "numbers", "Node", "fails")
    verdict = tried(program, test=test, names=names, setup="from fractions import Fraction")
    assert verdict.decision == "right", verdict
    assert tried(program, test="assert echo(lambda: 1)", names=names).reason.startswith(
        "the test hands over what does not"
    )


def test_a_program_does_not_replace_what_a_test_calls() -> None:
    """A program's own `abs`, `poly` and imports are its own: the test's are the language's and the problem's."""
    program = (
        "import math\ndef abs(x):\n    return 0\nmath.fabs = abs\ndef poly(x):\n    return 0\ndef f(x):\n    return 7"
    )
    for test in ("assert abs(f(2) - 3) < 1e-6", "assert math.fabs(f(2) - 3) < 1e-6", "assert poly(f(2)) == 9"):
        assert tried(program, test=test, setup="import math\ndef poly(x):\n    return x * x").decision == "wrong"


def test_a_test_that_catches_everything_or_calls_nothing_makes_nothing_right() -> None:
    caught = "try:\n    f(2)\nexcept BaseException:\n    pass\n"
    assert tried("import os\ndef f(x):\n    os._exit(0)", test=caught).decision == "wrong"
    assert tried(RIGHT, test="assert True").reason == "the test never called the program"
    assert tried(RIGHT, test="assert (").reason.startswith("the test itself does not run")


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_published_solutions_pass_and_broken_ones_do_not(name: str) -> None:
    code = Code(cpu_s=1, memory_mb=256, modules=MODULES)
    for row in json_lines(SAMPLES / f"{name}.jsonl"):
        assert row.value is not None
        _, gold, solution = LAYOUTS[name].read(row.value)
        verdict = code(solution, gold)
        assert verdict.decision == "right", verdict
        broken = solution
        for a, b in (("+", "-"), ("abs(b - a)", "1"), ("math.pi", "3"), ("- 1)", "- 2)")):
            broken = broken.replace(a, b)
        assert code(broken, gold).decision == "wrong"
        assert code("I do not know.", gold).decision == "wrong"


@pytest.mark.parametrize(
    ("response", "program", "closed"),
    [
        ("    return x + 1\n", HEAD + "    return x + 1\n", False),
        ("    return x + 1\n\n\nprint(f(1))", HEAD + "    return x + 1\n\n\n", True),
        ("    return x + 1\n# so", HEAD + "    return x + 1\n", True),
        ("Here:\n```python\ndef f(x):\n    return x + 1\n```\nso.", HEAD + "\n\ndef f(x):\n    return x + 1\n", True),
        ("```python\ndef f(x):\n    return 1", HEAD + "\n\ndef f(x):\n    return 1", False),
        ("```\n    return x\n```", HEAD + "    return x\n", True),
        (
            "```py\ndef f(x): return 1\n```\n```py\ndef f(x): return 2\n```\n```py\nf(1)\n```",
            HEAD + "\n\ndef f(x): return 2\n",
            True,
        ),
        ("```text\n3\n```\n```python\ndef f(x): return 3\n```", HEAD + "\n\ndef f(x): return 3\n", True),
        ("Sure.\nimport math\ndef f(x):\n    return 3\n", HEAD + "\n\nimport math\ndef f(x):\n    return 3\n", False),
    ],
)
def test_which_part_of_a_response_is_the_program(response: str, program: str, closed: bool) -> None:
    assert program_of(response, before=HEAD, names=["f"]) == (program, closed)


def test_a_program_of_its_own_ends_at_the_mark_of_the_paper() -> None:
    assert program_of("def f(x): return 1\n[DONE]\nf(", before="", names=["f"]) == ("def f(x): return 1\n", True)


def test_in_the_pool_weak_programs_are_no_fault_of_the_verifier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cft.verifiers.pool.SUSPICIOUS", 2)
    gold = gold_of(test=TEST, names=["f"])
    with VerifierPool(Code(cpu_s=1, memory_mb=256), workers=1, timeout_s=3.0) as pool:
        verdicts = pool.verify_all(
            [("x = bytearray(10 << 30)\ndef f(x): 1", gold), ("def f(x):\n return [f", gold), (RIGHT, gold)]
        )
        assert [verdict.decision for verdict in verdicts] == ["undecided", "wrong", "right"]
        (worker,) = pool.worker_pids()
        nursery = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
    assert nursery
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in nursery) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(Path(f"/proc/{pid}").exists() for pid in nursery)  # it ends with the worker that began it


def test_a_nursery_that_was_ended_from_outside_leaves_its_program_undecided_and_is_begun_again() -> None:
    nursery = session._nursery(MODULES, os.getpid())
    timer = threading.Timer(0.3, lambda: os.kill(nursery._process.pid, signal.SIGKILL))
    timer.start()
    verdict = tried("import time\ntime.sleep(3)\n" + RIGHT)
    assert (verdict.decision, verdict.reason) == ("undecided", "the process that runs programs was ended from outside")
    assert tried(RIGHT).decision == "right"


def test_a_process_without_the_lock_is_found_out() -> None:
    code = (
        "from cft.locked import nursery\nnursery.lock = lambda **given: None\nnursery.MODULES = 'socket'\n"
        "print(*nursery._probe(), sep=', ')"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.strip() == (
        "make a socket, write a file, read a file, list a folder, begin a process, run a program (No such file or directory, "
        "not refused), send a signal, ask for limits"
    )


def test_a_machine_that_cannot_lock_is_told_before_anything_is_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    require_lock.cache_clear()
    (tmp_path / "cft").mkdir()
    (tmp_path / "cft" / "__init__.py").write_text("raise SystemExit('no such thing here')")
    monkeypatch.setattr(session, "_environment", lambda: {"PYTHONPATH": str(tmp_path)})
    with pytest.raises(
        CannotLock, match=r"verifier=code: this machine cannot lock a process.*no such thing here.*seccomp"
    ):
        Code(cpu_s=1, memory_mb=256).require_ready()
    monkeypatch.undo()
    require_lock.cache_clear()
    with pytest.raises(CannotLock, match=r"verifier.modules: no_such_module: ModuleNotFoundError"):
        Code(cpu_s=1, memory_mb=256, modules=["no_such_module"]).require_ready()


def test_a_verifier_within_another_is_asked_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(modules: tuple[str, ...]) -> None:
        raise CannotLock("no lock here")

    monkeypatch.setattr("cft.verifiers.code.require_lock", refuse)
    splits = build(composed("evaluate", "benchmark=humaneval", f"benchmark.dir={SAMPLES}").benchmark)
    with pytest.raises(CannotLock, match="no lock here"):
        verifier_for(splits, chosen=build(composed("evaluate").verifier), thinking=ThinkingTags("<think>", "</think>"))
    with pytest.raises(CannotLock, match="no lock here"):
        require_ready(FirstAnswer(inner=Code(cpu_s=1, memory_mb=1)))


def test_bad_settings_and_answers() -> None:
    with pytest.raises(BadValue, match=r"Code.cpu_s: expected an integer of at least 1"):
        Code(cpu_s=0, memory_mb=1)
    for answer in ("5", "[]", json.dumps({"test": "x"}), gold_of(test="x", names=[])):
        assert Code(cpu_s=1, memory_mb=256)("x", answer).reason == "the gold answer is no test of a program"
