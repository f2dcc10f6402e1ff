"""TRL's GRPOTrainer, built from the configuration.

It differs from TRL in two ways. First, prompts are passed as token ids made once by `cft/prompts/chat.py`, so that a second
tokenization of a rendered text cannot differ from them. Second, with grpo.token_mask=critical, the advantage of a response is
expanded to one per token, 0 for tokens without loss; TRL accepts advantages of either shape. The loss denominator, the KL term,
the entropy and the sequence-level ratio still use all tokens, as with `top_entropy_quantile`.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cft.config.build import ConfigError
from cft.config.schema import RlConfig
from cft.models.lazy import LazyModel
from cft.rl.critical import CriticalTokens, same_weights
from cft.rl.problems import Asked, rows_of
from cft.training.parameter_groups import factory_of

if TYPE_CHECKING:
    from transformers import TrainerCallback

_OVERRIDDEN = ("_tokenize_prompts", "_generate_and_score_completions")  # of GRPOTrainer
_SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def settings_of_trl(cfg: RlConfig, *, device: str) -> dict[str, Any]:
    """Arguments of GRPOConfig that the configuration sets; others keep TRL's defaults. device: "cpu" or "cuda:N"."""
    rollout, grpo = cfg.rollout, cfg.grpo
    return {
        "seed": cfg.seed,
        "max_steps": cfg.steps,
        "per_device_train_batch_size": cfg.micro_batch_size,
        "gradient_accumulation_steps": rollout.problems_per_step * rollout.num_generations // cfg.micro_batch_size,
        "num_generations": rollout.num_generations,
        "max_completion_length": rollout.max_new_tokens,
        "temperature": rollout.temperature,
        "top_p": rollout.top_p,
        "loss_type": grpo.loss_type,
        "beta": grpo.beta,
        "epsilon": grpo.epsilon,
        "epsilon_high": grpo.epsilon_high,
        "num_iterations": grpo.num_iterations,
        "scale_rewards": grpo.scale_rewards,
        "importance_sampling_level": grpo.importance_sampling_level,
        "top_entropy_quantile": grpo.top_entropy_quantile,
        "mask_truncated_completions": grpo.mask_truncated_completions,
        "learning_rate": cfg.optimizer["lr"],
        "lr_scheduler_type": _SCHEDULES[cfg.schedule.shape],
        "warmup_steps": round(cfg.schedule.warmup_fraction * cfg.steps),
        "max_grad_norm": cfg.max_grad_norm,
        "bf16": cfg.precision == "bf16-mixed",
        "use_cpu": device == "cpu",
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "logging_first_step": True,
        "save_strategy": "steps",
        "save_steps": cfg.save_every_n_steps,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
    }


def grpo_trainer(
    cfg: RlConfig,
    model: LazyModel,
    asked: Asked,
    *,
    folder: Path,
    device: str,
    reward: Callable[..., list[float | None]],
    callbacks: list[TrainerCallback],
    critical: CriticalTokens | None = None,
) -> Any:
    """Build the trainer.

    Args:
        cfg: The configuration.
        model: The policy.
        asked: The problems.
        folder: For checkpoints.
        device: "cpu" or "cuda:N".
        reward: The reward function.
        callbacks: TRL callbacks.
        critical: Selects the tokens with loss, None = all.

    Raises:
        ConfigError: TRL refuses a setting, or the installed version of TRL is not supported.
    """
    from datasets import Dataset
    from transformers import PrinterCallback, set_seed
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports] - an extra

    if not all(callable(getattr(GRPOTrainer, name, None)) for name in _OVERRIDDEN):
        raise ConfigError(
            "cft rl: this version of trl handles prompts differently; install one that is known to work: trl==1.16.0"
        )

    class WithOurPrompts(GRPOTrainer):
        def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
            return [asked.prompts[name] for name in prompts], None, {}

        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            found = super()._generate_and_score_completions(inputs)
            if critical is not None:
                weights = self.accelerator.unwrap_model(self.model).state_dict()
                names = [row["prompt"] for row in inputs]
                found["advantages"] = critical.spread(found, names, weights=weights, step=self.state.global_step)
            return found

    logging.getLogger(GRPOTrainer.__module__).addFilter(_no_surprise)
    set_seed(cfg.seed)
    policy = model.load()
    policy.config._name_or_path = model.source  # TRL loads the reference model from here; its weights are set below
    try:
        args = GRPOConfig(output_dir=str(folder), **settings_of_trl(cfg, device=device))
    except ValueError as error:
        raise ConfigError(f"cft rl: TRL refuses these settings: {error}") from error
    optimizer = factory_of(cfg.optimizer)([p for p in policy.parameters() if p.requires_grad])
    trainer = WithOurPrompts(
        policy,
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_dict(rows_of(asked)),
        processing_class=copy.deepcopy(model.tokenizer),  # a copy, since TRL adds a padding token
        callbacks=callbacks,
        optimizers=(optimizer, None),
    )
    trainer.remove_callback(PrinterCallback)
    if trainer.ref_model is not None:
        same_weights(policy.state_dict(), trainer.accelerator.unwrap_model(trainer.ref_model))
    return trainer


def _no_surprise(record: logging.LogRecord) -> bool:
    """Log filter: TRL would print the text of each response without a reward (undecided); train/undecided_rate counts them."""
    return "All reward functions returned None" not in record.getMessage()
