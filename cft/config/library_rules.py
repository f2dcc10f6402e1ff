"""Settings that a library accepts but that would train something else here, or fail after everything is loaded.

Types of parameters that a library leaves unannotated are declared here, by key. Only the plain config is read, so nothing is
imported; called by `cft/config/check.py`. Other errors show when the constructors are tried before a model loads
(`cft/config/build.py`, `trying`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from cft.ranges import AboveZero, AtLeastOne, AtLeastZero, Count, CountOrAll, Fraction, FractionBelowOne, mismatch, show

_PRECISIONS = ("32-true", "32", "bf16-mixed", "bf16")
_PRECISION = {
    "16": "float16 needs a gradient scaler, which the global normalization does not support",
    "bf16-true": "bfloat16 master weights round small learning rates to zero",
    "64": "models are loaded in float32, and kernels and exports are made for it",
}
_SHARDED = ("fsdp", "deepspeed", "model_parallel")

_TYPES: dict[str, dict[str, Any]] = {
    "optimizer": {
        "lr": AboveZero,
        "weight_decay": AtLeastZero,
        "momentum": FractionBelowOne,
        "dampening": Fraction,
        "eps": AtLeastZero,
        "alpha": FractionBelowOne,
        "rho": FractionBelowOne,
        "betas": tuple[FractionBelowOne, FractionBelowOne],
        "maximize": Annotated[Literal[False], Field(description="false: a loss is made smaller")],
        "differentiable": Annotated[Literal[False], Field(description="false: steps are not differentiated")],
    },
    "trainer": {
        "accelerator": Literal["auto", "cpu", "gpu", "cuda", "mps"],
        "num_nodes": AtLeastOne,
        "max_epochs": Annotated[
            CountOrAll, Field(description="an integer of at least 1, or -1 to go by trainer.max_steps")
        ],
        "max_steps": Annotated[
            CountOrAll, Field(description="an integer above 0, or -1 to go by trainer.max_epochs")
        ],
        "accumulate_grad_batches": AtLeastOne,
        "gradient_clip_val": AtLeastZero | None,  # pyright: ignore[reportOperatorIssue]
        "gradient_clip_algorithm": Literal["norm", "value", None],
        "log_every_n_steps": Count,
        "check_val_every_n_epoch": AtLeastOne,
        "num_sanity_val_steps": Annotated[Literal[0], Field(description="0: an untrained model would be validated")],
        "use_distributed_sampler": Annotated[
            Literal[False],
            Field(description="false: rows are shared out by global position, and Lightning's own sampler would shuffle them"),
        ],
        "fast_dev_run": Annotated[
            Literal[False],
            Field(description="false: it keeps no weights to export; a short run is data.max_rows=32 trainer.max_epochs=1"),
        ],
        "enable_checkpointing": Annotated[
            Literal[True, None], Field(description="true: the weights of the best epoch are exported from its checkpoint")
        ],
        "barebones": Annotated[Literal[False], Field(description="false: it leaves out validation and checkpoints")],
        "max_time": Annotated[None, Field(description="null; the time of a run is limited by interruption.max_hours")],
        "reload_dataloaders_every_n_epochs": Annotated[
            Literal[0], Field(description="0: rows keep their global order over all epochs")
        ],
    },
}  # fmt: skip
# Of the trainer, and what chooses it.
_FROM_THE_PROGRAM = {"logger": "logger", "callbacks": "callbacks", "default_root_dir": "hydra.run.dir"}
# What the stages themselves read, and the constructor would have a default for.
_NEEDED: dict[str, tuple[str, ...]] = {
    "train": ("optimizer.lr", "trainer.accelerator", "trainer.devices", "trainer.max_epochs"),
    "rl": ("optimizer.lr",),
    "annotate": ("model.dtype",),
}


def library_errors(tree: Mapping[str, object], *, stage: str = "train") -> Iterator[tuple[str, str]]:
    """(key, error); values of a wrong type have their own message and are skipped here."""
    for key in _NEEDED.get(stage, ()):
        group, _, name = key.partition(".")
        node = tree.get(group)
        if isinstance(node, Mapping) and "_target_" in node and name not in node:
            yield key, f"has no value, and the run is described by it; give it with +{key}=..."
    if stage != "train":
        return
    for group, types in _TYPES.items():
        node = tree.get(group)
        for name, value in node.items() if isinstance(node, Mapping) else ():
            plain = name in types and isinstance(value, str | int | float | list | dict | None)
            if plain and (text := mismatch(value, types[name])):
                yield f"{group}.{name}", text
    trainer = tree.get("trainer")
    if isinstance(trainer, Mapping):
        yield from _of_trainer(trainer)
    callbacks = tree.get("callbacks")
    last = callbacks.get("last") if isinstance(callbacks, Mapping) else None
    if isinstance(last, Mapping) and isinstance(trainer, Mapping):
        yield from _of_checkpoints(last, trainer.get("strategy"))


def _of_checkpoints(last: Mapping[str, object], strategy: object) -> Iterator[tuple[str, str]]:
    whole = not (isinstance(strategy, Mapping) and str(strategy.get("_target_", "")).endswith(".fully_sharded"))
    if last.get("sharded") is True and whole:
        yield (
            "callbacks.last.sharded",
            "true needs weights that are shared out; expected auto or false, or trainer=fsdp",
        )
    if last.get("asynchronous") is True and (whole or last.get("sharded") is False):
        yield (
            "callbacks.last.asynchronous",
            "true needs sharded checkpoints: expected trainer=fsdp with callbacks.last.sharded=auto, or false",
        )


def _of_trainer(trainer: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    if "_target_" in trainer and "use_distributed_sampler" not in trainer:
        yield "trainer.use_distributed_sampler", "has no value; expected false"
    for name, choice in _FROM_THE_PROGRAM.items():
        if name in trainer:
            yield f"trainer.{name}", f"comes from the program; it is chosen by {choice}=..."
    devices = trainer.get("devices", 1)
    if text := _not_devices(devices):
        yield "trainer.devices", text
    precision = str(trainer.get("precision", "32-true"))
    if precision not in _PRECISIONS:
        reason = next((text for start, text in _PRECISION.items() if precision.startswith(start)), "")
        expected = "expected 32-true, or bf16-mixed (float32 master weights)"
        yield "trainer.precision", f"{expected}, found {precision}" + (f": {reason}" if reason else "")
    strategy = trainer.get("strategy")
    if isinstance(strategy, str) and strategy.startswith(_SHARDED):
        text = (
            f"expected auto or ddp, found {strategy}; weights are shared out over the processes by trainer=fsdp (FSDP2)"
        )
        yield "trainer.strategy", text
    limit, overfit = trainer.get("limit_train_batches"), trainer.get("overfit_batches")
    unlimited = limit is None or (isinstance(limit, float) and limit == 1.0)  # the integer 1 is one batch
    for name, value, whole in (("limit_train_batches", limit, unlimited), ("overfit_batches", overfit, not overfit)):
        if not whole:
            text = f"found {value!r}: it leaves out rows that the loss of a step and the results count in"
            yield f"trainer.{name}", f"{text}; train on fewer rows with data.max_rows=..."
    if trainer.get("limit_val_batches") == 0:
        text = (
            "0 leaves out validation, which chooses the weights that are exported; leave the key out "
            "(data.validation_fraction and validation.problems say how much is validated)"
        )
        yield "trainer.limit_val_batches", text
    interval = trainer.get("val_check_interval")
    if isinstance(interval, str | Mapping):
        text = f"expected a number, found {interval!r}; by the clock a repetition would be validated elsewhere"
        yield "trainer.val_check_interval", text


def _not_devices(devices: object) -> str:
    expected = "expected at least 1, -1 or auto for all there are, or a list of them"
    if isinstance(devices, str) and devices != "auto":
        parts = [part for part in devices.split(",") if part.strip()]
        good = bool(parts) and all(part.strip().isdecimal() for part in parts) and devices.strip() != "0"
    elif isinstance(devices, list):
        good = bool(devices) and not mismatch(devices, list[Count])
    else:
        good = not mismatch(devices, Literal["auto", -1] | AtLeastOne)
    return "" if good else f"{expected}, found {show(devices)}"
