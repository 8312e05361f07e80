"""Who is alive: the leases of the runs of this process, and what is left of that of another.

A run counts as alive for the seconds of its lease from when its state was last entered; one that
goes on for longer is renewed by a thread of its process. Under prefork a task may hold the
interpreter of its child for long, so the worker's main process renews for its children too.

It is no bootstep and no timer of Celery's: an outage of the broker stops those for longer than the
outage, and a warm shutdown while tasks still run (celery 5.7 worker/consumer/consumer.py).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple

from celery_statekit.breaker import Breaker, log_failure
from celery_statekit.errors import StatekitError
from celery_statekit.per_process import PerProcess
from celery_statekit.record import TaskState
from celery_statekit.stores.base import Renews, Store

logger = logging.getLogger(__name__)

#: Seconds until leases are renewed again that could not be.
AGAIN: Final = 1.0


@dataclass(frozen=True, eq=False, slots=True)
class Terms:
    """On which terms the runs of an app hold their leases."""

    store: Renews
    breaker: Breaker
    #: Seconds for which a lease is given.
    seconds: float
    #: Seconds between two renewals.
    renewal: float


class Lease(NamedTuple):
    """One run's."""

    terms: Terms
    #: Of the task's record.
    key: str
    #: Node name and process id of the run.
    owner: str


def seconds_left(store: Store, key: str, state: TaskState) -> float | None:
    """Seconds for which the run of ``state`` counts as alive; 0.0: its lease has ended.

    None where that cannot be said: it holds none, or the store keeps none.

    Raises:
        StoreError: the store cannot be asked.
    """
    if state.lease is None or not isinstance(store, Renews):
        return None
    return store.left(key, state.worker, state.lease)


def lease_ended(state: TaskState) -> str:
    """Why the run of ``state`` is LOST, in words."""
    return f"no sign of life of {state.worker} for {state.lease or 0.0:g} s"


def wait_for_renewal(terms: Terms | None) -> None:
    """Who lives has renewed when this returns, if the store takes renewals.

    One that was away for longer than a lease has taken none: what ends then is looked at twice.
    """
    if terms is not None:
        time.sleep(min(terms.renewal, AGAIN) * 2)


class Renewer:
    """The thread that renews; a daemon, one a process (see :func:`renewer`)."""

    def __init__(self) -> None:
        self._held: dict[int, Lease] = {}
        #: What says which leases of other processes are renewed here, and how often, in seconds.
        self._others: list[tuple[Callable[[], Iterable[Lease]], float]] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        #: Ends the thread's pause, and when that ends by itself.
        self._wake = threading.Event()
        self._due = math.inf

    def hold(self, lease: Lease) -> Callable[[], None]:
        """From now on ``lease`` is renewed; a run that is over before that costs nothing.

        Returns:
            What ends that; calling it twice is allowed.
        """
        token = id(lease)
        self._held[token] = lease
        self._start(lease.terms.renewal)

        def drop() -> None:
            self._held.pop(token, None)

        return drop

    def holds(self, lease: Lease) -> bool:
        """Whether another run of this process holds the lease of the same key and owner."""
        return any(
            other.key == lease.key and other.owner == lease.owner and other is not lease
            for other in [*self._held.values()]
        )

    def hold_for(self, others: Callable[[], Iterable[Lease]], renewal: float) -> Callable[[], None]:
        """Every ``renewal`` seconds renew what ``others`` says too, asked anew each time.

        Returns:
            What ends that.
        """
        entry = (others, renewal)
        self._others.append(entry)
        self._start(renewal)

        def drop() -> None:
            with suppress(ValueError):
                self._others.remove(entry)

        return drop

    def _start(self, renewal: float) -> None:
        if self._thread is not None:
            if time.monotonic() + renewal < self._due:
                self._wake.set()
            return
        with self._lock:
            if self._thread is None:
                self._due = time.monotonic() + renewal
                thread = threading.Thread(target=self._run, name="statekit-leases", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no more threads, or the interpreter ends
                    logger.warning("no thread can be started: leases end", exc_info=True)
                else:
                    self._thread = thread

    def _run(self) -> None:
        while True:
            if self._wake.wait(max(self._due - time.monotonic(), 0.0)):
                self._wake.clear()
            try:
                pause = self.renew()
            except BaseException:
                logger.exception("leases could not be renewed")
                pause = AGAIN
            self._due = time.monotonic() + pause
            if pause == math.inf and self._ends():
                return

    def _ends(self) -> bool:
        # Said first, then looked at again: whoever holds a lease meanwhile sees one of both.
        thread, self._thread = self._thread, None
        with self._lock:
            if self._thread is not None:
                return True
            if not self._held and not self._others:
                return True
            self._thread, self._due = thread, 0.0
        return False

    def renew(self) -> float:
        """Renew all that is held, in one batch for each store.

        Returns:
            Seconds until that is due again; infinity where nothing is held.
        """
        leases, pause = [*self._held.values()], math.inf
        for others, renewal in self._others:
            pause = min(pause, renewal)
            with suppress(RuntimeError):  # a set that another thread has changed meanwhile
                leases += others()
        batches: defaultdict[Terms, set[tuple[str, str]]] = defaultdict(set)
        for terms, key, owner in leases:
            batches[terms].add((key, owner))
            pause = min(pause, terms.renewal)
        for terms, batch in batches.items():
            if not _is_renewed(terms, batch):
                pause = min(pause, AGAIN)
        return pause


def _is_renewed(terms: Terms, batch: Collection[tuple[str, str]]) -> bool:
    try:
        terms.breaker.call(lambda: terms.store.renew(batch, terms.seconds), urgent=True)
    except StatekitError:
        log_failure(logger, "%d leases are not renewed", len(batch))
        return False
    return True


_renewers: Final = PerProcess(Renewer)


def renewer() -> Renewer:
    """The renewer of this process, which holds its runs alone."""
    return _renewers.get()
