"""Critical Token Fine-tuning (arXiv 2510.10974): annotate, train and evaluate on the tokens that decide an answer.

    import cft

    annotation = cft.annotate("data=gsm8k", "model=qwen2.5-0.5b-instruct", annotation="mine", limit=8)
    run = cft.train("mask=critical", **{"data.annotation": "mine"})
    cft.show(annotation.rows()[0])

The functions are those of `cft.api`; nothing heavy is imported before one of them is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cft.api import annotate, compare, evaluate, export, pipeline, push, rl, score, show, train

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "annotate",
    "compare",
    "evaluate",
    "export",
    "pipeline",
    "push",
    "rl",
    "score",
    "show",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'cft' has no attribute {name!r}")
    from cft import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
