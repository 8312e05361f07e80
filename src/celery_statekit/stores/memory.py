"""The store of one process: a dictionary. For tests, eager runs and ``memory://`` brokers.

Stores of the same name share what they keep until the process ends. They keep serialised text,
so that no reader and no writer holds anything that another may change.
"""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final

from celery_statekit.errors import StoreUnavailable
from celery_statekit.record import (
    Change,
    Limits,
    Record,
    decode_change,
    decode_record,
    encode_change,
    encode_record,
)
from celery_statekit.stores.base import UNLABELLED, Found, Labels, kind_of
from celery_statekit.stores.subscribers import Subscribers

#: Seconds after which those who wait for a lease look at the clock, which may be any.
_LOOK: Final = 0.02


@dataclass(slots=True)
class _Entry:
    """What is kept of one key."""

    version: int
    incarnation: str
    text: str
    #: Epoch seconds; None: never.
    expires: float | None
    #: (number, text), oldest first.
    changes: list[tuple[int, str]]
    labels: Labels
    #: Since when it has had its state label, epoch seconds.
    since: float

    def matches(self, expect: Record | None) -> bool:
        return expect is not None and (self.version, self.incarnation) == (
            expect.version,
            expect.incarnation,
        )


@dataclass(slots=True)
class _Shelf:
    """What the stores of one name keep."""

    process: int = field(default_factory=os.getpid)
    lock: threading.Lock = field(default_factory=threading.Lock)
    #: Told when a lease was given back, or somebody stopped waiting for one.
    turn: threading.Condition = field(init=False)
    entries: dict[str, _Entry] = field(default_factory=dict)
    #: (owner, until) by key.
    leases: dict[str, tuple[str, float]] = field(default_factory=dict)
    #: Until when an owner counts as alive, by (key, owner).
    alive: dict[tuple[str, str], float] = field(default_factory=dict)
    #: Who waits for a lease, by key, in order of coming.
    queues: dict[str, list[object]] = field(default_factory=dict)
    #: Those of each store object that has any.
    subscribers: set[Subscribers] = field(default_factory=set)
    #: Writes since the expired were last removed, and renewals since the ended were.
    writes: int = 0
    renewals: int = 0

    def __post_init__(self) -> None:
        self.turn = threading.Condition(self.lock)

    def entry(self, key: str, now: float) -> _Entry | None:
        """The entry of ``key`` unless it has expired."""
        entry = self.entries.get(key)
        if entry is None or entry.expires is None or entry.expires > now:
            return entry
        return None

    def purge(self, now: float) -> None:
        """Remove the expired after half as many writes as there are keys: constant cost each."""
        self.writes += 1
        if self.writes * 2 <= len(self.entries):
            return
        self.writes = 0
        self.entries = {k: entry for k in self.entries if (entry := self.entry(k, now))}
        self.leases = {k: lease for k, lease in self.leases.items() if lease[1] > now}

    def renew(self, leases: Collection[tuple[str, str]], now: float, until: float) -> None:
        """Make ``leases`` last; the ended go after half as many renewals as there are."""
        self.alive.update(dict.fromkeys(leases, until))
        self.renewals += len(leases)
        if self.renewals * 2 > len(self.alive):
            self.renewals = 0
            self.alive = {lease: ends for lease, ends in self.alive.items() if ends > now}

    def enqueue(self, key: str, place: object) -> None:
        """Wait for the lease of ``key`` behind those who do already."""
        with self.turn:
            self.queues.setdefault(key, []).append(place)

    def take(self, key: str, owner: str, now: float, until: float, place: object) -> bool:
        """Make ``owner`` the holder if it is, or if nobody is and ``place`` is the first."""
        holder, ends = self.leases.get(key, ("", now))
        if not (holder == owner if ends > now else self.queues[key][0] is place):
            return False
        self.leases[key] = (owner, until)
        return True

    def leave(self, key: str, place: object) -> None:
        """Wait no longer."""
        with self.turn:
            queue = [other for other in self.queues.get(key, ()) if other is not place]
            self.queues[key] = queue
            if not queue:
                del self.queues[key]
            self.turn.notify_all()

    def tell(self, key: str) -> None:
        """Wake who waits for ``key``; not while holding the lock, which they may need."""
        with self.lock:
            told = list(self.subscribers)
        for subscribers in told:
            subscribers.wake(key)


_shelves: Final[dict[str, _Shelf]] = {}


class MemoryStore:
    """Keeps records in this process.

    Args:
        name: stores of the same name keep the same records; None: this one shares them with none.
        limits: sizes that writes are held to; None: the defaults.
        now: the clock of leases and expiry, epoch seconds.
    """

    def __init__(
        self,
        name: str | None = "",
        limits: Limits | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.name = f"memory://{name or ''}"
        self.limits = limits or Limits()
        self._now = now
        self._subscribers = Subscribers()
        self._shelf_or_none: _Shelf | None = (
            _Shelf() if name is None else _shelves.setdefault(name, _Shelf())
        )

    def __repr__(self) -> str:
        return f"<MemoryStore {self.name}>"

    @property
    def _shelf(self) -> _Shelf:
        shelf = self._shelf_or_none
        if shelf is None:
            raise StoreUnavailable(self.name, "it is closed")
        if shelf.process != os.getpid():
            raise StoreUnavailable(
                self.name,
                f"a memory store does not cross processes, and this one is of process "
                f"{shelf.process}; several processes need sqlite:///file.db or a server",
            )
        return shelf

    def read(self, key: str) -> Record | None:
        """The newest version of ``key``."""
        shelf, now = self._shelf, self._now()
        with shelf.lock:
            entry = shelf.entry(key, now)
            text = entry and entry.text
        return None if text is None else decode_record(key, text)

    def write(
        self,
        record: Record,
        *,
        expect: Record | None,
        changes: Sequence[Change] = (),
        ttl: float | None = None,
        labels: Labels = UNLABELLED,
    ) -> bool:
        """Write ``record`` and ``changes`` at once if ``expect`` is still there."""
        text = encode_record(record, self.limits)
        lines = [(change.number, encode_change(record.key, change)) for change in changes]
        shelf, now = self._shelf, self._now()
        since = now
        with shelf.lock:
            entry = shelf.entry(record.key, now)
            if entry is None:
                if expect is not None:
                    return False
            elif not entry.matches(expect):
                return False
            else:
                lines = entry.changes + lines
                since = entry.since if entry.labels.state == labels.state else now
            shelf.entries[record.key] = _Entry(
                version=record.version,
                incarnation=record.incarnation,
                text=text,
                expires=None if ttl is None else now + ttl,
                changes=lines[max(len(lines) - self.limits.history_changes, 0) :],
                labels=labels,
                since=since,
            )
            shelf.purge(now)
        shelf.tell(record.key)
        return True

    def history(self, key: str, after: int = 0, limit: int = 100) -> list[Change]:
        """At most ``limit`` changes of ``key`` with a number over ``after``, oldest first."""
        shelf, now = self._shelf, self._now()
        with shelf.lock:
            entry = shelf.entry(key, now)
            lines = entry.changes if entry else []
        start = bisect_right(lines, after, key=itemgetter(0))
        return [decode_change(key, text) for _, text in lines[start : start + max(limit, 0)]]

    def delete(self, key: str) -> bool:
        """Remove ``key`` and its history; False where there was nothing."""
        shelf, now = self._shelf, self._now()
        with shelf.lock:
            found = shelf.entry(key, now) is not None
            shelf.entries.pop(key, None)
        shelf.tell(key)
        return found

    def close(self) -> None:
        """Forget the way to the records; they stay for other stores of the same name."""
        shelf, self._shelf_or_none = self._shelf_or_none, None
        self._subscribers.clear()
        if shelf is not None:
            with shelf.lock:
                shelf.subscribers.discard(self._subscribers)

    # --- listings --------------------------------------------------------------------------------

    def find(
        self,
        kind: str,
        *,
        state: str | None = None,
        client: str | None = None,
        older: float = 0.0,
        newest: bool = False,
        after: tuple[float, str] | None = None,
        limit: int = 100,
    ) -> list[Found]:
        """At most ``limit`` records of a kind, by ``(since, key)``; looks at every record."""
        now = self._now()
        found = [
            Found(key, entry.since, entry.text)
            for key, entry in self._of_kind(kind, now)
            if state in (None, entry.labels.state)
            and client in (None, entry.labels.client)
            and (older <= 0 or entry.since <= now - older)
        ]
        found.sort(key=_position, reverse=newest)
        if after is not None:
            found = [
                each
                for each in found
                if (_position(each) < after if newest else _position(each) > after)
            ]
        return found[: max(limit, 0)]

    def count(self, kind: str) -> dict[str, int]:
        """How many records of a kind have each state label; looks at every record."""
        return dict(Counter(entry.labels.state for _, entry in self._of_kind(kind, self._now())))

    def _of_kind(self, kind: str, now: float) -> list[tuple[str, _Entry]]:
        shelf = self._shelf
        with shelf.lock:
            return [
                (key, entry)
                for key, entry in shelf.entries.items()
                if kind_of(key) == kind and shelf.entry(key, now)
            ]

    # --- leases ----------------------------------------------------------------------------------

    def acquire(self, key: str, owner: str, seconds: float, wait: float = 0.0) -> bool:
        """Make ``owner`` the holder for ``seconds``, in order of coming; renews one's own."""
        shelf, deadline = self._shelf, time.monotonic() + wait
        place = object()
        try:
            shelf.enqueue(key, place)
            while True:
                now = self._now()
                with shelf.turn:
                    if shelf.take(key, owner, now, now + seconds, place):
                        return True
                    left = deadline - time.monotonic()
                    if left <= 0:
                        return False
                    shelf.turn.wait(min(left, _LOOK))
        finally:
            shelf.leave(key, place)

    def release(self, key: str, owner: str) -> None:
        """Give the lease back; nothing happens where ``owner`` does not hold it."""
        shelf = self._shelf
        with shelf.turn:
            if shelf.leases.get(key, ("", 0.0))[0] == owner:
                del shelf.leases[key]
                shelf.turn.notify_all()

    def renew(self, leases: Collection[tuple[str, str]], seconds: float) -> None:
        """Make each ``(key, owner)`` count as alive for ``seconds`` from now."""
        shelf, now = self._shelf, self._now()
        with shelf.lock:
            shelf.renew(leases, now, now + seconds)

    def left(self, key: str, owner: str, seconds: float) -> float | None:
        """Seconds for which the lease of ``owner`` still lasts; None: there is no record."""
        shelf, now = self._shelf, self._now()
        with shelf.lock:
            entry = shelf.entry(key, now)
            if entry is None:
                return None
            text, until = entry.text, shelf.alive.get((key, owner), 0.0)
            until = max(until, entry.since + seconds)
        decode_record(key, text)
        return max(until - now, 0.0)

    # --- notices ---------------------------------------------------------------------------------

    def subscribe(self, key: str, wake: Callable[[], None]) -> Callable[[], None]:
        """``wake`` is called after each write and deletion of ``key``, in the writer's thread."""
        shelf = self._shelf
        with shelf.lock:
            shelf.subscribers.add(self._subscribers)
        return self._subscribers.add(key, wake)


def _position(found: Found) -> tuple[float, str]:
    return found.since, found.key
