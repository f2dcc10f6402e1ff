"""The driver against scripts: short-circuit, order of ranks, cut-offs, undecided verdicts, EOS, replay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from cft.annotation.counterfactual import (
    CounterfactualSource,
    Evidence,
    alternatives,
    fresh_evidence,
    replay_positions,
    run_counterfactuals,
)
from cft.models.text import char_spans
from cft.types import Budget, Completion, Decision, Fork, ForkSource, Key, Outcome, TokenSequence, TopTokens, Verdict
from cft.verifiers import FirstAnswer, Numeric
from cft.verifiers.grader import Grader, outcome_of
from tests.fakes import ScriptedEngine

R, W, U, C, D = Outcome.RIGHT, Outcome.WRONG, Outcome.UNTRIED, Outcome.CUT_OFF, Outcome.UNDECIDED


class NumberTokenizer:
    """Decodes ids to their decimal numbers, so that a text says which completion it came from."""

    all_special_ids = ()

    def decode(self, ids: Sequence[int], **_: object) -> str:
        return " ".join(map(str, ids))

    def __len__(self) -> int:
        return 200


def judge_by_last_token(items: Sequence[tuple[str, str]]) -> list[Verdict]:
    """The last id is the verdict: 100 right, 101 wrong, 102 undecided; 103 wrong in an explicit marker."""
    kinds = {
        "100": (Decision.RIGHT, False),
        "101": (Decision.WRONG, False),
        "102": (Decision.UNDECIDED, False),
        "103": (Decision.WRONG, True),
    }
    verdicts = []
    for text, _ in items:
        decision, explicit = kinds[text.split()[-1]]
        verdicts.append(Verdict(decision, f"={text.split()[-1]}", explicit, ""))
    return verdicts


def run(script: dict[tuple[int, int], tuple[int, str]], *, k: int, short_circuit: bool, length: int = 1):
    """script[(t, rank)] = (last token, finish). Returns the evidence and the keys in the order they were tried."""
    sequence = TokenSequence(np.arange(3 + length, dtype=np.int32), 3)
    alt = np.arange(50, 50 + length * k, dtype=np.int32).reshape(length, k)
    evidence = fresh_evidence(response_id="r", answer="1", sequence=sequence, alt_ids_RK=alt, replay_fraction=0.0)

    def answer(fork: Fork) -> Completion:
        _, t, rank = fork.key  # type: ignore[misc]
        last, finish = script[t, rank]
        assert fork.first_token == alt[t, rank]
        assert fork.prefix_len == 3 + t
        return Completion(np.array([last], np.int32), finish, 5)  # type: ignore[arg-type]

    engine = ScriptedEngine(answer)
    grader = Grader(NumberTokenizer(), judge_by_last_token)  # type: ignore[arg-type]
    tally = run_counterfactuals(engine, [evidence], grader=grader, budget=Budget(9), short_circuit=short_circuit)
    return evidence, [fork.key[1:] for fork in engine.forks], tally  # type: ignore[index]


@pytest.mark.parametrize(
    ("finals", "outcomes", "tried"),
    [
        ([(100, "stop"), (101, "stop")], [R, U], 1),
        ([(101, "stop"), (100, "stop")], [W, R], 2),
        ([(101, "stop"), (101, "stop")], [W, W], 2),
        ([(100, "length"), (100, "stop")], [C, R], 2),  # a cut-off right-looking text has given no explicit answer
        ([(102, "stop"), (101, "stop")], [D, W], 2),  # undecided does not stop the next from being tried
        ([(103, "length"), (101, "stop")], [W, W], 2),  # an explicit answer keeps its verdict when cut off later
    ],
)
def test_ranks_are_tried_in_order_until_one_is_right(
    finals: list[tuple[int, str]], outcomes: list[Outcome], tried: int
) -> None:
    script = {(0, rank): final for rank, final in enumerate(finals)}
    evidence, keys, tally = run(script, k=2, short_circuit=True)
    assert evidence.outcome_RK.tolist() == [outcomes]
    assert keys == [(0, 0), (0, 1)][:tried]
    assert (tally.forks, tally.tokens) == (tried, 5 * tried)
    assert evidence.tokens_RK.tolist() == [[5] * tried + [0] * (2 - tried)]
    answered = [i < tried and outcomes[i] != C for i in range(2)]  # a cut-off text gave no answer
    assert evidence.answer_RK == [[f"={finals[i][0]}" if answered[i] else "" for i in range(2)]]


def test_without_short_circuit_every_cell_is_tried() -> None:
    script = {(t, rank): ((100, "stop") if rank == 0 else (101, "stop")) for t in range(6) for rank in range(3)}
    evidence, keys, _ = run(script, k=3, short_circuit=False, length=6)
    assert evidence.outcome_RK.tolist() == [[R, W, W]] * 6
    assert sorted(keys) == sorted(script)


def test_short_circuit_and_complete_give_the_same_all_fail_mask() -> None:
    rng = np.random.default_rng(0)
    kinds = [(100, "stop"), (101, "stop"), (102, "stop"), (103, "length"), (101, "length")]
    script = {(t, rank): kinds[rng.integers(len(kinds))] for t in range(60) for rank in range(3)}
    short, _, few = run(script, k=3, short_circuit=True, length=60)
    whole, _, all_ = run(script, k=3, short_circuit=False, length=60)
    assert few.forks < all_.forks
    tried = short.outcome_RK != U
    np.testing.assert_array_equal(short.outcome_RK[tried], whole.outcome_RK[tried])
    fails = (Outcome.WRONG, Outcome.CUT_OFF)
    np.testing.assert_array_equal(np.isin(short.outcome_RK, fails).all(1), np.isin(whole.outcome_RK, fails).all(1))


def top(ids: list[list[int]]) -> TopTokens:
    ids_RK = np.array(ids, np.int32)
    logprob = -np.arange(ids_RK.shape[1], dtype=np.float32)[None].repeat(len(ids), 0)
    return TopTokens(np.zeros(len(ids), np.float32), np.zeros(len(ids), np.float32), ids_RK, logprob)


def test_alternatives_leave_out_the_own_token_wherever_it_ranks() -> None:
    ids, logprob = alternatives(
        np.array([7, 7, 7], np.int32), top([[7, 8, 9, 1], [8, 7, 9, 1], [8, 9, 1, 4]]), k=2, eos_ids=(0,)
    )
    assert ids.tolist() == [[8, 9], [8, 9], [8, 9]]
    assert logprob.tolist() == [[-1, -2], [0, -2], [0, -1]]


def test_other_eos_ids_are_no_alternatives_at_the_eos_position() -> None:
    ids, _ = alternatives(np.array([0, 7], np.int32), top([[0, 1, 8, 9], [7, 1, 0, 9]]), k=2, eos_ids=(0, 1))
    assert ids.tolist() == [[8, 9], [1, 0]]  # elsewhere an EOS is an alternative like any other


def test_replay_positions_are_a_function_of_the_response() -> None:
    many = np.concatenate([replay_positions(f"r{i}", 100, fraction=0.1) for i in range(50)])
    assert 0.07 < many.mean() < 0.13
    np.testing.assert_array_equal(replay_positions("a", 30, fraction=0.5), replay_positions("a", 60, fraction=0.5)[:30])


def test_replay_control_is_recorded_and_flips_are_counted() -> None:
    sequence = TokenSequence(np.arange(7, dtype=np.int32), 3)
    evidence = fresh_evidence(
        response_id="r", answer="1", sequence=sequence, alt_ids_RK=np.full((4, 1), 99, np.int32), replay_fraction=1.0
    )

    def answer(fork: Fork) -> Completion:
        own = fork.first_token == sequence.ids[fork.prefix_len]
        right = own and fork.prefix_len != 5
        return Completion(np.array([100 if right else 101], np.int32), "stop", 1)

    grader = Grader(NumberTokenizer(), judge_by_last_token)  # type: ignore[arg-type]
    tally = run_counterfactuals(ScriptedEngine(answer), [evidence], grader=grader, budget=Budget(9), short_circuit=True)
    assert evidence.replay_R.tolist() == [R, R, W, R]
    assert (tally.replays, tally.replay_flips) == (4, 1)


def test_cut_off_is_a_code_of_its_own() -> None:
    assert outcome_of(Verdict(Decision.RIGHT, "1", False, ""), finish="length") == C
    assert outcome_of(Verdict(Decision.RIGHT, "1", True, ""), finish="length") == R
    assert outcome_of(Verdict(Decision.UNDECIDED, "", True, "slow"), finish="stop") == D
    assert outcome_of(Verdict(Decision.RIGHT, "1", True, ""), finish="memory") == D


def test_a_verifier_that_failed_on_a_cut_off_text_leaves_it_undecided() -> None:
    """Else a time-out would count as wrong and make a token critical."""
    assert outcome_of(Verdict(Decision.UNDECIDED, "", False, "deadline", failed=True), finish="length") == D
    assert outcome_of(Verdict(Decision.UNDECIDED, "", False, "half an expression"), finish="length") == C


class ByteTokenizer:
    """One id a byte of UTF-8, 256 = special: characters of several bytes decode to a replacement sign until complete."""

    all_special_ids = (256,)

    def decode(self, ids: Sequence[int], **_: object) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


def test_spans_of_multi_byte_characters() -> None:
    text = "aé🎈b"
    ids = [*text.encode(), 256]
    found, spans = char_spans(ByteTokenizer(), ids)  # type: ignore[arg-type]
    assert found == text
    assert [text[a:b] for a, b in spans.tolist()] == ["a", "é", "é", "🎈", "🎈", "🎈", "🎈", "b", ""]


def test_spans_of_a_long_response_are_those_of_its_decoded_prefixes() -> None:
    """By windows, which end where a character does; a tokenizer whose texts cannot be put together so is read whole."""
    for text in ("aé🎈b " * 40, "🎈" * 50):
        ids = [*text.encode(), 256]
        found, spans = char_spans(ByteTokenizer(), ids)  # type: ignore[arg-type]
        expected = [(i, i + 1) for i, character in enumerate(text) for _ in character.encode()]
        assert found == text
        assert spans.tolist() == [list(span) for span in (*expected, (len(text), len(text)))]

    class Mirrored(NumberTokenizer):
        def decode(self, ids: Sequence[int], **options: object) -> str:
            return super().decode(ids[::-1], **options)

    text, spans = char_spans(Mirrored(), [7] * 80)  # type: ignore[arg-type]
    assert (text, spans[-1, 1]) == (" ".join(["7"] * 80), len(text))


class DawdlingEngine(ScriptedEngine):
    """Keeps every fork it was given under way until `take` gives no more, then ends one, drawn by a seed, and so on."""

    def __init__(self, answer: Callable[[Fork], Completion], *, seed: int, rows: int = 64) -> None:
        super().__init__(answer, batch=rows)
        self.rng, self.rows = np.random.default_rng(seed), rows
        self.begun: list[tuple[int, int, int]] = []
        self.canceled = 0

    def run(self, source: ForkSource, *, budget: Budget) -> Iterator[tuple[Key, Completion]]:
        live: list[Fork] = []
        while True:
            taken = source.take(self.rows - len(live))
            assert len(live) + len(taken) <= self.rows
            self.begun += [fork.key for fork in taken]  # type: ignore[misc]
            live += taken
            if not live:
                return
            fork = live.pop(int(self.rng.integers(len(live))))
            if source.decided(fork.key, [7]):
                self.canceled += 1
                yield fork.key, Completion(np.array([101], np.int32), "decided", 1)
            else:
                yield fork.key, self.answer(fork)


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("seed", range(5))
def test_starting_the_next_rank_early_changes_no_evidence(seed: int, rows: int) -> None:
    """Whatever order forks end in: the cells, and what is counted for them, are those of one fork after the other."""
    rng = np.random.default_rng(seed)
    length, k = 12, 3
    finals = rng.choice([100, 101, 102], (2, length, k), p=[0.4, 0.5, 0.1])
    sequence = TokenSequence(np.arange(3 + length, dtype=np.int32), 3)

    def fresh() -> list[Evidence]:
        return [
            fresh_evidence(
                response_id=f"r{i}",
                answer="1",
                sequence=sequence,
                alt_ids_RK=np.tile(np.arange(50, 50 + k, dtype=np.int32), (length, 1)),
                replay_fraction=0.5,
            )
            for i in range(2)
        ]

    def answer(fork: Fork) -> Completion:
        index, t, rank = fork.key  # type: ignore[misc]
        return Completion(np.array([finals[index, t, rank]], np.int32), "stop", 5 + rank)

    grader = Grader(NumberTokenizer(), judge_by_last_token)  # type: ignore[arg-type]
    plain, early = fresh(), fresh()
    one = run_counterfactuals(
        ScriptedEngine(answer, batch=1), plain, grader=grader, budget=Budget(9), short_circuit=True
    )
    engine = DawdlingEngine(answer, seed=seed, rows=rows)
    other = run_counterfactuals(engine, early, grader=grader, budget=Budget(9), short_circuit=True)
    for a, b in zip(plain, early, strict=True):
        np.testing.assert_array_equal(a.outcome_RK, b.outcome_RK)
        np.testing.assert_array_equal(a.tokens_RK, b.tokens_RK)
        np.testing.assert_array_equal(a.replay_R, b.replay_R)
        assert a.answer_RK == b.answer_RK
    assert (one.forks, one.tokens, one.replays) == (other.forks, other.tokens, other.replays)
    assert one.speculative_tokens == 0
    assert len(set(engine.begun)) == len(engine.begun)
    if rows == 64:
        assert len(engine.begun) > one.forks
        assert other.speculative_tokens > 0
        assert engine.canceled > 0


@pytest.mark.parametrize(("final", "begun"), [(101, 200), (100, 0)], ids=["wrong so far", "right so far"])
def test_idle_rows_begin_the_next_rank_where_it_is_likely_to_be_needed(final: int, begun: int) -> None:
    length = 200
    evidence = fresh_evidence(
        response_id="r",
        answer="1",
        sequence=TokenSequence(np.arange(3 + length, dtype=np.int32), 3),
        alt_ids_RK=np.tile(np.array([50, 51], np.int32), (length, 1)),
        replay_fraction=0.0,
    )
    grader = Grader(NumberTokenizer(), judge_by_last_token)  # type: ignore[arg-type]
    source = CounterfactualSource([evidence], grader, True, in_flight=256)
    first = source.take(256)
    assert [fork.key for fork in first] == [(0, t, 0) for t in range(length)]  # no verdict is known yet
    for fork in first[:20]:
        source.receive(fork.key, Completion(np.array([final], np.int32), "stop", 5))
    assert [fork.key for fork in source.take(256)] == [(0, t, 1) for t in range(begun)]


def test_a_verdict_that_stands_ends_a_continuation(tiny_arith_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_arith_path)
    verifier = FirstAnswer(inner=Numeric(fallback_last_number=True))

    def source(final: Callable[[str], bool] | None) -> CounterfactualSource:
        return CounterfactualSource(
            [], Grader(tokenizer, lambda items: [verifier(*item) for item in items], final), True, in_flight=1
        )

    unfinished = tokenizer("2 + 3 = 5\n#### 5", add_special_tokens=False)["input_ids"]
    finished = tokenizer("2 + 3 = 5\n#### 5\n", add_special_tokens=False)["input_ids"]
    assert finished[:-1] == unfinished
    first = source(verifier.final)
    assert not any(first.decided((0, 0, 0), unfinished[:n]) for n in range(1, len(unfinished) + 1))
    assert first.decided((0, 0, 0), finished)
    assert not source(verifier.inner.final).decided((0, 0, 0), finished)
