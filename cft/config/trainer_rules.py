"""Settings of Lightning's Trainer that it takes, and that would train something else here or fail once all is loaded.

Read from the plain config, so that they cost no import; `cft/config/check.py` asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

_PRECISIONS = ("32-true", "32", "bf16-mixed", "bf16")
_PRECISION = {
    "16": "float16 needs a gradient scaler, which the global normalisation does not support",
    "bf16-true": "bfloat16 master weights round small learning rates to zero",
    "64": "models are loaded in float32, and kernels and exports are made for it",
}
_SHARDED = ("fsdp", "deepspeed", "model_parallel")


def trainer_mistakes(tree: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it) of a train config; a value of a wrong type has its own message."""
    trainer = tree.get("trainer")
    if not isinstance(trainer, Mapping):
        return
    precision = str(trainer.get("precision", "32-true"))
    if precision not in _PRECISIONS:
        reason = next((text for start, text in _PRECISION.items() if precision.startswith(start)), "")
        expected = "expected 32-true, or bf16-mixed (float32 master weights)"
        yield "trainer.precision", f"{expected}, found {precision}" + (f": {reason}" if reason else "")
    devices = trainer.get("devices")
    if devices in (0, "0", []) and devices is not False:
        yield "trainer.devices", f"expected at least 1, -1 for all there are, or a list of them, found {devices!r}"
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
