"""Telling of an end that stands in the record, where Celery may not know of it."""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from celery import states
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError

from celery_statekit.backends.onewrite import OneWrite, stored
from celery_statekit.errors import ResultLost, brief, error_facts
from celery_statekit.record import TaskState
from celery_statekit.settings import Settings

logger = logging.getLogger(__name__)

#: Seconds for which a run that was cancelled is left alone to tell all that hangs on it.
TELLING: Final = 2.0


def tell_standing(
    backend: Any,
    task: Any,
    task_id: str,
    request: Any,
    *,
    patience: float = 0.0,
    told: BaseException | None = None,
) -> None:
    """See that a waiter, and the chord, of a task that has ended learn how it has ended.

    Celery gets the end that is recorded, never another one: a record alone would leave the waiter
    waiting. Where it was cancelled before its message came, all that hangs on it ends here, once. Nothing is stored where Celery keeps no result, or cannot say whether it knows one.

    Args:
        backend: Celery's own.
        patience: seconds for which it is left to whoever recorded the end.
        told: the error that Celery speaks of; the waiter gets itself where it is the recorded one.
    """
    try:
        if _end_cancelled(backend, task, task_id, request):
            return
        if not _is_stored(backend, task, request) or _is_known(backend, task_id, patience):
            if isinstance(backend, OneWrite):
                backend.report_standing(task_id, request)
            return
        state = Settings.of(task.app).tracker.read(task_id)
        if state.final and not state.forgotten:
            _tell(backend, state, request, told)
    except SoftTimeLimitExceeded:
        raise
    except Exception:
        logger.warning("who waits for %s was not told of its end", brief(task_id), exc_info=True)


def _end_cancelled(backend: Any, task: Any, task_id: str, request: Any) -> bool:
    """End chain, chord and errbacks of a task that was cancelled, and whose message comes now."""
    if request is None or getattr(request, "is_eager", False):
        return False
    tracker = Settings.of(task.app).tracker
    state = tracker.read(task_id)
    deadline = time.monotonic() + TELLING
    # Its run may be telling: whoever takes that over has to know that it is dead.
    while state.attempt and state.awaits_message and time.monotonic() < deadline:
        time.sleep(0.05)
        state = tracker.read(task_id)
    if not state.awaits_message or tracker.take_cancelled(task_id) is None:
        return False
    told = TaskRevokedError(state.reason)
    stores = not vars(request).get("ignore_result", task.ignore_result)
    if stores and isinstance(backend, OneWrite):
        # Nothing happens where who cancelled it has stored it; what follows stores it elsewhere.
        backend.store_result(task_id, told, states.REVOKED, request=request)
    with stored(task_id):
        backend.mark_as_failure(
            task_id, told, request=request, store_result=stores, state=states.REVOKED
        )
    return True


def _tell(backend: Any, state: TaskState, request: Any, told: BaseException | None) -> None:
    if state.state == states.REVOKED:
        backend.mark_as_revoked(state.id, state.reason, request)
    elif state.state == states.SUCCESS:
        report = getattr(request, "statekit_report", None)
        if report is not None and report.returned and report.attempt.number == state.attempt:
            backend.mark_as_done(state.id, *report.returned, request)
        else:
            backend.mark_as_failure(state.id, ResultLost(state.task, state.id), request=request)
    elif told is not None and state.error == error_facts(told):
        backend.mark_as_failure(state.id, told, request=request)
    else:
        error = state.error or {"type": state.state, "message": state.reason}
        meta = {"exc_type": error["type"], "exc_message": [error["message"]]}
        backend.mark_as_failure(state.id, backend.exception_to_python(meta), request=request)


def _is_stored(backend: Any, task: Any, request: Any) -> bool:
    """Whether Celery stores a result that is waited for, and can say whether it has."""
    from celery.backends.base import DisabledBackend  # noqa: PLC0415 - loaded by then

    if isinstance(backend, DisabledBackend) or not backend.persistent:
        return False  # rpc:// sends a result once, and forgets it
    if getattr(request, "is_eager", False):
        return False
    given = {} if request is None else vars(request)
    return not given.get("ignore_result", task.ignore_result)


def _is_known(backend: Any, task_id: str, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while backend.get_state(task_id) not in states.READY_STATES:
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True
