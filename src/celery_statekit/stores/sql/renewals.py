"""Who works on a record, and until when it counts as alive: a table that survives a crash.

Not those of the leases, which PostgreSQL empties then: all who live would be taken for dead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Final, TypeAlias

from celery_statekit.stores.sql.tables import name_bytes, owner_bytes

#: Leases that one statement renews.
BATCH: Final = 1000

#: A key and an owner, as they are stored.
Row: TypeAlias = tuple[bytes, bytes]

LEFT: Final = """
    SELECT records.version, records.incarnation, records.text, records.since, alive.until, {now}
    FROM {tables}_records AS records
    LEFT JOIN {tables}_alive AS alive
        ON alive.name = records.name AND alive.owner = %(owner)s
    WHERE records.name = %(name)s AND (records.expires IS NULL OR records.expires > {now})"""


def batches(leases: Collection[tuple[str, str]]) -> Iterator[Sequence[Row]]:
    """``leases`` as rows, each once, in the order in which all lock them."""
    rows = sorted({(name_bytes(key), owner_bytes(owner)) for key, owner in leases})
    for at in range(0, len(rows), BATCH):
        yield rows[at : at + BATCH]
