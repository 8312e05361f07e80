"""A SQL server as the stores use it: transactions, and what its errors mean."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Final, TypeVar

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import PoolProxiedConnection

from celery_statekit.chance import chance
from celery_statekit.errors import (
    AmbiguousWrite,
    CorruptRecord,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from celery_statekit.stores.sql.connections import Connections

T = TypeVar("T")

#: Seconds over the server's own limit after which a server that is silent is given up.
GRACE: Final = 1.0


class Fault(Enum):
    """What an error of the server's says."""

    AGAIN = "undone because of another transaction; the same may succeed now"
    UNDONE = "refused or undone"
    FULL = "no room"
    CORRUPT = "damaged"
    NO_TABLE = "a table is not there"
    DUPLICATE = "a row of that key is there"
    UNKNOWN = "the connection is gone; what became of the statement is not known"


class Session:
    """One connection for the length of one call.

    Not SQLAlchemy's ``Connection`` but the driver's, of the engine's pool: measured, the former
    costs 80 microseconds a statement.
    """

    def __init__(self, connection: PoolProxiedConnection, *, doubtful: bool) -> None:
        self.connection = connection
        #: Whether what was sent may be applied although no answer comes.
        self.doubtful = doubtful
        #: As it was, where the connection is to be given back as it was.
        self.autocommit = False

    @property
    def driver(self) -> Any:
        """The driver's own connection."""
        return self.connection.driver_connection

    def run(self, statement: str, row: Mapping[str, Any] | None = None) -> int:
        """Run a statement; how many rows it met."""
        cursor = self.connection.cursor()
        cursor.execute(statement, row)
        count = cursor.rowcount
        cursor.close()
        return count

    def insert(self, statement: str, row: Mapping[str, Any]) -> int:
        """Insert a row; the number that the database gave it."""
        cursor = self.connection.cursor()
        cursor.execute(statement, row)
        # MySQL has no RETURNING.
        rows: Any = cursor.fetchall() if cursor.description else [[cursor.lastrowid]]
        ((number,),) = rows
        cursor.close()
        return int(number)

    def rows(self, statement: str, row: Mapping[str, Any]) -> Sequence[tuple[Any, ...]]:
        """The rows that a statement returns."""
        cursor = self.connection.cursor()
        cursor.execute(statement, row)
        rows: Sequence[tuple[Any, ...]] = cursor.fetchall()
        cursor.close()
        return rows


class Server(Connections):
    """A database: each call is a connection's, for as long as its statements take.

    ``timeout`` is also how many seconds a statement or a wait for a lock may take.
    """

    @abstractmethod
    def fault(self, exc: BaseException) -> Fault:
        """What an error of the driver's says."""

    @abstractmethod
    def begin(self, session: Session) -> None:
        """Begin a transaction of READ COMMITTED, with time limits where they are not set yet."""

    @abstractmethod
    def restore(self, session: Session) -> None:
        """Undo what ``begin`` did to a connection of the user's beside the transaction."""

    def call(
        self,
        key: str,
        work: Callable[[Session], T],
        *,
        writes: bool = False,
        atomic: bool = False,
    ) -> T:
        """What ``work`` returns, all of whose statements are in by then, or none.

        It is called again where the server undid it because of another transaction.

        Args:
            key: what it is about, for CorruptRecord.
            work: runs statements; a single one that is all by itself need not be ``atomic``.
            writes: a lost answer is an AmbiguousWrite.
            atomic: in a transaction.

        Raises:
            StoreUnavailable: the server cannot be reached, or refuses; nothing was written.
            StoreFull: it has no room; nothing was written.
            AmbiguousWrite: whether it was written is not known.
            CorruptRecord: what the server keeps of ``key`` is damaged.
            NoTables: the tables are not there.
        """
        deadline = time.monotonic() + self.timeout
        while True:
            session: Session | None = None
            try:
                session = Session(self.connect(), doubtful=False)
                return self._run(session, work, writes=writes, atomic=atomic or not self.own)
            except (SQLAlchemyError, self.errors) as exc:
                cause = exc.orig if isinstance(exc, DBAPIError) and exc.orig else exc
                fault = self.fault(cause)
                if fault is not Fault.AGAIN or time.monotonic() >= deadline:
                    doubtful = session is not None and session.doubtful
                    # Not chained to SQLAlchemy's, which shows the parameters.
                    raise self._error(cause, fault, key, doubtful=doubtful) from cause
            time.sleep(chance.uniform(0.001, 0.02))

    def _run(
        self, session: Session, work: Callable[[Session], T], *, writes: bool, atomic: bool
    ) -> T:
        try:
            session.doubtful = writes and not atomic
            if atomic:
                self.begin(session)
            done = work(session)
            if atomic:
                session.doubtful = writes
                session.run("COMMIT")
        except BaseException:
            # In what state it is is not known: the exception may be that of a signal handler.
            session.connection.invalidate()
            raise
        self._give_back(session)
        return done

    def _give_back(self, session: Session) -> None:
        # Whatever goes wrong here: what was done is done.
        try:
            if not self.own:
                self.restore(session)
        except self.errors:
            session.connection.invalidate()
            return
        if self._closed:
            session.connection.invalidate()
        else:
            session.connection.close()

    def _error(self, exc: BaseException, fault: Fault, key: str, *, doubtful: bool) -> StoreError:
        why = " ".join(str(exc).split()) or type(exc).__name__
        if fault is Fault.UNKNOWN and doubtful:
            return AmbiguousWrite(self.name, why)
        if fault is Fault.FULL:
            return StoreFull(self.name, why)
        if fault is Fault.CORRUPT:
            return CorruptRecord(key, f"{self.name}: {why}")
        if fault is Fault.NO_TABLE:
            return NoTables(self.name, why)
        return StoreUnavailable(self.name, why)


class NoTables(StoreUnavailable):
    """Raised to the store itself where its tables are not there."""
