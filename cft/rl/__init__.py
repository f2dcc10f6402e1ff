"""Reinforcement learning from a checkpoint: TRL's GRPOTrainer with this package's prompts, verifiers and run records."""
