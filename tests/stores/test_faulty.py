"""The stores that fail on purpose fail as they say, and are stores otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_statekit.errors import AmbiguousWrite, StoreUnavailable
from celery_statekit.record import Change, Record
from celery_statekit.stores import Leases, MemoryStore, Store
from celery_statekit.stores.base import Enumerates
from celery_statekit.testing import (
    EnumeratesContract,
    FailsAt,
    LeasesContract,
    LosesReplies,
    ManualClock,
    StoreContract,
)

KEY = "statekit:task:one"


@pytest.fixture
def store(place: str) -> Iterator[MemoryStore]:
    return MemoryStore(place)


class TestAStoreThatNeverFails(StoreContract, LeasesContract, EnumeratesContract):
    """With nothing to fail, both wrappers around a store keep its contract."""

    shared_between_processes = False

    @pytest.fixture
    def reopen(self, place: str, clock: ManualClock) -> Callable[..., Store]:
        return lambda limits=None: LosesReplies(
            FailsAt(MemoryStore(place, limits, now=clock), 0), every=10**6
        )

    @pytest.fixture
    def elapse(self, clock: ManualClock) -> Callable[[float], None]:
        return clock.advance

    @pytest.fixture
    def plant(self, plant_in_memory: Callable[[str, bytes], None]) -> Callable[[str, bytes], None]:
        return plant_in_memory


def test_a_lost_reply_comes_after_the_write(store: MemoryStore) -> None:
    """AmbiguousWrite, and the record with its change is there; its write id settles it."""
    lossy = LosesReplies(store, every=1)
    record = Record.first(KEY, {})
    change = Change(number=1, version=1, from_state="", to_state="A", at=1.0)

    with pytest.raises(AmbiguousWrite, match="reply was lost"):
        lossy.write(record, expect=None, changes=[change])
    read = lossy.read(KEY)
    assert read is not None
    assert read.follows(record) is True
    assert lossy.history(KEY) == [change]
    assert lossy.lost == 1


def test_a_lost_request_comes_instead_of_the_write(store: MemoryStore) -> None:
    """AmbiguousWrite, and nothing was written."""
    lossy = LosesReplies(store, every=1, applied=False)

    with pytest.raises(AmbiguousWrite, match="request was lost"):
        lossy.write(Record.first(KEY, {}), expect=None)
    assert lossy.read(KEY) is None


def test_every_third_reply_is_lost(store: MemoryStore) -> None:
    """The others are as the store gives them."""
    lossy = LosesReplies(store, every=3)

    def lost(number: int) -> bool:
        try:
            return not lossy.write(Record.first(f"k{number}", {}), expect=None)
        except AmbiguousWrite:
            return True

    assert [lost(number) for number in range(1, 8)] == [n % 3 == 0 for n in range(1, 8)]
    assert lossy.lost == 2


def fails(call: Callable[[], Any]) -> bool:
    """Whether the store is unavailable to ``call``."""
    try:
        call()
    except StoreUnavailable:
        return True
    return False


def _all_calls(store: Any) -> Iterator[Callable[[], Any]]:
    yield lambda: store.read(KEY)
    yield lambda: store.write(Record.first(KEY, {}), expect=None)
    yield lambda: store.history(KEY)
    yield lambda: store.acquire(KEY, "me", 1.0)
    yield lambda: store.release(KEY, "me")
    yield lambda: store.keys("")
    yield lambda: store.delete(KEY)


@pytest.mark.parametrize("n", range(1, 8))
def test_the_nth_call_fails_and_no_other(store: MemoryStore, n: int) -> None:
    """Whichever call it is, it fails before anything is done."""
    failing = FailsAt(store, n)
    failed = [number for number, call in enumerate(_all_calls(failing), 1) if fails(call)]

    assert failed == [n]
    assert failing.fired
    assert failing.calls == 7
    assert (store.read(KEY) is not None) == (n == 7)


def test_several_calls_may_fail(store: MemoryStore) -> None:
    """An outage: from the n-th call until another."""
    failing = FailsAt(store, 2, until=3)

    assert [fails(lambda: failing.read(KEY)) for _ in range(4)] == [False, True, True, False]


def test_counting_up_ends(store: MemoryStore) -> None:
    """A failpoint behind the last call does not fire: that is how a test knows it has tried all."""
    failing = FailsAt(store, 8)
    for call in _all_calls(failing):
        call()

    assert not failing.fired


def test_it_can_what_its_store_can(store: MemoryStore) -> None:
    """A wrapper keeps leases and lists keys exactly where the store does."""

    class Narrow:
        name, limits = store.name, store.limits
        read, write, history = store.read, store.write, store.history
        delete, close = store.delete, store.close

    for wrapper in (FailsAt(store, 0), LosesReplies(store)):
        assert isinstance(wrapper, Store)
        assert isinstance(wrapper, Leases)
        assert isinstance(wrapper, Enumerates)
    for wrapper in (FailsAt(Narrow(), 0), LosesReplies(Narrow())):
        assert isinstance(wrapper, Store)
        assert not isinstance(wrapper, Leases)
        assert not isinstance(wrapper, Enumerates)
