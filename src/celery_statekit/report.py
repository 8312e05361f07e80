"""What the flusher writes of one run: its progress, and what Celery's result backend shows of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from traceback import format_exc
from typing import Any

from celery import states as celery_states
from celery.exceptions import SoftTimeLimitExceeded

from celery_statekit.errors import AttemptEnded, ReportedFailure, StaleAttempt, StatekitError, brief
from celery_statekit.flusher import flusher
from celery_statekit.progress import Progress
from celery_statekit.record import TaskState
from celery_statekit.settings import Settings
from celery_statekit.states import LIFECYCLE, WAITING
from celery_statekit.tracker import Attempt, content_of

logger = logging.getLogger(__name__)


class Report:
    """What the flusher writes of one run: its progress, and its state in Celery's backend."""

    def __init__(self, task: Any, request: Any, attempt: Attempt, settings: Settings) -> None:
        self.interval = settings.values.progress_interval
        #: Whether the run has come to the task's own code, for its ``__call__`` to know.
        self.entered = False
        #: Whether another task took its id, or its next attempt's message was sent.
        self.replaced = self.retried = False
        #: The exception that a retry is sent for.
        self.cause: BaseException | None = None
        #: State and meta of an end that ``update_state`` reported.
        self.reported: tuple[str, Any] | None = None
        self._task = task
        self._request = request
        self.attempt = attempt
        self._status = settings.values.status
        self._shown = 0
        self._told: Progress | None = None
        self._meta_given: Any = None
        self._meta_progress: Progress | None = None
        self._failed = False
        ignored = request.ignore_result if "ignore_result" in vars(request) else task.ignore_result
        self._mirrors = not ignored and not request.is_eager

    def __str__(self) -> str:
        return f"{self.attempt.task}[{brief(self.attempt.id)}]"

    def show(self, meta: Any) -> None:
        """Show ``meta`` as it is in Celery's backend, until newer progress is reported."""
        self._meta_given = meta
        self._meta_progress = content_of(self.attempt.reporter.snapshot())

    def flush(self) -> Callable[[], object] | None:
        """Write the newest progress; show newest state and progress in Celery's backend.

        Where the run is over, its thread hears of it at its next call.
        """
        attempt = self.attempt
        try:
            progress = attempt.report()
        except (StaleAttempt, AttemptEnded) as exc:
            attempt.reporter.stop(exc)
            return None
        except StatekitError as exc:
            self._warn("its progress is not recorded", exc)
            return None
        state = attempt.state
        if state.final or state.state in WAITING:
            return None if progress is None else self._telling(progress)
        if state.version > self._shown and (state.progress or state.state not in LIFECYCLE):
            self._shown = state.version
            self._mirror(self._name(state), self._meta(state))
        return None if progress is None else self._telling(progress)

    def close(self) -> None:
        """The run is over: the flusher forgets it, and its last progress is told of."""
        flusher().forget(self)
        progress = self.attempt.state.progress
        if progress is not None and content_of(progress) != self._told:
            flusher().call(self._telling(progress), 0)

    def _telling(self, progress: Progress) -> Callable[[], object]:
        self._told = content_of(progress)

        def tell() -> None:
            self.attempt.announce(progress)
            self._task.on_progress(progress)

        return tell

    def mirror_started(self) -> None:
        """Show STARTED as Celery's ``task_track_started`` does."""
        host, _, pid = self.attempt.state.worker.rpartition(":")
        meta = {"pid": int(pid), "hostname": host} if pid.isdigit() else {}
        self._mirror(celery_states.STARTED, meta)

    def mirror_retry(self, cause: BaseException | None) -> None:
        """Show RETRY in Celery's backend before the next attempt's message is sent.

        Celery stores it afterwards, over what the next attempt may have stored by then.
        """
        if self._mirrors:
            try:
                self._task.own_backend.mark_as_retry(
                    self.attempt.id, cause, format_exc() if cause else None, request=self._request
                )
            except SoftTimeLimitExceeded:
                raise
            except Exception as exc:  # noqa: BLE001 - as in _mirror
                self._warn("RETRY is not shown in the result backend", exc)

    def end_as_reported(self) -> None:
        """End as ``update_state(state=...)`` said before ``raise Ignore()``."""
        state, meta = self.reported or (celery_states.FAILURE, None)
        exc: BaseException = ReportedFailure(meta)
        if isinstance(meta, Mapping) and meta.get("exc_type"):
            # What Celery itself makes of such a meta when it is read.
            exc = self._task.own_backend.exception_to_python(dict(meta)) or exc
        self._task.backend.mark_as_failure(
            self.attempt.id, exc, request=self._request, store_result=self._mirrors, state=state
        )

    def _name(self, state: TaskState) -> str:
        if state.state in LIFECYCLE:
            return "PROGRESS"
        return self._status or state.state

    def _meta(self, state: TaskState) -> Any:
        if self._meta_given is not None and self._meta_progress == content_of(state.progress):
            return self._meta_given
        meta = (state.progress or Progress()).meta()
        if state.state not in LIFECYCLE:
            meta["state"] = state.state
            meta["label"] = self.attempt.flow.labels.get(state.state, state.state)
        return meta

    def _mirror(self, name: str, meta: Any) -> None:
        if not self._mirrors:
            return
        try:
            self._task.own_backend.store_result(self.attempt.id, meta, name, request=self._request)
        except SoftTimeLimitExceeded:
            raise
        except Exception as exc:  # noqa: BLE001 - what is shown must never fail what is done
            self._warn("its state is not shown in the result backend", exc)

    def _warn(self, what: str, exc: Exception) -> None:
        """Say it once a run: it happens again at every interval."""
        if not self._failed:
            self._failed = True
            logger.warning("%s: %s: %s", self, what, exc)
