"""The one thread of a process that runs tasks: newest progress out, and what may wait a little.

A task's thread only sets attributes. Every ``interval`` seconds this thread writes, for each run
that said something new, the newest value. It stretches the interval so that it takes at most 1 %
of the process's time, and one run's slow store delays no task.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

logger = logging.getLogger(__name__)

#: The share of the process's time that writing progress may take.
SHARE: Final = 0.01


class Reports(Protocol):
    """What the flusher watches: something that may have news."""

    #: Seconds between two writes, at least.
    interval: float

    def flush(self) -> None:
        """Write what is new, if anything is."""
        ...


class Flusher:
    """The thread; started with its first work, a daemon, one a process (see :func:`flusher`)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wake = threading.Condition()
        self._watched: dict[Reports, float] = {}
        self._writing: Reports | None = None
        self._calls: deque[tuple[Callable[[], object], threading.Event]] = deque()
        self._thread: threading.Thread | None = None
        self._pause = 0.0

    def watch(self, reports: Reports) -> None:
        """From now on what ``reports`` says is written."""
        with self._wake:
            self._watched[reports] = self._clock() + reports.interval
            self._start()
            self._wake.notify_all()

    def hurry(self, reports: Reports) -> None:
        """Write what ``reports`` says as soon as may be."""
        with self._wake:
            if reports in self._watched:
                self._watched[reports] = 0.0
                self._wake.notify_all()

    def forget(self, reports: Reports) -> None:
        """Nothing of ``reports`` is written any more; a write in progress has been waited for."""
        with self._wake:
            self._watched.pop(reports, None)
            while self._writing is reports and threading.current_thread() is not self._thread:
                self._wake.wait()

    def call(self, function: Callable[[], object], patience: float) -> bool:
        """Have ``function`` called; wait at most ``patience`` seconds for it.

        Returns:
            Whether it was done by then. Else it will be done later; its exception is logged.
        """
        done = threading.Event()
        with self._wake:
            self._calls.append((function, done))
            self._start()
            self._wake.notify_all()
        return done.wait(patience)

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="statekit-flusher", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._calls and not (due := self._due()):
                    self._wake.wait(self._until_next())
                calls = list(self._calls)
                self._calls.clear()
            for function, done in calls:
                self._guarded(function)
                done.set()
            for reports in due if not calls else ():
                self._flush(reports)

    def _due(self) -> list[Reports]:
        now = self._clock()
        return [reports for reports, at in self._watched.items() if at <= now]

    def _until_next(self) -> float | None:
        if not self._watched:
            return None
        return max(min(self._watched.values()) - self._clock(), 0.001)

    def _flush(self, reports: Reports) -> None:
        with self._wake:
            if reports not in self._watched:
                return
            self._writing = reports
        began = time.thread_time()
        try:
            self._guarded(reports.flush)
        finally:
            spent = time.thread_time() - began
            with self._wake:
                self._writing = None
                if reports in self._watched:
                    # All runs share the budget: many runs are each written less often.
                    pause = max(reports.interval, spent * len(self._watched) / SHARE)
                    self._watched[reports] = self._clock() + pause
                self._wake.notify_all()

    def _guarded(self, function: Callable[[], object]) -> None:
        try:
            function()
        except Exception:
            logger.exception("a write in the background failed")


_flushers: dict[int, Flusher] = {}


def flusher() -> Flusher:
    """The flusher of this process; a forked child gets its own."""
    pid = os.getpid()
    found = _flushers.get(pid)
    if found is None:
        # The parent's thread does not live here and its lock may be held for ever.
        _flushers.clear()
        found = _flushers.setdefault(pid, Flusher())
    return found
