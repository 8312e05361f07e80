"""The types of what users test with, as their checkers see them."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import Any

from celery import Celery
from typing_extensions import assert_type

from celery_statekit import Change, Clients, ClientState, Progress, StatefulTask, TaskState
from celery_statekit.testing import (
    FrozenClock,
    InProcessWorker,
    Sent,
    StatefulRun,
    StatefulRunner,
    WorkerProcess,
    WorkerProcessStarter,
    WorkerStarter,
)


def test_a_run(stateful_run: StatefulRunner, load: StatefulTask, frozen_clock: FrozenClock) -> None:
    run = stateful_run(
        load, "orders.csv", kwargs={"rows": 3}, attempt=2, last_checkpoint=[1], finished={"a": 2}
    )
    assert_type(run, StatefulRun)
    assert_type(run.states, tuple[str, ...])
    assert_type(run.changes, tuple[Change, ...])
    assert_type(run.progress, Progress | None)
    assert_type(run.checkpoints, tuple[Any, ...])
    assert_type(run.sent, tuple[Sent, ...])
    assert_type(run.error, BaseException | None)
    assert_type(run.clients(ClientState), Clients[ClientState])
    run.assert_entered("READING")
    frozen_clock.advance(1.5)
    assert_type(frozen_clock.time(), float)


def test_a_worker(stateful_worker: WorkerStarter, app: Celery, load: StatefulTask) -> None:
    worker = stateful_worker(app, pool="threads", concurrency=2, store="sqlite")
    assert_type(worker, InProcessWorker)
    assert_type(worker.wait(load.delay()), TaskState)
    stateful_worker(app, store="redis")  # type: ignore[arg-type]


def test_a_process(stateful_worker_process: WorkerProcessStarter, load: StatefulTask) -> None:
    worker = stateful_worker_process("shop:app", environment={"A": "b"}, arguments=["-Q", "a"])
    assert_type(worker, WorkerProcess)
    assert_type(worker.wait(load.delay(), timeout=5), TaskState)
    worker.kill()


def check_a_task(task: StatefulTask) -> None:
    for row in task.track([1, 2], "rows", resume=True):
        assert_type(row, int)
    task.checkpoint({"row": 1})
    assert_type(task.last_checkpoint, Any)
