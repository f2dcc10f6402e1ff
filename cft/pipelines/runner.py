"""Runs the steps of a pipeline in order. Done steps are skipped, interrupted ones resumed, changed ones run again.

<folder>/<step>/            the step's run folder, as written by its stage
<folder>/annotations/       annotations with their scores
<folder>/steps/<step>.json  records, see `cft/pipelines/records.py`
<folder>/earlier/           outputs of steps whose configuration or inputs changed later; nothing is deleted
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cft import run_log
from cft.commands import command
from cft.config.stages import STAGES
from cft.console import console
from cft.files import exclusive
from cft.pipelines.clock import Clock
from cft.pipelines.plan import EARLIER, Settings, Step
from cft.pipelines.process import Ended, StepCrashed, StepFailed, Stopped, run_here, run_isolated, wait_for_orphan
from cft.pipelines.records import Record, inside, known_record, record_of
from cft.pipelines.reporting import REPORT
from cft.quoting import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """Runs steps.

    Args:
        settings: settings of the pipeline.
        isolated: whether each step runs in a separate process.
        flags: command-line flags, for the printed commands.
    """

    settings: Settings
    isolated: bool
    flags: tuple[str, ...] = ()

    def run(
        self,
        steps: Sequence[Step],
        *,
        title: str = "Step",
        of: int = 0,
        first: int = 1,
        after: Callable[[Step], None] = lambda step: None,
        clock: Clock | None = None,
    ) -> dict[str, Record]:
        """Run steps in order.

        Args:
            steps: The steps.
            title: Word for a step in its heading.
            of: Total number of steps, if `steps` are only a part of them.
            first: Number of the first of `steps`.
            after: Called when a step is done, including in an earlier run.
            clock: Estimates the remaining time before each step.

        Returns:
            Records by step; a step that was allowed to fail and did has an unfinished record.

        Raises:
            StepFailed, StepCrashed: A step failed that was not allowed to.
        """
        done = {}
        with exclusive(self.settings.folder):
            run_log.write_to(self.settings.folder)
            wait_for_orphan(self.settings.folder)
            for number, step in enumerate(steps, first):
                heading = f"{title} {number} of {of or len(steps)}: {step.name}"
                done[step.name] = self._run(step, title=heading, clock=clock or Clock({}))
                if done[step.name].finished:
                    after(step)
        return done

    def _run(self, step: Step, *, title: str, clock: Clock) -> Record:
        folder = self.settings.folder
        before = known_record(folder, step.name)
        now = record_of(step, folder=folder, command=self._command(step))
        if before is not None and before.is_done(folder) and before.fingerprint == now.fingerprint:
            console.print(f"{title}: already done", markup=False)
            clock.done(step.name, None)
            return before
        console.rule(f"[bold]{title}[/bold]{clock.left(step.name)}", align="left")
        console.print(f"$ {now.command}", style="dim", markup=False, highlight=False)
        more = self._make_room(step, now=now, before=before)
        now.write(folder)
        run = run_isolated if self.isolated and step.stage != REPORT else run_here
        try:
            ended = run(step, self.settings, more=more, resume=before is not None and not more)
        except Stopped as stopped:
            error, ended = stopped.args
            self._finish(now, ended)
            raise error from None
        except (StepFailed, StepCrashed) as error:
            if not step.may_fail:
                raise
            console.print(f"{error}; the pipeline continues without it", markup=False)
            clock.done(step.name, None)
            return now
        clock.done(step.name, ended.seconds)
        return self._finish(now, ended)

    def _finish(self, now: Record, ended: Ended) -> Record:
        done = replace(
            now,
            finished=True,
            made=[inside(self.settings.folder, path) for path in ended.made],
            seconds=round(ended.seconds, 2),
            peak_memory=ended.peak_memory,
        )
        done.write(self.settings.folder)
        return done

    def _make_room(self, step: Step, *, now: Record, before: Record | None) -> tuple[str, ...]:
        """Move earlier outputs of a changed step to <folder>/earlier. Returns additional overrides."""
        if before is None or before.fingerprint == now.fingerprint or step.stage == REPORT:
            return ()
        changed = now.changed_since(before)
        if set(changed) <= set(STAGES[step.stage].grows):
            console.print(f"Extending the existing output: {', '.join(changed)} changed", markup=False)
            return ()
        console.print(
            f"Running again, since {', '.join(changed[:5])}{' ...' if changed[5:] else ''} changed", markup=False
        )
        for path in dict.fromkeys((step.folder, step.out)):
            if path.exists() and path.resolve().is_relative_to(self.settings.folder.resolve()):
                aside = _free(self.settings.folder / EARLIER / path.name)
                aside.parent.mkdir(exist_ok=True)
                path.rename(aside)
                console.print(f"Its earlier output is in {aside}", markup=False)
        return STAGES[step.stage].redo

    def _command(self, step: Step) -> str:
        if step.stage == REPORT:
            return " ".join(["cft report", *step.config["folders"], f"--out={step.folder}"])
        where = [] if STAGES[step.stage].out == ("out",) else [setting("hydra.run.dir", str(step.folder))]
        return command(step.stage, [*step.overrides, *where], flags=self.flags)


def _free(path: Path) -> Path:
    """The first of path-1, path-2, ... that does not exist."""
    number = 1
    while (found := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return found
