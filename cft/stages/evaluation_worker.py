"""The worker that solves the problems of an evaluation, one piece at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace

from cft.config.build import build
from cft.config.schema import EvaluateConfig
from cft.console import progress
from cft.decoding import Words, bound
from cft.evaluation.evaluation import Sample, SampleRequest, Solver
from cft.fleets.base import Crew, Facts, FleetError, Report, left_out_message, package_facts
from cft.models.lazy import LazyModel
from cft.models.load import ModelSpec, load_tokenizer
from cft.prompts.chat import prompting
from cft.quiet import quiet_libraries
from cft.types import Engine, Problem, Verifier
from cft.verifiers import MultipleChoice, verifier_fingerprint
from cft.verifiers.grader import Grader
from cft.verifiers.pool import VerifierPool
from cft.verifiers.stripped import innermost


@dataclass(frozen=True, slots=True)
class Piece:
    """Problems of one benchmark, and the verifier of their responses."""

    problems: tuple[Problem, ...]
    verifier: Verifier


@dataclass(frozen=True, slots=True)
class MakeSolving:
    """Makes the worker of a config; it is sent to the worker's process.

    Args:
        cfg: Config of the stage.
        spec: The model, or the checkpoint that replaces it.
        hash_weights: Whether the facts include a hash of the weights.
    """

    cfg: EvaluateConfig
    spec: ModelSpec
    hash_weights: bool

    @classmethod
    def of(cls, cfg: EvaluateConfig, *, spec: ModelSpec, hash_weights: bool) -> MakeSolving:
        """Make it without the parts that workers do not use: loggers and benchmark."""
        return cls(replace(cfg, logger={}, benchmark=None), spec, hash_weights)  # pyright: ignore[reportArgumentType]

    def __call__(self, device: str) -> Solving:
        return Solving(self.cfg, self.spec, device=device, hash_weights=self.hash_weights)


def known_facts(cfg: EvaluateConfig, spec: ModelSpec, *, device: str, hash_weights: bool) -> tuple[LazyModel, Facts]:
    """The model, and the facts about it that every worker must have."""
    prompt, tokenizer = build(cfg.prompt), load_tokenizer(spec)
    model = LazyModel(spec, tokenizer, ends=[prompt.end_id(tokenizer)], device=device)
    return model, {
        **prompting(prompt, tokenizer),
        "weights": model.weights() if hash_weights else "",
        "eos_ids": list(model.facts.eos_ids),
        "context": model.facts.context,
        "packages": package_facts(),
    }


class Solving:
    """Model, engine and verifiers for the problems of one evaluation."""

    def __init__(self, cfg: EvaluateConfig, spec: ModelSpec, *, device: str, hash_weights: bool) -> None:
        quiet_libraries()
        self.cfg, self.prompt = cfg, build(cfg.prompt)
        self.model, known = known_facts(cfg, spec, device=device, hash_weights=hash_weights)
        self._held, self._pools = ExitStack(), dict[str, VerifierPool]()
        self.engine: Engine = self._held.enter_context(closing(build(cfg.engine)(self.model)))
        found = self.engine.facts()
        probe = found.pop("probe", None)
        self.facts: Facts = {**known, "engine": found, "probe": probe}

    def work(self, item: Piece, report: Report) -> list[Sample]:
        done = 0

        def on_done() -> None:
            nonlocal done
            done += 1
            report(done)

        grader = Grader.of(
            item.verifier,
            tokenizer=self.model.tokenizer,
            prompt=self.prompt,
            verify_all=self._pool(item.verifier).verify_all,
        )
        rule = bound(build(self.cfg.decoding), words_for(self.cfg, self.model, item.verifier))
        solver = Solver(self.engine, self.model.tokenizer, self.prompt, grader, self.model.facts.context, rule)
        return solver.solve(item.problems, request=request_of(self.cfg), on_done=on_done)

    def close(self) -> None:
        self._held.close()

    def _pool(self, verifier: Verifier) -> VerifierPool:
        """The verifier's pool; only one is open at a time, since benchmarks are evaluated one after the other."""
        name = verifier_fingerprint(verifier)
        if name not in self._pools:
            for pool in self._pools.values():
                pool.close()
            made = VerifierPool(verifier, workers=self.cfg.verify.workers, timeout_s=self.cfg.verify.timeout_s)
            self._pools = {name: self._held.enter_context(made)}
        return self._pools[name]


def words_for(cfg: EvaluateConfig, model: LazyModel, verifier: Verifier) -> Words:
    """Facts about the model and the benchmark's answers for decoding rules."""
    inner = innermost(verifier)
    choices = inner.choices if isinstance(inner, MultipleChoice) else ""
    return Words(model.tokenizer, model.facts.eos_ids, cfg.verify.thinking.tags, choices)


def request_of(cfg: EvaluateConfig) -> SampleRequest:
    return SampleRequest(cfg.num_samples, cfg.temperature, cfg.top_p, cfg.seed, cfg.max_new_tokens)


def solved(
    cfg: EvaluateConfig,
    crew: Crew[Piece, list[Sample]],
    problems: Sequence[Problem],
    *,
    verifier: Verifier,
    title: str,
    command: str,
) -> list[Sample]:
    """All samples of all problems, by problem and sample number. Raises FleetError if some could not be computed."""
    size = max(1, math.ceil(len(problems) / crew.pieces))
    pieces = [Piece(tuple(problems[i : i + size]), verifier) for i in range(0, len(problems), size)]
    done = dict[int, int]()
    with progress(title, total=len(problems) * (1 + cfg.num_samples)) as bar:

        def update(piece: int, samples: int) -> None:
            done[piece] = samples
            bar.advance(sum(done.values()) - bar.done)

        found = dict[int, list[Sample]]()
        for piece, samples in crew.map(enumerate(pieces), watch=update):
            found[piece] = samples
            update(piece, len(samples))
    if crew.left_out:
        kept = "An evaluation needs all problems, so no results of this benchmark were written."
        raise FleetError(left_out_message(crew.left_out, kept=kept, command=command))
    return [sample for piece in sorted(found) for sample in found[piece]]
