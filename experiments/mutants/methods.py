"""Defects in losses, masks and weightings."""

from __future__ import annotations

from experiments.mutants.mutant import Mutant

_ORACLE = "tests/losses/test_oracle.py::test_the_gradient_is_p_minus_q"
_MODULE = "tests/training/test_module.py::"

LOSS = (
    Mutant(
        "labels shifted by one",
        "cft.losses.eligible:eligible_tokens",
        "batch.input_ids_BT[row_N, position_N]",
        "batch.input_ids_BT[row_N, before_N]",
        "tests/losses/test_loss.py::test_labels_are_the_next_token",
    ),
    Mutant(
        "other tokens counted as critical",
        "cft.losses.eligible:EligibleTokens.on",
        '1 if where == "critical" else 0',
        "1",
        f"{_ORACLE}[loss=nll_entropy]",
    ),
    Mutant(
        "reference gets other tokens than the policy",
        "cft.losses.objective:_restricted",
        "prediction.reference_NV[on_C]",
        "prediction.reference_NV[: int(on_C.sum())]",
        f"{_ORACLE}[regularizer=kl_to_reference loss.regularizers.extra.where=critical]",
    ),
    Mutant(
        "gradient flows through the weighting",
        "cft.weightings.token:Weighting",
        "detached: bool = True",
        "detached: bool = False",
        "tests/losses/test_loss.py::test_dft_gradient_is_its_closed_form_at_the_logits",
    ),
    Mutant(
        "a regularizer's schedule stays constant",
        "cft.losses.objective:Objective.__call__",
        "regularizer.coefficient(progress)",
        "regularizer.coefficient(0.0)",
        f"{_MODULE}test_every_step_has_the_coefficients_of_its_progress",
    ),
    Mutant(
        "rows without an eligible token counted",
        "cft.losses.objective:Objective.__call__",
        "int((tokens_B > 0).sum())",
        "tokens.num_rows",
        "tests/losses/test_loss.py::test_counts_of_the_normalizers",
    ),
    Mutant(
        "cosine schedule returns to its initial value",
        "cft.losses.coefficient:Coefficient.__call__",
        "math.cos(math.pi * progress)",
        "math.cos(2 * math.pi * progress)",
        "tests/losses/test_coefficient.py::test_cosine_begins_and_ends_slowly_and_never_turns_back",
    ),
    Mutant(
        "the better group instead of the worse one",
        "cft.losses.aggregation:WorstGroup.__call__",
        "mean_BG.masked_fill(tokens_BG == 0, -torch.inf).max(-1)",
        "mean_BG.masked_fill(tokens_BG == 0, torch.inf).min(-1)",
        f"{_ORACLE}[loss=sft_go]",
    ),
    Mutant(
        "KL divergence reversed",
        "cft.losses.regularizers:KLFromReference.__call__",
        "reference_NV.exp()",
        "prediction.logprob_NV.exp()",
        f"{_ORACLE}[loss=asft]",
    ),
    Mutant(
        "label smoothing summed over the vocabulary",
        "cft.losses.target:LabelSmoothing.__call__",
        "prediction.logprob_NV.mean(-1)",
        "prediction.logprob_NV.sum(-1)",
        f"{_ORACLE}[loss=label_smoothing]",
    ),
)

MASKS = (
    Mutant(
        "random mask equals the critical mask",
        "cft.masks.controls:RandomLike.__call__",
        "weights[chosen] = 1.0\nreturn weights",
        "return (self.inner(row) > 0).astype(np.float32)",
        "tests/masks/test_masks.py::test_random_like_matches_the_count_row_by_row_and_differs_from_it",
    ),
    Mutant(
        "a cut-off alternative never makes a token critical",
        "cft.masks.critical:Critical.counts_RK",
        'self.cut_off == "wrong"',
        'self.cut_off != "wrong"',
        "tests/masks/test_masks.py::test_a_cut_off_counted_as_right_would_change_the_mask",
    ),
    Mutant(
        "undecided counted as wrong",
        "cft.masks.critical:Critical.counts_RK",
        "outcome_RK == Outcome.WRONG",
        "(outcome_RK == Outcome.WRONG) | (outcome_RK == Outcome.UNDECIDED)",
        "tests/masks/test_masks.py::test_critical_truth_table",
    ),
    Mutant(
        "more alternatives than requested are used",
        "cft.masks.critical:OutcomeRule.__call__",
        "row.alt_outcome[:, : self.num_alternatives]",
        "row.alt_outcome",
        "tests/masks/test_masks.py::test_first_k_alternatives_decide",
    ),
    Mutant(
        "complement includes tokens without evidence",
        "cft.masks.controls:Complement.__call__",
        "self.inner.known(row)",
        "np.ones(len(row.response_ids), dtype=np.bool_)",
        "tests/masks/test_projected_mask.py::test_a_row_without_a_partner_has_no_token_in_the_complement_either",
    ),
    Mutant(
        "an untested position counts as not critical",
        "cft.masks.critical:OutcomeRule.__call__",
        'self.untried == "refuse"',
        "False",
        "tests/masks/test_untried.py::test_positions_that_were_not_tried_are_refused_or_left_out_by_choice",
    ),
    Mutant(
        "number of selected tokens rounded down",
        "cft.masks.ranked:top_of_row",
        "math.ceil(fraction * len(values_R) - 1e-9)",
        "int(fraction * len(values_R))",
        "tests/masks/test_ranked_masks.py::test_the_top_of_a_row_is_that_of_a_sort",
    ),
    Mutant(
        "boilerplate selected instead of reasoning",
        "cft.masks.ranked:Reasoning.__call__",
        "self.shuffled(row) - self.base(row)",
        "self.base(row) - self.shuffled(row)",
        "tests/masks/test_ranked_masks.py::test_boilerplate_is_what_shuffled_training_makes_likelier",
    ),
)

WEIGHTINGS = (
    Mutant(
        "sequence ratio clipped before the temperature",
        "cft.weightings.row:SequenceRatio.__call__",
        "(self.temperature * mean_N).exp().clamp_max(self.largest)",
        "mean_N.exp().clamp_max(self.largest).pow(self.temperature)",
        f"{_ORACLE}[weighting=iw_sft weighting.temperature=0.5 weighting.largest=0.7]",
    ),
    Mutant(
        "attention always mixed in with weight 1/2",
        "cft.weightings.row:SSToken.__call__",
        "(1 - self.gamma) * scores.known[ATTENTION]",
        "0.5 * scores.known[ATTENTION]",
        f"{_ORACLE}[weighting=sstoken weighting.gamma=0.085]",
    ),
    Mutant(
        "selection ranked within the batch",
        "cft.weightings.statistics:TokenScores.top_of_row",
        "by_value[self.row_N[by_value].argsort(stable=True)]",
        "by_value",
        "tests/weightings/test_weighting.py::test_a_selection_ranks_within_rows_and_the_earlier_of_equals_wins",
    ),
    Mutant(
        "loss of a selection divided by all tokens",
        "cft.weightings.row:mean_over_selected",
        "scores.row_sum(chosen_N).clamp_min(1)",
        "scores.row_sum(torch.ones_like(chosen_N))",
        "tests/weightings/test_weighting.py::test_the_mean_over_the_selected",
    ),
    Mutant(
        "propagation crosses gaps",
        "cft.weightings.row:Propagation.__call__",
        "self.gamma**step * later_BT",
        "self.gamma * later_BT",
        "tests/weightings/test_weighting.py::test_propagation_counts_a_gap_as_distance",
    ),
    Mutant(
        "a product detaches all of its factors",
        "cft.weightings.token:Product.__call__",
        "constant if factor.detached else scores",
        "constant",
        f"{_ORACLE}[weighting=product weighting@weighting.factors.second=focal]",
    ),
)
