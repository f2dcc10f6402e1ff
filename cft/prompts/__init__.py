"""Converts questions and conversations to token ids."""

from cft.prompts.chat import Chat, Plain, Prompt, PromptError

__all__ = [
    "Chat",
    "Plain",
    "Prompt",
    "PromptError",
]
