"""Notices of writes to a SQLite file, by whichever process: one thread that looks."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from celery_statekit.errors import StoreError
from celery_statekit.stores.sqlite.file import Connection, SQLiteFile
from celery_statekit.stores.subscribers import Subscribers

logger = logging.getLogger(__name__)

#: Seconds between two looks, while somebody is subscribed.
LOOK: Final = 0.02

# Another value than before on the same connection: another connection has written.
CHANGED: Final = "PRAGMA data_version"
VERSION: Final = "SELECT version, incarnation FROM records WHERE key = :key"


class SQLiteNotices(SQLiteFile):
    """Wakes those who wait for a key.

    It is a file of its own beside the store's: what a write through the same connection changes,
    ``data_version`` does not tell.

    Args:
        file: the store's.
    """

    def __init__(self, file: SQLiteFile) -> None:
        self._file = file
        self._begin()
        super().__init__(file.path, file.timeout)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._subscribers = Subscribers()
        self._thread: threading.Thread | None = None
        #: What VERSION said last of the keys that are subscribed to.
        self._versions: dict[str, Any] = {}
        #: What CHANGED said last, and on which connection.
        self._looked: tuple[Connection | None, int] = (None, 0)

    def after_fork(self) -> None:
        """Begin anew in the child: neither the thread nor the lock came along as they were."""
        super().after_fork()
        self._begin()

    def subscribe(self, key: str, wake: Callable[[], None]) -> Callable[[], None]:
        """``wake`` is called soon after each write and deletion of ``key`` from now on."""
        with self._file.connection(key) as connection:
            version = connection.execute(VERSION, {"key": key}).fetchone()
        with self._lock:
            self._versions.setdefault(key, version)
            end = self._subscribers.add(key, wake)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._watch, name="statekit-sqlite-notices", daemon=True
                )
                self._thread.start()
        return end

    def close(self) -> None:
        """End all subscriptions, and with them the thread."""
        self._subscribers.clear()
        super().close()

    def _watch(self) -> None:
        troubled = False
        while self._goes_on():
            try:
                changed = self._look()
                troubled = False
            except StoreError:
                changed = []
                if not troubled:
                    logger.warning("%s: no notices of writes for now", self.name, exc_info=True)
                troubled = True
            for key in changed:
                self._subscribers.wake(key)
            time.sleep(LOOK)

    def _goes_on(self) -> bool:
        """Whether anybody is subscribed; what is known of other keys is forgotten."""
        with self._lock:
            keys = set(self._subscribers.keys())
            self._versions = {key: seen for key, seen in self._versions.items() if key in keys}
            if not keys:
                self._thread = None
            return bool(keys)

    def _look(self) -> list[str]:
        """The keys of which another version is there than at the last look."""
        with self.connection("") as connection:
            ((number,),) = connection.execute(CHANGED).fetchall()
            if self._looked == (connection, number):
                return []
            with self._lock:
                keys = list(self._versions)
            there = {key: connection.execute(VERSION, {"key": key}).fetchone() for key in keys}
        self._looked = (connection, number)
        with self._lock:
            changed = [key for key in there if self._versions.get(key, there[key]) != there[key]]
            self._versions.update({key: there[key] for key in changed})
        return changed
