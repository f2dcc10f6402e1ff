"""Every method under one protocol on tiny_arith: python -m experiments.compare_methods

The same 500 rows, 3 epochs and problems for all. Per method the learning rate is searched over one grid with one seed, by
greedy accuracy on validation problems; then three other seeds train at the best rate and are tested. The methods are the
files of conf/experiment with their own weightings, losses and masks, and what else the groups offer; batch, epochs, schedule
and learning rates of the papers give way to the common budget. Rho-1 and Token Cleaning get a reference model that was
trained on the whole annotation, which is the teacher of distillation and Target-SFT too, SHAD one that was trained on
shuffled pairs; both are made first. Left out: `critical_graded`, which needs a complete annotation, and `projected`, which
needs one by another model.

Runs are independent and lie in folders named after their configuration: started again, the command does what is missing.
`--only NAME ...` restricts it to some methods, `--workers N` trains N at a time, `--table` only prints. It ends with a
table (mean over seeds and problems, intervals over both; the difference from SFT is paired by problem and seed, its p-value
corrected for all rows by Holm's procedure) in methods.md and methods.json of the folder. A training that ends with an error,
a diverged one for instance, counts as the worst of its grid.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cft.config import CONF_DIR
from cft.files import sha256_json, write_atomically, write_json
from cft.metrics import Interval, two_way_bootstrap
from cft.paired_tests import holm, paired_difference
from cft.progress import console, progress

OUT = Path("outputs/compare_methods")
GRID = (3e-5, 1e-4, 3e-4)
SEARCH_SEED = 100
SEEDS = (0, 1, 2)
BUDGET = (
    *("data.annotation=tiny_arith", "data.max_rows=500", "data.batch_size=16", "data.validation_fraction=0.1"),
    *("trainer.max_epochs=3", "trainer.accumulate_grad_batches=1", "schedule.shape=cosine"),
    *("schedule.warmup_fraction=0.1", "validation.problems=100", "evaluation.num_samples=0", "probe.every_n_steps=0"),
)
TESTED = 400
BASELINE = "sft"
# What no file of conf/experiment is about, and what makes an experiment run here.
MASKS = ("random_like_critical", "complement", "entropy", "attention", "tfidf", "answer_span")
TEACHER = (f"reference.model.path={OUT}/reference/export",)
FURTHER = {"distillation": TEACHER, "target_sft": TEACHER}
COMPOSED = {
    "cft+dft": ("mask=critical", "weighting=probability"),
    "thresholded": ("mask=all", "weighting=thresholded"),
    "entropy bonus": ("mask=all", "loss=nll_entropy"),
    "KL(policy, reference)": (
        *("mask=all", "loss=nll", "reference=initial"),
        "+regularizer@loss.regularizers.kl=kl_to_reference",
    ),
}
METHOD_GROUPS = ("mask", "weighting", "loss", "groups", "reference", "optimizer")
FAILED = "exit status 1", "exit status 2"  # last line of a log
FIT_ONLY = ("callbacks=best_loss", "validation.problems=0", "evaluation.problems=0")


@dataclass(frozen=True, slots=True)
class Model:
    """A model that some methods need, and the score that its log-probs are stored as."""

    score: str
    overrides: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return OUT / self.score


MODELS = (
    Model("reference", ("mask=all", "trainer.max_epochs=2", *FIT_ONLY)),
    Model("shuffled", ("mask=all", "trainer.max_epochs=1", "data.shuffle_responses=true", *FIT_ONLY)),
)
SCORES = ("attention_received", "attention_to_prompt")


@dataclass(frozen=True, slots=True)
class Job:
    """One training. overrides: its whole command line but for where it lies. method: hash of the method's configuration, so
    that a run from before an option changed is not taken for one of today."""

    overrides: tuple[str, ...]
    method: str

    @property
    def folder(self) -> Path:
        return OUT / "runs" / hashlib.sha256("\x1f".join((*self.overrides, self.method)).encode()).hexdigest()[:16]

    @property
    def results(self) -> dict[str, Any] | None:
        path = self.folder / "results.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    @property
    def failed(self) -> bool:
        """It ended, with an error: its log says which."""
        log = self.folder / "train.log"
        return self.results is None and log.is_file() and log.read_text(errors="replace").rstrip().endswith(FAILED)


@dataclass(frozen=True, slots=True)
class Method:
    """overrides: what makes it differ from plain fine-tuning. digest: of the configuration they compose to."""

    name: str
    overrides: tuple[str, ...]
    digest: str

    def search(self, rate: float) -> Job:
        return self._job(rate, SEARCH_SEED, problems=0)

    def final(self, rate: float, seed: int) -> Job:
        return self._job(rate, seed, problems=TESTED)

    def _job(self, rate: float, seed: int, *, problems: int) -> Job:
        own = (f"optimizer.lr={rate:g}", f"seed={seed}", f"evaluation.problems={problems}")
        return Job((*self.overrides, *BUDGET, *own), self.digest)

    def best_rate(self) -> float:
        """By validation accuracy of the search; equal scores: the smaller rate."""
        scores = {rate: _score(self.search(rate)) for rate in GRID}
        return max(sorted(scores), key=lambda rate: scores[rate])


def _score(job: Job) -> float:
    results = job.results
    if results is None:
        assert job.failed, f"{job.folder}: not finished"
        return float("-inf")
    value = results["best_validation"]["value"]
    return float("-inf") if value is None else float(value)


def methods(only: Sequence[str]) -> list[Method]:
    """SFT first, then by name."""
    files = sorted(path.stem for path in (CONF_DIR / "experiment").glob("*.yaml"))
    found = {
        name: (f"experiment={name}", *FURTHER.get(name, ()))
        for name in files
        if not name.startswith("tiny_arith")  # the demo's own budget
    }
    found |= {f"mask={mask}": (f"mask={mask}",) for mask in MASKS}
    found |= COMPOSED
    if unknown := set(only) - set(found):
        known = "\n".join(f"  {name}" for name in found)
        raise SystemExit(f"--only: no such method: {', '.join(sorted(unknown))}; the methods are\n{known}")
    names = sorted(found, key=lambda name: name != BASELINE)
    chosen = [name for name in names if not only or name in {*only, BASELINE}]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        return [Method(name, found[name], _digest(found[name])) for name in chosen]


def _digest(overrides: Sequence[str]) -> str:
    """Of the groups that make a method; the budget is in the arguments."""
    cfg = compose("train", overrides=list(overrides))
    parts = {name: OmegaConf.to_container(cfg[name], resolve=False) for name in METHOD_GROUPS if name in cfg}
    return sha256_json(parts)


def prepare() -> None:
    """The reference models and every stored score; what is there already is left alone."""
    for model in MODELS:
        if not (model.folder / "results.json").is_file():
            shutil.rmtree(model.folder, ignore_errors=True)
            _command("train.py", *model.overrides, f"hydra.run.dir={model.folder}")
        _command("-m", "cft.score", "score=reference_logprob", f"name={model.score}", f"checkpoint={model.folder}")
    for score in SCORES:
        _command("-m", "cft.score", f"score={score}")


def _command(*arguments: str) -> None:
    console.print(f"$ python {' '.join(arguments)}", style="dim", markup=False, highlight=False)
    subprocess.run([sys.executable, *arguments], check=True)


def run(jobs: Sequence[Job], *, title: str, workers: int) -> list[Job]:
    """Train what is not finished, `workers` processes at a time; returns what failed (its log says why)."""
    open_jobs = [job for job in dict.fromkeys(jobs) if job.results is None]
    shares = [open_jobs[i::workers] for i in range(workers)]
    with ThreadPoolExecutor(workers) as pool, progress(title, total=len(open_jobs)) as bar:
        for done in [pool.submit(_worker, share, bar) for share in shares if share]:
            done.result()
    return [job for job in open_jobs if job.results is None]


def _worker(jobs: Sequence[Job], bar: Any) -> None:
    """One process trains the jobs one after the other: libraries are imported once."""
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.compare_methods", "--train"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    for job in jobs:
        process.stdin.write(json.dumps({"overrides": job.overrides, "folder": str(job.folder)}) + "\n")
        process.stdin.flush()
        process.stdout.readline()  # one line a finished job
        bar.advance(facts=" ".join(job.overrides[:2]))
    process.stdin.close()
    process.wait()


def train_forever() -> None:
    """What a worker does: one job a line of stdin, one line of stdout when it ends; its output goes to train.log."""
    say = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        job = json.loads(line)
        folder = Path(job["folder"])
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was cut off or failed: train.py would not start in it
        folder.mkdir(parents=True)
        log = os.open(folder / "train.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        print(f"python train.py {' '.join(job['overrides'])}", flush=True)
        sys.argv = ["train.py", *job["overrides"], f"hydra.run.dir={folder}", "hydra.output_subdir=null"]
        try:
            runpy.run_path("train.py", run_name="__main__")
        except SystemExit as end:
            print(f"exit status {end.code}", flush=True)
        for weights in ("checkpoints", "export"):  # of 200 runs, which nobody goes on from
            shutil.rmtree(folder / weights, ignore_errors=True)
        say.write("done\n")
        say.flush()


def table(chosen: Sequence[Method]) -> list[dict[str, Any]]:
    """One record a method with all its final runs, best first."""
    finished: dict[str, list[dict[str, Any]]] = {}
    for method in filter(_searched, chosen):
        runs = [method.final(method.best_rate(), seed).results for seed in SEEDS]
        known = [run for run in runs if run is not None]
        if len(known) == len(SEEDS):
            finished[method.name] = known
    if BASELINE not in finished:
        raise SystemExit(
            f"{BASELINE} is not finished, and every other method is compared with it; run the command again"
        )
    baseline = _correct(finished[BASELINE])
    records = []
    for method in chosen:
        if method.name not in finished:
            continue
        correct = _correct(finished[method.name])
        difference = paired_difference(correct, baseline, pair_seeds=True) if method.name != BASELINE else None
        records.append(
            {
                "method": method.name,
                "command": " ".join(["python train.py", *method.overrides]),
                "learning_rate": method.best_rate(),
                "eligible_fraction": float(np.mean([run["eligible_fraction"] for run in finished[method.name]])),
                "accuracy": two_way_bootstrap(correct).as_dict(),
                "minus_sft": None if difference is None else difference.interval.as_dict(),
                "p": None if difference is None else difference.p,
            }
        )
    tested = [record for record in records if record["p"] is not None]
    for record, corrected in zip(tested, holm([record["p"] for record in tested]), strict=True):
        record["p_holm"] = corrected
    return sorted(records, key=lambda record: -record["accuracy"]["value"])


def _searched(method: Method) -> bool:
    jobs = [method.search(rate) for rate in GRID]
    return all(job.failed or job.results is not None for job in jobs) and not all(job.failed for job in jobs)


def _correct(runs: Sequence[dict[str, Any]]) -> np.ndarray:
    """[seeds, problems] 0 or 1; refused where the problems differ."""
    ids = {tuple(run["per_problem"]["id"]) for run in runs}
    assert len(ids) == 1, "the runs were tested on different problems"
    return np.array([run["per_problem"]["correct"] for run in runs], dtype=np.float64)


def markdown(records: Sequence[dict[str, Any]]) -> str:
    lines = ["| method | loss on | lr | accuracy | minus SFT | p (Holm) |", "|---|---|---|---|---|---|"]
    for r in records:
        difference = _signed(Interval(**r["minus_sft"])) if r["minus_sft"] else "–"
        corrected = f"{r['p_holm']:.2g}" if "p_holm" in r else "–"
        accuracy = Interval(**r["accuracy"])
        lines.append(
            f"| `{r['method']}` | {r['eligible_fraction']:.0%} | {r['learning_rate']:g} | {accuracy.value:.3f} "
            f"[{accuracy.low:.3f}, {accuracy.high:.3f}] | {difference} | {corrected} |"
        )
    return "\n".join(lines) + "\n"


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="e.g. dft cft mask=entropy")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time")
    parser.add_argument("--table", action="store_true", help="only print what is finished")
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train_forever()
        return
    chosen = methods(arguments.only)
    if not arguments.table:
        prepare()
        searches = [method.search(rate) for method in chosen for rate in GRID]
        failed = run(searches, title="Learning rates", workers=arguments.workers)
        finals = [m.final(m.best_rate(), seed) for m in chosen if _searched(m) for seed in SEEDS]
        failed += run(finals, title="Three seeds", workers=arguments.workers)
        for job in failed:
            console.print(f"Failed: {' '.join(job.overrides)}; see {job.folder / 'train.log'}", markup=False)
    records = table(chosen)
    write_json(OUT / "methods.json", {"methods": records})
    text = markdown(records)
    missing = [method.name for method in chosen if method.name not in {record["method"] for record in records}]
    if missing:
        text += f"\nNot finished: {', '.join(missing)}.\n"
    write_atomically(OUT / "methods.md", lambda temporary: _write(temporary, text))
    print(text)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
