"""Starts stages with random wrong configurations: does each end with a configuration error before anything is trained?

    python -m experiments.fuzz_configs --count 200 --seed 0

A case is the command line of a stage with tiny limits and one or two errors: a value of a wrong type, an empty or extreme
value, a deleted, misspelled or additional key, a misspelled option. It runs as `cft <stage>` would, in a process forked from
one that has imported the libraries, in a folder of its own. Some errors are valid values (a seed of 0); such a case may run to
its end. Failures are a traceback, an exit status other than 0, 2 or 75, and an error after training has started.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cft.cli.main import main as cft
from cft.config.source import resolve, signature
from cft.shipped import CONF_DIR

LIMITS: dict[str, tuple[str, ...]] = {
    "train": ("data.max_rows=16", "trainer.max_epochs=1", "validation.problems=1", "evaluation.problems=1",
              "evaluation.num_samples=0", "evaluation.max_new_tokens=8", "data.validation_fraction=0.5"),
    "annotate": ("limit=2", "max_new_tokens=24", "data.num_train=4", "data.num_validation=0", "data.num_test=0",
                 "unit_size=2"),
    "evaluate": ("limit=2", "num_samples=0", "max_new_tokens=8"),
}  # fmt: skip
GROUPS: dict[str, tuple[str, ...]] = {
    "train": ("weighting", "loss", "mask", "optimizer", "callbacks", "trainer", "reference", "groups", "model/lora"),
    "annotate": ("engine", "verifier", "prompt", "model/lora"),
    "evaluate": ("engine", "verifier", "prompt"),
}
WRONG = ("abc", "''", "' '", "null", "true", "{}", "[]", "[1]", "{a:1}", "1.5", "-1", "0", "-0.5", "1e30", "nan", "-inf",
         "99999999999999999999", "4294967296", "../x", "1000000", "'a/b'", "2")  # fmt: skip
TIMEOUT_S = 90


@dataclass(frozen=True, slots=True)
class Ended:
    kind: str  # refused | ran | cut off | BAD: ...
    text: str

    @property
    def bad(self) -> bool:
        return self.kind.startswith("BAD")


def draw(rng: random.Random) -> tuple[str, list[str]]:
    """Draw a stage and the arguments of a command line with one or two errors."""
    stage: str = rng.choices(list(LIMITS), weights=(3, 1, 1))[0]
    options = []
    if rng.random() < 0.5:
        group = rng.choice(GROUPS[stage])
        options.append(f"{group}={rng.choice(sorted(f.stem for f in (CONF_DIR / group).glob('*.yaml')))}")
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        tree = OmegaConf.to_container(compose(stage, options, return_hydra_config=True), resolve=False)
    assert isinstance(tree, dict)
    leaves = [path for path, _ in _leaves({**tree, "hydra": {}})] + ["hydra.run.dir", "hydra.job.chdir"]
    errors = [_error(rng, tree, leaves, stage) for _ in range(rng.choice((1, 1, 2)))]
    named = {m.lstrip("+~").partition("=")[0] for m in errors}
    limits = [limit for limit in LIMITS[stage] if limit.partition("=")[0] not in named]
    return stage, [*options, *limits, *errors]


def start(stage: str, arguments: list[str], *, timeout_s: float = TIMEOUT_S) -> Ended:
    """Run a case in a process forked from this one; returns how it ended."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    out = folder / "out.txt"
    child = os.fork()
    if child == 0:
        _in_child(stage, arguments, folder, out)
    status = _wait(child, timeout_s)
    text = out.read_text(encoding="utf-8", errors="replace") if out.is_file() else ""
    trained = any(folder.rglob("*.ckpt")) or any(folder.rglob("export"))
    shutil.rmtree(folder, ignore_errors=True)
    return Ended(_kind(status, text, trained=trained), text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout-s", type=float, default=TIMEOUT_S, help="a case that still runs is stopped")
    chosen = parser.parse_args()
    preload()
    rng, kinds, started = random.Random(chosen.seed), Counter[str](), time.monotonic()
    for number in range(chosen.count):
        stage, arguments = draw(rng)
        ended = start(stage, arguments, timeout_s=chosen.timeout_s)
        kinds[ended.kind] += 1
        print(f"{number:4d} {ended.kind:10s} cft {stage} {shlex.join(arguments)}", flush=True)
        if ended.bad:
            print("\n".join(f"       {line}" for line in ended.text.splitlines()[-8:]), flush=True)
    print(f"{chosen.count} starts in {time.monotonic() - started:.0f} s: {dict(kinds)}")
    raise SystemExit(any(kind.startswith("BAD") for kind in kinds))


def preload() -> None:
    """Import once what every case needs; no thread may be running when a process is forked."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import cft.stages.annotate
    import cft.stages.evaluate
    import cft.stages.train  # noqa: F401


def _error(rng: random.Random, tree: dict, leaves: list[str], stage: str) -> str:
    kind = rng.choice(("value", "value", "value", "delete", "misspell", "extra", "parameter", "option"))
    key = rng.choice(leaves)
    if kind == "delete":
        return f"~{rng.choice([key, key.rpartition('.')[0] or key])}"
    if kind == "misspell":
        at = rng.randrange(len(key))
        return f"{key[:at]}{key[at + 1 :]}=1"
    if kind == "extra":
        return f"+{key.rpartition('.')[0] or 'extra'}.{rng.choice(('foo', 'seed', 'name', 'lr'))}={rng.choice(WRONG)}"
    if kind == "parameter":  # a constructor argument that no yaml sets
        nodes = [name for name, node in tree.items() if isinstance(node, dict) and "_target_" in node]
        group = rng.choice([n for n in ("optimizer", "trainer") if n in nodes] or nodes)
        taken = signature(resolve(tree[group]["_target_"]))
        free = [p.name for p in taken.parameters if p.name not in tree[group]] if taken else []
        return f"+{group}.{rng.choice(free)}={rng.choice(WRONG)}" if free else f"{key}={rng.choice(WRONG)}"
    if kind == "option":
        group = rng.choice(GROUPS[stage])
        return f"{'+' if '/' in group else ''}{group}={rng.choice(('nonsense', 'null', '[a,b]', '0'))}"
    return f"{key}={rng.choice(WRONG)}"


def _leaves(tree: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(tree, dict) and tree:
        for name, inner in tree.items():
            yield from _leaves(inner, f"{path}.{name}" if path else str(name))
    elif path and not path.startswith("hydra"):
        yield path, tree


def _in_child(stage: str, arguments: list[str], folder: Path, out: Path) -> None:
    """Never returns."""
    os.setsid()
    handle = os.open(out, os.O_WRONLY | os.O_CREAT)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.chdir(folder)
    status = 1
    try:
        status = cft([stage, *arguments])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(child: int, timeout_s: float) -> int | None:
    """The exit status, None if the child was stopped at the timeout."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _kind(status: int | None, text: str, *, trained: bool) -> str:
    if "Traceback (most recent call last)" in text:
        return "BAD: traceback"
    if status is None:
        return "cut off"
    if status == 0:
        return "ran"
    if status not in (2, 75):
        return f"BAD: exit status {status}"
    return "BAD: failed late" if trained else "refused"


if __name__ == "__main__":
    main()
