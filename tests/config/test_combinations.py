"""Parts that exclude each other are refused by name before anything is imported."""

from __future__ import annotations

from tests.command_lines import mistakes


def keys(*overrides: str) -> set[str]:
    return {text.partition(":")[0] for text in mistakes("train", *overrides)}


def test_what_a_loss_that_compares_responses_excludes() -> None:
    assert keys(
        *("mask=all", "loss=dpo", "reference=initial", "weighting=probability", "loss.normalizer=sequence"),
        *("+regularizer@loss.regularizers.more=sed", "+regularizer@loss.regularizers.kl=kl_to_reference"),
        *("data.responses=wrong", "data.shuffle_responses=true", "loss.token_loss._target_=cft.losses.GEM"),
        *("+loss.token_loss.beta=0.7", "+loss.token_loss.h=linear", "callbacks.best.monitor=val/preference_accuracy"),
    ) == {
        *("weighting", "loss.normalizer", "loss.regularizers.more", "data.responses", "data.shuffle_responses"),
        "loss.token_loss",
    }


def test_what_only_such_a_loss_has() -> None:
    assert keys(
        *("mask=all", "data=rows", "data.path=README.md", "data.shape=preference", "loss.normalizer=problem"),
        *("callbacks.best.monitor=val/preference_margin", "callbacks.best.mode=max"),
    ) == {"data.shape", "loss.normalizer", "callbacks.best.monitor"}


def test_rows_by_themselves_may_have_any_regularizer_with_a_loss_of_whole_responses() -> None:
    more = ("mask=all", "loss=f_divergence", "reference=annotation", "+regularizer@loss.regularizers.more=sed")
    assert keys(*more) == set()
    assert keys(*more, "weighting=focal") == {"weighting"}
