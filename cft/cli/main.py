"""The command `cft` and the list of its subcommands. Heavy libraries are imported by the subcommand that needs them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches

from cft import __version__
from cft.cli import completion, report, stage
from cft.cli.exit_status import EXIT_USER_ERROR
from cft.config.stages import STAGES

COMMANDS = {
    **{name: entry.summary for name, entry in STAGES.items()},
    "labels": "token ids with labels and weights: short for cft export format=labels",
    "report": report.SUMMARY,
    "completion": completion.SUMMARY,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `cft <argv>`; without arguments, those of this process. Returns the exit status, or raises SystemExit."""
    words = list(sys.argv[1:] if argv is None else argv)
    name, arguments = words[0] if words else "--help", words[1:]
    if name in ("-h", "--help", "help"):
        print(overview())
        return 0
    if name in ("-V", "--version"):
        print(f"cft {__version__}")
        return 0
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        print(f"cft: no command {name!r}{hint}\n\n{overview()}", file=sys.stderr)
        return EXIT_USER_ERROR
    if name == "labels":
        name, arguments = "export", ["format=labels", *arguments]
    if name == "completion":
        return completion.run(arguments, commands=tuple(COMMANDS))
    return stage.run(name, arguments) if name in STAGES else report.run(arguments)


def overview() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        (
            "Critical Token Fine-tuning: annotate, train and evaluate on the tokens that decide an answer.",
            "",
            "usage: cft <command> [key=value ...]",
            "",
            *(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()),
            "",
            "cft <command> --help      the command's options and their values",
            "cft <command> -m a=1,2    a run for each value",
            "cft --version             the version",
            "",
            "Files are written to ./outputs. Your own configs: --config-dir FOLDER.",
        )
    )
