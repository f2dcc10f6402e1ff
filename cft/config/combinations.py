"""Parts of a training configuration that cannot be combined, told by what the classes say of themselves in their source.

An aggregation says `about`: "responses" for a function of the log-probs of whole responses, "groups" for one that compares
rows of a problem. What a class decides when it is built is checked again by `cft/losses/objective.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cft.config.needs import GIVEN_ROWS, strings, target_of

UNIFORM, NLL = "cft.weightings.token.Uniform", "cft.losses.token.NLL"
OF_NO_TARGET = tuple(
    f"cft.losses.regularizers.{name}" for name in ("KLFromReference", "KLToReference", "NegativeEntropy")
)
COMPARED = ("val/preference_accuracy", "val/preference_margin")  # what a validation logs of a loss over groups


def conflicts(tree: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """(key, message) of every part that another one excludes. tree: resolved, of the training stage."""
    loss = tree.get("loss")
    aggregation = loss.get("aggregation") if isinstance(loss, Mapping) else None
    target = target_of(aggregation)
    if not isinstance(loss, Mapping) or target is None:
        return
    about, name = strings(target, "about") or frozenset(), target.rpartition(".")[2]
    wanted = strings(target, "normalizer")
    if wanted and loss.get("normalizer") not in wanted:
        (one,) = wanted
        yield "loss.normalizer", f"expected {one}: {name} is divided by {one}s, found {loss.get('normalizer')}"
    elif not wanted and loss.get("normalizer") == "problem":
        yield "loss.normalizer", f"expected critical, response or sequence: {name} compares no rows, found problem"
    if "responses" in about:
        yield from _of_responses(tree, loss, name=name)
    yield from _of_groups(tree, loss, name=name) if "groups" in about else _of_rows(tree)


def _of_responses(tree: Mapping[str, object], loss: Mapping[str, object], *, name: str) -> Iterator[tuple[str, str]]:
    weighting, token_loss = target_of(tree.get("weighting")), target_of(loss.get("token_loss"))
    if weighting is not None and weighting != UNIFORM:
        yield (
            "weighting",
            f"{name} compares log-probs of whole responses, which weights from the live prediction would change, found "
            f"{weighting.rpartition('.')[2]}; expected weighting=uniform",
        )
    if token_loss is not None and token_loss != NLL:
        yield "loss.token_loss", f"expected cft.losses.NLL: {name} is a function of log-probs, found {token_loss}"


def _of_groups(tree: Mapping[str, object], loss: Mapping[str, object], *, name: str) -> Iterator[tuple[str, str]]:
    regularizers = loss.get("regularizers")
    for key, node in regularizers.items() if isinstance(regularizers, Mapping) else ():
        term = target_of(node.get("token_loss")) if isinstance(node, Mapping) else None
        if term is not None and term not in OF_NO_TARGET:
            yield (
                f"loss.regularizers.{key}",
                f"{term.rpartition('.')[2]} is about the tokens of a response, and those of rejected ones are among them with "
                f"{name}; expected kl_from_reference, kl_to_reference or entropy_bonus",
            )
    data = tree.get("data")
    if not isinstance(data, Mapping):
        return
    if data.get("responses") == "wrong":
        yield "data.responses", f"expected right or all: {name} compares right responses with wrong ones, found wrong"
    if data.get("shuffle_responses") is True:
        yield "data.shuffle_responses", f"expected false: {name} compares the responses of one problem"
    if target_of(data) == GIVEN_ROWS and data.get("shape") not in ("auto", "preference", None):
        yield (
            "data.shape",
            f"expected auto or preference: {name} compares a chosen response with rejected ones, found {data.get('shape')}",
        )


def _of_rows(tree: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    data, callbacks = tree.get("data"), tree.get("callbacks")
    if isinstance(data, Mapping) and target_of(data) == GIVEN_ROWS and data.get("shape") == "preference":
        yield "data.shape", "preference is for a loss that compares responses (loss=dpo), found a loss of single rows"
    best = callbacks.get("best") if isinstance(callbacks, Mapping) else None
    if isinstance(best, Mapping) and best.get("monitor") in COMPARED:
        yield (
            "callbacks.best.monitor",
            f"expected a loss that compares responses (loss=dpo) with {best.get('monitor')}; or val/loss or val/accuracy",
        )
