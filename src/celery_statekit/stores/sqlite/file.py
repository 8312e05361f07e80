"""A SQLite file of ours: its tables, its connections, and what becomes of them at a fork."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from weakref import WeakSet

from celery_statekit.errors import (
    CorruptRecord,
    InvalidSetting,
    StoreError,
    StoreFull,
    StoreUnavailable,
)

#: Version of the tables below, kept in ``PRAGMA user_version``.
SCHEMA: Final = 1
#: ``PRAGMA application_id`` of our files: "stkt".
APPLICATION: Final = 0x73746B74

TABLES: Final = (
    # Not WITHOUT ROWID: measured, rows over a quarter of a page take up to twice the room there.
    """CREATE TABLE records (
        key TEXT PRIMARY KEY NOT NULL,
        version INTEGER NOT NULL,
        incarnation TEXT NOT NULL,
        expires REAL,
        kind TEXT NOT NULL,
        state TEXT NOT NULL,
        client TEXT NOT NULL,
        since REAL NOT NULL,
        text BLOB NOT NULL
    )""",
    "CREATE INDEX records_standing ON records (kind, since, key)",
    "CREATE INDEX records_of_state ON records (kind, state, since, key)",
    "CREATE INDEX records_of_client ON records (kind, client, since, key)",
    "CREATE INDEX records_expiring ON records (expires) WHERE expires IS NOT NULL",
    """CREATE TABLE changes (
        key TEXT NOT NULL,
        number INTEGER NOT NULL,
        text BLOB NOT NULL,
        PRIMARY KEY (key, number)
    ) WITHOUT ROWID""",
    """CREATE TABLE leases (
        key TEXT PRIMARY KEY NOT NULL,
        owner TEXT NOT NULL,
        until REAL NOT NULL
    ) WITHOUT ROWID""",
    "CREATE INDEX leases_ending ON leases (until)",
    """CREATE TABLE alive (
        key TEXT NOT NULL,
        owner BLOB NOT NULL,
        until REAL NOT NULL,
        PRIMARY KEY (key, owner)
    ) WITHOUT ROWID""",
    "CREATE INDEX alive_ending ON alive (until)",
    """CREATE TABLE waiters (
        number INTEGER PRIMARY KEY,
        key TEXT NOT NULL,
        owner TEXT NOT NULL,
        seen REAL NOT NULL
    )""",
    "CREATE INDEX waiters_of_key ON waiters (key)",
    f"PRAGMA application_id = {APPLICATION}",
    f"PRAGMA user_version = {SCHEMA}",
)

# One statement, so that another process that makes the tables now is seen before or after.
MADE_BY: Final = """
    SELECT user_version, application_id, (SELECT count(*) FROM sqlite_master)
    FROM pragma_user_version, pragma_application_id"""


class Connection(sqlite3.Connection):
    """A connection that knows which file it opened, as (device, inode)."""

    file: tuple[int, int] | None = None


class SQLiteFile:
    """The connections of this process to one file, made when first needed.

    As many as there are calls at once. Not one for each thread: those of threads and greenlets
    that are gone would stay open.

    Args:
        path: of the file; relative to the working directory as it is now.
        timeout: seconds that a call waits for another's write.

    Raises:
        InvalidSetting: ``path`` names no file, or ``timeout`` is no positive number.
    """

    def __init__(self, path: str | os.PathLike[str], timeout: float) -> None:
        self.path = _absolute(path)
        self.name = f"sqlite:///{self.path}"
        self.timeout = _seconds(timeout)
        self._idle: list[Connection] = []
        self._process = os.getpid()
        self._closed = False
        _gate.files.add(self)

    @contextmanager
    def transaction(self, key: str) -> Iterator[Connection]:
        """One write transaction: committed at the end of the block, else as if it never was."""
        with self.connection(key) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")

    @contextmanager
    def connection(self, key: str) -> Iterator[Connection]:
        """A connection for one call, in which SQLite's errors become ours.

        Raises:
            StoreUnavailable: the file cannot be used now.
            StoreFull: neither file nor disk has room.
            CorruptRecord: the part of the file that ``key`` is in is damaged.
        """
        with _gate:
            try:
                connection = self._borrow()
                try:
                    yield connection
                except BaseException:
                    connection.close()  # which also rolls back
                    raise
            except sqlite3.Error as exc:
                raise self._error(exc, key) from exc
            self._idle.append(connection)
            if self._closed:
                self.close_idle()

    def close(self) -> None:
        """Close the connections; those of calls under way close when these return."""
        self._closed = True
        with _gate:
            self.close_idle()

    def close_idle(self) -> None:
        """Close the connections that no call uses, unless a parent process opened them."""
        while self._process == os.getpid():
            try:
                connection = self._idle.pop()
            except IndexError:
                return
            connection.close()

    def after_fork(self) -> None:
        """Go on in the child, unless connections of the parent came along."""
        if not self._idle:
            self._process = os.getpid()

    # At the end of the interpreter the module may be emptied before its objects go.
    def __del__(self, getpid: Callable[[], int] = os.getpid) -> None:
        idle = getattr(self, "_idle", ())
        if getattr(self, "_process", None) != getpid():
            _graveyard.extend(idle)
            return
        for connection in idle:  # from Python 3.13 on they would complain
            connection.close()

    def _borrow(self) -> Connection:
        if self._closed:
            raise StoreUnavailable(self.name, "it is closed")
        if self._process != os.getpid():
            raise StoreUnavailable(
                self.name,
                "this process was forked while a connection was open, and SQLite cannot be used "
                "across such a fork; open the store after the fork",
            )
        # A connection to a file that was deleted or replaced would write into nowhere.
        file = _identity(self.path)
        while self._idle:
            with suppress(IndexError):
                connection = self._idle.pop()
                if connection.file == file:
                    return connection
                connection.close()
        return self._connect()

    def _connect(self) -> Connection:
        while True:
            there = _identity(self.path)
            connection = sqlite3.connect(
                self.path,
                timeout=self.timeout,
                isolation_level=None,
                check_same_thread=False,
                factory=Connection,
            )
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            connection.file = _identity(self.path)
            if connection.file == there:
                return connection
            connection.close()  # it was made, or replaced, meanwhile: is it this one?

    def _prepare(self, connection: Connection) -> None:
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                new = self._is_new(connection)
                self._share(connection)
                if new:
                    self._create(connection)
            except sqlite3.OperationalError as exc:  # noqa: PERF203 - it waits here
                # SQLite does not wait for a writer when it goes into WAL mode.
                if "locked" not in str(exc) or time.monotonic() >= deadline:
                    raise
                connection.rollback()
                time.sleep(0.01)
            else:
                return

    def _is_new(self, connection: Connection) -> bool:
        ((schema, application, tables),) = connection.execute(MADE_BY).fetchall()
        if not (schema or application or tables):
            return True
        if application != APPLICATION:
            raise StoreUnavailable(
                self.name, "the file is a database of another program; the store needs its own"
            )
        if schema > SCHEMA:
            raise StoreUnavailable(
                self.name,
                f"its tables are of version {schema}, made by a newer release; "
                f"this release knows {SCHEMA}",
            )
        return False

    def _share(self, connection: Connection) -> None:
        # Each time: backups and other tools may have set the file back.
        ((mode,),) = connection.execute("PRAGMA journal_mode = WAL").fetchall()
        if mode != "wal":
            raise StoreUnavailable(self.name, "its file system cannot share memory (WAL)")
        connection.execute("PRAGMA synchronous = NORMAL")

    def _create(self, connection: Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        if self._is_new(connection):
            for statement in TABLES:
                connection.execute(statement)
        connection.execute("COMMIT")

    def _error(self, exc: sqlite3.Error, key: str) -> StoreError:
        # By their words: before Python 3.11 SQLite's errors carry no code.
        why = str(exc)
        if "full" in why:
            return StoreFull(self.name, why)
        if "malformed" in why or "decode" in why or isinstance(exc, sqlite3.IntegrityError):
            return CorruptRecord(key, f"{self.name}: {why}")
        if "locked" in why:
            why = f"another process held its lock for {self.timeout:g} s ({why})"
        elif "unable to open" in why or "readonly" in why:
            why = f"{_obstacle(self.path)} ({why})"
        return StoreUnavailable(self.name, why)


def _absolute(path: object) -> Path:
    try:
        text = os.fspath(path)  # type: ignore[call-overload]
    except TypeError:
        text = ""
    if not isinstance(text, str) or text in ("", ":memory:") or "\0" in text:
        raise InvalidSetting(
            "path names no file", "statekit_store", path, "a file; in memory is memory://name"
        )
    # For a daemon changes its working directory.
    return Path(text).absolute()


def _seconds(timeout: object) -> float:
    rule = "a number of seconds, over 0 and at most a day"
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise InvalidSetting("timeout is no number", "timeout", timeout, rule)
    if not 0 < timeout <= 24 * 60 * 60:
        raise InvalidSetting("timeout is out of range", "timeout", timeout, rule)
    return timeout


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _obstacle(path: Path) -> str:
    if path.is_dir():
        return "it is a directory"
    if not path.parent.is_dir():
        return f"the directory {path.parent} does not exist"
    return "this process may not write the file or its directory"


class _Gate:
    """Lets calls pass together; a fork passes alone, with no connection open.

    SQLite keeps a table of the locks its process holds, and a fork copies it: a connection
    opened in the child then takes no lock of its own where the parent had one. Measured (SQLite
    3.40): when the parent closed, the WAL was deleted under the child, whose later commits were
    acknowledged and lost. Without an open connection there is nothing to copy.
    """

    def __init__(self) -> None:
        self.files: WeakSet[SQLiteFile] = WeakSet()
        self._reset()

    def _reset(self) -> None:
        self._state = threading.Condition()
        self._calls = 0
        self._forks = 0

    def __enter__(self) -> None:
        with self._state:
            while self._forks:
                self._state.wait()
            self._calls += 1

    def __exit__(self, *_: object) -> None:
        with self._state:
            self._calls -= 1
            if self._forks:
                self._state.notify_all()

    def before_fork(self) -> None:
        """Wait until no call is under way, then close what is open; the fork comes next."""
        self._state.acquire()
        self._forks += 1
        files = list(self.files)
        # No call waits for longer than its file's timeout.
        patience = 1 + max((file.timeout for file in files), default=0)
        self._state.wait_for(lambda: not self._calls, patience)
        for file in files:
            file.close_idle()

    def after_fork_in_parent(self) -> None:
        """Let the calls go on."""
        self._forks -= 1
        self._state.notify_all()
        self._state.release()

    def after_fork_in_child(self) -> None:
        """Take the files into the child, unless a call was under way after all."""
        if not self._calls:
            for file in list(self.files):
                file.after_fork()
        self._reset()


_gate = _Gate()
#: Connections of a parent process: closing one here would end locks that are not ours.
_graveyard: Final[list[Connection]] = []

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_gate.before_fork,
        after_in_parent=_gate.after_fork_in_parent,
        after_in_child=_gate.after_fork_in_child,
    )
