"""Compares the curves of `cft rl` with those of TRL used directly: reward and entropy, step by step, with the same seed.

    python -m experiments.rl_by_hand [--steps 200] [--seed 0] [--out outputs/rl_by_hand]

"By hand" means: following TRL's documentation, without any code of `cft/rl`. The model from its folder, prompts as text of the
tokenizer's chat template, AdamW as `GRPOConfig` creates it, and a reward function of three lines around the same verifier.
Both run one after the other. The last line of the output is JSON: the largest difference of each curve, the median seconds of a
step and the total CPU seconds of both.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

from cft.cli.job import composed
from cft.data.sources import arithmetic
from cft.models.load import locate
from cft.stages.rl import rl
from cft.types import Decision
from cft.verifiers import Numeric

CURVES = {"reward": "train/reward", "entropy": "train/entropy"}  # TRL's name -> name in metrics.csv
SECONDS = {"step_time": "perf/step_seconds"}
LR = 1e-5


def by_hand(*, steps: int, seed: int, folder: Path) -> list[dict[str, float]]:
    """Train with TRL directly; returns its logs of each step."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports] - an optional dependency

    path = locate("package:tiny_arith")
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    problems = arithmetic(
        name="arithmetic", seed=0, num_train=4000, num_validation=400, num_test=1000, min_steps=2, max_steps=4
    ).of("train")

    def text(question: str) -> str:
        turn = [{"role": "user", "content": question}]
        return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))

    verifier = Numeric(fallback_last_number=True)

    def correct(completions: list[str], answer: list[str], **_: Any) -> list[float | None]:
        found = [verifier(completion, gold).decision for completion, gold in zip(completions, answer, strict=True)]
        return [None if decision == Decision.UNDECIDED else float(decision == Decision.RIGHT) for decision in found]

    args = GRPOConfig(
        output_dir=str(folder),
        seed=seed,
        max_steps=steps,
        per_device_train_batch_size=64,
        num_generations=8,
        max_completion_length=128,
        learning_rate=LR,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        adam_beta1=0.9,
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    rows = {"prompt": [text(p.question) for p in problems], "answer": [p.answer for p in problems]}
    trainer = GRPOTrainer(
        model, reward_funcs=correct, args=args, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "reward" in entry]


def by_command(*, steps: int, seed: int, folder: Path) -> list[dict[str, float]]:
    """Train with `cft rl`; returns its metrics.csv."""
    words = [f"steps={steps}", f"seed={seed}", f"optimizer.lr={LR}", "evaluation.problems=0", "device=cpu"]
    rl(*composed("rl", words, folder=folder))
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as handle:
        rows = [row for row in csv.DictReader(handle) if row["train/reward"]]
    return [{name: float(row[name]) for name in (CURVES | SECONDS).values()} for row in rows]


def differences(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, float]:
    """Largest absolute difference of each curve."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} steps of cft rl, {len(theirs)} by hand")
    return {
        name: max(abs(a[column] - b[name]) for a, b in zip(ours, theirs, strict=True))
        for name, column in CURVES.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outputs/rl_by_hand"))
    args = parser.parse_args()
    begun = time.process_time()
    ours = by_command(steps=args.steps, seed=args.seed, folder=args.out / "cft")
    between = time.process_time()
    theirs = by_hand(steps=args.steps, seed=args.seed, folder=args.out / "trl")
    processor = {"cft": between - begun, "trl": time.process_time() - between}
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "curves.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["step", *(f"{name}_{who}" for name in CURVES for who in ("cft", "trl"))])
        for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            writer.writerow([step, *(value for name, column in CURVES.items() for value in (a[column], b[name]))])
    (step_time,) = SECONDS
    a_step = {
        "cft": median(row[SECONDS[step_time]] for row in ours),
        "trl": median(row[step_time] for row in theirs),
    }
    facts = {"steps": len(ours), "seed": args.seed, "largest_difference": differences(ours, theirs)}
    print(json.dumps({**facts, "median_step_seconds": a_step, "processor_seconds": processor}))


if __name__ == "__main__":
    main()
