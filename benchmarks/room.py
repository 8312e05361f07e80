"""What records take in Redis: bytes of a finished task, and a page of a listing of a million."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Final

from benchmarks.comparison import Row, each, in_turns
from benchmarks.server import connect, empty_database
from celery_statekit.attempt import Attempt
from celery_statekit.record import Limits, Record, TaskState, encode_record
from celery_statekit.states import task_flow
from celery_statekit.stores import open_store
from celery_statekit.stores.base import Enumerates, Labels, Store
from celery_statekit.tracker import Tracker

TASKS: Final = 2000
#: Bytes that a finished task with eight changes may take.
BYTES: Final = 2500
STATES: Final = ("LOADING", "CHECKING", "IMPORTING", "INDEXING", "CLEANING")

FEW: Final = 1_000
MANY: Final = 1_000_000
#: A page among many may take so many times what it takes among few.
LIMIT: Final = 2.0
PAGE: Final = 100
KIND: Final = "benchmark:task"
STATE: Final = "STARTED"


def bytes_row() -> Row:
    """Redis's own count of its memory before and after some thousand tasks."""
    with empty_database() as url:
        client, store = connect(url), open_store(url)
        finish(store, 100)  # scripts and connections take their room first
        before = int(client.info("memory")["used_memory"])
        finish(store, TASKS)
        used = int(client.info("memory")["used_memory"]) - before
        store.close()
        client.close()
    return Row(
        what="a finished task with 8 changes, listings and expiry included",
        ours=used / TASKS,
        rival="limit",
        theirs=BYTES,
        limit=1,
        unit="B",
    )


def finish(store: Store, tasks: int) -> None:
    """Queue, run and end ``tasks`` that go through five states of their own."""
    tracker = Tracker(store, prefix="benchmark")
    for _ in range(tasks):
        id = str(uuid.uuid4())
        tracker.queue(id, "shop.tasks.import_orders")
        attempt = Attempt.of(
            tracker, id, "shop.tasks.import_orders", task_flow(None), worker="celery@worker-1:4711"
        )
        attempt.claim()
        for state in STATES:
            attempt.enter(state)
        attempt.leave("SUCCESS")


def listing_rows() -> Iterator[Row]:
    """A page of records in one state, at the front and far behind, among few and among many."""
    with empty_database() as url:
        store = open_store(url)
        assert isinstance(store, Enumerates)
        for number in range(FEW):
            record = a_record(number)
            assert store.write(record, expect=None, ttl=86400.0, labels=Labels(STATE))
        few = pages(store, FEW)
        load(url, store, FEW, MANY)
        assert store.count(KIND) == {STATE: MANY}
        many = pages(store, MANY)
        store.close()
    for place, here, there in zip(("first", "a late"), many, few, strict=True):
        yield Row(
            what=f"{place} page of {PAGE}, of {MANY:,} records",
            ours=here,
            rival=f"of {FEW:,} records",
            theirs=there,
            limit=LIMIT,
        )


def pages(store: Enumerates, records: int) -> list[float]:
    """Seconds of the first page, and of one behind most of ``records``."""
    first = store.find(KIND, state=STATE, limit=PAGE)
    newest = store.find(
        KIND, state=STATE, newest=True, limit=records // 2 if records <= FEW else PAGE * 5
    )
    late = newest[-1].since, newest[-1].key
    assert len(first) == PAGE
    assert first[0].record().key == first[0].key
    return in_turns(
        each(20, lambda: store.find(KIND, state=STATE, limit=PAGE)),
        each(20, lambda: store.find(KIND, state=STATE, after=late, limit=PAGE)),
        rounds=9,
    )


def a_record(number: int) -> Record:
    """The first record of a task that runs."""
    id = str(uuid.UUID(int=number))
    state = TaskState(id=id, task="shop.tasks.import_orders", state=STATE, attempt=1)
    key = f"{KIND}:{id}"
    return Record.first(key, state.to_document(key))


def load(url: str, store: Store, first: int, last: int) -> None:
    """Write records as the store does, but many with one round trip.

    One that the store has written is read back as it stands, and the others are made like it.
    """
    client = connect(url)
    model = client.lindex(a_record(0).key, -1)
    assert isinstance(model, bytes)
    version, _, _ = model.partition(b" ")
    assert version == b"1"
    limits = Limits()
    for begin in range(first, last, 5000):
        pipeline = client.pipeline(transaction=False)
        now = time.time()
        since: dict[str, float] = {}
        expiry: dict[str, float] = {}
        for number in range(begin, min(begin + 5000, last)):
            record = a_record(number)
            id = record.key.removeprefix(KIND)
            since[id] = round(now + number % 5000 * 1e-6, 6)
            expiry[f"{id}\n"] = now + 86400
            head = f"1 {record.incarnation} {since[id]:.6f} {STATE} "
            pipeline.rpush(record.key, f"{head}\n{encode_record(record, limits)}")
        pipeline.zadd(f"{KIND}|state:{STATE}", since)  # type: ignore[arg-type]
        pipeline.zadd(f"{KIND}|expiry", expiry)  # type: ignore[arg-type]
        pipeline.execute()
    newest = a_record(last - 1).key
    assert store.read(newest) is not None
    client.close()
