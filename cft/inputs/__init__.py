"""The inputs of the model at response positions in training: true tokens, or embeddings mixed with those of its guesses."""

from cft.inputs.mixed import Inputs, Mixed, Tokens

__all__ = ["Inputs", "Mixed", "Tokens"]
