"""Under adapters a checkpoint holds what is trained, and the adapters are exported on their own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cft.config.build import ConfigError
from cft.models.export import export, export_adapter
from cft.models.load import Lora, apply_lora
from cft.training.checkpointing.checkpoints import CheckpointError
from cft.training.checkpointing.position import Position
from cft.training.checkpointing.resume import _requested, require_steps_left
from cft.training.module import FROZEN, CausalLMModule, frozen_names
from tests.conftest import make_llama, make_tokenizer
from tests.objectives import sft


def module(*, seed: int = 0, lora: bool = True) -> CausalLMModule:
    model = make_llama(seed=seed)
    if lora:
        apply_lora(model, lora=Lora(r=4))
    return CausalLMModule(
        model, sft(), optimizer=partial(torch.optim.SGD, lr=0.1), schedule="constant", warmup_fraction=0.0,
        probe_every_n_steps=0,
    )  # fmt: skip


def saved(of: CausalLMModule) -> dict[str, Any]:
    checkpoint: dict[str, Any] = {"state_dict": of.state_dict()}
    of.on_save_checkpoint(checkpoint)
    return checkpoint


def with_noise(of: CausalLMModule) -> CausalLMModule:
    torch.manual_seed(1)
    for parameter in of.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
    return of


def test_a_checkpoint_of_adapters_holds_no_base_weight_and_gives_the_model_back() -> None:
    trained = with_noise(module())
    checkpoint = saved(trained)
    assert checkpoint["state_dict"].keys() == {name for name in trained.state_dict() if ".lora_" in name}
    again = module()
    again.on_load_checkpoint(checkpoint)
    again.load_state_dict(checkpoint["state_dict"], strict=again.strict_loading)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_checkpoint_of_a_whole_model_stays_whole() -> None:
    whole = module(lora=False)
    checkpoint = saved(whole)
    assert checkpoint["state_dict"].keys() == whole.state_dict().keys()
    assert FROZEN not in checkpoint
    assert whole.strict_loading
    assert not frozen_names(whole)


def test_adapters_are_not_put_on_another_base_nor_on_other_modules() -> None:
    checkpoint = saved(with_noise(module()))
    with pytest.raises(CheckpointError, match=r"frozen weights .the base model of adapters.* differ"):
        module(seed=1).on_load_checkpoint(checkpoint)
    checkpoint["state_dict"].popitem()
    with pytest.raises(RuntimeError, match="not those trained here"):
        module().on_load_checkpoint(checkpoint)


def test_the_exported_adapter_on_the_base_is_the_merged_export(tmp_path: Path) -> None:
    from peft import PeftModel

    base = export(make_llama(), make_tokenizer(), folder=tmp_path / "base")
    trained = with_noise(module()).lm.model.eval()
    for name, parameter in trained.named_parameters():
        if ".lora_" in name:
            parameter.data.mul_(0.1)
    merged = export(trained, make_tokenizer(), folder=tmp_path / "export")
    export_adapter(trained, folder=tmp_path / "export.adapter", base=str(base), revision="main")
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = torch.tensor([[1, 5, 7, 11, 4]])
    with torch.inference_mode():
        before = plain(ids).logits
        found = PeftModel.from_pretrained(plain, str(tmp_path / "export.adapter")).eval()(ids).logits
        expected = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)(ids).logits
    assert (expected - before).abs().max() > 1e-2
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    size = sum(path.stat().st_size for path in (tmp_path / "export.adapter").iterdir())
    assert size < sum(path.stat().st_size for path in base.iterdir())


@pytest.mark.parametrize(
    ("epochs", "steps", "fits"), [(3, -1, True), (1, -1, False), (-1, 12, True), (-1, 9, False), (3, 20, True)]
)
def test_a_run_goes_on_to_more_epochs_or_steps_and_never_to_fewer(epochs: int, steps: int, fits: bool) -> None:
    position = Position(1, 4, 10, 16, "step")
    if fits:
        require_steps_left(position, max_epochs=epochs, max_steps=steps)
        return
    with pytest.raises(ConfigError, match=r"is lower; set trainer\.max_(epochs=2|steps=10)"):
        require_steps_left(position, max_epochs=epochs, max_steps=steps)


def job_asking(trainer: dict[str, int]) -> Any:
    return SimpleNamespace(config={"trainer": trainer})


def test_what_is_asked_for_is_epochs_and_steps() -> None:
    assert _requested(job_asking({"max_epochs": 3})) == (3, -1)
    assert _requested(job_asking({"max_epochs": -1, "max_steps": 7})) == (-1, 7)
