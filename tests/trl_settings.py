"""Settings of TRL trainers in tests: one step on the CPU in float32, without truncation, checkpoints or reporting."""

from __future__ import annotations

from typing import Any

ONE_STEP: dict[str, Any] = {
    "max_steps": 1,
    "max_length": None,
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "model_init_kwargs": {"dtype": "float32"},
}
