"""Whole commands on the device compared with the same commands on the CPU: the tests, annotate.py, train.py."""

from __future__ import annotations

import csv
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from cft.annotation.store import AnnotationStore, table_hash
from cft.types import AnnotatedResponse
from experiments.gpu.record import Record, child_environment, command, tail

ROOT = Path(__file__).resolve().parent.parent.parent
TF32 = {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}  # as NVIDIA's containers set it


def correctness(record: Record) -> None:
    report = (record.folder / "report.xml").resolve()
    arguments = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--tb=short", f"--junitxml={report}"]
    log = record.folder / "pytest.log"
    status, seconds = command(
        [*arguments, ROOT / "tests" / "test_cuda.py"],
        log=log,
        seconds=record.left() - 5,
        environment={"CFT_TEST_DEVICE": record.device.type},
    )
    counts: dict[str, int] = {}
    if report.is_file():
        for case in ElementTree.parse(report).iter("testcase"):
            kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
            outcome = kinds[0] if kinds else "passed"
            counts[outcome] = counts.get(outcome, 0) + 1
            if outcome in ("failure", "error"):
                record.errors[case.get("name", "?")] = str(next(iter(case)).get("message"))[:500]
    record.put("tests", counts)
    record.put("exit_status", status)
    record.put("pytest_seconds", seconds)
    if status:
        record.put("output", tail(log, characters=6000))


# ---- annotate.py


def annotate(record: Record) -> None:
    limit = 8 if record.tiny else 256
    on = f"device={record.device.type}"
    runs: dict[str, tuple[list[str], dict[str, str]]] = {
        "cpu float32": (["device=cpu"], {}),
        "float32": ([on], {}),
        "float32, TF32 in the environment": ([on], TF32),
        "bfloat16": ([on, "model.dtype=bfloat16"], {}),
        "bfloat16, other batches": ([on, "model.dtype=bfloat16", "engine.max_rows=40"], {}),
    }
    common = [f"limit={limit}", f"unit_size={limit}", "replay_fraction=0.2"]
    stores: dict[str, AnnotationStore] = {}

    def made(name: str, *, seconds: float) -> dict[str, Any]:
        overrides, environment = runs[name]
        place = name.replace(" ", "_").replace(",", "")
        # The CPU run may be concurrent with the others, so each has its own Hydra folder.
        where = [
            f"annotation={place}",
            f"annotations_dir={record.folder}",
            f"hydra.run.dir={record.folder}/hydra_{place}",
        ]
        log = record.folder / f"{place}.log"
        arguments = [sys.executable, ROOT / "annotate.py", *common, *where, *overrides]
        status, took = command(arguments, log=log, seconds=seconds, environment=environment)
        if status:
            raise RuntimeError(f"exit status {status}: {tail(log)}")
        store = AnnotationStore(record.folder / place)
        manifest = store.manifest()
        stores[name] = store
        compute, counts = manifest["compute"], manifest["counts"]
        decoding = compute["solve_seconds"] + compute["counterfactual_seconds"]
        return {
            "annotated": counts.get("annotated", 0),
            "forks": counts.get("forks", 0),
            "replays": counts.get("replays", 0),
            "replay_flips": counts.get("replay_flips", 0),
            "tokens_per_s": (compute["solve_tokens"] + compute["counterfactual_tokens"]) / max(1e-9, decoding),
            "seconds": took,
            "table": table_hash(store.rows())[:12],
        }

    with ThreadPoolExecutor(1) as beside:
        first = beside.submit(made, "cpu float32", seconds=record.left() - 5)
        record.each([(name, lambda name=name: made(name, seconds=record.left() - 2)) for name in list(runs)[1:]])
        record.each([("cpu float32", first.result)], needs=0)
    rows = {name: store.rows() for name, store in stores.items()}
    if "cpu float32" in rows:
        for name in rows.keys() - {"cpu float32"}:
            record.put(f"{name} beside the CPU", differences(rows["cpu float32"], rows[name]))
    if {"bfloat16", "bfloat16, other batches"} <= rows.keys():
        record.put(
            "bfloat16 beside itself in other batches", differences(rows["bfloat16"], rows["bfloat16, other batches"])
        )
    if "float32" in stores:
        record.put("numerics", stores["float32"].manifest()["fingerprint"]["numerics"])


def differences(expected: Sequence[AnnotatedResponse], found: Sequence[AnnotatedResponse]) -> dict[str, Any]:
    """Compare two annotations of the same problems: problems annotated in both, and what is equal in them."""
    theirs = {row.problem_id: row for row in found}
    both = [(row, theirs[row.problem_id]) for row in expected if row.problem_id in theirs]
    same = [(a, b) for a, b in both if np.array_equal(a.response_ids, b.response_ids)]
    positions = changed = cells = flipped = masks = 0
    logprob = 0.0
    for a, b in same:
        alike_R = (a.alt_ids == b.alt_ids).all(axis=1)
        positions += len(alike_R)
        changed += int((~alike_R).sum())
        tried_RK = (a.alt_outcome >= 0) & (b.alt_outcome >= 0) & alike_R[:, None]
        cells += int(tried_RK.sum())
        flipped += int((a.alt_outcome != b.alt_outcome)[tried_RK].sum())
        masks += int((_critical(a) != _critical(b)).sum())
        logprob = max(logprob, float(np.abs(a.logprob - b.logprob).max()))
    return {
        "equal_tables": table_hash(expected) == table_hash(found),
        "only_here": len(expected) - len(both),
        "only_there": len(found) - len(both),
        "responses": len(both),
        "equal_responses": len(same),
        "positions": positions,
        "alternatives_changed": changed,
        "outcomes": cells,
        "outcomes_flipped": flipped,
        "mask_tokens_changed": masks,
        "largest_logprob_difference": logprob,
    }


def _critical(row: AnnotatedResponse) -> np.ndarray[Any, Any]:
    """[R] whether every alternative was tried and failed."""
    return (row.alt_outcome == 0).all(axis=1)


# ---- train.py


def train(record: Record) -> None:
    steps, rows = (6, 40) if record.tiny else (60, 1200)
    gpu = ["trainer=gpu"] if record.device.type == "cuda" else ["trainer.accelerator=cpu"]
    # The bfloat16 under Lightning's autocast is the CPU's in a dry run.
    runs = {
        "cpu float32": ["trainer.accelerator=cpu", "trainer.precision=32-true"],
        "bf16-mixed": [*gpu, "trainer.precision=bf16-mixed"],
        "float32": [*gpu, "trainer.precision=32-true"],
    }
    runs = {name: _short(overrides, steps=steps, rows=rows, tiny=record.tiny) for name, overrides in runs.items()}
    losses: dict[str, dict[int, float]] = {}

    def made(name: str, *, seconds: float) -> dict[str, Any]:
        found = trained(record.folder / name.replace(" ", "_"), runs[name], seconds=seconds)
        losses[name] = found.pop("losses")
        return found

    with ThreadPoolExecutor(1) as beside:
        first = beside.submit(made, "cpu float32", seconds=record.left() - 5)
        record.each(
            [
                ("bf16-mixed", lambda: made("bf16-mixed", seconds=record.left() - 2)),
                ("bf16-mixed, killed and resumed", lambda: resumed(record, runs["bf16-mixed"], losses)),
                ("float32", lambda: made("float32", seconds=record.left() - 2)),
            ]
        )
        record.each([("cpu float32", first.result)], needs=0)
    for name in ("float32", "bf16-mixed"):
        if {name, "cpu float32"} <= losses.keys():
            record.put(f"{name} beside the CPU", apart(losses["cpu float32"], losses[name]))


def fsdp(record: Record) -> None:
    steps, rows = (6, 40) if record.tiny else (30, 600)
    accelerator = "gpu" if record.device.type == "cuda" else "cpu"
    losses: dict[str, dict[int, float]] = {}
    runs = {
        "fsdp": [
            *("trainer=fsdp", "trainer.devices=1", f"trainer.accelerator={accelerator}"),
            "trainer.precision=bf16-mixed",
        ],
        "one device": [f"trainer.accelerator={accelerator}", "trainer.precision=bf16-mixed"],
    }
    runs = {name: _short(overrides, steps=steps, rows=rows, tiny=record.tiny) for name, overrides in runs.items()}

    def made(name: str) -> dict[str, Any]:
        found = trained(record.folder / name.replace(" ", "_"), runs[name], seconds=record.left() - 2)
        losses[name] = found.pop("losses")
        return found

    record.each(
        [
            ("fsdp", lambda: made("fsdp")),
            ("fsdp, killed and resumed", lambda: resumed(record, runs["fsdp"], losses, of="fsdp")),
            ("one device", lambda: made("one device")),
        ],
        needs=20,
    )
    if losses.keys() == runs.keys():
        record.put("fsdp beside one device", apart(losses["one device"], losses["fsdp"]))


def _short(overrides: Sequence[str], *, steps: int, rows: int, tiny: bool) -> list[str]:
    """A training with the given number of steps and a validation in the middle, on the shipped annotation."""
    return [
        *("mask=all", "data.annotation=tiny_arith", f"data.max_rows={rows}", "data.batch_size=16"),
        *(f"trainer.max_steps={steps}", "trainer.max_epochs=-1", "probe.every_n_steps=5", "seed=0"),
        *(f"validation.problems={4 if tiny else 40}", f"evaluation.problems={4 if tiny else 100}"),
        *("evaluation.num_samples=1", "evaluation.max_new_tokens=64", "evaluation.base=false"),
        "callbacks.last.every_n_steps=5",
        *overrides,
    ]


def trained(folder: Path, overrides: Sequence[str], *, seconds: float) -> dict[str, Any]:
    """Results of a training; `losses` by step."""
    log = folder.with_name(folder.name + ".log")
    arguments = [sys.executable, ROOT / "train.py", *overrides, f"hydra.run.dir={folder}"]
    status, took = command(arguments, log=log, seconds=seconds)
    if status:
        raise RuntimeError(f"exit status {status}: {tail(log)}")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    losses = losses_of(folder)
    return {
        "steps": len(losses),
        "first_loss": losses[min(losses)],
        "last_loss": losses[max(losses)],
        "test_accuracy": _accuracy(results),
        "train_seconds": results["train_seconds"],
        "seconds": took,
        "export": (folder / "export" / "model.safetensors").is_file(),
        "losses": losses,
    }


def _accuracy(results: Mapping[str, Any]) -> float:
    return float(results["metrics"].get("eval/accuracy", {}).get("value", math.nan))


def losses_of(folder: Path) -> dict[int, float]:
    """train/loss by step, from metrics.csv."""
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {int(float(row["step"])): float(row["train/loss"]) for row in rows if row.get("train/loss")}


def apart(expected: Mapping[int, float], found: Mapping[int, float]) -> dict[str, float]:
    """Relative differences of losses by step."""
    steps = sorted(expected.keys() & found.keys())
    differences = [abs(found[s] - expected[s]) / max(1e-9, abs(expected[s])) for s in steps]
    return {
        "steps": len(steps),
        "first": differences[0],
        "after_10": differences[min(10, len(steps) - 1)],
        "last": differences[-1],
        "largest": max(differences),
    }


def resumed(
    record: Record, overrides: Sequence[str], losses: Mapping[str, Mapping[int, float]], *, of: str = "bf16-mixed"
) -> dict[str, Any]:
    """Kill a run after its first checkpoints and resume it; compared with an uninterrupted run if that finished."""
    folder = record.folder / f"killed_{of}"
    arguments = [sys.executable, ROOT / "train.py", *overrides, f"hydra.run.dir={folder}"]
    log = record.folder / f"killed_{of}.log"
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            [*map(str, arguments)], stdout=out, stderr=subprocess.STDOUT, env=child_environment()
        )
        until = time.monotonic() + record.left() - 10
        while process.poll() is None and len(_checkpoints(folder)) < 2:
            if time.monotonic() > until:
                process.kill()
                process.wait()
                raise TimeoutError(f"no second checkpoint in time: {tail(log)}")
            time.sleep(0.02)
        ended = process.poll()
        process.send_signal(signal.SIGKILL)
        process.wait()
    if ended:
        raise RuntimeError(f"exit status {ended}: {tail(log)}")
    at = [path.name for path in _checkpoints(folder)]
    # A resumed run takes its settings from the folder; they equal those of the command line.
    found = trained(folder, [*overrides, f"resume={folder}"], seconds=record.left() - 2)
    own = found.pop("losses")
    return {
        "killed_after": str(at),
        "had_ended": ended,
        "steps_in_all": len(own),
        **(apart(losses[of], own) if of in losses else {}),
        "test_accuracy": found["test_accuracy"],
        "export": found["export"],
    }


def _checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("step-*.ckpt"))
