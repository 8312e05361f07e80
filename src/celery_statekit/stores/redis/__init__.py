"""The store of a Redis server: one key for a record with its history, one script for a write.

What it promises beyond :class:`~celery_statekit.stores.base.Store`:

* An acknowledged write is as durable as the server is configured; without persistence a restart
  forgets everything, and a failover may forget the last writes.
* A write is one script: record, history, expiry, listings and the hint to those who watch, all or
  nothing, also where the server has no room left. User data is opaque text to it.
* Record and history are one key: they expire, and are evicted, together.

Nothing but this store may write the keys that begin with those of its records' kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from celery_statekit.errors import CorruptRecord, StoreUnavailable
from celery_statekit.record import Change, Limits, Record, encode_change, encode_record
from celery_statekit.stores.base import (
    UNLABELLED,
    Beside,
    Diagnosis,
    Found,
    Labels,
    Posted,
    kind_of,
)
from celery_statekit.stores.redis.leases import RedisLeases
from celery_statekit.stores.redis.lines import change_of, label_of, record_of, version_of, word_of
from celery_statekit.stores.redis.listener import Listener
from celery_statekit.stores.redis.renewals import RedisRenewals
from celery_statekit.stores.redis.server import LONGEST, RedisServer, Reply, Script, milliseconds
from celery_statekit.stores.redis.url import Address

#: Records that one call of a listing looks at.
PAGE: Final = 1000


class _Posted:
    """A write under way."""

    def __init__(self, key: str, reply: Reply) -> None:
        self._key = key
        self._reply = reply

    def is_written(self, seconds: float) -> bool:
        return _is_done(self._key, self._reply.get(seconds))


def _is_done(key: str, done: int) -> bool:
    if done < 0:
        raise CorruptRecord(key, "it is no record")
    return bool(done)


WRITE: Final = Script("indexes", "write")
DELETE: Final = Script("indexes", "delete")
FIND: Final = Script("indexes", "find")
COUNT: Final = Script("indexes", "count")
HISTORY: Final = Script("history")


class RedisStore:
    """Keeps records in one database of a Redis server, of 6.2 or later.

    Nothing is connected to before the first call.

    Args:
        address: a URL as Celery writes it, ``redis://``, ``rediss://``, ``redis+socket://`` or
            ``sentinel://``, or what :class:`Address` made of one.
        limits: sizes that writes are held to; None: the defaults.
        timeout: seconds to connect in, and to wait for a reply.
        options: further arguments of redis-py's connection; for Sentinels ``master_name``,
            ``min_other_sentinels`` and ``sentinel_kwargs``.
        key_prefix: stands before all keys as it is.

    Raises:
        InvalidSetting: ``address`` names no Redis, or a value cannot be obeyed.
    """

    def __init__(
        self,
        address: Address | str,
        limits: Limits | None = None,
        timeout: float = 5.0,
        *,
        options: Mapping[str, Any] | None = None,
        key_prefix: str = "",
    ) -> None:
        self._address = Address.of(address) if isinstance(address, str) else address
        self._server = RedisServer(self._address, timeout, options or {})
        self._prefix = key_prefix
        # Of its database, for publishing knows none.
        self._channel = f"@{self._address.database}"
        self._listener = Listener(self._server)
        self._leases = RedisLeases(self._server, key_prefix)
        self._renewals = RedisRenewals(self._server, key_prefix)
        self.name = self._server.name
        self.limits = limits or Limits()

    def __repr__(self) -> str:
        return f"<RedisStore {self.name}>"

    def read(self, key: str) -> Record | None:
        """The newest version of ``key``; one LINDEX."""
        line = self._server.ask(key, "LINDEX", self._prefix + key, "-1")
        return None if line is None else record_of(key, line)

    def write(
        self,
        record: Record,
        *,
        expect: Record | None,
        changes: Sequence[Change] = (),
        ttl: float | None = None,
        labels: Labels = UNLABELLED,
    ) -> bool:
        """Write ``record`` and ``changes`` by one script if ``expect`` is still there."""
        return self._write(record, expect, changes, ttl, labels, None)

    def write_beside(
        self,
        record: Record,
        beside: Beside,
        *,
        expect: Record | None,
        changes: Sequence[Change] = (),
        ttl: float | None = None,
        labels: Labels = UNLABELLED,
    ) -> bool:
        """As :meth:`write`, and ``beside`` by the same script."""
        return self._write(record, expect, changes, ttl, labels, beside)

    def reaches(self, parameters: Mapping[str, Any]) -> bool:
        """Whether connection ``parameters`` of Celery's Redis backend mean this database."""
        return self._address.is_of(parameters)

    def _write(
        self,
        record: Record,
        expect: Record | None,
        changes: Sequence[Change],
        ttl: float | None,
        labels: Labels,
        beside: Beside | None,
    ) -> bool:
        keys, arguments = self._arguments(record, expect, changes, ttl, labels, beside)
        done = self._server.run(WRITE, record.key, *arguments, keys=keys, writes=True)
        return _is_done(record.key, done)

    def post(
        self,
        record: Record,
        *,
        changes: Sequence[Change] = (),
        ttl: float | None = None,
        labels: Labels = UNLABELLED,
    ) -> Posted | None:
        """Send a new record by the script that writes it, if a connection is open."""
        keys, arguments = self._arguments(record, None, changes, ttl, labels, None)
        reply = self._server.post(WRITE, record.key, *arguments, keys=keys)
        return None if reply is None else _Posted(record.key, reply)

    def _arguments(
        self,
        record: Record,
        expect: Record | None,
        changes: Sequence[Change],
        ttl: float | None,
        labels: Labels,
        beside: Beside | None,
    ) -> tuple[int, list[str | bytes]]:
        """How many keys the script gets, and what, beginning with them."""
        key, kept = record.key, self.limits.history_changes
        text = encode_record(record, self.limits)
        lines = [f"{each.number} {encode_change(key, each)}" for each in changes]
        head = (
            f"{'' if expect is None else version_of(expect)}|{version_of(record)}"
            f"|{word_of(labels.state)}|{word_of(labels.client)}|{milliseconds(ttl)}"
            f"|{milliseconds(beside.ttl or None) if beside else ''}|{kept}|{self._length(key)}|{self._channel}"
        )
        arguments: list[str | bytes] = [
            self._prefix + key,
            head,
            text,
            *lines[max(len(lines) - kept, 0) :],
        ]
        if beside is None:
            return 1, arguments
        arguments[1:1] = [beside.key]
        arguments.append(beside.value)
        return 2, arguments

    def history(self, key: str, after: int = 0, limit: int = 100) -> list[Change]:
        """At most ``limit`` changes of ``key`` with a number over ``after``; one script."""
        bounds = [str(max(min(each, LONGEST), 0)) for each in (after, limit)]
        lines = self._server.run(HISTORY, key, self._prefix + key, *bounds, writes=False)
        if not isinstance(lines, list):
            raise CorruptRecord(key, "a part of its history is no change")
        return [change_of(key, line) for line in lines]

    def delete(self, key: str) -> bool:
        """Remove ``key`` and its history by one script."""
        name = self._prefix + key
        return bool(
            self._server.run(DELETE, key, name, f"{self._length(key)}", self._channel, writes=True)
        )

    def _length(self, key: str) -> int:
        """Bytes of the kind that ``key`` is of."""
        return len((self._prefix + kind_of(key)).encode())

    def close(self) -> None:
        """Close the connections; those of calls under way close when these return."""
        self._listener.close()
        self._server.close()

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
        """At most ``limit`` records of a kind; one script for a page of up to 1,000.

        Those without a client label have no index: ``client=""`` looks at every record.
        """
        found: list[Found] = []
        place = ("", "") if after is None else (repr(float(after[0])), self._prefix + after[1])
        filters = ["" if each is None else f"={word_of(each)}" for each in (state, client)]
        order = repr(float(older)), "1" if newest else ""
        while len(found) < limit:
            size = f"{min(limit - len(found), PAGE)}"
            page = self._server.run(
                FIND, kind, self._prefix + kind, *filters, *order, *place, size, writes=False
            )
            if page is None:
                continue
            place = page[0], page[1]
            found += map(self._found, page[2::3], page[3::3], page[4::3])
            if not place[1]:
                break
        return found

    def _found(self, name: bytes, since: bytes, line: bytes) -> Found:
        key = name.decode()[len(self._prefix) :]
        return Found(key, float(since), line.partition(b"\n")[2])

    def count(self, kind: str) -> dict[str, int]:
        """How many records of a kind have each state label; one script.

        A record that the server evicted is counted until a listing meets what is left of it.
        """
        counts = None
        while counts is None:
            counts = self._server.run(COUNT, kind, self._prefix + kind, writes=False)
        return {
            label_of(state): count for state, count in zip(counts[::2], counts[1::2], strict=True)
        }

    # --- notifications ---------------------------------------------------------------------------

    def subscribe(self, key: str, wake: Callable[[], None]) -> Callable[[], None]:
        """Call ``wake`` soon after each write and deletion of ``key``."""
        return self._listener.subscribe(f"{self._prefix}{key}{self._channel}", wake)

    # --- leases ----------------------------------------------------------------------------------

    def acquire(self, key: str, owner: str, seconds: float, wait: float = 0.0) -> bool:
        """Make ``owner`` the holder for ``seconds``; the server's clock counts them."""
        return self._leases.acquire(key, owner, seconds, wait)

    def release(self, key: str, owner: str) -> None:
        """Give the lease back, to the first who waits for it."""
        self._leases.release(key, owner)

    def renew(self, leases: Collection[tuple[str, str]], seconds: float) -> None:
        """Make each ``(key, owner)`` count as alive for ``seconds`` from now; one script."""
        self._renewals.renew(leases, seconds)

    def left(self, key: str, owner: str, seconds: float) -> float | None:
        """Seconds for which the lease of ``owner`` still lasts; one script."""
        return self._renewals.left(key, owner, seconds)

    # --- the server ------------------------------------------------------------------------------

    def diagnose(self) -> Diagnosis:
        """What INFO, TIME and CONFIG GET save say; managed servers refuse some of them."""
        told: dict[str, str] = {}
        clock = None
        with suppress(StoreUnavailable):
            lines = self._server.ask("", "INFO").decode("utf-8", "replace").splitlines()
            told.update(line.split(":", 1) for line in lines if ":" in line)
        with suppress(StoreUnavailable):
            save = [part.decode() for part in self._server.ask("", "CONFIG", "GET", "save")]
            told.update(zip(save[::2], save[1::2], strict=True))
        with suppress(StoreUnavailable):
            seconds, microseconds = self._server.ask("", "TIME")
            clock = int(seconds) + int(microseconds) / 1e6
        version = told.get("redis_version", "")
        return Diagnosis(product="Redis", version=version, time=clock, settings=told)
