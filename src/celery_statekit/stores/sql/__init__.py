"""What the SQL stores have in common; PostgreSQL's and MySQL's write differently.

What they promise beyond :class:`~celery_statekit.stores.base.Store`:

* Every write is one short transaction of READ COMMITTED without foreign code inside, held to a
  time limit by the server and, on connections of ours, by the client.
* Expiry, leases and ``since`` go by the database's clock.
* The tables are made when they are missed, unless ``create`` is False.

Durability is what the database is configured for: with PostgreSQL's ``synchronous_commit`` and
InnoDB's ``innodb_flush_log_at_trx_commit = 1``, both the default, an acknowledged write survives a
power loss.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar, Final, TypeVar

from sqlalchemy import URL, Engine

from celery_statekit.chance import chance
from celery_statekit.errors import CorruptRecord, StoreError, StoreUnavailable
from celery_statekit.record import (
    Change,
    Limits,
    Record,
    decode_change,
    decode_record,
    encode_change,
    encode_record,
)
from celery_statekit.stores.base import UNLABELLED, Diagnosis, Found, Labels, kind_of
from celery_statekit.stores.sql.leases import LeaseTable
from celery_statekit.stores.sql.renewals import LEFT, Row, batches
from celery_statekit.stores.sql.server import NoTables, Server, Session
from celery_statekit.stores.sql.statements import (
    COUNT,
    DELETE,
    EXPIRED,
    FORGET,
    HISTORY,
    LARGEST,
    PURGE,
    READ,
    find_statement,
    row_count,
)
from celery_statekit.stores.sql.tables import (
    MICROSECONDS,
    check_tables,
    kind_bytes,
    label_bytes,
    microseconds,
    name_bytes,
    owner_bytes,
    schema_sql,
)

T = TypeVar("T")

#: Every how-many-th write, by chance, removes at most so many expired records: more of them than
#: are written meanwhile, so that a backlog shrinks.
PURGES_EVERY: Final = 16
PURGED: Final = 32


class SQLStore(ABC):
    """Keeps records in two tables of a database; three more say who works on one, or waits.

    Args:
        engine: an engine, which stays the user's and is never disposed of, or a URL. A call on a
            given engine costs further trips, for the time limits that connections of ours have
            from their beginning.
        limits: sizes that writes are held to; None: the defaults.
        timeout: seconds that a call waits for a connection, for a lock and for an answer.
        options: what ``create_engine`` is told for an engine of ours, but for what the store
            depends on; how it resets a connection, for example.
        create: whether to make the tables where they are missed; else they are made by what
            :func:`~celery_statekit.stores.sql.tables.schema_sql` returns.
        tables: what their names begin with.

    Raises:
        InvalidSetting: one of these cannot be used.
    """

    _server_class: ClassVar[type[Server]]
    #: What comes before the making of the tables, where several at once would be in each other's way.
    _one_at_a_time: ClassVar[str] = ""
    #: What the dialect has words of its own for; see ``statements``.
    _words: ClassVar[Mapping[str, str]]

    def __init__(
        self,
        engine: Engine | URL | str,
        limits: Limits | None = None,
        timeout: float = 5.0,
        *,
        options: Mapping[str, Any] | None = None,
        create: bool = True,
        tables: str = "statekit",
    ) -> None:
        self._tables = check_tables(tables)
        self._create = create
        self._server = self._server_class(engine, timeout, options or {})
        self._statements: dict[str, str] = {}
        self._spoken = {
            name: word.format(tables=self._tables) for name, word in self._words.items()
        }
        self._leases = LeaseTable(self._call, self._sql)
        self.name = self._server.name
        self.limits = limits or Limits()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    # --- records ----------------------------------------------------------------------------

    def read(self, key: str) -> Record | None:
        """The newest version of ``key``; one SELECT."""
        row = {"name": name_bytes(key)}
        rows = self._call(key, lambda session: session.rows(self._sql(READ), row))
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
        row = self._row(record, expect, changes, ttl, labels)
        lines = [(each.number, encode_change(record.key, each).encode()) for each in changes]
        # Those over the limit would be removed again.
        kept = lines[max(len(lines) - self.limits.history_changes, 0) :]
        written = self._written(row, kept, first=expect is None)
        if written and chance.randrange(PURGES_EVERY) == 0:
            self._purge()
        return written

    @abstractmethod
    def _written(
        self, row: dict[str, Any], lines: Sequence[tuple[int, bytes]], *, first: bool
    ) -> bool:
        """Write the row and the lines of its history if what is expected is there."""

    def _row(
        self,
        record: Record,
        expect: Record | None,
        changes: Sequence[Change],
        ttl: float | None,
        labels: Labels,
    ) -> dict[str, Any]:
        return {
            "name": name_bytes(record.key),
            "kind": kind_bytes(kind_of(record.key)),
            "state": label_bytes(labels.state, "labels.state"),
            "client": label_bytes(labels.client, "labels.client"),
            "ttl": None if ttl is None else microseconds(ttl),
            "version": record.version,
            "incarnation": record.incarnation.encode(),
            "text": encode_record(record, self.limits).encode(),
            "expected_version": expect and expect.version,
            "expected_incarnation": expect and expect.incarnation.encode(),
            # The newest change that is over the limit.
            "last": changes[-1].number - self.limits.history_changes if changes else 0,
        }

    def history(self, key: str, after: int = 0, limit: int = 100) -> list[Change]:
        """At most ``limit`` changes of ``key`` with a number over ``after``; one SELECT."""
        row = {
            "name": name_bytes(key),
            "after": max(min(after, LARGEST), -LARGEST),
            "limit": row_count(limit),
        }
        rows = self._call(key, lambda session: session.rows(self._sql(HISTORY), row))
        changes = [decode_change(key, text) for _, text in rows]
        if [change.number for change in changes] != [number for number, _ in rows]:
            raise CorruptRecord(key, "a row of its history and its text have two numbers")
        return changes

    def delete(self, key: str) -> bool:
        """Remove ``key`` and its history in one transaction."""
        row = {"name": name_bytes(key)}

        def work(session: Session) -> bool:
            deleted = self._delete(session, row)
            if deleted:
                # A statement of its own, for it must see what the deleted was last written with.
                session.run(self._sql(FORGET), row)
            return deleted

        return self._call(key, work, writes=True, atomic=True)

    def _delete(self, session: Session, row: dict[str, Any]) -> bool:
        return session.run(self._sql(DELETE), row) == 1

    def close(self) -> None:
        """Close our connections; those of calls under way close when these return."""
        self._server.close()

    # --- what there is ----------------------------------------------------------------------

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
        statement, row = find_statement(
            kind, state=state, client=client, older=older, newest=newest, after=after, limit=limit
        )
        rows = self._call(kind, lambda session: session.rows(self._sql(statement), row))
        return [Found(name.decode(), since / MICROSECONDS, text) for name, since, text in rows]

    def count(self, kind: str) -> dict[str, int]:
        """How many records of a kind have each state label; one SELECT."""
        row = {"kind": kind_bytes(kind)}
        rows = self._call(kind, lambda session: session.rows(self._sql(COUNT), row))
        return {state.decode(): number for state, number in rows}

    # --- leases -----------------------------------------------------------------------------

    def acquire(self, key: str, owner: str, seconds: float, wait: float = 0.0) -> bool:
        """Make ``owner`` the holder for ``seconds``, in the order of coming; renews one's own."""
        return self._leases.acquire(key, owner, seconds, wait)

    def release(self, key: str, owner: str) -> None:
        """Give the lease back; nothing happens where ``owner`` does not hold it."""
        self._leases.release(key, owner)

    def renew(self, leases: Collection[tuple[str, str]], seconds: float) -> None:
        """Make each ``(key, owner)`` count as alive for ``seconds``; one statement a thousand."""
        lasts = microseconds(seconds)
        for rows in batches(leases):
            self._call("", partial(self._renew, rows=rows, lasts=lasts))
            if chance.randrange(PURGES_EVERY) == 0:
                # What cannot be removed now is removed after another one; this one is in.
                with suppress(StoreError):
                    self._call("", partial(self._bury, limit=PURGED * len(rows)))

    @abstractmethod
    def _renew(self, session: Session, rows: Sequence[Row], lasts: int) -> None:
        """Make each of ``rows`` last for so many microseconds from now."""

    @abstractmethod
    def _bury(self, session: Session, limit: int) -> None:
        """Remove so many of those that ended a minute ago, in nobody's way who renews."""

    def left(self, key: str, owner: str, seconds: float) -> float | None:
        """Seconds for which the lease of ``owner`` still lasts; one SELECT."""
        row = {"name": name_bytes(key), "owner": owner_bytes(owner)}
        rows = self._call(key, lambda session: session.rows(self._sql(LEFT), row))
        if not rows:
            return None
        *stored, since, until, now = rows[0]
        _record(key, *stored)
        ends = max(since + microseconds(seconds), until or 0)
        return float(max(ends - now, 0) / MICROSECONDS)

    # --- the server -------------------------------------------------------------------------

    def diagnose(self) -> Diagnosis:
        """The server's version and clock."""
        statement = self._sql("SELECT version(), {moment}")
        ((said, moment),) = self._call("", lambda session: session.rows(statement, {}))
        product = next((each for each in ("PostgreSQL", "MariaDB") if each in said), "MySQL")
        version = re.search(r"[0-9.]*[0-9]", said)
        return Diagnosis(
            product=product,
            version=version.group() if version else "",
            time=int(moment) / MICROSECONDS,
        )

    # --- calls ------------------------------------------------------------------------------

    def _sql(self, statement: str) -> str:
        try:
            return self._statements[statement]
        except KeyError:
            text = statement.format(tables=self._tables, **self._spoken)
            return self._statements.setdefault(statement, text)

    def _call(
        self,
        key: str,
        work: Callable[[Session], T],
        *,
        writes: bool = False,
        atomic: bool = False,
    ) -> T:
        try:
            return self._server.call(key, work, writes=writes, atomic=atomic)
        except NoTables as exc:
            if not self._create:
                raise StoreUnavailable(
                    self.name,
                    f"its tables are not there, and it was opened without create; schema_sql"
                    f"({self._server.dialects[0]!r}, {self._tables!r}) makes them ({exc.why})",
                ) from exc.__cause__
        self._make_tables()
        return self._server.call(key, work, writes=writes, atomic=atomic)

    def _make_tables(self) -> None:
        ddl = schema_sql(self._server.dialects[0], self._tables)

        def work(session: Session) -> None:
            for statement in (self._one_at_a_time, *ddl.split(";\n")):
                if statement:
                    session.run(statement)

        self._server.call(self._tables, work, atomic=True)

    def _purge(self) -> None:
        def work(session: Session) -> None:
            for (name,) in session.rows(self._sql(EXPIRED), {"limit": PURGED}):
                session.run(self._sql(PURGE), {"name": name})
                session.run(self._sql(FORGET), {"name": name})

        # What cannot be removed now is removed after another write; the one before this is in.
        with suppress(StoreError):
            self._call("", work, atomic=True)
            self._leases.purge()


def _record(key: str, version: int, incarnation: bytes, text: bytes) -> Record:
    record = decode_record(key, text)
    if (record.version, record.incarnation.encode()) != (version, incarnation):
        raise CorruptRecord(key, "its row and its text are of two versions")
    return record
