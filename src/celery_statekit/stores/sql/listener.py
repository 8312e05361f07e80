"""One connection and one thread of a process that listen to what PostgreSQL's writers tell."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import psycopg
from sqlalchemy.exc import SQLAlchemyError

from celery_statekit.errors import StoreUnavailable
from celery_statekit.stores.sql.server import Server
from celery_statekit.stores.subscribers import Subscribers

logger = logging.getLogger(__name__)

#: Seconds between two looks whether anybody is still subscribed.
LOOKS: Final = 0.5
#: Seconds of silence after which the server is asked whether it is there.
SILENCE: Final = 5.0
#: Seconds before the connection is opened again after it was lost.
PAUSE: Final = 0.2


class Listener:
    """Wakes subscribers; its thread runs while there are any.

    Args:
        server: whose connection it takes, out of the pool.
        channel: to listen to.
        lock: statement that lets writers know that somebody listens, while the connection lasts.
    """

    def __init__(self, server: Server, channel: str, lock: str) -> None:
        self._server = server
        self._channel = channel
        self._lock_statement = lock
        self._closed = False
        self.reset()

    def reset(self) -> None:
        """Begin without a subscriber: in a child of a fork, where the parent's thread is not."""
        self._subscribers = Subscribers()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._listens = threading.Event()
        self._why = ""

    def subscribe(self, payload: str, wake: Callable[[], None]) -> Callable[[], None]:
        """From the return on ``wake`` is called for ``payload``; returns what ends it.

        Raises:
            StoreUnavailable: the server could not be listened to within its timeout.
        """
        if self._closed:
            raise StoreUnavailable(self._server.name, "it is closed")
        with self._lock:
            end = self._subscribers.add(payload, wake)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="statekit-listener", daemon=True
                )
                self._thread.start()
        if not self._listens.wait(self._server.timeout):
            end()
            why = self._why or "no answer"
            raise StoreUnavailable(self._server.name, f"it cannot be listened to ({why})")
        return end

    def close(self) -> None:
        """End all subscriptions; the thread ends soon after."""
        self._closed = True
        self._subscribers.clear()

    def _run(self) -> None:
        while self._wanted():
            try:
                self._follow()
            except (psycopg.Error, SQLAlchemyError, StoreUnavailable) as exc:  # noqa: PERF203 - it waits here
                self._why = " ".join(str(exc).split())
                logger.debug("%s: listening again after: %s", self._server.name, self._why)
                self._listens.clear()
                time.sleep(PAUSE)

    def _wanted(self) -> bool:
        with self._lock:
            if not self._closed and self._subscribers.keys():
                return True
            self._thread = None
            self._listens.clear()
            return False

    def _follow(self) -> None:
        connection = self._connected()
        try:
            connection.execute(f"LISTEN {self._channel}")
            connection.execute(self._lock_statement)
            self._listens.set()
            if self._why:
                self._why = ""
                self._wake_all()  # for what was told meanwhile is lost
            silent_since = time.monotonic()
            while self._wanted():
                for notice in connection.notifies(timeout=LOOKS):
                    silent_since = time.monotonic()
                    self._subscribers.wake(notice.payload)
                if time.monotonic() - silent_since >= SILENCE:
                    connection.execute("SELECT 1")
                    silent_since = time.monotonic()
        finally:
            connection.close()

    def _connected(self) -> Any:
        # Never back into the pool: it listens, and holds locks.
        connection = self._server.engine().raw_connection()
        driver: Any = connection.driver_connection
        connection.detach()
        driver.autocommit = True
        return driver

    def _wake_all(self) -> None:
        for payload in self._subscribers.keys():  # noqa: SIM118 - no mapping
            self._subscribers.wake(payload)
