"""The header by which a run knows its PENDING record without a read: a guess, never more."""

from __future__ import annotations

import pytest
from celery import signals as celery_signals

from celery_statekit import StatefulTask
from celery_statekit.attempt import Attempt
from celery_statekit.errors import NewerFormat
from celery_statekit.listeners import QUEUED
from celery_statekit.record import FORMAT, Record, TaskState
from celery_statekit.states import task_flow
from celery_statekit.stores.memory import MemoryStore
from celery_statekit.tracker import Tracker


class Counting(MemoryStore):
    """A store that counts its reads."""

    reads = 0

    def read(self, key):
        """One more."""
        self.reads += 1
        return super().read(key)


@pytest.fixture
def place():
    """One pool and store will do: what is tested here depends on neither."""
    return "threads", "memory"


def claimed(tracker: Tracker, queued: object):
    """The state of a run that begins with this header."""
    return Attempt.of(tracker, "t-1", "shop.load", task_flow(None), queued=queued).claim()


def test_a_claim_by_the_header_reads_nothing():
    """The run's record is what it would have been after a read."""
    store = Counting(None)
    tracker = Tracker(store, now=lambda: 1000.5)
    queued = tracker.queue("t-1", "shop.load")
    state = claimed(tracker, queued)
    assert store.reads == 0
    assert (state.state, state.attempt, state.queued_at, state.version) == ("STARTED", 1, 1000.5, 2)
    assert tracker.read("t-1") == state
    numbers = [each.number for each in store.history(tracker.key("t-1"))]
    assert numbers == [1, 2]


@pytest.mark.parametrize(
    "header",
    [
        None,
        7,
        "",
        "a b c",
        "1:abcdef12 abcdef12 abcdef12 nan",
        "1:abcdef12 abcdef12 abcdef12 1000.5",
        "é" * 99,
    ],
)
def test_a_header_that_is_wrong_costs_a_read(header):
    """What it says is compared with the store, and not believed."""
    store = Counting(None)
    tracker = Tracker(store)
    tracker.queue("t-1", "shop.load", client_id="c-7")
    state = claimed(tracker, header)
    assert store.reads == 1
    assert (state.attempt, state.client_id, state.changes) == (1, "c-7", 2)


@pytest.mark.parametrize("how", ["newer", "more"])
def test_a_record_that_is_more_than_this_release_writes_is_read(how, monkeypatch):
    """Of a newer format, or with fields that this release does not know: nothing of it is lost."""
    store = MemoryStore(None)
    tracker = Tracker(store)
    as_known = TaskState.to_document
    if how == "more":
        monkeypatch.setattr(
            TaskState, "to_document", lambda state, key="": {**as_known(state, key), "tenant": "x"}
        )
    queued = tracker.queue("t-1", "shop.load")
    monkeypatch.setattr(TaskState, "to_document", as_known)
    if how == "more":
        claimed(tracker, queued)
        assert tracker.read("t-1").extra == {"tenant": "x"}
        return
    record = store.read(tracker.key("t-1"))
    newer = Record(**{**vars(record), "format": FORMAT + 1})
    monkeypatch.setattr(store, "read", lambda key: newer)
    newer_header = queued.replace(f"{FORMAT}:", f"{FORMAT + 1}:", 1)
    with pytest.raises(NewerFormat):
        claimed(tracker, newer_header)


def test_a_second_delivery_is_the_second_run():
    """The header is as old as the message; the record says that a run has begun."""
    tracker = Tracker(MemoryStore(None))
    queued = tracker.queue("t-1", "shop.load")
    assert [claimed(tracker, queued).attempt for _ in range(2)] == [1, 2]


def test_a_task_that_is_known_gets_no_header():
    """It is not PENDING again."""
    tracker = Tracker(MemoryStore(None))
    assert tracker.queue("t-1", "shop.load")
    assert tracker.queue("t-1", "shop.load") == ""


def test_a_retry_is_sent_without_it(app, work, ended):
    """What its first run was told is not true of the next one."""
    sent = []

    def note(headers, **_):
        sent.append(QUEUED in headers)

    @app.task(bind=True, base=StatefulTask, name="shop.again")
    def again(self):
        if not self.request.retries:
            raise self.retry(countdown=0)

    # After ours, which was connected when the library was imported.
    celery_signals.before_task_publish.connect(note)
    work()
    try:
        assert ended(again.delay()).attempt == 2
    finally:
        celery_signals.before_task_publish.disconnect(note)
    assert sent == [True, False]
