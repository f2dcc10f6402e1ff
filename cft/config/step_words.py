"""What is typed for the steps of a pipeline, in a form that Hydra's grammar holds, and back.

    steps.train.optimizer.lr=1e-5          of one step            ++steps.train.optimizer$lr=1e-5
    steps.train.model/lora=default         options, too           ++steps.train.model$1lora=default
    +steps.train.trainer.max_steps=5       with the step's sign   ++steps.train.trainer$max_steps$4=5
    model=smollm2                          of every step          ++shared.model=smollm2

Hydra would take the dots inside a step's override for places in the pipeline's own config, where an option and a value
of it (`mask=prefix mask.num_tokens=8`) are at odds. The value stays as typed, so that any sweep of Hydra is one of steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields

from omegaconf import OmegaConf

from cft.config import schema

_CODES = {"@": "$0", "/": "$1", "-": "$2", "$": "$3"}  # a dot is $, or $9 before a digit
_SIGNS = {"+": "$4", "++": "$5", "~": "$6"}  # at the end
_STEP = re.compile(r"([+~]*)steps\.([^.=]+)\.([^=]+)(=.*)?", re.DOTALL)
_WORD = re.compile(r"([+~]*)([^=]+)(=.*)?", re.DOTALL)
_CODED = re.compile(r"\+\+(?:steps\.([^.=]+)|shared)\.([^=]+)=(.*)", re.DOTALL)
_FLAGS = {"--cfg", "--package", "--config-path", "--config-name", "--config-dir", "--info", "--experimental-rerun"}
_FLAGS |= {"-c", "-p", "-cp", "-cn", "-cd", "-i"}  # a word follows that is no override


def of_pipeline(argv: Sequence[str]) -> list[str]:
    """The command line of cft pipeline as Hydra gets it."""
    return _words(argv, own={entry.name for entry in fields(schema.PipelineConfig)} | {"pipeline"})


def of_compare(argv: Sequence[str]) -> list[str]:
    """That of cft compare, where arms=sft,cft and rates=1e-5,3e-5 are lists."""
    own = {entry.name for entry in fields(schema.CompareConfig)}
    return _words(argv, own=own, rewritten=_as_list)


def as_typed(word: str) -> str:
    """An override as it was typed; others as they are."""
    found = _CODED.fullmatch(word)
    if found is None:
        return word
    name, coded, value = found[1], found[2], found[3]
    sign, key = decoded(coded)
    typed = f"{sign}{f'steps.{name}.' if name else ''}{key}"
    return typed if sign == "~" and value == "null" else f"{typed}={value}"


def decoded(coded: str) -> tuple[str, str]:
    """(sign, key) of the override that a key of a step means, whether typed or written in yaml."""
    for sign in ("++", "+", "~"):
        if coded.startswith(sign):
            return sign, coded[len(sign) :]
    sign = next((typed for typed, code in _SIGNS.items() if coded.endswith(code)), "")
    letters = {code: letter for letter, code in _CODES.items()}
    return sign, re.sub(r"\$[0-9]?", lambda code: letters.get(code[0], "."), coded.removesuffix(_SIGNS.get(sign, "")))


def reference(path: str) -> str:
    """What ${step:NAME.dir} is until the steps are known (`cft/pipelines/plan.py`)."""
    return f"<step:{path}>"


def register_references() -> None:
    """Once, with the stages."""
    OmegaConf.register_new_resolver("step", reference, replace=True)


def _words(
    argv: Sequence[str], *, own: Collection[str], rewritten: Callable[[str], str] = lambda word: word
) -> list[str]:
    words: list[str] = []
    for at, word in enumerate(argv):
        if word.startswith("-") or (at and argv[at - 1] in _FLAGS):
            words.append(word)
        elif found := _STEP.fullmatch(word):
            sign, name, key, value = found.groups()
            coded = key if key == "stage" else _coded(key, sign=sign)
            words.append(f"++steps.{name}.{coded}{value or '=null'}")
        elif (found := _WORD.fullmatch(word)) and not _is_own(found[2], own=own):
            words.append(f"++shared.{_coded(found[2], sign=found[1])}{found[3] or '=null'}")
        else:
            words.append(rewritten(word))
    return words


def _is_own(key: str, *, own: Collection[str]) -> bool:
    return key.split(".")[0].split("/")[0].split("@")[0] in {*own, "hydra"}


def _coded(key: str, *, sign: str) -> str:
    key = re.sub(r"[@/$-]", lambda letter: _CODES[letter[0]], key.replace(".", "\0"))
    return re.sub(r"\0(?=[0-9])", "$9", key).replace("\0", "$") + _SIGNS.get(sign, "")


def _as_list(word: str) -> str:
    found = re.fullmatch(r"(arms|rates)=([^\[].*)", word)
    return f"{found[1]}=[{found[2]}]" if found else word
