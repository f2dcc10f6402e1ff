"""Finds questions that must not be trained on inside other texts."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from cft.data.problem_rows import normalized

_KEY_WORDS = 5  # shorter questions match only whole texts, since inside other texts they would match too often


class HeldOut:
    """Held-out questions of a benchmark, indexed by their first words.

    Args:
        questions: normalized (`cft.data.problem_rows.normalized`).
    """

    def __init__(self, questions: Collection[str]) -> None:
        self.questions = frozenset(questions)
        self._by_start: dict[str, list[str]] = {}
        for question in sorted(self.questions):
            words = question.split(" ")
            if len(words) >= _KEY_WORDS:
                self._by_start.setdefault(" ".join(words[:_KEY_WORDS]), []).append(question)

    def is_in(self, texts: Iterable[str]) -> bool:
        """Whether one of the texts is a held-out question, or contains one."""
        return bool(self.questions) and any(self._holds(normalized(text)) for text in texts)

    def _holds(self, text: str) -> bool:
        if text in self.questions:
            return True
        words = text.split(" ")
        starts = (" ".join(words[i : i + _KEY_WORDS]) for i in range(len(words) - _KEY_WORDS + 1))
        return any(question in text for start in starts for question in self._by_start.get(start, ()))
