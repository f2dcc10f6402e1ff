"""What is wrong with groups of parameters that no single key tells: patterns that are none, and two groups for the rest.

Which parameters a pattern matches is known once the model is there (`cft/training/parameter_groups.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from cft.ranges import show

OTHERS = "others"  # the name of what no pattern matches, where no group asks for it
_FORM = "{match: a regular expression over parameters' names, lr_multiplier: a number}"


def group_errors(groups: object, path: str) -> Iterator[tuple[str, str]]:
    """(key, message). groups: as yaml gives them. path: of the groups in the configuration."""
    if groups is None:
        return
    if not isinstance(groups, Mapping):
        yield path, f"expected groups by name, each {_FORM}, found {show(groups)}"
        return
    for name, group in groups.items():
        if not isinstance(group, Mapping):
            yield f"{path}.{name}", f"expected {_FORM}, found {show(group)}"
        elif isinstance(pattern := group.get("match"), str) and (reason := _not_a_pattern(pattern)):
            yield f"{path}.{name}.match", f"{show(pattern)} is no regular expression: {reason}"
        elif name == OTHERS and pattern is not None:
            text = "is what parameters outside of all groups are called; call a group with a pattern otherwise"
            yield f"{path}.{name}", text
    rest = [name for name, group in groups.items() if isinstance(group, Mapping) and group.get("match", "") is None]
    if len(rest) > 1:
        text = f"null is what no other group matches, and group {rest[0]} has it already; give this one a pattern"
        yield f"{path}.{rest[1]}.match", text


def _not_a_pattern(text: str) -> str:
    if not text:
        return "it is empty, and would match every name; null is what no other group matches"
    try:
        re.compile(text)
    except re.error as error:
        return str(error)
    return ""
