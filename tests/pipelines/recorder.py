"""A fake stage for tests: records its calls and writes one output file; tests register it in STAGES."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cft.config.schema import EvaluateConfig
from cft.errors import BadValue
from cft.runs.job import Job

calls: list[dict[str, Any]] = []
raising: dict[str, BaseException] = {}  # by step


def evaluate(cfg: EvaluateConfig, job: Job) -> Path:
    """Run the fake stage; its output depends only on `limit`."""
    step = job.folder.name
    calls.append({"step": step, "checkpoint": cfg.checkpoint, "limit": cfg.limit, "seed": cfg.seed, "group": job.group})
    if (error := raising.get(step)) is not None:
        raise error
    (job.folder / "export").mkdir(parents=True, exist_ok=True)
    (job.folder / "export" / "config.json").write_text("{}")
    (job.folder / "model.safetensors").write_text(str(cfg.limit % 100))
    return job.folder


def failing() -> BadValue:
    return BadValue("the data is not there")
