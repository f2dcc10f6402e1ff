"""Reference models stay what they were while the policy trains, are no part of it, and agree with what is stored."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from cft.data.annotated import to_token_row
from cft.data.batches import collate
from cft.errors import BadValue
from cft.losses.token import Prediction
from cft.masks import All
from cft.models.load import Lora, ModelSpec, apply_lora, base_weights_hash, load_causal_lm, load_tokenizer, weights_hash
from cft.references.models import AdapterOff, Dtype, Initial, Reference, Teacher, starts_as_reference
from cft.scores.column import REFERENCE_DISTRIBUTION, REFERENCE_LOGPROB, StoredColumn
from cft.scores.methods import ReferenceLogprob
from cft.stages.score import batches, compute
from cft.training.selective_lm import SelectiveLM
from cft.types import AnnotatedResponse, StepCounts, TokenBatch
from cft.weightings.row import SequenceRatio
from tests.entry import FIT_ONLY
from tests.fakes import exact_llama, random_llama, row
from tests.objectives import sft
from tests.precision import assert_same
from tests.stage import asked

pytestmark = pytest.mark.numerics

LORA = Lora(r=4)


def rows() -> list[AnnotatedResponse]:
    rng = np.random.default_rng(0)
    return [row(rng.integers(0, 60, 4 + 3 * n).tolist(), number=n) for n in range(4)]


def batch(*, stored: LlamaForCausalLM | None = None) -> TokenBatch:
    """stored: the model whose log-probs the batch brings along."""
    made = rows()
    columns = {}
    if stored is not None:
        values = compute(ReferenceLogprob(), stored, batches(made, size=2))
        made = [_with(one, values[one.response_id]) for one in made]
        columns = {REFERENCE_LOGPROB: StoredColumn("base")}
    return collate(
        [to_token_row(one, mask=All(), group_mask=All(), columns=columns) for one in made], step_counts=StepCounts()
    )


def _with(one: AnnotatedResponse, values: np.ndarray) -> AnnotatedResponse:
    return dataclasses.replace(one, scores={"base": values})


class KL:
    """KL(reference || policy) per token, written out here so that the whole distribution is asked for."""

    needs: tuple[str, ...] = (REFERENCE_DISTRIBUTION,)

    def __call__(self, prediction: Prediction) -> torch.Tensor:
        assert prediction.reference_NV is not None
        return (prediction.reference_NV.exp() * (prediction.reference_NV - prediction.logprob_NV)).sum(-1)


def adapted(*, seed: int = 0, trained: bool = False, lora: Lora = LORA) -> LlamaForCausalLM:
    """trained: the adapters, zero at first, hold something."""
    model = random_llama(seed=seed, spread=0.1)
    apply_lora(model, lora=lora)
    if trained:
        torch.manual_seed(1)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_" in name:
                    weight.copy_(torch.randn_like(weight) * 0.3)
    return model


def logits(model: LlamaForCausalLM, ids_BT: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(ids_BT, use_cache=False).logits


def train_a_little(lm: SelectiveLM, on: TokenBatch, *, steps: int = 3) -> None:
    lm.train()
    optimizer = torch.optim.SGD([p for p in lm.parameters() if p.requires_grad], lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        sum((term.sum for term in lm(on)), torch.zeros(())).backward()
        optimizer.step()


@pytest.mark.usefixtures("in_float64")
def test_adapters_off_gives_the_base_models_logits() -> None:
    ids_BT = batch().input_ids_BT
    base = logits(exact_llama(spread=0.1), ids_BT)
    policy = adapted(trained=True).double()
    reference = AdapterOff().attach(policy)
    found = reference.project(reference.hidden(input_ids=ids_BT).flatten(0, 1)).view_as(base)
    assert_same(found, base)
    assert (logits(policy, ids_BT) - base).abs().max() > 0.1  # and they are on again


def test_an_error_within_leaves_the_adapters_on() -> None:
    policy = adapted(trained=True)
    before = logits(policy, batch().input_ids_BT)
    with pytest.raises(TypeError):
        AdapterOff().attach(policy).hidden(nonsense=1, input_ids=[object()])
    torch.testing.assert_close(logits(policy, batch().input_ids_BT), before, rtol=0, atol=0)


@pytest.mark.parametrize("make", [lambda: random_llama(spread=0.1), adapted], ids=["full", "lora"])
def test_a_frozen_copy_stays_while_the_policy_trains(make: Callable[[], LlamaForCausalLM]) -> None:
    policy, on = make(), batch()
    reference = Initial().attach(policy)
    before, start = copy.deepcopy(reference.model.state_dict()), logits(policy, on.input_ids_BT)
    objective = sft(weighting=SequenceRatio(temperature=1.0, largest=16.0))
    train_a_little(SelectiveLM(policy, objective, reference=reference), on)
    after = reference.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not reference.model.training
    assert (logits(policy, on.input_ids_BT) - start).abs().max() > 1e-3
    torch.testing.assert_close(logits(reference.model, on.input_ids_BT), start, rtol=0, atol=0)


@pytest.mark.usefixtures("in_float64")
def test_adapters_off_stay_the_base_while_the_adapters_train() -> None:
    policy, on = adapted(trained=True).double(), batch()
    base = logits(exact_llama(spread=0.1), on.input_ids_BT)
    reference = AdapterOff().attach(policy)
    before = logits(policy, on.input_ids_BT)
    train_a_little(SelectiveLM(policy, sft(token_loss=KL()), reference=reference), on)
    found = reference.project(reference.hidden(input_ids=on.input_ids_BT).flatten(0, 1)).view_as(base)
    assert_same(found, base)
    assert (logits(policy, on.input_ids_BT) - before).abs().max() > 1e-3


@pytest.mark.usefixtures("in_float64")
def test_both_references_of_an_adapted_model_give_the_same_gradients() -> None:
    """Switching adapters off and on between a forward pass and its backward pass must not disturb either."""
    grads = []
    for attach in (AdapterOff().attach, lambda policy: Initial().attach(exact_llama(spread=0.1))):
        policy = adapted(trained=True).double()
        lm = SelectiveLM(policy, sft(token_loss=KL(), chunk_tokens=5), reference=attach(policy)).train()
        lm(batch())[0].sum.backward()
        grads.append({name: p.grad for name, p in policy.named_parameters() if p.requires_grad})
    assert grads[0].keys() == grads[1].keys()
    assert all("lora_" in name for name in grads[0])
    for name, grad in grads[0].items():
        assert grad is not None, name
        other = grads[1][name]
        assert other is not None
        assert_same(grad, other)


@pytest.mark.parametrize("reference", [Initial(), AdapterOff()], ids=["initial", "adapter_off"])
def test_nothing_of_the_reference_is_trained_or_saved(reference: Reference) -> None:
    plain = SelectiveLM(adapted(), sft())
    with_reference = SelectiveLM(model := adapted(), sft(token_loss=KL()), reference=reference.attach(model))
    assert with_reference.state_dict().keys() == plain.state_dict().keys()
    assert [n for n, _ in with_reference.named_parameters()] == [n for n, _ in plain.named_parameters()]
    trained = [n for n, p in with_reference.named_parameters() if p.requires_grad]
    assert trained == [n for n, p in plain.named_parameters() if p.requires_grad]


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("chunk_tokens", [3, 1024])
def test_stored_and_live_log_probs_agree(chunk_tokens: int) -> None:
    """Through the objective: a sequence weight exp(mean(log p - log p_ref)) shows every difference between the two."""
    base, policy = exact_llama(seed=0, spread=0.1), exact_llama(seed=1, spread=0.1)
    on = batch(stored=base)
    objective = sft(weighting=SequenceRatio(temperature=1.0, largest=16.0), chunk_tokens=chunk_tokens)
    with torch.no_grad():
        stored = SelectiveLM(policy, objective)(on)[0].sum
        live = SelectiveLM(policy, objective, reference=Initial().attach(base))(batch())[0].sum
        other = SelectiveLM(policy, objective, reference=Initial().attach(policy))(batch())[0].sum
    # A weight is exp of a mean of log-probs, of which the stored ones were rounded to float32.
    rounded = float(torch.finfo(torch.float32).eps) * float(on.scores[REFERENCE_LOGPROB].abs().max())
    torch.testing.assert_close(stored, live, rtol=rounded, atol=0)
    assert abs(float(stored / other) - 1) > 0.01


def test_a_policy_without_adapters_has_none_to_switch_off() -> None:
    with pytest.raises(BadValue, match="model/lora=default"):
        AdapterOff().attach(random_llama())


def test_weights_trained_beside_the_adapters_are_refused() -> None:
    """With bias=all the biases move, so that the model without adapters would be no fixed reference."""
    model = random_llama(attention_bias=True)
    apply_lora(model, lora=Lora(r=4, bias="all"))
    with pytest.raises(BadValue, match=r"model\.lora\.bias=none"):
        AdapterOff().attach(model)


@pytest.mark.usefixtures("in_float64")
def test_a_teacher_is_another_frozen_model_of_the_same_vocabulary(tmp_path: Path) -> None:
    teacher = random_llama(seed=3)
    teacher.save_pretrained(tmp_path)
    spec = ModelSpec(name="teacher", path=str(tmp_path))
    ids_BT = batch().input_ids_BT
    found = Teacher(model=spec).attach(random_llama(seed=4))
    assert not any(p.requires_grad for p in found.model.parameters())
    found.model.double()
    assert_same(
        found.project(found.hidden(input_ids=ids_BT).flatten(0, 1)), logits(teacher.double(), ids_BT).flatten(0, 1)
    )
    with pytest.raises(BadValue, match="vocabulary has 60 tokens, the trained model's 61"):
        Teacher(model=spec).attach(random_llama(vocab=61))


# ---- reference=annotation: is it the model before training?


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_hash_of_the_base_is_that_of_the_checkpoint(tmp_path: Path, dtype: str) -> None:
    """Whatever the annotation was made in, and with adapters or without."""
    random_llama(spread=0.1).save_pretrained(tmp_path)
    spec = ModelSpec(name="m", path=str(tmp_path))
    annotated = weights_hash(load_causal_lm(dataclasses.replace(spec, dtype=dtype)))
    assert base_weights_hash(load_causal_lm(spec), dtype=dtype) == annotated
    assert base_weights_hash(load_causal_lm(dataclasses.replace(spec, lora=LORA)), dtype=dtype) == annotated
    assert base_weights_hash(random_llama(seed=1, spread=0.1), dtype=dtype) != annotated


FEW = ("experiment=psft", "data.max_rows=8", "trainer.max_epochs=1", "data.batch_size=4", *FIT_ONLY)


@pytest.mark.slow
def test_another_starting_model_than_the_annotated_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the output and in results.json; silent where the annotation's log-probs are those of the starting model."""
    from cft.stages.train import train

    monkeypatch.chdir(tmp_path)
    spec = ModelSpec(name="tiny_arith", path="package:tiny_arith")
    moved = load_causal_lm(spec)
    with torch.no_grad():
        next(moved.parameters()).add_(1e-3)
    moved.save_pretrained("moved")
    load_tokenizer(spec).save_pretrained("moved")
    noted = {}
    for name, extra in (("same", ()), ("moved", ("model.path=moved",))):
        train(*asked("train", *FEW, *extra, folder=Path(name)))
        said = " ".join("".join(capsys.readouterr()).split())
        results = json.loads(Path(name, "results.json").read_text(encoding="utf-8"))
        noted[name] = (results.get("starts_as_reference"), "needs reference=initial" in said)
    assert noted == {"same": (True, False), "moved": (False, True)}


def test_a_method_without_this_reference_is_not_asked() -> None:
    manifest = {"fingerprint": {"model": {"dtype": "float32", "weights": "w"}}, "name": "a", "model_name": "m"}
    model = random_llama()
    assert starts_as_reference(model, columns={}, manifest=manifest) is None
    assert starts_as_reference(model, columns={REFERENCE_LOGPROB: StoredColumn("score")}, manifest=manifest) is None
    assert starts_as_reference(model, columns={REFERENCE_LOGPROB: StoredColumn("logprob")}, manifest=manifest) is False


@pytest.mark.parametrize(
    ("dtype", "mixed", "expected"),
    [
        ("auto", False, torch.float32),
        ("auto", True, torch.bfloat16),
        ("float32", True, torch.float32),
        ("bfloat16", False, torch.bfloat16),
    ],
)
def test_a_reference_has_weights_of_the_dtype_and_float32_frequencies(
    dtype: Dtype, mixed: bool, expected: torch.dtype
) -> None:
    policy = random_llama()
    model = Initial(dtype=dtype).attach(policy, mixed=mixed).model
    assert {weight.dtype for weight in model.parameters()} == {expected}
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
    assert {weight.dtype for weight in policy.parameters()} == {torch.float32}
    assert list(model.buffers())
