"""All methods under one protocol on tiny_arith: python -m experiments.compare_methods

All methods use the same 500 rows, 3 epochs and problems. For each method the learning rate is searched over one grid with one
seed, by greedy accuracy on validation problems; then three other seeds train at the best rate and are tested. The methods are
those of conf/experiment with their own weightings, losses and masks, and the remaining options of these groups; the common
budget replaces batch size, epochs, schedule and learning rates of the papers. Rho-1 and Token Cleaning get a reference model
that was trained on the whole annotation, which is also the teacher of distillation and Target-SFT; SHAD gets one that was
trained on shuffled pairs. Both are trained first. Not included: `critical_graded`, which needs a complete annotation, and
`projected`, which needs one by another model.

If started again, the command runs only what is missing (`experiments/trainings.py`).
`--only NAME ...` restricts it to some methods, `--workers N` runs N trainings at a time, `--table` only prints. The results are
a table (mean over seeds and problems, intervals over both; the difference from SFT is paired by problem and seed, its p-value
corrected over all rows by Holm's procedure) in methods.md and methods.json in the output folder. A training that ends with an
error, for example because it diverged, counts as the worst of its grid.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cft.config.build import CONF_DIR
from cft.console import console
from cft.evaluation.metrics import Interval, two_way_bootstrap
from cft.evaluation.paired_tests import holm, paired_difference
from cft.files import write_atomically, write_json
from experiments.trainings import Training, best_rate, run_all, training

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
# Methods without a file in conf/experiment, and overrides that experiments need here.
MASKS = ("random_like_critical", "complement", "entropy", "attention", "tfidf", "answer_span")
TEACHER = (f"reference.model.path={OUT}/reference/export",)
FURTHER = {"distillation": TEACHER, "target_sft": TEACHER}
# These compare right and wrong responses, so they need other rows.
OF_ROLLOUTS = ("cdpo", "discriminative", "discriminative_mean", "dpo")
COMPOSED = {
    "cft+dft": ("mask=critical", "weighting=probability"),
    "thresholded": ("mask=all", "weighting=thresholded"),
    "entropy bonus": ("mask=all", "loss=nll_entropy"),
    "KL(policy, reference)": (
        *("mask=all", "loss=nll", "reference=initial"),
        "+regularizer@loss.regularizers.kl=kl_to_reference",
    ),
}
FIT_ONLY = ("callbacks=best_loss", "validation.problems=0", "evaluation.problems=0")


@dataclass(frozen=True, slots=True)
class Model:
    """A model that some methods need, and the name of the score with its log-probs."""

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
class Method:
    """A method. overrides: its differences from plain fine-tuning."""

    name: str
    overrides: tuple[str, ...]

    def search(self, rate: float) -> Training:
        return self._training(rate, SEARCH_SEED, problems=0)

    def final(self, rate: float, seed: int) -> Training:
        return self._training(rate, seed, problems=TESTED)

    def _training(self, rate: float, seed: int, *, problems: int) -> Training:
        own = (f"optimizer.lr={rate:g}", f"seed={seed}", f"evaluation.problems={problems}")
        name = re.sub(r"[^a-z0-9_+]+", "-", self.name.lower())
        return training(OUT / "runs", name, (*self.overrides, *BUDGET), own)

    def best_rate(self) -> float:
        return best_rate({rate: [self.search(rate)] for rate in GRID})


def methods(only: Sequence[str]) -> list[Method]:
    """The methods to run: SFT first, then by name."""
    files = sorted(path.stem for path in (CONF_DIR / "experiment").glob("*.yaml"))
    found = {
        name: (f"experiment={name}", *FURTHER.get(name, ()))
        for name in files
        if not name.startswith("tiny_arith")  # the demo's own budget
        and name not in OF_ROLLOUTS
    }
    found |= {f"mask={mask}": (f"mask={mask}",) for mask in MASKS}
    found |= COMPOSED
    if unknown := set(only) - set(found):
        known = "\n".join(f"  {name}" for name in found)
        raise SystemExit(f"--only: no such method: {', '.join(sorted(unknown))}; the methods are\n{known}")
    names = sorted(found, key=lambda name: name != BASELINE)
    chosen = [name for name in names if not only or name in {*only, BASELINE}]
    return [Method(name, found[name]) for name in chosen]


def prepare() -> None:
    """Make the reference models and stored scores that do not exist yet."""
    for model in MODELS:
        if not (model.folder / "results.json").is_file():
            shutil.rmtree(model.folder, ignore_errors=True)
            _command("train.py", *model.overrides, f"hydra.run.dir={model.folder}")
        _command("-m", "cft", "score", "score=reference_logprob", f"name={model.score}", f"checkpoint={model.folder}")
    for score in SCORES:
        _command("-m", "cft", "score", f"score={score}")


def _command(*arguments: str) -> None:
    console.print(f"$ python {' '.join(arguments)}", style="dim", markup=False, highlight=False)
    subprocess.run([sys.executable, *arguments], check=True)


def table(chosen: Sequence[Method]) -> list[dict[str, Any]]:
    """One record per method with all its final runs, best first."""
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
                "command": " ".join(["cft train", *method.overrides]),
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
    runs = [method.search(rate) for rate in GRID]
    return all(run.failed or run.results is not None for run in runs) and not all(run.failed for run in runs)


def _correct(runs: Sequence[dict[str, Any]]) -> np.ndarray:
    """[seeds, problems] 0 or 1; the runs must have the same problems."""
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
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="methods, e.g. dft cft mask=entropy")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time")
    parser.add_argument("--table", action="store_true", help="only print the table of finished runs")
    arguments = parser.parse_args()
    chosen = methods(arguments.only)
    if not arguments.table:
        prepare()
        searches = [method.search(rate) for method in chosen for rate in GRID]
        run_all(searches, title="Learning rates", workers=arguments.workers)
        finals = [m.final(m.best_rate(), seed) for m in chosen if _searched(m) for seed in SEEDS]
        run_all(finals, title="Three seeds", workers=arguments.workers)
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
