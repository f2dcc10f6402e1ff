"""Cards: the README.md of an annotation or an exported model, in the format of the Hugging Face hub.

A card is computed from the files (manifest, rows, results.json); the same files give the same text. It states no license that
was not recorded, and contains no secrets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from huggingface_hub import CardData, DatasetCardData, EvalResult, ModelCardData, RepoCard

from cft import __version__
from cft.annotation.kinds import count_kinds
from cft.annotation.responses import GIVEN, Responses, wanted
from cft.annotation.rollouts import VERDICTS, holds_rollouts, pass_rates
from cft.annotation.store import AnnotationStore
from cft.config.redaction import hidden
from cft.files import write_bytes
from cft.masks.critical import Deciding, deciding_word
from cft.runs.agreement import Share, engine_of, read_agreements
from cft.runs.arm import METHOD, part_of
from cft.runs.lineage import CARD, annotation_contents, annotation_link
from cft.runs.results import RESULTS, RunResults
from cft.runs.run import EXPORT
from cft.types import AnnotatedResponse, Outcome

PAPER = "[arXiv 2510.10974](https://arxiv.org/abs/2510.10974)"
TAGS = ["critical-token-fine-tuning", "arxiv:2510.10974"]
_TEMPLATE = "---\n{{ card_data }}\n---\n\n{{ text }}"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))

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


def write_model_card(folder: Path) -> Path:
    """Write README.md in the export of a finished run of cft train or cft rl."""
    told = rl_card if RunResults.read(folder / RESULTS).stage == "rl" else model_card
    return write_card(folder / EXPORT, told(folder))


def write_card(folder: Path, text: str) -> Path:
    path = folder / CARD
    write_bytes(path, text.encode("utf-8", "replace"))
    return path


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


def model_card(folder: Path, *, adapter: bool = False) -> str:
    """folder: of a finished run of cft train. adapter: for the adapters alone, which are loaded on top of the base model."""
    results = RunResults.read(folder / RESULTS)
    settings, data, arm = results.settings, results.data or {}, results.arm
    budget, chosen_by, best_epoch = results.budget or {}, results.best_validation or {}, results.best_epoch or 0
    base = settings["model.path"]
    kind = "annotation" if "annotation" in data else "rows"
    title = f"{arm['model']}, fine-tuned on {arm['mask']} tokens of {data[kind]}"
    metrics = {name: found for name, found in results.metrics.items() if found.get("value") is not None}
    published = _HUB_ID.fullmatch(base) is not None and not Path(base).exists()
    header = ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        license="unknown",
        tags=TAGS,
        base_model=base if published else None,
        model_name=title if metrics else None,
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=results.benchmark,
                dataset_name=results.benchmark,
                dataset_split=results.split,
                metric_type=name.removeprefix("eval/"),
                metric_name=name.removeprefix("eval/"),
                metric_value=metric["value"],
            )
            for name, metric in metrics.items()
        ]
        or None,
    )
    method = {name: value for name, value in arm.items() if part_of(name) in METHOD and value not in (None, "none")}
    method = {**method, "loss.normalizer": settings["loss.normalizer"]}
    loss = ", ".join(f"{name} {value}" for name, value in method.items())
    facts = {
        "base model": f"`{base}` at `{settings['model.revision']}`",
        **_trained_on(data, results),
        "rows": f"{data['train_rows']:,} for training, {data['validation_rows']:,} for validation, SHA-256 "
        f"{data['rows_sha256']}",
        "loss on": f"{data['eligible_tokens']:,} of {data['response_tokens']:,} response tokens "
        f"({results.eligible_fraction:.1%}): {loss}",
        "training": f"epochs: {budget['epochs']}, steps: {budget['steps']} of "
        f"{budget['rows_per_step']} rows, learning rate: {settings['optimizer.lr']}, seed: {results.seed}",
        "these weights": f"epoch {best_epoch + 1}, chosen by {chosen_by['metric']}",
        "settings (identity)": results.identity,
    }
    told = f" Training began from the base model and saw only responses of the {kind} below."
    return card(header, _of_weights(results, title, facts, metrics, told=told, bound_by="data", adapter=adapter))


def _of_weights(
    results: RunResults,
    title: str,
    facts: Mapping[str, str],
    metrics: dict[str, dict[str, float]],
    *,
    bound_by: str,
    told: str = "",
    adapter: bool = False,
) -> list[str]:
    """The parts of a card of trained weights. bound_by: other licensed inputs. told: a sentence on the training."""
    return [
        f"# {title}",
        f"Made with Critical Token Fine-tuning ({PAPER}), cft {__version__}.{told}",
        "## Made from",
        table(("", ""), facts.items()),
        commands(results.lineage),
        "## Results",
        _numbers(results, metrics),
        "## Use",
        *_use(adapter=adapter),
        "## All settings",
        code("yaml", yaml.safe_dump(results.settings, sort_keys=True, allow_unicode=True).strip()),
        "## Limits",
        f"This is one run with one seed. The licenses of the base model and of the {bound_by} were not recorded here; both "
        "bind what may be done with these weights.",
    ]


def rl_card(folder: Path) -> str:
    """folder: of a finished run of cft rl."""
    results = RunResults.read(folder / RESULTS)
    settings, data, arm, budget = results.settings, results.data or {}, results.arm, results.budget or {}
    title = f"{arm['model']} after reinforcement learning on {data['problems']}"
    metrics = {name: found for name, found in results.metrics.items() if found.get("value") is not None}
    base = settings.get("model.path", "")
    header = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        license="unknown",
        tags=TAGS,
        base_model=base if _HUB_ID.fullmatch(base) and not Path(base).exists() else None,
    )
    method = ", ".join(f"{name} {value}" for name, value in arm.items() if part_of(name) in METHOD and value != "none")
    facts = {
        "started from": f"{arm['model']}{f', fine-tuned: {method}' if method else ''}",
        "problems": f"{data['train_problems']:,} of {data['problems']}, SHA-256 {data['fingerprint']}",
        "reward": f"verdicts of `{data['verifier']}`; undecided ones left out; length penalty "
        f"{settings['reward.length_penalty']}",
        "training": f"GRPOTrainer of TRL, loss {settings['grpo.loss_type']}, steps: {budget['steps']} of "
        f"{budget['rows_per_step']} responses, learning rate: {settings['optimizer.lr']}, seed: {results.seed}",
        "settings (identity)": results.identity,
    }
    return card(header, _of_weights(results, title, facts, metrics, bound_by="problems"))


def _use(*, adapter: bool) -> list[str]:
    if adapter:
        lines = (
            'base = transformers.AutoModelForCausalLM.from_pretrained("<the base model>")',
            'peft.PeftModel.from_pretrained(base, "<this folder>")',
        )
        return [code("python", "\n".join(lines)), "These are the adapters; their base model is named above."]
    return [
        code("python", 'transformers.AutoModelForCausalLM.from_pretrained("<this folder>")'),
        code("bash", "cft evaluate checkpoint=<this folder>"),
    ]


def _trained_on(data: dict[str, Any], results: RunResults) -> dict[str, str]:
    """Origin of the rows: an annotation, or data=rows, which may have been exported from an annotation."""
    contents = annotation_contents(results.lineage)
    if "annotation" in data:
        return {"annotation": data["annotation"], **dict(digests(data["fingerprint"], contents, of="annotation's "))}
    origin = {"annotation's contents, SHA-256": contents} if contents else {}
    return {"rows of": data["rows"], "rows' file or data set, SHA-256": data["fingerprint"], **origin}


def digests(conditions: str, contents: str, *, of: str = "") -> list[tuple[str, str]]:
    """The two fingerprints of an annotation under distinct names; unknown ones are omitted."""
    named = ((f"{of}conditions, SHA-256", conditions), (f"{of}contents, SHA-256", contents))
    return [(name, digest) for name, digest in named if digest]


def size_category(rows: int) -> str:
    return next((name for limit, name in _SIZES if rows < limit), "n>1M")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; cell contents are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(str(cell)) for cell in line) + " |" for line in lines)


def code(language: str, text: str) -> str:
    """A fenced block with a fence that the text does not contain."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def card(header: CardData, parts: Iterable[str]) -> str:
    """header: the hub's metadata. parts: Markdown; empty ones are omitted."""
    text = "\n\n".join(part for part in parts if part)
    return hidden(RepoCard.from_template(header, template_str=_TEMPLATE, text=text).content + "\n")


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _type(arrow: str) -> str:
    """list<item: int32> -> list of int32"""
    return arrow.replace("list<item: ", "list of ").replace("list<element: ", "list of ").rstrip(">")


def _kept(responses: Responses) -> str:
    return "Verified" if wanted(responses) == Outcome.RIGHT else "Wrong"


def _share(picked: np.ndarray) -> str:
    return f"{picked.mean():.1%}" if len(picked) else "-"


def commands(lineage: dict[str, Any]) -> str:
    """The commands that made this, in order; "" if none was recorded."""
    found: list[str] = []
    while lineage:
        found.insert(0, lineage.get("command", ""))
        lineage = next((one["came_from"] for one in lineage.get("inputs", ())), {})
    known = [command for command in found if command]
    return code("bash", "\n".join(known)) if known else ""


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


def _numbers(results: RunResults, metrics: dict[str, dict[str, float]]) -> str:
    if not metrics:
        return "The model was not tested after training."
    evaluation = results.evaluation
    lines = [
        (f"`{name.removeprefix('eval/')}`", f"{m['value']:.4f}", f"[{m['low']:.4f}, {m['high']:.4f}]")
        for name, m in metrics.items()
    ]
    settings = ", ".join(f"{key} {value}" for key, value in evaluation.items() if key != "verifier")
    return (
        f"{results.problems:,} problems of {results.benchmark}, split {results.split}; {settings}; verifier "
        f"`{evaluation['verifier']}`. Intervals are 95 % bootstrap intervals over problems, of this one run.\n\n"
        + table(("metric", "value", "interval"), lines)
    )
