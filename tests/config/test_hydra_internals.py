"""What of Hydra is private does what the package relies on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from cft.config.hydra_internals import apply_override, argument_parser, config_loader


def test_hydras_flags_are_told_from_overrides() -> None:
    args = argument_parser().parse_args(["--config-path", "conf", "-m", "seed=1,2", "mask=all"])
    assert args.config_path == "conf"
    assert args.multirun
    assert args.overrides == ["seed=1,2", "mask=all"]


def test_an_override_changes_the_config_or_says_what_is_wrong() -> None:
    config = OmegaConf.create({"seed": 0, "other": 1})
    OmegaConf.set_struct(config, True)
    change, add, absent = OverridesParser.create().parse_overrides(["seed=3", "+more=4", "sead=3"])
    apply_override(config, change)
    apply_override(config, add)
    assert config == {"seed": 3, "other": 1, "more": 4}
    with pytest.raises(HydraException, match="sead"):
        apply_override(config, absent)


def test_sources_are_searched_in_their_order(tmp_path: Path) -> None:
    for name, seed in (("first", 1), ("second", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.yaml").write_text(f"seed: {seed}\n")
    folders = [("cft", f"file://{tmp_path / name}") for name in ("first", "second")]
    sources = [("hydra", "pkg://hydra.conf"), *folders, ("schema", "structured://")]
    cfg = config_loader(sources).load_configuration("train", overrides=["+more=1"], run_mode=RunMode.RUN)
    assert (cfg.seed, cfg.more) == (1, 1)
