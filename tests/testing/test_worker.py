"""``stateful_worker``: a real worker in the test's process."""

from __future__ import annotations

import logging
import os
import threading
import time

import pytest
from celery import _state, chain, chord, group
from celery.worker import state as worker_state

from celery_statekit import Clients, ClientState, StatefulTask, States
from celery_statekit.errors import InvalidInput, WatchTimeout
from celery_statekit.settings import Settings
from celery_statekit.testing import InProcessWorker

pytest_plugins = ("celery_statekit.testing.fixtures",)


class Import(States):
    READING = "Reading the file"
    IMPORTING = "Importing rows"


@pytest.fixture
def load(app):
    @app.task(bind=True, base=StatefulTask, states=Import, shared=False, name="shop.load")
    def load(self, rows=3, fails=False):
        self.enter(Import.READING)
        for _ in self.track(range(rows)):
            pass
        if fails:
            raise ValueError("no")
        self.enter(Import.IMPORTING)
        return rows

    return load


@pytest.fixture
def add(app):
    @app.task(base=StatefulTask, shared=False, name="shop.add")
    def add(*numbers):
        return sum(numbers[0] if isinstance(numbers[0], list) else numbers)

    return add


@pytest.mark.parametrize("store", ["memory", "sqlite"])
@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_tasks_run(app, load, stateful_worker, pool, store):
    """With queues, results and records of the test alone."""
    worker = stateful_worker(app, pool=pool, concurrency=2, store=store)
    result = load.delay(5)

    state = worker.wait(result)

    assert isinstance(worker, InProcessWorker)
    assert (state.state, state.progress.current) == ("SUCCESS", 5)
    assert result.get(timeout=1) == 5
    moves = [change.to_state for change in result.history()]
    assert moves == ["PENDING", "STARTED", "READING", "IMPORTING", "SUCCESS"]
    assert [state.final for state in load.delay(0).watch(timeout=10)][-1]
    assert worker.wait(load.delay(1, fails=True)).error["message"] == "no"


def test_canvas(app, add, stateful_worker):
    """Chains, groups and chords, and messages that come later."""
    stateful_worker(app, pool="threads", concurrency=2)

    assert chain(add.s(1, 2), add.s(3)).delay().get(timeout=10) == 6
    assert group(add.s(n, 1) for n in range(5)).delay().get(timeout=10) == [1, 2, 3, 4, 5]
    assert chord([add.s(1, 2), add.s(3, 4)])(add.s()).get(timeout=10) == 10
    assert add.apply_async((1, 2), countdown=0.05).get(timeout=10) == 3


def test_it_can_be_controlled(app, add, stateful_worker, until):
    """By remote control: revoked tasks do not run."""
    worker = stateful_worker(app)
    app.control.revoke("t-1")
    until(lambda: "t-1" in worker_state.revoked)

    state = worker.wait(add.apply_async((1, 2), task_id="t-1"))

    assert state.state == "REVOKED"


def test_it_uses_the_routes_of_the_app(app, add, stateful_worker):
    """A task that is sent to another queue runs where a worker takes from it."""
    app.conf.task_routes = {"shop.add": {"queue": "sums"}}
    worker = stateful_worker(app, queues=["sums"])

    assert worker.wait(add.delay(1)).state == "SUCCESS"


def test_tasks_that_are_made_late(app, stateful_worker):
    """They are taken up by ``reload``."""
    worker = stateful_worker(app)

    @app.task(base=StatefulTask, shared=False)
    def late():
        return "late"

    worker.reload()

    assert late.delay().get(timeout=10) == "late"


def test_one_at_a_time(app, stateful_worker):
    """A second one in this process would be stopped with the first."""
    stateful_worker(app)

    with pytest.raises(InvalidInput, match="a second worker in this process"):
        stateful_worker(app)


@pytest.mark.parametrize(
    ("options", "path"),
    [({"pool": "prefork"}, "pool"), ({"pool": "gevent"}, "pool"), ({"store": "redis"}, "store")],
)
def test_what_it_cannot_have(app, stateful_worker, options, path):
    """A pool of processes, or a store elsewhere."""
    with pytest.raises(InvalidInput) as refusal:
        stateful_worker(app, **options)

    assert refusal.value.path == path
    stateful_worker(app)


def test_a_wait_in_vain(app, add, stateful_worker):
    """What does not end in time is said."""
    worker = stateful_worker(app, queues=["other"], patience=0.1)

    with pytest.raises(WatchTimeout):
        worker.wait(add.delay(1))


# --- what is left of it --------------------------------------------------------------------------


@pytest.fixture
def state_of(app, monkeypatch):
    """What a worker changes in a process."""
    for name in [name for name in os.environ if name.startswith("CELERY_")]:
        monkeypatch.delenv(name)

    def state():
        return (
            dict(app.conf.changes),
            {name: vars(app).get(name) for name in ("_statekit", "_connection", "_get_backend")},
            app.amqp.queues.consume_from.copy(),
            [task.__trace__ for task in app.tasks.values()],
            (_state.default_app, _state._tls.current_app, _state.task_join_will_block()),
            logging.getLogger().handlers[:],
            logging.getLogger().level,
            dict(os.environ),
            [*worker_state.active_requests, *worker_state.revoked, *worker_state.requests],
            sorted(
                thread.name
                for thread in threading.enumerate()
                if not thread.name.startswith("statekit-")
            ),
        )

    return state


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_everything_is_as_it_was(app, load, tmp_path, state_of, pool):
    """The app, logging, environment and threads of the process."""
    assert app.conf.task_serializer, "it is configured when it is first asked"
    before = state_of()

    with InProcessWorker.started(app, folder=tmp_path, pool=pool) as worker:
        worker.wait(load.delay())
        app.control.revoke("t-1")
        during = state_of()

    assert state_of() == before
    assert during != before


def test_what_nobody_took_is_gone(app, load, tmp_path):
    """The next worker runs nothing that was sent to the last one."""
    ran = []

    @app.task(base=StatefulTask, shared=False)
    def note(n):
        ran.append(n)

    with InProcessWorker.started(app, folder=tmp_path, queues=["other"]):
        left = note.delay(1)
        Clients(app, ClientState).create("c-1")
    with InProcessWorker.started(app, folder=tmp_path) as worker:
        worker.wait(note.delay(2))
        assert not left.task_state.known
        assert Clients(app, ClientState).list() == []

    assert ran == [2]


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_a_task_that_runs_is_waited_for(app, tmp_path, pool):
    """Celery's own embedded worker would leave it behind in its thread."""
    begun, ended = threading.Event(), []

    @app.task(base=StatefulTask, shared=False)
    def slow():
        begun.set()
        time.sleep(0.2)
        ended.append(1)

    with InProcessWorker.started(app, folder=tmp_path, pool=pool):
        slow.delay()
        assert begun.wait(10)

    assert ended == [1]


def test_a_task_that_does_not_end_is_named(app, tmp_path):
    """The test fails, and says by what."""
    begun, go = threading.Event(), threading.Event()

    @app.task(base=StatefulTask, shared=False, name="shop.stuck")
    def stuck():
        begun.set()
        go.wait(30)

    with (
        pytest.raises(RuntimeError, match=r"still running after 0.1 seconds: shop.stuck\["),
        InProcessWorker.started(app, folder=tmp_path, pool="threads", patience=0.1),
    ):
        stuck.delay()
        assert begun.wait(10)
        threading.Timer(0.3, go.set).start()


def test_logs_reach_the_test(app, load, stateful_worker, caplog, until):
    """Those of the worker and those of the task."""
    worker = stateful_worker(app)
    with caplog.at_level(logging.INFO):
        worker.wait(load.delay(fails=True))

    until(lambda: any("shop.load" in record.getMessage() for record in caplog.records))
    assert not any("seen by this process alone" in record.getMessage() for record in caplog.records)


def test_a_run_beside_a_worker(app, load, stateful_worker, stateful_run):
    """``stateful_run`` is a place of its own."""
    worker = stateful_worker(app)
    before = load.delay(1)
    worker.wait(before)

    run = stateful_run(load, 2)
    after = load.delay(3)

    assert worker.wait(after).progress.current == 3
    assert run.progress.current == 2
    assert before.task_state.progress.current == 1
    assert not load.AsyncResult(run.id).task_state.known


def test_the_settings_are_those_of_the_app(app, stateful_worker):
    """But for the store and how often progress is written."""
    app.conf.update(statekit_prefix="ours", statekit_store="redis://nowhere.invalid")
    stateful_worker(app)

    assert Settings.of(app).values.prefix == "ours"
    assert Settings.of(app).tracker.key("t").startswith("ours:")
