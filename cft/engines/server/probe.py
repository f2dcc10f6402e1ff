"""The probe: a server's log-probs after fixed prompts. It identifies weights that cannot be read.

It is stored in an annotation's fingerprint, and must match when the annotation is resumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cft.engines.factory import EngineError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPTS = (
    "The capital of France is",
    "1 + 1 = 2\n2 + 2 = 4\n3 + 3 =",
    "Question: Tom has 7 apples and eats 3. How many are left?\nAnswer:",
    "def fibonacci(n):\n    if n < 2:\n        return",
    "Once upon a time there was a",
    "Im Jahr 1989 fiel die Berliner",
    "Therefore the answer is \\boxed{",
    "To be, or not to be, that is the",
)
PROBED = 5  # most probable tokens of each prompt in the probe
# Mean over a probe, in nats. A server's own noise in half precision is a few hundredths; other weights differ by tenths.
SAME_PROBE = 0.05

Probe = list[list[list[float]]]  # by prompt: [id, log-prob] of its most probable next tokens


def prompts_for(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Ids of the fixed prompts. A small vocabulary may map many characters to one token, which does not matter."""
    return [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in PROMPTS]


def probes_differ(one: Probe, other: Probe) -> float:
    """Mean difference of log-probs, nats; a token that is missing in one probe counts with that probe's lowest log-prob."""
    gaps = []
    for left, right in zip(one, other, strict=True):
        a, b = {int(t): p for t, p in left}, {int(t): p for t, p in right}
        least_a, least_b = min(a.values()), min(b.values())
        gaps += [abs(a.get(token, least_a) - b.get(token, least_b)) for token in {*a, *b}]
    return sum(gaps) / len(gaps)


def with_stored_probe(found: Mapping[str, Any], stored: Mapping[str, Any], *, of: str) -> dict[str, Any]:
    """Replace an engine's probe with the stored one if they differ only by a server's own noise.

    Args:
        found: Facts of the engine, with or without a probe.
        stored: Facts of the annotation, with or without a probe.
        of: Name of the annotation, for the message.

    Raises:
        EngineError: The probes differ by more, so that the weights are not the same.
    """
    if "probe" not in found or "probe" not in stored:
        return dict(found)
    gap = probes_differ(found["probe"], stored["probe"])
    if gap > SAME_PROBE:
        raise EngineError(
            f"engine.url: the servers serve other weights than those that {of} was made with: log-probs after fixed prompts "
            f"differ by {gap:.2f} nats on average, expected at most {SAME_PROBE}. Serve the same model in the same precision, "
            "or give the new annotation another name (annotation=...)"
        )
    return {**found, "probe": stored["probe"]}
