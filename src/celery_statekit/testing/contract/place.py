"""What the contracts ask of a test class, and the steps that their tests share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Final, Protocol

import pytest

from celery_statekit.errors import StoreUnavailable
from celery_statekit.record import Change, Limits, Record
from celery_statekit.stores.base import (
    UNLABELLED,
    Enumerates,
    Labels,
    Leases,
    Notifies,
    Posts,
    Renews,
    Store,
)
from celery_statekit.testing.contract.crowd import in_processes, in_threads, patiently

KEY: Final = "statekit:task:one"
OTHER: Final = "statekit:task:other"

#: Keys that must not be taken for one another, however a store compares text.
KEYS: Final = (
    "plain",
    "Plain",
    "plain ",
    "plain\\",
    "pl%in",
    "pl_in",
    "pl*in",
    "pl[a]in",
    "it's",
    'say "x"; DROP TABLE records;--',
    "caf\u00e9",
    "cafe\u0301",
    "stra\u00dfe",
    "strasse",
    "\u202eright to left \u05e9\u05dc\u05d5\u05dd",
    "line\u2028separator",
    "\U0001f680 rocket",
    "\u4f60\u597d",
    "{a}:{b}",
    "k" * 900,
)


class Reopen(Protocol):
    """Opens the place of a test again, as another process would."""

    def __call__(self, limits: Limits | None = None) -> Store:
        """A further store object on the same records."""
        ...


class ManualClock:
    """A clock that stands still until it is told to go on; ``now`` of a store under test."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now = now

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass."""
        self._now += seconds


class LeasingStore(Store, Leases, Protocol):
    """A store that keeps leases."""


class RenewingStore(Store, Renews, Protocol):
    """A store that says who is alive."""


class EnumeratingStore(Store, Enumerates, Protocol):
    """A store that lists its records."""


class NotifyingStore(Store, Notifies, Protocol):
    """A store that says when something was written."""


class PostingStore(Store, Posts, Protocol):
    """A store that need not be waited for."""


class StoreFixtures:
    """What the contracts ask of a test class; ``reopen`` and ``plant`` are yours to write."""

    # Where the tests are run by threads (pytest-xdist), Python 3.12 warns of each fork.
    pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

    #: False for a store of one process: tests of processes then are tests of threads, and a
    #: forked child must be told so by StoreUnavailable.
    shared_between_processes: ClassVar[bool] = True
    #: Seconds that records live in tests of expiry.
    ttl: ClassVar[float] = 1.0

    @pytest.fixture
    def reopen(self) -> Reopen:
        """A function that opens the test's place again; a fresh place for each test."""
        raise NotImplementedError("write a fixture: reopen(limits=None) -> Store")

    @pytest.fixture
    def plant(self) -> Callable[[str, bytes], None]:
        """A function that puts bytes in place of a key's record and of each of its changes."""
        raise NotImplementedError("write a fixture: plant(key, text)")

    @pytest.fixture
    def elapse(self) -> Callable[[float], None]:
        """A function that lets seconds pass for the store; as it is, it waits for real."""
        return time.sleep

    @pytest.fixture
    def store(self, reopen: Reopen) -> Iterator[Any]:
        """The store under test."""
        store = reopen()
        yield store
        store.close()

    def at_once(self, count: int, work: Callable[[int], Any]) -> list[Any]:
        """What ``work(0)`` to ``work(count - 1)`` return, run in processes where these may share."""
        run = in_processes if self.shared_between_processes else in_threads
        return run(count, work)


def a_change(number: int, reason: str = "") -> Change:
    """A change of that number."""
    return Change(
        number=number, version=number, from_state="A", to_state="B", at=1.5, reason=reason
    )


def written(
    store: Store,
    record: Record,
    expect: Record | None = None,
    *,
    changes: Sequence[Change] = (),
    ttl: float | None = None,
    labels: Labels = UNLABELLED,
) -> Record:
    """``record``, after a write that was not lost."""
    assert store.write(record, expect=expect, changes=changes, ttl=ttl, labels=labels) is True
    return record


def moved(store: Store, key: str, state: str, client: str = "") -> Record:
    """The next version of ``key``, found by these labels."""
    read = current(store, key)
    return written(store, read.next({"state": state}), read, labels=Labels(state, client))


def current(store: Store, key: str = KEY) -> Record:
    """The record that is there."""
    record = store.read(key)
    assert record is not None
    return record


def numbers(store: Store, key: str = KEY, **page: int) -> list[int]:
    """Numbers of the changes in the history, as read."""
    return [change.number for change in store.history(key, **page)]


def why_unavailable(call: Callable[[], object]) -> str:
    """Why ``call`` finds the store unavailable; "" where it does not."""
    try:
        call()
    except StoreUnavailable as exc:
        return str(exc)
    return ""


def increment(store: Store, times: int, by: int, key: str = KEY) -> None:
    """Read, add one, write if unchanged; ``times`` times."""

    def once() -> bool:
        read = current(store, key)
        n = read.document["n"] + 1
        copies = {name: [n] * len(old) for name, old in read.document.items() if name == "copies"}
        return store.write(
            read.next({"n": n, **copies}), expect=read, changes=[a_change(n, reason=str(by))]
        )

    for _ in range(times):
        patiently(once)
