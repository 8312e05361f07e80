"""What the flusher writes of one run: its progress, and what Celery's result backend shows of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from traceback import format_exc
from typing import Any

from celery import VERSION as CELERY
from celery import states as celery_states
from celery.exceptions import Reject, SoftTimeLimitExceeded, TaskRevokedError

from celery_statekit.attempt import Attempt, content_of
from celery_statekit.backends.onewrite import OneWrite, Verdict, one_write
from celery_statekit.breaker import AWAY
from celery_statekit.errors import (
    AttemptEnded,
    ReportedFailure,
    StaleAttempt,
    StatekitError,
    brief,
    error_facts,
    sentence,
)
from celery_statekit.flusher import flusher
from celery_statekit.progress import Progress
from celery_statekit.record import TaskState
from celery_statekit.settings import Settings
from celery_statekit.states import LIFECYCLE, WAITING
from celery_statekit.stores.base import Beside
from celery_statekit.tracker import BesideOf

logger = logging.getLogger(__name__)


class Report:
    """What the flusher writes of one run: its progress, and its state in Celery's backend."""

    def __init__(self, task: Any, request: Any, attempt: Attempt, settings: Settings) -> None:
        self.interval = settings.values.progress_interval
        #: Whether the run has come to the task's own code, for its ``__call__`` to know.
        self.entered = False
        #: Whether another task took its id, or its next attempt's message was sent.
        self.replaced = self.retried = False
        #: What became of its end, where that was written when it returned.
        self.ended: Verdict | None = None
        #: What it has returned, alone in a tuple.
        self.returned: tuple[Any, ...] = ()
        #: The exception that a retry is sent for.
        self.cause: BaseException | None = None
        #: State and meta of an end that ``update_state`` reported.
        self.reported: tuple[str, Any] | None = None
        self._task = task
        self._request = request
        self.attempt = attempt
        self._status = settings.values.status
        self._told: Progress | None = None
        self._meta_given: Any = None
        self._meta_progress: Progress | None = None
        self._failed = False
        #: From when on a state that is entered is shown at once.
        self._next = 0.0
        #: Whether Celery stores no result of it.
        self.ignored = bool(
            request.ignore_result if "ignore_result" in vars(request) else task.ignore_result
        )
        self._mirrors = not self.ignored and not request.is_eager
        self._own_backend = task.own_backend
        self._one_write = one_write(self._own_backend, attempt.tracker.store)

    def __str__(self) -> str:
        return f"{self.attempt.task}[{brief(self.attempt.id)}]"

    def show(self, meta: Any) -> None:
        """Show ``meta`` as it is in Celery's backend, until newer progress is reported."""
        self._meta_given = meta
        if meta is not None:
            self._meta_progress = content_of(self.attempt.reporter.snapshot())

    @property
    def shows_at_once(self) -> bool:
        """Whether a state that is entered now is shown in Celery's backend now.

        Once an interval: of many that follow each other the flusher shows the newest.
        """
        return time.monotonic() >= self._next

    def rest(self) -> None:
        """A state was shown at once: none is for an interval."""
        self._next = time.monotonic() + self.interval

    def flush(self) -> Callable[[], object] | None:
        """Write the newest progress; show newest state and progress in Celery's backend.

        Where the run is over, its thread hears of it at its next call.
        """
        attempt = self.attempt
        try:
            progress = self._write()
        except (StaleAttempt, AttemptEnded) as exc:
            attempt.reporter.stop(exc)
            return None
        except AWAY:
            logger.debug("%s: its progress is not recorded", self, exc_info=True)
            return None
        except StatekitError as exc:
            self._warn("its progress is not recorded", exc)
            return None
        return None if progress is None else self._telling(progress)

    def _write(self) -> Progress | None:
        """Write progress, and what Celery's backend shows: in one write, or mirrored soon."""
        attempt, to_store = self.attempt, self.to_store(self._as_it_stands)
        progress = attempt.report(to_store)
        if progress is None and not attempt.is_paused and not attempt.reporter.stopped:
            attempt.look()  # what it writes finds out by itself
        state = attempt.state
        over = state.final or state.state in WAITING
        shows = state.progress or state.state not in LIFECYCLE
        if self._mirrors and not over and shows and state.version > attempt.shown:
            if to_store is not None:
                attempt.show(to_store)
            else:
                flusher().mirror(self)
        return progress

    # --- what Celery's backend shows, written with the record ----------------------------------

    def to_store(self, shown: BesideOf) -> BesideOf | None:
        """``shown``, where a store can write it with the record; else it is mirrored afterwards.

        It must never fail what is done: what cannot be shown is said once, and left out.
        """
        if not self._mirrors or self._one_write is None:
            return None

        def shown_or_not(state: TaskState) -> Beside | None:
            try:
                return shown(state)
            except (SoftTimeLimitExceeded, AttemptEnded):
                raise
            except Exception as exc:  # noqa: BLE001 - as said above
                self._warn("its state is not shown in the result backend", exc)
                return None

        return shown_or_not

    def beginning(self, state: TaskState) -> Beside | None:
        """STARTED, where Celery's ``task_track_started`` shows it.

        Raises:
            AttemptEnded: the task was revoked, and there was no record to say so.
        """
        one = self._one_write
        if state.changes == 1 and one is not None:
            revoked = one.get_state(state.id)
            if revoked == celery_states.REVOKED:
                raise AttemptEnded(state.task, state.id, revoked)
        if not self._task.shows_started:
            return None
        return self._to_store(state, started_meta(state), celery_states.STARTED)

    def retrying(self, cause: BaseException | None, state: TaskState) -> Beside | None:
        """RETRY because of ``cause``, which is being handled."""
        traceback = format_exc() if cause else None
        return self._to_store(state, cause, celery_states.RETRY, traceback)

    def entering(self, state: TaskState) -> Beside | None:
        """A state that is entered, with its progress; no older meta is shown with it."""
        return self._to_store(state, self._meta(state, given=False), self._name(state))

    def _as_it_stands(self, state: TaskState) -> Beside | None:
        return self._to_store(state, self._meta(state), self._name(state))

    def _to_store(
        self, state: TaskState, result: Any, name: str, traceback: str | None = None
    ) -> Beside | None:
        one = self._one_write
        if one is None:
            return None
        return one.to_store(state.id, result, name, traceback, self._request)

    # --- elsewhere: after the record -----------------------------------------------------------

    def close(self) -> None:
        """The run is over: the flusher forgets it, and its last progress is told of."""
        flusher().forget(self)
        progress = self.attempt.state.progress
        if progress is not None and content_of(progress) != self._told:
            flusher().tell(self._telling(progress))

    def _telling(self, progress: Progress) -> Callable[[], object]:
        self._told = content_of(progress)

        def tell() -> None:
            self.attempt.announce(progress)
            self._task.on_progress(progress)

        return tell

    @property
    def late_is_refused(self) -> bool:
        """Whether the backend keeps what a mirror writes late from standing over an end."""
        return isinstance(self._own_backend, OneWrite)

    def mirror(self) -> None:
        """Show the newest state and progress, if this is still the current run."""
        if not self._mirrors:
            return
        state = self.attempt.state
        try:
            if self._is_mirrored(self._name(state), self._meta(state)):
                self.attempt.shown = max(self.attempt.shown, state.version)
        except (StaleAttempt, AttemptEnded) as exc:
            self.attempt.reporter.stop(exc)
        except SoftTimeLimitExceeded:
            raise
        except AWAY:
            logger.debug("%s: its state is not shown", self, exc_info=True)
        except Exception as exc:  # noqa: BLE001 - what is shown must never fail what is done
            self._warn("its state is not shown in the result backend", exc)
            self.attempt.shown = max(self.attempt.shown, state.version)

    def _is_mirrored(self, name: str, meta: Any) -> bool:
        backend, attempt, request = self._own_backend, self.attempt, self._request
        if isinstance(backend, OneWrite):
            fence = partial(attempt.confirm, only_looks=True)
            return backend.show(attempt.id, meta, name, request, fence=fence)
        attempt.confirm(only_looks=True)
        backend.store_result(attempt.id, meta, name, request=request)
        return True

    def mirror_started(self) -> None:
        """Show STARTED as Celery's ``task_track_started`` does."""
        if self._mirrors:
            state = self.attempt.state
            try:
                self._own_backend.store_result(
                    state.id, started_meta(state), celery_states.STARTED, request=self._request
                )
            except SoftTimeLimitExceeded:
                raise
            except Exception as exc:  # noqa: BLE001 - as in mirror
                self._warn("STARTED is not shown in the result backend", exc)

    def mirror_retry(self, cause: BaseException | None) -> None:
        """Show RETRY in Celery's backend before the next attempt's message is sent.

        Celery stores it afterwards, over what the next attempt may have stored by then.
        """
        if self._mirrors:
            try:
                self._own_backend.mark_as_retry(
                    self.attempt.id, cause, format_exc() if cause else None, request=self._request
                )
            except SoftTimeLimitExceeded:
                raise
            except Exception as exc:  # noqa: BLE001 - as in mirror
                self._warn("RETRY is not shown in the result backend", exc)

    def end_as_reported(self) -> None:
        """End as ``update_state(state=...)`` said before ``raise Ignore()``."""
        state, meta = self.reported or (celery_states.FAILURE, None)
        exc: BaseException = ReportedFailure(meta)
        if isinstance(meta, Mapping) and meta.get("exc_type"):
            # What Celery itself makes of such a meta when it is read.
            exc = self._own_backend.exception_to_python(dict(meta)) or exc
        self.end(exc, state)

    def end_as_cancelled(self) -> TaskRevokedError | None:
        """End as REVOKED, and all that hangs on it; None where it was not told of a cancel.

        Returns:
            What who waits for it gets.
        """
        cancelled = self.attempt.cancelled
        if cancelled is None or self.replaced:
            return None
        self.retried = False  # its message was not sent
        told = TaskRevokedError(cancelled.reason)
        try:
            self.end(told, celery_states.REVOKED)
        except SoftTimeLimitExceeded:
            raise
        except Exception:
            logger.exception("who waits for %s was not told that it is cancelled", self)
        if self.ended not in (None, "refused") and not self._request.is_eager:
            self._say_revoked()
        return told

    def _say_revoked(self) -> None:
        if not self._task.send_events:
            return
        try:
            # The worker's main process sends none of a run that ends with an Ignore.
            self._task.send_event(
                "task-revoked", retry=False, terminated=False, signum=None, expired=False
            )
        except SoftTimeLimitExceeded:
            raise
        except Exception:
            logger.debug("no event says that %s is cancelled", self, exc_info=True)

    def reject(self, exc: Reject) -> None:
        """REJECTED until the message comes again; FAILURE where it does not."""
        if not exc.requeue and CELERY < (5, 7):
            # From then on the worker's main process tells Celery (celery 5.7 worker/request.py:681).
            self.retried = False  # or its message could not be sent
            self.end(exc)
            return
        state = "REJECTED" if exc.requeue else "FAILURE"
        self.attempt.leave(state, reason=sentence(exc), error=error_facts(exc))

    def end(self, exc: BaseException, state: str = celery_states.FAILURE) -> None:
        """End as ``exc`` says, in the record and for Celery."""
        self._task.backend.mark_as_failure(
            self.attempt.id, exc, request=self._request, store_result=self._mirrors, state=state
        )

    def _name(self, state: TaskState) -> str:
        if state.state in LIFECYCLE:
            return "PROGRESS"
        return self._status or state.state

    def _meta(self, state: TaskState, *, given: bool = True) -> Any:
        if (
            given
            and self._meta_given is not None
            and self._meta_progress == content_of(state.progress)
        ):
            return self._meta_given
        meta = (state.progress or Progress()).meta()
        if state.state not in LIFECYCLE:
            meta["state"] = state.state
            meta["label"] = self.attempt.flow.labels.get(state.state, state.state)
        return meta

    def _warn(self, what: str, exc: Exception) -> None:
        """Say it once a run: it happens again at every interval."""
        if not self._failed:
            self._failed = True
            logger.warning("%s: %s: %s", self, what, exc)


def started_meta(state: TaskState) -> dict[str, Any]:
    """What Celery stores with STARTED (celery 5.7 app/trace.py:553)."""
    host, _, pid = state.worker.rpartition(":")
    return {"pid": int(pid), "hostname": host} if pid.isdigit() else {}
