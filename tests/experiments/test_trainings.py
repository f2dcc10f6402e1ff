"""Experiments of many trainings: what is finished, failed or of another configuration, and which rate is best."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cft.config.build import CONF_DIR
from experiments.compare_methods import methods
from experiments.study import STUDIES, Study
from experiments.trainings import LOG, RESULTS, Training, best_rate, run_all, training


def finished(folder: Path, *, validation: float | None) -> Training:
    folder.mkdir(parents=True)
    (folder / RESULTS).write_text(json.dumps({"best_validation": {"metric": "val/accuracy", "value": validation}}))
    return Training(folder, ())


def failed(folder: Path) -> Training:
    folder.mkdir(parents=True)
    (folder / LOG).write_text("cft train\nerror: the loss is not finite\nexit status 1\n")
    return Training(folder, ())


def test_the_best_rate_has_the_best_mean_over_seeds(tmp_path: Path) -> None:
    values = {1e-5: (0.5, 0.9), 1e-4: (0.8, 0.8), 1e-3: (0.9, 0.1)}
    searched = {
        rate: [finished(tmp_path / f"{rate}-{i}", validation=value) for i, value in enumerate(each)]
        for rate, each in values.items()
    }
    assert best_rate(searched) == 1e-4


def test_of_equal_rates_the_smallest_and_never_one_that_failed(tmp_path: Path) -> None:
    good = [finished(tmp_path / name, validation=0.4) for name in "ab"]
    bad = failed(tmp_path / "c")
    worst = finished(tmp_path / "d", validation=None)
    assert bad.failed
    assert not worst.failed
    assert best_rate({3e-4: [good[0]], 1e-4: [good[1]], 1e-5: [bad], 3e-5: [worst]}) == 1e-4


def test_a_rate_is_not_chosen_before_the_search_has_ended(tmp_path: Path) -> None:
    cut_off = Training(tmp_path / "b", ())
    cut_off.folder.mkdir()
    (cut_off.folder / LOG).write_text("cft train\nEpoch 0")
    with pytest.raises(RuntimeError, match="not finished"):
        best_rate({1e-5: [finished(tmp_path / "a", validation=0.9)], 1e-4: [cut_off]})


def test_what_is_finished_is_not_trained_again(tmp_path: Path) -> None:
    assert run_all([finished(tmp_path / "a", validation=0.5)], title="", workers=2) == []


def test_another_configuration_lies_in_another_folder(tmp_path: Path) -> None:
    arm = ("mask=critical", "data.max_rows=500")
    same = [training(tmp_path, "cft", arm, ("seed=0",)) for _ in range(2)]
    assert same[0] == same[1]
    others = [
        training(tmp_path, "cft", arm, ("seed=1",)),
        training(tmp_path, "cft", ("mask=critical", "data.max_rows=501"), ("seed=0",)),
        training(tmp_path, "cft", ("mask=all", "data.max_rows=500"), ("seed=0",)),
    ]
    assert len({same[0].folder, *(other.folder for other in others)}) == 4


@pytest.mark.parametrize(
    "study",
    [pytest.param(s, marks=pytest.mark.slow, id=s.name) for s in STUDIES],
)
def test_every_arm_of_a_study_composes_under_one_budget(study: Study) -> None:
    """The arms differ in mask and weighting alone; the search leaves the test problems and the tested seeds alone."""
    trained = {
        arm: [run for rate in study.rates for run in study.search(arm, rate)] or [study.final(arm, study.seeds[0])]
        for arm in study.arms
    }
    searches = len(study.rates) > 1
    for runs in trained.values():
        assert (
            len({run.folder for run in runs})
            == len(runs)
            == (len(study.rates) * len(study.search_seeds) if searches else 1)
        )
        assert searches != any(f"seed={seed}" in run.overrides for run in runs for seed in study.seeds)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        configs = [
            OmegaConf.to_container(compose("train", overrides=list(runs[0].overrides))) for runs in trained.values()
        ]
    budgets = []
    for config in configs:
        assert isinstance(config, dict)
        budgets.append({part: value for part, value in config.items() if part not in ("mask", "weighting")})
        assert config["evaluation"]["problems"] == (0 if searches else study.problems)
    assert all(budget == budgets[0] for budget in budgets)
    assert len({json.dumps([config["mask"], config["weighting"]]) for config in configs}) == len(study.arms)  # type: ignore[index]


def test_methods_are_told_apart_by_their_folders() -> None:
    runs = [method.search(1e-4).folder for method in methods(("cft", "mask=entropy"))]
    assert len({*runs}) == 3  # and plain fine-tuning
