"""Wrong configurations that once passed the check, then ended in a traceback, or ran and did something else."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cft.config.build import ConfigError
from experiments.fuzz_configs import draw
from tests.command_lines import mistakes, mistakes_together
from tests.entry import FIT_ONLY, run
from tests.stage import asked

FOUND: list[tuple[str, list[str], str, str]] = [
    ("train", ["trainer.accelerator=abc"], "trainer.accelerator", "one of auto, cpu"),
    ("train", ["trainer.devices=''"], "trainer.devices", "at least 1"),
    ("train", ["trainer.strategy={}"], "trainer.strategy", "makes a Strategy"),
    ("train", ["+trainer.gradient_clip_algorithm=foo"], "trainer.gradient_clip_algorithm", "one of norm, value"),
    ("train", ["trainer.accumulate_grad_batches=99999999999999999999"], "trainer.accumulate_grad_batches", "64 bits"),
    ("train", ["optimizer.lr={}"], "optimizer.lr", "a number"),
    ("train", ["~optimizer.lr"], "optimizer.lr", "has no value"),
    ("train", ["+optimizer.eps=-1"], "optimizer.eps", "at least 0"),
    ("train", ["+optimizer.maximize=true"], "optimizer.maximize", "made smaller"),
    ("train", ["optimizer=sgd", "+optimizer.nesterov=true"], "optimizer.nesterov", "optimizer.momentum above 0"),
    ("train", ["optimizer=sgd", "optimizer.momentum=2"], "optimizer.momentum", "below 1"),
    ("train", ["~callbacks"], "callbacks.best", "callbacks=default"),
    ("train", ["~callbacks.best"], "callbacks.best", "callbacks=default"),
    ("train", ["callbacks.best.monitor=val/foo"], "callbacks.best.monitor", "one of val/accuracy, val/loss"),
    ("train", ["model.lora={}"], "model.lora", "makes a Lora or null"),
    ("train", ["model/lora=default", "model.lora.alpha=0"], "model.lora.alpha", "at least 1"),
    ("train", ["model.name=''"], "model.name", "not empty"),
    ("train", ["hydra.run.dir=''"], "hydra.run.dir", "expected a folder"),
    ("train", ["annotations_dir=' '"], "annotations_dir", "not empty"),
    ("train", ["+trainer.fast_dev_run=true"], "trainer.fast_dev_run", "data.max_rows"),
    ("train", ["-m", "hydra/launcher=joblib"], "hydra/launcher=joblib", "pip install hydra-joblib-launcher"),
    ("annotate", ["num_alternatives=99999999999999999999"], "num_alternatives", "from 1 to 1000"),
    ("annotate", ["annotations_dir=''"], "annotations_dir", "not empty"),
    ("annotate", ["responses=rollouts", "evidence=sampled"], "evidence", "kept without counterfactuals"),
    ("annotate", ["responses=rollouts", "positions=stride"], "positions._target_", "nothing is tried"),
    ("annotate", ["responses=rollouts", "complete=true"], "complete", "no alternatives to try"),
    ("annotate", ["responses=solve", "evidence=sampled", "num_samples=0"], "num_samples", "at least 1"),
    ("train", ["data.min_pass_rate=1.5"], "data.min_pass_rate", "from 0 to 1 or null"),
    ("annotate", ["~model.dtype"], "model.dtype", "has no value"),
    ("evaluate", ["model.name=''"], "model.name", "not empty"),
    ("evaluate", ["benchmark=mbpp", "benchmark.verifier.cpu_s=10"], "benchmark.verifier.cpu_s", "verify.timeout_s"),
    ("annotate", ["verifier=code", "verify.timeout_s=2"], "verifier.cpu_s", "at most verify.timeout_s"),
]


@pytest.mark.parametrize(("stage", "argv", "key", "hint"), FOUND, ids=[" ".join(case[1]) for case in FOUND])
def test_it_is_a_configuration_error_before_anything_is_imported(
    stage: str, argv: list[str], key: str, hint: str
) -> None:
    (named,) = (m for m in mistakes_together([case[:2] for case in FOUND], (stage, argv)) if m.startswith(f"{key}: "))
    assert hint in named


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "argv", "key", "hint"), FOUND, ids=[" ".join(case[1]) for case in FOUND])
def test_alone_it_is_the_only_mistake(stage: str, argv: list[str], key: str, hint: str) -> None:
    (found,) = mistakes(stage, *argv)
    assert found.startswith(f"{key}: ")
    assert hint in found


@pytest.fixture
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("in_a_folder")
@pytest.mark.parametrize(
    ("argument", "said"),
    [
        (
            "optimizer._target_=torch.optim.Muon ~optimizer.betas ~optimizer.fused",
            "optimizer: torch.optim.Muon refuses its settings (lr=0.0001, weight_decay=0.0): Muon only supports 2D",
        ),
        ("+trainer.detect_anomaly=true +trainer.profiler=abc", "lightning.pytorch.Trainer refuses its settings"),
    ],
)
def test_what_a_library_refuses_is_said_before_the_model_loads(
    argument: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cft.models.lazy.load_causal_lm", lambda spec: pytest.fail("a model was loaded"))
    from cft.stages.train import train

    with pytest.raises(ConfigError) as refused:
        train(*asked("train", *FIT_ONLY, *argument.split()))
    assert said in str(refused.value)


@pytest.mark.usefixtures("in_a_folder")
def test_with_a_folder_of_the_job_the_place_that_was_looked_in_is_named(tmp_path: Path) -> None:
    ended = run(
        "train", *FIT_ONLY, "hydra.job.chdir=true", "hydra.run.dir=run", "annotations_dir=mine", "data.annotation=a"
    )
    assert ended.status == 2
    assert "data.annotation=a: no manifest.json in mine/a" in ended.text
    assert f"Relative paths start at {tmp_path}/run, because of hydra.job.chdir=true" in ended.text


@pytest.mark.usefixtures("in_a_folder")
@pytest.mark.parametrize("number", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_random_wrong_configurations_end_without_a_traceback(number: int) -> None:
    """A sample of `experiments/fuzz_configs.py`, which really starts hundreds."""
    rng = random.Random(20261126)
    for _ in range(number):
        stage, arguments = draw(rng)
        ended = run(stage, *arguments)
        assert "Traceback" not in ended.text, (stage, arguments)
        assert ended.status in (0, 2), (stage, arguments, ended.text)
