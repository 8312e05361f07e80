"""The stores that fail on purpose fail as they say, and are stores otherwise."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.stores.posting import PostingStore

from celery_statekit.errors import AmbiguousWrite, StoreUnavailable
from celery_statekit.record import Change, Record
from celery_statekit.stores import Leases, MemoryStore, SQLiteStore, Store
from celery_statekit.stores.base import (
    Beside,
    Enumerates,
    Notifies,
    Posts,
    Renews,
    WritesBeside,
    kind_of,
)
from celery_statekit.testing import (
    EnumeratesContract,
    FailsAt,
    LeasesContract,
    LosesReplies,
    ManualClock,
    PostsContract,
    RenewsContract,
    StoreContract,
)
from celery_statekit.testing.faulty import Mode

KEY = "statekit:task:one"


@pytest.fixture
def store(place: str) -> Iterator[MemoryStore]:
    return MemoryStore(place)


class TestAStoreThatNeverFails(
    StoreContract, LeasesContract, RenewsContract, EnumeratesContract, PostsContract
):
    """With nothing to fail, both wrappers around a store keep its contract."""

    shared_between_processes = False

    @pytest.fixture
    def reopen(self, place: str, clock: ManualClock) -> Callable[..., Store]:
        return lambda limits=None: LosesReplies(
            FailsAt(PostingStore(place, limits, now=clock), 0), every=10**6
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
    yield lambda: store.renew([(KEY, "me")], 1.0)
    yield lambda: store.left(KEY, "me", 1.0)
    yield lambda: store.find(kind_of(KEY))
    yield lambda: store.count(kind_of(KEY))
    yield lambda: store.subscribe(KEY, print)
    yield lambda: store.delete(KEY)


@pytest.mark.parametrize("n", range(1, 12))
def test_the_nth_call_fails_and_no_other(store: MemoryStore, n: int) -> None:
    """Whichever call it is, it fails before anything is done."""
    failing = FailsAt(store, n)
    failed = [number for number, call in enumerate(_all_calls(failing), 1) if fails(call)]

    assert failed == [n]
    assert failing.fired
    assert failing.calls == 11
    assert (store.read(KEY) is not None) == (n == 11)


def test_several_calls_may_fail(store: MemoryStore) -> None:
    """An outage: from the n-th call until another."""
    failing = FailsAt(store, 2, until=3)

    assert [fails(lambda: failing.read(KEY)) for _ in range(4)] == [False, True, True, False]


def test_counting_up_ends(store: MemoryStore) -> None:
    """A failpoint behind the last call does not fire: that is how a test knows it has tried all."""
    failing = FailsAt(store, 12)
    for call in _all_calls(failing):
        call()

    assert not failing.fired


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("mode", ["error", "doubt"])
def test_a_write_that_fails_was_done_or_not(store: MemoryStore, mode: Mode, after: bool) -> None:
    """Before the call nothing is there, after it the record; only then may it be in doubt."""
    failing = FailsAt(store, 1, mode=mode, after=after)
    doubtful = after or mode == "doubt"

    with pytest.raises(AmbiguousWrite if doubtful else StoreUnavailable, match="on purpose"):
        failing.write(Record.first(KEY, {}), expect=None)
    assert (store.read(KEY) is not None) == after


@pytest.mark.parametrize("mode", ["error", "doubt"])
def test_a_read_that_fails_is_never_in_doubt(store: MemoryStore, mode: Mode) -> None:
    """Nothing can be lost by it."""
    for after in (False, True):
        with pytest.raises(StoreUnavailable):
            FailsAt(store, 1, mode=mode, after=after).read(KEY)


@pytest.mark.parametrize("mode", ["stop", "delay"])
def test_a_call_that_takes_its_time_is_done(store: MemoryStore, mode: Mode) -> None:
    """The process is stopped, or waits, and then goes on as if nothing had been."""
    failing = FailsAt(store, 1, mode=mode, seconds=0.05)
    began = time.monotonic()

    assert failing.write(Record.first(KEY, {}), expect=None)
    assert time.monotonic() - began >= 0.05
    assert store.read(KEY) is not None


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_process_is_killed_at_the_call(tmp_path: Path, after: bool) -> None:
    """By SIGKILL; what it had written by then is there."""
    path = tmp_path / "states.db"
    program = (
        "from celery_statekit.record import Record\n"
        "from celery_statekit.stores import SQLiteStore\n"
        "from celery_statekit.testing import FailsAt\n"
        f"store = FailsAt(SQLiteStore({str(path)!r}), 2, mode='kill', after={after})\n"
        f"store.read({KEY!r})\n"
        f"store.write(Record.first({KEY!r}, {{}}), expect=None)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], check=False)

    assert ended.returncode == -signal.SIGKILL
    with closing(SQLiteStore(path)) as store:
        assert (store.read(KEY) is not None) == after


def test_a_value_written_beside_fails_as_a_write(store: MemoryStore) -> None:
    """A store that writes Celery's value, too, is one that does so; its failures are a write's."""

    class Besides(MemoryStore):
        def reaches(self, parameters: Mapping[str, Any]) -> bool:
            return True

        def write_beside(self, record: Record, beside: Beside, **words: Any) -> bool:
            return self.write(record, **words)

    besides = Besides(store.name.removeprefix("memory://"))
    record, beside = Record.first(KEY, {}), Beside("celery-task-meta-1", "{}", None)
    for wrapper in (FailsAt(besides, 1, after=True), LosesReplies(besides, every=1)):
        assert isinstance(wrapper, WritesBeside)
        assert wrapper.reaches({})
        with pytest.raises(AmbiguousWrite):
            wrapper.write_beside(record, beside, expect=None)
        assert besides.delete(KEY)


# --- what is posted ------------------------------------------------------------------------------


class Unconnected(MemoryStore):
    """Nothing can be posted to it."""

    def post(self, record: Record, **facts: Any) -> None:
        """Send nothing."""


@pytest.fixture
def posting(place: str) -> Iterator[PostingStore]:
    return PostingStore(place)


@pytest.mark.parametrize("applied", [True, False])
def test_the_answer_to_a_posted_write_is_lost(posting: PostingStore, applied: bool) -> None:
    """It counts among the writes; the next one is answered."""
    lossy = LosesReplies(posting, every=2, applied=applied)
    records = [Record.first(f"{KEY}{number}", {}) for number in range(4)]
    posted = [lossy.post(record) for record in records[:3]]

    assert posted[0].is_written(1.0) is True
    with pytest.raises(AmbiguousWrite, match="reply was lost" if applied else "request was lost"):
        posted[1].is_written(1.0)
    assert posted[2].is_written(1.0) is True
    with pytest.raises(AmbiguousWrite):
        lossy.write(records[3], expect=None)
    assert lossy.lost == 2
    there = [posting.read(record.key) is not None for record in records]
    assert there == [True, applied, True, applied]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("mode", ["error", "doubt"])
def test_a_posted_write_that_fails_was_done_or_not(
    posting: PostingStore, mode: Mode, after: bool
) -> None:
    """It fails when it is asked about, as a write does; that it was sent is one call."""
    failing = FailsAt(posting, 1, mode=mode, after=after)
    posted = failing.post(Record.first(KEY, {}))
    assert failing.fired

    with pytest.raises(AmbiguousWrite if after or mode == "doubt" else StoreUnavailable):
        posted.is_written(1.0)
    assert failing.calls == 1
    assert (posting.read(KEY) is not None) == after
    assert failing.post(Record.first("k2", {})).is_written(1.0) is True


@pytest.mark.parametrize("mode", ["stop", "delay"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_posted_write_that_takes_its_time(posting: PostingStore, mode: Mode, after: bool) -> None:
    """While it is sent, or while it is asked about."""
    failing = FailsAt(posting, 1, mode=mode, after=after, seconds=0.05)
    began = time.monotonic()
    posted = failing.post(Record.first(KEY, {}))
    assert after or time.monotonic() - began >= 0.05

    assert posted.is_written(1.0) is True
    assert time.monotonic() - began >= 0.05


def test_of_what_cannot_be_posted_no_answer_is_lost(place: str) -> None:
    """A store that can send nothing now says so, and nobody asks it for an answer."""
    store = Unconnected(place)
    lossy, failing = LosesReplies(store, every=1), FailsAt(store, 1, after=True)

    assert lossy.post(Record.first(KEY, {})) is None
    assert lossy.lost == 0
    assert failing.post(Record.first(KEY, {})) is None


def test_it_can_what_its_store_can(store: MemoryStore) -> None:
    """A wrapper keeps and renews leases, finds records and notifies exactly where the store does."""

    class Narrow:
        name, limits = store.name, store.limits
        read, write, history = store.read, store.write, store.history
        delete, close = store.delete, store.close

    for wrapper in (FailsAt(store, 0), LosesReplies(store)):
        assert isinstance(wrapper, Store)
        assert isinstance(wrapper, Leases)
        assert isinstance(wrapper, Renews)
        assert isinstance(wrapper, Enumerates)
        assert isinstance(wrapper, Notifies)
        assert not isinstance(wrapper, WritesBeside)
        assert not isinstance(wrapper, Posts)
    for wrapper in (FailsAt(Narrow(), 0), LosesReplies(Narrow())):
        assert isinstance(wrapper, Store)
        assert not isinstance(wrapper, Leases)
        assert not isinstance(wrapper, Renews)
        assert not isinstance(wrapper, Enumerates)
        assert not isinstance(wrapper, Notifies)
    assert isinstance(FailsAt(PostingStore(None), 0), Posts)
    assert isinstance(LosesReplies(PostingStore(None)), Posts)
