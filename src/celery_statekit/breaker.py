"""The circuit breaker: what a store that is away may cost those who need not wait for it.

The first call that fails opens it. While it is open calls fail at once, and after a pause one of
them is let through to find out; a thread that nobody waits for goes first. Each failure doubles
the pause, the first success closes it. That it opened and that it healed is logged once each.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar
from weakref import WeakSet

from celery_statekit.chance import chance
from celery_statekit.errors import AmbiguousWrite, StoreFull, StoreUnavailable

logger = logging.getLogger(__name__)

Returned = TypeVar("Returned")

#: What is the store's fault, and will pass.
AWAY: Final = (StoreUnavailable, StoreFull, AmbiguousWrite)
#: Seconds until the store is asked again after the first failure.
FIRST_PAUSE: Final = 0.25
#: The longest pause, in seconds.
LONGEST_PAUSE: Final = 5.0


class _Thread(threading.local):
    """What is known of the current thread."""

    #: Nobody waits for it: it may be the one that finds out whether the store is back.
    in_background = False
    #: It has no later moment: its calls are let through.
    last_chance = False


this_thread: Final = _Thread()


class Breaker:
    """Stands before the calls to one store, in one process; may be used from any thread.

    Args:
        name: the store's, for messages.
        clock: seconds; never goes backwards.
        jitter: draws a number between two.
    """

    def __init__(
        self,
        name: str,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[float, float], float] = chance.uniform,
    ) -> None:
        self._name = name
        self._clock = clock
        self._jitter = jitter
        self._lock = threading.Lock()
        #: When it opened; None while it is closed.
        self._since: float | None = None
        self._why = ""
        self._pause = 0.0
        #: When the store is asked again.
        self._again = 0.0
        self._asking = False
        self._skipped = 0
        _breakers.add(self)

    @property
    def is_open(self) -> bool:
        """Whether the store was away when it was last asked."""
        return self._since is not None

    @property
    def refuses(self) -> bool:
        """Whether a call would be refused now, even one in the background."""
        return self._since is not None and (self._asking or self._clock() < self._again)

    def skip(self) -> None:
        """Count a write that was not even tried."""
        with self._lock:
            self._skipped += 1

    def call(
        self, function: Callable[[], Returned], *, urgent: bool = False, reads: bool = False
    ) -> Returned:
        """Return ``function()``, a call to the store.

        Args:
            urgent: it is tried though the breaker is open.
            reads: it only reads: its success does not say that the store can be written to.

        Raises:
            StoreUnavailable: at once; it says since when the store is away, and why.
        """
        asks = self._since is not None and self._asks(urgent=urgent)
        try:
            returned = function()
        except AWAY as exc:
            self._failed(exc, asked=asks)
            raise
        finally:
            if asks:
                self._asking = False
        if self._since is not None and not reads:
            self._worked()
        return returned

    def _asks(self, *, urgent: bool) -> bool:
        """Whether this call is the one that finds out."""
        with self._lock:
            if self._since is None or urgent or this_thread.last_chance:
                return False
            now = self._clock()
            # Whom somebody waits for finds out only where nobody else does.
            due = self._again + (0.0 if this_thread.in_background else self._pause)
            if not self._asking and now >= due:
                self._asking = True
                return True
            self._skipped += 1
            again = max(self._again - now, FIRST_PAUSE)
            raise StoreUnavailable(
                self._name,
                f"away for {now - self._since:.1f} s ({self._why}); not asked before {again:.1f} s",
                again,
            )

    def _failed(self, exc: Exception, *, asked: bool) -> None:
        with self._lock:
            opens = self._since is None
            if not opens and not asked:
                return
            now = self._clock()
            self._pause = FIRST_PAUSE if opens else min(self._pause * 2, LONGEST_PAUSE)
            self._again = now + self._jitter(self._pause / 2, self._pause)
            self._why = getattr(exc, "why", type(exc).__name__)
            if opens:
                self._since, self._skipped = now, 0
        if opens:
            logger.warning(
                "%s; until it is back, tasks run and are sent without it: progress and PENDING are "
                "skipped, ends are written later",
                exc,
            )

    def _worked(self) -> None:
        with self._lock:
            if self._since is None:
                return
            away, skipped = self._clock() - self._since, self._skipped
            self._since = None
        logger.warning("%s is back after %.1f s; %d writes were skipped", self._name, away, skipped)

    def _begin_in_child(self) -> None:
        # A thread of the parent may have held the lock, or have been asking; it is not here.
        self._lock = threading.Lock()
        self._asking = False


_breakers: Final[WeakSet[Breaker]] = WeakSet()


def _after_fork() -> None:
    for breaker in list(_breakers):
        breaker._begin_in_child()  # noqa: SLF001 - of this module


os.register_at_fork(after_in_child=_after_fork)


def log_failure(log: logging.Logger, what: str, *args: object) -> None:
    """Log the exception being handled: in full, or where a breaker has said it, for debugging."""
    level = logging.DEBUG if isinstance(sys.exc_info()[1], AWAY) else logging.ERROR
    log.log(level, what, *args, exc_info=True)
