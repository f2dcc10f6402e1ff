"""Engines: the fast one gives the reference's ids; both obey cut, first, limit and EOS; sampling ignores the batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch

from cft.annotation.counterfactual import ListSource
from cft.engines.reference import ReferenceEngine, top_tokens
from cft.engines.sampling import TIE_MARGIN_PROBABILITY, greedy, sampled, uniforms
from cft.engines.shared_prefix import SharedPrefixEngine
from cft.models.kernels import DecodingChoice
from cft.types import GREEDY, Budget, Completion, Fork, Key, Sampling, TokenSequence
from tests.fakes import exact_llama, random_llama
from tests.precision import ROUNDING, STORED

EOS = (1, 2)
BUDGET = Budget(24)


def random_forks(count: int, *, seed: int = 0) -> list[Fork]:
    rng = np.random.default_rng(seed)
    forks = []
    for i in range(count):
        length = int(rng.integers(2, 20))
        ids = rng.integers(3, 60, length).astype(np.int32)
        prompt_len = int(rng.integers(1, length + 1))
        cut = int(rng.integers(prompt_len, length + 1))
        first = int(rng.integers(0, 60)) if i % 3 else None
        sampling = GREEDY if i % 2 else Sampling(1.0, 0.9 if i % 4 else 1.0, 7, f"fork{i}")
        forks.append(Fork(TokenSequence(ids, prompt_len), cut, first, sampling, i))
    return forks


@cache
def of_the_reference() -> dict[Key, Completion]:
    return dict(ReferenceEngine(random_llama(), EOS).run(ListSource(random_forks(60)), budget=BUDGET))


@pytest.mark.parametrize("max_rows", [pytest.param(1, marks=pytest.mark.slow), 7, 64])
def test_the_engine_equals_the_reference(max_rows: int) -> None:
    model, forks = random_llama(), random_forks(60)
    expected = of_the_reference()
    found = dict(SharedPrefixEngine(model, EOS, max_rows=max_rows).run(ListSource(forks), budget=BUDGET))
    assert expected.keys() == found.keys()
    assert {c.finish for c in expected.values()} == {"stop", "length"}
    for key, completion in expected.items():
        np.testing.assert_array_equal(found[key].ids, completion.ids)
        assert (found[key].finish, found[key].num_decoded) == (completion.finish, completion.num_decoded)


def test_reference_equals_transformers_generate() -> None:
    model, budget, limited = random_llama(), Budget(12), 0
    for fork in random_forks(60, seed=1):
        if fork.sampling is not GREEDY or fork.first_token in EOS:
            continue
        prefix = [
            *fork.sequence.ids[: fork.prefix_len].tolist(),
            *([] if fork.first_token is None else [fork.first_token]),
        ]
        room = budget.max_new_tokens - (len(prefix) - fork.sequence.prompt_len)
        if room < 1:
            continue
        ids = model.generate(
            torch.tensor([prefix]), max_new_tokens=room, do_sample=False, eos_token_id=list(EOS), pad_token_id=0
        )
        completion = ReferenceEngine(model, EOS).complete(fork, budget=budget)
        assert ids[0, fork.sequence.prompt_len :].tolist() == completion.ids.tolist()
        limited += completion.finish == "length" and fork.prefix_len > fork.sequence.prompt_len
    assert limited > 3


def test_near_ties_are_settled_by_the_reference() -> None:
    model, forks = random_llama(), random_forks(30)
    engine = SharedPrefixEngine(model, EOS, tie_margin=1e9)
    found = dict(engine.run(ListSource(forks), budget=BUDGET))
    decoded = [f for f in forks if f.sampling is GREEDY and found[f.key].num_decoded]
    assert len(decoded) > 5
    assert all(found[f.key].num_ties_rescored for f in decoded)
    none = dict(SharedPrefixEngine(model, EOS, tie_margin=0).run(ListSource(forks), budget=BUDGET))
    assert not any(c.num_ties_rescored for c in none.values())


def test_what_the_reference_settles_is_what_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model, forks = random_llama(), random_forks(10)
    monkeypatch.setattr(ReferenceEngine, "rescore", lambda self, ids, fork, *, uniform: 7)
    for kind in (ReferenceEngine, SharedPrefixEngine):
        found = [c for _, c in kind(model, EOS, tie_margin=1e9).run(ListSource(forks), budget=BUDGET) if c.num_decoded]
        assert len(found) > 5
        assert all(set(c.ids[-c.num_ties_rescored :]) == {7} for c in found if c.num_ties_rescored)


def test_what_settles_a_near_tie_is_the_same_in_both_engines() -> None:
    """Where every token is settled, ids are those of passes over the ids alone: plain ones too, by their logits."""
    model, forks = random_llama(), random_forks(30)
    choices: tuple[DecodingChoice, ...] = ("auto", "torch")
    for kernels in choices:
        engines = [kind(model, EOS, tie_margin=1e9, kernels=kernels) for kind in (ReferenceEngine, SharedPrefixEngine)]
        one, other = (dict(engine.run(ListSource(forks), budget=BUDGET)) for engine in engines)
        for key, completion in one.items():
            np.testing.assert_array_equal(other[key].ids, completion.ids)
        fork = next(f for f in forks if f.sampling is GREEDY and one[f.key].num_decoded > 5)
        ids = [*fork.sequence.ids[: fork.sequence.prompt_len].tolist(), *one[fork.key].ids.tolist()]
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0]
        decoded = one[fork.key].num_decoded
        assert logits[-decoded - 1 : -1].argmax(-1).tolist() == ids[-decoded:]


def test_first_eos_ends_the_text_and_the_limit_counts_the_kept_part() -> None:
    model = random_llama()
    ids = np.arange(3, 23, dtype=np.int32)
    forks = [
        Fork(TokenSequence(ids, 4), 10, 2, GREEDY, "eos"),
        Fork(TokenSequence(ids, 4), 10, 5, GREEDY, "full"),
        Fork(TokenSequence(ids, 4), 4, None, GREEDY, "fresh"),
    ]
    for engine in (ReferenceEngine(model, EOS), SharedPrefixEngine(model, EOS)):
        found = dict(engine.run(ListSource(forks), budget=Budget(7)))
        assert found["eos"].ids.tolist() == [*ids[4:10], 2]
        assert (found["eos"].finish, found["eos"].num_decoded) == ("stop", 0)
        assert found["full"].ids.tolist() == [*ids[4:10], 5]
        assert (found["full"].finish, found["full"].num_decoded) == ("length", 0)
        assert len(found["fresh"].ids) <= 7


def test_cut_outside_the_response_is_refused() -> None:
    fork = Fork(TokenSequence(np.arange(5, dtype=np.int32), 3), 2, None, GREEDY, 0)
    with pytest.raises(ValueError, match=r"prefix_len 2 is outside \[3, 5\]"):
        ReferenceEngine(random_llama(), EOS).complete(fork, budget=BUDGET)


@pytest.mark.numerics
@pytest.mark.usefixtures("in_float64")
def test_score_equals_a_plain_forward_pass() -> None:
    """The table holds float32."""
    model = exact_llama()
    sequence = TokenSequence(np.arange(3, 20, dtype=np.int32), 5)
    top = ReferenceEngine(model, EOS).score(sequence, k=4)
    with torch.inference_mode():
        logprob = model(torch.arange(3, 20)[None]).logits[0].log_softmax(-1)
    for t in range(12):
        before = logprob[5 + t - 1]
        assert top.logprob_R[t] == pytest.approx(float(before[sequence.ids[5 + t]]), rel=STORED, abs=ROUNDING)
        assert top.entropy_R[t] == pytest.approx(float(-(before.exp() * before).sum()), rel=STORED, abs=ROUNDING)
        assert top.top_ids_RK[t].tolist() == before.argsort(descending=True)[:4].tolist()


def test_equal_probabilities_break_by_lower_id() -> None:
    ids, _ = top_tokens(torch.tensor([[0.0, 3.0, 1.0, 3.0, 1.0, 1.0]]), k=4)
    assert ids.tolist() == [[1, 3, 2, 4]]


def draw(logits: torch.Tensor, sampling: Sampling, points: Sequence[float]) -> tuple[list[int], list[float]]:
    """One token for every uniform, from the same logits."""
    tokens, distances = sampled(
        logits.expand(len(points), -1),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        uniform_N=torch.tensor(points, dtype=torch.float64),
    )
    return tokens.tolist(), distances.tolist()


def test_sampling_follows_the_distribution_and_top_p() -> None:
    logits = torch.tensor([1.0, 2.0, 0.0, -1.0])
    points = uniforms(Sampling(0.5, 1.0, 0, "x"), 20_000).tolist()
    counts = np.bincount(draw(logits, Sampling(0.5), points)[0], minlength=4)
    # Three standard errors of a share of 0.5 in 20,000 draws.
    np.testing.assert_allclose(counts / 20_000, torch.softmax(logits / 0.5, 0).numpy(), atol=3 * (0.25 / 20_000) ** 0.5)
    assert set(draw(logits, Sampling(1.0, 0.7), points[:500])[0]) == {0, 1}  # 0.64 + 0.24 reaches 0.7


def plain_sample(logits: np.ndarray, sampling: Sampling, uniform: float) -> int:
    """The definition, in float64: the smallest set of top tokens that reaches top_p, then the inverse distribution."""
    p = np.exp((logits - logits.max()) / sampling.temperature)
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    kept = order[: int(np.searchsorted(np.cumsum(p[order]), sampling.top_p - 1e-12)) + 1]
    nucleus = np.zeros_like(p)
    nucleus[kept] = p[kept]
    return int(np.searchsorted(np.cumsum(nucleus), uniform * nucleus.sum(), side="right"))


@pytest.mark.parametrize(("vocabulary", "spread"), [(20, 2.0), (1000, 0.5), (4096, 3.0)])
def test_a_batch_of_samples_equals_the_definition(vocabulary: int, spread: float) -> None:
    """A flat distribution over 1000 tokens has a nucleus beyond the first guess of its size."""
    rng = np.random.default_rng(vocabulary)
    logits = rng.normal(0, spread, (200, vocabulary)).astype(np.float32)
    uniform = rng.random(200)
    for sampling in (Sampling(1.0, 1.0), Sampling(0.7, 0.95), Sampling(1.5, 0.5)):
        tokens, distance = sampled(
            torch.from_numpy(logits),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            uniform_N=torch.from_numpy(uniform),
        )
        clear = (distance > 1e-5).numpy()
        assert clear.sum() > 50  # where many tokens are alike, most draws are near another
        expected = [plain_sample(z.astype(np.float64), sampling, u) for z, u in zip(logits, uniform, strict=True)]
        np.testing.assert_array_equal(tokens.numpy()[clear], np.array(expected)[clear])


@pytest.mark.parametrize("vocabulary", [2, 3, 60, 1000, 4096, 49152])
def test_greedy_finds_the_best_token_and_its_margin(vocabulary: int) -> None:
    logits = torch.randn(40, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    tokens, margin = greedy(logits)
    ordered = logits.sort(dim=-1, descending=True)
    assert torch.equal(tokens, ordered.indices[:, 0])
    assert torch.equal(margin, ordered.values[:, 0] - ordered.values[:, 1])


def test_random_numbers_depend_on_seed_and_purpose_alone() -> None:
    a = uniforms(Sampling(1.0, 1.0, 1, "a"), 8)
    np.testing.assert_array_equal(a, uniforms(Sampling(0.3, 0.5, 1, "a"), 8))
    np.testing.assert_array_equal(a[:3], uniforms(Sampling(1.0, 1.0, 1, "a"), 3))
    assert not np.array_equal(a, uniforms(Sampling(1.0, 1.0, 2, "a"), 8))
    assert not np.array_equal(a, uniforms(Sampling(1.0, 1.0, 1, "b"), 8))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_uniform_that_rounding_moves_over_a_boundary_is_near_it(temperature: float) -> None:
    """The worst case of errors of 6e-5: all tokens up to a boundary gain, all behind it lose. Boundaries near 0 and 1
    move less than those at 1/2, and distances say so."""
    error = 6e-5
    rng = np.random.default_rng(0)
    for spread in (0.5, 3.0, 6.0):
        logits = rng.normal(0, spread, 40)
        p = np.exp((logits - logits.max()) / temperature)
        before, behind = np.cumsum(p)[:-1], p.sum() - np.cumsum(p)[:-1]
        boundary = before / (before + behind)
        moved = before / (before + behind * np.exp(-2 * error / temperature))
        for share in (0.01, 0.5, 0.99):
            points = boundary + share * (moved - boundary)
            _, distances = draw(torch.tensor(logits, dtype=torch.float64), Sampling(temperature), points.tolist())
            assert max(distances) < TIE_MARGIN_PROBABILITY
        clear = boundary + 3 * (moved - boundary) + 3e-6 / temperature
        alone = clear < np.append(boundary[1:], 1) - 1e-3  # no other boundary near
        _, distances = draw(torch.tensor(logits, dtype=torch.float64), Sampling(temperature), clear[alone].tolist())
        assert not distances or min(distances) > TIE_MARGIN_PROBABILITY


def test_broken_weights_stop_the_run() -> None:
    model = random_llama()
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    for engine in (SharedPrefixEngine, ReferenceEngine):
        with pytest.raises(FloatingPointError, match="NaN or infinite"):
            list(engine(model, EOS).run(ListSource(random_forks(3)), budget=BUDGET))


def test_sampling_notices_what_rounding_could_change() -> None:
    """Logits that differ by rounding give the same token, or a distance so small that the reference settles it."""
    swapped = [torch.tensor([2.0, 2.0 + 1e-5, 0.0, -1.0]), torch.tensor([2.0 + 1e-5, 2.0, 0.0, -1.0])]
    tokens = {draw(z, Sampling(1.0, 0.95), [0.25])[0][0] for z in swapped}
    assert len(tokens) == 1
    for shift in (1e-6, -1e-6):  # the nucleus of 0.95 holds two or three tokens
        logits = torch.tensor([0.5 + shift, 0.45, 0.05 - shift]).log()
        assert draw(logits, Sampling(1.0, 0.95), [0.51])[1][0] < TIE_MARGIN_PROBABILITY
    rng = np.random.default_rng(0)
    for top_p, temperature in ((0.95, 1.0), (1.0, 1.0), (0.9, 0.3)):
        logits = torch.tensor(rng.normal(0, 2, (500, 20)), dtype=torch.float32)
        noisy = logits + torch.tensor(rng.normal(0, 2e-5, (500, 20)), dtype=torch.float32)
        uniform_N = torch.tensor(rng.random(500))
        one, distance = sampled(logits, temperature=temperature, top_p=top_p, uniform_N=uniform_N)
        other, _ = sampled(noisy, temperature=temperature, top_p=top_p, uniform_N=uniform_N)
        assert bool(((one == other) | (distance < TIE_MARGIN_PROBABILITY)).all())
