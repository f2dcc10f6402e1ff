"""Whether the final answer of a response is right; annotation, accuracy and reward call the same verifier.

A verifier is a plain value: picklable, deterministic, without an error on any model text (`cft.types.Verifier` is the
protocol). It runs in the calling process; `cft/verifiers/pool.py` runs it in worker processes with a hard deadline,
which model text needs (`Math` and `Regex` can take for ever on hostile input). Where a verifier cannot tell, it says
undecided, never wrong.

A verifier of your own: a frozen dataclass with `name`, `version`, `can_be_final`, `__call__` and `final`, in an
importable module. One whose verdict is final once the first answer is complete wraps another: `FirstAnswer`. None needs to
know of thinking: the stages wrap it in `AfterThinking`.
"""

from cft.verifiers.choice import MultipleChoice, Options
from cft.verifiers.code import Code
from cft.verifiers.first_answer import FirstAnswer
from cft.verifiers.instructions import Instructions
from cft.verifiers.math import Math
from cft.verifiers.numeric import Numeric
from cft.verifiers.stripped import Stripped
from cft.verifiers.text import Exact, Regex
from cft.verifiers.thinking import AfterThinking
from cft.verifiers.verdict import BadVerifier, other_verifier_note, verifier_fingerprint

__all__ = [
    "AfterThinking",
    "BadVerifier",
    "Code",
    "Exact",
    "FirstAnswer",
    "Instructions",
    "Math",
    "MultipleChoice",
    "Numeric",
    "Options",
    "Regex",
    "Stripped",
    "other_verifier_note",
    "verifier_fingerprint",
]
