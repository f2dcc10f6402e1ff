"""The whole method, compared with its controls: python -m experiments.study tiny_arith | smollm2 | transfer

    tiny_arith   the shipped model on the shipped annotation of its own solutions
    smollm2      SmolLM2-135M on its own verified solutions of one-step word problems, which it annotates first
    transfer     SmolLM2-135M on the solutions of `tiny_arith` to two-step problems, with masks of either model: the
                 cross-family ablation of CFT (arXiv 2510.10974) on the two tokenizers that are available offline

For each arm the learning rate is the best of a grid by greedy accuracy on validation problems, with seeds that the comparison
does not use; then new seeds train at that rate and are tested, together with the untrained model. If started again, the
command runs only what is missing (`experiments/trainings.py`); `--arms` and `--seeds` restrict it to a part. At the end it runs
`cft report` over everything that is finished: outputs/study/<name>/report.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cft.annotation.store import AnnotationStore, find_annotation
from cft.console import console
from cft.files import write_atomically
from experiments.trainings import Training, best_rate, run_all, training

OUT = Path("outputs/study")
ANNOTATIONS = "outputs/annotations"
SOURCE, TARGET = "study-transfer-tiny_arith", "study-transfer-smollm2"
SOLUTIONS = OUT / "transfer" / "solutions.jsonl"
ARMS = {
    "sft": ("mask=all",),
    "cft": ("mask=critical",),
    "random": ("mask=random_like_critical",),
    "numeric": ("mask=numeric",),
    "complement": ("mask=complement",),
    "dft": ("mask=all", "weighting=probability"),
}
PROJECTED = f"mask.from_annotation={SOURCE}"


@dataclass(frozen=True, slots=True)
class Study:
    """A study.

    setup: commands to run before any training. budget: overrides of every training. problems, samples: of the test. model,
    benchmark: overrides of the trainings and of the evaluation of the untrained model.
    """

    name: str
    setup: tuple[tuple[str, ...], ...]
    model: tuple[str, ...]
    budget: tuple[str, ...]
    max_new_tokens: int
    validated: int
    problems: int
    samples: int
    arms: dict[str, tuple[str, ...]]
    rates: tuple[float, ...]
    search_seeds: tuple[int, ...]
    seeds: tuple[int, ...]

    @property
    def folder(self) -> Path:
        return OUT / self.name

    def search(self, arm: str, rate: float) -> list[Training]:
        """Trainings of the search for a learning rate; none if there is only one rate."""
        if len(self.rates) == 1:
            return []
        return [self._training("search", arm, rate=rate, seed=seed, problems=0) for seed in self.search_seeds]

    def final(self, arm: str, seed: int) -> Training:
        rate = self.rates[0]
        if len(self.rates) > 1:
            rate = best_rate({rate: self.search(arm, rate) for rate in self.rates})
        return self._training("final", arm, rate=rate, seed=seed, problems=self.problems)

    def _training(self, part: str, arm: str, *, rate: float, seed: int, problems: int) -> Training:
        shared = (
            *self.model,
            *self.budget,
            f"validation.problems={self.validated}",
            f"evaluation.num_samples={self.samples}",
            f"evaluation.max_new_tokens={self.max_new_tokens}",
        )
        own = (f"optimizer.lr={rate:g}", f"seed={seed}", f"evaluation.problems={problems}")
        return training(self.folder / part, f"{arm}-lr{rate:g}-seed{seed}", (*self.arms[arm], *shared), own)

    def evaluate_base(self) -> tuple[str, ...]:
        return (
            *("evaluate.py", *self.model, f"limit={self.problems}", f"num_samples={self.samples}"),
            *(f"max_new_tokens={self.max_new_tokens}", f"hydra.run.dir={self.folder}/base"),
        )


STUDIES = (
    Study(
        name="tiny_arith",
        setup=(),
        model=(),
        budget=("experiment=tiny_arith_budget",),
        max_new_tokens=128,
        validated=300,
        problems=300,
        samples=8,
        arms=ARMS,
        rates=(3e-5, 1e-4, 3e-4),
        search_seeds=(100, 101),
        seeds=(0, 1, 2, 3, 4),
    ),
    Study(
        name="smollm2",
        setup=(
            (
                *("annotate.py", "model=smollm2", "data.min_steps=1", "data.max_steps=1", "limit=1000"),
                *("unit_size=100", "max_new_tokens=96", "annotation=smollm2-onestep"),
            ),
        ),
        model=("model=smollm2", "benchmark.min_steps=1", "benchmark.max_steps=1"),
        budget=("data.annotation=smollm2-onestep", "data.batch_size=8", "trainer.max_epochs=2"),
        max_new_tokens=96,
        validated=100,
        problems=150,
        samples=4,
        arms=ARMS,
        rates=(3e-6, 1e-5, 3e-5, 1e-4),
        search_seeds=(100,),
        seeds=(0, 1, 2, 3, 4),
    ),
    Study(
        name="transfer",
        setup=(
            ("annotate.py", "data.min_steps=2", "data.max_steps=2", "limit=100", f"annotation={SOURCE}"),
            ("-m", "experiments.study", "--write-solutions"),
            (
                *("annotate.py", "model=smollm2", "data=jsonl", f"data.path={SOLUTIONS}", "data.id_field=id"),
                *("data.solution_field=solution", "data.validation_fraction=0", "data.test_fraction=0", "limit=32"),
                *("responses=given", "max_new_tokens=96", f"annotation={TARGET}"),
            ),
        ),
        model=("model=smollm2", "benchmark.min_steps=2", "benchmark.max_steps=2"),
        budget=(f"data.annotation={TARGET}", "data.batch_size=8", "trainer.max_epochs=2"),
        max_new_tokens=64,
        validated=40,
        problems=100,
        samples=0,
        arms={
            "sft": ("mask=all",),
            "own": ("mask=critical",),
            "projected": ("mask=projected", PROJECTED),
            "random": ("mask=random_like", "mask@mask.like=projected", PROJECTED.replace("mask.", "mask.like.", 1)),
        },
        rates=(3e-5,),
        search_seeds=(100,),
        seeds=(0, 1),
    ),
)


def write_solutions() -> None:
    """Write the problems that `tiny_arith` solved, with its solutions as given solutions."""
    rows = AnnotationStore(find_annotation(SOURCE, annotations_dir=ANNOTATIONS, key="annotation")).rows()
    keys = ("id", "question", "answer", "solution")
    lines = [
        json.dumps(dict(zip(keys, (row.problem_id, row.problem, row.answer, row.response), strict=True)))
        for row in rows
    ]
    SOLUTIONS.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(SOLUTIONS, lambda path: _write(path, "\n".join(lines) + "\n"))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def do(study: Study, *, arms: Sequence[str], seeds: Sequence[int], workers: int) -> None:
    for command in study.setup:
        _command(*command)
    run_all(
        [run for arm in arms for rate in study.rates for run in study.search(arm, rate)],
        title="Learning rates",
        workers=workers,
    )
    # Seed by seed, so that after an interruption the arms can be compared.
    run_all([study.final(arm, seed) for seed in seeds for arm in arms], title="Final runs", workers=workers)
    if not (study.folder / "base" / "results.json").is_file():
        _command(*study.evaluate_base())


def report(study: Study) -> None:
    """Report finished results: the searched rates, the tested runs, the untrained model."""
    folders = [study.folder / "base"]
    for arm in study.arms:
        searched = [run for rate in study.rates for run in study.search(arm, rate)]
        if all(run.results is not None or run.failed for run in searched):
            tested = [study.final(arm, seed) for seed in study.seeds]
            if any(run.results is not None for run in tested):
                folders += [run.folder for run in (*searched, *tested)]
    finished = [str(folder) for folder in folders if (folder / "results.json").is_file()]
    if not finished:
        raise SystemExit(f"{study.folder}: nothing is finished yet; run the command without --report")
    chosen = ("--choose", "optimizer.lr") if len(finished) > 1 and len(study.rates) > 1 else ()
    _command(
        "-m", "cft", "report", *finished, *chosen, "--out", f"{study.folder}/report", "--title", f"Study: {study.name}"
    )


def _command(*arguments: str) -> None:
    console.print(f"$ python {' '.join(arguments)}", style="dim", markup=False, highlight=False)
    done = subprocess.run([sys.executable, *arguments])
    if done.returncode:
        raise SystemExit(done.returncode)


def main() -> None:
    studies = {study.name: study for study in STUDIES}
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("study", nargs="?", choices=sorted(studies))
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="arms to run (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="tested seeds to run (default: all)")
    parser.add_argument("--workers", type=int, default=2, help="concurrent trainings, one thread each")
    parser.add_argument("--report", action="store_true", help="only report on finished runs")
    parser.add_argument("--write-solutions", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write_solutions:
        write_solutions()
        return
    if arguments.study is None:
        parser.error(f"which study? one of {', '.join(sorted(studies))}")
    study = studies[arguments.study]
    arms = arguments.arms or list(study.arms)
    if unknown := set(arms) - set(study.arms):
        parser.error(
            f"--arms: {', '.join(sorted(unknown))} unknown; the arms of {study.name} are {', '.join(study.arms)}"
        )
    seeds = arguments.seeds or study.seeds
    if unknown := set(seeds) - set(study.seeds):
        parser.error(f"--seeds: {sorted(unknown)} unknown; the tested seeds of {study.name} are {list(study.seeds)}")
    if not arguments.report:
        do(study, arms=arms, seeds=seeds, workers=arguments.workers)
    report(study)


if __name__ == "__main__":
    main()
