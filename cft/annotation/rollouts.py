"""Rollouts: all of the model's responses to each problem, right or wrong, with verdicts and without counterfactual evidence.

Each problem has one greedy response or `num_samples` sampled ones, each a row. Its verdict is right, wrong, cut off or
undecided; log-probs and entropies are the model's own, of the full distribution at temperature 1. A sample's random numbers
depend only on (seed, problem, sample number), not on the batch, shard or worker.

    pass rate of a problem = right / decided responses

Cut-off responses count as decided and wrong. Undecided ones are not counted; the rate is NaN if no response is decided.
`cft/annotation/rolling_out.py` makes rollouts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cft.types import GREEDY, GREEDY_SAMPLE, AnnotatedResponse, Outcome, ResponseVerdict, Sampling

ROLLOUTS: Literal["rollouts"] = "rollouts"  # the value of `responses`
COLUMNS = ("verdict", "sample")  # additional columns of rollouts
VERDICTS: dict[Outcome, ResponseVerdict] = {
    Outcome.RIGHT: "right",
    Outcome.WRONG: "wrong",
    Outcome.CUT_OFF: "cut off",
    Outcome.UNDECIDED: "undecided",
}


@dataclass(frozen=True, slots=True)
class RolloutDesign:
    """How responses are decoded. num_samples: sampled responses per problem, 0 = one greedy response."""

    num_samples: int
    temperature: float
    top_p: float
    seed: int

    def settings(self) -> dict[str, Any]:
        """Settings for the fingerprint, as JSON."""
        return asdict(self) if self.num_samples else {"num_samples": 0}

    def samples(self) -> range:
        """The sample numbers of a problem's responses."""
        return range(self.num_samples) if self.num_samples else range(GREEDY_SAMPLE, GREEDY_SAMPLE + 1)

    def sampling(self, problem_id: str, sample: int) -> Sampling:
        if sample == GREEDY_SAMPLE:
            return GREEDY
        return Sampling(self.temperature, self.top_p, self.seed, f"rollout\x1f{problem_id}\x1f{sample}")


def holds_rollouts(manifest: Mapping[str, Any]) -> bool:
    """Whether the annotation with this manifest holds rollouts."""
    return ROLLOUTS in manifest["fingerprint"]


def pass_rate(verdicts: Iterable[str]) -> float:
    """Fraction of right responses among the decided ones of a problem; NaN if none is decided."""
    decided = [verdict == "right" for verdict in verdicts if verdict != "undecided"]
    return sum(decided) / len(decided) if decided else float("nan")


def pass_rates(rows: Iterable[AnnotatedResponse]) -> dict[str, float]:
    """Pass rates by problem id. rows: all rollouts of the problems."""
    verdicts: dict[str, list[str]] = {}
    for row in rows:
        verdicts.setdefault(row.problem_id, []).append(row.verdict)
    return {problem_id: pass_rate(found) for problem_id, found in verdicts.items()}
