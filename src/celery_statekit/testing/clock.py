"""A clock that stands still until a test moves it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from typing import Any, Final
from unittest import mock

from celery_statekit.clients import Clients
from celery_statekit.errors import InvalidInput
from celery_statekit.listeners import stateful_apps
from celery_statekit.reporter import Reporter
from celery_statekit.tracker import Tracker

#: Midnight at the beginning of 2026, UTC; a whole number, and so is what is a second later.
START: Final = 1_767_225_600.0

_running: list[FrozenClock] = []


class FrozenClock:
    """What the library writes down as time, and what progress is measured by.

    The times of changes, checkpoints and records, the rate and the remaining time follow it.
    Waiting, time limits, leases and expiry go by the real clock, so that nothing hangs.

    Args:
        start: the time at first, in seconds since the epoch.
    """

    def __init__(self, start: float = START) -> None:
        self.start = start
        self._passed = 0.0
        #: Called when it was moved.
        self.moved: list[Callable[[], object]] = []

    def __repr__(self) -> str:
        return f"<FrozenClock {self.now.isoformat()}>"

    def time(self) -> float:
        """Seconds since the epoch."""
        return self.start + self._passed

    def monotonic(self) -> float:
        """Seconds since its start."""
        return self._passed

    @property
    def now(self) -> datetime:
        """The time, in UTC."""
        return datetime.fromtimestamp(self.time(), timezone.utc)

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass; progress that is due by then is written.

        Raises:
            InvalidInput: that is no duration.
        """
        given: object = seconds
        number = given if isinstance(given, (int, float)) else math.nan
        if isinstance(given, bool) or not 0 <= number < math.inf:
            raise InvalidInput("no duration", "seconds", seconds, "a finite number of 0 or more")
        self._passed += seconds
        for call in [*self.moved]:
            call()

    @classmethod
    def running(cls) -> FrozenClock | None:
        """The clock that counts now; None: the real one."""
        return _running[-1] if _running else None

    @contextmanager
    def frozen(self) -> Iterator[FrozenClock]:
        """Within the block this clock counts, for all apps of the process."""
        with ExitStack() as stack:
            defaults: tuple[tuple[type, str, Callable[[], float]], ...] = (
                (Tracker, "now", _now),
                (Clients, "now", _now),
                # Of one run: its series goes by one clock to its end.
                (Reporter, "clock", self.monotonic),
            )
            for made, name, clock in defaults:
                init: Any = made.__init__  # type: ignore[misc]
                stack.enter_context(mock.patch.dict(init.__kwdefaults__, {name: clock}))
            for tracker in _trackers():
                stack.enter_context(mock.patch.object(tracker, "now", self.time))
            _running.append(self)
            stack.callback(_running.remove, self)
            yield self


def _now() -> float:
    """What counts now: what was made within a block lives longer than it."""
    clock = FrozenClock.running()
    return time.time() if clock is None else clock.time()


def _trackers() -> Iterator[Tracker]:
    """Those that have been made already, with the clock of that time."""
    for app in [*stateful_apps]:
        settings = vars(app).get("_statekit")
        if settings is not None:
            held = vars(settings)
            yield from (held[name] for name in ("tracker", "_eager_tracker") if name in held)
