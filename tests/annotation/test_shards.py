"""An annotation in shards is the one a single process writes: side by side, after kills, with any number of shards.

The tests above the line write made-up units without a model (tests/shard_driver.py); those below run annotate.py.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier

import pytest

from cft.annotation import store as store_module
from cft.annotation.shards import ALONE, WHOLE, Part, Shard, clear_place, unfinished_message
from cft.annotation.store import AnnotationStore, StoreError, find_annotation, table_hash
from cft.config.build import ConfigError
from cft.files import FolderInUse
from tests.conftest import ROOT
from tests.entry import SHORT, Ended, run
from tests.shard_driver import COMMAND, FINGERPRINT, POINTS, REQUEST, UNITS, part_of, response, write
from tests.stage import annotate

THREE = [Shard(i, 3) for i in range(3)]


def is_the_whole(store: AnnotationStore) -> None:
    """Every unit once, nothing left over, sums over all, and readers are let in."""
    assert table_hash(store.rows()) == table_hash([response(u) for u in range(UNITS)])
    assert [record.problem_id for record in store.problems()] == [f"p{u}" for u in range(UNITS)]
    manifest = store.manifest()
    assert manifest["finished"] is True
    assert "shards" not in manifest
    assert manifest["counts"] == {"problems": UNITS, "forks": sum(range(UNITS))}
    assert manifest["compute"] == {"solve_tokens": 10 * sum(range(UNITS))}
    assert sorted(path.name for path in store.folder.iterdir()) == [
        ".lock",
        "manifest.json",
        "problems",
        "rows",
        "units",
    ]
    assert [len(list((store.folder / kind).iterdir())) for kind in ("rows", "problems", "units")] == [UNITS] * 3
    assert find_annotation(str(store.folder), annotations_dir="none") == store.folder


def refused(store: AnnotationStore) -> str:
    with pytest.raises(StoreError) as caught:
        find_annotation(str(store.folder), annotations_dir="none")
    return str(caught.value)


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_shards_one_after_another_in_any_order(tmp_path: Path, count: int) -> None:
    store = AnnotationStore(tmp_path / "a")
    for done, index in enumerate(reversed(range(count))):
        if done:
            assert store.manifest()["finished"] is False
            assert f"0{', 1' if index > 0 else ''}" in refused(store)
        write(store.folder, Shard(index, count))
        if index < UNITS:
            assert {*store.units()} >= {u for u in range(UNITS) if u % count == index}
    is_the_whole(store)


@pytest.mark.parametrize("attempts", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_shards_side_by_side(tmp_path: Path, attempts: int) -> None:
    """Locks are of open files, so threads stand for processes. Over and over, for they leave in another order each time."""
    for attempt in range(attempts):
        store = AnnotationStore(tmp_path / str(attempt))
        at_one_time = partial(write, store.folder, meet=Barrier(3, timeout=60).wait)
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(at_one_time, THREE))
        is_the_whole(store)


@pytest.fixture(scope="module")
def all_killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a point: shards 0 and 2 are done, and the process of shard 1 was killed at the point."""
    folder = tmp_path_factory.mktemp("killed")
    for point in POINTS:
        write(folder / point, THREE[0])
        write(folder / point, THREE[2])
    arguments = [word for point in POINTS for word in (str(folder / point), point)]
    command = [sys.executable, str(ROOT / "tests" / "shard_driver.py"), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.stdout.split() == [str(-signal.SIGKILL)] * len(POINTS), ended.stdout + ended.stderr
    return folder


@pytest.mark.parametrize("point", POINTS)
def test_a_shard_killed_anywhere(all_killed: Path, tmp_path: Path, point: str) -> None:
    killed = all_killed / point
    if point != "left":
        assert f"{COMMAND} shard=1" in refused(AnnotationStore(killed))
    # It may be gone on with by the same shard, by one process, or in another number of shards.
    for name, shards in {"same": [THREE[1]], "alone": [WHOLE], "five": [Shard(i, 5) for i in range(5)]}.items():
        shutil.copytree(killed, tmp_path / name)
        for shard in shards:
            write(tmp_path / name, shard)
        is_the_whole(AnnotationStore(tmp_path / name))


def test_what_is_missing_is_said_with_the_commands(tmp_path: Path) -> None:
    store = AnnotationStore(tmp_path / "a")
    write(store.folder, THREE[1])
    message = refused(store)
    assert f"{store.folder} is not done yet: shards 0, 2 of 3." in message
    assert message.splitlines()[1:] == [f"  {COMMAND} shard=0", f"  {COMMAND} shard=2"]


def test_who_is_still_at_work_is_not_done(tmp_path: Path) -> None:
    """Even with all its units there: what it is writing may not be the last."""
    store = AnnotationStore(tmp_path / "a")
    for shard in THREE:
        write(store.folder, shard)

    def others_leave() -> None:
        write(store.folder, THREE[0])
        assert "shard 2 of 3" in refused(store)

    write(store.folder, THREE[2], meet=others_leave)
    is_the_whole(store)


def test_of_two_that_leave_together_the_second_finds_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sees another at work leaves the end to it, so nobody may be seen after looking: the gate is still held."""
    cleared = []

    def clear(folder: Path, shard: Shard) -> None:
        with (folder / ".lock").open("a") as gate, pytest.raises(BlockingIOError):
            fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
        clear_place(folder, shard)
        cleared.append(shard)

    monkeypatch.setattr(store_module, "clear_place", clear)
    for shard in THREE:
        write(tmp_path / "a", shard)
    assert cleared == THREE


def test_a_shard_does_not_touch_what_another_is_writing(tmp_path: Path) -> None:
    store = AnnotationStore(tmp_path / "a")
    begun = [store.folder / name for name in ("rows/00001.ab.parquet", "problems/.00001.ab.parquet.7.tmp")]
    others = [store.folder / name for name in ("rows/00000.ab.parquet", "units/.00003.json.7.tmp")]

    def neighbor() -> None:
        for path in (*begun, *others):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"half")
        write(store.folder, THREE[0])
        assert [path.exists() for path in (*begun, *others)] == [True, True, False, False]

    write(store.folder, THREE[1], meet=neighbor)
    write(store.folder, THREE[2])
    is_the_whole(store)  # the last to leave cleared up


def test_a_dead_shard_s_leftovers_go_with_the_last_to_leave(tmp_path: Path) -> None:
    store = AnnotationStore(tmp_path / "a")
    for shard in THREE[:2]:
        write(store.folder, shard)
    (store.folder / "rows" / "00001.ab.parquet").write_bytes(b"the unit it replaced")
    (store.folder / ".lock-1-of-3").write_text("process 7 on elsewhere")
    write(store.folder, THREE[2])
    is_the_whole(store)


@pytest.mark.parametrize(
    "first, second, message",
    [
        (
            THREE[1],
            THREE[1],
            rf"another process \(process {os.getpid()} on .*\) is writing there as shard 1 of 3; wait",
        ),
        (THREE[1], Shard(1, 2), "writing there as shard 1 of 3; this is shard 1 of 2, and all .* the same num_shards"),
        (THREE[1], WHOLE, "writing there as shard 1 of 3; this is shard 0 of 1"),
        (WHOLE, THREE[1], "writing there; this is shard 1 of 3"),
        (WHOLE, WHOLE, "writing there; wait for it"),
    ],
    ids=["the same shard", "another number of shards", "the whole", "a shard of the whole", "twice the whole"],
)
def test_two_processes_that_would_write_the_same_units(
    tmp_path: Path, first: Shard, second: Shard, message: str
) -> None:
    def meet() -> None:
        before = AnnotationStore(tmp_path).manifest()
        with pytest.raises(FolderInUse, match=message):
            write(tmp_path, second)
        assert AnnotationStore(tmp_path).manifest() == before

    write(tmp_path, first, meet=meet)
    write(tmp_path, second)  # free again


def test_a_shard_of_another_model_is_refused(tmp_path: Path) -> None:
    write(tmp_path, THREE[0])
    other = AnnotationStore(tmp_path).writing(fingerprint={"model": "w2"}, info={}, part=part_of(THREE[1]))
    with pytest.raises(StoreError, match=r"model\.weights: stored 'w1', now None"), other:
        pass


def test_a_shard_that_asks_for_something_else_is_refused_until_all_are_done(tmp_path: Path) -> None:
    store = AnnotationStore(tmp_path)

    def longer(shard: Shard) -> None:
        part = Part(shard, {**REQUEST, "problems": 9}, to_do=lambda records: set(), command=COMMAND)
        with store.writing(fingerprint=FINGERPRINT, info={}, part=part):
            pass

    write(tmp_path, THREE[0])
    with pytest.raises(StoreError, match=r"problems: the others 7, shard 1 of 3 9\n.*shards 1, 2 of 3") as caught:
        longer(THREE[1])
    assert f"{COMMAND} shard=2" in str(caught.value)
    write(tmp_path, THREE[1])
    write(tmp_path, THREE[2])
    longer(THREE[1])
    is_the_whole(store)


def test_alone_after_shards_the_gaps_are_known_until_they_are_filled(tmp_path: Path) -> None:
    store = AnnotationStore(tmp_path / "a")
    write(store.folder, THREE[0])

    def killed() -> None:
        assert "shards 1, 2 of 3" in refused(store)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(store.folder, WHOLE, meet=killed)
    assert "shards 1, 2 of 3" in refused(store)
    write(store.folder, WHOLE)
    is_the_whole(store)


def test_many_missing_shards_are_not_a_wall_of_commands() -> None:
    state = Part(Shard(0, 40), to_do=lambda records: set(range(40)), command="x").state({}, at_work={})
    assert state is not None
    lines = unfinished_message(state).splitlines()
    assert len(lines) == 10
    assert "shard=8, 9," in lines[-1]
    assert ALONE.state({}, at_work={}) is None


# ------------------------------------------------------------------------------------------------ with a model

COMMON = (*SHORT, "unit_size=1", "limit=4")  # four units


def overrides(folder: Path, name: str, *more: str) -> tuple[str, ...]:
    return (*COMMON, f"annotation={name}", f"annotations_dir='{folder}'", *more)


def facts(store: AnnotationStore) -> dict[str, object]:
    """What must not depend on the number of shards: the table, the problems, counts and tokens."""
    manifest = store.manifest()
    return {
        "hash": table_hash(store.rows()),
        "problems": store.problems(),
        "finished": manifest["finished"],
        "fingerprint": manifest["fingerprint"],
        "counts": manifest["counts"],
        "tokens": {k: v for k, v in manifest["compute"].items() if not k.endswith("seconds")},
        "files": [len(list((store.folder / kind).iterdir())) for kind in ("rows", "problems", "units")],
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> AnnotationStore:
    store = AnnotationStore(annotate(*overrides(tmp_path_factory.mktemp("annotations of = ü"), "whole")))
    assert len(store.units()) == 4
    assert len(store.rows()) >= 2
    return store


def ran(*arguments: str) -> Ended:
    ended = run("annotate", *arguments)
    assert ended.status == 0, ended.text
    return ended


@pytest.mark.slow
def test_a_multirun_over_the_shards(whole: AnnotationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = ran("-m", *overrides(tmp_path, "a", "num_shards=2", "shard=0,1"))
    assert facts(AnnotationStore(tmp_path / "a")) == facts(whole)
    assert "Shard 0 of 2 is done." in ended.text
    assert "not done yet: shard 1 of 2." in ended.text
    assert ended.text.count("Train on it:") == 1


@pytest.mark.slow
def test_the_commands_that_a_shard_prints_finish_the_annotation(
    whole: AnnotationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    annotate(*overrides(tmp_path, "a", "num_shards=3", "shard=1"))
    entry = run("train", "data.annotation=a", f"annotations_dir='{tmp_path}'")
    assert entry.status == 2
    assert "Traceback" not in entry.text
    with pytest.raises(ConfigError) as alone:
        annotate(*overrides(tmp_path, "a", "complete=true"))
    for text in (entry.err, str(alone.value)):
        assert "not done yet: shards 0, 2 of 3" in " ".join(text.split())
        commands = [line.strip() for line in text.splitlines() if line.startswith("  cft annotate ")]
        assert len(commands) == 2
    ran(*shlex.split(commands[0])[2:])
    annotate(*shlex.split(commands[1])[2:])
    store = AnnotationStore(tmp_path / "a")
    assert facts(store) == facts(whole)
    capsys.readouterr()
    annotate(*overrides(tmp_path, "a"))
    assert "4 of 4 units are already done" in capsys.readouterr().out
    assert facts(store) == facts(whole)


@pytest.mark.slow
def test_shards_extend_and_complete_what_is_there(whole: AnnotationStore, tmp_path: Path) -> None:
    more = ("num_alternatives=3", "complete=true")
    for name in ("alone", "shards"):
        shutil.copytree(whole.folder, tmp_path / name)
    alone = AnnotationStore(annotate(*overrides(tmp_path, "alone", *more)))
    for index in (1, 0):
        shards = AnnotationStore(annotate(*overrides(tmp_path, "shards", *more, "num_shards=2", f"shard={index}")))
        assert [r["complete"] for r in shards.units().values()] == [index == 0, True] * 2
    assert facts(shards) == facts(alone)
    assert facts(shards)["hash"] != facts(whole)["hash"]


@pytest.mark.parametrize(
    "wrong, message",
    [
        (["num_shards=3", "shard=3"], "shard: expected from 0 to below num_shards"),
        (["num_shards=3", "shard=-1"], "shard: expected an integer of at least 0"),
        (["shard=1"], "shard: expected from 0 to below num_shards"),
        (["num_shards=0"], "num_shards: expected an integer of at least 1"),
        (["num_shards=2.5"], "num_shards: expected an integer"),
        (["-m", "num_shards=3", "shard=0,1,2,3"], "shard: expected from 0 to below num_shards"),
    ],
)
def test_wrong_shard_numbers_start_nothing(tmp_path: Path, wrong: list[str], message: str) -> None:
    ended = run("annotate", *wrong, *overrides(tmp_path, "a"))
    assert ended.status == 2
    assert message in ended.text
    assert "nothing was started" in ended.text
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_three_processes_at_once_one_of_them_killed(whole: AnnotationStore, tmp_path: Path) -> None:
    killing = str(ROOT / "tests" / "kill_driver.py")
    arguments = overrides(tmp_path, "a", "num_shards=3")
    programs = {
        0: [str(ROOT / "annotate.py")],
        1: [killing, "committing", "annotate"],  # at the record of unit 1
        2: [str(ROOT / "annotate.py")],
    }
    running = [
        subprocess.Popen(
            [sys.executable, *program, *arguments, f"shard={shard}"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for shard, program in programs.items()
    ]
    output = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, -signal.SIGKILL, 0], output
    store = AnnotationStore(tmp_path / "a")
    assert [*store.units()] == [0, 2, 3]
    assert "shard 1 of 3" in refused(store)
    annotate(*arguments, "shard=1")
    assert facts(store) == facts(whole)
