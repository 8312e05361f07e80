"""The app's own result backend, with our record written before each end that Celery reports.

Celery's tracer and the worker's main process tell the backend how a run went, through
``task.backend.mark_as_*`` (celery 5.7 app/trace.py, worker/request.py): success after its links
were published and before its result is stored, failure, loss of the worker, time limits,
revocation. That is the one place all of them pass, in whatever process, so that is where the
record is written, and a refused write reports to no chord and fires no errback.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from typing import Any, Final

from billiard.exceptions import Terminated, WorkerLostError
from celery import VERSION as CELERY
from celery import states
from celery.exceptions import Retry

from celery_statekit.errors import AttemptEnded, StaleAttempt, StatekitError, brief
from celery_statekit.flusher import flusher
from celery_statekit.record import TaskState
from celery_statekit.settings import Settings
from celery_statekit.tracker import LEAVING, Attempt, Outcome

logger = logging.getLogger(__name__)

#: Seconds for which a publish or the worker's main process waits for our record.
PATIENCE: Final = 0.25


def error_facts(exc: object) -> dict[str, str]:
    """``{"type", "message"}`` of an exception; nothing of it is ever made into one again."""
    try:
        message = str(exc)
    except Exception:  # noqa: BLE001 - a foreign __str__ may raise anything
        message = "its message cannot be shown"
    return {"type": type(exc).__name__, "message": message}


def sentence(exc: object) -> str:
    """An exception in one line: ``ValueError: bad row``."""
    facts = error_facts(exc)
    return f"{facts['type']}: {facts['message']}" if facts["message"] else facts["type"]


class GuardedBackend:
    """``backend`` as ``task`` sees it: everything is its own, but the reports of an end."""

    def __init__(self, backend: Any, task: Any) -> None:
        self._backend = backend
        self._task = task

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Copied or sent elsewhere it is the backend itself.
        return self._backend.__reduce_ex__(protocol)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        # Celery asks isinstance(task.backend, ...) to learn what it can do.
        return type(self._backend)

    def mark_as_done(
        self,
        task_id: str,
        result: Any,
        request: Any = None,
        store_result: bool = True,  # noqa: FBT001, FBT002 - Celery's signature
        state: str = states.SUCCESS,
    ) -> None:
        """SUCCESS, if this is the current run and its result can be stored."""
        attempt: Attempt | None = getattr(request, "statekit", None)
        # After retry(throw=False) the next attempt says how the task ends.
        if attempt is not None and not request.statekit_report.retried:
            if store_result and not request.ignore_result:
                self._check_encodable(result)
            if not self._run_may_end(request, lambda: attempt.leave(state)):
                return
        self._backend.mark_as_done(task_id, result, request, store_result, state)

    def mark_as_failure(
        self,
        task_id: str,
        exc: BaseException,
        traceback: Any = None,
        request: Any = None,
        store_result: bool = True,  # noqa: FBT001, FBT002
        call_errbacks: bool = True,  # noqa: FBT001, FBT002
        state: str = states.FAILURE,
    ) -> None:
        """FAILURE, of a run or of one whose process is gone."""
        attempt: Attempt | None = getattr(request, "statekit", None)
        facts, reason = error_facts(exc), sentence(exc)
        if attempt is not None:
            may = self._run_may_end(
                request, lambda: attempt.leave(state, reason=reason, error=facts)
            )
        else:
            may = self._outsider_may_end(
                request,
                task_id,
                state,
                reason=reason,
                error=facts,
                meant=self._run_of(request, exc),
            )
        if may:
            self._backend.mark_as_failure(
                task_id,
                exc,
                traceback,
                request=request,
                store_result=store_result,
                call_errbacks=call_errbacks,
                state=state,
            )

    def mark_as_revoked(
        self,
        task_id: str,
        reason: str = "",
        request: Any = None,
        store_result: bool = True,  # noqa: FBT001, FBT002
        state: str = states.REVOKED,
    ) -> None:
        """REVOKED before it began, or ended with its process."""
        meant = self._run_of(request, Terminated(reason)) if reason == "terminated" else _no_run
        if self._outsider_may_end(request, task_id, state, reason=str(reason), meant=meant):
            self._backend.mark_as_revoked(
                task_id, reason, request=request, store_result=store_result, state=state
            )

    def mark_as_retry(
        self,
        task_id: str,
        exc: BaseException,
        traceback: Any = None,
        request: Any = None,
        store_result: bool = True,  # noqa: FBT001, FBT002
        state: str = states.RETRY,
    ) -> Any:
        """RETRY, unless the next run has begun: Celery publishes first and stores afterwards."""
        attempt: Attempt | None = getattr(request, "statekit", None)
        if attempt is not None and request.statekit_report.retried:
            return None  # stored before the message was sent
        if attempt is not None:
            may = self._run_may_end(request, attempt.confirm)
        else:
            facts = error_facts(exc.exc if isinstance(exc, Retry) and exc.exc else exc)
            may = self._outsider_may_end(
                request,
                task_id,
                state,
                reason=sentence(exc),
                error=facts,
                meant=self._run_of(request, exc),
            )
        if may:
            return self._backend.mark_as_retry(
                task_id, exc, traceback, request=request, store_result=store_result, state=state
            )
        return None

    def _check_encodable(self, result: Any) -> None:
        # Raised here, the tracer turns it into a FAILURE; raised by Celery's own write it would
        # come after our SUCCESS (celery 5.7 app/trace.py:599-612).
        from celery.backends.base import BaseKeyValueStoreBackend, DisabledBackend  # noqa: PLC0415 - loaded by then

        if isinstance(self._backend, DisabledBackend):
            return
        # Celery's database backend pickled its results before 5.7.
        if isinstance(self._backend, BaseKeyValueStoreBackend) or CELERY >= (5, 7):
            self._backend.encode(self._backend.encode_result(result, states.SUCCESS))

    def _run_may_end(self, request: Any, write: Callable[[], object]) -> bool:
        """Write the record; whether Celery may store and report the same."""
        attempt: Attempt = request.statekit
        request.statekit_report.close()
        try:
            write()
        except StaleAttempt as stale:
            logger.warning("%s; nothing of it is stored", stale)
            return False
        except AttemptEnded:
            return not self._celery_knows_end(attempt.id)
        except StatekitError as exc:
            logger.warning("the end of %s[%s] waits: %s", attempt.task, brief(attempt.id), exc)
            flusher().insist(write)
        else:
            request.statekit_report.close()
        return True

    def _outsider_may_end(self, request: Any, task_id: str, state: str, **facts: Any) -> bool:
        """As :meth:`_run_may_end`, for a run of another process.

        The worker's main process must not wait for a store: it would miss broker heartbeats. It
        is written in the background; Celery's own report waits for it a moment only.
        """
        outcome: list[Outcome] = []
        task = self._task
        eager = bool(getattr(request, "is_eager", False))

        def write() -> None:
            tracker = Settings.of(task.app).tracker_of(eager=eager)
            outcome.append(tracker.end_from_outside(task_id, task.name, state, **facts))

        flusher().call(write, PATIENCE)
        if outcome == ["another run"]:
            return False
        return outcome != ["ended"] or not self._celery_knows_end(task_id)

    def _celery_knows_end(self, task_id: str) -> bool:
        """Whether a waiter would learn of the end; a record alone would leave it waiting."""
        try:
            return self._backend.get_state(task_id) in states.READY_STATES
        except Exception:  # noqa: BLE001 - a backend that cannot say may store again
            return False

    def _run_of(self, request: Any, exc: BaseException) -> Callable[[TaskState], bool]:
        """Which run the worker's main process speaks of: one of its own node.

        A lost worker's process is gone; where it lives, and does not leave, another run of the
        same task is meant. Billiard 4.3 reports an exit before the process has ended.
        """
        if request is not None and request is self._task.request_stack.top:
            return _no_run  # a before_start has raised
        node = getattr(request, "hostname", None)

        def meant(state: TaskState) -> bool:
            host, _, pid = state.worker.rpartition(":")
            if node is None or (host and host != node):
                return False
            if not isinstance(exc, WorkerLostError) or state.reason.startswith(LEAVING):
                return True
            return not (pid.isdigit() and _lives(int(pid)))

        return meant


def _no_run(_: TaskState) -> bool:
    """What speaks of a message that was never run does not speak of a run."""
    return False


def _lives(pid: int) -> bool:
    if pid == os.getpid():
        return False  # a pool of threads: it is this process that reports
    try:
        os.kill(pid, 0)
    except OSError as exc:
        return exc.errno == errno.EPERM
    return True
