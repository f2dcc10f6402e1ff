"""Models of today, small and random: annotated, trained, exported and read again; their own head; layouts and engines."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from cft.annotation.annotator import Annotator
from cft.engines.continuous import ContinuousEngine
from cft.engines.factory import EngineError
from cft.engines.reference import ReferenceEngine
from cft.engines.shared_prefix import SharedPrefixEngine
from cft.models.adapters import apply_lora, coverage
from cft.models.architecture import ModelError
from cft.models.experts import experts_of
from cft.models.export import export, plain_copy
from cft.models.flops import arithmetic_of
from cft.models.head import project_exactly
from cft.models.lazy import LazyModel
from cft.models.load import Lora, ModelSpec
from cft.prompts.chat import Chat
from cft.training.memory import _kept_bytes, activation_bytes, measured_tokens
from cft.training.selective_lm import SelectiveLM
from cft.types import AnnotatedResponse, Budget, Decision, Engine, Problem, Verdict
from cft.verifiers.grader import Grader
from tests.architectures import FAMILIES, exact_family, family, uneven
from tests.conftest import WORDS, make_tokenizer
from tests.objectives import sft
from tests.precision import assert_same, error

QUICK = ("gemma-3", "granite-4.0-h", "qwen3-moe")
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
ENGINES: dict[str, Callable[..., Engine]] = {
    "reference": ReferenceEngine,
    "shared_prefix": SharedPrefixEngine,
    "continuous": ContinuousEngine,
}
EOS = WORDS.index("<eos>")
KNOWS_EXPERTS = find_spec("peft.utils.transformers_weight_conversion") is not None  # of older versions none does
PADDED = len(WORDS) + 12  # rows of the embedding: the last ones have no name

every_family = pytest.mark.parametrize("name", NAMES)


def alone(model: PreTrainedModel) -> Tensor:
    """Logits of the eligible tokens' predecessors, by the model's own forward, a row at a time."""
    batch, found = uneven(), []
    for b, length in enumerate(batch.lengths_B.tolist()):
        logits_TV = model(input_ids=batch.input_ids_BT[b : b + 1, :length], use_cache=False).logits[0]
        found.append(logits_TV[(batch.weight_BT[b, 1:length] > 0).nonzero()[:, 0]])
    return torch.cat(found)


@every_family
@pytest.mark.usefixtures("in_float64")
@torch.no_grad()
def test_selected_positions_have_the_models_own_logits_in_every_layout(name: str) -> None:
    """Through the project's own head (scales, caps, ties), beside other rows and padding; or packing is refused."""
    model, batch = exact_family(name), uneven()
    for layout in ("padded", "packed"):
        lm = SelectiveLM(model, sft(), layout=layout)  # type: ignore[arg-type]
        if layout == "packed" and not FAMILIES[name].packs:
            with pytest.raises((ModelError, ValueError), match=r"compute\.layout=packed.*compute\.layout=padded"):
                lm.check_layout()
            continue
        lm.check_head()
        lm.check_layout()
        hidden_ND = lm._hidden(lm._placed(batch, lm.objective.tokens(batch)))
        assert error(lm.project(hidden_ND), alone(model)) < 1e-12
        changed = uneven()
        changed.input_ids_BT[1] = changed.input_ids_BT[1].flip(0)  # what follows its end too: padding comes first
        others = lm.objective.tokens(batch).row_N != 1
        again_ND = lm._hidden(lm._placed(changed, lm.objective.tokens(batch)))
        assert float((again_ND - hidden_ND)[~others].abs().max()) > 0.0
        assert error(again_ND[others], hidden_ND[others]) < 1e-12


@every_family
@pytest.mark.usefixtures("in_float64")
def test_three_steps_are_the_same_in_both_layouts(name: str) -> None:
    weights = {}
    for layout in ["padded", *(["packed"] if FAMILIES[name].packs else [])]:
        model = exact_family(name).train()
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        lm = SelectiveLM(model, sft(), layout=layout)  # type: ignore[arg-type]
        for _ in range(3):
            (term,) = lm(uneven())
            (term.sum / term.count).backward()
            optimizer.step()
            optimizer.zero_grad()
        weights[layout] = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
        assert float(weights[layout].abs().max()) > 0.0
    assert_same(weights.get("packed", weights["padded"]), weights["padded"])


@pytest.mark.parametrize("engine", ["shared_prefix", pytest.param("continuous", marks=pytest.mark.slow)])
@every_family
def test_given_responses_are_annotated_alike_by_every_engine_that_decodes_it(name: str, engine: str) -> None:
    """As by the reference engine; no alternative without a name; an engine that cannot refuses and names one that can."""
    model = family(name, vocab_size=PADDED)
    if engine not in FAMILIES[name].engines:
        with pytest.raises(EngineError, match=rf"engine={engine} cannot decode.* use engine=reference"):
            ENGINES[engine](model, (EOS,))
        if name not in QUICK:
            return
    expected = annotated(model, ReferenceEngine(model, (EOS,)))
    assert expected.alt_ids.min() >= 0
    assert expected.alt_ids.max() < len(WORDS)
    assert len({tuple(answers) for answers in expected.alt_answer}) > 1
    if engine in FAMILIES[name].engines:
        found = annotated(model, ENGINES[engine](model, (EOS,)))
        assert found.alt_ids.tolist() == expected.alt_ids.tolist()
        assert found.alt_answer == expected.alt_answer
        assert found.alt_tokens.tolist() == expected.alt_tokens.tolist()


def annotated(model: PreTrainedModel, engine: Engine) -> AnnotatedResponse:
    tokenizer = make_tokenizer()
    facts = LazyModel.of(model, tokenizer, spec=ModelSpec(name="small", path="package:tiny_arith")).facts

    def graded(items: Any) -> list[Verdict]:
        # Every text is another answer, so that outcomes are compared by all of it.
        return [Verdict(Decision.RIGHT, text, explicit=True, reason="") for text, _ in items]

    made = Annotator(
        engine=engine,
        tokenizer=tokenizer,
        prompt=Chat(system="", template="{question}"),
        grader=Grader(tokenizer, graded),
        budget=Budget(8),
        eos_ids=(EOS,),
        max_positions=64,
        num_alternatives=2,
        short_circuit=False,
        replay_fraction=0.0,
        responses="given",
        padding_ids=facts.unnamed_ids,
    ).fresh([Problem("p", "What is 2 + 3 ?", "5", "3 = 5 so 5")])
    engine.close()
    return made.rows[0]


@every_family
def test_what_was_trained_is_exported_and_read_again(name: str, tmp_path: Path) -> None:
    model = family(name, vocab_size=len(WORDS))
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight.add_(0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)))
    export(model, make_tokenizer(), folder=tmp_path / "export")
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path / "export", dtype=torch.float32, attn_implementation=FAMILIES[name].attention
    )
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        assert float((again(ids).logits - model(ids).logits).abs().max()) == 0.0


@pytest.mark.parametrize("name", ["gemma-2", "granite-3.3", "cohere2"])
@torch.no_grad()
def test_the_head_of_half_precision_scales_too(name: str) -> None:
    model = family(name)
    hidden_ND = model.base_model(torch.arange(1, 9)[None]).last_hidden_state[0]
    assert error(project_exactly(model, hidden_ND), model(torch.arange(1, 9)[None]).logits[0]) < 1e-5


@pytest.mark.parametrize("name", ["qwen3-moe", "granite-3.1-moe", pytest.param("mamba", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("in_float64")
def test_adapters_go_where_they_are_used_and_merge(name: str, tmp_path: Path) -> None:
    """Of experts too, where peft knows the family; what they leave out is said."""
    model = exact_family(name, vocab_size=len(WORDS)).train()
    apply_lora(model, lora=Lora(r=2, alpha=4))
    adapters = [p for p in model.parameters() if p.requires_grad]
    for number, weight in enumerate(adapters):
        weight.data.copy_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)))
    ids = torch.arange(1, 20)[None]
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in adapters)
    layers: dict[str, Any] = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    assert {layer.scaling["default"] for layer in layers.values()} == {
        2.0
    }  # alpha / r, of the doubled rank of two in one too
    said = coverage(model)
    covered = name == "qwen3-moe" and KNOWS_EXPERTS
    assert ("gate_up_proj" in said) == covered
    assert ("none on the experts' weights" in said) == (experts_of(model.config) is not None and not covered)
    merged = plain_copy(model.eval())
    if experts_of(merged.config):
        merged.set_experts_implementation("eager")
    with torch.no_grad():
        assert error(merged(ids).logits, model(ids).logits) < 1e-12


def test_an_adapter_that_kernels_would_pass_over_is_refused() -> None:
    with pytest.raises(ModelError, match=r"kernels of MambaForCausalLM read .*\.out_proj directly.*leave out out_proj"):
        apply_lora(family("mamba"), lora=Lora(target_modules=["in_proj", "out_proj"]))
    if KNOWS_EXPERTS:
        with pytest.raises(ModelError, match=r"model\.lora\.dropout=0\.1: .*stacked experts.*model\.lora\.dropout=0"):
            apply_lora(family("qwen3-moe"), lora=Lora(dropout=0.1))


@pytest.mark.parametrize("name", ["qwen3-moe", "granite-3.1-moe", "gemma-3"])
def test_the_arithmetic_is_of_what_a_token_passes_through(name: str) -> None:
    """Against torch's counter: experts that are chosen, query heads, and of windows what they leave."""
    model: Any = family(name).train()
    model.set_attn_implementation("eager")
    if experts_of(model.config):
        model.set_experts_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        hidden_ND = model.base_model(torch.randint(3, 60, (3, 40)), use_cache=False).last_hidden_state[:, -1]
        model.get_output_embeddings()(hidden_ND).square().sum().backward()
    counts = counter.get_flop_counts()
    found = arithmetic_of(model)
    products = found.block_token * 120 + found.head_token * 3
    assert products == sum(flops for kind, flops in counts["Global"].items() if "bmm" not in str(kind))
    # Of attention alone: some versions of transformers compute rotary angles by a batched product as well.
    modules = [kinds for module, kinds in counts.items() if module.endswith("self_attn")]
    attention = sum(flops for kinds in modules for kind, flops in kinds.items() if "bmm" in str(kind))
    # torch counts what a causal mask leaves out: half of it, and in one layer of gemma-3 all but the window.
    seen = (0.5, (1 - (34 / 40) ** 2) / 2) if name == "gemma-3" else (0.5, 0.5)
    assert found.of_rows([40] * 3, projected=3) - products == pytest.approx(attention * sum(seen) / 2)


@pytest.mark.parametrize("chunk", [8, 64])
def test_memory_is_measured_over_whole_chunks_of_a_state_space(chunk: int) -> None:
    model = family("granite-4.0-h", mamba_chunk_size=chunk)
    few, more = measured_tokens(model)
    assert few == max(32, chunk)
    direct = _kept_bytes(model, tokens=4 * more, mixed=False)
    assert activation_bytes(model, tokens=4 * more, mixed=False) == pytest.approx(direct, rel=0.05)


def test_a_model_that_does_not_continue_from_its_cache_is_decoded_without(caplog: pytest.LogCaptureFixture) -> None:
    assert not ReferenceEngine(family("bamba"), (EOS,)).cached
    assert "BambaForCausalLM does not decode from its cache" in caplog.text
    assert ReferenceEngine(family("granite-4.0-h"), (EOS,)).cached
    assert ReferenceEngine(family("mamba"), (EOS,)).cached  # its cache has another name


def test_shared_prefix_is_not_exact_for_experts() -> None:
    """A near tie of the router is not re-scored, so that the batch may decide; an annotation's fingerprint then says so."""
    engine = SharedPrefixEngine(family("qwen3-moe"), (EOS,))
    assert not engine.exact
    assert engine.facts()["name"] == "shared_prefix"
    assert ReferenceEngine(family("qwen3-moe"), (EOS,)).exact
