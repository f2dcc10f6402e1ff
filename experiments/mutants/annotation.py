"""Defects in engines, counterfactuals and the annotation store."""

from __future__ import annotations

from experiments.mutants.mutant import Mutant

_STORE = "tests/annotation/test_store.py::"
_ENGINE = "tests/engines/test_shared_prefix.py::"

ENGINES = (
    Mutant(
        "token limit ignores the kept part",
        "cft.engines.reference:finish_of",
        "len(ids) - fork.sequence.prompt_len >= fork.limit(budget)",
        "len(ids) - fork.prefix_len >= fork.limit(budget)",
        "tests/engines/test_rollout.py::test_reference_equals_transformers_generate",
    ),
    Mutant(
        "fork attends to a token beyond its prefix_len",
        "cft.engines.attention:Shared.of",
        "position_L[None] >= torch.tensor(visible, device=first.device)[:, None]",
        "position_L[None] > torch.tensor(visible, device=first.device)[:, None]",
        f"{_ENGINE}test_attention_over_a_shared_prefix_equals_the_softmax_over_what_is_visible[product by product]",
    ),
    Mutant(
        "prefix and suffix attention averaged with weight 1/2",
        "cft.engines.attention:fork_attention",
        "torch.sigmoid(lse - lse_Nhg1[shared.index])",
        "torch.full_like(lse, 0.5)",
        f"{_ENGINE}test_ids_equal_the_references[llama]",
    ),
    Mutant(
        "merged KV blocks attend to padding",
        "cft.engines.attention:joined",
        "whole.ragged |= one.ragged or other.ragged",
        "whole.ragged = one.ragged and other.ragged",
        f"{_ENGINE}test_joined_tails_are_what_they_were_apart[1]",
    ),
    Mutant(
        "removing a fork corrupts the mask of another",
        "cft.engines.attention:KVBlock.remove",
        "self.mask_nT[index] = self.mask_nT[last]",
        "pass",
        f"{_ENGINE}test_joined_tails_are_what_they_were_apart[1]",
    ),
    Mutant(
        "near ties not re-scored",
        "cft.engines.shared_prefix:SharedPrefixEngine._step",
        "token = self.reference.rescore(row.ids, row.fork, uniform=row.uniform())",
        "pass",
        "tests/engines/test_rollout.py::test_what_the_reference_settles_is_what_is_taken",
    ),
    Mutant(
        "preempted forks get other random numbers",
        "cft.engines.shared_prefix:Row.restarted",
        "Row.start(self.fork, random=self.random)",
        "Row.start(self.fork, random=self.random[::-1])",
        f"{_ENGINE}test_memory_beyond_the_budget_makes_forks_wait_and_changes_nothing",
    ),
    Mutant(
        "a preempted fork is lost",
        "cft.engines.scheduler:Scheduler._preempt",
        "self._wait(only.rows[half:])",
        "self._wait(only.rows[half + 1 :])",
        f"{_ENGINE}test_out_of_memory_halves_the_batch_and_goes_on[cpu]",
    ),
    Mutant(
        "a prefix in use is evicted",
        "cft.engines.scheduler:Scheduler._evict_prefixes",
        "key not in used",
        "True",
        f"{_ENGINE}test_memory_beyond_the_budget_makes_forks_wait_and_changes_nothing",
    ),
    Mutant(
        "attention plan still contains removed rows",
        "cft.engines.scheduler:Scheduler.left",
        "self._plan = None",
        "pass",
        f"{_ENGINE}test_a_source_that_has_seen_enough_ends_a_fork",
    ),
    Mutant(
        "nucleus without the token that reaches top_p",
        "cft.engines.sampling:_nucleus",
        "before_NK < top_p",
        "share_NK.cumsum(-1) < top_p",
        "tests/engines/test_rollout.py::test_a_batch_of_samples_equals_the_definition[20-2.0]",
    ),
)

ANNOTATION = (
    Mutant(
        "the own token is an alternative",
        "cft.annotation.counterfactual:alternatives",
        "eos if own in eos else {own}",
        "eos",
        "tests/annotation/test_counterfactual.py::test_alternatives_leave_out_the_own_token_wherever_it_ranks",
    ),
    Mutant(
        "speculative results are lost",
        "cft.annotation.counterfactual:CounterfactualSource.receive",
        "self._early[cell] = completion",
        "pass",
        "tests/annotation/test_counterfactual.py::test_starting_the_next_rank_early_changes_no_evidence",
    ),
    Mutant(
        "cut-off counted as right",
        "cft.verifiers.grader:outcome_of",
        "Outcome.CUT_OFF",
        "Outcome.RIGHT",
        "tests/annotation/test_counterfactual.py::test_cut_off_is_a_code_of_its_own",
    ),
    Mutant(
        "a damaged file is read",
        "cft.annotation.store:AnnotationStore._table",
        'found != record["sha256"]',
        "False",
        f"{_STORE}test_a_damaged_shard_is_refused_with_both_hashes_and_the_way_out",
    ),
    Mutant(
        "units made under other conditions are reused",
        "cft.annotation.store:AnnotationStore._require_made_under",
        'record.get("fingerprint") != fingerprint_sha256',
        "False",
        f"{_STORE}test_units_of_other_conditions_are_never_taken_over",
    ),
    Mutant(
        "a unit is deleted before it is replaced",
        "cft.annotation.store:AnnotationStore.commit",
        "before = self._record(unit) if path.exists() else None",
        "before = self._record(unit) if path.exists() else None\npath.unlink(missing_ok=True)",
        f"{_STORE}test_a_full_disk_leaves_the_unit_as_it_was[0-1]",
    ),
    Mutant(
        "a missing unit is not reported",
        "cft.annotation.store:AnnotationStore._whole",
        "len(units) < counted",
        "False",
        f"{_STORE}test_a_unit_that_the_manifest_counts_is_there_or_named",
    ),
    Mutant(
        "a unit belongs to no shard",
        "cft.annotation.shards:Shard.has",
        "unit % self.count == self.index",
        "unit % self.count == self.index > 0",
        "tests/annotation/test_shards.py::test_shards_one_after_another_in_any_order[3]",
    ),
    Mutant(
        "a running shard counts as finished",
        "cft.annotation.shards:Part.state",
        "{other.index for other in at_work}",
        "set()",
        "tests/annotation/test_shards.py::test_who_is_still_at_work_is_not_done",
    ),
    Mutant(
        "gaps of interrupted shards are not filled",
        "cft.annotation.units:Plan.units",
        "max([self.asked, *reached])",
        "self.asked",
        "tests/annotation/test_units.py::test_what_is_left_to_annotate",
    ),
)
