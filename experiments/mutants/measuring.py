"""Defects in verdicts, statistics and configuration."""

from __future__ import annotations

from experiments.mutants.mutant import Mutant

GRADING = (
    Mutant(
        "the last number of a cut-off text is an answer",
        "cft.verifiers.grader:Grader.__call__",
        '"" if outcome == Outcome.CUT_OFF else verdicts[item].extracted',
        "verdicts[item].extracted",
        "tests/annotation/test_counterfactual.py::test_ranks_are_tried_in_order_until_one_is_right",
    ),
    Mutant(
        "a verifier failure on a cut-off text counts as wrong",
        "cft.verifiers.grader:outcome_of",
        "not verdict.failed",
        "True",
        "tests/annotation/test_counterfactual.py::test_a_verifier_that_failed_on_a_cut_off_text_leaves_it_undecided",
    ),
    Mutant(
        "items after a failure are lost",
        "cft.verifiers.pool:VerifierPool._replace",
        "waiting.extendleft(reversed(worker.pending))",
        "None",
        "tests/verifiers/test_pool.py::test_a_fault_makes_its_own_item_undecided_and_no_other",
    ),
    Mutant(
        "tuples compared regardless of order",
        "cft.verifiers.compare:_Comparison._in_order",
        "zip(gold, answer, strict=True)",
        "zip(sorted(gold), sorted(answer), strict=True)",
        "tests/verifiers/test_compare.py::test_sets_forget_the_order_and_tuples_keep_it",
    ),
    Mutant(
        "FirstAnswer reads a later answer",
        "cft.verifiers.first_answer:FirstAnswer.__call__",
        "self.inner(response[:end], answer)",
        "self.inner(response, answer)",
        "tests/verifiers/test_first_answer.py::test_a_second_thought_is_not_read",
    ),
    Mutant(
        "two verifiers with the same fingerprint",
        "cft.verifiers.verdict:_described",
        '{"name": identity.name, "version": identity.version, "args": arguments}',
        '{"name": identity.name, "version": identity.version, "args": {}}',
        "tests/verifiers/test_verifiers.py::test_a_fingerprint_distinguishes_name_version_and_arguments_apart",
    ),
    Mutant(
        "an answer inside unfinished thinking is graded",
        "cft.verifiers.thinking:AfterThinking.__call__",
        "seen.thinking and not self.inner.final(seen.text)",
        "False",
        "tests/verifiers/test_thinking.py::test_an_answer_in_thinking_is_none",
    ),
    Mutant(
        "final before it is known whether the text is thinking",
        "cft.verifiers.thinking:AfterThinking.final",
        "seen.marked and self.inner.final(seen.text[: max(0, len(seen.text) - open_end)])",
        "self.inner.final(seen.text[: max(0, len(seen.text) - open_end)])",
        "tests/verifiers/test_thinking.py::test_the_first_answer_is_the_first_outside_of_thinking",
    ),
    Mutant(
        "the right option of GPQA always first",
        "cft.benchmarks.choice_rows:gpqa",
        "sorted([right, *wrong], key=place)",
        "[right, *wrong]",
        "tests/benchmarks/test_more_benchmarks.py::test_the_order_of_gpqa_is_that_of_a_hash_and_says_nothing_of_the_answer",
    ),
    Mutant(
        "a program that exits with status 0 is right",
        "cft.locked.session:_report",
        'Report("wrong", f"the program ended itself ({ending})")',
        'Report("right", f"the program ended itself ({ending})")',
        "tests/verifiers/test_code.py::test_why",
    ),
)

STATISTICS = (
    Mutant(
        "pass@k estimated with replacement",
        "cft.evaluation.metrics:pass_at_k",
        "float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))",
        "1.0 - (1.0 - c / n) ** k",
        "tests/evaluation/test_evaluation.py::test_metrics_of_counted_samples",
    ),
    Mutant(
        "the right answer wins every tie of the vote",
        "cft.evaluation.metrics:maj_at_k",
        "(_RIGHT in winners) / len(winners)",
        "float(_RIGHT in winners)",
        "tests/evaluation/test_metrics.py::test_maj_at_k_counts_equal_numbers_together",
    ),
    Mutant(
        "interval ignores the variance over seeds",
        "cft.evaluation.intervals:deviations",
        "over_problems + seed_deviations(values_SP, resamples=resamples, rng=rng)",
        "over_problems",
        "tests/evaluation/test_intervals.py::test_two_way_is_wider_than_problems_alone_where_seeds_differ_and_equal_with_one_seed",
    ),
    Mutant(
        "paired seeds resampled independently",
        "cft.evaluation.intervals:paired_draws",
        "seed_deviations(a_SP - b_SP, resamples=resamples, rng=rng)",
        "sum(seed_deviations(x, resamples=resamples, rng=rng) for x in (a_SP, b_SP))",
        "tests/evaluation/test_intervals.py::test_unpaired_seeds_are_drawn_apart",
    ),
    Mutant(
        "zero-width interval for none right of a hundred",
        "cft.evaluation.intervals:is_rate",
        "np.isin(found, RATE).mean() >= 0.5",
        "False",
        "tests/evaluation/test_intervals.py::test_none_right_and_all_right_leave_an_interval_as_wide_as_clopper_and_pearsons[0-100-1]",
    ),
    Mutant(
        "one-sided p-value",
        "cft.evaluation.paired_tests:mcnemar",
        "2 * tail / 2**discordant",
        "tail / 2**discordant",
        "tests/evaluation/test_paired_tests.py::test_mcnemar_survives_many_problems",
    ),
    Mutant(
        "Holm-corrected p-values are not monotone",
        "cft.evaluation.paired_tests:holm",
        "max(highest, min(1.0, (len(order) - rank) * p_values[i]))",
        "min(1.0, (len(order) - rank) * p_values[i])",
        "tests/evaluation/test_paired_tests.py::test_holm_rejects_what_closed_testing_with_bonferroni_rejects",
    ),
    Mutant(
        "a problem without room in the context counts as run",
        "cft.evaluation.room:room_for",
        "tuple(problem for problem, room in of if room >= 1)",
        "tuple(problem for problem, room in of)",
        "tests/evaluation/test_evaluation.py::test_a_problem_without_room_is_not_run_and_never_wrong",
    ),
)

CONFIGURATION = (
    Mutant(
        "a misspelled key is ignored",
        "cft.config.check:_check_record",
        "name not in keys",
        "False",
        "tests/config/test_command_line.py::test_a_misspelt_key_at_the_top_of_a_stage_file_is_found",
    ),
    Mutant(
        "true is accepted as the number one",
        "cft.ranges:fits",
        "isinstance(found, bool) == isinstance(value, bool)",
        "True",
        "tests/config/test_source.py::test_annotations_of_every_simple_kind",
    ),
    Mutant(
        "objects of any package can be built",
        "cft.config.allow_list:_refused_definition",
        "not name.startswith((*OWN, *LIBRARIES, *extra))",
        "False",
        "tests/config/test_command_line.py::test_a_dangerous_target_is_refused_by_name_and_never_built",
    ),
    Mutant(
        "half-precision weights are trained",
        "cft.config.rules:_trained_in_float32",
        '("float32", "bfloat16") if frozen else ("float32",)',
        '("float32", "bfloat16")',
        "tests/config/test_library_rules.py::test_weights_are_trained_in_float32",
    ),
    Mutant(
        "a secret in a nested list is not removed",
        "cft.config.redaction:redacted",
        "[redacted(v, key=key) for v in value]",
        "list(value)",
        "tests/config/test_command_line.py::test_planted_secrets_are_redacted_everywhere",
    ),
    Mutant(
        "a missing reference is not reported",
        "cft.config.needs:unmet",
        "need in needs and given is not None and need not in given",
        "False",
        "tests/config/test_command_line.py::test_a_typical_mistake_is_named_with_its_remedy[a reference that is not chosen]",
    ),
)
