"""The one writer of task records: read, check, write if unchanged, signal.

Every move of a task goes through :meth:`Tracker._commit`, whatever its verb. A verb decides, from
the state as read, what becomes of it; the store says whether anybody else was quicker.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.dispatch import Signal

from celery_statekit import signals
from celery_statekit.errors import (
    AmbiguousWrite,
    AttemptEnded,
    ContentionTimeout,
    IllegalTransition,
    InvalidInput,
    PayloadTooLarge,
    StaleAttempt,
    StoreError,
    StoreUnavailable,
    brief,
)
from celery_statekit.progress import Progress, check_nesting
from celery_statekit.record import Change, Record, TaskState, cut_text, dump_json, task_key
from celery_statekit.reporter import Reporter
from celery_statekit.states import ENDS, WAITING, Flow
from celery_statekit.stores.base import Store

logger = logging.getLogger(__name__)

#: How long, in seconds, a write may go on losing races before it gives up.
DEADLINE: Final = 5.0

#: Begins the reason of a run whose process is ending.
LEAVING: Final = "its process is ending: "

#: How often a write whose reply is lost is repeated.
TRIES: Final = 10

#: What became of a report from outside the run.
Outcome: TypeAlias = Literal["moved", "ended", "another run"]


@dataclass(frozen=True, slots=True)
class _Written:
    """What a commit left behind."""

    record: Record
    state: TaskState
    change: Change | None


class Tracker:
    """Writes the records of an app's tasks.

    Args:
        store: where they are kept.
        prefix: first part of every key.
        expires: seconds for which an ended task's record is kept; None: for ever.
        observe: called with every change after it was written (the task class's hook).
        now: the writer's clock in epoch seconds, for what people read.
        silent: send no signal (a task that is called directly leaves no trace).
    """

    def __init__(
        self,
        store: Store,
        *,
        prefix: str = "statekit",
        expires: float | None = 86400.0,
        observe: Callable[[Change], None] | None = None,
        now: Callable[[], float] = time.time,
        silent: bool = False,
    ) -> None:
        self.store = store
        self.prefix = prefix
        self.expires = expires
        self.observe = observe
        self.now = now
        self._silent = silent

    def read(self, id: str) -> TaskState:
        """The task's state as recorded; ``source="nobody"`` where there is no record."""
        record = self.store.read(self.key(id))
        return TaskState(id=id) if record is None else TaskState.from_record(record)

    def key(self, id: str) -> str:
        """The key of the task's record."""
        return task_key(id, prefix=self.prefix)

    # --- verbs of a task that no run holds --------------------------------------------------

    def queue(
        self,
        id: str,
        task: str,
        *,
        client_id: str = "",
        due_at: float | None = None,
        expires_at: float | None = None,
    ) -> None:
        """A message of the task was published: PENDING, unless it is known already.

        The record lives until the later of ``due_at`` and ``expires_at`` plus the time that ends
        are kept, so that purged and lost messages leave nothing for ever.
        """

        def decide(state: TaskState) -> TaskState | None:
            if state.final:
                logger.warning(
                    "%s[%s] was sent again after its end (%s): it will not run",
                    task,
                    brief(id),
                    state.state,
                )
            if state.known:
                return None
            return replace(
                state,
                task=task,
                state="PENDING",
                client_id=client_id,
                due_at=due_at,
                queued_at=self.now(),
            )

        ahead = max(due_at or 0.0, expires_at or 0.0) - self.now()
        self._commit(id, decide, ttl=self._after(ahead))

    def unqueue(self, id: str) -> None:
        """The message was not sent after all: the record goes, unless a run has begun."""
        state = self.read(id)
        if state.state == "PENDING" and state.changes == 1:
            self.store.delete(self.key(id))

    def attempt(
        self,
        id: str,
        task: str,
        flow: Flow,
        *,
        worker: str = "",
        client_id: str = "",
    ) -> Attempt:
        """A run of the task that is about to begin; nothing is written before it is claimed."""
        state = TaskState(id=id, task=task, worker=worker, client_id=client_id)
        return Attempt(self, flow, state)

    def end_from_outside(
        self,
        id: str,
        task: str,
        to_state: str,
        *,
        reason: str,
        error: Mapping[str, str] | None = None,
        meant: Callable[[TaskState], bool] | None = None,
    ) -> Outcome:
        """Somebody other than the run says how it went: FAILURE, REVOKED, RETRY, REJECTED.

        Args:
            meant: given the state of a task that runs; False: another run is meant.
        """
        outcome: Outcome = "moved"

        def decide(state: TaskState) -> TaskState | None:
            nonlocal outcome
            if state.final:
                outcome = "ended"
            elif state.state not in WAITING and meant is not None and not meant(state):
                outcome = "another run"
            elif state.state == to_state:
                outcome = "ended"
            else:
                outcome = "moved"
                state = replace(state, task=state.task or task)
                return self._resting_or_ended(state, to_state, reason, error, None)
            return None

        self._commit(id, decide, ttl=self._after(0.0))
        return outcome

    # --- the write --------------------------------------------------------------------------

    def _after(self, seconds: float) -> float | None:
        return None if self.expires is None else self.expires + max(seconds, 0.0)

    def _resting_or_ended(
        self,
        state: TaskState,
        to_state: str,
        reason: str,
        error: Mapping[str, str] | None,
        due_at: float | None,
    ) -> TaskState:
        final = to_state in ENDS
        limit = self.store.limits.message_bytes
        return replace(
            state,
            state=to_state,
            reason=cut_text(reason, limit),
            error=error and {name: cut_text(text, limit) for name, text in error.items()},
            due_at=due_at,
            ended_at=self.now() if final else None,
            final=final,
        )

    def _commit(
        self,
        id: str,
        decide: Callable[[TaskState], TaskState | None],
        *,
        held: Record | None = None,
        ttl: float | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> _Written:
        """Write what ``decide`` makes of the state as read, trying again while others win.

        ``held`` is the record as this writer last saw it: it saves the read, and if it is no
        longer the newest the write is lost and the record is read again.
        """
        key = self.key(id)
        deadline = time.monotonic() + DEADLINE
        record = held or self.store.read(key)
        for lost in range(1_000_000):
            before = TaskState(id=id) if record is None else TaskState.from_record(record)
            after = decide(before)
            if after is None or after == before:
                return _Written(record or Record.first(key, {}), before, None)
            change = self._change(before, after, record, detail)
            after = replace(
                after,
                updated_at=self.now(),
                changes=change.number if change else before.changes,
                source="record",
            )
            document = after.to_document()
            new = Record.first(key, document) if record is None else record.next(document)
            if self._written(new, record, change, ttl):
                after = replace(after, version=new.version)
                if change is not None:
                    self._tell(change)
                return _Written(new, after, change)
            if time.monotonic() > deadline:
                raise ContentionTimeout(key, lost + 1, DEADLINE)
            if lost:
                time.sleep(random.uniform(0, 0.001 * min(lost, 20)))  # noqa: S311 - jitter
            record = self.store.read(key)
        raise AssertionError  # pragma: no cover - the deadline comes first

    def _written(
        self, new: Record, expect: Record | None, change: Change | None, ttl: float | None
    ) -> bool:
        changes = () if change is None else (change,)
        return write_settled(self.store, new, expect=expect, changes=changes, ttl=ttl)

    def _change(
        self,
        before: TaskState,
        after: TaskState,
        record: Record | None,
        detail: Mapping[str, Any] | None,
    ) -> Change | None:
        if before.state == after.state and before.attempt == after.attempt and before.known:
            return None
        facts: dict[str, Any] = dict(detail or {})
        if after.error:
            facts["error"] = after.error["type"]
        if after.due_at is not None:
            facts["due_at"] = after.due_at
        return Change(
            number=before.changes + 1,
            version=1 if record is None else record.version + 1,
            from_state=before.state if before.known else "",
            to_state=after.state,
            at=self.now(),
            reason=after.reason,
            task=after.task,
            task_id=after.id,
            client_id=after.client_id,
            attempt=after.attempt,
            worker=after.worker,
            detail=facts,
        )

    def send(self, signal: Signal, task: str, **payload: object) -> None:
        """Send ``signal``; receivers' exceptions are Celery's to log."""
        if not self._silent:
            signal.send(sender=task, **payload)

    def _tell(self, change: Change) -> None:
        self.send(signals.state_changed, change.task, change=change)
        if self.observe is not None:
            try:
                self.observe(change)
            except SoftTimeLimitExceeded:
                raise
            except Exception:
                logger.exception("on_state_change of %s raised", change.task)


class Attempt:
    """One run of a task, from its claim to its end: what the run may write, and no other.

    Its writes come from the task's thread and from the flusher's; a lock keeps them in order.
    """

    def __init__(self, tracker: Tracker, flow: Flow, state: TaskState) -> None:
        self.tracker = tracker
        self.flow = flow
        self.reporter = Reporter()
        #: Number of the run, and the fence of its writes; 0 until it is claimed.
        self.number = 0
        #: The record as this run last wrote it.
        self._record: Record | None = None
        self._state = state
        self._lock = threading.RLock()

    @property
    def id(self) -> str:
        """The task's id."""
        return self._state.id

    @property
    def task(self) -> str:
        """The task's registered name."""
        return self._state.task

    @property
    def state(self) -> TaskState:
        """The task's state as this run last wrote it."""
        return self._state

    def claim(self) -> TaskState:
        """The run begins: STARTED, one attempt higher than any before it.

        Raises:
            AttemptEnded: the task has come to its end already.
            StoreError: it could not be written; the next write of the run claims again.
        """
        begun = self._state

        def decide(state: TaskState) -> TaskState:
            if state.final:
                raise AttemptEnded(begun.task, begun.id, state.state)
            return replace(
                state,
                task=begun.task,
                state="STARTED",
                attempt=state.attempt + 1,
                worker=begun.worker,
                client_id=begun.client_id or state.client_id,
                reason="",
                error=None,
                due_at=None,
                started_at=self.tracker.now(),
                progress=None,
                last_progress=state.progress or state.last_progress,
            )

        with self._lock:
            written = self.tracker._commit(self.id, decide)  # noqa: SLF001 - one class in two halves
            self._record, self._state = written.record, written.state
            self.number = written.state.attempt
            return written.state

    def enter(
        self,
        to_state: str,
        *,
        reason: str = "",
        detail: Mapping[str, Any] | None = None,
    ) -> TaskState:
        """The run enters ``to_state`` of its flow; what progress it made until now is kept.

        Raises:
            IllegalTransition: the flow does not allow it; nothing was changed.
            StaleAttempt: a newer run has taken over.
            AttemptEnded: the task was ended from outside.
            StoreError: it could not be written; the record stands where it stood.
        """
        limits = self.tracker.store.limits
        reason = cut_text(reason, limits.message_bytes)
        try:
            check_nesting(detail)
        except (TypeError, ValueError) as exc:
            raise InvalidInput(f"detail is no JSON ({exc})", "detail", detail, "JSON") from exc
        size = len(dump_json(detail or {}, "detail", "detail").encode())
        if size > limits.record_bytes:
            raise PayloadTooLarge(
                "detail too large", "detail", size, f"{limits.record_bytes} bytes"
            )

        def decide(state: TaskState) -> TaskState:
            state = self._own(state, to_state)
            self.flow.check(
                state.state, to_state, task=self.task, id=self.id, subject=state, by_hand=True
            )
            return replace(state, state=to_state, reason=reason, progress=self._progress())

        try:
            return self._commit(decide, detail=detail)
        except IllegalTransition as refusal:
            refused = signals.Refused(
                task=self.task, id=self.id, attempt=self.number, error=refusal
            )
            self.tracker.send(signals.transition_refused, self.task, refused=refused)
            raise

    def report(self) -> Progress | None:
        """Write the newest progress if there is any that was not written; return it.

        Raises:
            StaleAttempt, AttemptEnded, StoreError: as :meth:`enter`.
        """
        with self._lock:
            progress = self._progress()
            if progress is None or content_of(progress) == content_of(self._state.progress):
                return None

            def decide(state: TaskState) -> TaskState:
                return replace(self._own(state, "progress"), progress=progress)

            self._commit(decide)
        return progress

    def leave_process(self, cause: str) -> None:
        """The run's process is ending because of ``cause``; its last progress is kept.

        It is no end: the worker's main process says how it went, and by this mark knows the run
        it speaks of, for the process may live a moment longer.
        """

        def decide(state: TaskState) -> TaskState:
            state = self._own(state, "progress")
            return replace(state, reason=f"{LEAVING}{cause}", progress=self._progress())

        self._commit(decide)

    def announce(self, progress: Progress) -> None:
        """Tell whoever listens that ``progress`` was written."""
        told = signals.Progressed(
            task=self.task,
            id=self.id,
            attempt=self.number,
            client_id=self._state.client_id,
            progress=progress,
        )
        self.tracker.send(signals.progressed, self.task, progressed=told)

    def leave(
        self,
        to_state: str,
        *,
        reason: str = "",
        error: Mapping[str, str] | None = None,
        due_at: float | None = None,
    ) -> TaskState:
        """The run is over: an end, or RETRY, IGNORED, REJECTED; its last progress is kept.

        Raises:
            StaleAttempt, AttemptEnded, StoreError: as :meth:`enter`.
        """
        tracker = self.tracker
        progress = self._progress()

        def decide(state: TaskState) -> TaskState:
            state = replace(self._own(state, to_state), progress=progress)
            # LOST of a run that only seemed so: nobody took over, so it ends as it says.
            if state.state != "LOST" and self.flow.allowed(state.state):
                self.flow.check(state.state, to_state, task=self.task, id=self.id)
            return tracker._resting_or_ended(state, to_state, reason, error, due_at)  # noqa: SLF001

        ttl = tracker._after((due_at or 0.0) - tracker.now())  # noqa: SLF001
        try:
            return self._commit(decide, ttl=ttl)
        except InvalidInput:
            # Details too large to be kept must not keep the end from being recorded.
            logger.warning("the last progress of %s[%s] is not kept", self.task, brief(self.id))
            progress = self._state.progress
            return self._commit(decide, ttl=ttl)

    def confirm(self) -> None:
        """Check that this run is still the current one.

        Raises:
            StaleAttempt: a newer run has taken over.
            AttemptEnded: the task was ended from outside.
        """
        with self._lock:
            if self._record is None:
                self.claim()
                return
            record = self.tracker.store.read(self._record.key)
            if record is not None and not record.same(self._record):
                self._own(TaskState.from_record(record), "the end of the run")

    def _progress(self) -> Progress | None:
        progress = self.reporter.snapshot()
        if content_of(progress) == Progress():
            return self._state.progress
        limit = self.tracker.store.limits.message_bytes
        return replace(progress, message=cut_text(progress.message, limit))

    def _commit(
        self,
        decide: Callable[[TaskState], TaskState | None],
        *,
        ttl: float | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> TaskState:
        with self._lock:
            if self._record is None:
                self.claim()
            written = self.tracker._commit(  # noqa: SLF001
                self.id, decide, held=self._record, ttl=ttl, detail=detail
            )
            self._record, self._state = written.record, written.state
            return written.state

    def _own(self, state: TaskState, wanted: str) -> TaskState:
        """Let only the current run pass; it knows best what a record that is gone said."""
        if state.attempt > self.number:
            fenced = signals.Fenced(
                task=self.task,
                id=self.id,
                attempt=self.number,
                current=state.attempt,
                wanted=wanted,
            )
            self.tracker.send(signals.attempt_fenced, self.task, fenced=fenced)
            raise StaleAttempt(self.task, self.id, self.number, state.attempt)
        if state.final:
            raise AttemptEnded(self.task, self.id, state.state)
        return state if state.known else self._state


def content_of(progress: Progress | None) -> Progress | None:
    """What was reported of ``progress``, without what follows from the clock."""
    return progress and replace(progress, rate=None, eta=None)


def write_settled(
    store: Store,
    record: Record,
    *,
    expect: Record | None,
    changes: Sequence[Change],
    ttl: float | None,
) -> bool:
    """As ``store.write``, but where the reply is lost it is found out what became of the write.

    The same write is repeated as long as nobody else has written: it carries its own id, so that
    one which arrives late, after its reply was given up, is known again and not applied twice.

    Raises:
        AmbiguousWrite: that cannot be told, for the record is gone or far ahead by now.
    """
    doubt: AmbiguousWrite | None = None
    for _ in range(TRIES):
        try:
            if store.write(record, expect=expect, changes=changes, ttl=ttl):
                return True
            if doubt is None:
                return False
        except AmbiguousWrite as ambiguous:
            doubt = ambiguous
        except StoreError:
            if doubt is None:
                raise
            # It is about the repetition; the first one may have been applied.
            raise doubt from None
        try:
            current = store.read(record.key)
        except StoreUnavailable:
            raise doubt from None
        applied = _applied(record, expect, current)
        if applied in ("yes", "no"):
            return applied == "yes"
        if applied == "unknown":
            raise doubt
    raise doubt or AssertionError


def _applied(
    write: Record, expect: Record | None, current: Record | None
) -> Literal["yes", "no", "not yet", "unknown"]:
    if current is None:
        return "not yet" if expect is None else "unknown"
    if expect is not None and current.same(expect):
        return "not yet"
    follows = current.follows(write)
    if follows is None:
        # Another incarnation began in the same place: ours was not, or is gone again.
        return "no" if expect is None and current.version == 1 else "unknown"
    return "yes" if follows else "no"
