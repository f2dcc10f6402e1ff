"""Models of today, small and random: annotated, trained, exported and read again; their own head; layouts and engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from cft.annotation.annotator import Annotator
from cft.engines.continuous import ContinuousEngine
from cft.engines.factory import EngineError
from cft.engines.reference import ReferenceEngine
from cft.engines.shared_prefix import SharedPrefixEngine
from cft.models.architecture import ModelError
from cft.models.export import export
from cft.models.head import project_exactly
from cft.models.lazy import LazyModel
from cft.models.load import ModelSpec
from cft.prompts.chat import Chat
from cft.training.selective_lm import SelectiveLM
from cft.types import Budget, Decision, Engine, Problem, Verdict
from cft.verifiers.grader import Grader
from tests.architectures import FAMILIES, exact_family, family, uneven
from tests.conftest import WORDS, make_tokenizer
from tests.objectives import sft
from tests.precision import assert_same, error

QUICK = ("qwen3", "gemma-3", "granite-4.0-h", "qwen3-moe", "bamba")
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
ENGINES: dict[str, Callable[..., Engine]] = {
    "reference": ReferenceEngine,
    "shared_prefix": SharedPrefixEngine,
    "continuous": ContinuousEngine,
}
EOS = WORDS.index("<eos>")
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


@every_family
def test_given_responses_are_annotated_alike_by_every_engine_that_decodes_it(name: str) -> None:
    """Equal alternatives and outcomes; no alternative without a name; the others refuse and name one that can."""
    model = family(name, vocab_size=PADDED)
    units = {}
    for engine, make in ENGINES.items():
        if engine in FAMILIES[name].engines:
            units[engine] = annotated(model, make(model, (EOS,)))
        else:
            with pytest.raises(EngineError, match=rf"engine={engine} cannot decode.* use engine=reference"):
                make(model, (EOS,))
    first = units["reference"].rows[0]
    assert first.alt_ids.min() >= 0
    assert first.alt_ids.max() < len(WORDS)
    assert len({tuple(answers) for answers in first.alt_answer}) > 1
    for unit in units.values():
        assert unit.rows[0].alt_ids.tolist() == first.alt_ids.tolist()
        assert unit.rows[0].alt_answer == first.alt_answer
        assert unit.rows[0].alt_tokens.tolist() == first.alt_tokens.tolist()


def annotated(model: PreTrainedModel, engine: Engine) -> Any:
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
        budget=Budget(12),
        eos_ids=(EOS,),
        max_positions=64,
        num_alternatives=2,
        short_circuit=False,
        replay_fraction=0.0,
        responses="given",
        padding_ids=facts.unnamed_ids,
    ).fresh([Problem("p", "What is 2 + 3 ?", "5", "2 + 3 = 5 so 5")])
    engine.close()
    return made


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
