"""Defects in training steps, resuming and rows."""

from __future__ import annotations

from experiments.mutants.mutant import Mutant

_MODULE = "tests/training/test_module.py::"

TRAINING = (
    Mutant(
        "mean of means",
        "cft.training.module:CausalLMModule.training_step",
        "torch.stack([term.mean(batch.step_counts) for term in terms]).sum() * scale",
        "terms[0].sum / max(1, terms[0].count)",
        f"{_MODULE}test_accumulation_equals_one_big_batch[4-2]",
    ),
    Mutant(
        "a short step divided by the micro-batches of a full step",
        "cft.training.module:CausalLMModule.training_step",
        "self.trainer.accumulate_grad_batches * self.trainer.world_size",
        "self.trainer.world_size * min(4, self.trainer.num_training_batches - batch_idx // 4 * 4)",
        f"{_MODULE}test_accumulation_equals_one_big_batch[4-2]",
    ),
    Mutant(
        "zero gradients instead of none in a step without eligible tokens",
        "cft.training.module:CausalLMModule.on_before_optimizer_step",
        "parameter.grad = None",
        "parameter.grad = torch.zeros_like(parameter)",
        f"{_MODULE}test_a_step_without_eligible_tokens_moves_nothing",
    ),
    Mutant(
        "dropout stays off",
        "cft.training.module:CausalLMModule.on_fit_start",
        "self.lm.train()",
        "None",
        f"{_MODULE}test_the_model_is_in_training_mode",
    ),
    Mutant(
        "training progress stays 0",
        "cft.training.module:CausalLMModule._progress",
        "min(1.0, self.global_step / steps)",
        "0.0",
        f"{_MODULE}test_every_step_has_the_coefficients_of_its_progress",
    ),
    Mutant(
        "validation uses the current value of a decaying weight",
        "cft.training.module:CausalLMModule.validation_step",
        "self.lm(batch, progress=_VALIDATED_AT)",
        "self.lm(batch, progress=self._progress())",
        f"{_MODULE}test_a_share_that_decays_does_not_choose_the_best_epoch",
    ),
    Mutant(
        "validation uses the current coefficients",
        "cft.training.module:CausalLMModule.on_validation_epoch_end",
        "self._total(sums, counts, progress=_VALIDATED_AT)",
        "self._total(sums, counts, progress=self._progress())",
        f"{_MODULE}test_every_validation_is_of_the_objective_that_training_ends_with",
    ),
    Mutant(
        "a regularizer overwrites another metric",
        "cft.training.module:CausalLMModule.on_before_optimizer_step",
        'f"train/term/{name}"',
        'f"train/{name}"',
        f"{_MODULE}test_a_regularizer_may_be_called_like_another_metric[loss_critical]",
    ),
    Mutant(
        "packed rows attend to each other",
        "cft.training.layout:_by_rows",
        "row_lengths.tolist()",
        "[int(row_lengths.sum())]",
        "tests/training/test_layout.py::test_no_row_sees_another[llama]",
    ),
    Mutant(
        "packed tokens read from the preceding row",
        "cft.training.layout:placed",
        "needed_B.cumsum(0) - needed_B",
        "needed_B.cumsum(0) - needed_B[0]",
        "tests/training/test_layout.py::test_tokens_travel_with_their_rows[packed]",
    ),
    Mutant(
        "a non-finite gradient is applied",
        "cft.training.callbacks.guards:require_finite",
        "not math.isfinite(norm)",
        "False",
        "tests/training/test_guards.py::test_a_step_that_is_not_finite_stops_before_the_optimizer_moves",
    ),
)

RESUME = (
    Mutant(
        "a resumed epoch restarts",
        "cft.data.batches:GlobalOrderSampler.__iter__",
        "done if epoch == self.epoch else 0",
        "0",
        "tests/data/test_batches.py::test_an_interrupted_epoch_goes_on_with_the_steps_that_are_left[in_order]",
    ),
    Mutant(
        "a continued epoch restarts",
        "cft.training.checkpointing.keeper:CheckpointKeeper.on_train_start",
        "sampler.start_at(epoch=position.epoch, step=position.epoch_steps)",
        "None",
        "tests/training/test_resume.py::test_a_training_killed_anywhere_goes_on_to_the_same_bits[on_train_batch_start-4-1-3]",
    ),
    Mutant(
        "a resumed epoch repeats its first dropout masks",
        "cft.training.callbacks.step_seed:SeedEachStep.on_train_batch_start",
        "torch.manual_seed(step_seed(self.seed, epoch=trainer.current_epoch, batch=batch_idx, rank=trainer.global_rank))",
        "batch_idx or torch.manual_seed(self.seed)",
        "tests/training/test_resume.py::test_a_training_killed_anywhere_goes_on_to_the_same_bits[on_train_batch_start-4-1-3]",
    ),
    Mutant(
        "continuing with fewer steps than are done is accepted",
        "cft.training.checkpointing.resume:require_steps_left",
        "0 <= max_steps < position.steps",
        "False",
        "tests/training/test_adapters.py::test_a_run_goes_on_to_more_epochs_or_steps_and_never_to_fewer[-1-9-False]",
    ),
    Mutant(
        "adapters applied to another base model",
        "cft.training.module:CausalLMModule.on_load_checkpoint",
        "hashes[0] != hashes[1]",
        "False",
        "tests/training/test_adapters.py::test_adapters_are_not_put_on_another_base_nor_on_other_modules",
    ),
)

DATA = (
    Mutant(
        "a short last step is dropped",
        "cft.data.batches:GlobalOrderSampler.__iter__",
        "-(-len(order) // step_rows)",
        "len(order) // step_rows",
        "tests/data/test_batches.py::test_a_step_holds_the_same_rows_for_any_split[in_order]",
    ),
    Mutant(
        "counts of the rank instead of the step",
        "cft.data.batches:GlobalOrderSampler.__iter__",
        "MicroBatch(tuple(i for unit in mine for i in rows[unit]), totals, groups)",
        "MicroBatch(own := tuple(i for u in mine for i in rows[u]), sum((self.counts[i] for i in own), StepCounts()), groups)",
        "tests/data/test_batches.py::test_a_step_holds_the_same_rows_for_any_split[by_length]",
    ),
    Mutant(
        "problems of the micro-batch instead of the step",
        "cft.data.batches:GlobalOrderSampler.__iter__",
        "StepCounts(problem=len(units))",
        "StepCounts(problem=self.batch_size)",
        "tests/data/test_groups.py::test_a_group_is_never_split[in_order]",
    ),
    Mutant(
        "a preference loss without its reference",
        "cft.losses.group:DPO.ratio_N",
        "-losses.loss_N - losses.known[REFERENCE_LOGPROB]",
        "-losses.loss_N",
        "tests/losses/test_group_losses.py::test_the_gradient_is_the_formulas[loss=dpo]",
    ),
    Mutant(
        "prompt tokens with loss",
        "cft.data.annotated:to_token_row",
        "weight[prompt_len:] = mask_weights(mask, row)",
        "weight[: len(row.response_ids)] = mask_weights(mask, row)",
        "tests/data/test_data.py::test_weights_probe_and_columns_stand_at_their_tokens",
    ),
    Mutant(
        "statistics include held-out rows",
        "cft.data.annotated:annotated_rows",
        "source.fit([row for row in rows if not is_held_out(row)])",
        "source.fit(rows)",
        "tests/data/test_data.py::test_statistics_are_of_the_training_rows_alone",
    ),
    Mutant(
        "a prompt exchanged with another of the same problem",
        "cft.data.pairing:other_prompts",
        "max(Counter(row.problem_id for row in of_part).values())",
        "1",
        "tests/data/test_data.py::test_no_response_keeps_its_problem_and_every_prompt_is_used_once",
    ),
    Mutant(
        "test problems are trained on",
        "cft.data.annotated:_apart_from_benchmark",
        "not held_out.is_in([row.problem])",
        "row.problem not in exclude",
        "tests/data/test_data.py::test_problems_of_the_benchmark_are_dropped_however_they_are_spelt",
    ),
    Mutant(
        "stored scores of other tokens are used",
        "cft.scores.store:StoredScore.of",
        "values if tokens == tokens_hash(row) else None",
        "values",
        "tests/scores/test_scores.py::test_rows_made_anew_under_old_ids_are_noticed",
    ),
)
