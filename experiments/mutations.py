"""Do the tests bite? Typical mistakes are made one at a time in a copy of the project, and a named test must fail.

python -m experiments.mutations            (about five minutes; exit 1 if a mistake goes unnoticed)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Mutation:
    """Replace `old` by `new` in `file`; `test` must then fail."""

    name: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = (
    Mutation(
        "a resumed epoch that begins anew",
        "cft/data/batches.py",
        "range(done if epoch == self.epoch else 0,",
        "range(0,",
        "tests/training/test_resume.py",
    ),
    Mutation(
        "labels shifted by one",
        "cft/losses/eligible.py",
        "return hidden_BTD[self.row_N, self.position_N - 1]",
        "return hidden_BTD[self.row_N, self.position_N]",
        "tests/losses/test_loss.py::test_labels_are_the_next_token",
    ),
    Mutation(
        "a mean of means",
        "cft/training/module.py",
        "return torch.stack([term.mean(batch.step_counts) for term in terms]).sum() * share",
        "return terms[0].sum / max(1, terms[0].count)",
        "tests/training/test_module.py::test_accumulation_equals_one_big_batch",
    ),
    Mutation(
        "a dropped short window",
        "cft/data/batches.py",
        "return -(-len(self.counts) // (self.batch_size * self.world))",
        "return len(self.counts) // (self.batch_size * self.world)",
        "tests/training/test_module.py::test_batches_conserve_every_token_and_weight",
    ),
    Mutation(
        "a short window divided by the full one's micro-batches",
        "cft/training/module.py",
        "share = self.trainer.accumulate_grad_batches * self.trainer.world_size",
        "share = self.trainer.world_size * min(4, self.trainer.num_training_batches - batch_idx // 4 * 4)",
        "tests/training/test_module.py::test_accumulation_equals_one_big_batch",
    ),
    Mutation(
        "a random mask equal to the critical one",
        "cft/masks/base.py",
        "weights[chosen] = 1.0\n        return weights",
        "return (self.inner(row) > 0).astype(np.float32)",
        "tests/masks/test_masks.py::test_random_like_matches_the_count_row_by_row_and_differs_from_it",
    ),
    Mutation(
        "a cut-off counted as right",
        "cft/verifiers/grader.py",
        "return Outcome.CUT_OFF",
        "return Outcome.RIGHT",
        "tests/annotation/test_counterfactual.py::test_ranks_are_tried_in_order_until_one_is_right",
    ),
    Mutation(
        "a cut-off that never makes a token critical",
        "cft/masks/base.py",
        'if self.cut_off == "wrong":',
        'if self.cut_off != "wrong":',
        "tests/masks/test_masks.py::test_critical_truth_table",
    ),
    Mutation(
        "undecided counted as wrong",
        "cft/masks/base.py",
        "fails_RK = outcome_RK == Outcome.WRONG",
        "fails_RK = (outcome_RK == Outcome.WRONG) | (outcome_RK == Outcome.UNDECIDED)",
        "tests/masks/test_masks.py::test_critical_truth_table",
    ),
    Mutation(
        "zero gradients instead of none in a step without eligible tokens",
        "cft/training/module.py",
        "parameter.grad = None",
        "parameter.grad = torch.zeros_like(parameter)",
        "tests/training/test_module.py::test_a_step_without_eligible_tokens_moves_nothing",
    ),
    Mutation(
        "the weighting lets gradient through",
        "cft/losses/objective.py",
        "logprob_N = logprob_N.detach()",
        "pass",
        "tests/losses/test_loss.py::test_dft_gradient_is_its_closed_form_at_the_logits",
    ),
    Mutation(
        "a regularizer's schedule that stands still",
        "cft/losses/objective.py",
        "regularizer.coefficient(progress)",
        "regularizer.coefficient(0.0)",
        "tests/losses/test_oracle.py::test_the_gradient_is_p_minus_q",
    ),
    Mutation(
        "progress that never begins",
        "cft/training/module.py",
        "return min(1.0, self.global_step / steps) if 0 < steps < math.inf else 0.0",
        "return 0.0",
        "tests/training/test_module.py::test_every_step_has_the_coefficients_of_its_progress",
    ),
    Mutation(
        "a cosine that comes back to where it began",
        "cft/losses/coefficient.py",
        "math.cos(math.pi * progress)",
        "math.cos(2 * math.pi * progress)",
        "tests/losses/test_oracle.py::test_the_gradient_is_p_minus_q",
    ),
    Mutation(
        "a decaying share validated as of now",
        "cft/training/module.py",
        "self.lm(batch, progress=_VALIDATED_AT)",
        "self.lm(batch, progress=self._progress())",
        "tests/training/test_module.py::test_a_share_that_decays_does_not_choose_the_best_epoch",
    ),
    Mutation(
        "coefficients validated as of now",
        "cft/training/module.py",
        "progress=_VALIDATED_AT), prog_bar=True",
        "progress=self._progress()), prog_bar=True",
        "tests/training/test_module.py::test_every_validation_is_of_the_objective_that_training_ends_with",
    ),
    Mutation(
        "a regularizer logged in another metric's place",
        "cft/training/module.py",
        "train/term/{name}",
        "train/{name}",
        "tests/training/test_module.py::test_a_regulariser_may_be_called_like_another_metric",
    ),
    Mutation(
        "a sequence's ratio bounded before the temperature",
        "cft/weightings/row.py",
        "(self.temperature * mean_N).exp().clamp_max(self.largest)",
        "mean_N.exp().clamp_max(self.largest).pow(self.temperature)",
        "tests/losses/test_oracle.py::test_the_gradient_is_p_minus_q",
    ),
    Mutation(
        "attention mixed in by half whatever its share",
        "cft/weightings/row.py",
        "(1 - self.gamma) * scores.known[ATTENTION]",
        "0.5 * scores.known[ATTENTION]",
        "tests/losses/test_oracle.py::test_the_gradient_is_p_minus_q",
    ),
    Mutation(
        "a limit that does not count the kept part",
        "cft/engines/reference.py",
        'if len(ids) - fork.sequence.prompt_len >= budget.max_new_tokens:\n        return "length"',
        'if len(ids) - fork.prefix_len >= budget.max_new_tokens:\n        return "length"',
        "tests/engines/test_rollout.py::test_reference_equals_transformers_generate",
    ),
    Mutation(
        "a fork that sees a token of its sequence beyond the cut",
        "cft/engines/attention.py",
        "hidden_mL = position_L[None] >= torch.tensor(visible",
        "hidden_mL = position_L[None] > torch.tensor(visible",
        "tests/engines/test_shared_prefix.py::test_ids_equal_the_references",
    ),
    Mutation(
        "prefix and tail joined half and half",
        "cft/engines/attention.py",
        "weight = torch.sigmoid(lse - lse_Nhg1[shared.index])",
        "weight = torch.full_like(lse, 0.5)",
        "tests/engines/test_shared_prefix.py::test_ids_equal_the_references",
    ),
    Mutation(
        "joined tails that look at each other's padding",
        "cft/engines/attention.py",
        "whole.ragged |= one.ragged or other.ragged",
        "whole.ragged = one.ragged and other.ragged",
        "tests/engines/test_shared_prefix.py::test_joined_tails_are_what_they_were_apart",
    ),
    Mutation(
        "near ties left to the batch",
        "cft/engines/shared_prefix.py",
        "            if tie:\n",
        "            if tie and False:\n",
        "tests/engines/test_rollout.py::test_near_ties_are_settled_by_the_reference",
    ),
)


def noticed(mutation: Mutation, copy: Path) -> bool:
    """Whether the named test fails (and not merely cannot be run) with the mistake in place."""
    path = copy / mutation.file
    original = path.read_text(encoding="utf-8")
    if original.count(mutation.old) != 1:
        raise SystemExit(
            f"{mutation.name}: {mutation.file} holds the line {original.count(mutation.old)} times, expected 1"
        )
    path.write_text(original.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", mutation.test]
        environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    finally:
        path.write_text(original, encoding="utf-8")
    return done.returncode == 1 and " failed" in done.stdout


def main() -> None:
    unnoticed = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        ignore = shutil.ignore_patterns(".venv", ".git", "outputs", "*.egg-info", "__pycache__")
        shutil.copytree(ROOT, copy, ignore=ignore)
        for mutation in MUTATIONS:
            bites = noticed(mutation, copy)
            print(f"{'noticed  ' if bites else 'UNNOTICED'}  {mutation.name}  <-  {mutation.test}", flush=True)
            unnoticed += [] if bites else [mutation.name]
    raise SystemExit(1 if unnoticed else 0)


if __name__ == "__main__":
    main()
