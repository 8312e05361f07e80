"""The store of one host: a SQLite file in WAL mode, shared by all its processes.

What it promises beyond :class:`~celery_statekit.stores.base.Store`:

* An acknowledged write survives ``kill -9`` of any process. ``synchronous`` is NORMAL: a power
  loss may take the last commits with it, never a part of one.
* Every write is one short ``BEGIN IMMEDIATE`` transaction without foreign code inside, so
  nobody holds the file's lock while waiting for something else.
* Readers never wait for writers.

The file must be on a local file system (WAL shares memory), and is the store's own: no tables
of another program, no writes by another program.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any, Final

from celery_statekit.errors import CorruptRecord, StoreError
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
from celery_statekit.stores.sqlite.file import SQLiteFile
from celery_statekit.stores.sqlite.leases import SQLiteLeases
from celery_statekit.stores.sqlite.notices import SQLiteNotices
from celery_statekit.stores.sqlite.renewals import LEFT, SQLiteRenewals, owner_bytes

#: Expired keys removed after each write: more than one, so that a backlog shrinks.
PURGED: Final = 2

READ: Final = """
    SELECT version, incarnation, text FROM records
    WHERE key = :key AND (expires IS NULL OR expires > :now)"""
FIRST: Final = """
    INSERT INTO records
        (key, version, incarnation, expires, kind, state, client, since, text)
    VALUES (:key, :version, :incarnation, :expires, :kind, :state, :client, :now, :text)
    ON CONFLICT (key) DO UPDATE SET version = excluded.version,
        incarnation = excluded.incarnation, expires = excluded.expires, state = excluded.state,
        client = excluded.client, since = excluded.since, text = excluded.text
    WHERE records.expires <= :now"""
NEXT: Final = """
    UPDATE records
    SET version = :version, incarnation = :incarnation, expires = :expires, state = :state,
        client = :client, since = iif(state = :state, since, :now), text = :text
    WHERE key = :key AND version = :expected_version AND incarnation = :expected_incarnation
        AND (expires IS NULL OR expires > :now)"""
DELETE: Final = """
    DELETE FROM records WHERE key = :key AND (expires IS NULL OR expires > :now)"""
HISTORY: Final = """
    SELECT number, text FROM changes
    WHERE key = :key AND number > :after AND EXISTS (
        SELECT 1 FROM records WHERE key = :key AND (expires IS NULL OR expires > :now))
    ORDER BY number LIMIT :limit"""
APPEND: Final = "INSERT INTO changes (key, number, text) VALUES (?, ?, ?)"
TRIM: Final = "DELETE FROM changes WHERE key = :key AND number <= :last"
FORGET: Final = "DELETE FROM changes WHERE key = :key"
FIND: Final = """
    SELECT key, since, text FROM records
    WHERE kind = :kind AND (expires IS NULL OR expires > :now){only}
    ORDER BY since {way}, key {way} LIMIT :limit"""
OF_STATE: Final = " AND state = :state"
OF_CLIENT: Final = " AND client = :client"
OLDER: Final = " AND since <= :now - :older"
AFTER: Final = {
    "ASC": " AND (since, key) > (:since, :after)",
    "DESC": " AND (since, key) < (:since, :after)",
}
COUNT: Final = """
    SELECT state, count(*) FROM records
    WHERE kind = :kind AND (expires IS NULL OR expires > :now) GROUP BY state"""
EXPIRED: Final = "SELECT key FROM records WHERE expires <= :now LIMIT :limit"
PURGE: Final = "DELETE FROM records WHERE key = :key AND expires <= :now"
_LARGEST: Final = 2**63 - 1


class SQLiteStore:
    """Keeps records in one SQLite file.

    The file is opened by the first call, and made if it is not there; its directory must be.
    A file that is deleted under a running process is made anew by the next call.

    Args:
        path: of the file; relative to the working directory as it is now.
        limits: sizes that writes are held to; None: the defaults.
        timeout: seconds that a call waits for another's write before StoreUnavailable.
        now: the clock of leases and expiry, epoch seconds: the host's, for all its processes.

    Raises:
        InvalidSetting: ``path`` names no file, or ``timeout`` is no positive number.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        limits: Limits | None = None,
        timeout: float = 5.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._file = SQLiteFile(path, timeout)
        self._leases = SQLiteLeases(self._file, now)
        self._renewals = SQLiteRenewals(self._file, now)
        self._notices = SQLiteNotices(self._file)
        self._now = now
        self.name = self._file.name
        self.limits = limits or Limits()

    def __repr__(self) -> str:
        return f"<SQLiteStore {self.name}>"

    def read(self, key: str) -> Record | None:
        """The newest version of ``key``; one SELECT."""
        row = {"key": key, "now": self._now()}
        with self._file.connection(key) as connection:
            rows = connection.execute(READ, row).fetchall()
        return _record(key, *rows[0]) if rows else None

    def write(
        self,
        record: Record,
        *,
        expect: Record | None,
        changes: Sequence[Change] = (),
        ttl: float | None = None,
        labels: Labels = UNLABELLED,
    ) -> bool:
        """Write ``record`` and ``changes`` in one transaction if ``expect`` is still there."""
        key, kept = record.key, self.limits.history_changes
        row = self._row(record, expect, ttl, labels)
        lines = [(key, each.number, encode_change(key, each).encode()) for each in changes]
        with self._file.transaction(key) as connection:
            if connection.execute(NEXT if expect else FIRST, row).rowcount != 1:
                return False
            if expect is None:
                connection.execute(FORGET, {"key": key})
            if changes:
                connection.executemany(APPEND, lines)
                connection.execute(TRIM, {"key": key, "last": changes[-1].number - kept})
        self._purge()
        return True

    def _row(
        self, record: Record, expect: Record | None, ttl: float | None, labels: Labels
    ) -> dict[str, Any]:
        text = encode_record(record, self.limits).encode()
        now = self._now()
        return {
            "key": record.key,
            "version": record.version,
            "incarnation": record.incarnation,
            "expires": None if ttl is None else now + ttl,
            "kind": kind_of(record.key),
            "state": labels.state,
            "client": labels.client,
            "text": text,
            "now": now,
            "expected_version": expect and expect.version,
            "expected_incarnation": expect and expect.incarnation,
        }

    def history(self, key: str, after: int = 0, limit: int = 100) -> list[Change]:
        """At most ``limit`` changes of ``key`` with a number over ``after``; one SELECT."""
        row = {
            "key": key,
            "after": min(after, _LARGEST),
            "limit": _count(limit),
            "now": self._now(),
        }
        with self._file.connection(key) as connection:
            rows = connection.execute(HISTORY, row).fetchall()
        changes = [decode_change(key, text) for _, text in rows]
        if [change.number for change in changes] != [number for number, _ in rows]:
            raise CorruptRecord(key, "a row of its history and its text have two numbers")
        return changes

    def delete(self, key: str) -> bool:
        """Remove ``key`` and its history in one transaction."""
        row = {"key": key, "now": self._now()}
        with self._file.transaction(key) as connection:
            deleted = connection.execute(DELETE, row).rowcount == 1
            if deleted:
                connection.execute(FORGET, {"key": key})
        return deleted

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
        """At most ``limit`` records of a kind, by ``(since, key)``; one SELECT along an index."""
        way = "DESC" if newest else "ASC"
        since, key = after or (0.0, "")
        filters = (
            (state is not None, OF_STATE),
            (client is not None, OF_CLIENT),
            (older > 0, OLDER),
            (after is not None, AFTER[way]),
        )
        only = "".join(text for wanted, text in filters if wanted)
        row = {
            "kind": kind,
            "state": state,
            "client": client,
            "older": older,
            "since": since,
            "after": key,
            "limit": _count(limit),
            "now": self._now(),
        }
        with self._file.connection(kind) as connection:
            rows = connection.execute(FIND.format(only=only, way=way), row).fetchall()
        return [Found(*found) for found in rows]

    def count(self, kind: str) -> dict[str, int]:
        """How many records of a kind have each state label; one SELECT, which looks at them all."""
        row = {"kind": kind, "now": self._now()}
        with self._file.connection(kind) as connection:
            return dict(connection.execute(COUNT, row).fetchall())

    def acquire(self, key: str, owner: str, seconds: float, wait: float = 0.0) -> bool:
        """Make ``owner`` the holder for ``seconds``, in order of coming; renews one's own."""
        return self._leases.acquire(key, owner, seconds, wait)

    def release(self, key: str, owner: str) -> None:
        """Give the lease back; nothing happens where ``owner`` does not hold it."""
        self._leases.release(key, owner)

    def renew(self, leases: Collection[tuple[str, str]], seconds: float) -> None:
        """Make each ``(key, owner)`` count as alive for ``seconds`` from now; one transaction."""
        self._renewals.renew(leases, seconds)

    def left(self, key: str, owner: str, seconds: float) -> float | None:
        """Seconds for which the lease of ``owner`` still lasts; one SELECT."""
        now = self._now()
        row = {"key": key, "owner": owner_bytes(owner), "seconds": seconds, "now": now}
        with self._file.connection(key) as connection:
            rows = connection.execute(LEFT, row).fetchall()
        if not rows:
            return None
        *stored, until = rows[0]
        _record(key, *stored)
        return float(max(until - now, 0.0))

    def subscribe(self, key: str, wake: Callable[[], None]) -> Callable[[], None]:
        """``wake`` is called soon after each write and deletion of ``key``, by any process."""
        return self._notices.subscribe(key, wake)

    def close(self) -> None:
        """Close the connections; those of calls under way close when these return."""
        self._notices.close()
        self._file.close()

    def _purge(self) -> None:
        now = self._now()
        # What cannot be removed now is removed after another write; the one before this is in.
        with suppress(StoreError):
            with self._file.connection("") as connection:
                expired = connection.execute(EXPIRED, {"now": now, "limit": PURGED}).fetchall()
            if not expired:
                return
            with self._file.transaction("") as connection:
                for (key,) in expired:
                    if connection.execute(PURGE, {"key": key, "now": now}).rowcount == 1:
                        connection.execute(FORGET, {"key": key})


def _record(key: str, version: int, incarnation: str, text: bytes) -> Record:
    record = decode_record(key, text)
    if (record.version, record.incarnation) != (version, incarnation):
        raise CorruptRecord(key, "its row and its text are of two versions")
    return record


def _count(limit: int) -> int:
    return min(max(limit, 0), _LARGEST)
