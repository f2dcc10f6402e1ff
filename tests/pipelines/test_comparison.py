"""cft compare: which trainings there are, how a rate is chosen, what is said of a wrong design, what an estimate adds up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cft.cli.job import composed
from cft.config.needs import GIVEN_ROWS
from cft.config.step_words import of_compare
from cft.config.typed import plain
from cft.console import duration, size
from cft.errors import UserError
from cft.pipelines import estimate
from cft.pipelines.clock import Clock
from cft.pipelines.comparison import Design, chosen_rate
from cft.pipelines.plan import Planner, Settings, Step
from cft.pipelines.records import Record
from cft.stages.compare import _remove_weights
from tests.command_lines import mistakes
from tests.results import arm, write_run


def design(**more: Any) -> Design:
    tree = {
        "arms": ["sft", "random", "sft"],
        "methods": {"random": {"experiment": "cft", "mask": "random_like_critical"}},
        "rates": [1e-4, 1e-5],
        "seeds": 2,
        "search_seeds": 1,
        "annotation": "",
        "steps": {
            "train": {"trainer": {"max_epochs": 3}, "mask$0mask$like": "numeric"},
            "search": {"trainer.max_epochs": 1},
        },
        "shared": {"data": "arithmetic"},
    }
    return Design.of({**tree, **more})


class Planned:
    """In place of a planner: the nodes that it is given."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}
        self.may_fail: set[str] = set()

    def add(self, name: str, node: dict[str, Any], *, check: bool, may_fail: bool = False) -> None:
        self.nodes[name] = node
        self.may_fail |= {name} if may_fail else set()


def test_every_arm_has_the_method_first_and_the_common_budget_after_it() -> None:
    planned: Any = Planned()
    one = design()
    one.before(planned)
    one.searches(planned)
    one.finals(planned, {"sft": 1e-4, "random": 1e-5})
    one.report(planned)
    assert list(planned.nodes) == [
        *("annotate", "base"),
        *("search-sft-lr1e-05-seed100", "search-sft-lr0_0001-seed100"),
        *("search-random-lr1e-05-seed100", "search-random-lr0_0001-seed100"),
        *("sft-seed0", "sft-seed1", "random-seed0", "random-seed1", "report"),
    ]
    assert planned.may_fail == {name for name in planned.nodes if name.startswith("search-")}
    assert list(planned.nodes["random-seed1"].items()) == [
        ("stage", "train"),
        ("data.annotation", "<step:annotate.config.annotation>"),
        ("experiment", "cft"),
        ("mask", "random_like_critical"),
        ("trainer.max_epochs", 3),
        ("mask@mask.like", "numeric"),
        ("optimizer.lr", 1e-5),
        ("seed", 1),
    ]
    searched = planned.nodes["search-sft-lr0_0001-seed100"]
    assert (searched["evaluation.problems"], searched["trainer.max_epochs"]) == (0, 1)
    assert (searched["seed"], searched["optimizer.lr"]) == (100, 1e-4)
    assert planned.nodes["report"]["choose"] == "optimizer.lr"
    assert one.trainings == 2 * (2 + 2)


def test_an_annotation_that_is_there_is_taken_and_rows_are_annotated_as_they_are() -> None:
    there = design(annotation="mine")
    assert there.training("sft", rate=1.0, seed=0)["data.annotation"] == "mine"
    assert list(there.fixed()) == ["base"]
    rows = {"data": "rows", "data.path": "rows.jsonl"}
    assert design(shared=rows, steps={}).fixed()["annotate"] == {"stage": "annotate", "responses": "given"}
    assert design().fixed()["annotate"] == {"stage": "annotate"}


def test_rows_are_trained_on_as_they_are_where_no_arm_reads_evidence() -> None:
    one = design(arms=["sft", "cft_numeric"], steps={}, shared={"data": "rows", "data.path": "rows.jsonl"})
    assert not one.annotates
    assert list(one.fixed()) == ["base"]
    assert "data.annotation" not in one.training("sft", rate=1.0, seed=0)
    planner = Planner(Settings(folder=Path("nowhere")), {"data": "rows", "data.path": "rows.jsonl"})
    step = planner.add("sft", one.training("sft", rate=1.0, seed=0))
    assert step is not None, planner.errors
    assert (step.config["data"]["_target_"], step.config["data"]["path"]) == (GIVEN_ROWS, "rows.jsonl")


def test_what_is_wrong_with_a_design_is_said_before_anything_starts() -> None:
    found = mistakes(
        "compare", *of_compare(["arms=sft,cftt", "rates=0,1e-5", "+steps.trian.stage=train", "steps.train.seed=1"])
    )
    assert any(m.startswith("arms: no such arm: cftt, did you mean cft?") for m in found), found
    assert "rates: expected numbers above 0, found 0, 1e-05" in found
    assert "steps.train.seed: is varied by the comparison; set it with seeds=..." in found
    assert "steps.trian: no such step, did you mean train?" in found


def searched(root: Path, scores: dict[float, float | None]) -> list[Step]:
    steps = []
    for number, (rate, score) in enumerate(scores.items()):
        folder = root / str(number)
        if score is not None:
            best = {"metric": "val/accuracy", "value": score}
            write_run(
                root,
                str(number),
                arm("all", **{"optimizer.lr": rate}),
                seed=100,
                correct=[1],
                metrics={},
                best_validation=best,
            )
        steps.append(
            Step(name=f"search-sft-lr{rate:g}", stage="train", overrides=(), folder=folder, out=folder, config={})
        )
    return steps


def test_the_rate_is_the_best_on_validation_problems_and_the_smaller_of_equals(tmp_path: Path) -> None:
    assert chosen_rate(searched(tmp_path / "a", {1e-5: 0.2, 3e-5: 0.5, 1e-4: 0.5})) == 3e-5
    assert chosen_rate(searched(tmp_path / "b", {1e-5: 0.2, 3e-5: None})) == 1e-5  # the other one diverged
    with pytest.raises(UserError, match=r"search-sft: no learning rate has a validation score .* rates="):
        chosen_rate(searched(tmp_path / "c", {1e-5: None}))


def test_weights_that_nobody_asked_for_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    step = Step(name="run", stage="train", overrides=(), folder=folder, out=folder, config={})
    for name in ("checkpoints", "export"):
        (folder / name).mkdir(parents=True)
    (folder / "results.json").touch()
    _remove_weights(step, keep="all")
    _remove_weights(replace(step, stage="evaluate"), keep="results")
    assert (folder / "checkpoints").is_dir()
    _remove_weights(step, keep="exports", exports=True)
    assert sorted(path.name for path in folder.iterdir()) == ["export", "results.json"]
    _remove_weights(step, keep="exports")
    assert [path.name for path in folder.iterdir()] == ["results.json"]


def test_a_training_is_told_apart_into_what_repeats_and_what_does_not(tmp_path: Path) -> None:
    """2 epochs of 20 rows in batches of 16: the first batch took 5 s, the 24 rows after it 12; 3 s of 20 were validation
    and checkpoints, and the process took 30."""
    spent = {"first_batch": 5.0, "later_batches": 12.0, "validation": 2.0}
    data = {"train_rows": 20}
    folder = write_run(tmp_path, "run", arm("all"), seed=0, correct=[1], train_seconds=20.0, spent=spent, data=data)
    (folder / "export").mkdir()
    (folder / "export" / "model.safetensors").write_bytes(b"x" * 50)
    config = {"data": {"batch_size": 16}}
    step = Step(name="run", stage="train", overrides=(), folder=folder, out=folder, config=config)
    done = Record(step="run", stage="train", command="", config={}, read={}, finished=True, seconds=30.0)
    measured = estimate._measured(step, {"run": done})
    assert measured == estimate.Training(start=7.0, per_row=0.5, per_epoch=1.5, rows=20, export_bytes=50)
    assert estimate._measured(step, {"run": replace(done, finished=False)}) is None


def test_a_test_begins_once_whatever_it_has_to_solve(tmp_path: Path) -> None:
    """8 problems took 10 s, 24 took 18: 6 to begin and half a second each; around them a process took 3."""
    steps, done = [], {}
    for name, problems, seconds in (("few", 8, 10.0), ("more", 24, 18.0)):
        folder = write_run(tmp_path, name, arm("all"), seed=0, correct=[1] * problems, seconds=seconds)
        steps.append(Step(name=name, stage="evaluate", overrides=(), folder=folder, out=folder, config={}))
        done[name] = Record(
            step=name, stage="evaluate", command="", config={}, read={}, finished=True, seconds=seconds + 3.0
        )
    testing = estimate._testing(steps, done)
    assert testing == estimate.Testing(process=3.0, begin=6.0, per_problem=0.5)
    assert (testing.seconds(100), testing.seconds(0), testing.per_greedy(4)) == (56.0, 0.0, 0.1)
    assert estimate._testing([steps[0]] * 2, done) == estimate.Testing(process=3.0, begin=0.0, per_problem=1.25)


DRAWN = {
    "estimate-report": Record(step="estimate-report", stage="report", command="", config={}, read={}, seconds=25.0)
}


def full(**more: Any) -> Any:
    sizes = {"problems": 0, "rows": 500, "max_rows": -1, "epochs": 3, "validations": 12, "tests": 100, "samples": 4}
    return estimate._Full(**sizes | more)


def test_an_estimate_is_of_all_rows_and_not_of_those_that_were_tried() -> None:
    """500 rows of which 32 were tried and 16 of these trained on: 250 rows; two rates, two seeds of two arms."""
    one = estimate.Training(start=7.0, per_row=0.1, per_epoch=1.0, rows=16, export_bytes=50)
    testing = estimate.Testing(process=3.0, begin=6.0, per_problem=0.5)
    rows = design(shared={"data": "rows"}, annotation="mine")
    found = estimate._extended(full(), rows, None, {"sft": one, "random": None}, testing, DRAWN, "exports", 32)
    train = 7 + 3 * (250 * 0.1 + 1.0 + 10 * 0.1)
    assert (found.rows, found.unknown, found.disk) == (250, ("random",), 2 * 2 * 50)
    assert found.steps == {
        "base": 3 + 56,
        "search-sft": train,
        "sft": train + 56,
        "search-random": train,
        "random": train + 56,
        "report": 25 * (1 + 0.03 * 2 * 4),
    }
    assert found.seconds == pytest.approx(59 + 2 * (2 * train + 2 * (train + 56)) + 31)
    assert estimate._extended(full(max_rows=100), rows, None, {"sft": one}, testing, DRAWN, "all", 32).rows == 50


def test_what_is_left_follows_how_long_the_steps_so_far_took() -> None:
    clock = Clock(
        {"base": 10.0, "search-sft": 100.0, "sft": 200.0}, ["base", "search-sft-lr1e-05", "sft-seed0", "report"]
    )
    assert clock.left("base") == " (about 5 min left)"
    clock.done("base", 20.0)  # twice as long as expected, of 310 s: (20 + 62) / (10 + 62)
    assert clock.left("search-sft-lr1e-05") == " (about 6 min left)"
    clock.done("search-sft-lr1e-05", None)  # of an earlier run
    assert clock.left("sft-seed0") == " (about 4 min left)"
    assert clock.left("report") == ""
    assert [duration(s) for s in (5, 600, 7200)] == ["5 s", "10 min", "2.0 h"]
    assert [size(count) for count in (1500, 2_000_000, 3.25e9)] == ["1.5 kB", "2.0 MB", "3.2 GB"]


def test_the_number_of_test_problems_holds_for_the_untrained_model_and_for_every_run() -> None:
    config = composed("compare", [*of_compare(["test_problems=7", "validation_problems=3"])])[0]
    one = Design.of(plain(config))
    assert one.fixed()["base"]["limit"] == 7
    trained = one.training("sft", rate=1.0, seed=0)
    assert (trained["evaluation.problems"], trained["validation.problems"]) == (7, 3)
