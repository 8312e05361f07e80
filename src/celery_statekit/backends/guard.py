"""The app's own result backend, with our record written before each end that Celery reports.

Celery's tracer and the worker's main process tell the backend how a run went, through
``task.backend.mark_as_*`` (celery 5.7 app/trace.py, worker/request.py): success after its links
were published and before its result is stored, failure, loss of the worker, time limits,
revocation. That is the one place all of them pass, in whatever process, so that is where the
record is written, and a refused write reports to no chord and fires no errback.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from billiard.exceptions import SoftTimeLimitExceeded, Terminated, WorkerLostError
from celery import VERSION as CELERY
from celery import states
from celery.exceptions import Retry, TaskRevokedError
from kombu.utils.encoding import str_to_bytes

from celery_statekit.asked import CANCEL, Asked
from celery_statekit.attempt import Attempt
from celery_statekit.backends.onewrite import Verdict, one_write, stored
from celery_statekit.backends.standing import tell_standing
from celery_statekit.backends.whose import no_run, run_of
from celery_statekit.breaker import AWAY, log_failure
from celery_statekit.errors import (
    AmbiguousWrite,
    AttemptEnded,
    ContentionTimeout,
    StaleAttempt,
    StatekitError,
    brief,
    error_facts,
    sentence,
)
from celery_statekit.flusher import PATIENCE, flusher
from celery_statekit.record import TaskState
from celery_statekit.settings import Settings
from celery_statekit.stores.base import Beside
from celery_statekit.tracker import Outcome

logger = logging.getLogger(__name__)

#: What passes: the same write is tried again later.
LATER: Final = (*AWAY, ContentionTimeout)
#: Seconds for which a run leaves it to others to tell of the end that they have recorded.
STANDING: Final = 0.5


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

    def end_run(self, request: Any, result: Any) -> None:
        """The run has returned, and nothing leaves it before its end is stored: SUCCESS.

        Celery's tracer, which is told next, only reports it. A run that may not end is stopped
        here, like one whose fence is checked: nothing of it is reported as a success.

        Raises:
            StaleAttempt: a newer run has taken over.
            AttemptEnded: the task was ended from outside.
            EncodeError: Celery cannot store the result.
        """
        report = request.statekit_report
        report.returned = (result,)
        beside = None if report.ignored else self._result_to_store(request, result)
        mark = partial(self._backend.mark_as_done, request.id, result, request)
        report.ended = self._leave(request, beside, mark, states.SUCCESS)

    def tell_standing(self, request: Any) -> None:
        """The task of ``request`` has ended: who waits for it, and its chord, learn how.

        The run that ended it, or who ended it from outside, may have died before it told anybody.
        """
        tell_standing(self._backend, self._task, request.id, request, patience=STANDING)

    def mark_as_done(
        self,
        task_id: str,
        result: Any,
        request: Any = None,
        store_result: bool = True,  # noqa: FBT001, FBT002 - Celery's signature
        state: str = states.SUCCESS,
    ) -> None:
        """SUCCESS, if this is the current run and its result can be stored."""
        mark = partial(self._backend.mark_as_done, task_id, result, request, store_result, state)
        verdict: Verdict = "recorded"
        if _is_run(request):
            report = request.statekit_report
            if report.retried:
                return  # retry(throw=False): the next attempt says how the task ends
            if report.ended is None:
                report.returned = (result,)
                stores = store_result and not request.ignore_result
                beside = self._result_to_store(request, result) if stores else None
                self._end_run(request, partial(self._leave, request, beside, mark, state))
            verdict = report.ended
        self._report(verdict, task_id, mark)

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
        facts: dict[str, Any] = {"reason": sentence(exc), "error": error_facts(exc)}
        if state == states.REVOKED:
            facts = {"reason": str(exc), "error": None}
        meta = (task_id, exc, state, traceback, request) if store_result else None
        mark = partial(
            self._backend.mark_as_failure,
            task_id,
            exc,
            traceback,
            request=request,
            store_result=store_result,
            call_errbacks=call_errbacks,
            state=state,
        )
        if state == states.REVOKED:
            mark = partial(self._mark_cancelled, request, task_id, mark)
        if not _is_run(request):
            if isinstance(exc, WorkerLostError) and is_sent_again(self._task):
                return  # it is LOST, and a sweep sends it again
            meant = run_of(self._task, request, exc)
            verdict = self._end_from_outside(request, meta, task_id, state, meant=meant, **facts)
        elif request.statekit_report.retried:
            return
        elif request.statekit_report.ended == "waits":
            return  # the end was decided, and is written with its result as soon as may be
        else:
            beside = self._to_store(request, meta)
            leave = partial(self._leave, request, beside, mark, state, **facts)
            verdict = self._end_run(request, leave)
        self._report(verdict, task_id, mark)

    def mark_as_revoked(
        self,
        task_id: str,
        reason: str = "",
        request: Any = None,
        store_result: bool = True,  # noqa: FBT001, FBT002
        state: str = states.REVOKED,
    ) -> None:
        """REVOKED before it began, or ended with its process."""
        meant: Callable[[TaskState], bool] = no_run
        mark = partial(self._backend.mark_as_revoked, task_id, reason, request, store_result, state)
        if reason == "terminated":
            meant = run_of(self._task, request, Terminated(reason))
            cancelled = self._cancel_of(task_id)
            if cancelled is not None:
                # By ``cancel(hard=True)``: all that hangs on it ends too.
                reason = cancelled.reason or reason
                told = partial(
                    self._backend.mark_as_failure,
                    task_id,
                    TaskRevokedError(reason),
                    request=request,
                    store_result=store_result,
                    state=state,
                )
                mark = partial(self._mark_cancelled, request, task_id, told)
        meta = (task_id, TaskRevokedError(reason), state, None, request) if store_result else None
        verdict = self._end_from_outside(
            request, meta, task_id, state, reason=str(reason), meant=meant
        )
        self._report(verdict, task_id, mark)

    def _mark_cancelled(self, request: Any, task_id: str, mark: Callable[[], object]) -> None:
        """Have Celery tell all that hangs on a cancelled task; then nobody else need."""
        mark()
        settings = Settings.of(self._task.app)
        eager = bool(getattr(request, "is_eager", False))

        def write() -> None:
            settings.tracker_of(eager=eager).take_cancelled(task_id)

        flusher().call(write, PATIENCE, insists=True)

    def _cancel_of(self, task_id: str) -> Asked | None:
        """The cancel that was asked of a run, where the store says it in a moment."""
        found: list[Asked | None] = []

        def read() -> None:
            found.append(Settings.of(self._task.app).tracker.read(task_id).asked)

        flusher().call(read, PATIENCE)
        asked = found[0] if found else None
        return asked if asked is not None and asked.what == CANCEL else None

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
        verdict: Verdict
        if _is_run(request):
            if request.statekit_report.retried:
                return None  # stored before the message was sent
            verdict = self._settled(request, partial(self._confirm, request))
        else:
            if isinstance(exc, Retry) and not self._task.acks_late:
                # A worker that ends gives up a run whose message was acknowledged: it is LOST, for
                # nothing comes again (celery 5.7 worker/request.py:446).
                return None
            cause = exc.exc if isinstance(exc, Retry) and exc.exc else exc
            verdict = self._end_from_outside(
                request,
                (task_id, exc, state, traceback, request),
                task_id,
                state,
                reason=sentence(exc),
                error=error_facts(cause),
                meant=run_of(self._task, request, exc),
            )
        mark = self._backend.mark_as_retry
        mark = partial(mark, task_id, exc, traceback, request, store_result, state)
        return self._report(verdict, task_id, mark)

    # --- what Celery stores, beside the record ------------------------------------------------

    def _result_to_store(self, request: Any, result: Any) -> Beside | None:
        """What Celery stores of a result; an error where it cannot.

        Raised here, the tracer turns it into a FAILURE; raised by Celery's own write it would come
        after our SUCCESS (celery 5.7 app/trace.py:599-612).
        """
        from celery.backends.base import BaseKeyValueStoreBackend, DisabledBackend  # noqa: PLC0415 - loaded by then

        backend = self._backend
        if isinstance(backend, DisabledBackend):
            return None
        one = one_write(backend, request.statekit.tracker.store)
        if one is not None:
            return one.to_store(request.id, result, states.SUCCESS, request=request)
        # Celery's database backend pickled its results before 5.7.
        if isinstance(backend, BaseKeyValueStoreBackend) or CELERY >= (5, 7):
            backend.encode(backend.encode_result(result, states.SUCCESS))
        return None

    def _to_store(self, request: Any, meta: tuple[Any, ...] | None) -> Beside | None:
        """What Celery stores, given as the arguments of its ``store_result``; None if it cannot."""
        if meta is None:
            return None
        eager = bool(getattr(request, "is_eager", False))
        try:
            store = Settings.of(self._task.app).tracker_of(eager=eager).store
            one = one_write(self._backend, store)
            return None if one is None else one.to_store(*meta)
        except SoftTimeLimitExceeded:
            raise
        except Exception:
            # Celery's own write says what is wrong with it.
            logger.debug("%s cannot be stored", meta[0], exc_info=True)
            return None

    # --- the record, and then what Celery makes of the end ------------------------------------

    def _leave(
        self,
        request: Any,
        beside: Beside | None,
        mark: Callable[[], object],
        state: str,
        **facts: Any,
    ) -> Verdict:
        """Write the end into the record; where the store is away that is done later.

        What is written beside the record waits with it, and so does ``mark``, Celery's report of
        it: if Celery stored something meanwhile, or failed to, there would be two ends.

        Raises:
            StaleAttempt, AttemptEnded: this run may not.
        """
        attempt: Attempt = request.statekit
        request.statekit_report.close()
        told = None if beside is None else (lambda _: beside)

        def write() -> Verdict:
            attempt.leave(state, beside=told, **facts)
            return "recorded" if beside is None else "stored"

        try:
            verdict = write()
        except (StaleAttempt, AttemptEnded):
            raise
        except StatekitError as exc:
            level = logging.DEBUG if isinstance(exc, AWAY) else logging.WARNING
            logger.log(level, "the end of %s[%s] waits: %s", attempt.task, brief(attempt.id), exc)
            if beside is not None and isinstance(exc, LATER):
                if isinstance(exc, AmbiguousWrite) and self._is_written(beside):
                    return "stored"
                if flusher().insist(partial(self._leave_late, request, beside, write, mark)):
                    return "waits"
            # It may have been applied for all that: then what stands is our own.
            request.statekit_doubtful = beside and beside.value
            flusher().insist(write)
            return "recorded"
        request.statekit_report.close()
        return verdict

    def _leave_late(
        self,
        request: Any,
        beside: Beside,
        write: Callable[[], Verdict],
        mark: Callable[[], object],
    ) -> None:
        """The end, as it was decided when the run was over; then what Celery makes of it."""

        def written() -> Verdict:
            try:
                return write()
            except AttemptEnded:
                if self._is_written(beside):
                    return "stored"  # the first time, and its reply was lost
                raise

        try:
            verdict = self._settled(request, written)
        except LATER:
            raise
        except StatekitError:
            log_failure(logger, "the end of %s is not recorded", brief(request.id))
            verdict = "recorded"
        self._report(verdict, request.id, mark)

    def _is_written(self, beside: Beside) -> bool:
        """Whether Celery has just this: then the record, written at once with it, is too."""
        try:
            return bool(str_to_bytes(self._backend.get(beside.key)) == str_to_bytes(beside.value))
        except SoftTimeLimitExceeded:
            raise
        except Exception:  # noqa: BLE001 - it is away as the store is
            return False

    def _end_run(self, request: Any, leave: Callable[[], Verdict]) -> Verdict:
        report = request.statekit_report
        report.ended = self._settled(request, leave)
        verdict: Verdict = report.ended
        return verdict

    def _confirm(self, request: Any) -> Verdict:
        """RETRY is recorded already; Celery may store it too if this is the current run."""
        request.statekit_report.close()
        try:
            request.statekit.confirm()
        except (StaleAttempt, AttemptEnded):
            raise
        except StatekitError:
            log_failure(logger, "the fence of %s was not checked", brief(request.id))
        return "recorded"

    def _settled(self, request: Any, write: Callable[[], Verdict]) -> Verdict:
        try:
            return write()
        except StaleAttempt as stale:
            logger.warning("%s; nothing of it is stored", stale)
            return "refused"
        except AttemptEnded:
            self.tell_standing(request)
            return "refused"

    def _end_from_outside(
        self,
        request: Any,
        meta: tuple[Any, ...] | None,
        task_id: str,
        state: str,
        **facts: Any,
    ) -> Verdict:
        """As :meth:`_leave`, for a run of another process.

        The worker's main process must not wait for a store: it would miss broker heartbeats. It
        is written in the background; Celery's own report waits for it a moment only.
        """
        outcome: list[Outcome] = []
        task = self._task
        beside = self._to_store(request, meta)
        told = None if beside is None else (lambda _: beside)
        eager = bool(getattr(request, "is_eager", False))

        def write() -> None:
            tracker = Settings.of(task.app).tracker_of(eager=eager)
            became = tracker.end_from_outside(task_id, task.name, state, beside=told, **facts)
            if became == "ended":
                tell = partial(tell_standing, told=None if meta is None else meta[1])
                flusher().aside(partial(tell, self._backend, task, task_id, request))
            outcome.append(became)

        flusher().call(write, PATIENCE, insists=True)
        if outcome and outcome[0] != "moved":
            return "refused"
        return "stored" if outcome and beside is not None else "recorded"

    def _report(self, verdict: Verdict, task_id: str, mark: Callable[[], Any]) -> Any:
        """Let Celery store and report an end as far as it may."""
        if verdict in ("refused", "waits"):
            return None
        if verdict == "recorded":
            return mark()
        with stored(task_id):
            return mark()


def is_sent_again(task: Any) -> bool:
    """Whether a sweep sends ``task`` again where its run is lost."""
    return bool(task.on_lost == "requeue" and not task.acks_late)


def _is_run(request: Any) -> bool:
    return getattr(request, "statekit", None) is not None
