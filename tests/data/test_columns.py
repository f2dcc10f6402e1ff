"""What a method needs is met by a column or a live reference, or refused before any model is loaded, with the remedy."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cft.annotation.store import SHIPPED, AnnotationStore
from cft.config.build import CONF_DIR, ConfigError, build
from cft.config.needs import missing_scores, stored_scores, strings, unmet
from cft.data.columns import GroupColumn, NoGroups, columns_for, needs_live
from cft.errors import BadValue
from cft.masks import Critical, Numeric
from cft.scores.column import GROUP, REFERENCE_DISTRIBUTION, REFERENCE_LOGPROB, StoredColumn
from cft.scores.store import write_score
from cft.types import AnnotatedResponse
from tests.conftest import ROOT
from tests.entry import run
from tests.fakes import row
from tests.stage import asked

BOTH = frozenset({REFERENCE_DISTRIBUTION, REFERENCE_LOGPROB})


def test_columns_come_from_where_the_head_of_the_module_says() -> None:
    one = dataclasses.replace(row([5, 6], outcomes=[[0, 0], [1, -1]]), scores={"x": np.array([1, 2], np.float32)})
    columns = columns_for(
        {REFERENCE_LOGPROB, GROUP, "x"}, given={REFERENCE_LOGPROB}, stored_logprob="logprob", grouping=Critical()
    )
    assert {name: column(one).tolist() for name, column in columns.items()} == {
        REFERENCE_LOGPROB: [-0.5, -0.5],
        GROUP: [1, 0],
        "x": [1, 2],
    }
    assert {need for column in columns.values() for need in column.needs} == {"x"}


def test_a_live_reference_needs_no_column() -> None:
    assert columns_for(BOTH, given=BOTH, stored_logprob="", grouping=NoGroups()) == {}


@pytest.mark.parametrize(
    ("needs", "stored", "live"),
    [
        (set(), "", False),
        ({GROUP, "x"}, "", False),
        ({REFERENCE_LOGPROB}, "logprob", False),
        ({REFERENCE_LOGPROB}, "", True),
        ({REFERENCE_DISTRIBUTION}, "", True),
    ],
)
def test_the_reference_model_runs_only_where_it_must(needs: set[str], stored: str, live: bool) -> None:
    assert needs_live(needs, stored_logprob=stored) is live


@pytest.mark.parametrize(
    ("needs", "given", "remedy"),
    [
        ({REFERENCE_LOGPROB}, set(), "reference=annotation"),
        ({REFERENCE_DISTRIBUTION}, {REFERENCE_LOGPROB}, "reference=initial"),
        ({GROUP}, BOTH, "groups=critical"),
    ],
)
def test_a_need_that_nothing_meets_names_its_remedy(needs: set[str], given: set[str], remedy: str) -> None:
    with pytest.raises(BadValue, match=remedy):
        columns_for(needs, given=given, stored_logprob="", grouping=NoGroups())


def test_groups_share_the_needs_and_statistics_of_their_mask() -> None:
    column = GroupColumn(Numeric())
    one = row([1, 2], response="a 3", char_span=[[0, 1], [1, 3]])
    column.fit([one])
    assert (column.needs, column.facts(), column(one).tolist()) == ((), {}, [0, 1])
    assert StoredColumn("logprob").needs == ()


# ---- the same, read from the source


def options(*groups: str) -> list[str]:
    files = [file for group in groups for file in sorted((CONF_DIR / group).glob("*.yaml"))]
    return [f"{file.parent.name}={file.stem}" for file in files]


# mask=projected reads another annotation when it is built, and its inner mask's scores are that annotation's.
BUILT = [o for o in options("weighting", "loss", "mask", "groups", "regularizer") if o != "mask=projected"]


def tree_of(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("train", overrides=list(overrides))
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


@cache
def default_tree() -> dict[str, Any]:
    return tree_of()


def tree_with(option: str) -> dict[str, Any]:
    """What `tree_of(option)` gives, the group alone being composed."""
    group, _, name = option.partition("=")
    tree = copy.deepcopy(default_tree())
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        part = OmegaConf.create({**tree, group: compose(f"{group}/{name}")[group]})
    made = OmegaConf.to_container(part, resolve=True)[group]  # type: ignore[index]
    if group == "regularizer":
        tree["loss"]["regularizers"]["extra"] = made
    else:
        tree[group] = made
    return tree


@pytest.mark.slow
@pytest.mark.parametrize("option", BUILT)
def test_a_group_composed_alone_is_what_it_is_in_the_whole(option: str) -> None:
    assert tree_with(option) == tree_of(option.replace("regularizer=", "+regularizer@loss.regularizers.extra="))


@pytest.mark.parametrize("option", BUILT)
def test_needs_read_from_the_source_are_those_of_the_objects(option: str) -> None:
    """For every option of every group: against the built objects' own `needs`."""
    tree = tree_with(option)
    objective, mask, groups = build(tree["loss"])(build(tree["weighting"])), build(tree["mask"]), build(tree["groups"])
    wanted = set(objective.needs)
    missing = {key for key, _ in unmet(tree)}
    assert ("reference" in missing) == bool(wanted & BOTH)
    assert ("groups" in missing) == (GROUP in wanted and isinstance(groups, NoGroups))
    assert stored_scores(tree) == {*(wanted - BOTH - {GROUP}), *mask.needs, *groups.needs}


@pytest.mark.parametrize("option", [o for o in options("reference") if o not in ("reference=score", "reference=none")])
def test_what_references_give_is_read_as_it_is(option: str) -> None:
    given = ["reference.model.path=package:tiny_arith"] if option == "reference=teacher" else []
    tree = tree_of(option, *given)
    reference = build(tree["reference"])
    assert strings(str(tree["reference"]["_target_"]), "gives") == reference.gives  # type: ignore[index]
    needy = tree_of(option, *given, "loss=nll_kl", "weighting=excess_loss")
    expected = [] if reference.gives == BOTH else ["reference"]
    if option == "reference=adapter_off":
        expected = ["reference"]  # without model/lora=default
        assert list(unmet(tree_of(option, "loss=nll_kl", "model/lora=default"))) == []
    assert [key for key, _ in unmet(needy)] == expected


def test_a_stored_score_is_looked_for_where_it_would_be_read(tmp_path: Path) -> None:
    tree = tree_of("mask=attention", f"annotations_dir={tmp_path}")
    ((key, text),) = missing_scores(tree)
    assert key == "data.annotation"
    assert "cft score annotation=tiny_arith score=attention_received name=attention_received" in text
    store_score(tmp_path, name="attention_received", kind="attention_received")
    assert list(missing_scores(tree)) == []


@cache
def first_row() -> list[AnnotatedResponse]:
    return AnnotationStore(SHIPPED / "tiny_arith").rows()[:1]


def store_score(annotations_dir: Path, *, name: str, kind: str) -> None:
    """A score of tiny_arith."""
    rows = first_row()
    values = {one.response_id: one.logprob for one in rows}
    folder = annotations_dir / "tiny_arith" / "scores"
    method = {"score": {"kind": kind}}
    write_score(folder, name=name, method=method, rows=rows, values=values, info={"command": "c"})


@pytest.mark.parametrize(
    "overrides",
    [
        ["weighting=excess_loss", "reference=score", "reference.name=other"],
        ["mask=token_cleaning", "mask.reference=other"],
        ["mask=token_cleaning", "mask.base=other", "mask.reference=logprob"],
        ["mask=reasoning", "mask.shuffled=other"],
        ["loss=shad", "groups=shad", "groups.shuffled=other"],
        ["mask=complement", "mask@mask.of=token_cleaning", "mask.of.reference=other"],
        ["mask=projected", "mask@mask.inner=reasoning", "mask.inner.shuffled=other", "mask.from_annotation=tiny_arith"],
    ],
    ids=" ".join,
)
def test_a_score_of_another_kind_is_no_log_prob(overrides: list[str], tmp_path: Path) -> None:
    tree = tree_of(*overrides, f"annotations_dir={tmp_path}")
    store_score(tmp_path, name="other", kind="attention_received")
    ((_, text),) = missing_scores(tree)
    assert "the stored score other is of the kind attention_received, but reference_logprob is needed here" in text
    assert "cft score annotation=tiny_arith score=reference_logprob" in text
    store_score(tmp_path, name="other", kind="reference_logprob")
    assert list(missing_scores(tree)) == []


def test_a_score_named_after_a_kind_must_be_of_it(tmp_path: Path) -> None:
    tree = tree_of("weighting=sstoken", "reference=annotation", f"annotations_dir={tmp_path}")
    store_score(tmp_path, name="attention_to_prompt", kind="reference_logprob")
    ((_, text),) = missing_scores(tree)
    assert "of the kind reference_logprob, but attention_to_prompt is needed" in text
    assert text.endswith("score=attention_to_prompt name=attention_to_prompt replace=true")


@pytest.mark.parametrize("kind", ["attention_received", "reference_logprob"])
def test_a_mask_by_score_takes_any_kind(kind: str, tmp_path: Path) -> None:
    tree = tree_of("mask=attention", "mask.score=other", f"annotations_dir={tmp_path}")
    store_score(tmp_path, name="other", kind=kind)
    assert list(missing_scores(tree)) == []


# ---- by the check of a job, and through train.py itself


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["weighting=excess_loss"], "reference: this method compares the policy's log-probs"),
        (["loss=asft", "reference=annotation"], "reference: this method needs the full distribution"),
        (["mask=token_cleaning"], "no stored score reference"),
        (
            ["weighting=sstoken", "reference=annotation"],
            "cft score annotation=tiny_arith score=attention_to_prompt",
        ),
        (["weighting=excess_loss", "reference=score", "reference.name=teacher"], "no stored score teacher"),
        (["experiment=rho1"], "score=reference_logprob name=reference"),
        (["experiment=distillation"], "reference.model.path: has no value; give it with reference.model.path=..."),
        (["experiment=target_sft"], "reference.model.path: has no value; give it with reference.model.path=..."),
    ],
)
def test_a_missing_need_is_a_mistake_of_the_configuration(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        asked("train", *arguments)
    assert expected in str(refused.value)


@pytest.mark.parametrize("arguments", [["weighting=excess_loss"], ["mask=token_cleaning"]])
def test_a_missing_need_ends_train_py_before_a_model_is_loaded(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cft.models.load

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cft.models.load, "load_causal_lm", lambda spec: pytest.fail("a model was loaded"))
    ended = run("train", *arguments)
    assert ended.status == 2
    assert "Traceback" not in ended.text


@pytest.mark.slow
def test_it_takes_no_torch(tmp_path: Path) -> None:
    """In a process of its own: what is imported by the time the message is printed."""
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{str(ROOT / 'train.py')!r}, 'mask=token_cleaning', 'loss=shad']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n    print(end.code, sorted({'torch', 'transformers', 'lightning'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "2 []"
