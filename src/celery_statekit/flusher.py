"""The thread of a process that runs tasks: newest progress out, and what may wait a little.

A task's thread only sets attributes. Every ``interval`` seconds this thread writes, for each run
that said something new, the newest value. It stretches the interval so that it takes about 1 %
of the process's time. Who hears of what was written is called in a second thread, so that neither
a slow store nor a slow receiver holds up a task, and no receiver another run's progress.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from celery_statekit.breaker import AWAY, FIRST_PAUSE, LONGEST_PAUSE, log_failure, this_thread
from celery_statekit.errors import AttemptEnded, ContentionTimeout, StaleAttempt, StoreUnavailable
from celery_statekit.per_process import PerProcess

logger = logging.getLogger(__name__)

#: The share of the process's time that writing progress may take.
SHARE: Final = 0.01
#: How many times as long as is wished the time between two writes may become for that, for each run.
STRETCH: Final = 4
#: How many PENDING writes, or notices for receivers, wait at most; what comes then is dropped.
WAITING: Final = 1000
#: How many ends do, each a few kilobytes.
ENDS_WAITING: Final = 20_000
#: What is insisted on, for messages.
ENDS: Final = "ends"
#: Seconds for which a publish or the worker's main process waits for a write.
PATIENCE: Final = 0.25
#: Seconds for which a process that ends tries to write what it still has to.
LAST_CHANCE: Final = 2.0


class Reports(Protocol):
    """What the flusher watches: something that may have news."""

    #: Seconds between two writes, at least.
    interval: float

    def flush(self) -> Callable[[], object] | None:
        """Write what is new, if anything is; return who wants to hear of it."""
        ...


class Mirrors(Reports, Protocol):
    """What is also shown elsewhere, where it may take long."""

    @property
    def late_is_refused(self) -> bool:
        """Whether what is shown too late does no harm."""
        ...

    def mirror(self) -> None:
        """Show what is newest."""
        ...


@dataclass(slots=True, eq=False)
class _Call:
    """Something to be called once, or until the store has taken it."""

    function: Callable[[], object]
    #: Whether it is called again while the store is away.
    insists: bool
    at: float = 0.0
    #: Seconds until it is called again.
    pause: float = FIRST_PAUSE
    tried: threading.Event = field(default_factory=threading.Event)


class Flusher:
    """The thread; started with its first work, a daemon, one a process (see :func:`flusher`)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wake = threading.Condition()
        self._watched: dict[Reports, float] = {}
        self._writing: Reports | None = None
        self._calls: deque[_Call] = deque()
        #: What the store has not taken yet.
        self._insisted: list[_Call] = []
        self._calling = self._ending = False
        #: When the thread wakes by itself; 0 while it is awake.
        self._wakes_at = 0.0
        #: How many were dropped of what is full; that it is full was said.
        self._dropped: dict[str, int] = {}
        #: The call that was last waited for in vain.
        self._given_up: _Call | None = None
        self._thread: threading.Thread | None = None
        self._teller = _Teller(
            "teller", "receivers of progress are slow: some are not told of all of it"
        )
        self._mirrors = _Teller(
            "mirror", "the result backend is slow: it does not show all progress"
        )
        #: What is to be shown, and what is being shown.
        self._mirrored: set[Mirrors] = set()
        self._showing: Mirrors | None = None

    def watch(self, reports: Reports) -> None:
        """From now on what ``reports`` says is written."""
        with self._wake:
            at = self._watched[reports] = self._clock() + reports.interval
            self._start()
            # Short tasks come and go before it: none of them wakes the thread.
            if at < self._wakes_at:
                self._wakes_at = at
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
            shown = self._showing
            if shown is reports and not shown.late_is_refused:
                self._wake.wait_for(lambda: self._showing is not shown)

    def call(
        self, function: Callable[[], object], patience: float, *, insists: bool = False
    ) -> bool:
        """Have ``function`` called; wait at most ``patience`` seconds for it.

        While an earlier call takes longer than that, nobody waits.

        Args:
            insists: call it again while the store is away.

        Returns:
            Whether it was called by then. Else it will be; what it raises is logged.
        """
        call = _Call(function, insists)
        if threading.current_thread() is self._thread:
            self._carry_out(call)  # nobody else would do it while this waits
            return True
        stuck = self.is_stuck
        if not self._add(call) or stuck:
            return False
        if patience > 0 and call.tried.wait(patience):
            return True
        self._given_up = call
        return False

    @property
    def is_stuck(self) -> bool:
        """Whether a call that nobody waits for any more is not done yet."""
        return self._given_up is not None and not self._given_up.tried.is_set()

    def insist(self, function: Callable[[], object]) -> bool:
        """Have ``function`` called in a moment, and again until the store has taken it.

        It is called once more when the process ends. Over :data:`ENDS_WAITING` nothing is taken:
        False, and how many were dropped is said once the store has taken the others.
        """
        return self._add(_Call(function, insists=True, at=self._clock() + FIRST_PAUSE))

    def mirror(self, mirrors: Mirrors) -> None:
        """Show in a thread of its own what ``mirrors`` says, while it is watched.

        A result backend that does not answer holds up other results only: no record.
        """
        with self._wake:
            if mirrors in self._mirrored:
                return
            self._mirrored.add(mirrors)
            if not self.aside(partial(self._show, mirrors)):
                self._mirrored.discard(mirrors)

    def aside(self, function: Callable[[], object]) -> bool:
        """Have ``function``, which asks a result backend, called in a thread for such calls only.

        Returns:
            False: it will not be called, for too many wait.
        """
        return self._mirrors.tell(function)

    def _show(self, mirrors: Mirrors) -> None:
        with self._wake:
            self._mirrored.discard(mirrors)
            if mirrors not in self._watched:
                return
            self._showing = mirrors
        began = time.thread_time()
        try:
            mirrors.mirror()
        finally:
            spent = time.thread_time() - began
            with self._wake:
                self._showing = None
                if mirrors in self._watched:
                    self._watched[mirrors] += spent * len(self._watched) / SHARE
                self._wake.notify_all()

    def tell(self, function: Callable[[], object]) -> None:
        """Have ``function``, a hook or receiver, called in the second thread, in order."""
        self._teller.tell(function)

    def end(self, patience: float = LAST_CHANCE) -> None:
        """The process ends: try once more what was insisted on, for ``patience`` seconds."""
        with self._wake:
            self._ending = True
            for call in self._insisted:
                call.at = 0.0
            self._wake.notify_all()
            self._wake.wait_for(lambda: not self._calling and not self._due(0.0), patience)
            left = len(self._insisted) + self._dropped.pop(ENDS, 0)
            self._ending = False
        if left:
            logger.warning(
                "%d ends are not recorded: the process ends before the store is back", left
            )

    def _add(self, call: _Call) -> bool:
        """Have it called when it is due; False where too many wait already."""
        with self._wake:
            waiting, what, most = (
                (self._insisted, ENDS, ENDS_WAITING)
                if call.at
                else (self._calls, "PENDING writes", WAITING)
            )
            if len(waiting) >= most:
                if what not in self._dropped:
                    logger.warning("%d %s wait for the store: no more are kept", most, what)
                self._dropped[what] = self._dropped.get(what, 0) + 1
                return False
            waiting.append(call)
            self._start()
            self._wake.notify_all()
        return True

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = _started("statekit-flusher", self._run) or self._thread

    def _run(self) -> None:
        this_thread.in_background = True
        while True:
            with self._wake:
                self._sleep()
                now, self._wakes_at = self._clock(), 0.0
                this_thread.last_chance = self._ending
                calls, due = self._take(now), [r for r, at in self._watched.items() if at <= now]
                self._calling = bool(calls)
            for call in calls:
                self._carry_out(call)
            with self._wake:
                self._calling = False
                self._say_dropped()
                self._wake.notify_all()
            for reports in due:
                self._flush(reports)

    def _sleep(self) -> None:
        while (due := self._next()) > (now := self._clock()):
            # Though what it was to wake for has come and gone it stays as it is: else each short
            # run would wake the thread again, and its own thread would wait for the interpreter.
            if not now < self._wakes_at <= due:
                self._wakes_at = due
            self._wake.wait(None if self._wakes_at == math.inf else self._wakes_at - now)

    def _next(self) -> float:
        """When something is due; infinity: nothing is watched, and nothing waits."""
        if self._calls:
            return 0.0
        moments = [*self._watched.values(), *(call.at for call in self._insisted)]
        return min(moments, default=math.inf)

    def _due(self, now: float) -> list[_Call]:
        return [*self._calls, *(call for call in self._insisted if call.at <= now)]

    def _take(self, now: float) -> list[_Call]:
        calls = self._due(now)
        self._calls.clear()
        self._insisted = [call for call in self._insisted if call.at > now]
        return calls

    def _say_dropped(self) -> None:
        if self._dropped and not self._insisted and not self._calls:
            for what, number in self._dropped.items():
                logger.warning("nothing waits for the store now; %d %s were dropped", number, what)
            self._dropped.clear()

    def _carry_out(self, call: _Call) -> None:
        try:
            call.function()
        except (StaleAttempt, AttemptEnded) as over:
            logger.info("%s; what was to be written late is not", over)
        except (*AWAY, ContentionTimeout) as exc:
            if call.insists:
                self._put_off(call, exc)
            else:
                log_failure(logger, "a write in the background failed")
        except BaseException:  # a receiver's sys.exit() must not end this thread
            logger.exception("a write in the background failed")
        finally:
            call.tried.set()

    def _put_off(self, call: _Call, exc: Exception) -> None:
        again = exc.again if isinstance(exc, StoreUnavailable) else None
        call.pause = min(call.pause * 2, LONGEST_PAUSE)
        call.at = self._clock() + (call.pause if again is None else again)
        self._add(call)

    def _flush(self, reports: Reports) -> None:
        with self._wake:
            if reports not in self._watched:
                return
            self._writing = reports
        began = time.thread_time()
        told = None
        try:
            told = _guarded(reports.flush)
        finally:
            spent = time.thread_time() - began
            with self._wake:
                self._writing = None
                if reports in self._watched:
                    # All runs share the budget: many runs are each written less often.
                    runs = len(self._watched)
                    # A first write also imports and connects: that is not what each will take.
                    longest = STRETCH * reports.interval * runs
                    pause = max(reports.interval, min(spent * runs / SHARE, longest))
                    self._watched[reports] = self._clock() + pause
                if callable(told):
                    self.tell(told)
                self._wake.notify_all()


class _Teller:
    """Another thread: makes one call after the other, and none where it is too slow."""

    def __init__(self, name: str, slow: str) -> None:
        self._name = name
        self._slow = slow
        self._queue: queue.Queue[Callable[[], object]] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        self._full = False

    def tell(self, function: Callable[[], object]) -> bool:
        """Call it later; False: not at all, for too many wait."""
        try:
            self._queue.put_nowait(function)
        except queue.Full:
            if not self._full:
                self._full = True
                logger.warning(self._slow)
            return False
        if self._thread is None or not self._thread.is_alive():
            self._thread = _started(f"statekit-{self._name}", self._run) or self._thread
        return True

    def _run(self) -> None:
        while True:
            _guarded(self._queue.get())
            self._full = self._full and not self._queue.empty()


def _started(name: str, run: Callable[[], None]) -> threading.Thread | None:
    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no more threads, or the interpreter ends
        logger.warning("%s is not done: no thread can be started", name, exc_info=True)
        return None
    return thread


def _guarded(function: Callable[[], object]) -> object:
    try:
        return function()
    except BaseException:
        # Also a hook's sys.exit(): it must not end this thread.
        logger.exception("a call in the background failed")
        return None


flushers: Final = PerProcess(Flusher)


def flusher() -> Flusher:
    """The flusher of this process."""
    return flushers.get()


def end_process() -> None:
    """The process ends: what still has to be written gets its last chance."""
    found = flushers.made.get(os.getpid())
    if found is not None:
        found.end()


atexit.register(end_process)
