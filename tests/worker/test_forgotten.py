"""Records that go: of a message that was not sent, and of an end that is forgotten."""

from __future__ import annotations

import pytest

from celery_statekit import States, tracker
from celery_statekit.attempt import Attempt
from celery_statekit.errors import AttemptEnded, StateRegressed, StoreFull, UnknownTask
from celery_statekit.record import TaskState
from celery_statekit.states import Flow, task_flow
from celery_statekit.stores import MemoryStore
from celery_statekit.testing import ManualClock
from celery_statekit.tracker import Tracker
from celery_statekit.watcher import Watcher


class Steps(States):
    FIRST = "First"
    SECOND = "Second"


@pytest.fixture
def place():
    """Nothing here depends on a pool or a store."""
    return "threads", "memory"


@pytest.fixture
def clock():
    """The store's."""
    return ManualClock()


@pytest.fixture
def store(clock):
    """An empty one."""
    return MemoryStore(None, now=clock)


@pytest.fixture
def tasks(store):
    """What writes the records."""
    return Tracker(store)


@pytest.fixture
def begin(tasks):
    """Begin a run of the task."""

    def claim():
        run = Attempt.of(tasks, "t-1", "shop.load", task_flow(Flow.of(Steps)))
        run.claim()
        return run

    return claim


def kept(tasks):
    """The state of what is kept of the task; "" of nothing."""
    record = tasks.store.read(tasks.key("t-1"))
    return "" if record is None else TaskState.from_record(record).state


# --- unqueue -------------------------------------------------------------------------------------


def test_what_was_not_sent_is_not_pending(tasks):
    """Its record and its history go."""
    tasks.queue("t-1", "shop.load")
    tasks.unqueue("t-1")
    assert not tasks.read("t-1").known
    assert tasks.store.history(tasks.key("t-1")) == []


def test_a_run_that_begins_meanwhile_keeps_its_record(tasks, begin, monkeypatch):
    """The broker had the message after all, and a worker claims it between read and write."""
    tasks.queue("t-1", "shop.load")
    read, runs = tasks.store.read, []

    def read_and_begin(key):
        record = read(key)
        if not runs:
            runs.append(None)
            runs.append(begin())
        return record

    monkeypatch.setattr(tasks.store, "read", read_and_begin)
    tasks.unqueue("t-1")
    assert tasks.read("t-1").state == "STARTED"
    runs[1].enter(Steps.FIRST.name)


# --- forget --------------------------------------------------------------------------------------


def test_a_forgotten_end_goes_in_a_moment(tasks, begin, clock):
    """It is read no more, and kept for a minute with its history; then nothing is left."""
    begin().leave("SUCCESS")
    tasks.forget("t-1")
    assert kept(tasks) == "SUCCESS"
    assert not tasks.read("t-1").known
    clock.advance(tracker.FORGOTTEN_KEPT / 2)
    tasks.forget("t-1")
    clock.advance(tracker.FORGOTTEN_KEPT / 2 + 1)
    assert kept(tasks) == ""
    assert tasks.store.history(tasks.key("t-1")) == []


def test_it_stays_no_longer_than_ends_do(store, begin, clock):
    """Who keeps ends for a moment only keeps forgotten ones no longer."""
    begin().leave("SUCCESS")
    hasty = Tracker(store, expires=1.0)
    hasty.forget("t-1")
    clock.advance(1.1)
    assert kept(hasty) == ""


@pytest.mark.parametrize("to_state", ["REVOKED", "FAILURE"])
def test_a_run_that_was_ended_and_forgotten_hears_of_its_end(tasks, begin, to_state):
    """It is told no loss of the store's, and does not write over its end."""
    run = begin()
    run.enter(Steps.FIRST.name)
    tasks.end_from_outside("t-1", "shop.load", to_state, reason="terminated")
    tasks.forget("t-1")
    for _ in range(2):
        with pytest.raises(AttemptEnded):
            run.enter(Steps.SECOND.name)
    with pytest.raises(AttemptEnded):
        run.leave("SUCCESS")
    assert kept(tasks) == to_state


def test_a_revoked_run_may_go_on_for_long(tasks, begin, clock):
    """A pool of threads does not end it: REVOKED outlives other ends that were forgotten."""
    run = begin()
    tasks.end_from_outside("t-1", "shop.load", "REVOKED", reason="terminated")
    tasks.forget("t-1")
    clock.advance(tracker.FORGOTTEN_KEPT * 60)
    with pytest.raises(AttemptEnded):
        run.enter(Steps.FIRST.name)


def test_pending_that_comes_late_finds_the_end(tasks, begin):
    """Nobody would ever end the task that it begins."""
    begin().leave("SUCCESS")
    tasks.forget("t-1")
    assert tasks.queue("t-1", "shop.load", late=True) == ""
    assert kept(tasks) == "SUCCESS"


def test_a_forgotten_task_is_sent_again(tasks, begin):
    """With the same id it begins anew; a run of before is not the current one."""
    before = begin()
    before.leave("FAILURE", error={"type": "KeyError", "message": "row"})
    tasks.forget("t-1")
    tasks.queue("t-1", "shop.load")
    pending = tasks.read("t-1")
    run = begin()
    assert (pending.state, pending.final, pending.error) == ("PENDING", False, None)
    assert run.number > before.number
    assert run.leave("SUCCESS").state == "SUCCESS"
    tasks.forget("t-1")
    assert begin().state.state == "STARTED"


def test_a_store_that_is_full_forgets_at_once(tasks, begin, monkeypatch):
    """There is no room for a note: forgetting is what makes some."""
    begin().leave("SUCCESS")

    def refuse(*_, **__):
        raise StoreFull("shop", "on purpose")

    monkeypatch.setattr(tasks.store, "write", refuse)
    tasks.forget("t-1")
    assert kept(tasks) == ""


# --- watching ------------------------------------------------------------------------------------


def test_a_watch_ends_with_an_end_that_is_forgotten(tasks, begin):
    """Who asks for the result first, and forgets it, takes nothing from those who watch."""
    run = begin()
    watch = Watcher(tasks.store).watch("t-1")
    seen = [next(watch).state]
    run.leave("SUCCESS")
    tasks.forget("t-1")
    assert [*seen, *(state.state for state in watch)] == ["STARTED", "SUCCESS"]


def test_a_watch_asks_celery_for_an_end_that_is_gone(tasks, begin):
    """Where the record expired between two reads, Celery may know how the task ended."""
    begin()
    stored = TaskState(id="t-1", state="STARTED", source="celery")
    watch = Watcher(tasks.store, ask=lambda _: stored, poll=0.001).watch("t-1")
    next(watch)
    stored = TaskState(id="t-1", state="FAILURE", final=True, source="celery")
    tasks.store.delete(tasks.key("t-1"))
    assert [(state.state, state.source) for state in watch] == [("FAILURE", "celery")]


@pytest.mark.parametrize("said", ["UNKNOWN", "STARTED"])
def test_a_watch_of_a_lost_run_says_so(tasks, begin, said):
    """Neither record nor Celery knows of an end: the store has lost a live run."""
    begin()
    watcher = Watcher(tasks.store, ask=lambda id: TaskState(id=id, state=said), patience=0.0)
    watch = watcher.watch("t-1")
    next(watch)
    tasks.store.delete(tasks.key("t-1"))
    with pytest.raises(StateRegressed):
        next(watch)
    with pytest.raises(UnknownTask):
        [*watcher.watch("t-1")]
