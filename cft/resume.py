"""Where a training begins: in a new folder, or where an earlier run with the same configuration stopped.

resume=<run folder> goes on from the newest checkpoint in it, which must be sound. resume=auto looks for runs of the same
configuration beside this one's folder (in a multirun: in all multiruns beside this one), passes over damaged
checkpoints and says so; without one it starts anew. So a cluster may run the same command again and again.

A multirun given its folder again (hydra.sweep.dir) goes on by itself: jobs that have results are passed over, the one that
was cut off goes on, and a job that the folder has no run of gets one, whatever its number is now.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from cft.checkpoints import CHECKPOINTS, newest_checkpoint, newest_sound_checkpoint
from cft.config import ConfigError, config_hash, redacted
from cft.position import Position
from cft.progress import console
from cft.runs import CONFIG, RESULTS, RunContext, flat

AUTO = "auto"
# Keys that may differ between a run and its continuation. The next ones say how rows are shared out: `require_same_steps`.
_FREE = ("resume", "trainer.max_epochs", "trainer.enable_progress_bar", "allow_targets", "annotations_dir")
_SHARES = ("trainer.devices", "trainer.num_nodes", "trainer.accumulate_grad_batches", "data.batch_size")
_FREE_BELOW = ("trainer.strategy", "interruption", "callbacks.last")


@dataclass(frozen=True, slots=True)
class Start:
    """folder: the run's. checkpoint: what it goes on from, None for a new run. finished: there is nothing left to do."""

    folder: Path
    checkpoint: Path | None = None
    finished: bool = False


def start_of(cfg: DictConfig, context: RunContext) -> Start:
    """Raises ConfigError, CheckpointError."""
    if not cfg.resume:
        return _of_same_sweep(cfg, context) if context.multirun else Start(context.folder)
    if cfg.resume == AUTO:
        return _newest_of_same_config(cfg, context)
    folder = Path(cfg.resume)
    _require_same_config(folder, cfg)
    return Start(folder, newest_checkpoint(folder / CHECKPOINTS))


def require_same_steps(position: Position, *, rows_per_step: int) -> None:
    """Raises ConfigError where the optimizer steps of the continuation would hold more or fewer rows."""
    if position.rows_per_step != rows_per_step:
        raise ConfigError(
            f"resume: an optimizer step of that run has {position.rows_per_step} rows (data.batch_size * "
            f"trainer.accumulate_grad_batches * processes), here it would have {rows_per_step}; change "
            "trainer.accumulate_grad_batches or data.batch_size so that the product stays the same"
        )


def _newest_of_same_config(cfg: DictConfig, context: RunContext) -> Start:
    beside = context.folder.parent.parent.glob("*/*") if context.multirun else context.folder.parent.glob("*")
    same = [folder for folder in beside if (folder / CONFIG).is_file() and not _differing(folder, cfg)]
    found = []
    for folder in same:
        checkpoint = newest_sound_checkpoint(folder / CHECKPOINTS, skipped=_say_skipped)
        if checkpoint is not None:
            found.append((checkpoint.stat().st_mtime_ns, folder, checkpoint))
    if not found:
        console.print(
            f"resume=auto: no run of this configuration to go on from under {context.folder.parent}; a new one"
        )
        return Start(context.folder)
    _, folder, checkpoint = max(found)
    if (folder / RESULTS).is_file() and _value(folder, "trainer.max_epochs") == cfg.trainer.max_epochs:
        console.print(f"resume=auto: {folder} has finished; nothing to do")
        return Start(folder, checkpoint, finished=True)
    console.print(f"resume=auto: goes on in {folder} from {checkpoint.name}")
    return Start(folder, checkpoint)


def _of_same_sweep(cfg: DictConfig, context: RunContext) -> Start:
    runs = [path.parent for path in sorted(context.folder.parent.glob(f"*/{CONFIG}"))]
    folder = next((run for run in runs if not _differing(run, cfg)), None)
    if folder is None:
        # After a change of the axes another job's run may have this one's number.
        taken = context.folder in runs
        return Start(context.folder.with_name(f"{context.folder.name}-{config_hash(cfg)}") if taken else context.folder)
    if (folder / RESULTS).is_file() and _value(folder, "trainer.max_epochs") == cfg.trainer.max_epochs:
        console.print(f"{folder} has finished; nothing to do")
        return Start(folder, finished=True)
    checkpoint = newest_sound_checkpoint(folder / CHECKPOINTS, skipped=_say_skipped)
    if checkpoint is not None:
        console.print(f"Goes on in {folder} from {checkpoint.name}")
    return Start(folder, checkpoint)


def _say_skipped(path: Path, damage: str) -> None:
    console.print(f"{path} is damaged ({damage}) and passed over")


def finished_accuracy(folder: Path) -> float:
    """What a finished run's training returned."""
    metrics = json.loads((folder / RESULTS).read_text(encoding="utf-8"))["metrics"]
    return float(metrics.get("eval/accuracy", {}).get("value", "nan"))


def _require_same_config(folder: Path, cfg: DictConfig) -> None:
    path = folder / CONFIG
    if not path.is_file():
        raise ConfigError(f"resume={folder}: no {path}; expected the folder of a run that train.py started")
    differing = _differing(folder, cfg)
    if differing:
        lines = [f"  {key}: then {then!r}, now {now!r}" for key, (then, now) in differing.items()]
        raise ConfigError(
            f"resume={folder}: that run was configured otherwise; repeat its arguments:\n" + "\n".join(lines)
        )


def _differing(folder: Path, cfg: DictConfig) -> dict[str, tuple[object, object]]:
    """What may not differ between a run and its continuation and does: key -> (then, now)."""
    then, now = flat(OmegaConf.load(folder / CONFIG)), flat(OmegaConf.create(redacted(cfg)))
    keys = sorted(key for key in {*then, *now} if then.get(key) != now.get(key))
    return {key: (then.get(key), now.get(key)) for key in keys if not _is_free(key)}


def _is_free(key: str) -> bool:
    return key in (*_FREE, *_SHARES) or any(key == part or key.startswith(f"{part}.") for part in _FREE_BELOW)


def _value(folder: Path, key: str) -> object:
    return OmegaConf.select(OmegaConf.load(folder / CONFIG), key)
