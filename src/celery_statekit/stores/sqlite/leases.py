"""Leases in a SQLite file, and the queue of those who wait for one."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from celery_statekit.errors import StoreError
from celery_statekit.stores.sqlite.file import SQLiteFile

#: Ended leases removed with each that is given: more than one, so that a backlog shrinks.
LAPSED: Final = 2
#: Seconds after which one who waits, and did not say so again, counts as dead.
DEAD: Final = 1.0
#: Seconds after which one who waits says so again.
RENEW: Final = 0.25
#: Seconds between two looks: a part of the time that the queue takes, at its pace so far, until it
#: is one's turn. Many who look often would take the processor from the one who holds the lease.
LOOK: Final = 0.0005
LONGEST_LOOK: Final = 0.05
PART: Final = 0.3

STANDING: Final = """
    SELECT
        (SELECT count(*) FROM waiters
            WHERE key = :key AND number < :number AND seen BETWEEN :dead AND :alive),
        (SELECT owner FROM leases WHERE key = :key AND until > :now)"""
ACQUIRE: Final = """
    INSERT INTO leases (key, owner, until)
    SELECT :key, :owner, :until
    WHERE EXISTS (SELECT 1 FROM leases WHERE key = :key AND owner = :owner AND until > :now)
        OR NOT EXISTS (SELECT 1 FROM waiters
            WHERE key = :key AND number < :number AND seen BETWEEN :dead AND :alive)
    ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, until = excluded.until
    WHERE leases.owner = excluded.owner OR leases.until <= :now"""
RELEASE: Final = "DELETE FROM leases WHERE key = :key AND owner = :owner"
LAPSE: Final = """
    DELETE FROM leases WHERE key IN (SELECT key FROM leases WHERE until <= :now LIMIT :limit)"""
ENQUEUE: Final = "INSERT INTO waiters (key, owner, seen) VALUES (:key, :owner, :seen)"
WAIT_ON: Final = "UPDATE waiters SET seen = :seen WHERE number = :number AND owner = :owner"
LEAVE: Final = "DELETE FROM waiters WHERE number = :number AND owner = :owner"
BURY: Final = "DELETE FROM waiters WHERE seen NOT BETWEEN :dead AND :alive"

#: Behind everyone who waits.
_LAST: Final = 2**63 - 1


class SQLiteLeases:
    """The leases that a file keeps.

    Args:
        file: where they are.
        now: the clock of the leases, epoch seconds. Who waits does so by the host's own clock.
    """

    def __init__(self, file: SQLiteFile, now: Callable[[], float]) -> None:
        self._file = file
        self._now = now

    def acquire(self, key: str, owner: str, seconds: float, wait: float = 0.0) -> bool:
        """Make ``owner`` the holder for ``seconds``, in order of coming; renews one's own."""
        deadline = time.monotonic() + wait
        # Who asks often is in nobody's way as a reader.
        if not self._ahead(key, owner, _LAST) and self._take(key, owner, seconds, _LAST):
            return True
        return wait > 0 and self._wait(key, owner, seconds, deadline)

    def release(self, key: str, owner: str) -> None:
        """Give the lease back; nothing happens where ``owner`` does not hold it."""
        with self._file.transaction(key) as connection:
            connection.execute(RELEASE, {"key": key, "owner": owner})

    def _wait(self, key: str, owner: str, seconds: float, deadline: float) -> bool:
        number = self._enqueue(key, owner)
        came = renewed = time.monotonic()
        most = 0
        try:
            while True:
                ahead = self._ahead(key, owner, number)
                if not ahead and self._take(key, owner, seconds, number):
                    return True
                now = time.monotonic()
                if now >= deadline:
                    return False
                if now >= renewed + RENEW:
                    number, renewed = self._renew(key, owner, number), now
                ahead = max(ahead, 1)
                most = max(most, ahead)
                look = PART * ahead * (now - came) / (most - ahead + 1)
                time.sleep(min(max(look, LOOK), LONGEST_LOOK, deadline - now))
        finally:
            # Where it fails, who has gone counts as dead soon.
            with suppress(StoreError), self._file.transaction(key) as connection:
                connection.execute(LEAVE, {"number": number, "owner": owner})

    def _ahead(self, key: str, owner: str, number: int) -> int:
        """How many come before ``owner``: the holder, and those with a lower number."""
        row = {"key": key, "number": number, "now": self._now(), **_wall()}
        with self._file.connection(key) as connection:
            ((waiting, holder),) = connection.execute(STANDING, row).fetchall()
        return 0 if holder == owner else int(waiting) + (holder is not None)

    def _take(self, key: str, owner: str, seconds: float, number: int) -> bool:
        now = self._now()
        row = {"key": key, "owner": owner, "number": number, "now": now, **_wall()}
        with self._file.transaction(key) as connection:
            connection.execute(LAPSE, {"now": now, "limit": LAPSED})
            connection.execute(BURY, row)
            return connection.execute(ACQUIRE, {**row, "until": now + seconds}).rowcount == 1

    def _enqueue(self, key: str, owner: str) -> int:
        """A number higher than those of all who wait."""
        row = {"key": key, "owner": owner, **_wall()}
        with self._file.transaction(key) as connection:
            return int(connection.execute(ENQUEUE, row).lastrowid or 0)

    def _renew(self, key: str, owner: str, number: int) -> int:
        """The same number, or a new one for who was taken for dead."""
        row = {"number": number, "owner": owner, **_wall()}
        with self._file.transaction(key) as connection:
            if connection.execute(WAIT_ON, row).rowcount == 1:
                return number
        return self._enqueue(key, owner)


def _wall() -> dict[str, float]:
    """The moments by which the living are told from the dead, also after a clock was set."""
    seen = time.time()
    return {"seen": seen, "dead": seen - DEAD, "alive": seen + DEAD}
