"""The pool: order, deadlines, crashes, memory, isolation, throughput. A fault touches the item that caused it alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cft.types import Decision, Verdict
from cft.verifiers import Math, Numeric
from cft.verifiers.pool import VerifierError, VerifierPool
from tests.verifiers.hostile import HOSTILE, UNANSWERED
from tests.verifiers.verifier_fakes import Introspective, Misbehaving, Unimportable

ROOT = Path(__file__).parent.parent.parent
NUMERIC = Numeric(fallback_last_number=True)


@pytest.fixture(scope="module")
def misbehaving() -> Iterator[VerifierPool]:
    """One pool for all faults: each worker that a fault ends is replaced. By the clock it is patient, as on a busy machine."""
    with pytest.MonkeyPatch.context() as patch, VerifierPool(Misbehaving(), workers=2, timeout_s=0.2) as pool:
        patch.setattr("cft.verifiers.pool.WAIT", 300)
        yield pool


def test_verdicts_keep_the_order_and_equal_those_of_a_direct_call() -> None:
    items = [(f"{i % 7} + {i} = {i + i % 7 + (i % 3 == 0)}", str(i + i % 7)) for i in range(300)]
    with VerifierPool(NUMERIC, workers=2, timeout_s=5.0) as pool:
        assert pool.verify_all(items) == [NUMERIC(*item) for item in items]
        assert pool.verify_all([]) == []
        assert pool.verify_all(items[:1]) == [NUMERIC(*items[0])]


def test_a_fault_makes_its_own_item_undecided_and_no_other(misbehaving: VerifierPool) -> None:
    reasons = {
        "spin": "no verdict within 0.2 s of processor time",
        "die": "signal 9",
        "segfault": "signal 11",
        "exit": "exit code 7",
        "hoard": "MemoryError",
        "recurse": "RecursionError",
    }
    responses = [response for i, fault in enumerate(reasons) for response in (str(i), fault, f"{i} again")]
    verdicts = misbehaving.verify_all([(response, "") for response in responses])
    for response, verdict in zip(responses, verdicts, strict=True):
        # A text that was cut off is not told apart from one that nothing is known of without `failed`.
        assert verdict.failed is (verdict.decision is Decision.UNDECIDED) is (response in reasons)
        assert verdict.extracted == ("" if verdict.failed else response)
        assert reasons.get(response, "fake") in verdict.reason


def test_a_worker_that_says_nothing_is_given_up_by_the_clock(
    misbehaving: VerifierPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cft.verifiers.pool.WAIT", 5)
    (verdict,) = misbehaving.verify_all([("hang", "")])
    assert (verdict.decision, verdict.failed) == (Decision.UNDECIDED, True)
    assert "no verdict within 1 s by the clock" in verdict.reason
    monkeypatch.setattr("cft.verifiers.pool.WAIT", 300)
    assert [v.extracted for v in misbehaving.verify_all([("1", ""), ("2", "")])] == ["1", "2"]


def test_the_deadline_is_processor_time(misbehaving: VerifierPool) -> None:
    """A busy machine changes no verdict: sleeping three deadlines long is no fault."""
    (verdict,) = misbehaving.verify_all([("nap", "")])
    assert verdict.decision is Decision.RIGHT


def test_a_verifier_that_raises_ends_the_run_with_its_traceback(misbehaving: VerifierPool) -> None:
    with pytest.raises(VerifierError, match=r"response 'raise' \(gold answer '7'\)") as error:
        misbehaving.verify_all([("1", ""), ("raise", "7"), ("2", "")])
    for part in ("Traceback", "verifier_fakes.py", "RuntimeError: as told", "nothing of these verdicts is kept"):
        assert part in str(error.value)
    assert [v.extracted for v in misbehaving.verify_all([("3", "")])] == ["3"]  # not an answer to what was given up


def test_a_verifier_that_never_comes_to_an_end_is_at_fault_itself(
    misbehaving: VerifierPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cft.verifiers.pool.SUSPICIOUS", 3)
    with pytest.raises(VerifierError, match="exit code 7"):
        misbehaving.verify_all([("exit", str(i)) for i in range(3)])


def test_what_a_verifier_prints_cannot_pass_for_a_verdict(misbehaving: VerifierPool) -> None:
    assert [v.extracted for v in misbehaving.verify_all([("print", ""), ("next", "")])] == ["print", "next"]


def test_any_text_goes_through(misbehaving: VerifierPool) -> None:
    texts = ["\0", "😀", "\ud800 lone", "\udfff", "a\nb\r\n\u2028c", "\\boxed{\0\ud800}", "x" * 10**6]
    verdicts = misbehaving.verify_all([(text, text) for text in texts])
    assert verdicts == [Verdict(Decision.RIGHT, text, True, "fake") for text in texts]


def test_workers_import_no_deep_learning_and_not_the_users_main(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "planted")
    monkeypatch.setenv("HF_TOKEN", "planted")
    monkeypatch.setenv("PLAIN_SETTING", "kept")
    names = ["modules", "main", "WANDB_API_KEY", "HF_TOKEN", "PLAIN_SETTING"]
    with VerifierPool(Introspective(), workers=1, timeout_s=5.0) as pool:
        said = [verdict.extracted for verdict in pool.verify_all([(name, "") for name in names])]
    assert said == ["", "cft.verifiers.worker", "absent", "absent", "kept"]


def test_the_modules_of_verification_import_nothing_heavy() -> None:
    code = (
        "import sys, cft.verifiers, cft.verifiers.pool, cft.verifiers.worker, cft.evaluation.metrics\n"
        "print([m for m in ('torch', 'transformers', 'lightning', 'sympy', 'math_verify') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


def test_workers_end_with_the_context_and_with_an_exception_in_it() -> None:
    pids: list[int] = []

    def fail_inside() -> None:
        with VerifierPool(Introspective(), workers=2, timeout_s=5.0) as pool:
            pids.extend(int(verdict.extracted) for verdict in pool.verify_all([("pid", "")] * 8))
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail_inside()
    assert len(set(pids)) == 2
    assert not any(_alive(pid) for pid in pids)


@pytest.mark.parametrize("end", [pytest.param("", marks=pytest.mark.slow), "os.kill(os.getpid(), 9)"])
def test_workers_end_with_an_interpreter_that_never_closed_the_pool(end: str) -> None:
    script = (
        "import os\nfrom cft.verifiers.pool import VerifierPool\nfrom tests.verifiers.verifier_fakes import Introspective\n"
        "pool = VerifierPool(Introspective(), workers=1, timeout_s=5.0)\n"
        f"print(pool.verify_all([('pid', '')])[0].extracted, flush=True)\n{end}\n"
    )
    said = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    _wait_until_gone(int(said))


def test_a_closed_pool_and_bad_settings_are_refused() -> None:
    pool = VerifierPool(NUMERIC, workers=1, timeout_s=1.0)
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.verify_all([("1", "1")])
    with pytest.raises(ValueError, match=r"VerifierPool.workers: expected an integer of at least 1, found 0"):
        VerifierPool(NUMERIC, workers=0, timeout_s=1.0)
    with pytest.raises(ValueError, match=r"VerifierPool.timeout_s: expected a number above 0, found 0.0"):
        VerifierPool(NUMERIC, workers=1, timeout_s=0.0)


def test_a_verifier_that_workers_cannot_import_is_an_error_that_says_so() -> None:
    with VerifierPool(Unimportable(), workers=1, timeout_s=1.0) as pool, pytest.raises(RuntimeError) as error:
        pool.verify_all([("1", "1")])
    assert "a_module_that_is_not_there" in str(error.value)
    assert "fresh interpreter can import" in str(error.value)


def test_workers_start_with_the_first_item_and_not_before() -> None:
    # A pool over a verifier that no worker can load is harmless until it is used.
    with VerifierPool(Unimportable(), workers=4, timeout_s=1.0) as pool:
        assert pool.verify_all([]) == []


@pytest.mark.timing
def test_a_thousand_easy_answers_a_second() -> None:
    items = [(f"First {i}, then one more.\n#### {i + 1}", str(i + 1)) for i in range(4000)]
    with VerifierPool(NUMERIC, workers=2, timeout_s=5.0) as pool:
        pool.verify_all(items[:8])
        started = time.monotonic()
        verdicts = pool.verify_all(items)
        rate = len(items) / (time.monotonic() - started)
    assert {verdict.decision for verdict in verdicts} == {Decision.RIGHT}
    assert rate >= 1000


@pytest.mark.parametrize(
    "verifier, gold",
    [
        pytest.param(Math(fallback_last_number=True, lists="unknown"), "\\sqrt{17}+\\ln 3", id="math"),
        pytest.param(NUMERIC, "17", marks=pytest.mark.slow, id="numeric"),
    ],
)
def test_hostile_answers_neither_hang_nor_count_as_wrong(verifier: Math | Numeric, gold: str) -> None:
    """None is computed: each is refused, or not read. So no verdict depends on the deadline, or on the machine."""
    boxes = [f"So it is \\boxed{{{inside}}}." for inside in HOSTILE.values()]
    with VerifierPool(verifier, workers=1, timeout_s=3.0) as pool:
        verdicts = pool.verify_all([(box, gold) for box in boxes])
        as_gold = pool.verify_all([("\\boxed{x+17}", inside) for inside in HOSTILE.values()])
        themselves = pool.verify_all(list(zip(boxes, HOSTILE.values(), strict=True)))
        without_answer = pool.verify_all([(text, gold) for text in UNANSWERED.values()])
        easy = pool.verify_all([(f"\\boxed{{{gold}}}", gold)])
        assert all(kib < 1 << 20 for kib in _peak_memory_of_workers(pool))
    found = {name: str(v.decision) for name, v in zip(HOSTILE, verdicts, strict=True)}
    # What plain Python can tell apart from a plain number without computing it is not undecided: no digit stands there.
    known = {name for name in HOSTILE if verifier is NUMERIC and not re.search("[0-9]", HOSTILE[name])}
    assert found == {name: "wrong" if name in known else "undecided" for name in HOSTILE}
    assert "right" not in {str(v.decision) for v in as_gold}
    assert {str(v.decision) for v in themselves} == {"right"}
    assert [str(v.decision) for v in without_answer] == ["wrong"] * len(UNANSWERED)
    assert easy[0].decision is Decision.RIGHT


def _peak_memory_of_workers(pool: VerifierPool) -> list[int]:
    """KiB of each live worker's largest resident set (Linux)."""
    texts = [Path(f"/proc/{pid}/status").read_text() for pid in pool.worker_pids()]
    return [int(re.search(r"VmHWM:\s+(\d+)", text).group(1)) for text in texts]  # pyright: ignore[reportOptionalMemberAccess]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return (
        Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z" if Path("/proc").exists() else True
    )


def _wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(pid)
