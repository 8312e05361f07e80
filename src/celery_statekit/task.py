"""StatefulTask: the choke point of a run, and Celery's hooks made into the Tracker's verbs."""

from __future__ import annotations

import inspect
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from copy import deepcopy
from datetime import datetime
from enum import Enum
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeVar
from uuid import uuid4

from celery import Celery, Task
from celery import states as celery_states
from celery.exceptions import Ignore, Reject, Retry
from celery.utils.nodenames import gethostname

from celery_statekit.attempt import Attempt
from celery_statekit.backends import GuardedBackend
from celery_statekit.breaker import log_failure
from celery_statekit.deliveries import kept_of, stand_in, wait_for_store, wait_for_turn
from celery_statekit.errors import (
    AlreadyRunning,
    AttemptEnded,
    Cancelled,
    InvalidDefinition,
    InvalidInput,
    InvalidProgress,
    InvalidState,
    NotRunning,
    PoisonTask,
    StaleAttempt,
    StatekitError,
    StoreError,
    error_facts,
    sentence,
)
from celery_statekit.flusher import flusher
from celery_statekit.frozen import changed
from celery_statekit.listeners import QUEUED, client_of, take_up
from celery_statekit.progress import Progress, check_nesting
from celery_statekit.record import REPLACED, Change, TaskState, check_id
from celery_statekit.report import Report
from celery_statekit.reporter import Reporter
from celery_statekit.result import StatefulEagerResult, StatefulGroupResult, StatefulResult
from celery_statekit.settings import Settings, unwrapped
from celery_statekit.states import RESERVED, Flow, task_flow
from celery_statekit.sweep import end_lost, most_losses
from celery_statekit.tracker import BesideOf, Tracker

if TYPE_CHECKING:
    # Imported where they are used: a task without clients does not pay for them.
    from celery_statekit.client import ClientState
    from celery_statekit.clients import Clients
    from celery_statekit.hydration import Hydration

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Client = TypeVar("Client", bound="ClientState")

#: Celery's states that user code may not enter by ``update_state``.
_CELERY_STATES: Final = RESERVED - {"PROGRESS"}


class StatefulTask(Task):
    """A Celery task whose state is checked, fenced, remembered and nearly free to report.

    Use it as ``base=`` of a task, or for a whole app with :func:`~celery_statekit.setup`.
    """

    #: The task's own states: an Enum class; None: any name may be entered.
    states: ClassVar[type[Enum] | None] = None

    _flow: ClassVar[Flow]
    #: How its parameters become clients; None where none can.
    _hydration: ClassVar[Hydration | None] = None
    #: What becomes of the task where its run is lost and the broker does not deliver its message
    #: again: "mark", FAILURE after ``statekit_lost_grace``; "requeue", it is sent again.
    on_lost: ClassVar[Literal["mark", "requeue"]] = "mark"
    #: How many runs may be lost one after the other before the task ends as FAILURE; None: three
    #: where ``on_lost = "requeue"``, else any number.
    max_attempts: ClassVar[int | None] = None
    #: How the worker's main process sees a message of the task; knows of lost children.
    Request = "celery_statekit.requests:StatefulRequest"

    #: False for Celery's own tasks, of which no record is kept.
    is_stateful: ClassVar[bool] = False
    #: Whether Celery would have stored STARTED; it would do so before any hook, over a live run.
    shows_started: ClassVar[bool] = False
    #: Whether a base class between this one and Celery's has a ``__call__`` of its own.
    _calls_super: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # A class says it as the decorator does; it would hide the method by which Celery binds.
        if isinstance(vars(cls).get("bind"), bool):
            del cls.bind

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """Check the task's definition. Celery binds a task twice; doing it twice changes nothing.

        Raises:
            InvalidDefinition: its states cannot work, or ``on_lost`` or ``max_attempts``.
        """
        super().on_bound(app)
        cls._flow = task_flow(None if cls.states is None else Flow.of(cls.states))
        cls.is_stateful = not getattr(cls.run, "__module__", "").startswith("celery.")
        if not cls.is_stateful:
            return
        _check_losses(cls)
        if cls.track_started:
            cls.shows_started, cls.track_started = True, False
        cls._take_backend()
        cls._take_call()
        above = cls.__mro__[cls.__mro__.index(StatefulTask) + 1 : cls.__mro__.index(Task)]
        cls._calls_super = any("__call__" in vars(base) for base in above)
        cls._hydration = _hydration_of(cls)
        app = unwrapped(app)
        take_up(app)
        if not issubclass(app.GroupResult, StatefulGroupResult):
            app.GroupResult = app.subclass_with_self(StatefulGroupResult, name="GroupResult")

    @classmethod
    def _take_backend(cls) -> None:
        """Guard the ``backend=`` of a task, or of a base class, in place of the app's."""
        ours = vars(StatefulTask)["backend"]
        for base in cls.__mro__[: cls.__mro__.index(Task)]:
            given = vars(base).get("backend", ours)
            if isinstance(given, property):
                continue
            cls._backend, cls.backend = given, ours  # type: ignore[method-assign]
            return

    @classmethod
    def _take_call(cls) -> None:
        """Stand around a subclass's own ``__call__``: it may end in ``run``, as Celery's docs say."""
        own = cls.__call__
        if own is StatefulTask.__call__ or hasattr(own, "__wrapped__"):
            return

        @wraps(own)
        def call(self: StatefulTask, *args: Any, **kwargs: Any) -> Any:
            if self._begins():
                return self._execute(partial(own, self), args, kwargs)
            return own(self, *args, **kwargs)

        cls.__call__ = call  # type: ignore[method-assign]

    # --- what a running task uses -------------------------------------------------------------

    def enter(self, state: Enum | str, reason: str = "", **detail: Any) -> TaskState:
        """Enter one of the task's states.

        Args:
            state: a member of ``states=``, or its stored name.
            reason: why, in words; kept in the history.
            detail: what else belongs to the change; JSON.

        Raises:
            IllegalTransition: it may not be entered from where the task stands.
            InvalidState: it is no state of this task.
            Cancelled: the task was cancelled; nothing was changed.
            StaleAttempt: a newer run of the task has taken over.
            StoreError: it could not be written; nothing was changed.
            NotRunning: no run of this task is going on in this thread.
        """
        attempt, report = self._attempt("enter"), self._report()
        name = self._flow.name_of(state)
        if report is None:
            return _handed_out(attempt.enter(name, reason=reason, detail=detail))
        at_once = report.shows_at_once
        beside = report.to_store(report.entering) if at_once else None
        entered = attempt.enter(name, reason=reason, detail=detail, beside=beside)
        report.show(None)
        if at_once:
            report.rest()
            if beside is None:
                flusher().hurry(report)
        return _handed_out(entered)

    @property
    def next_states(self) -> tuple[str, ...]:
        """The states that may be entered now, in the order declared."""
        return self._flow.enterable(self._attempt("next_states").state.state)

    @property
    def task_state(self) -> TaskState:
        """The running task's state, as this run last wrote it."""
        return _handed_out(self._attempt("task_state").state)

    @property
    def progress(self) -> Reporter:
        """How far the run is: ``update(n)``, ``set(current, total, message)``, ``step(name)``."""
        return self._attempt("progress").reporter

    def track(
        self,
        iterable: Iterable[Item],
        message: str = "",
        total: float | None = None,
        *,
        resume: bool | str = False,
    ) -> Iterator[Item]:
        """Iterate, and report each item that was finished.

        With ``resume`` the items are passed over that earlier attempts of the task finished: those
        whose successor was asked for before the last write of that attempt that reached the store.
        A place is written with the progress (every ``statekit_progress_interval`` seconds), and
        with each ``enter`` and ``checkpoint``; when a run is left by an exception, with its end.
        So after a retry each item is skipped that was finished; after the death of a process the
        last ones, and always the one that was in the body of the loop, may be done again.
        It is on the task that the items are the same, in the same order.

        Args:
            iterable: what to iterate.
            message: what is being done.
            total: how many items, those passed over included; ``len(iterable)`` if it has one.
            resume: True; or a name, where several tracks of a run resume: each has its own.

        Raises:
            InvalidInput: ``resume`` is no name, or that of another track of this run.
            StoreError: what the attempts before left cannot be read; only with ``resume``.
        """
        return self._attempt("track").track(iterable, message, total, resume=resume)

    def checkpoint(self, value: Any) -> None:
        """The next attempt finds ``value`` as its ``last_checkpoint``: it is written when this returns.

        Args:
            value: JSON, of at most a quarter of ``statekit_record_bytes`` (64 KiB). It takes the
                place of what was left before; None leaves nothing.

        Raises:
            InvalidInput: it is no JSON (``PayloadTooLarge``: it is too large); nothing was changed.
            StaleAttempt: a newer run of the task has taken over.
            StoreError: it could not be written; what was left before is still there.
            NotRunning: no run of this task is going on in this thread.
        """
        self._attempt("checkpoint").checkpoint(value)

    @property
    def last_checkpoint(self) -> Any:
        """What the last attempt that made a checkpoint left, before this one began; a copy.

        It is the same for the whole run, whatever checkpoints that makes; None for a first attempt.

        Raises:
            StoreError: it cannot be read.
        """
        left = self._attempt("last_checkpoint").left()
        return None if left is None else deepcopy(left.value)

    def clients(self, client: type[Client]) -> Clients[Client]:
        """The stored clients of a class, as this run updates them."""
        attempt = self._attempt("clients")
        state = attempt.state
        from celery_statekit.clients import Actor, Clients  # noqa: PLC0415 - as said above

        actor = Actor(task=state.task, task_id=state.id, attempt=state.attempt, worker=state.worker)
        settings = Settings.of(self.app)
        values = settings.values
        return Clients(
            settings.tracker_of(eager=bool(self.request.is_eager)).store,
            client,
            actor=actor,
            prefix=values.prefix,
            deadline=values.update_deadline,
        )

    def on_state_change(self, change: Change) -> None:
        """Called with each change of this task after it was written, where it was written."""

    @property
    def hears_changes(self) -> bool:
        """Whether this task has an :meth:`on_state_change` of its own."""
        hook = getattr(self.on_state_change, "__func__", None)
        return hook is not StatefulTask.on_state_change

    def on_progress(self, progress: Progress) -> None:
        """Called with each progress after it was written, in a thread that runs such calls only."""

    def update_state(
        self,
        task_id: str | None = None,
        state: str | None = None,
        meta: Any = None,
        **kwargs: Any,
    ) -> None:
        """As Celery's, for the running task: recorded, checked, fenced and throttled.

        ``PROGRESS``, and None, report progress. One of the task's states is entered.
        ``SUCCESS`` is kept as the last progress, never shown as an end. ``FAILURE`` followed by
        ``raise Ignore()`` ends the task as FAILURE with that meta. With ``task_id=`` of another
        task Celery's own method is called.

        Raises:
            InvalidState: ``state`` is no name, or an end while ``statekit_strict`` is set.
            IllegalTransition: the task has declared states, and may not enter this one now.
        """
        request = self.request_stack.top
        another = task_id and (request is None or task_id != request.id)
        # Or of a before_start: the run has not begun.
        if not self.is_stateful or another or self._begins():
            super().update_state(task_id=task_id, state=state, meta=meta, **kwargs)
            return
        attempt = self._attempt("update_state")
        attempt.heed()
        details = _as_details(meta, Settings.of(self.app).values.record_bytes)
        report, entered = self._report(), False
        if isinstance(state, str) and state in _CELERY_STATES:
            self._celery_state(state, meta, report)
        elif state not in (None, "PROGRESS", attempt.state.state):
            attempt.enter(self._flow.name_of(state), detail=details)
            entered = True
        _take_meta(attempt.reporter, details)
        if report is not None:
            report.show(meta)
            if entered and report.shows_at_once:
                report.rest()
                flusher().hurry(report)

    def _celery_state(self, state: str, meta: Any, report: Report | None) -> None:
        strict = Settings.of(self.app).values.strict
        if strict and state in celery_states.READY_STATES:
            raise InvalidState(
                "an end is not entered by hand",
                f"{self.name}.update_state",
                state,
                "a state of the task; return, or raise, to end it",
            )
        if report is not None and state in celery_states.EXCEPTION_STATES - {celery_states.RETRY}:
            report.reported = (state, meta)
        if (self.name, state) not in _warned:
            _warned.add((self.name, state))
            logger.warning(
                "%s.update_state(state=%r) inside the task is kept as its progress: "
                "the task ends when it returns or raises",
                self.name,
                state,
            )

    # --- the choke point ----------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task. Called by a worker: claim, hydrate, run, flush, check the fence."""
        if self._begins():
            return self._execute(None, args, kwargs)
        report = self._report()
        if report is None or report.entered:
            # Called directly, or by itself.
            return super().__call__(*args, **kwargs)
        # A subclass's own __call__ that ends in super().
        return self._run(report, args, kwargs)

    def _begins(self) -> bool:
        """Whether a worker (or an eager call) calls the task now: a run begins."""
        request = self.request_stack.top
        return (
            self.is_stateful
            and request is not None
            and not request.called_directly
            and getattr(request, "statekit", None) is None
        )

    def _report(self) -> Report | None:
        return getattr(self.request_stack.top, "statekit_report", None)

    def _execute(self, own: Callable[..., Any] | None, args: Any, kwargs: Any) -> Any:
        request = self.request_stack.top
        try:
            return self._carry_out(request, own, args, kwargs)
        except AttemptEnded as ended:
            if ended.id == request.id:
                self._guarded.tell_standing(request)
            raise
        except AlreadyRunning as running:
            if running.id == request.id and not request.is_eager:
                wait_for_turn(self, request, running)
            raise
        except StaleAttempt as stale:
            logger.warning("%s; nothing of it is kept", stale)
            if stale.id == request.id and not request.is_eager:
                stand_in(self, request, stale)
            raise

    def _carry_out(
        self, request: Any, own: Callable[..., Any] | None, args: Any, kwargs: Any
    ) -> Any:
        attempt, report = self._begin(request)
        try:
            attempt.heed()
            if self._hydration is not None and not self._hydration.idle:
                args, kwargs = self._hydration.arguments(args, kwargs)
            returned = own(*args, **kwargs) if own else self._run(report, args, kwargs)
        except BaseException as exc:
            goes = isinstance(exc, (StaleAttempt, AttemptEnded)) or not isinstance(exc, Exception)
            over = None
            if goes or attempt.cancelled is None:
                over = self._left(attempt, report, exc)
            if not goes:
                self._end_cancelled(request, attempt, report, exc)
            if over is not None and over is not exc and isinstance(exc, Exception):
                # Nothing of a stale run leaves: no on_failure, no task_failure, no event.
                raise over from exc
            raise
        flusher().forget(report)
        attempt.reporter.close()
        self._end_cancelled(request, attempt, report, None)
        if not report.replaced and not report.retried:
            self._check_fence(request, attempt, report, returned)
        return returned

    def _end_cancelled(
        self, request: Any, attempt: Attempt, report: Report, cause: BaseException | None
    ) -> None:
        """The run was told of a cancel, and is over: whatever it returned or raised, it is REVOKED.

        Raises:
            Cancelled: to Celery's tracer, which does nothing more.
            TaskRevokedError: to who called it eagerly.
        """
        if attempt.cancelled is None:
            return
        flusher().forget(report)
        attempt.reporter.close()
        told = report.end_as_cancelled()
        if told is None:
            return
        if request.is_eager:
            raise told from cause
        if isinstance(cause, Cancelled):
            raise cause
        asked = attempt.cancelled
        raise Cancelled(self.name, attempt.id, asked.reason, asked.by) from cause

    def _check_fence(self, request: Any, attempt: Attempt, report: Report, returned: Any) -> None:
        """The run has returned: nothing of it leaves if it is no longer the current one.

        Links and the next step of a chain are published before the end is stored (celery 5.7
        app/trace.py:599). Where there are none, to write the end is to check the fence.
        """
        if not request.is_eager and not request.callbacks and not request.chain:
            self._guarded.end_run(request, returned)
            return
        try:
            attempt.confirm()
        except (StaleAttempt, AttemptEnded):
            raise
        except StatekitError:
            log_failure(logger, "the fence of %s was not checked", report)

    def _run(self, report: Report, args: Any, kwargs: Any) -> Any:
        report.entered = True
        # Celery's own __call__ would put an empty request on top where the run is eager.
        return super().__call__(*args, **kwargs) if self._calls_super else self.run(*args, **kwargs)

    def _begin(self, request: Any) -> tuple[Attempt, Report]:
        """The run is claimed; where the store is away it begins all the same.

        Raises:
            AttemptEnded: the task has ended already; a delivery that comes late does nothing.
        """
        settings = Settings.of(self.app)
        attempt = Attempt.of(
            settings.tracker_of(eager=bool(request.is_eager)),
            request.id,
            self.name,
            self._flow,
            worker=f"{request.hostname or gethostname()}:{os.getpid()}",
            client_id=client_of(request.headers),
            queued=(request.headers or {}).get(QUEUED),
            comes_again=bool(self.acks_late) and not request.is_eager,
            message=kept_of(self, request, settings.values.record_bytes),
            retries=request.retries or 0,
            most_losses=most_losses(self),
        )
        report = Report(self, request, attempt, settings)
        to_store = report.to_store(report.beginning)
        try:
            attempt.claim(to_store)
        except AttemptEnded as ended:
            logger.info("%s; this delivery does nothing", ended)
            raise
        except AlreadyRunning:
            raise
        except PoisonTask as poison:
            logger.error("%s; this delivery does nothing", poison)  # noqa: TRY400 - no traceback
            end_lost(attempt.tracker, self.own_backend, poison, request)
            raise AttemptEnded(self.name, request.id, "FAILURE") from poison
        except StatekitError as away:
            wait_for_store(self, request, attempt, away)
            to_store = None
            log_failure(logger, "the start of %s is not recorded", report)
        request.statekit, request.statekit_report = attempt, report
        if self.shows_started and to_store is None:
            report.mirror_started()
        flusher().watch(report)
        return attempt, report

    def _left(
        self, attempt: Attempt, report: Report, exc: BaseException
    ) -> StaleAttempt | AttemptEnded | None:
        """The run was left by an exception: write what it means, where Celery will not say."""
        flusher().forget(report)
        attempt.reporter.close()
        try:
            self._record_leaving(attempt, report, exc)
        except (StaleAttempt, AttemptEnded) as over:
            logger.debug("a stale run left", exc_info=True)
            return over
        except Cancelled as cancelled:
            logger.info("%s; there is no other attempt", cancelled)
        except StatekitError:
            log_failure(logger, "the outcome of %s is not recorded", report)
            if isinstance(exc, (Retry, Reject, Ignore)):
                flusher().insist(partial(self._record_leaving, attempt, report, exc))
        else:
            report.close()
        return None

    def _record_leaving(self, attempt: Attempt, report: Report, exc: BaseException) -> None:
        if isinstance(exc, (StaleAttempt, AttemptEnded)):
            return
        if isinstance(exc, Retry):
            if attempt.state.state != "RETRY":
                self._leave_for_retry(attempt, exc.exc, _due_at(exc.when, attempt))
        elif isinstance(exc, Reject):
            report.reject(exc)
        elif isinstance(exc, Ignore):
            if report.reported:
                report.end_as_reported()
            elif attempt.state.state != "IGNORED" and not report.replaced:
                report.flush()
                attempt.leave("IGNORED", reason=str(exc) if exc.args else "")
        elif not isinstance(exc, Exception):
            attempt.leave_process(sentence(exc))
        elif not report.replaced and not report.retried:
            attempt.confirm()

    def retry(self, *args: Any, **kwargs: Any) -> Any:
        """As Celery's; RETRY is recorded before the next attempt's message is sent.

        Raises:
            Cancelled: the task was cancelled; nothing is sent.
            StaleAttempt: a newer run has taken over; nothing is sent.
        """
        report = self._report()
        if report is not None:
            with suppress(StoreError, InvalidInput):
                report.attempt.confirm()
            report.attempt.check_cancelled()
            report.cause = kwargs.get("exc") or sys.exc_info()[1]
        return super().retry(*args, **kwargs)

    def on_replace(self, sig: Any) -> Any:
        """As Celery's; IGNORED is recorded before the replacement, of the same id, is sent."""
        report = self._report()
        if report is not None:
            report.attempt.check_cancelled()
            flusher().forget(report)
            try:
                report.attempt.leave("IGNORED", reason=f"{REPLACED}{sig.task}")
            except (StoreError, InvalidInput):
                log_failure(logger, "IGNORED of %s is not recorded", report)
            report.replaced = True
        return super().on_replace(sig)

    def _may_leave(self, options: dict[str, Any]) -> bool:
        """Whether a message may be sent: not the retry of a run that is no longer the current.

        Celery publishes a retry before it stores RETRY (celery 5.7 app/task.py, app/trace.py), so
        the next attempt might begin, and end, before this one is said to be over.
        """
        report = self._report()
        if report is None or options.get("task_id") != report.attempt.id:
            return True
        if options.get("retries", 0) <= self.request_stack.top.retries:
            return True
        eta, countdown = options.get("eta"), options.get("countdown")
        report.retried = True
        flusher().forget(report)
        beside = report.to_store(partial(report.retrying, report.cause))
        try:
            due_at = _due_at(countdown if eta is None else eta, report.attempt)
            self._leave_for_retry(report.attempt, report.cause, due_at, beside)
            if beside is None:
                report.mirror_retry(report.cause)
                if report.attempt.tracker.read(report.attempt.id).final:
                    # It was cancelled in between, and its end is written over.
                    self._guarded.tell_standing(self.request_stack.top)
        except (Cancelled, StaleAttempt, AttemptEnded) as over:
            logger.warning("%s; its retry is not sent", over)
            return False
        except StatekitError:
            log_failure(logger, "RETRY of %s is not recorded", report)
        return True

    def _leave_for_retry(
        self,
        attempt: Attempt,
        cause: BaseException | None,
        due_at: float | None,
        beside: BesideOf | None = None,
    ) -> None:
        reason, error = (sentence(cause), error_facts(cause)) if cause else ("", None)
        attempt.leave("RETRY", reason=reason, error=error, due_at=due_at, beside=beside)

    def _attempt(self, call: str) -> Attempt:
        request = self.request_stack.top
        if request is None:
            raise NotRunning(self.name, call)
        attempt: Attempt | None = getattr(request, "statekit", None)
        if attempt is not None:
            return attempt
        if not request.called_directly:
            raise NotRunning(self.name, call)  # a before_start: the run has not begun
        # Called directly: moves are checked, and leave no trace.
        from celery_statekit.stores.memory import MemoryStore  # noqa: PLC0415 - as said above

        tracker = Tracker(MemoryStore(None), silent=True)
        attempt = Attempt.of(tracker, request.id or str(uuid4()), self.name, self._flow)
        attempt.claim()
        request.statekit = attempt
        return attempt

    # --- publishing, results ------------------------------------------------------------------

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        *positional: Any,
        client_id: str | None = None,
        **options: Any,
    ) -> Any:
        """As Celery's; PENDING is recorded.

        Args:
            client_id: whose task it is. It travels in the headers, through retries, chain steps
                and the tasks that the task itself sends.

        Raises:
            InvalidId: ``client_id`` may not name a client; nothing was sent.
            StoreNotConfigured: no store follows from the app's settings.
        """
        if not self.is_stateful:
            return super().apply_async(args, kwargs, *positional, **options)
        app = self._get_app()
        # A store that is not configured is said here, loudly; a receiver's error is only logged.
        Settings.of(app).tracker_of(eager=app.conf.task_always_eager)
        if client_id is not None:
            options["headers"] = _with_client(options, client_id)
        if not self._may_leave(options):
            return self.AsyncResult(options["task_id"])
        shown = self._hydration and self._hydration.redacted(args or (), kwargs or {})
        if shown:
            options["argsrepr"], options["kwargsrepr"] = shown
        return super().apply_async(args, kwargs, *positional, **options)

    def apply(self, *args: Any, client_id: str | None = None, **options: Any) -> Any:
        """As Celery's: run it here and now; recorded like any other run."""
        if client_id is not None:
            options["headers"] = _with_client(options, client_id)
        result = super().apply(*args, **options)
        return StatefulEagerResult.of(result, self._get_app()) if self.is_stateful else result

    def AsyncResult(self, task_id: str, **kwargs: Any) -> StatefulResult[Any]:  # noqa: N802
        """The result of the task with this id."""
        kwargs.setdefault("backend", self.own_backend)
        return StatefulResult(task_id, task_name=self.name, app=self._get_app(), **kwargs)

    @property
    def backend(self) -> Any:
        """The result backend, guarded: an end is recorded before it is stored."""
        return self._guarded if self.is_stateful else self.own_backend

    @backend.setter
    def backend(self, value: Any) -> None:
        self._backend = value

    @property
    def own_backend(self) -> Any:
        """The result backend itself."""
        return super().backend

    @property
    def _guarded(self) -> GuardedBackend:
        return GuardedBackend(self.own_backend, self)


def _check_losses(task: type[StatefulTask]) -> None:
    policy: object = task.on_lost
    if policy not in ("mark", "requeue"):
        where = f"{task.__name__}.on_lost"
        raise InvalidDefinition("no policy", where, policy, '"mark" or "requeue"')
    most: object = task.max_attempts
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        where = f"{task.__name__}.max_attempts"
        raise InvalidDefinition("no number of attempts", where, most, "None, or an int over 0")


def _hydration_of(task: type[StatefulTask]) -> Hydration | None:
    run = inspect.unwrap(task.run)
    if not getattr(run, "__annotations__", None):
        return None
    from celery_statekit.hydration import Hydration  # noqa: PLC0415 - as said above

    static = isinstance(inspect.getattr_static(task, "run"), staticmethod)
    return Hydration.of(task.run, bound=not static)


def _handed_out(state: TaskState) -> TaskState:
    """``state``, of which the caller may change what can be changed without changing ours."""
    extra = deepcopy(state.extra) if state.extra else {}
    return changed(state, extra=extra, checkpoint=state.checkpoint and deepcopy(state.checkpoint))


def _with_client(options: dict[str, Any], client_id: str) -> dict[str, Any]:
    return {**(options.get("headers") or {}), "client_id": check_id(client_id)}


def _due_at(when: object, attempt: Attempt) -> float | None:
    if isinstance(when, datetime):
        return when.timestamp()
    return attempt.tracker.now() + when if isinstance(when, (int, float)) else None


def _as_details(meta: Any, limit: int) -> dict[str, Any]:
    """The meta of an ``update_state`` as plain JSON; what only Celery's JSON knows, as text.

    Old code must not fail for what its result backend has always taken: NaN and unpaired
    surrogates are kept as text, and of what is larger than a record only the figures are kept.
    """
    given = meta
    try:
        if isinstance(meta, BaseException):
            given = {"exc_type": type(meta).__name__, "exc_message": str(meta)}
        text = json.dumps(given, default=str, ensure_ascii=False)
        encoded = text.encode("utf-8", "replace")
        plain = json.loads(encoded, parse_constant=str)
        check_nesting(plain)
    except Exception as exc:  # a foreign __str__ may raise anything
        raise InvalidInput(f"meta is no JSON ({exc})", "update_state(meta)", meta, "JSON") from exc
    details: dict[str, Any] = plain if isinstance(plain, dict) else {"meta": plain}
    if len(encoded) > limit:
        logger.warning(
            "a meta of %s bytes is over %s: only its figures are kept", len(encoded), limit
        )
        known = {name for names in _META_NAMES.values() for name in names}
        details = {
            name: value
            for name, value in details.items()
            if name in known and isinstance(value, (int, float))
        }
    return {} if plain is None else details


def _take_meta(reporter: Reporter, details: dict[str, Any]) -> None:
    """Read the meta of an ``update_state``: what it calls current, total and status."""
    known: dict[str, Any] = {}
    for name, names in _META_NAMES.items():
        for key in names:
            if isinstance(details.get(key), (int, float, str)):
                known[name] = details[key]
                break
    try:
        reporter.set(**known, details=details)
    except InvalidProgress:
        reporter.set(details=details)


_META_NAMES: Final = {
    "current": ("current", "done", "i"),
    "total": ("total",),
    "message": ("description", "status", "message"),
}
_warned: set[tuple[str, str]] = set()
