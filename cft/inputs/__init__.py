"""What the model reads at response positions during training: the true tokens, or embeddings mixed with its own guesses."""

from cft.inputs.mixed import Inputs, Mixed, Tokens

__all__ = ["Inputs", "Mixed", "Tokens"]
