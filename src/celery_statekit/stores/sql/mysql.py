"""The store in MySQL or MariaDB, by PyMySQL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from pymysql.constants import ER
from pymysql.err import MySQLError
from sqlalchemy import Engine, event

from celery_statekit.stores.sql import SQLStore
from celery_statekit.stores.sql.renewals import BATCH, Row
from celery_statekit.stores.sql.server import GRACE, Fault, Server, Session
from celery_statekit.stores.sql.statements import FORGET, NEXT

#: Not of the session's time zone, whose hours come twice when summer ends.
_NOW: Final = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))"

FIRST: Final = """
    INSERT INTO {tables}_records
        (name, kind, state, client, since, expires, version, incarnation, text)
    VALUES (%(name)s, %(kind)s, %(state)s, %(client)s, {moment}, {moment} + %(ttl)s,
        %(version)s, %(incarnation)s, %(text)s)"""
LAPSED: Final = "SELECT 1 FROM {tables}_records WHERE name = %(name)s AND expires <= {now}"
ANEW: Final = """
    UPDATE {tables}_records
    SET state = %(state)s, client = %(client)s, since = {moment}, expires = {moment} + %(ttl)s,
        version = %(version)s, incarnation = %(incarnation)s, text = %(text)s
    WHERE name = %(name)s AND expires <= {moment}"""
APPEND: Final = "INSERT INTO {tables}_changes (name, incarnation, number, text) VALUES "
TRIM: Final = """
    DELETE FROM {tables}_changes
    WHERE name = %(name)s AND incarnation = %(incarnation)s AND number <= %(last)s"""

RENEW: Final = "INSERT INTO {tables}_alive (name, owner, until) VALUES "
ENDED: Final = """
    SELECT name, owner FROM {tables}_alive WHERE until <= {now} - 60000000
    ORDER BY until LIMIT %(limit)s"""
# Not along the index of those that end, nor what is no longer ended: who renews locks a row by its
# key and then its entry there, and the other way round is a deadlock.
BURY: Final = "DELETE FROM {tables}_alive WHERE until + 0 <= {now} - 60000000 AND (name, owner) IN "

_FAULTS: Final = {
    ER.LOCK_DEADLOCK: Fault.AGAIN,
    ER.CHECKREAD: Fault.AGAIN,  # MariaDB's innodb_snapshot_isolation
    ER.DUP_ENTRY: Fault.DUPLICATE,
    ER.NO_SUCH_TABLE: Fault.NO_TABLE,
    ER.DISK_FULL: Fault.FULL,
    ER.RECORD_FILE_FULL: Fault.FULL,
    ER.CRASHED_ON_USAGE: Fault.CORRUPT,
    ER.CRASHED_ON_REPAIR: Fault.CORRUPT,
    ER.NOT_KEYFILE: Fault.CORRUPT,
    1712: Fault.CORRUPT,  # ER_INDEX_CORRUPT, of which PyMySQL has no name
    1053: Fault.UNKNOWN,  # ER_SERVER_SHUTDOWN
    1180: Fault.UNKNOWN,  # ER_ERROR_DURING_COMMIT
    1317: Fault.UNKNOWN,  # ER_QUERY_INTERRUPTED
    1927: Fault.UNKNOWN,  # MariaDB's ER_CONNECTION_KILLED
}


class MySQLServer(Server):
    """A MySQL or MariaDB server."""

    dialects = ("mysql", "mariadb")
    dialect = "mysql"
    driver = "pymysql"
    extra = "mysql"
    errors = MySQLError

    def fault(self, exc: BaseException) -> Fault:
        code = exc.args[0] if isinstance(exc, MySQLError) and exc.args else None
        # From 2000 to 2999 it is the client that says so; without a number, PyMySQL itself.
        if not isinstance(code, int) or code < ER.ERROR_FIRST or 2000 <= code < 3000:
            return Fault.UNKNOWN
        if "Errcode: 28" in str(exc):  # ENOSPC, of whatever file
            return Fault.FULL
        return _FAULTS.get(code, Fault.UNDONE)

    def options(self) -> dict[str, Any]:
        # No answer comes sooner than the lock timeout, which is in whole seconds.
        silence = self._lock_seconds + GRACE
        return {
            "isolation_level": "AUTOCOMMIT",
            "connect_args": {
                "autocommit": True,
                "charset": "utf8mb4",
                "connect_timeout": self.timeout,
                "read_timeout": silence,
                "write_timeout": silence,
            },
        }

    def prepare(self, engine: Engine) -> None:
        event.listen(engine, "connect", self._opened)

    def _opened(self, connection: Any, _record: Any) -> None:
        connection.query(f"SET innodb_lock_wait_timeout = {self._lock_seconds}")
        connection.query("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")

    @property
    def _lock_seconds(self) -> int:
        return math.ceil(self.timeout)

    def begin(self, session: Session) -> None:
        if not self.own:
            session.run("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
            session.run(
                "SET @statekit_lock = @@innodb_lock_wait_timeout, "
                f"innodb_lock_wait_timeout = {self._lock_seconds}"
            )
        session.run("START TRANSACTION")

    def restore(self, session: Session) -> None:
        session.run("SET innodb_lock_wait_timeout = @statekit_lock")

    def socket(self, connection: Any) -> int:
        fileno: int = connection._sock.fileno()  # noqa: SLF001 - PyMySQL has no other way
        return fileno


class MySQLStore(SQLStore):
    """Keeps records in MySQL (8.0 and later) or MariaDB (10.6 and later).

    It takes what :class:`~celery_statekit.stores.sql.SQLStore` takes. The server has no way to
    tell of a write: it is no :class:`~celery_statekit.stores.base.Notifies`.
    """

    _server_class = MySQLServer
    _words: ClassVar[dict[str, str]] = {
        "now": _NOW,
        "moment": _NOW,
        "ignore": "IGNORE",
        "from_nothing": "FROM DUAL",
        "unless_there": "",
        "returning_ticket": "",
        # Measured with MariaDB 10.11: left alone, it reads the whole kind for a page in its middle,
        # and makes a table to count it.
        "by_state": "FORCE INDEX ({tables}_records_state)",
        "by_since": "FORCE INDEX ({tables}_records_since)",
        "by_client": "FORCE INDEX ({tables}_records_client)",
    }

    def _written(
        self, row: dict[str, Any], lines: Sequence[tuple[int, bytes]], *, first: bool
    ) -> bool:
        def work(session: Session) -> bool:
            written = self._first(session, row) if first else self._next(session, row)
            if written and lines:
                self._append(session, row, lines)
            if written and row["last"] > 0:
                session.run(self._sql(TRIM), row)
            return written

        # A single statement needs no transaction around it.
        atomic = first or bool(lines) or row["last"] > 0
        return self._call(row["name"].decode(), work, writes=True, atomic=atomic)

    def _next(self, session: Session, row: dict[str, Any]) -> bool:
        return session.run(self._sql(NEXT), row) == 1

    def _first(self, session: Session, row: dict[str, Any]) -> bool:
        try:
            return session.run(self._sql(FIRST), row) == 1
        except MySQLError as exc:
            if self._server.fault(exc) is not Fault.DUPLICATE:
                raise
        # First a look without a lock: an UPDATE of many at once, each of which has locked the row
        # by its INSERT, is a deadlock.
        if not session.rows(self._sql(LAPSED), row) or session.run(self._sql(ANEW), row) != 1:
            return False
        session.run(self._sql(FORGET), row)
        return True

    def _append(
        self, session: Session, row: dict[str, Any], lines: Sequence[tuple[int, bytes]]
    ) -> None:
        values = {"name": row["name"], "incarnation": row["incarnation"]}
        for at, (number, line) in enumerate(lines):
            values |= {f"number{at}": number, f"line{at}": line}
        places = ", ".join(
            f"(%(name)s, %(incarnation)s, %(number{at})s, %(line{at})s)" for at in range(len(lines))
        )
        # It is there where a first write that had expired at once is repeated.
        session.run(
            f"{self._sql(APPEND)}{places} ON DUPLICATE KEY UPDATE text = VALUES(text)", values
        )

    def _renew(self, session: Session, rows: Sequence[Row], lasts: int) -> None:
        places, values = _places(rows, f", {self._sql('{moment}')} + %(lasts)s")
        session.run(
            f"{self._sql(RENEW)}{places} ON DUPLICATE KEY UPDATE until = VALUES(until)",
            {**values, "lasts": lasts},
        )

    def _bury(self, session: Session, limit: int) -> None:
        rows = sorted(session.rows(self._sql(ENDED), {"limit": limit}))
        for at in range(0, len(rows), BATCH):
            places, values = _places(rows[at : at + BATCH])
            session.run(f"{self._sql(BURY)}({places})", values)


def _places(rows: Sequence[Row], further: str = "") -> tuple[str, dict[str, bytes]]:
    """Places for the values of ``rows``, and these; each row with ``further`` behind it."""
    values: dict[str, bytes] = {}
    for at, (name, owner) in enumerate(rows):
        values |= {f"name{at}": name, f"owner{at}": owner}
    places = ", ".join(f"(%(name{at})s, %(owner{at})s{further})" for at in range(len(rows)))
    return places, values
