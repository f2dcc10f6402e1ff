"""Selects the attention implementation of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel


def uses_flash(model: PreTrainedModel) -> bool:
    return "flash" in (model.config.get_text_config(decoder=True)._attn_implementation or "")


@contextmanager
def usable_attention(model: PreTrainedModel, *, mixed: bool = False) -> Iterator[None]:
    """Within this context, SDPA replaces flash attention where the latter does not work: on a CPU and in float32.

    mixed: the pass runs under autocast. In mixed-precision training the weights are float32, and only training steps run under
    autocast.
    """
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    if uses_flash(model) and (model.device.type == "cpu" or (model.dtype.itemsize >= 4 and not mixed)):
        config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = before
