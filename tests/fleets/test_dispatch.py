"""Who gets which item when workers fail, die or never come: against a cluster that is a script."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cft.errors import BadValue
from cft.fleets import InProcess
from cft.fleets.base import FleetError, WorkError
from cft.fleets.dispatch import Dispatcher, Event, Failed, Finished, Gone, Placed, Policy, Ready

FACTS = {"weights": "w1", "device": "cpu"}
Outcome = Callable[[int, int, Any], Event | None]  # of (worker, key, item); None = it works for ever


def squares(worker: int, key: int, item: Any) -> Event:
    return Finished(worker, item * item)


class Script:
    """Workers come as `arrives` says, and do with an item what `outcome` says, one a call of `events`."""

    def __init__(
        self, outcome: Outcome = squares, *, arrives: Callable[[int], list[Event]] | None = None, step_s: float = 1.0
    ) -> None:
        self.outcome, self.step_s = outcome, step_s
        self.arrives = arrives or (lambda worker: [Placed(worker, f"node {worker}"), Ready(worker, FACTS)])
        self.now, self.hired, self.dismissed = 0.0, 0, list[int]()
        self.given = list[tuple[int, int]]()  # (worker, key)
        self.coming = list[Event]()

    def clock(self) -> float:
        return self.now

    def hire(self) -> int:
        self.hired += 1
        self.coming += self.arrives(self.hired - 1)
        return self.hired - 1

    def give(self, worker: int, key: int, item: Any) -> None:
        assert worker not in self.dismissed
        self.given.append((worker, key))
        if (event := self.outcome(worker, key, item)) is not None:
            self.coming.append(event)

    def dismiss(self, worker: int) -> None:
        self.dismissed.append(worker)

    def events(self, *, timeout_s: float) -> list[Event]:
        self.now += self.step_s
        return [self.coming.pop(0)] if self.coming else []

    def progress(self) -> dict[int, Any]:
        return {key: f"by {worker}" for worker, key in self.given[-1:]}

    def room(self) -> str:
        return "it needs 1 CPU, the cluster has 0"


def crew(script: Script, *, workers: int = 3, **policy: Any) -> Dispatcher[int, int]:
    rules = {"max_restarts": 3, "max_failures": 3, "pending_timeout_s": 50.0} | policy
    made = Dispatcher[int, int](script, Policy(workers, **rules), {"weights": "w1"}, clock=script.clock)
    made.assemble()
    return made


def results(made: Dispatcher[int, int], count: int = 8) -> dict[int, int]:
    found = list(made.map((i, i) for i in range(count)))
    assert len(found) == len(dict(found)), "an item came back twice"
    return dict(found)


def test_every_item_comes_back_once_with_its_own_result() -> None:
    script, seen = Script(), dict[int, Any]()
    made = crew(script)
    assert dict(made.map(((i, i) for i in range(8)), watch=seen.__setitem__)) == {i: i * i for i in range(8)}
    assert {worker for worker, _ in script.given} == {0, 1, 2}
    assert set(seen) <= set(range(8))
    assert seen
    assert made.left_out == {}


def test_an_item_that_fails_everywhere_is_left_out_and_the_rest_is_done() -> None:
    def outcome(worker: int, key: int, item: int) -> Event:
        return Failed(worker, WorkError("ValueError: no", "trace")) if key == 5 else squares(worker, key, item)

    script = Script(outcome)
    made = crew(script)
    assert results(made) == {i: i * i for i in range(8) if i != 5}
    assert made.left_out == {5: "failed on 3 workers, last: ValueError: no"}
    tried = [worker for worker, key in script.given if key == 5]
    assert len(set(tried)) == len(tried) == 3


def test_with_one_worker_an_item_that_fails_twice_in_a_row_is_tried_by_a_new_one() -> None:
    script = Script(
        lambda worker, key, item: Failed(worker, WorkError("no")) if key == 0 else squares(worker, key, item)
    )
    made = crew(script, workers=1)
    # The second failure of key 0 is not in a row where other items come between; here it is alone.
    assert list(made.map([(0, 0)])) == []
    assert [worker for worker, _ in script.given] == [0, 0, 1]
    assert script.dismissed == [0]
    assert set(made.left_out) == {0}


def test_a_worker_that_fails_over_one_item_after_another_is_replaced() -> None:
    """Such as one whose GPU is broken: its items are right elsewhere."""
    script = Script(
        lambda worker, key, item: Failed(worker, WorkError("CUDA")) if worker == 1 else squares(worker, key, item)
    )
    made = crew(script)
    assert results(made) == {i: i * i for i in range(8)}
    assert script.dismissed == [1]
    assert made.left_out == {}


def test_the_items_of_dead_workers_go_to_others_and_a_lost_node_is_no_failure_of_an_item() -> None:
    lost = iter([True, True, True, True, True])

    def outcome(worker: int, key: int, item: int) -> Event:
        if key == 2 and next(lost, False):
            return Gone(worker, "its node was lost", node=True)
        return squares(worker, key, item)

    script = Script(outcome)
    made = crew(script)
    assert results(made) == {i: i * i for i in range(8)}
    assert script.hired == 3 + 5
    assert made.left_out == {}


def test_an_item_that_kills_its_workers_is_left_out() -> None:
    script = Script(lambda worker, key, item: Gone(worker, "killed") if key == 2 else squares(worker, key, item))
    made = crew(script)
    assert results(made) == {i: i * i for i in range(8) if i != 2}
    assert made.left_out == {2: "failed on 3 workers, last: killed"}


def test_a_replacement_that_never_comes_holds_no_item_and_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    def arrives(worker: int) -> list[Event]:
        return [Placed(worker, f"node {worker}"), Ready(worker, FACTS)] if worker < 3 else []

    died = iter([True])

    def outcome(worker: int, key: int, item: int) -> Event:
        return Gone(worker, "killed") if worker == 1 and next(died, False) else squares(worker, key, item)

    script = Script(outcome, arrives=arrives)
    assert results(crew(script, pending_timeout_s=5.0), 12) == {i: i * i for i in range(12)}
    assert {worker for worker, _ in script.given} == {0, 1, 2}
    said = capsys.readouterr().out
    assert said.count("has waited 5 seconds for resources: it needs 1 CPU, the cluster has 0") == 1
    assert "Worker 1 (node 1) died: killed; a replacement is requested" in said


def test_where_no_worker_comes_in_time_the_command_ends() -> None:
    with pytest.raises(
        FleetError, match=r"pending_timeout_s=50 seconds: it needs 1 CPU, the cluster has 0\. Free some resources"
    ):
        crew(Script(arrives=lambda worker: []))


def test_where_every_worker_died_too_often_the_command_ends_with_the_last_reason() -> None:
    made = crew(
        Script(lambda worker, key, item: Gone(worker, "out of memory")), workers=2, max_restarts=1, max_failures=9
    )
    with pytest.raises(FleetError, match=r"No worker is left\. The last one: node . died: out of memory"):
        results(made)


def test_a_worker_that_cannot_begin_ends_the_command_at_once() -> None:
    script = Script(
        arrives=lambda worker: [Placed(worker, "node 7"), Failed(worker, WorkError("model.path=x: no such folder"))]
    )
    with pytest.raises(FleetError, match=r"\(node 7\) cannot start: model\.path=x: no such folder"):
        crew(script)
    assert script.given == []


def test_a_worker_with_other_weights_than_the_driver_gets_nothing() -> None:
    script = Script(arrives=lambda worker: [Placed(worker, "node 7"), Ready(worker, FACTS | {"weights": "w2"})])
    with pytest.raises(FleetError, match="weights: expected 'w1', found 'w2'"):
        crew(script)
    assert script.given == []


def test_a_later_worker_with_another_device_gets_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def arrives(worker: int) -> list[Event]:
        return [Placed(worker, f"node {worker}"), Ready(worker, FACTS | ({"device": "H100"} if worker == 1 else {}))]

    script = Script(arrives=arrives)
    assert results(crew(script)) == {i: i * i for i in range(8)}
    assert 1 not in {worker for worker, _ in script.given}
    assert "device: expected 'cpu', found 'H100'" in capsys.readouterr().out


class Doubling:
    """A worker for tests."""

    def __init__(self) -> None:
        self.facts, self.closed = FACTS, False

    def work(self, item: int, report: Callable[[Any], None]) -> int:
        report(f"at {item}")
        if item < 0:
            raise BadValue("negative")
        return 2 * item

    def close(self) -> None:
        self.closed = True


def test_in_this_process_items_are_done_in_order_and_an_error_ends_the_work() -> None:
    worker, seen = Doubling(), list[Any]()
    with InProcess().crew(lambda device: worker, device="cpu", expected=dict) as alone:
        assert alone.facts == FACTS
        assert list(alone.map([(0, 5), (1, 6)], watch=lambda *word: seen.append(word))) == [(0, 10), (1, 12)]
        assert seen == [(0, "at 5"), (1, "at 6")]
        with pytest.raises(BadValue, match="negative"):
            list(alone.map([(0, -1)]))
    assert worker.closed


def test_items_are_taken_only_as_workers_become_free() -> None:
    taken = list[int]()

    def items() -> Iterator[tuple[int, int]]:
        for i in range(8):
            taken.append(i)
            yield i, i

    stream = crew(Script(), workers=2).map(items())
    next(stream)
    assert len(taken) <= 4
