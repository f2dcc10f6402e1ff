"""Settings of Lightning's Trainer that would train something else are refused with the key that is meant."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from cft.config.build import CONF_DIR, ConfigError
from cft.config.library_rules import library_errors
from cft.models.load import Lora, apply_lora
from tests.conftest import make_llama
from tests.stage import composed


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("precision", "64-true", "expected 32-true, or bf16-mixed"),
        ("precision", 16, "gradient scaler"),
        ("precision", "16-mixed", "gradient scaler"),
        ("precision", "bf16-true", "master weights"),
        ("precision", "transformer-engine", "expected 32-true"),
        ("devices", 0, "at least 1"),
        ("devices", "0", "at least 1"),
        ("devices", [], "at least 1"),
        ("strategy", "fsdp", "trainer=fsdp"),
        ("strategy", "deepspeed_stage_2", "trainer=fsdp"),
        ("accelerator", "abc", "one of auto, cpu, gpu"),
        ("devices", "", "at least 1"),
        ("devices", 1.5, "at least 1"),
        ("devices", True, "at least 1"),
        ("gradient_clip_algorithm", "foo", "one of norm, value"),
        ("accumulate_grad_batches", 0, "at least 1"),
        ("accumulate_grad_batches", 99999999999999999999, "64 bits"),
        ("fast_dev_run", True, "keeps no weights"),
        ("enable_checkpointing", False, "best epoch"),
        ("max_time", "00:00:10:00", "interruption.max_hours"),
        ("logger", True, "chosen by logger="),
        ("default_root_dir", "x", "hydra.run.dir"),
        ("limit_train_batches", 2, "data.max_rows"),
        ("limit_train_batches", 1, "data.max_rows"),
        ("limit_train_batches", 0.5, "data.max_rows"),
        ("overfit_batches", 2, "data.max_rows"),
        ("overfit_batches", 0.1, "data.max_rows"),
        ("limit_val_batches", 0, "leave the key out"),
        ("limit_val_batches", 0.0, "leave the key out"),
        ("val_check_interval", "00:00:10:00", "expected a number"),
        ("val_check_interval", {"minutes": 10}, "expected a number"),
    ],
)
def test_what_would_train_something_else_is_refused(key: str, value: object, remedy: str) -> None:
    ((found, text),) = library_errors({"trainer": {"precision": "32-true", "devices": 1, key: value}})
    assert found == f"trainer.{key}"
    assert remedy in text


@pytest.mark.parametrize(
    "sound",
    [
        *({"precision": precision} for precision in ("32-true", 32, "bf16-mixed")),
        *({"devices": devices} for devices in (1, 2, -1, "auto", [1])),
        *(
            {"strategy": strategy}
            for strategy in ("auto", "ddp", {"_target_": "cft.training.distributed.sharding.fully_sharded"})
        ),
        {"limit_train_batches": 1.0, "overfit_batches": 0.0},
        {"limit_train_batches": None, "overfit_batches": 0},
        {"limit_val_batches": None, "val_check_interval": 0.5},
        {"limit_val_batches": 2, "val_check_interval": 10},
        *(OmegaConf.to_container(OmegaConf.load(file)) for file in sorted((CONF_DIR / "trainer").glob("*.yaml"))),
    ],
)
def test_what_is_sound_passes(sound: dict[str, object]) -> None:
    assert list(library_errors({"trainer": sound})) == []


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("lr", 0, "above 0"),
        ("lr", {}, "a number"),
        ("eps", -1, "at least 0"),
        ("momentum", 2, "below 1"),
        ("betas", [0.9, 1.0], "a list of 2"),
        ("maximize", True, "made smaller"),
    ],
)
def test_an_optimizer_that_would_not_descend_is_refused(key: str, value: object, remedy: str) -> None:
    ((found, text),) = library_errors({"optimizer": {key: value}})
    assert found == f"optimizer.{key}"
    assert remedy in text


@pytest.mark.parametrize("key", ["optimizer.lr", "trainer.accelerator", "trainer.devices", "trainer.max_epochs"])
def test_what_describes_a_run_may_not_be_left_to_a_constructor(key: str) -> None:
    trainer = {"_target_": "x", "accelerator": "cpu", "devices": 1, "max_epochs": 1, "use_distributed_sampler": False}
    tree = {"optimizer": {"_target_": "x", "lr": 1.0}, "trainer": trainer}
    assert list(library_errors(tree)) == []
    group, _, name = key.partition(".")
    del tree[group][name]
    assert [found for found, _ in library_errors(tree)] == [key]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_trained_in_float32(dtype: str) -> None:
    with pytest.raises(
        ConfigError, match=r"model\.dtype: expected float32 for training.*trainer\.precision=bf16-mixed"
    ):
        composed("train", f"model.dtype={dtype}")


def test_a_frozen_base_may_be_bfloat16_since_its_adapters_are_float32() -> None:
    assert composed("train", "model.dtype=bfloat16", "model/lora=default").model["dtype"] == "bfloat16"
    with pytest.raises(ConfigError, match=r"model\.dtype"):
        composed("train", "model.dtype=float16", "model/lora=default")
    model = make_llama().to(torch.bfloat16)
    apply_lora(model, lora=Lora())
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
