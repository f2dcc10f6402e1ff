"""fleet=ray on a cluster of three nodes, each a set of processes on this machine: `make test-ray`.

A node has one processor core and a worker takes one, so of three workers each has a node to itself.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from cft.annotation.store import AnnotationStore, table_hash
from cft.fleets import Ray
from cft.fleets.base import FleetError
from cft.fleets.dispatch import Dispatcher
from tests.conftest import ROOT
from tests.entry import run
from tests.fleets.toy import Toy, Unable
from tests.scripted_server import ScriptedServer

pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.slow]

# Short problems: the tests are about what happens around the method.
ANNOTATE = ("data.max_steps=2", "limit=24", "unit_size=1", "annotations_dir=annotations", "max_new_tokens=64")
START_ATTEMPTS = 4


def started(start: Callable[[], Any]) -> Any:
    """Ray gives the processes of a node half a minute, which a busy machine may not."""
    for attempt in range(START_ATTEMPTS):
        try:
            return start()
        except Exception as error:  # noqa: BLE001 - Ray raises nothing more special
            print(f"a node did not start, attempt {attempt + 1}: {error}")
    raise AssertionError("no node started")


class Nodes:
    """A cluster of three nodes that this process is connected to; a lost one comes back by `restore`."""

    def __init__(self) -> None:
        import ray
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "include_dashboard": False}
        self.cluster = started(lambda: Cluster(initialize_head=True, head_node_args=head))
        self.restore()
        os.chdir(ROOT)  # which the workers' imports begin at
        ray.init(address=self.cluster.address, log_to_driver=False)

    def restore(self) -> None:
        while len(self.cluster.list_all_nodes()) < 3:
            started(lambda: self.cluster.add_node(num_cpus=1))

    def lose(self, node_id: str) -> None:
        node = next(node for node in self.cluster.worker_nodes if node.node_id == node_id)
        self.cluster.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    import ray

    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_agent_register_timeout_ms", "100000")
        found = Nodes()
    yield found
    ray.shutdown()
    found.cluster.shutdown()
    os.chdir(before)


@pytest.fixture
def crews(monkeypatch: pytest.MonkeyPatch) -> list[Dispatcher[Any, Any]]:
    """The dispatchers that stages make."""
    made: list[Dispatcher[Any, Any]] = []
    assemble = Dispatcher.assemble
    monkeypatch.setattr(Dispatcher, "assemble", lambda self: (made.append(self), assemble(self)))
    return made


def fleet(**settings: Any) -> Ray:
    options: dict[str, Any] = {
        "address": None,
        "num_workers": 3,
        "num_cpus": 1,
        "num_gpus": None,
        "resources": {},
        "max_restarts": 3,
        "max_failures": 3,
        "pending_timeout_s": 120,
    }
    return Ray(**options | settings)


def work(
    items: list[Any], *, make: Callable[[str], Any] = Toy, **settings: Any
) -> tuple[dict[int, int], dict[int, str]]:
    with fleet(**settings).crew(make, device="auto", expected=lambda: {"weights": "w1", "device": "cpu"}) as crew:
        found = list(crew.map(enumerate(items)))
        assert len(found) == len(dict(found))
        return dict(found), crew.left_out


def kill(crew: Dispatcher[Any, Any], *, busy: int) -> None:
    """End the process of a worker that has an item, as the kernel does when memory is short."""
    workers = [worker for worker in crew._workers.values() if worker.task]
    found = re.match(r"process (\d+) on", workers[busy % len(workers)].where)
    assert found
    os.kill(int(found[1]), signal.SIGKILL)


def test_items_that_raise_or_kill_are_left_out_and_the_rest_is_done(nodes: Nodes) -> None:
    found, left_out = work([0, 1, "raise", 3, "die", 5, 6, 7, "refuse"])
    assert found == {i: i * i for i in (0, 1, 3, 5, 6, 7)}
    assert left_out[2] == "failed on 3 workers, last: ValueError: poison"
    assert re.match("failed on 3 workers, last: The actor .* died", left_out[4]), left_out[4]
    assert left_out[8] == "failed on 3 workers, last: data.field=x: expected y"


def test_a_worker_that_no_node_has_room_for_ends_the_command_in_time(nodes: Nodes) -> None:
    started = time.monotonic()
    with pytest.raises(FleetError, match=r"it needs 64 CPU, the cluster has 3 CPU \(. free\)"):
        work([1], num_cpus=64, pending_timeout_s=3)
    assert time.monotonic() - started < 30


def test_what_a_worker_refuses_to_begin_with_is_the_error_of_the_command(nodes: Nodes) -> None:
    with pytest.raises(FleetError, match=r"process \d+ on .* cannot start: model\.path=x: no such folder here"):
        work([1], make=Unable)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the 24 units as one process annotates them."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("annotate", *ANNOTATE, "annotation=a").status == 0
    return folder / "annotations" / "a"


def same_annotation(folder: Path, whole: Path) -> None:
    found, expected = AnnotationStore(folder), AnnotationStore(whole)
    assert set(found.units()) == set(range(24))
    assert table_hash(found.rows()) == table_hash(expected.rows())
    assert found.problems() == expected.problems()
    ours, theirs = found.manifest(), expected.manifest()
    assert ours["fingerprint"] == theirs["fingerprint"]
    assert (ours["finished"], ours["counts"]) == (True, theirs["counts"])


def test_two_workers_and_a_node_are_killed_and_every_unit_is_there_once(
    nodes: Nodes,
    whole: Path,
    crews: list[Dispatcher[Any, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    commits: list[int] = []
    commit = AnnotationStore.commit

    def watched(self: AnnotationStore, unit: int, **values: Any) -> None:
        commit(self, unit, **values)
        commits.append(unit)
        if len(commits) in (3, 7):
            kill(crews[0], busy=len(commits))
        if len(commits) == 11:
            head = nodes.cluster.head_node.node_id
            assert crews[0].backend._nodes  # pyright: ignore
            places = {crews[0].backend._nodes.get(n) for n in crews[0]._workers}  # pyright: ignore
            nodes.lose(next(node for node in places if node and node != head))

    monkeypatch.setattr(AnnotationStore, "commit", watched)
    ended = run("annotate", *ANNOTATE, "annotation=b", "fleet=ray", "fleet.num_workers=3", "fleet.pending_timeout_s=20")
    nodes.restore()
    assert ended.status == 0, ended.text
    print(ended.out)
    assert sorted(commits) == list(range(24))
    assert ended.text.count("a replacement is requested") >= 3
    same_annotation(tmp_path / "annotations" / "b", whole)


def test_evaluation_and_scores_on_the_cluster_are_those_of_one_process(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ray = ("fleet=ray", "fleet.num_workers=3")
    asked = ("limit=24", "num_samples=2", "max_new_tokens=64")
    for folder, more in (("one", ()), ("two", ray)):
        ended = run("evaluate", *asked, *more, f"hydra.run.dir={folder}")
        assert ended.status == 0, ended.text
        ended = run("score", f"annotations_dir={folder}", *more)
        assert ended.status == 0, ended.text
    samples = [pq.read_table(f"{folder}/samples.parquet") for folder in ("one", "two")]
    assert samples[0].equals(samples[1])
    found = [json.loads(Path(f"{folder}/results.json").read_text()) for folder in ("one", "two")]
    assert found[0]["metrics"] == found[1]["metrics"]
    (first,), (second,) = (list(Path(folder).rglob("scores/*/manifest.json")) for folder in ("one", "two"))
    manifests = [json.loads(path.read_text()) for path in (first, second)]
    assert manifests[0]["sha256"] == manifests[1]["sha256"]
    assert manifests[0]["fingerprint"] == manifests[1]["fingerprint"]


def test_workers_that_ask_two_servers_make_the_table_of_one_process(
    nodes: Nodes, tiny_arith_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each worker holds each server to the contract; the probes of their weights agree but for noise."""
    monkeypatch.chdir(tmp_path)
    served = AutoModelForCausalLM.from_pretrained(tiny_arith_path, dtype=torch.float32).eval()
    asked = ("data.max_steps=2", "limit=6", "unit_size=1", "annotations_dir=annotations", "max_new_tokens=48")
    with ScriptedServer(served) as one, ScriptedServer(served) as two:
        engine = ("engine=server", f"engine.url=[{one.url},{two.url}]")
        ended = run("annotate", *asked, *engine, "annotation=b", "fleet=ray", "fleet.num_workers=2")
        assert ended.status == 0, ended.text
        assert min(one.decoded, two.decoded) > 0
        assert run("annotate", *asked, *engine, "annotation=a").status == 0
    found, expected = (AnnotationStore(tmp_path / "annotations" / name) for name in ("b", "a"))
    assert set(found.units()) == set(range(6))
    assert found.rows()
    assert table_hash(found.rows()) == table_hash(expected.rows())
    assert found.manifest()["counts"] == expected.manifest()["counts"]


def test_after_a_kill_of_the_driver_no_worker_stays_and_the_command_goes_on(whole: Path, tmp_path: Path) -> None:
    """With a cluster that the command starts for itself. Whatever was under way is lost, and nothing else. Ray's own agents of
    a node, which compute nothing, may stay a while."""
    command = ["annotate", *ANNOTATE, "annotation=c", "fleet=ray", "fleet.address=local", "fleet.num_workers=2"]
    words = [sys.executable, "-m", "cft", *command]
    mark = f"cft-test-{os.getpid()}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CFT_TEST_MARK": mark}
    units = tmp_path / "annotations" / "c" / "units"
    with subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as driver:
        deadline = time.monotonic() + 240
        while len(list(units.glob("0*.json"))) < 4 and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert driver.poll() is None, "the command ended before it could be killed"
        driver.kill()
    before = {path: path.stat().st_mtime_ns for path in units.glob("0*.json")}
    assert 4 <= len(before) < 24
    deadline = time.monotonic() + 60
    while (left := [name for name in _marked(mark) if "Agent" not in name]) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left, f"processes that outlived the command: {left}"
    again = [word for word in command[1:] if not word.startswith("fleet")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert run("annotate", *again).status == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    same_annotation(tmp_path / "annotations" / "c", whole)


def _marked(mark: str) -> list[str]:
    """Command lines of processes that inherited the mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"CFT_TEST_MARK={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:120])
        except OSError:
            continue  # it ended meanwhile, or is not ours to read
    return found
