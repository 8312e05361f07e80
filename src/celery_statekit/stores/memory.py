"""The store of one process: a dictionary. For tests, eager runs and ``memory://`` brokers.

Stores of the same name share what they keep until the process ends. They keep serialised text,
so that no reader and no writer holds anything that another may change.
"""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
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
    entries: dict[str, _Entry] = field(default_factory=dict)
    #: (owner, until) by key.
    leases: dict[str, tuple[str, float]] = field(default_factory=dict)
    #: Writes since the expired were last removed.
    writes: int = 0

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
    ) -> bool:
        """Write ``record`` and ``changes`` at once if ``expect`` is still there."""
        text = encode_record(record, self.limits)
        lines = [(change.number, encode_change(record.key, change)) for change in changes]
        shelf, now = self._shelf, self._now()
        with shelf.lock:
            entry = shelf.entry(record.key, now)
            if entry is None:
                if expect is not None:
                    return False
            elif not entry.matches(expect):
                return False
            else:
                lines = entry.changes + lines
            shelf.entries[record.key] = _Entry(
                version=record.version,
                incarnation=record.incarnation,
                text=text,
                expires=None if ttl is None else now + ttl,
                changes=lines[max(len(lines) - self.limits.history_changes, 0) :],
            )
            shelf.purge(now)
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
        return found

    def keys(self, prefix: str, after: str = "", limit: int = 1000) -> list[str]:
        """At most ``limit`` keys that begin with ``prefix``, over ``after``, in order of text."""
        shelf, now = self._shelf, self._now()
        with shelf.lock:
            keys = [key for key in shelf.entries if shelf.entry(key, now)]
        found = sorted(key for key in keys if key.startswith(prefix) and key > after)
        return found[: max(limit, 0)]

    def close(self) -> None:
        """Forget the way to the records; they stay for other stores of the same name."""
        self._shelf_or_none = None

    # --- leases ----------------------------------------------------------------------------------

    def acquire(self, key: str, owner: str, seconds: float) -> bool:
        """Make ``owner`` the holder for ``seconds`` if nobody else holds it; renews one's own."""
        shelf, now = self._shelf, self._now()
        with shelf.lock:
            holder, until = shelf.leases.get(key, (owner, now))
            if holder != owner and until > now:
                return False
            shelf.leases[key] = (owner, now + seconds)
        return True

    def release(self, key: str, owner: str) -> None:
        """Give the lease back; nothing happens where ``owner`` does not hold it."""
        shelf = self._shelf
        with shelf.lock:
            if shelf.leases.get(key, ("", 0.0))[0] == owner:
                del shelf.leases[key]
