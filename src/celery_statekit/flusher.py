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
from collections.abc import Callable
from typing import Final, Protocol

from celery_statekit.errors import StoreError

logger = logging.getLogger(__name__)

#: The share of the process's time that writing progress may take.
SHARE: Final = 0.01


class Reports(Protocol):
    """What the flusher watches: something that may have news."""

    #: Seconds between two writes, at least.
    interval: float

    def flush(self) -> Callable[[], object] | None:
        """Write what is new, if anything is; return who wants to hear of it."""
        ...


class Flusher:
    """The thread; started with its first work, a daemon, one a process (see :func:`flusher`)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wake = threading.Condition()
        self._watched: dict[Reports, float] = {}
        self._writing: Reports | None = None
        #: When to call it, what to call, and whom to tell.
        self._calls: list[tuple[float, Callable[[], object], threading.Event]] = []
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
        if threading.current_thread() is self._thread:
            self._guarded(function)  # nobody else would do it while this waits
            return True
        done = threading.Event()
        self._add(0.0, function, done)
        return done.wait(patience)

    def insist(self, function: Callable[[], object], tries: int = 10, pause: float = 0.2) -> None:
        """Have ``function`` called, soon and again later while the store is away.

        Args:
            tries: how many times; the last failure is logged.
            pause: seconds before the next try; twice as many after each.
        """

        def attempt() -> None:
            try:
                function()
            except StoreError:
                if tries <= 1:
                    raise
                self.insist(function, tries - 1, pause * 2)

        self._add(self._clock() + pause, attempt, threading.Event())

    def _add(self, at: float, function: Callable[[], object], done: threading.Event) -> None:
        with self._wake:
            self._calls.append((at, function, done))
            self._start()
            self._wake.notify_all()

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            thread = threading.Thread(target=self._run, name="statekit-flusher", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads, or the interpreter ends
                logger.warning("progress is not written: no thread can be started", exc_info=True)
            else:
                self._thread = thread

    def _run(self) -> None:
        while True:
            with self._wake:
                while (pause := self._until_next()) is None or pause > 0:
                    self._wake.wait(pause)
                now = self._clock()
                calls = [call for call in self._calls if call[0] <= now]
                self._calls = [call for call in self._calls if call[0] > now]
                due = [reports for reports, at in self._watched.items() if at <= now]
            for _, function, done in calls:
                self._guarded(function)
                done.set()
            for reports in due:
                self._flush(reports)

    def _until_next(self) -> float | None:
        moments = [*self._watched.values(), *(at for at, _, _ in self._calls)]
        return min(moments) - self._clock() if moments else None

    def _flush(self, reports: Reports) -> None:
        with self._wake:
            if reports not in self._watched:
                return
            self._writing = reports
        began = time.thread_time()
        told = None
        try:
            told = self._guarded(reports.flush)
        finally:
            spent = time.thread_time() - began
            with self._wake:
                self._writing = None
                if reports in self._watched:
                    # All runs share the budget: many runs are each written less often.
                    pause = max(reports.interval, spent * len(self._watched) / SHARE)
                    self._watched[reports] = self._clock() + pause
                self._wake.notify_all()
        if callable(told):
            # After the write was let go: who hears of it may take long, and holds up no run.
            self._guarded(told)

    def _guarded(self, function: Callable[[], object]) -> object:
        try:
            return function()
        except BaseException:
            # Also a hook's sys.exit(): it must not end this thread.
            logger.exception("a write in the background failed")
            return None


_flushers: dict[int, Flusher] = {}


def flusher() -> Flusher:
    """The flusher of this process; a forked child gets its own."""
    pid = os.getpid()
    found = _flushers.get(pid)
    if found is None:
        # Another thread may be here too: one of the two flushers is the process's.
        found = _flushers.setdefault(pid, Flusher())
        for other in [key for key in _flushers if key != pid]:
            # The parent's thread does not live here and its lock may be held for ever.
            _flushers.pop(other, None)
    return found
