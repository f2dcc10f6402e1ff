"""The card of an annotation (`cft/runs/cards.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import DatasetCardData

from cft.annotation.kinds import count_kinds
from cft.annotation.responses import GIVEN, Responses, wanted
from cft.annotation.rollouts import VERDICTS, holds_rollouts, pass_rates
from cft.annotation.store import AnnotationStore
from cft.masks.critical import Deciding, deciding_word
from cft.runs.agreement import Share, engine_of, read_agreements
from cft.runs.cards import PAPER, TAGS, card, code, commands, digests, size_category, table, write_card
from cft.runs.lineage import annotation_link
from cft.types import AnnotatedResponse, Outcome

COLUMNS = {
    "problem_id": "unique in its source",
    "response_id": "unique in the annotation",
    "problem": "the question",
    "answer": "the gold answer",
    "response": "text of the response, special tokens left out",
    "finish": "how the response ended",
    "prompt_ids": "token ids of the prompt, chat template applied",
    "response_ids": "token ids of the response, end token included",
    "char_span": "characters of each token in `response`, end exclusive",
    "logprob": "log-probability of each token, nats",
    "entropy": "entropy of each token's distribution, nats",
    "alt_ids": "the alternatives at each position, most probable first",
    "alt_logprob": "their log-probabilities, nats",
    "alt_answer": "the final answer that the continuation after each of them reached",
    "alt_tokens": "tokens decoded for it",
    "alt_outcome": "what came of it, see below",
    "replay_outcome": "the same after the model's own token was put back, where that was tried",
    "verdict": "of the response itself",
    "sample": "its number among the responses to the problem, -1 = greedy",
    "prefix_outcome": "what the model's own continuation of the response before each token came to, where that was asked",
    "sampled": "sampled continuations after the response's own token (column 0) and after each alternative",
    "sampled_right": "of these, those that ended right",
    "sampled_cut_off": "those cut off before an answer",
    "sampled_undecided": "those undecided by the verifier",
}

_DECIDING = {
    "critical": "A token is *critical* if every such continuation ended wrong or was cut off.",
    "turning": "A token is a *turning* one if one of these continuations ended right: there the response turned wrong.",
}

OUTCOMES = {
    Outcome.RIGHT: "right",
    Outcome.WRONG: "wrong",
    Outcome.UNTRIED: "not tried",
    Outcome.CUT_OFF: "cut off before an answer",
    Outcome.UNDECIDED: "undecided by the verifier",
}


def write_annotation_card(store: AnnotationStore) -> Path:
    """Write README.md in the store's folder; it is not part of the annotation's hash."""
    return write_card(store.folder, annotation_card(store))


def annotation_card(store: AnnotationStore) -> str:
    manifest, rows = store.manifest(), store.rows()
    made, config = manifest["fingerprint"], manifest["config"]
    model, data = manifest["model_name"], made["data"]
    split = data["split"]
    rolled_out = holds_rollouts(manifest)
    header = DatasetCardData(
        pretty_name=f"{manifest['name']}: {'rollouts' if rolled_out else 'critical tokens'} of {model} on {data['source']}",
        license="unknown",
        task_categories=["text-generation"],
        size_categories=[size_category(len(rows))],
        tags=TAGS,
        configs=[
            {"config_name": kind, "data_files": [{"split": split, "path": f"{kind}/*.parquet"}], **default}
            for kind, default in (("rows", {"default": True}), ("problems", {}))
        ],
    )
    facts = {
        "model": f"{model}, `{made['model']['path']}` at `{made['model']['revision']}`, {made['model']['dtype']}",
        "SHA-256 of its weights": made["model"]["weights"]
        or "not known: servers decoded, see `probe` in manifest.json",
        "problems": f"{data['source']}, split {data['split']}, SHA-256 {data['sha256']}",
        "longest response": f"{made['decoding']['max_new_tokens']} tokens",
        "verifier": f"`{made['verifier']}`",
        "tokenizer": made["tokenizer"],
        **dict(digests(manifest["fingerprint_sha256"], annotation_link(store.folder).fingerprint)),
        "versions": ", ".join(f"{name} {found}" for name, found in sorted(manifest["versions"].items())),
    }
    parts = [
        f"# {header.pretty_name}",
        _rolled_out(made["rollouts"]) if rolled_out else _annotated(made["decoding"]["responses"], rows),
        "## Made from",
        table(("", ""), facts.items()),
        commands(manifest.get("lineage", {})),
        "## Contents",
        table(("problems", "number"), _statuses(store)),
        *(_verdicts(rows, manifest) if rolled_out else _statistics(rows, manifest)),
        *_agreements(store),
        "## Columns",
        "`rows/*.parquet`, one row a response:",
        table(
            ("column", "type", ""),
            [(f"`{f.name}`", _type(str(f.type)), COLUMNS.get(f.name, "")) for f in store.row_columns()],
        ),
        "`problems/*.parquet` has one row a problem: status, number of responses, of right and of undecided ones, pass rate."
        if rolled_out
        else "`problems/*.parquet` has one row a problem tried: its status, the response, the answer found in it.",
        "## Use",
        code("python", 'datasets.load_dataset("parquet", data_files="rows/*.parquet")'),
        code("bash", f"{_train(manifest)}{' mask=all' if rolled_out else ''}")
        if deciding_word(rows) == "critical"
        else "These responses end wrong: `cft train` refuses to imitate them.",
        "## Limits",
        (
            "A pass rate is of so many samples of this model under this prompt, temperature and verifier. "
            if rolled_out
            else f"Which tokens are {deciding_word(rows)} is a fact about this model, this prompt, greedy continuations, "
            f"{config['num_alternatives']} alternatives a position and this verifier; another of these may give others. "
            f"Problems without a {_kept(made['decoding']['responses']).lower()} response have no row. "
        )
        + "The license of the problems is that of their source, and the model's may bind its responses; neither was recorded "
        "here.",
    ]
    return card(header, parts)


def _train(manifest: Mapping[str, Any]) -> str:
    return f"cft train data.annotation={manifest['name']} annotations_dir=<the folder above this one>"


def _annotated(responses: Responses, rows: Sequence[AnnotatedResponse]) -> str:
    whole = all(row.tried_R.all() for row in rows)
    solved = "The data's own solutions were taken" if responses in GIVEN else "The model solved the problems greedily"
    return (
        f"{_kept(responses)} responses with counterfactual evidence about {'each' if whole else 'some'} of their tokens, made "
        f"with Critical Token Fine-tuning ({PAPER}). {solved}; of each {wanted(responses).name.lower()} response "
        f"{'every token' if whole else 'some tokens'} {'was' if whole else 'were'} replaced by the next most probable ones, "
        "and what the model then arrived at was graded. " + _DECIDING[deciding_word(rows)]
    )


def _rolled_out(design: Mapping[str, Any]) -> str:
    drawn = (
        f"{design['num_samples']} responses to each problem, sampled at temperature {design['temperature']}, top-p "
        f"{design['top_p']} and seed {design['seed']}"
        if design["num_samples"]
        else "One greedy response to each problem"
    )
    return (
        f"{drawn}, with the verifier's verdict: right and wrong ones alike, without counterfactual evidence. Log-probabilities "
        "and entropies are the model's own, at temperature 1."
    )


def _verdicts(rows: Sequence[AnnotatedResponse], manifest: Mapping[str, Any]) -> list[str]:
    """Of rollouts: responses by verdict, and the pass rates of their problems."""
    verdicts = [row.verdict for row in rows]
    rates = np.array(list(pass_rates(rows).values()))
    known = rates[~np.isnan(rates)]
    facts = [
        ("responses", f"{len(rows):,}"),
        *((verdict, f"{verdicts.count(verdict):,}") for verdict in VERDICTS.values() if verdict in verdicts),
        ("mean pass rate", f"{_mean(known)} of {len(known):,} problems with a decided response"),
        ("problems with pass rate 0, in between, 1", ", ".join(f"{n:,}" for n in _thirds(known))),
        ("response tokens", f"{sum(len(row.response_ids) for row in rows):,}"),
        ("tokens decoded", _decoded(dict(manifest["compute"]))),
    ]
    return [table(("responses", ""), facts)]


def _thirds(rates: np.ndarray) -> tuple[int, int, int]:
    none, every = int((rates == 0).sum()), int((rates == 1).sum())
    return none, len(rates) - none - every, every


def _type(arrow: str) -> str:
    """list<item: int32> -> list of int32"""
    return arrow.replace("list<item: ", "list of ").replace("list<element: ", "list of ").rstrip(">")


def _kept(responses: Responses) -> str:
    return "Verified" if wanted(responses) == Outcome.RIGHT else "Wrong"


def _share(picked: np.ndarray) -> str:
    return f"{picked.mean():.1%}" if len(picked) else "-"


def _statuses(store: AnnotationStore) -> list[tuple[str, str]]:
    statuses: dict[str, int] = {}
    for record in store.problems():
        statuses[record.status] = statuses.get(record.status, 0) + 1
    listed = sorted(statuses.items(), key=lambda item: (-item[1], item[0]))
    return [("all", f"{sum(statuses.values()):,}"), *((name, f"{count:,}") for name, count in listed)]


def _statistics(rows: Sequence[AnnotatedResponse], manifest: dict[str, Any]) -> list[str]:
    if not rows:
        return ["No response was kept."]
    k = min(row.alt_ids.shape[1] for row in rows)
    mask, word = Deciding(num_alternatives=k), deciding_word(rows)
    lengths = np.array([len(row.response_ids) for row in rows])
    tried = np.concatenate([mask.known(row) for row in rows])
    critical = np.concatenate([mask(row) for row in rows])[tried] > 0
    entropy = np.concatenate([row.entropy for row in rows])[tried]
    outcomes = np.concatenate([row.alt_outcome.ravel() for row in rows])
    counts, compute = manifest["counts"], manifest["compute"]
    facts = [
        ("responses", f"{len(rows):,}"),
        ("response tokens", f"{lengths.sum():,}; {lengths.mean():.1f} a response, at most {lengths.max():,}"),
        *(
            []
            if tried.all()
            else [("positions tried", f"{tried.sum():,} ({tried.mean():.1%}); the others are untried")]
        ),
        (f"{word} tokens", f"{critical.sum():,} ({_share(critical)}) with {k} alternatives"),
        ("mean entropy", _entropies(entropy, critical, word=word)),
        ("self-replays that ended otherwise", f"{counts.get('replay_flips', 0):,} of {counts.get('replays', 0):,}"),
        ("tokens decoded", _decoded(compute)),
    ]
    kinds = [
        (kind.kind, f"{kind.tokens:,}", f"{kind.critical / kind.tokens:.1%}")
        for kind in count_kinds(rows, mask=mask, known=mask.known)
    ]
    found = [(int(code), words, f"{(outcomes == code).sum():,}") for code, words in OUTCOMES.items()]
    return [
        table(("responses", ""), facts),
        table(("kind of token", "number" if tried.all() else "tried", word), kinds),
        table(("`alt_outcome`", "", "cells"), found),
    ]


def _agreements(store: AnnotationStore) -> list[str]:
    """Agreement with other annotations of the same problems, as stored by `cft agreement`."""
    found = read_agreements(store.folder)
    if not found:
        return []
    head = ("compared with", "same responses", "same alternatives", "same outcomes", "same critical tokens")
    parts = ("responses", "alternatives", "outcomes", "critical")
    lines = [(f"{one['with']}: {one['engine']}", *(str(Share(**one[part])) for part in parts)) for one in found]
    return [
        "## Agreement",
        f"Of this annotation ({engine_of(store.manifest())}) with others of the same problems. Alternatives, outcomes and "
        "critical tokens are those of responses that are the same.",
        table(head, lines),
    ]


def _decoded(compute: dict[str, Any]) -> str:
    """Tokens decoded, with those decoded ahead of need counted apart, since they differ from run to run."""
    needed = sum(n for name, n in compute.items() if name.endswith("_tokens") and name != "speculative_tokens")
    ahead = compute.get("speculative_tokens", 0)
    return f"{needed:,.0f}" + (f", and {ahead:,.0f} ahead of need" if ahead else "")


def _entropies(entropy: np.ndarray, critical: np.ndarray, *, word: str) -> str:
    if np.isnan(entropy).any():
        return "not known: the engine saw the most probable tokens only"
    return f"{_mean(entropy[critical])} nats of {word} tokens, {_mean(entropy[~critical])} of others"


def _mean(values: np.ndarray) -> str:
    known = values[~np.isnan(values)]  # some engines do not compute it
    return f"{known.mean():.3f}" if len(known) else "-"
