"""Cancel and pause where record and result are one write: what is seen, and what hangs on it."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from celery import Celery, chain, chord
from celery.exceptions import ChordError, TaskRevokedError
from celery.result import AsyncResult

WAIT = 10


class Tasks:
    """What the canvases are made of."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.begun = threading.Event()
        self.ran: list[str] = []
        self.caught: list[tuple[str, str]] = []

        @app.task(name="wait", bind=True)
        def wait(task: Any, *_: Any) -> None:
            self.ran.append("wait")
            self.begun.set()
            while True:
                task.progress.update(0)
                time.sleep(0.001)

        @app.task(name="add")
        def add(x: int, y: int = 1) -> int:
            self.ran.append("add")
            return x + y

        @app.task(name="total")
        def total(numbers: list[int]) -> int:
            self.ran.append("total")
            return sum(numbers)

        @app.task(name="caught")
        def caught(request: Any, exc: BaseException, traceback: Any) -> None:
            self.caught.append((request.id, type(exc).__name__))

        self.wait, self.add, self.total, self.on_error = wait, add, total, caught
        app.finalize()

    def state(self, result: Any) -> str:
        """What Celery says now."""
        return str(AsyncResult(result.id, app=self.app).state)

    def settle(self) -> None:
        """What was sent until now has run."""
        assert self.add.delay(1, 1).get(timeout=WAIT) == 2


@pytest.fixture
def tasks(app: Celery) -> Tasks:
    """The tasks."""
    return Tasks(app)


def test_a_run(tasks: Tasks, work: Any, until: Any) -> None:
    """Record and result end at once; the rest of its chain and its errback follow."""
    work()
    result = chain(tasks.wait.s(), tasks.add.s(), tasks.add.s()).apply_async(
        link_error=tasks.on_error.s()
    )
    first = result.parent.parent
    assert tasks.begun.wait(WAIT)
    assert first.cancel("stop", by="ada") is True

    for step in (first, result.parent, result):
        with pytest.raises(TaskRevokedError, match="stop"):
            AsyncResult(step.id, app=tasks.app).get(timeout=WAIT)
        assert tasks.state(step) == "REVOKED"
    until(lambda: tasks.caught)
    tasks.settle()
    assert tasks.caught == [(first.id, "TaskRevokedError")]
    assert tasks.ran == ["wait", "add"]
    assert (first.task_state.reason, first.task_state.asked.by) == ("stop", "ada")


def test_the_header_of_a_chord(tasks: Tasks, work: Any) -> None:
    """The body fails, and does not run."""
    work()
    joined = chord([tasks.add.s(1), tasks.wait.s()])(tasks.total.s())
    assert tasks.begun.wait(WAIT)
    joined.parent.results[1].cancel("stop")

    with pytest.raises(ChordError):
        AsyncResult(joined.id, app=tasks.app).get(timeout=WAIT)
    tasks.settle()
    assert "total" not in tasks.ran


def test_one_that_waits(tasks: Tasks, work: Any, until: Any) -> None:
    """Record and result are one write; its message ends chain and errbacks, once."""
    result = chain(tasks.add.s(1), tasks.add.s(2)).apply_async(link_error=tasks.on_error.s())
    first = result.parent
    until(lambda: first.task_state.state == "PENDING")
    assert first.cancel("stop") is True
    with pytest.raises(TaskRevokedError, match="stop"):
        first.get(timeout=WAIT)
    before = tasks.app.backend.get_task_meta(first.id, cache=False)
    assert tasks.state(result) == "PENDING"
    work()

    with pytest.raises(TaskRevokedError, match="stop"):
        AsyncResult(result.id, app=tasks.app).get(timeout=WAIT)
    until(lambda: tasks.caught)
    tasks.settle()
    assert tasks.caught == [(first.id, "TaskRevokedError")]
    assert tasks.ran == ["add"]
    after = tasks.app.backend.get_task_meta(first.id, cache=False)
    assert after["date_done"] == before["date_done"]


def test_the_header_of_a_chord_that_waits(tasks: Tasks, work: Any, until: Any) -> None:
    """The body fails when the message comes."""
    joined = chord([tasks.add.s(1), tasks.add.s(2)])(tasks.total.s())
    member = joined.parent.results[1]
    until(lambda: member.task_state.state == "PENDING")
    member.cancel("stop")
    work()

    with pytest.raises(ChordError):
        AsyncResult(joined.id, app=tasks.app).get(timeout=WAIT)
    tasks.settle()
    assert "total" not in tasks.ran


def test_paused_and_resumed(tasks: Tasks, work: Any, until: Any) -> None:
    """What Celery shows stays as it is meanwhile."""
    work()
    result = tasks.wait.delay()
    assert tasks.begun.wait(WAIT)
    result.pause("lunch")
    until(lambda: result.task_state.paused)
    shown = tasks.state(result)
    result.resume()
    until(lambda: not result.task_state.paused)
    result.cancel()

    assert shown in ("PENDING", "STARTED")
    with pytest.raises(TaskRevokedError):
        result.get(timeout=WAIT)


def test_cancels_that_race_with_the_end(app: Celery, work: Any, ended: Any) -> None:
    """One end, which record and result agree on."""

    @app.task(name="count", bind=True)
    def count(task: Any, items: int) -> int:
        for number in range(items):
            task.checkpoint(number)
        return items

    work()
    ends = []
    for number in range(60):
        result = count.delay(number % 20)
        time.sleep(0.0007 * (number % 30))
        asked = result.cancel(str(number))
        state = ended(result)
        ends.append(state.state)

        assert state.state == AsyncResult(result.id, app=app).state
        assert state.state == "SUCCESS" or asked
        changes = [change.to_state for change in result.history()]
        assert len([end for end in changes if end in ("SUCCESS", "REVOKED")]) == 1
    assert "REVOKED" in ends
