"""What is the memory store's own: names, one process, and what it keeps."""

from __future__ import annotations

import multiprocessing

import pytest

from celery_statekit.errors import StoreUnavailable
from celery_statekit.record import Record
from celery_statekit.stores import MemoryStore, memory
from celery_statekit.testing import ManualClock

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

KEY = "statekit:task:one"


def test_stores_of_one_name_are_one_place(place: str) -> None:
    """The name says which; another name is another place."""
    record = Record.first(KEY, {"n": 1})
    MemoryStore(place).write(record, expect=None)

    assert MemoryStore(place).read(KEY) == record
    assert MemoryStore(f"{place} too").read(KEY) is None


def test_its_name_is_its_url(place: str) -> None:
    """What messages show is what ``open_store`` takes."""
    assert MemoryStore(place).name == f"memory://{place}"
    assert MemoryStore().name == "memory://"


def test_a_new_store_of_the_same_name_in_a_child_is_told_too(place: str) -> None:
    """A child that opens the name itself would have a copy that nobody else sees."""
    MemoryStore(place).write(Record.first(KEY, {}), expect=None)
    ours, theirs = multiprocessing.get_context("fork").Pipe()

    def work() -> None:
        try:
            MemoryStore(place).read(KEY)
        except StoreUnavailable as exc:
            theirs.send(str(exc))

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(20.0)
    told = ours.recv() if ours.poll() else ""
    ours.close()
    theirs.close()

    assert "does not cross processes" in told
    assert "sqlite:///" in told


def test_the_expired_are_removed(place: str) -> None:
    """What expires is not kept until the process ends, nor are leases that have ended."""
    clock = ManualClock()
    store = MemoryStore(place, now=clock)
    for number in range(10):
        store.write(Record.first(f"k{number}", {}), expect=None, ttl=1.0)
        store.acquire(f"k{number}", "me", 1.0)
        store.renew([(f"k{number}", "me")], 1.0)
    clock.advance(2.0)
    for number in range(30):
        store.write(Record.first(f"n{number}", {}), expect=None)
    store.renew([(f"n{number}", "me") for number in range(10)], 1.0)

    assert set(memory._shelves[place].entries) == {f"n{number}" for number in range(30)}
    assert memory._shelves[place].leases == {}
    assert set(memory._shelves[place].alive) == {(f"n{number}", "me") for number in range(10)}
