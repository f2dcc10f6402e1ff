"""Reinforcement learning from a checkpoint: TRL's GRPOTrainer with our prompts, our verifier and our records."""
