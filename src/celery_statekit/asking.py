"""What somebody asks of a task from outside: to end, to wait, to go on."""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery, states
from celery.exceptions import TaskRevokedError

from celery_statekit.asked import CANCEL, PAUSE
from celery_statekit.backends.onewrite import one_write
from celery_statekit.errors import brief
from celery_statekit.leases import lease_ended, seconds_left, wait_for_renewal
from celery_statekit.record import TaskState
from celery_statekit.settings import Settings
from celery_statekit.stores.base import Beside
from celery_statekit.tracker import Answered

logger = logging.getLogger(__name__)


def cancel(
    app: Celery,
    id: str,
    reason: str = "",
    *,
    by: str = "",
    hard: bool = False,
    eager: bool = False,
    backend: Any = None,
) -> Answered:
    """Ask a task to end; where it is not running it has ended, for Celery too.

    Args:
        hard: also have its process killed, where the worker's pool can do that.
        backend: where its result is; None: nobody waits for it.
    """
    tracker = Settings.of(app).tracker_of(eager=eager)
    one = None if backend is None else one_write(backend, tracker.store)

    def revoked(state: TaskState) -> Beside | None:
        told = TaskRevokedError(state.reason)
        return None if one is None else one.to_store(id, told, states.REVOKED)

    beside = None if one is None else revoked
    state = tracker.read(id)
    if state.running and seconds_left(tracker.store, tracker.key(id), state) == 0.0:
        wait_for_renewal(tracker.terms)
        if seconds_left(tracker.store, tracker.key(id), state) == 0.0:
            # Nobody is there to be asked.
            tracker.lose(id, lambda now: now.version == state.version, reason=lease_ended(state))
    answered = tracker.ask(id, CANCEL, reason=reason, by=by, beside=beside)
    if answered.answer == "revoked" and one is None:
        _store_revoked(backend, answered.state)
    if hard and answered.state.running:
        app.control.revoke(id, terminate=True)
    return answered


def pause(app: Celery, id: str, reason: str = "", *, by: str = "", eager: bool = False) -> Answered:
    """Ask a task to wait until it is resumed."""
    tracker = Settings.of(app).tracker_of(eager=eager)
    return tracker.ask(id, PAUSE, reason=reason, by=by)


def resume(app: Celery, id: str, *, by: str = "", eager: bool = False) -> Answered:
    """Let a paused task go on."""
    return Settings.of(app).tracker_of(eager=eager).resume(id, by=by)


def _store_revoked(backend: Any, state: TaskState) -> None:
    if backend is None or not backend.persistent:
        return  # rpc:// can tell who waits only when the message comes
    try:
        backend.store_result(state.id, TaskRevokedError(state.reason), states.REVOKED)
    except Exception:
        # It is told when its message comes.
        logger.warning("who waits for %s was not told of its end", brief(state.id), exc_info=True)
