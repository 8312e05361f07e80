"""The store in PostgreSQL, by psycopg 3."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from hashlib import sha256
from typing import Any, ClassVar, Final, TypeVar

import psycopg
from sqlalchemy import Engine, event

from celery_statekit.stores.sql import SQLStore
from celery_statekit.stores.sql.listener import Listener
from celery_statekit.stores.sql.renewals import Row
from celery_statekit.stores.sql.server import GRACE, Fault, Server, Session
from celery_statekit.stores.sql.statements import DELETE, NEXT
from celery_statekit.stores.sql.tables import name_bytes

RV = TypeVar("RV")

#: Advisory locks that one who listens holds, and of which each writer tries one.
LOCKS: Final = 64
LISTENS: Final = """
    SELECT pg_advisory_lock_shared({locks}, lock) FROM generate_series(0, {last}) AS lock"""
#: Advisory lock of those who make tables: "statekit", as a number.
MAKING: Final = int.from_bytes(b"statekit", "big")

_INSERT: Final = """
    INSERT INTO {tables}_records AS records
        (name, kind, state, client, since, expires, version, incarnation, text)
    VALUES (%(name)s, %(kind)s, %(state)s, %(client)s, {moment}, {moment} + %(ttl)s::bigint,
        %(version)s, %(incarnation)s, %(text)s)
    ON CONFLICT (name) DO UPDATE
    SET state = excluded.state, client = excluded.client, since = excluded.since,
        expires = excluded.expires, version = excluded.version,
        incarnation = excluded.incarnation, text = excluded.text
    WHERE records.expires <= {moment}"""
# One statement is one trip, its own transaction included. A part of it does not see what another
# part does: hence a history is that of an incarnation.
_WRITTEN: Final = "WITH written AS ({write} RETURNING 1)"
_APPEND: Final = """,
    appended AS (
        INSERT INTO {tables}_changes (name, incarnation, number, text)
        SELECT %(name)s, %(incarnation)s, line.number, line.text
        FROM written, unnest(%(numbers)s::bigint[], %(lines)s::bytea[]) AS line (number, text)
        ON CONFLICT (name, incarnation, number) DO UPDATE SET text = excluded.text
    )"""
_TRIM: Final = """,
    trimmed AS (
        DELETE FROM {tables}_changes AS changes USING written
        WHERE changes.name = %(name)s AND changes.incarnation = %(incarnation)s
            AND changes.number <= %(last)s
    )"""
_FORGET: Final = """,
    forgotten AS (
        DELETE FROM {tables}_changes AS changes USING written
        WHERE changes.name = %(name)s AND changes.incarnation <> %(incarnation)s
    )"""
# A NOTIFY holds a lock of the whole server until its transaction is in, so that it is done only
# where somebody listens, who holds the lock that is tried here. Two writers who try the same one
# at once may notify for nothing.
_TELL: Final = """
    SELECT CASE WHEN NOT pg_try_advisory_xact_lock(%(locks)s, %(lock)s)
        THEN pg_notify(%(channel)s, %(payload)s) END
    FROM written"""
_NEXT: Final = NEXT.replace("%(ttl)s", "%(ttl)s::bigint")

# In the order of the rows, in which all who renew lock them.
_RENEW: Final = """
    INSERT INTO {tables}_alive (name, owner, until)
    SELECT lease.name, lease.owner, {moment} + %(lasts)s::bigint
    FROM unnest(%(names)s::bytea[], %(owners)s::bytea[]) AS lease (name, owner)
    ON CONFLICT (name, owner) DO UPDATE SET until = excluded.until"""
# One that is renewed after all at this moment is locked, and left alone.
_ENDED: Final = """
    DELETE FROM {tables}_alive WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM {tables}_alive WHERE until <= {now} - 60000000
        ORDER BY until LIMIT %(limit)s FOR UPDATE SKIP LOCKED))"""

_FAULTS: Final = {
    "40001": Fault.AGAIN,  # serialization_failure
    "40P01": Fault.AGAIN,  # deadlock_detected
    "53100": Fault.FULL,  # disk_full
    "42P01": Fault.NO_TABLE,  # undefined_table
    "XX001": Fault.CORRUPT,  # data_corrupted
    "XX002": Fault.CORRUPT,  # index_corrupted
}
#: Classes of errors after which the connection is gone: connection exceptions, and those of
#: an operator's intervention but for query_canceled.
_GONE: Final = ("08", "57P")


class Connection(psycopg.Connection[Any]):
    """A connection that does not wait for ever for a server that says nothing."""

    #: Seconds.
    silence: float = 60.0

    def wait(self, gen: Generator[Any, Any, RV], *args: Any, **options: Any) -> RV:
        """What ``gen`` comes to; OperationalError and the end of the connection where it is late."""
        try:
            return super().wait(_limited(gen, self.silence), *args, **options)
        except _SilentError:
            self.close()
            raise psycopg.OperationalError(
                f"the server did not answer for {self.silence:g} s"
            ) from None


class _SilentError(Exception):
    pass


def _limited(gen: Generator[Any, Any, RV], seconds: float) -> Generator[Any, Any, RV]:
    deadline = time.monotonic() + seconds
    try:
        wants = next(gen)
        while True:
            ready = yield wants
            # psycopg says every tenth of a second that nothing is ready.
            if not ready and time.monotonic() >= deadline:
                raise _SilentError
            wants = gen.send(ready)
    except StopIteration as stop:
        done: RV = stop.value
        return done


class PostgreSQLServer(Server):
    """A PostgreSQL server."""

    dialects = ("postgresql", "postgres")
    dialect = "postgresql"
    driver = "psycopg"
    extra = "postgresql"
    errors = psycopg.Error

    def fault(self, exc: BaseException) -> Fault:
        state = exc.sqlstate if isinstance(exc, psycopg.Error) else None
        if state is None or state.startswith(_GONE):
            return Fault.UNKNOWN
        return _FAULTS.get(state, Fault.UNDONE)

    def options(self) -> dict[str, Any]:
        return {
            "isolation_level": "AUTOCOMMIT",
            "use_native_hstore": False,  # it would be asked for at each connection
            "connect_args": {"autocommit": True, "connect_timeout": max(round(self.timeout), 1)},
        }

    def prepare(self, engine: Engine) -> None:
        event.listen(engine, "do_connect", self._opened)

    def _opened(self, _dialect: Any, _record: Any, words: Any, options: Any) -> Connection:
        connection = Connection.connect(*words, **options)
        connection.silence = self.timeout + GRACE
        # Not as an option of the connection: PgBouncer refuses those.
        connection.execute(self._limits("SESSION"))
        return connection

    def begin(self, session: Session) -> None:
        if not self.own:
            session.autocommit = session.driver.autocommit
            session.driver.autocommit = True
        session.run(f"BEGIN ISOLATION LEVEL READ COMMITTED; {self._limits('LOCAL')}")

    def restore(self, session: Session) -> None:
        session.driver.autocommit = session.autocommit

    def _limits(self, scope: str) -> str:
        limit = max(round(self.timeout * 1000), 1)
        return f"SET {scope} lock_timeout = {limit}; SET {scope} statement_timeout = {limit}"

    def socket(self, connection: Any) -> int:
        socket: int = connection.pgconn.socket
        return socket


class PostgreSQLStore(SQLStore):
    """Keeps records in PostgreSQL (12 and later), and tells of each write by LISTEN and NOTIFY.

    It takes what :class:`~celery_statekit.stores.sql.SQLStore` takes. A write is one statement in
    one trip. While anybody in the database is subscribed, transactions that write go into the
    database one after the other: NOTIFY holds a lock of the whole server while it commits.

    A subscriber holds one connection of its own, which must not lead through a PgBouncer of
    transaction or statement pooling.
    """

    _server_class = PostgreSQLServer
    # CREATE TABLE IF NOT EXISTS by two at once: one may get a unique_violation of the catalogue.
    _one_at_a_time = f"SELECT pg_advisory_xact_lock({MAKING})"
    _words: ClassVar[dict[str, str]] = {
        "now": "(extract(epoch FROM statement_timestamp()) * 1000000)::bigint",
        "moment": "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
        "ignore": "",
        "from_nothing": "",
        "unless_there": "ON CONFLICT (name) DO NOTHING",
        "returning_ticket": "RETURNING ticket",
        "by_state": "",
        "by_since": "",
        "by_client": "",
    }

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._channel = f"{self._tables}_writes"
        self._locks = int.from_bytes(
            sha256(self._channel.encode()).digest()[:4], "big", signed=True
        )
        self._listener = Listener(
            self._server,
            self._channel,
            LISTENS.format(locks=self._locks, last=LOCKS - 1),
        )
        self._server.forked = self._listener.reset

    def _written(
        self, row: dict[str, Any], lines: Sequence[tuple[int, bytes]], *, first: bool
    ) -> bool:
        statement = _WRITTEN.format(write=_INSERT if first else _NEXT)
        statement += _FORGET if first else ""
        statement += _APPEND if lines else ""
        statement += _TRIM if row["last"] > 0 else ""
        statement = self._sql(statement + _TELL)
        row |= self._notice(row["name"])
        row["numbers"] = [number for number, _ in lines]
        row["lines"] = [line for _, line in lines]
        key = row["name"].decode()
        return bool(self._call(key, lambda session: session.rows(statement, row), writes=True))

    def _delete(self, session: Session, row: dict[str, Any]) -> bool:
        row = {**row, **self._notice(row["name"])}
        statement = _WRITTEN.format(write=DELETE) + _TELL
        return bool(session.rows(self._sql(statement), row))

    def _renew(self, session: Session, rows: Sequence[Row], lasts: int) -> None:
        row = {"names": [name for name, _ in rows], "owners": [owner for _, owner in rows]}
        session.run(self._sql(_RENEW), {**row, "lasts": lasts})

    def _bury(self, session: Session, limit: int) -> None:
        session.run(self._sql(_ENDED), {"limit": limit})

    def _notice(self, name: bytes) -> dict[str, Any]:
        digest = sha256(name).digest()
        return {
            "channel": self._channel,
            "payload": digest.hex(),  # a name may be longer than PostgreSQL's 8000 bytes
            "locks": self._locks,
            "lock": digest[0] % LOCKS,
        }

    def subscribe(self, key: str, wake: Callable[[], None]) -> Callable[[], None]:
        """From the return on, ``wake`` is called soon after each write and deletion of ``key``."""
        return self._listener.subscribe(sha256(name_bytes(key)).hexdigest(), wake)

    def close(self) -> None:
        """Close our connections and end all subscriptions."""
        self._listener.close()
        super().close()
