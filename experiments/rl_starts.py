"""Compares starting points of RL, such as a model fine-tuned on critical tokens: `python -m experiments.rl_starts`

Starts: the untrained `tiny_arith`, SFT, CFT, a random mask of CFT's density and DFT, on the same 1,000 rows of the shipped
annotation with the learning rates of `experiments.study`. From each start the same GRPO (`cft rl`, 200 steps of 8 x 8):

    rates   each start with a separate seed, 60 steps at each rate of one grid; the common rate is the one with the better mean
            over starts of pass@1 on validation problems. For a single start the values differ by less than their noise, and 60
            steps favor the higher rate
    runs    seed by seed, so that finished results can be compared: train the start with that seed, test it, run 200 steps, and
            test after 100 and 200 (200 test problems, 100 of them after 100 steps; one greedy response and 8 samples)

Finished runs are skipped, so that the command resumes after an interruption; `--seeds N` limits the seeds.
`python -m experiments.rl_starts_report` reports the finished runs. One process, one thread; needs the extra `rl`.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import cft.api
from cft.console import console
from cft.runs.results import RESULTS, RunResults

OUT = Path("outputs/rl_starts")
STARTS: dict[str, tuple[str, ...]] = {
    "sft": ("mask=all", "optimizer.lr=1e-4"),
    "cft": ("mask=critical", "optimizer.lr=1e-4"),
    "base": (),
    "random": ("mask=random_like_critical", "optimizer.lr=1e-4"),
    "dft": ("mask=all", "weighting=probability", "optimizer.lr=3e-5"),
}
TRAINED = ("experiment=tiny_arith_budget", "validation.problems=60", "evaluation.problems=0", "probe.every_n_steps=0")
SEARCH_SEED = 100
SEEDS = (0, 1, 2, 3, 4)
RATES = (1e-5, 3e-5)  # with 1e-4, accuracy fell by a third within four steps
SEARCH_STEPS, STEPS = 60, 200
MIDDLE = STEPS // 2
TESTED = 200
TEST = (f"limit={TESTED}", "num_samples=8")
TEST_BETWEEN = ("limit=100", "num_samples=8")  # the first 100 test problems
WARM_UP = "schedule.warmup_fraction=0.05"
VALIDATION = ("split=validation", "limit=200", "num_samples=4")


@dataclass(frozen=True, slots=True)
class Case:
    """One start and one seed, used for the start's training and for RL."""

    start: str
    seed: int

    @property
    def folder(self) -> Path:
        return OUT / f"{self.start}-seed{self.seed}"

    def checkpoint(self) -> tuple[str, ...]:
        """Overrides that select the start; trains it if it does not exist yet."""
        if self.start == "base":
            return ()
        folder = self.folder / "start"
        if RunResults.find(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)  # from an interrupted training
            cft.api.train(*STARTS[self.start], *TRAINED, f"seed={self.seed}", *at(folder))
        return (f"checkpoint={folder}",)

    def search(self, rate: float) -> RunResults:
        folder = self.folder / f"search-lr{rate:g}"
        self._rl(folder, rate, steps=SEARCH_STEPS, test=("evaluation.problems=0",))
        return evaluated(folder / "validation", f"checkpoint={folder}", *VALIDATION)

    def run(self, rate: float) -> None:
        evaluated(self.tested(0, rate), *self.checkpoint(), *TEST)
        test = (f"evaluation.problems={TESTED}", "evaluation.num_samples=8", "evaluation.base=false")
        folder = self.rl(rate)
        self._rl(folder, rate, steps=STEPS, test=test)
        evaluated(self.tested(MIDDLE, rate), f"checkpoint={folder}/checkpoints/checkpoint-{MIDDLE}", *TEST_BETWEEN)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)

    def rl(self, rate: float) -> Path:
        return self.folder / f"rl-lr{rate:g}"

    def tested(self, step: int, rate: float) -> Path:
        """Folder of the test after that step."""
        if step == 0:  # the base model is the same for all seeds
            return OUT / "base-step0" if self.start == "base" else self.folder / "step0"
        return self.rl(rate) if step == STEPS else self.folder / f"step{step}-lr{rate:g}"

    def results(self, step: int, rate: float) -> RunResults:
        return RunResults.read(self.tested(step, rate) / RESULTS)

    def finished(self, rate: float) -> bool:
        return all(RunResults.find(self.tested(step, rate)) is not None for step in (0, MIDDLE, STEPS))

    def _rl(self, folder: Path, rate: float, *, steps: int, test: tuple[str, ...]) -> None:
        settings = (
            f"optimizer.lr={rate:g}",
            WARM_UP,
            f"steps={steps}",
            f"save_every_n_steps={MIDDLE}",
            f"seed={self.seed}",
        )
        if RunResults.find(folder) is None:
            cft.api.rl(*self.checkpoint(), *settings, *test, "device=cpu", *at(folder))


def searched(rate: float) -> dict[str, RunResults]:
    """Validation results at a rate, by start."""
    return {start: Case(start, SEARCH_SEED).search(rate) for start in STARTS}


def best_rate() -> float:
    """The rate with the highest mean over starts of pass@1 on validation problems; if equal, the lower rate."""
    found = {
        rate: fmean(results.metrics["eval/pass_at_1"]["value"] for results in searched(rate).values()) for rate in RATES
    }
    return max(sorted(found), key=lambda rate: found[rate])


def at(folder: Path) -> tuple[str, ...]:
    return (f"hydra.run.dir={folder}",)


def evaluated(folder: Path, *words: str) -> RunResults:
    if RunResults.find(folder) is None:
        cft.api.evaluate(*words, "device=cpu", *at(folder))
    return RunResults.read(folder / RESULTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help=f"number of seeds, of {SEEDS}")
    arguments = parser.parse_args()
    rate = best_rate()
    console.print(f"Rate: {rate:g}", markup=False)
    for seed in SEEDS[: arguments.seeds]:
        for start in STARTS:
            Case(start, seed).run(rate)


if __name__ == "__main__":
    main()
