"""Result backends for tests: in this process's memory, and in a folder for several processes."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from celery.backends.base import KeyValueStoreBackend
from kombu.utils.encoding import bytes_to_str, ensure_bytes

#: Seconds between two questions for a result.
POLL: Final = 0.005


class _Results(KeyValueStoreBackend):
    """Looks often; nothing of it outlives the test."""

    persistent = False
    thread_safe: bool

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(app, **options)
        self.thread_safe = True

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float = POLL,
        *args: Any,
        **options: Any,
    ) -> Any:
        """As Celery's, but it looks often."""
        return super().wait_for(task_id, timeout, min(interval, POLL), *args, **options)

    def get_many(
        self,
        task_ids: Iterable[str],
        timeout: float | None = None,
        interval: float = POLL,
        *args: Any,
        **options: Any,
    ) -> Any:
        """As Celery's, but it looks often."""
        return super().get_many(task_ids, timeout, min(interval, POLL), *args, **options)


class MemoryResults(_Results):
    """Results in this process's memory."""

    implements_incr = True

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(app, **options)
        self._values: dict[bytes, Any] = {}
        self._counting = threading.Lock()

    def get(self, key: Any) -> Any:
        """What was set."""
        return self._values.get(ensure_bytes(key))

    def mget(self, keys: Iterable[Any]) -> list[Any]:
        """What was set, for each."""
        return [self.get(key) for key in keys]

    def set(self, key: Any, value: Any) -> None:
        """Keep ``value`` under ``key``."""
        self._values[ensure_bytes(key)] = value

    def delete(self, key: Any) -> None:
        """Keep nothing under ``key``."""
        self._values.pop(ensure_bytes(key), None)

    def incr(self, key: Any) -> int:
        """Count; what a chord is counted with."""
        with self._counting:
            count = int(self._values.get(ensure_bytes(key), 0)) + 1
            self._values[ensure_bytes(key)] = count
        return count

    def expire(self, key: Any, value: Any) -> None:
        """It is gone with the test."""


class FolderResults(_Results):
    """Results in a folder, for all processes that know it."""

    def __init__(self, app: Any, folder: Path, **options: Any) -> None:
        super().__init__(app, **options)
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __reduce__(self, args: Any = (), kwargs: Any = None) -> Any:
        return super().__reduce__(args, {**(kwargs or {}), "folder": self._folder})

    def _path(self, key: Any) -> Path:
        name: str = bytes_to_str(key)
        return self._folder / name

    def get(self, key: Any) -> Any:
        """What was set."""
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError:
            return None

    def mget(self, keys: Iterable[Any]) -> list[Any]:
        """What was set, for each."""
        return [self.get(key) for key in keys]

    def set(self, key: Any, value: Any) -> None:
        """Keep ``value`` under ``key``; nobody reads half of it."""
        path = self._path(key)
        new = path.with_name(f"{uuid.uuid4().hex}.new")
        new.write_bytes(ensure_bytes(value))
        new.replace(path)

    def delete(self, key: Any) -> None:
        """Keep nothing under ``key``."""
        self._path(key).unlink(missing_ok=True)
