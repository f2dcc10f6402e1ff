"""The config check finds every mistake, names the key and the remedy, and lets no foreign code be built."""

from __future__ import annotations

import functools
import hashlib
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from cft.config import command_line
from cft.config.allow_list import bad_prefix, import_target, refusal
from cft.config.build import CONF_DIR, ConfigError, build, check_command_line, checked, config_hash, redacted
from cft.config.check import ErrorDetail
from cft.config.redaction import REDACTED, is_secret_key, redacted_text
from tests.command_lines import mistakes, mistakes_together

ROOT = Path(__file__).resolve().parent.parent.parent


def composed(stage: str, *overrides: str, conf: Path = CONF_DIR) -> DictConfig:
    with initialize_config_dir(str(conf), version_base="1.3"):
        return compose(stage, list(overrides))


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A copy of the conf tree that a test may change, in a folder with a space, an equals sign and an umlaut."""
    folder = tmp_path / "a b=ü" / "conf"
    shutil.copytree(CONF_DIR, folder)
    (folder / "experiment").mkdir(exist_ok=True)
    return folder


def experiment(conf: Path, text: str, name: str = "mine") -> str:
    (conf / "experiment" / f"{name}.yaml").write_text("# @package _global_\n" + dedent(text), encoding="utf-8")
    return f"experiment={name}"


TYPICAL: list[tuple[str, str, list[str], str, str]] = [
    ("unknown option of a group", "train", ["mask=critcal"], "mask=critcal", "did you mean critical?"),
    ("misspelt group", "train", ["weightng=uniform"], "weightng", "did you mean weighting?"),
    ("group of another stage", "annotate", ["mask=critical"], "mask=critical", "cft annotate has no group 'mask'"),
    ("misspelt key", "train", ["trainer.max_epoch=1"], "trainer.max_epoch", "did you mean trainer.max_epochs?"),
    ("key at the wrong depth", "train", ["lr=1e-3"], "lr", "did you mean optimizer.lr?"),
    ("misspelt key behind a plus", "train", ["+optimizer.wieght_decay=0"], "optimizer.wieght_decay", "weight_decay?"),
    ("unknown top-level key behind two", "evaluate", ["++chekpoint=x"], "chekpoint", "did you mean checkpoint?"),
    ("parameter without plus", "train", ["optimizer.amsgrad=true"], "optimizer.amsgrad", "add it with +"),
    ("wrong type", "train", ["optimizer.lr=fast"], "optimizer.lr", "expected a number, found 'fast'"),
    ("wrong type of our own", "annotate", ["limit=2.5"], "limit", "integer of at least 1, or -1 for all, found 2.5"),
    ("wrong choice", "train", ["loss.normalizer=sequences"], "loss.normalizer", "did you mean sequence?"),
    ("wrong choice of our own", "train", ["schedule.shape=cosin"], "schedule.shape", "did you mean cosine?"),
    ("wrong nested choice", "train", ["mask=complement", "mask.of.rule=every"], "mask.of.rule", "one of all, any"),
    ("missing value", "annotate", ["model=hub", "model.name=m"], "model.path", "give it with model.path="),
    ("broken interpolation", "train", ["loss.chunk_tokens=${sed}"], "loss.chunk_tokens", "'sed' not found"),
    ("two epochs too few", "train", ["trainer.max_epochs=-1"], "trainer.max_steps", "above 0 because"),
    ("Lightning's sampler", "train", ["trainer.use_distributed_sampler=true"], "trainer.use_distributed_sampler", ""),
    ("no validation to monitor", "train", ["validation.problems=0"], "callbacks.best.monitor", "callbacks=best_loss"),
    ("float16", "train", ["trainer.precision=16-mixed"], "trainer.precision", "bf16-mixed"),
    ("flag-like override", "train", ["--mask=critical"], "--mask=critical", "write mask=critical, without dashes"),
    ("no value", "train", ["optimizer.lr"], "optimizer.lr", "expected key=value"),
    ("sweep without -m", "train", ["seed=0,1"], "seed=0,1", "need -m"),
    ("text where an object is", "train", ["mask=complement", "mask.of=critcal"], "mask.of", "that makes a Mask"),
    ("option where a mask is", "train", ["mask=complement", "mask.of=all"], "mask.of", "option with mask@mask.of=all"),
    ("option where a factor is", "train", ["weighting=product", "weighting.factors.first=focal"],
     "weighting.factors.first", "option with weighting@weighting.factors.first=focal"),
    ("option where a factor could be", "train", ["weighting=product", "weighting.factors.third=focal"],
     "weighting.factors.third", "option with +weighting@weighting.factors.third=focal"),
    ("option where a term could be", "train", ["loss.regularizers.kl=sed"], "loss.regularizers.kl",
     "option with +regularizer@loss.regularizers.kl=sed"),
    ("number where a factor is", "train", ["weighting=product", "+weighting.factors.third=5"],
     "weighting.factors.third", "that makes a TokenWeighting, found 5"),
    ("regularizer on its own", "train", ["regularizer=sed"], "regularizer=sed", "+regularizer@loss.regularizers.sed=sed"),
    ("two options of one object", "train", ["weighting=[probability,eaft]"], "weighting=[probability,eaft]",
     "several weightings multiplied are weighting=product"),
    ("infinite setting of a library", "train", ["optimizer.weight_decay=inf"], "optimizer.weight_decay", "finite"),
    ("a list with a NaN in it", "train", ["optimizer.betas=[0.9,nan]"], "optimizer.betas", "expected finite numbers"),
    ("selections multiplied", "train", ["mask=all", "weighting=product", "weighting@weighting.factors.first=excess_loss",
     "weighting@weighting.factors.second=high_entropy", "reference=annotation"], "weighting.factors.second",
     "at most one selection by rank in a product, found 2: weighting.factors.first, weighting.factors.second"),
    ("the program's own argument", "train", ["+optimizer.params=[]"], "optimizer.params", "from the program"),
    ("needed argument removed", "train", ["mask=prefix", "~mask.num_tokens"], "mask.num_tokens", "needs it"),
    ("misspelt callback", "train", ["+callbacks.bset.monitor=val/loss"], "callbacks.bset", "did you mean best?"),
    ("wrong hydra setting", "train", ["hydra.run.dri=x"], "hydra.run.dri", "did you mean hydra.run.dir?"),
    ("null for a group", "train", ["logger=null"], "logger=null", "~logger leaves the group out"),
    ("a character that needs quotes", "train", ["data.dir=ü"], "data.dir", "needs quotes"),
    ("problems where an annotation is", "train", ["data=arithmetic"], "data._target_", "data=annotated"),
    ("a reference that is not chosen", "train", ["weighting=excess_loss"], "reference", "compares the policy's log-probs"),
    ("a value where keys are", "train", ["schedule=cosine"], "schedule", "expected the keys shape, warmup_fraction"),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "argv", "key", "hint"), [c[1:] for c in TYPICAL], ids=[c[0] for c in TYPICAL])
def test_a_typical_mistake_is_named_with_its_remedy(stage: str, argv: list[str], key: str, hint: str) -> None:
    found = mistakes_together([case[1:3] for case in TYPICAL], (stage, argv))
    (named,) = (m for m in found if m.startswith(f"{key}:"))
    assert hint in named


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "argv", "key", "hint"), [c[1:] for c in TYPICAL], ids=[c[0] for c in TYPICAL])
def test_a_typical_mistake_alone_is_the_only_one(stage: str, argv: list[str], key: str, hint: str) -> None:
    found = mistakes(stage, *argv)
    assert len(found) == 1, found
    assert found[0].startswith(f"{key}:")
    assert hint in found[0]


RULES: list[tuple[str, str, str]] = [
    ("annotate", "num_alternatives=0", "num_alternatives"),
    ("annotate", "limit=0", "limit"),
    ("annotate", "limit=-2", "limit"),
    ("annotate", "max_new_tokens=1", "max_new_tokens"),
    ("annotate", "replay_fraction=1.5", "replay_fraction"),
    ("annotate", "annotation=../elsewhere", "annotation"),
    ("annotate", "annotation=''", "annotation"),
    ("annotate", "verify.timeout_s=0", "verify.timeout_s"),
    ("annotate", "seed=-1", "seed"),
    ("train", "data.batch_size=0", "data.batch_size"),
    ("train", "data.validation_fraction=1.0", "data.validation_fraction"),
    ("train", "optimizer.lr=0", "optimizer.lr"),
    ("train", "optimizer.lr=.nan", "optimizer.lr"),
    ("train", "optimizer.betas=[0.9,1.0]", "optimizer.betas"),
    ("train", "trainer.max_epochs=0", "trainer.max_epochs"),
    ("train", "trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches"),
    ("train", "trainer.precision=bf16-true", "trainer.precision"),
    ("train", "mask.num_alternatives=0", "mask.num_alternatives"),
    ("train", "loss.chunk_tokens=inf", "loss.chunk_tokens"),
    ("train", "schedule.warmup_fraction=2", "schedule.warmup_fraction"),
    ("train", "evaluation.temperature=0", "evaluation.temperature"),
    ("train", "callbacks.best.mode=min", "callbacks.best.mode"),
    ("evaluate", "temperature=0.0", "temperature"),
    ("evaluate", "top_p=0", "top_p"),
    ("evaluate", "num_samples=-1", "num_samples"),
]


@pytest.mark.parametrize(("stage", "override", "key"), RULES, ids=[f"{s}-{o}" for s, o, _ in RULES])
def test_a_value_out_of_range_breaks_a_rule(stage: str, override: str, key: str) -> None:
    found = mistakes_together([(stage, [override]) for stage, override, _ in RULES], (stage, [override]))
    assert len([m for m in found if m.startswith(f"{key}: expected ")]) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "override", "key"), RULES, ids=[f"{s}-{o}" for s, o, _ in RULES])
def test_a_value_out_of_range_alone_breaks_one_rule(stage: str, override: str, key: str) -> None:
    found = mistakes(stage, override)
    assert len(found) == 1, found
    assert found[0].startswith(f"{key}: expected ")


@pytest.mark.parametrize(
    ("stage", "argv"),
    [
        ("train", ["callbacks=best_loss", "data.validation_fraction=0"]),
        ("train", ["callbacks=best_loss", "data.validation_fraction=0.0", "validation.problems=5"]),
    ],
)
def test_the_best_epoch_by_a_loss_needs_rows_held_out(stage: str, argv: list[str]) -> None:
    assert [m.split(":")[0] for m in mistakes(stage, *argv)] == ["callbacks.best.monitor"]


@pytest.mark.parametrize(
    ("stage", "argv"),
    [
        ("train", ["trainer.max_epochs=-1", "trainer.max_steps=10", "evaluation.num_samples=0", "evaluation.temperature=0",
                   "~logger", "~callbacks.last", "~callbacks.learning_rate",
                   "mask.num_alternatives=${probe.critical_alternatives}"]),
        ("train", ["callbacks=best_loss", "validation.problems=0", "trainer=ddp", "trainer.precision=bf16-mixed",
                   "optimizer.lr=1", "mask=random_like_critical", "mask.like.num_alternatives=3", "seed=7",
                   "data.annotation='folder with spaces/ü'", "logger=wandb", "logger.wandb.tags=[a,b]"]),
        ("train", ["callbacks=[default,best_loss]", "+regularizer@loss.regularizers.a=sed", "weighting=product",
                   "+weighting@weighting.factors.third=high_entropy", "mask=all,critical", "optimizer.lr=1e-4,1e-3",
                   "seed=range(3)", "-m"]),
        pytest.param("train", ["mask=glob(*,exclude=projected)", "-m"], marks=pytest.mark.slow),
        ("evaluate", ["checkpoint=outputs/train/2025-01-01_10-00-00-000001", "limit=-1"]),
        ("annotate", ["limit=-1", "hydra.run.dir=elsewhere", "hydra.verbose=true", "model=smollm2", "data=arithmetic",
                      "max_new_tokens=2"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)  # fmt: skip
def test_a_sound_command_line_passes(stage: str, argv: list[str]) -> None:
    assert mistakes(stage, *argv) == []


@pytest.mark.parametrize("flag", ["--help", "--hydra-help", "--cfg=job", "--info=defaults"])
def test_flags_that_start_nothing_are_left_to_hydra(flag: str) -> None:
    check_command_line("train", [flag, "mask=nonsense"])


def test_all_mistakes_are_reported_at_once_and_only_they(capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        case[2][0] for case in TYPICAL if case[0] in ("misspelt group", "misspelt key", "wrong choice", "wrong type")
    ]
    with pytest.raises(SystemExit) as stopped:
        check_command_line("train", argv)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err.splitlines()
    assert printed[0] == "cft train: 4 configuration errors, nothing was started"
    keys = [line.split(":")[0].strip() for line in printed[1:]]
    assert sorted(keys) == ["loss.normalizer", "optimizer.lr", "trainer.max_epoch", "weightng"]


# ---- what stands in a yaml


def test_an_experiment_cannot_smuggle_a_misspelt_key_in(conf: Path) -> None:
    chosen = experiment(
        conf,
        """
        defaults:
          - override /mask: prefix
        trainer: {max_epoch: 2}
        schedule: {shap: linear}
        mask: {num_token: 3}
        sede: 3
        """,
    )
    found = mistakes("train", chosen, conf=conf)
    assert [m.split(":")[0] for m in found] == ["sede", "mask.num_token", "trainer.max_epoch", "schedule.shap"]
    assert all("(conf/experiment/mine.yaml)" in m and "did you mean" in m for m in found)


def test_an_experiment_wins_over_the_base_file_and_the_command_line_over_both(conf: Path) -> None:
    chosen = experiment(conf, "seed: 5\nvalidation: {problems: 3}\n")
    config = composed("train", chosen, "validation.problems=4", conf=conf)
    assert (config.seed, config.validation.problems) == (5, 4)


@pytest.mark.parametrize("stage", ["annotate", "train", "evaluate"])
def test_experiments_come_after_self_in_every_stage(stage: str) -> None:
    defaults = OmegaConf.load(CONF_DIR / f"{stage}.yaml").defaults
    names = [next(iter(d)) if isinstance(d, DictConfig) else d for d in defaults]
    assert names[0] == f"{stage}_schema"
    assert names.index("_self_") < names.index("experiment")


def test_a_misspelt_key_at_the_top_of_a_stage_file_is_found(conf: Path) -> None:
    file = conf / "train.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("\nprobe:", "\nprobee:"), encoding="utf-8")
    found = mistakes("train", conf=conf)
    assert "probee: no such key, did you mean probe? (conf/train.yaml)" in found
    assert "probe.every_n_steps: has no value; give it with probe.every_n_steps=..." in found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("defaults:\n  - override /mask: nonsense\n", "mask/nonsense"),
        ("seed: [1\n", "experiment=mine"),
        ("seed: 1\nseed: 2\n", "duplicate key seed"),
    ],
    ids=["unknown option", "yaml syntax", "key given twice"],
)
def test_a_yaml_that_does_not_compose_is_reported_with_the_other_mistakes(conf: Path, text: str, expected: str) -> None:
    found = mistakes("train", experiment(conf, text), "seed=x", conf=conf)
    assert len(found) == 2
    assert expected in found[0]
    assert found[1].startswith("seed: expected an integer")


@pytest.mark.parametrize(
    "options",
    ["[critical, all]", *(pytest.param(o, marks=pytest.mark.slow) for o in ("[all, critical]", "[critical]"))],
)
def test_a_list_of_options_in_a_yaml_is_refused_where_one_belongs(conf: Path, options: str) -> None:
    """Hydra would mix the keys of both masks, and the run would not know which it has."""
    chosen = experiment(conf, f"defaults:\n  - override /mask: {options}\n  - override /logger: [csv, none]\n")
    found = mistakes("train", chosen, conf=conf)
    assert found[0] == (
        "defaults: override /mask: expected one option, found a list; mask=a,b with -m tries each "
        "(conf/experiment/mine.yaml)"
    )
    assert not any("logger" in m for m in found)
    swept = mistakes("train", "-m", "experiment=cft,mine", conf=conf)
    assert found[0] in swept


def test_hydras_own_objects_must_be_hydras_own(conf: Path) -> None:
    chosen = experiment(conf, "hydra: {callbacks: {spy: {_target_: os.system}}}\n")
    assert any(
        m.startswith("hydra.callbacks.spy._target_: 'os.system' is refused")
        for m in mistakes("train", chosen, conf=conf)
    )


def test_logging_settings_call_no_foreign_code(conf: Path) -> None:
    entry = "{handlers: {a: {class: os.system, command: ls}}, formatters: {b: {(): os.system}}}"
    found = mistakes("train", experiment(conf, f"hydra: {{job_logging: {entry}, hydra_logging: {entry}}}\n"), conf=conf)
    assert {m.split(" is refused")[0] for m in found} == {
        f"hydra.{key}.{place}: 'os.system'"
        for key in ("job_logging", "hydra_logging")
        for place in ("handlers.a.class", "formatters.b.()")
    }


def test_a_file_that_would_override_its_experiments_is_reported(conf: Path) -> None:
    text = (conf / "train.yaml").read_text(encoding="utf-8").replace("  - _self_\n", "")
    (conf / "mine.yaml").write_text(text.replace("  - experiment: null\n", "  - experiment: null\n  - _self_\n"))
    found = mistakes("train", "--config-name=mine", conf=conf)
    assert len(found) == 1
    assert found[0].startswith("mine.yaml: _self_ must come before experiment")


def test_a_saved_config_passes_as_the_whole_config(tmp_path: Path) -> None:
    """How the other processes of a distributed job are started: from .hydra/config.yaml, no groups."""
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(composed("train", "mask=complement", "seed=3")))
    assert mistakes("train", "-cp", str(tmp_path), "-cn", "config.yaml") == []
    found = mistakes("train", "-cp", str(tmp_path), "-cn", "config", "seed=x")
    assert found == ["seed: expected an integer from 0 to 2^32 - 1, found 'x'"]


def test_a_further_config_folder_is_searched(tmp_path: Path) -> None:
    (tmp_path / "mask").mkdir()
    (tmp_path / "mask" / "mine.yaml").write_text("_target_: cft.masks.Prefix\nnum_token: 3\n")
    found = mistakes("train", "--config-dir", str(tmp_path), "mask=mine")
    assert [m.split(":")[0] for m in found] == ["mask.num_token", "mask.num_tokens"]
    assert mistakes("train", "--config-dir", str(tmp_path / "none"))[0].endswith("there is no such config folder")


# ---- sweeps


def test_every_value_of_every_axis_is_checked() -> None:
    found = mistakes(
        "train", "-m", "mask=all,critcal,prefix", "weighting=uniform,probability,unifrom", "optimizer.lr=1e-3,-1,x",
        "loss.normalizer=choice(critical,tokens)", "seed=range(0,3)",
    )  # fmt: skip
    keys = [m.split(":")[0] for m in found]
    expected = ["mask=critcal", "weighting=unifrom", "optimizer.lr", "optimizer.lr", "loss.normalizer"]
    assert keys == expected
    assert "[with optimizer.lr=-1]" in found[2]
    assert "[with loss.normalizer=tokens]" in found[4]


def test_a_value_that_suits_one_option_only_is_found() -> None:
    found = mistakes("train", "-m", "mask=prefix,critical", "mask.num_tokens=4")
    assert len(found) == 1
    assert found[0].startswith("mask.num_tokens: cft.masks.Critical has no 'num_tokens'")
    assert "[with mask=critical]" in found[0]


def test_a_sweep_is_checked_by_the_sum_of_its_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 x 10 x 10 jobs: the product would take a minute."""
    checked, check = [], command_line.find_errors

    def counted(*args: Any, **options: Any) -> list[ErrorDetail]:
        checked.append(args)
        return check(*args, **options)

    monkeypatch.setattr(command_line, "find_errors", counted)
    assert (
        mistakes("train", "-m", *(f"{key}=range(1,11)" for key in ("seed", "data.batch_size", "trainer.max_epochs")))
        == []
    )
    assert len(checked) == 1 + 3 * 9


def test_axes_in_a_yaml_are_checked(conf: Path) -> None:
    chosen = experiment(conf, "hydra: {sweeper: {params: {seed: '0,1,x', mask: 'all,allx'}}}\n")
    found = mistakes("train", "-m", chosen, conf=conf)
    assert [m.split(":")[0] for m in found] == ["mask=allx", "seed"]
    assert mistakes("train", chosen, conf=conf) == []  # one job: there are no axes


# ---- targets

DANGEROUS = [
    "torch.hub.load",
    "sympy.sympify",
    "pandas.eval",
    "urllib.request.urlopen",
    "os.system",
    "subprocess.run",
    "builtins.eval",
    "builtins.exec",
    "pickle.loads",
    "shutil.rmtree",
    "importlib.import_module",
    "torch.load",
    "cft.models.load.torch.hub.load",  # starts well
    "cft.config.build.sys.modules",
    "cft.masks.base.np.load",
    "cft.files.os.replace",
    "cft.config.build.import_target",  # another module's function under our name
    "cft.config.build.build",
    "cft.api.push",
    "cft.push",
    "cft.stages.push.push",
    "cft.config.allow_list.import_target",
    "torch.optim.torch.hub.load",
    "torch.optim.lr_scheduler.partial",
    "torch.optim.swa_utils.deepcopy",
    "lightning.pytorch.seed_everything",  # defined elsewhere
    "lightning.pytorch.cli.instantiate_class",  # makes any object by name
    "lightning.pytorch.cli.LightningCLI",
    "lightning.pytorch.LightningModule.load_from_checkpoint",  # unpickles
    "lightning.pytorch.core.saving.load_hparams_from_yaml",
    "lightning.pytorch.trainer.trainer.os.system",
    "cft..masks.All",
    "cft",
    "cft.",
    "cftx.masks.All",
]


@pytest.mark.parametrize("target", DANGEROUS)
def test_a_dangerous_target_is_refused_by_name_and_never_built(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"imported {name}"))
    reason = refusal(target)
    assert reason is not None
    assert f"'{target}'" in reason
    with pytest.raises(PermissionError):
        import_target(target)
    nested: list[dict[str, Any]] = [
        {"_target_": target},
        {"_target_": target, "_args_": ["x"]},
        {"_target_": target, "_partial_": True},
        {"_target_": "cft.masks.Complement", "of": {"_target_": target}},
        {"_target_": "cft.masks.Complement", "_args_": [{"_target_": target}]},
        {"_target_": "cft.masks.Prefix", "_partial_": True, "num_tokens": [[{"_target_": target}]]},
        {"a": {"b": [{"_target_": "cft.masks.All"}, {"_target_": target}]}},
    ]
    for node in nested:
        with pytest.raises(ConfigError, match="_target_"):
            build(node)


def test_the_command_line_check_quotes_a_refused_target() -> None:
    targets = ["os.system", "torch.hub.load", "cft.models.load.torch.hub.load", "builtins.eval"]
    found = mistakes(
        "train", "mask._target_=os.system", *(f"+callbacks.x{i}={{_target_:{target}}}" for i, target in enumerate(targets)),
        f"+trainer.plugins=[{','.join(f'{{_target_:{target}}}' for target in targets)}]",
    )  # fmt: skip
    for i, target in enumerate(targets):
        for place in (f"callbacks.x{i}", f"trainer.plugins[{i}]", *(["mask"] if i == 0 else [])):
            assert any(m.startswith(f"{place}._target_: ") and f"'{target}'" in m for m in found), (place, found)


@pytest.mark.parametrize("target", [None, 5, ["os.system"], {"a": 1}])
def test_a_target_that_is_no_name_is_refused(target: object) -> None:
    with pytest.raises(ConfigError, match="expected a dotted name"):
        build({"_target_": target})


def test_the_imported_object_is_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module may say one thing in its source and hold another once it is imported."""
    (tmp_path / "mylab_shifty.py").write_text("def good(): ...\nglobals()['good'] = __import__('os').system\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert refusal("mylab_shifty.good", extra=["mylab_shifty."]) is None
    with pytest.raises(PermissionError, match="neither a class nor a function"):
        import_target("mylab_shifty.good", extra=["mylab_shifty."])
    (tmp_path / "mylab_borrowed.py").write_text(
        "def good(): ...\nfrom shutil import rmtree\nglobals()['good'] = rmtree\n"
    )
    with pytest.raises(PermissionError, match=r"it is shutil\.rmtree"):
        import_target("mylab_borrowed.good", extra=["mylab_borrowed."])


@pytest.fixture
def mylab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:  # another test's
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "mylab").mkdir()
    (tmp_path / "mylab" / "__init__.py").write_text("")
    (tmp_path / "mylab" / "masks.py").write_text(
        "class Mine:\n    def __init__(self, *, width: int) -> None:\n        ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "mask={_target_:mylab.masks.Mine,width:3}"


def test_own_packages_are_let_in_by_the_command_line_alone(conf: Path, mylab: str) -> None:
    own = experiment(conf, "defaults: [override /mask: mine]\n")
    (conf / "mask" / "mine.yaml").write_text("_target_: mylab.masks.Mine\nwidth: 3\n")
    assert any(
        "'mylab.masks.Mine' is refused" in m and "allow_targets=[mylab.]" in m
        for m in mistakes("train", own, conf=conf)
    )
    assert mistakes("train", own, "allow_targets=[mylab.]", conf=conf) == []
    found = mistakes("train", own, "allow_targets=[mylab.]", "mask.width=wide", conf=conf)
    assert found == ["mask.width: expected an integer, found 'wide'"]
    in_yaml = experiment(conf, "defaults: [override /mask: mine]\nallow_targets: [mylab.]\n", name="sly")
    found = mistakes("train", in_yaml, conf=conf)
    assert "allow_targets: is accepted on the command line only, not from a yaml" in found
    assert any("'mylab.masks.Mine' is refused" in m for m in found)
    posing = experiment(conf, "hydra: {overrides: {task: ['allow_targets=[os.]']}}\n", name="posing")
    assert any(m.startswith("hydra.overrides.task:") for m in mistakes("train", posing, conf=conf))


@pytest.mark.parametrize("prefix", ["mylab", "", ".", "my-lab.", "mylab..", 5, "${oc.env:X}."])
def test_a_prefix_must_be_a_package_name_with_a_dot(prefix: object) -> None:
    assert bad_prefix(prefix) is not None
    assert bad_prefix("mylab.sub.") is None


# ---- build


def test_build_calls_nested_nodes_and_leaves_plain_values_plain() -> None:
    from cft.masks import Complement, Critical

    built = build(composed("train", "mask=complement", "mask.of.rule=any").mask)
    assert isinstance(built, Complement)
    assert isinstance(built.inner, Critical)
    assert built.inner.rule == "any"
    assert build({"a": [1, {"b": None}]}) == {"a": [1, {"b": None}]}


def test_a_partial_node_waits_for_what_the_program_gives() -> None:
    import torch

    node = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.25}
    waiting = build(node)
    assert isinstance(waiting, functools.partial)
    weight = torch.nn.Parameter(torch.ones(1))
    assert waiting([weight]).param_groups[0]["lr"] == 0.25
    assert build(node, [weight])().param_groups[0]["params"] == [weight]
    assert build({**node, "_partial_": False}, [weight]).param_groups[0]["lr"] == 0.25
    with pytest.raises(ConfigError, match=r"params: .* needs it"):
        build({**node, "_partial_": False})
    with pytest.raises(ConfigError, match="takes arguments"):
        build({"a": 1}, weight)


def test_a_partial_node_may_not_leave_out_what_the_config_must_give() -> None:
    with pytest.raises(ConfigError, match=r"num_tokens: cft\.masks\.Prefix needs it"):
        build({"_target_": "cft.masks.Prefix", "_partial_": True})


def test_constructors_get_plain_containers() -> None:
    """A DictConfig inside a checkpoint cannot be loaded with weights_only."""
    node = OmegaConf.create(
        {"x": {"_target_": "torch.optim.AdamW", "_partial_": True, "betas": [0.8, "${y}"]}, "y": 0.9}
    )
    assert type(build(node.x).keywords["betas"]) is list
    assert build(node.x).keywords["betas"] == [0.8, 0.9]


# ---- checked


def test_checked_gives_the_config_back_or_raises_all_mistakes() -> None:
    config = composed("train")
    assert checked(config, "train") is config
    config.seed = -1
    config.mask.num_alternatives = 0
    with pytest.raises(ConfigError) as error:
        checked(config, "train")
    assert {m.split(":")[0] for m in str(error.value).splitlines()} == {"seed", "mask.num_alternatives"}


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["groups=tfidf", "reference=initial"], ["reference", "groups"]),
        (["groups=tfidf", "loss=sft_go"], []),
        (["reference=annotation", "weighting=excess_loss"], []),
        (["reference=annotation", "+regularizer@loss.regularizers.kl=entropy_bonus"], ["reference"]),
        ([], []),
    ],
)
def test_a_choice_without_effect_is_noted(
    overrides: list[str], keys: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    checked(composed("train", *overrides), "train")
    notes = capsys.readouterr().out.splitlines()
    assert [note.split(":")[1].strip() for note in notes] == keys
    assert all(note.startswith("Note: ") and "effect" in note for note in notes)


def test_the_strict_schema_is_back_after_a_check() -> None:
    mistakes("train", "seed=x")
    with pytest.raises(Exception, match="Error merging override seed=x"):
        composed("train", "seed=x").seed  # noqa: B018


# ---- fingerprint and secrets


def test_the_hash_stands_for_the_resolved_values_alone() -> None:
    one = OmegaConf.create({"a": 1, "b": {"c": "${a}", "d": "ü"}})
    same = OmegaConf.create({"b": {"d": "ü", "c": 1}, "a": 1})
    other = OmegaConf.create({"b": {"d": "ü", "c": 1.5}, "a": 1})
    written = '{"a":1,"b":{"c":1,"d":"ü"}}'
    assert config_hash(one) == config_hash(same) == hashlib.sha256(written.encode()).hexdigest()[:12]
    assert config_hash(other) != config_hash(one)


@pytest.mark.parametrize(
    "key",
    [
        "api_key",
        "hf_token",
        "TOKEN",
        "clientSecret",
        "password",
        "db_password_file",
        "WANDB_API_KEY",
        "apikey",
        "access-token",
    ],
)
def test_keys_with_a_secret_in_them(key: str) -> None:
    assert is_secret_key(key)


@pytest.mark.parametrize(
    "key",
    ["max_new_tokens", "tokenizer", "token_loss", "keyboard", "monkey", "eos_token", "eos_tokens", "num_tokens",
     "monitor", "chunk_tokens", "loss_per_token", "", "key_bits", "secretary"],
)  # fmt: skip
def test_keys_without(key: str) -> None:
    assert not is_secret_key(key)


def test_planted_secrets_are_redacted_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "planted-0123456789")
    tree = {
        "logger": {"wandb": {"api_key": "planted-a", "project": "cft"}},
        "list": [{"password": "planted-b"}, "x planted-0123456789 y", "https://me:planted-c@host/path"],
        "credentials": {"user": "planted-d"},
        "max_new_tokens": 96,
        "token": "",
    }
    result = redacted(OmegaConf.create(tree))
    assert "planted" not in str(result)
    assert result["max_new_tokens"] == 96
    assert result["token"] == ""
    assert result["logger"]["wandb"]["project"] == "cft"
    assert result["list"][2] == f"https://{REDACTED}@host/path"
    assert redacted_text("logger.wandb.api_key=planted-a") == f"logger.wandb.api_key={REDACTED}"
    assert redacted(composed("train")) == OmegaConf.to_container(composed("train"), resolve=True)


def test_the_check_refuses_secrets_without_repeating_them(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra saves the command line and the config beside every run."""
    monkeypatch.setenv("SOME_API_KEY", "planted-0123456789")
    found = mistakes(
        "train", "logger=wandb", "logger.wandb.api_key=planted-a", "+model.token=planted-b",
        "logger.wandb.project=${oc.env:SOME_API_KEY}", "--password=planted-c",
        experiment(conf, "model: {hf_token: planted-d}\n"), "+secret=a,planted-e", conf=conf,
    )  # fmt: skip
    assert not any("planted" in m for m in found)
    text = "\n".join(found)
    assert "logger.wandb.api_key: a secret" in text
    assert "WANDB_API_KEY" in text
    assert "model.hf_token: a secret" in text
    assert "HF_TOKEN" in text
    assert "model.token: a secret" in text
    assert "logger.wandb.project: holds" in text


# ---- the real thing


@pytest.mark.slow
def test_the_real_entry_point_reports_everything(tmp_path: Path) -> None:
    argv = ["mask=critcal", "trainer.max_epoch=3", "+foo=1", "loss.normalizer=sequences", "engine._target_=os.system"]
    command = [sys.executable, str(ROOT / "train.py"), *argv]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "5 configuration errors" in result.stderr
    assert "Traceback" not in result.stderr
    for hint in (
        "did you mean critical?",
        "did you mean trainer.max_epochs?",
        "foo",
        "sequence?",
        "'os.system' is refused",
    ):
        assert hint in result.stderr
    assert list(tmp_path.iterdir()) == []  # nothing was started, so nothing was written


def test_the_check_imports_no_heavy_package() -> None:
    code = """
        import sys
        from cft.config.build import check_command_line
        check_command_line("train", ["-m", "optimizer=sgd", "mask=all,critical"])
        print([m for m in ("torch", "lightning", "transformers", "datasets", "wandb", "pandas", "numpy") if m in sys.modules])
    """
    result = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "[]"


def test_jobs_of_a_sweep_are_checked_and_build_the_users_own_targets(
    conf: Path, mylab: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A scratch entry point run by hydra.main: two jobs, each with the prefixes of the command line."""
    (conf / "mask" / "mine.yaml").write_text("_target_: mylab.masks.Mine\nwidth: 3\n")
    script = conf.parent / "train.py"
    script.write_text(
        dedent("""
        import hydra
        from cft.config.build import build, check_command_line, checked, config_hash

        @hydra.main(version_base="1.3", config_path="conf", config_name="train")
        def main(cfg):
            cfg = checked(cfg, "train")
            print(cfg.seed, type(build(cfg.mask)).__name__, type(cfg.optimizer.lr).__name__, len(config_hash(cfg)))

        if __name__ == "__main__":
            check_command_line("train", conf_dir=__import__("pathlib").Path(__file__).parent / "conf")
            main()
        """)
    )
    argv = ["-m", "mask=mine", "allow_targets=[mylab.]", "seed=0,1", "hydra.sweep.dir=out"]
    monkeypatch.chdir(conf.parent)
    monkeypatch.setattr("sys.argv", [str(script), *argv])
    runpy.run_path(str(script), run_name="__main__")
    assert [line for line in capsys.readouterr().out.splitlines() if "Mine" in line] == [
        "0 Mine float 12",
        "1 Mine float 12",
    ]
    assert sorted(p.name for p in (conf.parent / "out").iterdir() if p.is_dir()) == ["0", "1"]
