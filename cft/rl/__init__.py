"""Reinforcement learning from a checkpoint: TRL's GRPOTrainer with this package's prompts, verifier and run records."""
