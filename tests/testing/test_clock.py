"""``frozen_clock``: times that a test knows beforehand."""

from __future__ import annotations

import time
from datetime import datetime, timezone

import pytest
from celery import Celery

from celery_statekit import Clients, ClientState, Progress, StatefulTask, States
from celery_statekit.errors import InvalidInput
from celery_statekit.reporter import Reporter
from celery_statekit.stores import MemoryStore
from celery_statekit.testing import FrozenClock

pytest_plugins = ("celery_statekit.testing.fixtures",)

START = 1767225600.0


class Import(States):
    READING = "Reading the file"
    IMPORTING = "Importing rows"


def test_it_stands_still_until_it_is_moved(frozen_clock):
    """Two clocks, of which one counts from zero; and a date."""
    assert (frozen_clock.time(), frozen_clock.monotonic()) == (START, 0.0)

    frozen_clock.advance(1.5)
    frozen_clock.advance(0)

    assert (frozen_clock.time(), frozen_clock.monotonic()) == (START + 1.5, 1.5)
    assert frozen_clock.now == datetime(2026, 1, 1, 0, 0, 1, 500_000, timezone.utc)
    assert repr(frozen_clock) == "<FrozenClock 2026-01-01T00:00:01.500000+00:00>"
    assert FrozenClock.running() is frozen_clock


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "1", True, None])
def test_only_durations_pass(frozen_clock, seconds):
    """Time does not go back."""
    with pytest.raises(InvalidInput):
        frozen_clock.advance(seconds)

    assert frozen_clock.monotonic() == 0


def test_the_times_of_a_run(app, stateful_run, frozen_clock):
    """Changes, checkpoint, beginning and end, and when the next attempt is due."""

    @app.task(bind=True, base=StatefulTask, states=Import, shared=False)
    def load(self):
        frozen_clock.advance(10)
        self.enter(Import.READING)
        frozen_clock.advance(0.25)
        self.checkpoint(1)
        frozen_clock.advance(5)
        raise self.retry(countdown=60)

    run = stateful_run(load)
    state = run.task_state

    assert [change.at - START for change in run.changes] == [0, 0, 10, 15.25]
    assert state.queued_at == state.started_at == START
    assert state.checkpoint.at == START + 10.25
    assert (state.updated_at, state.due_at) == (START + 15.25, START + 75.25)


def test_rate_and_remaining_time(app, stateful_run, frozen_clock):
    """They follow from how the clock was moved, however long the test took."""

    @app.task(bind=True, base=StatefulTask, shared=False)
    def load(self):
        for row in self.track(range(100)):
            frozen_clock.advance(0.5)
            if row == 39:
                break

    for _ in range(3):
        progress = stateful_run(load).progress

        assert (progress.current, progress.rate, progress.eta) == (39, 2.0, 30.5)


def test_progress_is_written_when_it_is_due(app, stateful_run, frozen_clock):
    """At each interval of the clock, as a worker does at those of the real one."""
    told = []

    class Told(StatefulTask):
        def on_progress(self, progress):
            told.append((progress.current, progress.rate))

    @app.task(bind=True, base=Told, shared=False)
    def load(self):
        for _ in self.track(range(10)):
            frozen_clock.advance(0.1)

    run = stateful_run(load)

    assert [progress.current for progress in run.progresses] == [2, 5, 8, 10]
    assert [current for current, _ in told] == [2, 5, 8, 10]
    assert all(rate == pytest.approx(10, rel=0.5) for _, rate in told)


def test_what_was_made_before_follows_it_too():
    """Trackers of eager runs, reporters and clients; afterwards the real clock counts again."""
    app = Celery("eager", broker="memory://", set_as_current=False)

    @app.task(bind=True, base=StatefulTask, states=Import, shared=False)
    def load(self):
        self.enter(Import.READING)

    before = load.apply().task_state
    orders = Clients(MemoryStore(None), ClientState)
    with FrozenClock(START).frozen() as clock:
        clock.advance(7)
        during = load.apply().task_state
        made = Clients(MemoryStore(None), ClientState)
        made.create("c-1")
        made.update("c-1", lambda client: client.enter("IN_PROGRESS"))
        reporter = Reporter()
        reporter.update(4)
        clock.advance(2)
        snapshot = reporter.snapshot()
    after = load.apply().task_state

    assert before.started_at == pytest.approx(time.time(), abs=3600)
    assert after.started_at == pytest.approx(time.time(), abs=3600)
    assert (during.started_at, during.ended_at) == (START + 7, START + 7)
    assert [change.at for change in made.history("c-1")] == [START + 7]
    assert (snapshot, snapshot.rate) == (Progress(current=4, rate=2.0), 2.0)
    assert orders.now is time.time
    assert FrozenClock.running() is None
    app.close()


def test_what_was_made_within_does_not_follow_it_afterwards():
    """An app that is first used in the block, eagerly or for its results, and clients."""
    app = Celery("first", broker="memory://", set_as_current=False)

    @app.task(bind=True, base=StatefulTask, states=Import, shared=False)
    def load(self):
        self.enter(Import.READING)

    with FrozenClock(START).frozen() as clock:
        orders = Clients(MemoryStore(None), ClientState)
        with FrozenClock(5).frozen():
            queued_within = load.delay().task_state
        clock.advance(7)
        during = load.apply().task_state
        orders.create("c-1")
        orders.update("c-1", lambda client: client.enter("IN_PROGRESS"))
    after = load.apply().task_state
    queued_after = load.delay().task_state
    orders.update("c-1", lambda client: client.enter("SUCCESS"))

    assert queued_within.queued_at == 5
    assert (during.started_at, during.ended_at) == (START + 7, START + 7)
    now = pytest.approx(time.time(), abs=3600)
    assert (after.started_at, after.ended_at, queued_after.queued_at) == (now, now, now)
    assert [change.at for change in orders.history("c-1")] == [START + 7, now]
    app.close()


def test_a_clock_within_another():
    """The inner one counts until it is left."""
    with FrozenClock(5).frozen() as outer:
        with FrozenClock(6).frozen() as inner:
            assert FrozenClock.running() is inner
            assert Clients(MemoryStore(None), ClientState).now() == 6
        assert FrozenClock.running() is outer
        assert Clients(MemoryStore(None), ClientState).now() == 5


def test_waiting_goes_by_the_real_clock(app, stateful_worker, frozen_clock):
    """A worker runs while it stands still: nothing hangs, and the times are those of the clock."""

    @app.task(bind=True, base=StatefulTask, states=Import, shared=False)
    def load(self):
        if not self.request.retries:
            raise self.retry(countdown=0.05)
        frozen_clock.advance(3)
        self.enter(Import.READING)

    worker = stateful_worker(app)
    state = worker.wait(load.delay())

    assert (state.started_at, state.ended_at) == (START, START + 3)
