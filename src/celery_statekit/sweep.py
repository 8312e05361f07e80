"""The sweep: runs that are gone become LOST, and tasks that stay so are sent again or end.

Any number of sweepers may be at it: each step is one write, which only one of them can make. What
is found to be gone becomes LOST, first in the record; what is LOST longer than its time of grace,
and does not come again by the broker, is sent again or becomes FAILURE.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Final

from celery import Celery
from celery import states as celery_states

from celery_statekit.backends.onewrite import one_write, stored
from celery_statekit.breaker import log_failure, this_thread
from celery_statekit.chance import chance
from celery_statekit.deliveries import context_of, send_again
from celery_statekit.errors import (
    CorruptRecord,
    PoisonTask,
    StatekitError,
    TaskLost,
    brief,
    error_facts,
)
from celery_statekit.leases import lease_ended, seconds_left, wait_for_renewal
from celery_statekit.record import TaskState
from celery_statekit.settings import Settings, celery_state
from celery_statekit.states import ENDS, LOST, WAITING
from celery_statekit.stores.base import Enumerates, Found, kind_of
from celery_statekit.tracker import Tracker

logger = logging.getLogger(__name__)

#: How many records are looked at in one call of the store.
PAGE: Final = 100

#: How many runs may be lost one after the other where a task is to be sent again.
MOST_LOSSES: Final = 3


def most_losses(task: Any) -> int | None:
    """How many runs of ``task`` may be lost one after the other; None: any number."""
    most: int | None = task.max_attempts
    return MOST_LOSSES if most is None and task.on_lost == "requeue" else most


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep did: ids of tasks, each in one of them or in the first and another."""

    #: Whose run was found to be gone.
    lost: list[str] = field(default_factory=list)
    #: Sent again.
    requeued: list[str] = field(default_factory=list)
    #: Ended.
    failed: list[str] = field(default_factory=list)


def sweep(app: Celery) -> Swept:
    """See that no task of ``app`` says that it runs while nobody runs it.

    Raises:
        StoreError: the store cannot be asked.
        StoreNotConfigured: no store follows from the app's settings.
    """
    return _Sweep(app).sweep()


class _Sweep:
    def __init__(self, app: Celery) -> None:
        settings = Settings.of(app)
        self._app = app
        self._tracker = settings.tracker
        self._grace = settings.values.lost_grace
        self._lease = settings.values.lease
        self._swept = Swept()

    def sweep(self) -> Swept:
        store = self._tracker.store
        if self._tracker.terms is None or not isinstance(store, Enumerates):
            return self._swept
        kind = kind_of(self._tracker.key("id"))
        labels = store.count(kind)
        # First what was lost before: what is found now has its time of grace.
        for state in self._standing(store, kind, LOST, self._grace) if LOST in labels else ():
            if self._is_ours(state) and not self._acts_on(state) and not state.comes_again:
                self._fail(TaskLost(state.task, state.id, state.attempt, state.worker), state)
        gone = [
            state
            for label in labels
            if label not in ENDS | WAITING | {LOST}
            for state in self._standing(store, kind, label, self._lease)
            if self._is_gone(state)
        ]
        if gone:
            wait_for_renewal(self._tracker.terms)
        for state in gone:
            self._look(state)
        return self._swept

    def _standing(
        self, store: Enumerates, kind: str, label: str, seconds: float
    ) -> Iterator[TaskState]:
        """The tasks that have been in a state for so long; read again, page after page."""
        after: tuple[float, str] | None = None
        while True:
            page: list[Found] = store.find(
                kind, state=label, older=seconds, after=after, limit=PAGE
            )
            for found in page:
                state = _state_of(found)
                if state is not None:
                    yield state
            if len(page) < PAGE:
                return
            after = page[-1].since, page[-1].key

    def _is_gone(self, state: TaskState) -> bool:
        tracker = self._tracker
        return state.running and seconds_left(tracker.store, tracker.key(state.id), state) == 0.0

    def _look(self, state: TaskState) -> None:
        """The record says that a run goes on: see whether it does."""
        tracker = self._tracker
        if not self._is_gone(state):
            return
        if self._is_known_to_celery(state):
            return
        reason = lease_ended(state)
        lost = tracker.lose(state.id, lambda now: now.version == state.version, reason=reason)
        if lost is not None:
            logger.warning("%s[%s] is lost: %s", lost.task, brief(lost.id), reason)
            self._swept.lost.append(lost.id)
            self._acts_on(lost)

    def _is_known_to_celery(self, state: TaskState) -> bool:
        """Whether Celery knows how it ended; then the record says so too."""
        try:
            known = celery_state(self._app, state.id)
        except Exception:
            logger.debug("Celery cannot be asked about %s", brief(state.id), exc_info=True)
            return False
        if known.final:
            self._tracker.end_from_outside(
                state.id,
                state.task,
                known.state,
                reason="its worker was lost after it had told Celery",
                error=known.error,
                meant=lambda now: now.version == state.version,
            )
        return known.final

    def _is_ours(self, lost: TaskState) -> bool:
        """Whether this app has the task: others know what is to become of theirs."""
        return bool(getattr(self._app.tasks.get(lost.task), "is_stateful", False))

    def _acts_on(self, lost: TaskState) -> bool:
        """Do what need not wait for the time of grace; whether there was anything to do."""
        if not self._is_ours(lost):
            return False
        task = self._app.tasks[lost.task]
        most = most_losses(task)
        if most is not None and lost.losses >= most:
            facts = lost.task, lost.id, lost.attempt, lost.worker, lost.losses
            self._fail(PoisonTask(*facts), lost)
            return True
        return (
            task.on_lost == "requeue" and not lost.comes_again and self._is_sent_again(task, lost)
        )

    def _is_sent_again(self, task: Any, lost: TaskState) -> bool:
        try:
            if not send_again(task, lost):
                return False
        except Exception:
            logger.exception("%s[%s] cannot be sent again yet", lost.task, brief(lost.id))
            return True
        self._swept.requeued.append(lost.id)
        # Where a worker was quicker, it runs already.
        self._tracker.queue_again(lost, reason=f"sent again: {lost.reason}")
        return True

    def _fail(self, error: TaskLost, lost: TaskState) -> None:
        backend = self._app.tasks[lost.task].own_backend
        if end_lost(self._tracker, backend, error, context_of(lost)):
            logger.error("%s", error)
            self._swept.failed.append(lost.id)


def _state_of(found: Found) -> TaskState | None:
    try:
        return TaskState.from_record(found.record())
    except CorruptRecord:
        log_failure(logger, "%s is passed over", found.key)
        return None


def end_lost(tracker: Tracker, backend: Any, error: TaskLost, request: Any) -> bool:
    """FAILURE of a task that is LOST; its chord, its chain and its errbacks learn of it.

    Args:
        backend: Celery's own.
        request: the message, as far as it is known.

    Returns:
        Whether it has ended by this; False: a run has taken it up.
    """
    stores = not getattr(request, "ignore_result", False)
    beside = None
    one = one_write(backend, tracker.store) if stores else None
    if one is not None:
        beside = one.to_store(error.id, error, celery_states.FAILURE, None, request)
    outcome = tracker.end_from_outside(
        error.id,
        error.task,
        celery_states.FAILURE,
        reason=error.sentence(),
        error=error_facts(error),
        meant=lambda now: now.state == LOST and now.attempt == error.attempt,
        beside=None if beside is None else (lambda _: beside),
    )
    if outcome == "moved":
        try:
            with nullcontext() if beside is None else stored(error.id):
                backend.mark_as_failure(error.id, error, request=request, store_result=stores)
        except Exception:
            logger.exception("who waits for %s is not told of its end", brief(error.id))
    return outcome == "moved"


class Sweeper:
    """Sweeps now and then, in a thread of a worker's main process."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._ends = threading.Event()
        self._seconds = Settings.of(app).values.lease
        self._thread = threading.Thread(target=self._run, name="statekit-sweep", daemon=True)

    def start(self) -> None:
        """Sweep about once in the time of a lease."""
        self._thread.start()

    def stop(self) -> None:
        """Sweep no more."""
        self._ends.set()

    def _run(self) -> None:
        this_thread.in_background = True
        # The workers of a deployment start at once; they need not all sweep at once.
        while not self._ends.wait(chance.uniform(0.5, 1.0) * self._seconds):
            self._sweep()

    def _sweep(self) -> None:
        try:
            sweep(self._app)
        except StatekitError:
            log_failure(logger, "lost tasks are not looked for")
        except Exception:
            logger.exception("lost tasks are not looked for")
