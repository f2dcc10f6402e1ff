"""Runs many trainings, a few at a time, for experiments over methods, rates and seeds.

Each has a folder named after its arm and its configuration. So an experiment that is started again trains only what is missing,
and a run from before an option or a default changed is not mistaken for a current one. A training that ended with an error (for
example because it diverged) counts as the worst of its grid; its log has the reason.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir

from cft.config.build import CONF_DIR, config_hash
from cft.console import console, progress
from cft.models.kernels import give_back_freed_memory

RESULTS, LOG = "results.json", "train.log"
_FAILED = ("exit status 1", "exit status 2")  # last line of a log


@dataclass(frozen=True, slots=True)
class Training:
    """A training. overrides: the command line of train.py without the output folder."""

    folder: Path
    overrides: tuple[str, ...]

    @property
    def results(self) -> dict[str, Any] | None:
        """Its results, None if it is not finished."""
        path = self.folder / RESULTS
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        log = self.folder / LOG
        return self.results is None and log.is_file() and log.read_text(errors="replace").rstrip().endswith(_FAILED)

    @property
    def validation(self) -> float:
        """Accuracy of its best epoch on validation problems; -inf if the training failed or no value is finite."""
        results = self.results
        if results is None:
            if not self.failed:
                raise RuntimeError(f"{self.folder}: not finished; train it first")
            return float("-inf")
        value = results["best_validation"]["value"]
        return float("-inf") if value is None else float(value)


def training(root: Path, name: str, arm: Sequence[str], own: Sequence[str]) -> Training:
    """A training in a folder below `root`. arm: overrides of the arm and its budget. own: overrides of this training, such as
    rate and seed."""
    digest = hashlib.sha256("\x1f".join((_configuration(tuple(arm)), *own)).encode()).hexdigest()[:12]
    return Training(root / f"{name}-{digest}", (*arm, *own))


@functools.cache
def _configuration(overrides: tuple[str, ...]) -> str:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        return config_hash(compose("train", overrides=list(overrides)))


def best_rate(searched: Mapping[float, Sequence[Training]]) -> float:
    """The rate with the highest mean validation accuracy over seeds; if equal, the lowest rate."""
    scores = {rate: float(np.mean([run.validation for run in runs])) for rate, runs in searched.items()}
    return max(sorted(scores), key=lambda rate: scores[rate])


def run_all(trainings: Sequence[Training], *, title: str, workers: int) -> list[Training]:
    """Run the unfinished trainings in `workers` processes of one thread each; returns the failed ones."""
    missing = [each for each in dict.fromkeys(trainings) if each.results is None]
    shares = [missing[i::workers] for i in range(workers)]
    with ThreadPoolExecutor(workers) as pool, progress(title, total=len(missing)) as bar:
        for done in [pool.submit(_one_process, share, bar) for share in shares if share]:
            done.result()
    failed = [each for each in missing if each.results is None]
    for each in failed:
        console.print(f"Failed: {' '.join(each.overrides)}; see {each.folder / LOG}", markup=False)
    return failed


def _one_process(trainings: Sequence[Training], bar: Any) -> None:
    """Run trainings one after the other in a single process, so that libraries are imported once."""
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.trainings"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    for each in trainings:
        process.stdin.write(json.dumps({"overrides": each.overrides, "folder": str(each.folder)}) + "\n")
        process.stdin.flush()
        if not process.stdout.readline():  # one line per finished training
            raise SystemExit(
                f"a training process ended (status {process.wait()}); the end of its log: {each.folder / LOG}"
            )
        bar.advance(facts=each.folder.name)
    process.stdin.close()
    process.wait()


def train_forever() -> None:
    """Loop of a training process: each line of stdin is a training; prints one line to stdout when it ends. Its output goes to
    its log."""
    say = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        job = json.loads(line)
        folder = Path(job["folder"])
        shutil.rmtree(folder, ignore_errors=True)  # train.py would not start in the folder of a failed run
        folder.mkdir(parents=True)
        log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        print(f"cft train {' '.join(job['overrides'])}", flush=True)
        sys.argv = ["train.py", *job["overrides"], f"hydra.run.dir={folder}", "hydra.output_subdir=null"]
        try:
            runpy.run_path("train.py", run_name="__main__")
        except SystemExit as end:
            print(f"exit status {end.code}", flush=True)
        for weights in ("checkpoints", "export"):  # not needed, since these runs are not resumed
            shutil.rmtree(folder / weights, ignore_errors=True)
        give_back_freed_memory()
        say.write("done\n")
        say.flush()


if __name__ == "__main__":
    argparse.ArgumentParser(
        description="Runs a training for each line of standard input; started by the studies."
    ).parse_args()
    train_forever()
