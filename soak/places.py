"""Where ledgers are kept, and what can go wrong there."""

from __future__ import annotations

import random
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.servers import MariaDBServer, PostgresServer, RedisServer, Server

from celery_statekit.stores import Store, open_store
from celery_statekit.testing import FaultProxy, LosesReplies

from .storm import Fault

#: Each how-many-th write in memory loses its reply.
LOSES: Final = 50


@dataclass
class Place:
    """One store, of a soak's own."""

    #: For writers that are processes; the second half of them uses the last one.
    urls: tuple[str, ...]
    #: What survives what.
    durability: str
    faults: dict[str, Fault] = field(default_factory=dict)
    #: Makes the store of writers that are threads of this process; None: they are processes.
    threads: Callable[[], Store] | None = None


def _lasting() -> None:
    time.sleep(random.uniform(0.1, 0.4))


@contextmanager
def _served(server: Server, durability: str) -> Iterator[Place]:
    with server, FaultProxy(server.url) as proxy:

        def down(end: Callable[[], None], begin: Callable[[], None]) -> Fault:
            def fault() -> None:
                end()
                _lasting()
                begin()

            return fault

        def lose() -> None:
            proxy.lose_replies(every=20)
            _lasting()
            proxy.pass_all()

        yield Place(
            (server.url, proxy.url),
            durability,
            {
                "server killed": down(server.kill, server.start),
                "server restarted": server.restart,
                "server paused": down(server.pause, server.resume),
                "connections cut": proxy.cut,
                "replies lost": lose,
                "black hole": down(proxy.black_hole, proxy.pass_all),
                "refused": down(proxy.refuse, proxy.pass_all),
            },
        )


@contextmanager
def redis() -> Iterator[Place]:
    """Redis, which answers when a write is in its log; not with ``everysec``, which may wait.

    While a thread of its own writes the disk ``everysec`` puts off even handing the log over to
    the system, for up to two seconds (redis 7.0 aof.c, flushAppendOnlyFile).
    """
    server = RedisServer(appendonly=True, appendfsync="no")
    with _served(server, "appendonly, appendfsync no: survives a crash of the server") as place:
        yield place


@contextmanager
def postgresql() -> Iterator[Place]:
    """PostgreSQL, whose log survives its processes."""
    with _served(PostgresServer(), "fsync off: survives a crash of the server") as place:
        yield place


@contextmanager
def mariadb() -> Iterator[Place]:
    """MariaDB, likewise."""
    server = MariaDBServer()
    durability = "innodb_flush_log_at_trx_commit 2: survives a crash of the server"
    with _served(server, durability) as place:
        yield place


@contextmanager
def sqlite() -> Iterator[Place]:
    """A file; somebody holds its lock for a while, now and then."""
    with ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "states.db"

        def lock() -> None:
            with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                _lasting()
                connection.execute("ROLLBACK")

        url = f"sqlite:///{path}"
        yield Place((url,), "synchronous NORMAL: survives a crash of any process", {"locked": lock})


@contextmanager
def memory() -> Iterator[Place]:
    """This process; replies are lost all the time."""
    url = f"memory://{uuid.uuid4().hex}"
    yield Place(
        (url,), "none", {}, threads=lambda: LosesReplies(open_store(url, timeout=1.0), every=LOSES)
    )


PLACES: Final = {
    "redis": redis,
    "postgresql": postgresql,
    "mariadb": mariadb,
    "sqlite": sqlite,
    "memory": memory,
}
