"""One Weights & Biases run, as a Lightning logger: opened online or offline, with artifacts and tables of transcripts.

The key comes from the environment (WANDB_API_KEY), never from the configuration; command line, code and machine facts
are not uploaded, since they may hold secrets. A server that cannot be reached, or that refuses, makes the run offline.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from cft.config.redaction import hidden, redacted_text
from cft.runs.lineage import Link

if TYPE_CHECKING:
    from cft.loggers.build import RunFacts

Artifacts = Literal["link", "upload", "none"]
Mode = Literal["online", "offline"]

INIT_TIMEOUT_S = 20.0  # then the run continues offline
FINISH_TIMEOUT_S = 120.0  # then what is not uploaded yet stays on disk, for `wandb sync`
LINK_TIMEOUT_S = 60.0  # for the server to confirm an artifact that the run reads
_LONGEST_TAG = 64
_RUN_ID = "wandb_id"


class WandbRun(WandbLogger):
    """A W&B run with the inputs and outputs of its job."""

    def __init__(
        self,
        run: RunFacts,
        *,
        project: str,
        entity: str,
        group: str,
        tags: Sequence[str],
        mode: Mode,
        artifacts: Artifacts,
        transcripts: int,
    ) -> None:
        self.artifacts: Artifacts = artifacts
        self.transcripts = transcripts
        super().__init__(
            name=run.name,
            save_dir=run.folder,
            id=_run_id(run),
            project=project,
            entity=entity or None,
            group=group or run.group,
            job_type=run.job_type,
            tags=[redacted_text(tag)[:_LONGEST_TAG] for tag in (*tags, *run.tags)],
            config={**run.config, "lineage": run.lineage},
            # Not by `offline=`, which sets WANDB_MODE for all later jobs of the process.
            mode=mode,
            settings=wandb.Settings(
                x_disable_meta=True,
                x_disable_machine_info=True,
                disable_git=True,
                disable_code=True,
                save_code=False,
                console="off",
                silent=True,
                init_timeout=INIT_TIMEOUT_S,
                login_timeout=INIT_TIMEOUT_S,
                finish_timeout=FINISH_TIMEOUT_S,
            ),
        )
        self._wandb_init.pop("anonymous")  # W&B warns of an option that Lightning always passes
        experiment = self.experiment  # open the run now, so that a job that fails early has one too
        if getattr(rank_zero_only, "rank", 0) == 0:
            # The agent of a W&B sweep gives the run an id of its own.
            (run.folder / _RUN_ID).write_text(f"{experiment.id}\n", encoding="utf-8")
            for link in run.inputs:
                self.read(link)

    @property
    def online(self) -> bool:
        return not self.experiment.settings._offline

    def read(self, link: Link) -> None:
        """Register an input of this run. W&B links it to the run that made it by the digest of the files; if that run was
        offline, the artifact is created now."""
        if self._links():
            artifact = artifact_of(link, whole=self.artifacts == "upload")
            self._tried(lambda: self.experiment.use_artifact(artifact), what=link.name)

    def made(self, link: Link) -> None:
        """Register an output of this run."""
        if self._links():
            artifact = artifact_of(link, whole=self.artifacts == "upload")
            self._tried(lambda: self.experiment.log_artifact(artifact), what=link.name)

    def table(self, name: str, *, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table with secrets removed from its texts."""
        if getattr(rank_zero_only, "rank", 0) == 0:
            data: list[Any] = [[hidden(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
            self.experiment.log({name: wandb.Table(columns=list(columns), data=data)})

    def summary(self, values: dict[str, float]) -> None:
        """Log values of the run that belong to no step."""
        if getattr(rank_zero_only, "rank", 0) == 0:
            self.experiment.summary.update(values)

    def _links(self) -> bool:
        return self.artifacts != "none" and getattr(rank_zero_only, "rank", 0) == 0 and self.online

    def _tried(self, act: Callable[[], object], *, what: str) -> None:
        """Artifacts are a convenience: their errors are logged, and the run continues."""
        problem: list[str] = []

        def run() -> None:
            try:
                act()
            except Exception as error:  # noqa: BLE001 - whatever the server or its client raises: said below
                problem.append(" ".join(str(error).split()) or type(error).__name__)

        # W&B waits for the server, and retries for minutes if the connection breaks.
        worker = threading.Thread(target=run, daemon=True)
        worker.start()
        worker.join(LINK_TIMEOUT_S)
        if worker.is_alive():
            problem.append(f"no answer within {LINK_TIMEOUT_S:.0f} s")
        if problem:
            warnings.warn(
                f"W&B: artifact {what} was not linked ({hidden(problem[0])}); results.json names it all the same",
                stacklevel=3,
            )


def artifact_of(link: Link, *, whole: bool) -> wandb.Artifact:
    """whole: include the data or weights, else only the files that describe them."""
    metadata = {**link.as_dict(), "folder": link.folder.name}
    artifact = wandb.Artifact(link.name, type=link.kind, metadata=metadata)
    for path in (*link.described_by, *(link.holds if whole else ())):
        name = path.relative_to(link.folder).as_posix()
        artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
    return artifact


def opened(run: RunFacts, *, mode: Mode, **settings: Any) -> WandbRun:
    """A run in the requested mode (WANDB_MODE overrides `online`), or, with a warning, offline."""
    wanted: Any = mode if mode == "offline" else os.environ.get("WANDB_MODE") or mode
    try:
        return WandbRun(run, mode=wanted, **settings)
    except wandb.Error as error:
        warnings.warn(
            f"W&B is out of reach ({' '.join(str(error).split())}). The run continues offline; upload it later with: "
            f"wandb sync {run.folder / 'wandb'}/offline-run-*",
            stacklevel=3,
        )
        wandb.teardown()  # its service still holds the run id
        for half_open in (run.folder / "wandb").glob("run-*"):
            shutil.rmtree(half_open, ignore_errors=True)
        return WandbRun(run, mode="offline", **settings)


def _run_id(run: RunFacts) -> str:
    """A resumed run continues the W&B run that it began."""
    path = run.folder / _RUN_ID
    if run.resumed_at and path.is_file():
        return path.read_text(encoding="utf-8").strip()
    return secrets.token_hex(4)
