"""Every pipeline of conf/pipeline with its own settings, on tiny_arith: python -m experiments.complete [NAME ...]

Nothing is reduced; only sft_go_llmlingua2 gets a local classifier in place of the hub's. Runs each to its report, those with
reinforcement learning last, and records the minutes of all steps in RESULTS for `experiments/systems.py`. What is recorded is
not run again; `--minutes M` starts no run after that time.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from cft.files import write_bytes
from cft.shipped import CONF_DIR
from experiments import token_classifier

OUT = Path("outputs/complete")
RESULTS = Path("experiments/results/complete.csv")


def read_minutes() -> dict[str, float]:
    """Minutes by pipeline, {} if nothing is recorded."""
    if not RESULTS.is_file():
        return {}
    with RESULTS.open(newline="", encoding="utf-8") as lines:
        return {row["pipeline"]: float(row["minutes"]) for row in csv.DictReader(lines)}


def write_minutes(minutes: Mapping[str, float]) -> None:
    lines = ["pipeline,minutes", *(f"{name},{minutes[name]:.2f}" for name in sorted(minutes))]
    write_bytes(RESULTS, ("\n".join(lines) + "\n").encode())


def run(name: str) -> float:
    """Minutes of all steps. Raises CalledProcessError."""
    words = [f"pipeline={name}", f"hydra.run.dir={OUT / name}"]
    if "llmlingua2" in name:
        token_classifier.write(token_classifier.FOLDER)
        words.append(f"steps.classify.score.path={token_classifier.FOLDER}")
    subprocess.run([sys.executable, "-m", "cft", "pipeline", *words], check=True)
    assert (OUT / name / "report" / "report.html").is_file()
    records = [json.loads(path.read_bytes()) for path in (OUT / name / "steps").glob("*.json")]
    return sum(record["seconds"] or 0 for record in records) / 60


def order(name: str) -> tuple[bool, int]:
    """Reinforcement learning last, then by the length of the yaml."""
    text = (CONF_DIR / "pipeline" / f"{name}.yaml").read_text(encoding="utf-8")
    return "\n  rl:" in text, len(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    asked = parser.parse_args()
    shipped = sorted((path.stem for path in (CONF_DIR / "pipeline").glob("*.yaml")), key=order)
    started = time.monotonic()
    for name in asked.names or shipped:
        if name in read_minutes() or time.monotonic() - started > 60 * asked.minutes:
            continue
        print(f"$ cft pipeline pipeline={name}", flush=True)
        write_minutes({**read_minutes(), name: run(name)})


if __name__ == "__main__":
    main()
