"""Who is told of writes, in one process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Subscribers:
    """What is called when a key was written; may be used from any thread, and while it calls."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: By key, then by what stands for one subscription.
        self._wakes: dict[str, dict[object, Callable[[], None]]] = {}

    def add(self, key: str, wake: Callable[[], None]) -> Callable[[], None]:
        """From now on ``wake`` is called for ``key``; returns what ends it."""
        subscription = object()
        with self._lock:
            self._wakes.setdefault(key, {})[subscription] = wake

        def end() -> None:
            with self._lock:
                wakes = self._wakes.get(key, {})
                wakes.pop(subscription, None)
                if not wakes:
                    self._wakes.pop(key, None)

        return end

    def keys(self) -> list[str]:
        """The keys that somebody wants to be told of."""
        with self._lock:
            return list(self._wakes)

    def wake(self, key: str) -> None:
        """Tell those of ``key``; the lock is not held meanwhile, and one that raises is logged."""
        with self._lock:
            wakes = list(self._wakes.get(key, {}).values())
        for wake in wakes:
            self._call(key, wake)

    def clear(self) -> None:
        """End all subscriptions."""
        with self._lock:
            self._wakes.clear()

    def _call(self, key: str, wake: Callable[[], None]) -> None:
        try:
            wake()
        except Exception:
            logger.exception("a subscriber of %r raised", key)
