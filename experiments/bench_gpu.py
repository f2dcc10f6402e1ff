"""Correctness and speed on a GPU: make gpu

    python -m experiments.bench_gpu [--sections engine,training] [--out outputs/bench_gpu] [--minutes 25]
    python -m experiments.bench_gpu --device cpu --tiny      # only tests the code, measures nothing

    correctness   tests/test_cuda.py
    attention     error of fork attention in bfloat16 compared with SDPA's, by the size of scores, and its time
    engine        a random 7B in bfloat16: ms, launches and busy fraction of a decode step; forks from start to end; float32
    training      random 1.5B and 7B: tokens/s, MFU, peak memory compared with the estimate, by layout and checkpointing
    annotate      annotate.py on the device, the CPU, in bfloat16, under TF32: equal tables, changed alternatives, flips
    train         train.py in both precisions compared with the CPU's losses; killed and resumed
    fsdp          train.py trainer=fsdp with world size 1: saved, resumed, exported
    continuous    the same forks as `engine` with transformers' continuous batching

Every section is a separate process with a time limit; if one fails, its measurements so far are kept and the next one starts.
After each section, all results so far are written to gpu.json and gpu.md in the output folder.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from experiments.gpu.record import Record, child_environment, machine, tail

# (module, maximum minutes), most important first.
SECTIONS: dict[str, tuple[str, float]] = {
    "correctness": ("stages", 5.0),
    "attention": ("attention", 2.0),
    "engine": ("decoding", 5.0),
    "training": ("training", 5.0),
    "annotate": ("stages", 5.0),
    "train": ("stages", 4.0),
    "fsdp": ("stages", 3.0),
    "continuous": ("decoding", 5.0),
}
END_S = 10.0  # reserved for writing the page and for stopping a process


def main() -> None:
    parser = argparse.ArgumentParser(description="Correctness and speed on a GPU.")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="some of " + ",".join(SECTIONS))
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_gpu"))
    parser.add_argument("--minutes", type=float, default=25.0, help="total time limit")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="small sizes, which only test the code")
    parser.add_argument("--only", default="", help=argparse.SUPPRESS)  # runs one section in this process, for `seconds`
    parser.add_argument("--seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.sections.split(",") if name not in SECTIONS]:
        parser.error(f"--sections: {unknown[0]} is none of {', '.join(SECTIONS)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --device cpu --tiny tests the code without one")
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.only:
        one_section(arguments)
    else:
        all_sections(arguments)


def one_section(arguments: argparse.Namespace) -> None:
    name, folder = arguments.only, arguments.out / arguments.only
    folder.mkdir(exist_ok=True)
    device = torch.device(arguments.device)
    record = Record(arguments.out / f"{name}.json", folder, device, arguments.tiny, arguments.seconds)
    module = importlib.import_module(f"experiments.gpu.{SECTIONS[name][0]}")
    getattr(module, name)(record)
    record.put("finished", True)


def all_sections(arguments: argparse.Namespace) -> None:
    began = time.monotonic()
    ends = began + 60 * arguments.minutes
    status: dict[str, dict[str, Any]] = {}
    names = arguments.sections.split(",")
    for i, name in enumerate(names):
        own = 60 * SECTIONS[name][1] * (10 if arguments.tiny else 1)  # slow if a busy machine only tests the code
        # Later sections keep their share of the remaining time, so that a section that hangs does not use it.
        share = SECTIONS[name][1] / sum(SECTIONS[other][1] for other in names[i:])
        limit = min(own, share * (ends - time.monotonic() - END_S))
        if limit < 15:
            status[name] = {"status": "skipped: no time", "seconds": 0.0}
            continue
        print(f"== {name} (at most {limit:.0f} s)", flush=True)
        started = time.monotonic()
        status[name] = {"status": section(arguments, name, limit=limit)}
        status[name]["seconds"] = round(time.monotonic() - started, 1)
        print(f"== {name}: {status[name]['status']}, {status[name]['seconds']} s", flush=True)
        write(arguments.out, status, seconds=time.monotonic() - began)
    print(json.dumps({name: entry["status"] for name, entry in status.items()}))


def section(arguments: argparse.Namespace, name: str, *, limit: float) -> str:
    """Run one section in a process; returns how it ended."""
    file, log = arguments.out / f"{name}.json", arguments.out / f"{name}.log"
    file.unlink(missing_ok=True)
    options = ["--out", arguments.out, "--device", arguments.device, *(["--tiny"] if arguments.tiny else [])]
    command = [sys.executable, "-m", "experiments.bench_gpu", "--only", name, "--seconds", limit - 5, *options]
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            [*map(str, command)], stdout=out, stderr=subprocess.STDOUT, env=child_environment(), start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # including its child processes, which would occupy the device
            process.wait()
            return "stopped at its time limit"
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if code:
        print(tail(log), flush=True)
    return "done" if code == 0 else f"exit status {code}"


def write(folder: Path, status: dict[str, dict[str, Any]], *, seconds: float) -> None:
    """Write gpu.json and gpu.md with all results so far."""
    found = {name: dict(entry) for name, entry in status.items()}
    for name, entry in found.items():
        file = folder / f"{name}.json"
        entry["found"] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    everything = {"machine": machine(), "seconds": round(seconds, 1), "sections": found}
    (folder / "gpu.json").write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    (folder / "gpu.md").write_text(page(everything), encoding="utf-8")


def page(everything: dict[str, Any]) -> str:
    facts = everything["machine"]
    lines = [
        f"# On {facts.get('gpu', 'a CPU: nothing measured')}",
        "",
        ", ".join(f"{name} {value}" for name, value in facts.items() if value != ""),
        "",
        f"`python -m experiments.bench_gpu`, {everything['seconds']:.0f} s.",
    ]
    for name, entry in everything["sections"].items():
        found = dict(entry["found"])
        errors, _, took = found.pop("errors", {}), found.pop("finished", None), found.pop("seconds", {})
        lines += ["", f"## {name}: {entry['status']}, {entry['seconds']:.0f} s", ""]
        lines += table(found)
        for part, text in errors.items():
            last = text.strip().splitlines()[-1] if text.strip() else ""
            lines += ["", f"**{part}** failed after {took.get(part, 0)} s: `{last[:300]}`"]
    return "\n".join(lines) + "\n"


def table(found: dict[str, Any]) -> list[str]:
    """One row per measurement; measurements with the same columns share a table."""
    lines: list[str] = []
    columns: tuple[str, ...] = ()  # of the current table
    for name, value in found.items():
        if not isinstance(value, dict):
            lines += [*([""] if lines else []), f"{name}: {json.dumps(value)}", ""]
            columns = ()
            continue
        if not columns or tuple(value) != columns:
            columns = tuple(value)
            lines += ["", "| |" + "".join(f" {column} |" for column in columns), "|---|" + "---|" * len(columns)]
        lines.append(f"| {name} |" + "".join(f" {cell(value[column])} |" for column in columns))
    return lines


def cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else json.dumps(value).strip('"')


if __name__ == "__main__":
    main()
