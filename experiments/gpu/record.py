"""Results of a section, written to disk after every value, so that a killed section keeps its measurements."""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass(slots=True)
class Record:
    """Record of a section.

    Args:
        folder: For the section's files.
        device: cuda or cpu.
        tiny: Small sizes that only test the code.
        seconds: Time limit of the section.
    """

    file: Path
    folder: Path
    device: torch.device
    tiny: bool
    seconds: float
    found: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)
    _part_ends: float = math.inf

    def left(self) -> float:
        """Seconds to the limit of the section, or of the current part."""
        return min(self._started + self.seconds, self._part_ends) - time.monotonic()

    def put(self, name: str, value: Any) -> None:
        self.found[name] = rounded(value)
        print(f"{name}: {json.dumps(self.found[name])}"[:2000], flush=True)
        self._write()

    @contextmanager
    def part(self, name: str, *, needs: float = 5.0) -> Iterator[None]:
        """Run one measurement; its exception is recorded, and the next one follows. needs: seconds. Raises LeftOut."""
        if self.left() < needs:
            self.errors[name] = f"left out: {self.left():.0f} s to the limit"
            self._write()
            raise LeftOut(name)
        began = time.monotonic()
        try:
            yield
        except Exception as error:  # noqa: BLE001  (a bench on a machine that is lent once: the rest must follow)
            text = "".join(traceback.format_exception(error))
            self.errors[name] = text[-3000:]
            print(f"{name} failed:\n{text}", flush=True)
        finally:
            free_memory()
            self.found.setdefault("seconds", {})[name] = round(time.monotonic() - began, 1)
            self._write()

    def each(self, parts: Sequence[tuple[str, Callable[[], Any]]], *, needs: float = 5.0) -> None:
        """Run parts by name and record what each returns. Each may use an equal share of the time that remains."""
        for i, (name, measure) in enumerate(parts):
            free_memory()  # what a part that failed held is free only once its error is gone
            self._part_ends = time.monotonic() + self.left() / (len(parts) - i)
            try:
                with self.part(name, needs=needs):
                    self.put(name, measure())
            except LeftOut:
                continue
            finally:
                self._part_ends = math.inf

    def _write(self) -> None:
        text = json.dumps({**self.found, **({"errors": self.errors} if self.errors else {})}, indent=1, default=str)
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.file)


class LeftOut(Exception):
    """Too little time was left for a part."""


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list | tuple) else value


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(work: Callable[[], object], *, device: torch.device, times: int, warm: int = 3) -> float:
    """Median time of single synchronized calls."""
    took = []
    for i in range(warm + times):
        began = time.perf_counter()
        work()
        wait(device)
        if i >= warm:
            took.append(time.perf_counter() - began)
    return 1000 * sorted(took)[len(took) // 2]


def kernels(work: Callable[[], object], *, device: torch.device, times: int = 3) -> dict[str, float]:
    """Of one call: kernel launches, kernel time in ms, wall time in ms, and kernel time as a fraction of wall time."""
    from torch.profiler import ProfilerActivity, profile

    if device.type != "cuda":
        return {}
    work()
    wait(device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    wait(device)
    clock = 1000 * (time.perf_counter() - began) / times  # without the profiler, which slows down the host
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        for _ in range(times):
            work()
        wait(device)
    launched, ran = 0, 0.0
    for event in profiled.events() or ():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            launched += 1
            ran += float(event.device_time_total if hasattr(event, "device_time_total") else event.cuda_time_total)
    ran_ms = ran / 1000 / times
    return {"kernels": launched / times, "kernel_ms": ran_ms, "clock_ms": clock, "busy_share": ran_ms / clock}


def command(
    arguments: Sequence[str | Path], *, log: Path, seconds: float, environment: dict[str, str] | None = None
) -> tuple[int, float]:
    """Run a process with its output in `log`; returns exit status and seconds. The status is 124 after a timeout."""
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as out:
        try:
            status = subprocess.run(
                [*map(str, arguments)],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=child_environment() | (environment or {}),
                timeout=max(1.0, seconds),
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            status = 124
    return status, time.monotonic() - began


def child_environment() -> dict[str, str]:
    fixed = {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
        "PYTHONUNBUFFERED": "1",
    }
    return {**os.environ, **fixed, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


def tail(log: Path, *, characters: int = 1500) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-characters:] if log.is_file() else ""


def machine() -> dict[str, Any]:
    """Hardware and software on which the numbers were measured."""
    import lightning
    import transformers

    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "lightning": lightning.__version__,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "tf32_override": os.environ.get("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", ""),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": properties.name,
            "gpus": torch.cuda.device_count(),
            "gpu_memory_gb": properties.total_memory / 1e9,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    return rounded(facts)
