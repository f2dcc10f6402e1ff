"""engine=server against servers that answer each wire from the reference engine: same ids, and every way to misbehave."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cft.annotation.counterfactual import ListSource
from cft.annotation.store import AnnotationStore
from cft.engines.factory import EngineError
from cft.engines.reference import ReferenceEngine, fork_prefix
from cft.engines.requests import DecodeRequest, Ranked, top_tokens_of
from cft.engines.server import client
from cft.engines.server.engine import ServerEngine
from cft.engines.server.probe import probes_differ, with_stored_probe
from cft.engines.server.wires import WIRES, WireError
from cft.types import GREEDY, Budget, Completion, Fork, Sampling, TokenSequence
from tests.entry import SHORT
from tests.fakes import random_llama
from tests.scripted_server import Letters, ScriptedServer
from tests.stage import annotate

EOS = (1, 2)
BUDGET = Budget(16)
OPTIONS: dict[str, Any] = {
    "wire": "auto", "per_server": 16, "top_logprobs": 6, "timeout_s": 60.0, "retries": 3, "patience_s": 30.0, "token": ""
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(client, "HEALTH_EVERY_S", 0.02)


@pytest.fixture(scope="module")
def model() -> Any:
    return random_llama()


@contextmanager
def engine_of(*servers: ScriptedServer, **options: Any) -> Iterator[ServerEngine]:
    engine = ServerEngine([s.url for s in servers], EOS, Letters(), **{**OPTIONS, **options})  # type: ignore[arg-type]
    try:
        yield engine
    finally:
        engine.close()


def greedy_forks(count: int) -> list[Fork]:
    rng, forks = np.random.default_rng(0), []
    for i in range(count):
        length = int(rng.integers(4, 20))
        ids = rng.integers(3, 60, length).astype(np.int32)
        prompt_len = int(rng.integers(2, length + 1))
        prefix_len = int(rng.integers(prompt_len, length + 1))
        forks.append(
            Fork(TokenSequence(ids, prompt_len), prefix_len, int(rng.integers(0, 60)) if i % 3 else None, GREEDY, i)
        )
    return forks


def expected(model: Any, forks: Sequence[Fork]) -> dict[Any, Completion]:
    """Each fork is decoded once for all tests."""
    known = model.__dict__.setdefault("expected", {})
    known |= ReferenceEngine(model, EOS).run(ListSource([f for f in forks if f.key not in known]), budget=BUDGET)
    return {fork.key: known[fork.key] for fork in forks}


def require_equal(found: dict[Any, Completion], wanted: dict[Any, Completion]) -> None:
    assert found.keys() == wanted.keys()
    for key, completion in wanted.items():
        assert found[key].ids.tolist() == completion.ids.tolist()
        assert (found[key].finish, found[key].num_decoded) == (completion.finish, completion.num_decoded)


@pytest.mark.parametrize("wire", WIRES)
def test_each_wire_gives_the_references_ids(model: Any, wire: str) -> None:
    forks = greedy_forks(24)
    with ScriptedServer(model, wire=wire, ends=EOS) as server, engine_of(server) as engine:
        found = dict(engine.run(ListSource(forks), budget=BUDGET))
        assert engine.wire.name == wire
    require_equal(found, expected(model, forks))
    assert {completion.finish for completion in found.values()} == {"stop", "length"}


@pytest.mark.parametrize("wire", WIRES)
def test_ranks_come_from_the_pass_that_chose(model: Any, wire: str) -> None:
    sequence = TokenSequence(np.arange(3, 12, dtype=np.int32), 9)
    forks = [Fork(sequence, 9, None, GREEDY, 0, top_k=5), Fork(sequence, 9, 7, GREEDY, 1, top_k=5)]
    with ScriptedServer(model, wire=wire, ends=EOS) as server, engine_of(server) as engine:
        before = server.number
        found = dict(engine.run(ListSource(forks), budget=BUDGET))
        assert server.number - before == 2
        top = found[0].top
        assert top is not None
        assert found[1].top is None
        whole = TokenSequence(np.concatenate([sequence.ids, found[0].ids]), 9)
        ((_, wanted),) = ReferenceEngine(model, EOS).score_all([whole], k=5)
        ((_, scored),) = engine.score_all([whole], k=5)
        for one in (top, scored):
            assert one.top_ids_RK.tolist() == wanted.top_ids_RK.tolist()
            np.testing.assert_allclose(one.top_logprob_RK, wanted.top_logprob_RK, rtol=0, atol=1e-5)
            np.testing.assert_allclose(one.logprob_R, wanted.logprob_R, rtol=0, atol=1e-5)
            assert np.isnan(one.entropy_R).all()


@pytest.mark.parametrize("wire", ["vllm", "sglang"])
def test_given_responses_are_scored_in_a_pass_of_their_own(model: Any, wire: str) -> None:
    """Tokens that no model would choose: the prompt's end is where the alternatives begin."""
    rng = np.random.default_rng(0)
    sequences = [TokenSequence(rng.integers(3, 60, 20).astype(np.int32), int(p)) for p in rng.integers(1, 19, 6)]
    with ScriptedServer(model, wire=wire) as server, engine_of(server) as engine:
        found = dict(engine.score_all(sequences, k=4))
    for index, wanted in ReferenceEngine(model, EOS).score_all(sequences, k=4):
        assert found[index].top_ids_RK.tolist() == wanted.top_ids_RK.tolist()
        np.testing.assert_allclose(found[index].logprob_R, wanted.logprob_R, rtol=0, atol=1e-5)


def test_llama_servers_refuse_given_tokens_that_are_not_among_the_best(model: Any) -> None:
    sequence = TokenSequence(np.arange(3, 33, dtype=np.int32), 9)
    with (
        ScriptedServer(model, wire="llama", ends=EOS) as server,
        engine_of(server) as engine,
        pytest.raises(EngineError, match="use vLLM or SGLang for responses=given"),
    ):
        list(engine.score_all([sequence], k=3))


@pytest.mark.parametrize("fault", ["429", "500", "503", "abort", "reset"])
def test_what_passes_is_asked_again(model: Any, fault: str) -> None:
    forks = greedy_forks(20)
    failing = iter(range(10_000))
    with ScriptedServer(
        model, mischief=lambda number, body: fault if number > 12 and next(failing) % 3 == 0 else ""
    ) as server:
        with engine_of(server, retries=20) as engine:
            found = dict(engine.run(ListSource(forks), budget=BUDGET))
            assert engine.client is not None
            assert engine.client.retried > 2
        assert engine.num_given_up == 0
    require_equal(found, expected(model, forks))


def test_two_servers_share_the_work_and_one_may_die(model: Any) -> None:
    forks = greedy_forks(30)
    with (
        ScriptedServer(model) as living,
        ScriptedServer(model, mischief=lambda number, body: "die" if number == 20 else "") as dying,
        engine_of(living, dying, per_server=8) as engine,
    ):
        found = dict(engine.run(ListSource(forks), budget=BUDGET))
        assert dying.decoded > 10
        assert engine.client is not None
        assert [replica.up for replica in engine.client.replicas] == [True, False]
    require_equal(found, expected(model, forks))


def test_forks_of_a_prefix_go_to_one_server(model: Any) -> None:
    sequences = [TokenSequence(np.arange(3 + i, 20 + i, dtype=np.int32), 10) for i in range(6)]
    forks = [Fork(s, t, 7, GREEDY, (i, t)) for t in range(10, 17) for i, s in enumerate(sequences)]
    with ScriptedServer(model) as one, ScriptedServer(model) as other, engine_of(one, other, per_server=2) as engine:
        checks = len(one.bodies), len(other.bodies)
        list(engine.run(ListSource(forks), budget=BUDGET))
        homes = [
            {tuple(body["prompt"][:10]) for body in s.bodies[n:]} for s, n in zip((one, other), checks, strict=True)
        ]
        counts = [len(s.bodies) - n for s, n in zip((one, other), checks, strict=True)]
    assert min(counts) > 5
    assert len(homes[0]) + len(homes[1]) < 2 * len(sequences)


def test_all_servers_gone_is_an_error_that_says_how_to_go_on(model: Any) -> None:
    forks = greedy_forks(30)
    dying = ScriptedServer(model, mischief=lambda number, body: "die" if number == 20 else "")
    with dying as server, engine_of(server, patience_s=0.2) as engine:
        run = engine.run(ListSource(forks), budget=BUDGET)
        found = []
        with pytest.raises(EngineError, match=r"none of http://127.0.0.1:\d+ has been healthy for 0.2 s.*resumes"):
            found.extend(run)
    wanted = expected(model, forks)
    assert all(completion.ids.tolist() == wanted[key].ids.tolist() for key, completion in found)


def test_a_server_that_comes_back_is_used_again(model: Any) -> None:
    forks = greedy_forks(20)
    with ScriptedServer(model) as server, engine_of(server, patience_s=10.0, retries=30) as engine:
        server.healthy = False
        down = time.monotonic() + 0.3
        server.mischief = lambda number, body: "503" if time.monotonic() < down else ""
        threading.Timer(0.3, lambda: setattr(server, "healthy", True)).start()
        found = dict(engine.run(ListSource(forks), budget=BUDGET))
    require_equal(found, expected(model, forks))


@pytest.mark.parametrize("fault", ["503", "too long"])
def test_what_no_try_can_answer_is_undecided(model: Any, fault: str) -> None:
    """One fork's request never works though the server is in health; the others are not held up."""
    forks = greedy_forks(12)
    poisoned = next(f for f in forks if expected(model, [f])[f.key].num_decoded)
    ids = fork_prefix(poisoned)
    poisoning = ScriptedServer(model, mischief=lambda number, body: fault if body["prompt"] == ids else "")
    with poisoning as server, engine_of(server) as engine:
        found = dict(engine.run(ListSource(forks), budget=BUDGET))
        assert engine.num_given_up == 1
    lost = found.pop(poisoned.key)
    assert (lost.finish, lost.num_decoded) == ("memory", 0)
    assert lost.ids.tolist() == ids[poisoned.sequence.prompt_len :]
    require_equal(found, {key: c for key, c in expected(model, forks).items() if key != poisoned.key})


def test_a_full_context_breaks_off(model: Any) -> None:
    """llama-server ends there and says `limit`."""
    forks = greedy_forks(24)
    fork = next(f for f in forks if expected(model, [f])[f.key].num_decoded > 5)
    prefix_len = fork.prefix_len + (fork.first_token is not None)
    with ScriptedServer(model, wire="llama", ends=EOS) as server, engine_of(server) as engine:
        server.context = prefix_len + 5
        ((_, found),) = engine.run(ListSource([fork]), budget=BUDGET)
    assert (found.finish, found.num_decoded) == ("memory", 5)


def test_a_request_has_a_deadline(model: Any) -> None:
    fork = greedy_forks(8)[-1]
    with ScriptedServer(model) as server, engine_of(server, timeout_s=1.0, retries=1) as engine:
        server.mischief = lambda number, body: "hang"
        ((_, found),) = engine.run(ListSource([fork]), budget=BUDGET)
    assert found.finish == "memory"


def test_a_slow_answer_holds_up_nobody(model: Any) -> None:
    """No barrier: while one request waits, the others' places are filled again and again."""
    forks = [f for f in greedy_forks(24) if expected(model, [f])[f.key].num_decoded]
    prefix = fork_prefix(forks[0])
    with ScriptedServer(model) as server, engine_of(server, per_server=2) as engine:
        server.mischief = lambda number, body: "slow" if body["prompt"] == prefix else ""
        order = [key for key, _ in engine.run(ListSource(forks), budget=BUDGET)]
    assert order.index(forks[0].key) > 2  # those that were sent with it and more


class SettledSource(ListSource):
    """After the first completion nothing else matters."""

    done = False

    def settled(self, key: Any) -> bool:
        return self.done


def test_what_is_settled_is_cancelled(model: Any) -> None:
    forks = [f for f in greedy_forks(30) if expected(model, [f])[f.key].num_decoded][:4]
    source, found = SettledSource(forks), {}
    with ScriptedServer(model) as server, engine_of(server) as engine:
        first = server.number + 1
        server.mischief = lambda number, body: "" if number == first else "hang"
        started = time.monotonic()
        for key, completion in engine.run(source, budget=BUDGET):
            found[key], source.done = completion, True
        assert time.monotonic() - started < 20  # they hang for longer
    assert len(found) == 4
    assert sorted(c.finish == "decided" for c in found.values()) == [False, True, True, True]


def test_a_text_whose_verdict_is_known_ends_there(model: Any) -> None:
    class Enough(ListSource):
        def decided(self, key: Any, ids: Sequence[int]) -> bool:
            return len(ids) == 3

    forks = [Fork(TokenSequence(np.arange(3, 12, dtype=np.int32), 9), 9, 20, GREEDY, 0)]
    wanted = dict(ReferenceEngine(model, EOS).run(Enough(forks), budget=BUDGET))
    with ScriptedServer(model) as server, engine_of(server) as engine:
        require_equal(dict(engine.run(Enough(forks), budget=BUDGET)), wanted)
    assert wanted[0].finish == "decided"


def test_samples_carry_their_own_seed(model: Any) -> None:
    forks = [
        Fork(TokenSequence(np.arange(3, 9, dtype=np.int32), 6), 6, None, Sampling(0.7, 0.9, 3, purpose), purpose)
        for purpose in ("a", "b")
    ]
    with ScriptedServer(model) as server, engine_of(server) as engine:
        list(engine.run(ListSource(forks), budget=BUDGET))
        list(engine.run(ListSource(forks[:1]), budget=BUDGET))
        bodies = server.bodies[-3:]
    seeds = {body["seed"] for body in bodies[:2]}
    assert len(seeds) == 2
    assert bodies[2]["seed"] in seeds
    assert {(body["temperature"], body["top_p"], body["top_k"]) for body in bodies} == {(0.7, 0.9, 0)}


# ---- in the stage


@pytest.mark.slow
def test_an_annotation_by_servers_survives_the_death_of_one_and_of_all(tmp_path: Path, tiny_arith_path: Path) -> None:
    """One of two dies in the first unit; the other in the second, which ends the command. It resumes with new servers."""
    served = AutoModelForCausalLM.from_pretrained(tiny_arith_path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_arith_path)

    def split(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def dies_at(count: int) -> Any:
        return lambda number, body: "die" if number == count else ""

    common = [
        *SHORT,
        "limit=3",
        "unit_size=1",
        "verify.workers=1",
        f"annotations_dir={tmp_path}",
        "replay_fraction=0.2",
    ]
    undisturbed = AnnotationStore(annotate(*common, "annotation=here"))
    rows = undisturbed.rows()
    assert rows

    def command(*servers: ScriptedServer) -> list[str]:
        urls = ",".join(server.url for server in servers)
        return [*common, "annotation=there", "engine=server", f"engine.url=[{urls}]", "engine.patience_s=0.3"]

    with (
        ScriptedServer(served, mischief=dies_at(30), tokenize=split) as one,
        ScriptedServer(served, tokenize=split) as two,
    ):
        two.mischief = lambda number, body: "die" if number >= 60 else ""
        with pytest.raises(EngineError, match="has been healthy"):
            annotate(*command(one, two))
    store = AnnotationStore(tmp_path / "there")
    assert not store.manifest()["finished"]
    with (
        ScriptedServer(random_llama(vocab=131), tokenize=split) as other,
        pytest.raises(EngineError, match="other weights"),
    ):
        annotate(*command(other))
    with ScriptedServer(served, tokenize=split) as three:
        annotate(*command(three))
    found = store.rows()
    assert [(p.problem_id, p.status, p.response) for p in store.problems()] == [
        (p.problem_id, p.status, p.response) for p in undisturbed.problems()
    ]
    assert len(found) == len(rows)
    for one_row, other_row in zip(found, rows, strict=True):
        for column in ("response_ids", "alt_ids", "alt_outcome", "alt_tokens", "replay_outcome"):
            np.testing.assert_array_equal(getattr(one_row, column), getattr(other_row, column), err_msg=column)
        assert np.isnan(one_row.entropy).all()
    assert store.manifest()["fingerprint"]["numerics"]["exact"] is False
    assert store.manifest()["fingerprint"]["model"]["weights"] == ""


# ---- the contract


@pytest.mark.parametrize(
    "wire, fault, message",
    [
        (
            "vllm",
            "bos",
            r"read a prompt of \d+ tokens, \d+ were sent \(it begins with \[1\]\): a server that adds a BOS",
        ),
        ("sglang", "bos", "a server that adds a BOS"),
        ("llama", "bos", "a server that adds a BOS"),
        ("vllm", "trim", r"asked to end a response at token \d+, which it decodes first, it returned \[\] \(stop\)"),
        ("sglang", "trim", "cuts the end token off"),
        ("vllm", "old", r"no token ids in choices\[0\].token_ids .*vLLM 0.10.2"),
        ("sglang", "old", "no token ids in output_ids"),
        ("llama", "old", "no token ids in tokens"),
        ("vllm", "400", r"/v1/completions: status 400: .*unknown parameter"),
    ],
)
def test_a_server_that_breaks_the_contract_is_refused_at_the_start(
    model: Any, wire: str, fault: str, message: str
) -> None:
    with (
        ScriptedServer(model, wire=wire, mischief=lambda number, body: fault) as server,
        pytest.raises(EngineError, match=message) as error,
        engine_of(server),
    ):
        pass
    assert server.url in str(error.value)


def test_a_sampling_default_is_noticed(model: Any) -> None:
    fork = Fork(TokenSequence(np.arange(3, 12, dtype=np.int32), 9), 9, None, GREEDY, 0, top_k=5)
    with ScriptedServer(model) as server, engine_of(server) as engine:
        server.mischief = lambda number, body: "penalty"
        with pytest.raises(EngineError, match=r"penalty or sampling default is at work.*--generation-config vllm"):
            list(engine.run(ListSource([fork]), budget=BUDGET))


def test_an_end_token_that_is_lost_later_is_noticed(model: Any) -> None:
    """llama-server names no end that could be tried at the start."""
    forks = greedy_forks(30)
    with ScriptedServer(model, wire="llama", ends=EOS) as server, engine_of(server) as engine:
        server.mischief = lambda number, body: "trim"
        with pytest.raises(EngineError, match="the end token was cut off"):
            list(engine.run(ListSource(forks), budget=BUDGET))


def test_other_weights_and_other_vocabularies_are_refused(model: Any) -> None:
    other = random_llama(seed=1)
    letters = Letters()

    def shifted(text: str) -> list[int]:
        return [0, *letters(text, add_special_tokens=False)["input_ids"]]

    with (
        ScriptedServer(model) as one,
        ScriptedServer(other) as two,
        pytest.raises(EngineError, match=f"{two.url} serves other weights than {one.url}"),
        engine_of(one, two),
    ):
        pass
    with (
        ScriptedServer(model, tokenize=shifted) as server,
        pytest.raises(EngineError, match=r"its tokenizer differs from model.path's: it made 41 tokens"),
        engine_of(server),
    ):
        pass


def test_log_probs_must_be_enough(model: Any) -> None:
    with (
        ScriptedServer(model, max_logprobs=3) as server,
        pytest.raises(EngineError, match="greater than max allowed: 3"),
        engine_of(server),
    ):
        pass
    with pytest.raises(EngineError, match=r"4 most probable tokens were requested .* 1 came .*--max-logprobs 4"):
        top_tokens_of([Ranked(-1.0, {3: -1.0})], k=4)


def test_a_server_that_is_not_there_is_named(model: Any) -> None:
    with ScriptedServer(model) as server:
        url = server.url
    with pytest.raises(EngineError, match=f"{url} did not become healthy"):
        ServerEngine([url], EOS, Letters(), **{**OPTIONS, "patience_s": 0.1})  # type: ignore[arg-type]


def test_facts_hold_the_probe_and_no_address(model: Any) -> None:
    found = []
    for _ in range(2):
        with ScriptedServer(model) as server, engine_of(server) as engine:
            found.append(engine.facts())
            assert server.url not in str(found[-1])
    assert found[0] == found[1]
    assert (found[0]["name"], found[0]["wire"], found[0]["version"]) == ("server", "vllm", "1.2.3")
    with ScriptedServer(random_llama(seed=2)) as server, engine_of(server) as engine:
        assert probes_differ(found[0]["probe"], engine.facts()["probe"]) > 0.2


def test_probes_differ_by_log_probs_and_by_tokens() -> None:
    one = [[[5, -0.1], [6, -2.0]]]
    assert probes_differ(one, one) == 0
    assert probes_differ(one, [[[5, -0.2], [6, -2.2]]]) == pytest.approx(0.15)
    assert probes_differ(one, [[[5, -0.1], [7, -2.5]]]) == pytest.approx((0 + 0.5 + 0.5) / 3)


def test_a_probe_that_differs_by_noise_is_the_stored_one() -> None:
    stored = {"name": "server", "version": "1", "probe": [[[5, -0.1], [6, -2.0]]]}
    near = {"name": "server", "version": "2", "probe": [[[5, -0.11], [6, -2.02]]]}
    assert with_stored_probe(near, stored, of="mine") == {**near, "probe": stored["probe"]}
    assert with_stored_probe({"device": "cpu"}, stored, of="mine") == {"device": "cpu"}
    with pytest.raises(EngineError, match=r"other weights than those that mine was made with: .* differ by 0.30 nats"):
        with_stored_probe({"probe": [[[5, -0.4], [6, -2.3]]]}, stored, of="mine")


# ---- wires, as pure functions


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("payload", [{}, {"choices": []}, {"meta_info": {}}, {"tokens": "text"}, {"output_ids": [1]}])
def test_another_shape_is_named(wire: str, payload: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        WIRES[wire].read(payload, DecodeRequest([3, 4], 4, frozenset(EOS), top=2))


def test_ranked_tokens_are_ordered_by_log_prob_then_id() -> None:
    top = top_tokens_of([Ranked(-0.5, {9: -1.0, 4: -0.5, 2: -1.0, 3: -7.0})], k=3)
    assert top.top_ids_RK.tolist() == [[4, 2, 9]]
