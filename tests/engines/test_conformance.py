"""What every engine promises (`cft.types.Engine`), against the plain one: the same cases for all of tests/engine_cases.py.

An engine that is not exact may differ from the reference where the best two tokens are as good as equal: such places are
looked at and counted, and few.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cft.annotation.counterfactual import ListSource
from cft.engines.factory import EngineError
from cft.engines.reference import ReferenceEngine
from cft.engines.sampling import TIE_MARGIN
from cft.types import GREEDY, Budget, Completion, Engine, Fork, Key, Sampling, TokenSequence
from tests.engine_cases import ENGINES, EngineCase, Subject
from tests.fakes import random_llama

EOS = (1, 2)
BUDGET = Budget(16)
CONTEXT = 48
SHAPE = {"max_position_embeddings": CONTEXT, "head_dim": 32}  # vLLM on a CPU has no kernels for narrower heads
Found = dict[Key, Completion]

SEQUENCES = [
    TokenSequence(np.random.default_rng(i).integers(3, 60, 6 + 2 * i).astype(np.int32), 1 + i % 4) for i in range(6)
]


def counterfactuals() -> list[Fork]:
    """Forks all along a few responses, with a first token and without, and one that starts with each end."""
    rng = np.random.default_rng(0)
    forks = [
        Fork(sequence, cut, int(rng.integers(3, 60)) if cut % 3 else None, GREEDY, (i, cut))
        for i, sequence in enumerate(SEQUENCES)
        for cut in range(sequence.prompt_len, len(sequence.ids) + 1, 2)
    ]
    ends = [Fork(SEQUENCES[5], 8, end, GREEDY, ("end", end)) for end in EOS]
    return [*forks, *ends]


def prompts() -> list[Fork]:
    return [Fork(TokenSequence(s.ids[:5], 5), 5, None, GREEDY, i) for i, s in enumerate(SEQUENCES)]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    model = random_llama(**SHAPE)
    return Subject(model, EOS, tmp_path_factory.mktemp("subject"))


@pytest.fixture(scope="module", params=list(ENGINES))
def case(request: pytest.FixtureRequest) -> EngineCase:
    found = ENGINES[request.param]
    if found.missing:
        pytest.skip(f"engine={found.name} needs the package {found.package}")
    return found


@pytest.fixture(scope="module")
def engine(case: EngineCase, subject: Subject) -> Iterator[Engine]:
    made = case.make(subject, 8)
    yield made
    made.close()


@pytest.fixture(scope="module")
def expected(subject: Subject) -> Found:
    """Of every fork here, greedy, by the reference."""
    return run(ReferenceEngine(subject.model, EOS), [*counterfactuals(), *prompts()])


@pytest.fixture(scope="module")
def found(engine: Engine) -> Found:
    """What the engine makes of all counterfactuals at once."""
    return run(engine, counterfactuals())


def run(engine: Engine, forks: Sequence[Fork], *, budget: Budget = BUDGET) -> Found:
    found = list(engine.run(ListSource(forks), budget=budget))
    assert len(found) == len(forks)
    assert {key for key, _ in found} == {fork.key for fork in forks}
    return dict(found)


def assert_conforms(engine: Engine, found: Found, expected: Found, forks: Sequence[Fork], subject: Subject) -> None:
    """Equal ids, ends and counts, but for places where an engine that is not exact chose another of two equals."""
    turned = 0
    for fork in forks:
        one, other = found[fork.key], expected[fork.key]
        assert one.ids.dtype == np.int32
        if one.ids.tolist() == other.ids.tolist():
            assert (one.finish, one.num_decoded) == (other.finish, other.num_decoded), fork.key
            continue
        assert not engine.exact, fork.key
        assert margin_where_they_part(subject, fork, one, other) < TIE_MARGIN, fork.key
        turned += 1
    assert turned <= len(forks) // 20


def margin_where_they_part(subject: Subject, fork: Fork, one: Completion, other: Completion) -> float:
    shared = next(i for i, (a, b) in enumerate(zip(one.ids, other.ids, strict=False)) if a != b)
    ids = [*fork.sequence.ids[: fork.sequence.prompt_len].tolist(), *one.ids[:shared].tolist()]
    with torch.inference_mode():
        logits = subject.model(torch.tensor([ids])).logits[0, -1]
    return float(logits[other.ids[shared]] - logits[one.ids[shared]])


def test_greedy_and_counterfactual_forks(engine: Engine, found: Found, expected: Found, subject: Subject) -> None:
    assert_conforms(engine, run(engine, prompts()), expected, prompts(), subject)
    assert_conforms(engine, found, expected, counterfactuals(), subject)
    assert {c.finish for c in expected.values()} == {"stop", "length"}


def test_ids_go_in_and_come_out(found: Found) -> None:
    """The kept part and the first token are in the response as they were given; nothing is added or decoded to text."""
    forks = counterfactuals()
    for key, completion in found.items():
        fork = next(fork for fork in forks if fork.key == key)
        kept = fork.sequence.ids[fork.sequence.prompt_len : fork.prefix_len].tolist()
        kept += [] if fork.first_token is None else [fork.first_token]
        assert completion.ids[: len(kept)].tolist() == kept
        assert completion.num_decoded == len(completion.ids) - len(kept)
        assert (int(completion.ids[-1]) in EOS) == (completion.finish == "stop")


def test_an_end_in_a_token_s_place_ends_the_response(found: Found) -> None:
    forks = [fork for fork in counterfactuals() if fork.first_token in EOS]
    assert len(forks) == 2
    for completion in (found[fork.key] for fork in forks):
        assert (completion.finish, completion.num_decoded) == ("stop", 0)
        assert int(completion.ids[-1]) in EOS


def test_limits_of_budget_and_fork(engine: Engine, expected: Found) -> None:
    """The lower one holds, kept part and first token counted."""
    whole = [fork for fork in prompts() if expected[fork.key].num_decoded > 7]
    assert len(whole) > 2
    for limit in (1, 7):
        found = run(engine, [replace(fork, max_new_tokens=limit) for fork in whole])
        for fork in whole:
            assert (found[fork.key].finish, found[fork.key].num_decoded) == ("length", limit)
            if engine.exact:
                assert found[fork.key].ids.tolist() == expected[fork.key].ids[:limit].tolist()
    full = [fork for fork in counterfactuals() if fork.prefix_len - fork.sequence.prompt_len >= 7]
    assert {c.num_decoded for c in run(engine, full, budget=Budget(7)).values()} == {0}


def test_a_response_may_fill_the_context_to_its_end(case: EngineCase, subject: Subject, tmp_path: Path) -> None:
    endless = Subject(subject.model, (0,), tmp_path)  # greedy, it comes to other tokens
    forks, budget = prompts()[:3], Budget(CONTEXT - 5)
    wanted = run(ReferenceEngine(subject.model, (0,)), forks, budget=budget)
    assert "length" in {completion.finish for completion in wanted.values()}
    engine = case.make(endless, 8)
    assert_conforms(engine, run(engine, forks, budget=budget), wanted, forks, endless)
    engine.close()


class Growing(ListSource):
    """Gives the next forks only after earlier ones ended, as a short-circuit does; `enough` completions settle the rest."""

    def __init__(self, forks: Sequence[Fork], *, enough: int | None = None) -> None:
        super().__init__(())
        self.later, self.out, self.most, self.ended, self.enough = deque(forks), set[Key](), 0, 0, enough

    def take(self, n: int) -> list[Fork]:
        allowed = max(0, min(n, 2 * (1 + self.ended) - len(self.out), len(self.later)))
        taken = [self.later.popleft() for _ in range(allowed)]
        self.out |= {fork.key for fork in taken}
        self.most = max(self.most, len(self.out))
        return taken

    def decided(self, key: Key, ids: Sequence[int]) -> bool:
        return self.settled(key)

    def settled(self, key: Key) -> bool:
        return self.enough is not None and self.ended >= self.enough

    def receive(self, key: Key) -> None:
        self.out.remove(key)
        self.ended += 1


def fed(engine: Engine, source: Growing) -> Found:
    found: Found = {}
    for key, completion in engine.run(source, budget=BUDGET):
        source.receive(key)
        assert key not in found
        found[key] = completion
    assert not source.out
    return found


def test_forks_that_come_while_it_runs(engine: Engine, expected: Found, subject: Subject) -> None:
    forks = counterfactuals()
    source = Growing(forks)
    assert_conforms(engine, fed(engine, source), expected, forks, subject)
    assert source.most <= engine.in_flight


def test_what_no_longer_matters_is_given_back_once(engine: Engine, expected: Found) -> None:
    """After three completions nothing matters: each fork that was taken still ends, whole or as far as it is known."""
    forks = [fork for fork in counterfactuals() if fork.first_token not in EOS]
    source = Growing(forks, enough=3)
    found = fed(engine, source)
    assert len(found) + len(source.later) == len(forks)
    for fork in forks:
        if fork.key in found and (completion := found[fork.key]).finish == "decided":
            kept = fork.sequence.ids[fork.sequence.prompt_len : fork.prefix_len].tolist()
            assert completion.ids[: len(kept)].tolist() == kept
            if engine.exact:
                assert completion.ids.tolist() == expected[fork.key].ids[: len(completion.ids)].tolist()
    assert len(run(engine, forks[:3])) == 3  # and the engine decodes on


def test_little_memory_changes_nothing_and_too_little_is_said(
    case: EngineCase, subject: Subject, expected: Found
) -> None:
    if case.starve is None:
        pytest.skip(f"engine={case.name} has no memory for keys of its own")
    engine, forks = case.make(subject, 8), counterfactuals()
    case.starve(engine, 160)
    assert_conforms(engine, run(engine, forks), expected, forks, subject)
    case.starve(engine, 16)
    longest = [replace(prompts()[0], max_new_tokens=None)]
    (completion,) = run(engine, longest, budget=Budget(CONTEXT - 5)).values()
    assert completion.finish in ("memory", "stop", "length")
    if completion.finish != "memory":  # given up only where it does not fit alone
        assert case.name == "shared_prefix"
    engine.close()


def test_a_run_that_was_left_leaves_no_trace(engine: Engine, expected: Found, subject: Subject) -> None:
    forks = counterfactuals()
    started = engine.run(ListSource(forks), budget=BUDGET)
    next(iter(started))
    started.close()  # type: ignore[attr-defined]
    assert_conforms(engine, run(engine, forks[:6]), expected, forks[:6], subject)


def test_facts_name_what_can_turn_an_outcome(case: EngineCase, engine: Engine, subject: Subject) -> None:
    """They go into fingerprints: JSON, the same each time, and an engine's own unless its ids are the reference's."""
    facts = engine.facts()
    assert json.loads(json.dumps(facts)) == facts == engine.facts()
    if engine.exact:
        assert facts == ReferenceEngine(subject.model, EOS).facts()
    else:
        assert {"name", "version", "dtype", "device", "batch_invariant"} <= facts.keys()
        assert facts["name"] == case.name
    assert engine.in_flight >= 1


def test_scores_of_many_sequences_against_float64(engine: Engine, subject: Subject) -> None:
    found = dict(engine.score_all(SEQUENCES, k=4))
    assert sorted(found) == list(range(len(SEQUENCES)))
    exact = random_llama(**SHAPE).double()
    for index, sequence in enumerate(SEQUENCES):
        start, top = sequence.prompt_len - 1, found[index]
        with torch.inference_mode():
            ids = torch.from_numpy(sequence.ids.astype(np.int64))
            logprob_RV = exact(ids[None]).logits[0, start:-1].log_softmax(-1)
        own = logprob_RV.gather(1, ids[sequence.prompt_len :, None])[:, 0].numpy()
        np.testing.assert_allclose(top.logprob_R, own, atol=1e-4)
        values, order = logprob_RV.topk(4)
        np.testing.assert_allclose(top.top_logprob_RK, values.numpy(), atol=1e-4)
        apart = (values[:, :-1] - values[:, 1:]).amin(-1).numpy() > TIE_MARGIN
        np.testing.assert_array_equal(top.top_ids_RK[apart], order.numpy()[apart])
        if not np.isnan(top.entropy_R).all():
            entropy = torch.special.entr(logprob_RV.exp()).sum(-1).numpy()
            np.testing.assert_allclose(top.entropy_R, entropy, atol=1e-4)


def test_samples_do_not_depend_on_the_batch_or_are_refused(case: EngineCase, engine: Engine, subject: Subject) -> None:
    forks = [
        replace(fork, sampling=Sampling(1.0, 0.9 if i % 2 else 1.0, 7, f"{fork.key}"))
        for i, fork in enumerate(prompts())
    ]
    if not case.samples:
        with pytest.raises(EngineError, match=rf"engine={case.name} decodes greedily only"):
            run(engine, forks)
        return
    found = run(engine, forks)
    alone = run(engine, forks[:1])
    assert alone[forks[0].key].ids.tolist() == found[forks[0].key].ids.tolist()
    again = run(engine, [replace(fork, sampling=replace(fork.sampling, seed=8)) for fork in forks])
    assert any(again[key].ids.tolist() != found[key].ids.tolist() for key in found)
    if engine.exact:
        assert_conforms(engine, found, run(ReferenceEngine(subject.model, EOS), forks), forks, subject)
