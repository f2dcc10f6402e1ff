"""Mixed inputs against a literal second pass, row by row, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cft.data.batches import TokenRow
from cft.errors import BadValue
from cft.inputs import Mixed
from cft.losses.coefficient import Coefficient
from cft.losses.router import balance_of_rows
from cft.models.head import backbone
from cft.references.models import Initial
from cft.training.layout import Layout
from cft.training.module import CausalLMModule
from cft.training.selective_lm import SelectiveLM
from cft.types import TokenBatch
from cft.weightings import Propagation
from tests import gradient_driver
from tests.architectures import collate, exact_family, gradients, model_of, uneven
from tests.fakes import exact_llama, random_llama
from tests.gradient_driver import Recorder, run
from tests.objectives import sft
from tests.precision import assert_same
from tests.two_ranks import on_two_ranks

pytestmark = pytest.mark.numerics
exact = pytest.mark.usefixtures("in_float64")
LAYOUTS: list[Layout] = ["packed", "padded"]


def mixed(mix: float = 0.2, *, final: float | None = None, frozen: bool = True) -> Mixed:
    shape: Any = "constant" if final is None else "linear"
    return Mixed(mix=Coefficient(initial=mix, final=final or 0.0, shape=shape), frozen=frozen)


def batch() -> TokenBatch:
    """Uneven rows, and one whose response begins at its first token, which nothing predicts."""
    rows = [_row(length, prompt, i) for i, (length, prompt) in enumerate(((9, 3), (16, 4), (6, 0), (21, 3)))]
    return collate(rows)


def _row(length: int, prompt: int, seed: int) -> TokenRow:
    rng = np.random.default_rng(seed)
    response = np.arange(length) >= prompt
    group = np.where(response, rng.integers(0, 2, length), -1).astype(np.int8)
    weight = (response & (rng.random(length) < 0.7)).astype(np.float32)
    weight[-3] = 1.0  # the last ones may carry no loss
    return TokenRow(f"r{seed}", rng.integers(3, 60, length), weight, group)


def literal(model: PreTrainedModel, given: TokenBatch, *, mix: float, frozen: bool, gamma: float) -> Tensor:
    """The sum over rows of the mean of w_t l_t, as the paper has it."""
    embedding: Any = model.get_input_embeddings()
    # A copy of the matrix, as in the authors' code; what scales inside of the module is left to it.
    total = torch.zeros((), dtype=torch.float64)
    for ids, weights, groups, length in zip(
        given.input_ids_BT, given.weight_BT, given.token_group_BT, given.lengths_B.tolist(), strict=True
    ):
        ids, eligible = ids[:length], [t for t in range(1, length) if weights[t] > 0]
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0]
        true = embedding(ids)
        read = []
        for t in range(length):
            if groups[t] >= 0 and t > 0:
                guess = logits[t - 1].argmax()
                read.append((1 - mix) * true[t] + mix * embedding(guess[None])[0])
            else:
                read.append(true[t])
        embeds = torch.stack(read)
        logprob = model(inputs_embeds=(embeds.detach() if frozen else embeds)[None]).logits[0].log_softmax(-1)
        losses = {t: -logprob[t - 1, ids[t]] for t in eligible}
        n = len(eligible)
        s = {t: sum(gamma ** (i - t) * losses[i] / n for i in eligible if i >= t) for t in eligible}
        weight = {t: s[t] * n / sum(s.values()) for t in eligible}  # type: ignore[operator]
        total = total + sum(weight[t] * losses[t] for t in eligible) / n  # type: ignore[operator]
    return total


def ours(model: PreTrainedModel, inputs: Mixed, *, layout: Layout, progress: float = 0.0, chunk: int = 7) -> Tensor:
    objective = sft(weighting=Propagation(gamma=0.95, detached=False), normalizer="sequence", chunk_tokens=chunk)
    lm = SelectiveLM(model, objective, inputs=inputs, layout=layout)
    lm.check_inputs()
    (term,) = lm(batch(), progress=progress, mixed=True)
    return term.sum


@exact
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("tied", "frozen"), [(True, True), (False, True), (True, False)])
def test_the_loss_is_that_of_a_literal_second_pass(tied: bool, frozen: bool, layout: Layout) -> None:
    """Guesses differ from the tokens, the shift ends where a row does, gradient flows through the weights, and with frozen
    inputs the embedding matrix has the head's gradient alone, or none."""
    model = exact_llama(tie_word_embeddings=tied).train()
    expected = literal(model, batch(), mix=0.3, frozen=frozen, gamma=0.95)
    expected.backward()
    theirs = gradients(model)
    found = ours(model, mixed(0.3, frozen=frozen), layout=layout)
    found.backward()
    assert_same(found.detach(), expected.detach())
    embedding: Any = model.get_input_embeddings()
    assert (embedding.weight.grad is None) == (frozen and not tied)
    assert_same(gradients(model), theirs)
    plain = literal(model, batch(), mix=0.0, frozen=frozen, gamma=0.95)
    assert abs(float((plain / expected).detach()) - 1) > 1e-3  # else nothing was mixed


@exact
@pytest.mark.parametrize("kind", ["gemma", "gemma3_text", "granite"])
def test_scaled_embeddings_are_mixed_as_the_model_scales_them(kind: str) -> None:
    options: dict[str, Any] = {"sliding_window": 64, "head_dim": 8} if kind == "gemma3_text" else {}
    options |= {"embedding_multiplier": 3.0} if kind == "granite" else {}
    model = model_of(kind, **options).double().train()
    found, expected = (
        ours(model, mixed(), layout="padded"),
        literal(model, batch(), mix=0.2, frozen=True, gamma=0.95),
    )
    assert_same(found.detach(), expected.detach())


@exact
def test_the_share_follows_its_schedule_and_checkpointed_blocks_change_nothing() -> None:
    model = exact_llama().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found = ours(model, mixed(0.1, final=0.5), layout="packed", progress=0.5)
    found.backward()
    again = gradients(model)
    expected = literal(model, batch(), mix=0.3, frozen=True, gamma=0.95)
    expected.backward()
    assert_same(found.detach(), expected.detach())
    assert_same(again, gradients(model))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("frozen", [True, False])
def test_without_a_share_it_is_todays_loss_to_the_bit(layout: Layout, frozen: bool) -> None:
    """But for the gradient of frozen embeddings, of which there is none."""
    found = {}
    for name, inputs in (("tokens", None), ("mixed", mixed(0.0, frozen=frozen))):
        model = random_llama(tie_word_embeddings=False).train()
        (term,) = SelectiveLM(model, sft(), inputs=inputs, layout=layout)(batch(), mixed=True)
        term.sum.backward()
        found[name] = term.sum, {n: p.grad for n, p in model.named_parameters()}
    (sum_of_tokens, of_tokens), (sum_of_mixed, of_mixed) = found["tokens"], found["mixed"]
    assert torch.equal(sum_of_tokens, sum_of_mixed)
    if frozen:
        assert of_mixed.pop("model.embed_tokens.weight") is None
        of_tokens.pop("model.embed_tokens.weight")
    for name, gradient in of_tokens.items():
        assert gradient is not None
        assert torch.equal(gradient, of_mixed[name]), name  # type: ignore[arg-type]


@exact
def test_the_router_is_balanced_over_what_it_routes_and_the_reference_reads_the_true_tokens() -> None:
    model = exact_family("qwen3-moe").train()
    seen: list[Any] = []
    reference = Initial().attach(model)
    reference.model.base_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append({*kwargs}), with_kwargs=True
    )
    given = collate([_row(16, 4, 1)])
    lm = SelectiveLM(model, sft(), inputs=mixed(), reference=reference, router=0.5)
    read: list[Any] = []
    backbone(model).register_forward_pre_hook(
        lambda _module, _args, kwargs: read.append(kwargs.get("inputs_embeds")), with_kwargs=True
    )
    (_, router) = lm(given, mixed=True)
    assert [keys & {"input_ids", "inputs_embeds"} for keys in seen] == [{"input_ids"}]
    first, second = read
    assert first is None
    logits = backbone(model)(inputs_embeds=second, output_router_logits=True, use_cache=False).router_logits
    row_P = torch.zeros(second.shape[1], dtype=torch.long)
    expected = balance_of_rows(logits, row_P, num_rows=1, chosen=2)
    assert_same(router.sum.detach(), expected.sum().detach())
    plain = lm(given)[1].sum.detach()
    assert abs(float(plain - router.sum.detach())) > 1e-6


# ---- in a training


class Losses(Recorder):
    def validation_loss(self, given: TokenBatch) -> Tensor:
        self._validation.zero_()
        self.validation_step(given, 0)
        return self._validation[0, 0].clone()


def test_training_reads_mixtures_however_a_step_is_split_and_validation_tokens() -> None:
    settings: Any = {"world": 1, "inputs": mixed(0.4, frozen=False)}
    whole, module, _ = run(accumulate=1, batch=8, module_class=Losses, **settings)
    parts, _, _ = run(accumulate=4, batch=2, **settings)
    plain, _, _ = run(world=1, accumulate=1, batch=8)
    for one, other in zip(whole, parts, strict=True):
        assert one is not None
        assert other is not None
        assert_same(one, other)
    assert whole[0] is not None
    assert plain[0] is not None
    assert float((whole[0] - plain[0]).norm() / plain[0].norm()) > 1e-2
    with torch.no_grad():
        (term,) = SelectiveLM(module.lm.model, sft(), layout="packed")(uneven())
        assert torch.equal(module.validation_loss(uneven()), term.sum.double())  # type: ignore[operator]


def test_frozen_embeddings_without_a_tied_head_are_not_trained() -> None:
    def module(*, tied: bool, frozen: bool) -> CausalLMModule:
        return CausalLMModule(
            random_llama(tie_word_embeddings=tied), sft(), optimizer=gradient_driver.SGD, schedule="constant",
            warmup_fraction=0.0, probe_every_n_steps=0, inputs=mixed(frozen=frozen),
        )  # fmt: skip

    untied = module(tied=False, frozen=True)
    assert "are not trained" in untied.of_inputs
    assert [n for n, p in untied.lm.model.named_parameters() if not p.requires_grad] == ["model.embed_tokens.weight"]
    for other in (module(tied=True, frozen=True), module(tied=False, frozen=False)):
        assert not other.of_inputs
        assert all(p.requires_grad for p in other.parameters())


@pytest.mark.slow
def test_two_processes_train_on_the_same_mixtures(tmp_path: Path) -> None:
    on_two_ranks(gradient_driver.save_weights, tmp_path / "weights.pt", 2, 2, 2, None, mixed())
    there = torch.load(tmp_path / "weights.pt", weights_only=True)
    _, module, _ = run(world=1, accumulate=4, batch=2, inputs=mixed())
    for name, tensor in module.lm.model.state_dict().items():
        assert_same(there[name], tensor)


# ---- refusals


def test_a_model_that_makes_more_of_its_ids_is_refused() -> None:
    model = model_of(
        "gemma3n_text", head_dim=8, vocab_size_per_layer_input=60, hidden_size_per_layer_input=8, num_kv_shared_layers=0,
        laurel_rank=4, altup_num_inputs=2, layer_types=["full_attention"] * 2, activation_sparsity_pattern=[0.0, 0.0],
        intermediate_size=[64, 64], sliding_window=64,
    )  # fmt: skip
    with torch.no_grad():  # some of its weights begin at zero, as no published model has them
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    lm = SelectiveLM(model, sft(), inputs=mixed())
    with pytest.raises(BadValue, match=r"inputs=mixed: hidden states of Gemma3nForCausalLM change by .* inputs=tokens"):
        lm.check_inputs()
    SelectiveLM(model, sft()).check_inputs()  # nothing is mixed


def test_a_share_is_one() -> None:
    with pytest.raises(BadValue, match=r"Mixed\.mix: expected initial and final from 0 to 1, found 0\.2 and 1\.5"):
        mixed(0.2, final=1.5)
