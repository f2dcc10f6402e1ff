"""Critical Token Fine-tuning from start to end on the model that ships with the package: `make demo`.

1. annotate   new problems are solved, and every token of the right solutions is tested
2. train      SFT, CFT and a random mask of the same density, 3 seeds each, on the shipped annotation
3. evaluate   every model on the same unseen test problems, compared with the untrained model
4. report     table, figure, colored transcripts: outputs/demo/report.html

Every step is one of the commands that a user would type; they are printed as they run. The nine trainings and the test of the
untrained model run in two processes, to use two cores.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from cft.annotation.store import SHIPPED, AnnotationStore
from cft.console import console, progress

OUT = Path("outputs/demo")
ARMS = ("sft", "cft", "random")
SEEDS = (0, 1, 2)
BUDGET = ("data.max_rows=700", "validation.problems=60", "evaluation.problems=200", "evaluation.num_samples=4")
BASE = ("evaluate.py", "limit=200", "num_samples=4", f"hydra.run.dir={OUT}/base")
# Nine trainings of about the same duration in two processes: 4 with the test of the untrained model, and 5.
SHARES = (
    ((("sft", "cft"), (0, 1)),),
    ((("random",), (0, 1, 2)), (("sft", "cft"), (2,))),
)


def main() -> None:
    started = time.monotonic()
    shutil.rmtree(OUT, ignore_errors=True)
    step("1. Annotate 40 problems that are not in the shipped annotation")
    run(
        "annotate.py",
        "data.seed=1",
        "limit=40",
        "unit_size=20",
        "annotation=live",
        f"annotations_dir={OUT}/annotations",
    )
    shipped = AnnotationStore(SHIPPED / "tiny_arith").manifest()["counts"]["annotated"]
    step(f"2. Train, on the shipped annotation ({shipped:,} responses, made by the same command): 3 methods x 3 seeds")
    train_all()
    step("3. The untrained model on the same test problems")
    print((OUT / "base.log").read_text(), end="")
    step("4. Report")
    run(
        "-m",
        "cft",
        "report",
        f"{OUT}/base",
        f"{OUT}/runs",
        f"--out={OUT}",
        "--annotation=live",
        f"--annotations-dir={OUT}/annotations",
        "--title=Critical Token Fine-tuning: demo",
    )
    console.print(f"The demo took {time.monotonic() - started:.0f} s. Open {OUT}/report.html in a browser.")


def step(title: str) -> None:
    console.rule(f"[bold]{title}", align="left")


def run(*arguments: str) -> None:
    """Run one command in the foreground; if it fails, the demo ends with its exit status."""
    console.print(f"$ python {shlex.join(arguments)}", style="dim", markup=False, highlight=False)
    done = subprocess.run([sys.executable, *arguments])
    if done.returncode:
        raise SystemExit(done.returncode)


def train_all() -> None:
    """Run all trainings and the test of the untrained model in two processes; their output goes to log files.

    A progress bar counts the finished trainings.
    """
    (OUT / "runs").mkdir(parents=True)
    with ThreadPoolExecutor(len(SHARES)) as pool, progress("Training", total=len(ARMS) * len(SEEDS)) as bar:
        workers = [pool.submit(train_share, number, share) for number, share in enumerate(SHARES)]
        finished: set[Path] = set()
        while not (all(worker.done() for worker in workers) and finished >= results()):
            for path in sorted(results() - finished):
                finished.add(path)
                bar.advance(facts=f"last: {path.parent.name}")
            if any(failed(worker) for worker in workers):
                break
            time.sleep(0.5)
    for worker in workers:
        worker.result()


def failed(worker: Future[None]) -> bool:
    return worker.done() and worker.exception() is not None


def results() -> set[Path]:
    return set((OUT / "runs").glob("*/*/results.json"))


def train_share(number: int, share: tuple[tuple[tuple[str, ...], tuple[int, ...]], ...]) -> None:
    for part, (arms, seeds) in enumerate(share):
        arguments = [
            "train.py",
            "-m",
            "experiment=" + ",".join(f"tiny_arith_{arm}" for arm in arms),
            "seed=" + ",".join(map(str, seeds)),
            *BUDGET,
            f"hydra.sweep.dir={OUT}/runs/{number}{part}",
            "hydra.sweep.subdir=${hydra:runtime.choices.mask}-seed${seed}",
        ]
        run_logged(arguments, OUT / "runs" / f"{number}{part}.log")
    if number == 0:
        run_logged(BASE, OUT / "base.log")


def run_logged(arguments: Sequence[str], log: Path) -> None:
    console.print(f"$ python {shlex.join(arguments)}", style="dim", markup=False, highlight=False)
    with log.open("w") as handle:
        done = subprocess.run([sys.executable, *arguments], stdout=handle, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{arguments[0]} failed (exit status {done.returncode}); the end of {log}:\n" + tail(log))


def tail(log: Path, *, lines: int = 15) -> str:
    return "\n".join(log.read_text().splitlines()[-lines:])


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
