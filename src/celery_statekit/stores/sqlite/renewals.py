"""Who works on a record of a SQLite file, and until when it counts as alive."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from celery_statekit.stores.sqlite.file import SQLiteFile

#: Seconds for which a lease that has ended is kept.
KEPT: Final = 60.0

PROLONG: Final = """
    INSERT INTO alive (key, owner, until) VALUES (?, ?, ?)
    ON CONFLICT (key, owner) DO UPDATE SET until = excluded.until"""
ENDED: Final = "DELETE FROM alive WHERE until <= :ended"
LEFT: Final = """
    SELECT version, incarnation, text, max(since + :seconds, ifnull(
        (SELECT until FROM alive WHERE alive.key = :key AND alive.owner = :owner), 0.0))
    FROM records
    WHERE key = :key AND (expires IS NULL OR expires > :now)"""


class SQLiteRenewals:
    """The leases of those who work on the records of a file.

    Args:
        file: where they are.
        now: the clock of the leases, epoch seconds.
    """

    def __init__(self, file: SQLiteFile, now: Callable[[], float]) -> None:
        self._file = file
        self._now = now

    def renew(self, leases: Collection[tuple[str, str]], seconds: float) -> None:
        """Make each last for ``seconds``, and remove what ended long ago, in one transaction."""
        now = self._now()
        rows = [(key, owner_bytes(owner), now + seconds) for key, owner in leases]
        if not rows:
            return
        with self._file.transaction(rows[0][0]) as connection:
            connection.executemany(PROLONG, rows)
            connection.execute(ENDED, {"ended": now - KEPT})


def owner_bytes(owner: str) -> bytes:
    """``owner`` as it is stored; it may be of any text."""
    return owner.encode("utf-8", "surrogatepass")
