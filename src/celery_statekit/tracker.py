"""The one writer of task records: read, check, write if unchanged, signal.

Every move of a task goes through :meth:`Tracker._commit`, whatever its verb. A verb decides, from
the state as read, what becomes of it; the store says whether anybody else was quicker.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final, Literal, NamedTuple, NoReturn, TypeAlias, TypeVar

from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.dispatch import Signal

from celery_statekit import signals
from celery_statekit.breaker import Breaker
from celery_statekit.chance import chance
from celery_statekit.checkpoint import Checkpoint, checked_value, name_of, with_finished, with_value
from celery_statekit.errors import (
    AmbiguousWrite,
    AttemptEnded,
    ContentionTimeout,
    CorruptRecord,
    IllegalTransition,
    InvalidInput,
    NotRunning,
    PayloadTooLarge,
    StaleAttempt,
    StateRegressed,
    StoreFull,
    brief,
)
from celery_statekit.frozen import changed
from celery_statekit.progress import NOTHING, Progress, check_nesting
from celery_statekit.record import (
    FORGOTTEN,
    FORMAT,
    REPLACED,
    Change,
    Record,
    TaskState,
    cut_text,
    dump_json,
    id_of,
    task_key,
)
from celery_statekit.reporter import Reporter
from celery_statekit.settling import write_settled
from celery_statekit.states import ENDS, WAITING, Flow
from celery_statekit.stores.base import Beside, Labels, Posted, Posts, Store

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

#: How long, in seconds, a write may go on losing races before it gives up.
DEADLINE: Final = 5.0

#: Begins the reason of a run whose process is ending.
LEAVING: Final = "its process is ending: "

#: Copied and filled: that is faster than to make one.
_NO_CHANGE: Final = Change(number=0, version=0, from_state="", to_state="", at=0.0)
_NOBODY: Final = TaskState(id="")
_QUEUED_RECORD: Final = Record(key="", version=1, incarnation="", document={})

#: Shape, incarnation, id of the write and time of a PENDING record, as a message says them.
_QUEUED: Final = re.compile(
    r"(\d{1,3}:[0-9a-f]{8}) ([0-9a-f]{8}) ([0-9a-f]{8}) (\d{1,10}\.\d{1,6})", re.ASCII
)

#: Shapes of the PENDING records that this release writes.
_queued_shapes: Final[dict[tuple[bool, bool], str]] = {}

#: How many ids of its latest writes a task's record keeps: few write it at a time.
KEPT: Final = 4

#: Seconds for which an end is kept that was forgotten.
FORGOTTEN_KEPT: Final = 60.0
#: The same of a run that was revoked: a pool of threads cannot end it, and it may go on.
REVOKED_KEPT: Final = 86400.0

#: What became of a report from outside the run.
Outcome: TypeAlias = Literal["moved", "ended", "another run"]

#: What Celery keeps of a task in the state that is about to be written; None: nothing. Only of a
#: store that can write it beside the record.
BesideOf: TypeAlias = Callable[[TaskState], Beside | None]


class _Written(NamedTuple):
    """What a commit left behind."""

    record: Record
    state: TaskState
    change: Change | None

    @property
    def changes(self) -> tuple[Change, ...]:
        """The change, if any, as stores take them."""
        return () if self.change is None else (self.change,)

    @property
    def labels(self) -> Labels:
        """What the record is found by."""
        return Labels(self.state.state, self.state.client_id)

    @property
    def guess(self) -> str:
        """The PENDING record as a message says it; "" where it is none."""
        record, at = self.record, self.state.queued_at
        if self.change is None or at is None or record.version > 1:
            return ""
        return f"{_shape(record.document)} {record.incarnation} {record.writes[-1]} {at!r}"

    def is_lost(self, found: Record | None) -> bool:
        """Whether ``found``, read later, is from before this: the store went back.

        Nobody deletes the record of a live run, and the numbers of a task's runs only grow.
        """
        if found is None or found.follows(self.record) is False:
            return True
        if found.incarnation == self.record.incarnation:
            return False
        state = TaskState.from_record(found)
        return not state.final and state.attempt <= self.state.attempt


class Tracker:
    """Writes the records of an app's tasks.

    Args:
        store: where they are kept.
        prefix: first part of every key.
        expires: seconds for which an ended task's record is kept; None: for ever.
        observe: called with every change after it was written (the task class's hook).
        now: the writer's clock in epoch seconds, for what people read; kept to the microsecond.
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
        #: What keeps a store that is away from holding up runs and publishers.
        self.breaker = Breaker(store.name)
        self.prefix = prefix
        self.expires = expires
        self.observe = observe
        self.now: Callable[[], float] = lambda: round(now(), 6)
        self._silent = silent

    def read(self, id: str) -> TaskState:
        """The task's state as recorded; ``source="nobody"`` where there is none, or none any more."""
        record = self.store.read(self.key(id))
        state = TaskState(id=id) if record is None else TaskState.from_record(record)
        return TaskState(id=id) if state.forgotten else state

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
        late: bool = False,
        since: float | None = None,
    ) -> str:
        """A message of the task was published: PENDING, unless it is known already.

        ``late`` says that it was sent before this: a run may have begun, and even been forgotten.
        ``since`` says when: of one that has begun later it is known that it is the message's.

        The record lives until the later of ``due_at`` and ``expires_at`` plus the time that ends
        are kept, so that purged and lost messages leave nothing for ever.

        Returns:
            What saves the run that is told of it a read; "" where the task is known already.
        """

        def decide(state: TaskState) -> TaskState | None:
            if state.forgotten and not late:
                state = changed(_NOBODY, id=id, attempt=state.attempt)
            if state.final and not late and (since is None or (state.started_at or 0.0) < since):
                logger.warning(
                    "%s[%s] was sent again after its end (%s): it will not run",
                    task,
                    brief(id),
                    state.state,
                )
            return None if state.known else self._queued(state, task, client_id, due_at)

        ttl = self._until(due_at, expires_at)
        return self._commit(id, decide, ttl=ttl, fresh=True).guess

    def post(
        self,
        id: str,
        task: str,
        *,
        client_id: str = "",
        due_at: float | None = None,
        expires_at: float | None = None,
    ) -> PostedTask | None:
        """As :meth:`queue`, of a message that is being published; the store is not waited for.

        None where that cannot be done at once: then nothing was done.
        """
        if self.breaker.is_open or not isinstance(self.store, Posts):
            return None
        nobody = changed(_NOBODY, id=id)
        pending = self._queued(nobody, task, client_id, due_at)
        new = self._next(self.key(id), None, nobody, pending)
        ttl = self._until(due_at, expires_at)
        posted = self.store.post(new.record, changes=new.changes, ttl=ttl, labels=new.labels)
        return None if posted is None else PostedTask(self, new, posted, ttl)

    def _queued(
        self, state: TaskState, task: str, client_id: str, due_at: float | None
    ) -> TaskState:
        return changed(
            state,
            task=task,
            state="PENDING",
            client_id=client_id,
            due_at=_to_microseconds(due_at),
            queued_at=self.now(),
        )

    def _until(self, due_at: float | None, expires_at: float | None) -> float | None:
        return self._after(max(due_at or 0.0, expires_at or 0.0) - self.now())

    def unqueue(self, id: str) -> None:
        """The message was not sent after all: the record goes, unless a run has begun."""

        def write() -> None:
            record = self.store.read(self.key(id))
            state = None if record is None else TaskState.from_record(record)
            if record and state and state.state == "PENDING" and state.changes == 1:
                # No deletion: it would also take what a run has written since it was read.
                self.store.write(record.next(record.document), expect=record, ttl=0.0)

        self.breaker.call(write, reads=True)

    def forget(self, id: str) -> None:
        """The record of a task that has ended goes soon; that of another is still needed.

        It stays for :data:`FORGOTTEN_KEPT` seconds, after REVOKED for :data:`REVOKED_KEPT`, or as
        long as ends are kept if that is shorter: a run that still lives, a PENDING that comes late
        and who watches have to find it. A task that is sent again with its id begins anew.
        """
        key = self.key(id)
        try:
            record = self.store.read(key)
            state = None if record is None else TaskState.from_record(record)
        except CorruptRecord:
            self.store.delete(key)
            return
        if record is None or state is None or not state.final or state.forgotten:
            return
        ttl = REVOKED_KEPT if state.state == "REVOKED" and state.attempt else FORGOTTEN_KEPT
        if self.expires is not None:
            ttl = min(ttl, self.expires)
        try:
            self.store.write(
                record.next({**record.document, FORGOTTEN: True}, kept=KEPT),
                expect=record,
                ttl=ttl,
                labels=Labels(state.state, state.client_id),
            )
        except StoreFull:
            self.store.delete(key)

    def attempt(
        self,
        id: str,
        task: str,
        flow: Flow,
        *,
        worker: str = "",
        client_id: str = "",
        queued: object = "",
    ) -> Attempt:
        """A run of the task that is about to begin; nothing is written before it is claimed.

        Args:
            queued: what :meth:`queue` has returned, where the message says it. It is a guess: a
                task that has moved since is read.
        """
        state = changed(_NOBODY, id=id, task=task, worker=worker, client_id=client_id)
        return Attempt(self, flow, state, self._as_queued(state, queued))

    def _as_queued(self, state: TaskState, queued: object) -> _Written | None:
        found = isinstance(queued, str) and _QUEUED.fullmatch(queued)
        if not found:
            return None
        shape, incarnation, write, at = found.groups()
        pending = changed(
            state,
            state="PENDING",
            worker="",
            version=1,
            queued_at=float(at),
            updated_at=float(at),
            changes=1,
            source="record",
        )
        key = self.key(state.id)
        # What decides which fields it has.
        kind = (state.client_id != "", id_of(key) == state.id)
        if kind not in _queued_shapes:
            _queued_shapes[kind] = _shape(pending.to_document(key))
        if shape != _queued_shapes[kind]:
            return None  # another release has written it, or more is known of it
        record = changed(_QUEUED_RECORD, key=key, incarnation=incarnation, writes=(write,))
        return _Written(record, pending, None)

    def end_from_outside(
        self,
        id: str,
        task: str,
        to_state: str,
        *,
        reason: str,
        error: Mapping[str, str] | None = None,
        meant: Callable[[TaskState], bool] | None = None,
        beside: BesideOf | None = None,
    ) -> Outcome:
        """Somebody other than the run says how it went: FAILURE, REVOKED, RETRY, REJECTED.

        Args:
            meant: given the state of a task that runs; False: another run is meant.
            beside: what Celery keeps of it, written together with the record.
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
                state = changed(state, task=state.task or task)
                return self._resting_or_ended(state, to_state, reason, error, None)
            return None

        self._commit(id, decide, ttl=self._after(0.0), beside=beside)
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
        return changed(
            state,
            state=to_state,
            reason=cut_text(reason, limit),
            error=error and {name: cut_text(text, limit) for name, text in error.items()},
            due_at=_to_microseconds(due_at),
            ended_at=self.now() if final else None,
            final=final,
        )

    def _commit(
        self,
        id: str,
        decide: Callable[[TaskState], TaskState | None],
        *,
        held: _Written | None = None,
        guess: _Written | None = None,
        fresh: bool = False,
        ttl: float | None = None,
        detail: Mapping[str, Any] | None = None,
        beside: BesideOf | None = None,
        urgent: bool = False,
        regressed: Callable[[_Written, Record | None], None] | None = None,
    ) -> _Written:
        """Write what ``decide`` makes of the state as read, and tell of the change.

        ``urgent`` writes try a store that is known to be away. ``regressed`` is told where the
        store has lost what is ``held``; it raises, or ``held`` is what counts.
        """
        written = self.breaker.call(
            lambda: self._race(id, decide, held, guess, regressed, fresh, ttl, detail, beside),
            urgent=urgent,
        )
        if written.change is not None:
            self._tell(written.change)
        return written

    def _race(
        self,
        id: str,
        decide: Callable[[TaskState], TaskState | None],
        held: _Written | None,
        guess: _Written | None,
        regressed: Callable[[_Written, Record | None], None] | None,
        fresh: bool,  # noqa: FBT001 - passed on
        ttl: float | None,
        detail: Mapping[str, Any] | None,
        beside: BesideOf | None,
    ) -> _Written:
        """Write what ``decide`` makes of the state as read, trying again while others win.

        ``held`` is what this writer last wrote, ``guess`` what another is said to have written,
        ``fresh`` says that there is likely no record yet: each saves the read. If it is not so
        the write is lost and the record is read.
        """
        known = held or guess
        key = known.record.key if known else self.key(id)
        deadline = time.monotonic() + DEADLINE
        record = known.record if known else None if fresh else self.store.read(key)
        for lost in range(1_000_000):
            if held is not None and (not lost or held.is_lost(record)):
                if lost and regressed is not None:
                    regressed(held, record)
                before = held.state
            elif guess is not None and not lost:
                before = guess.state
            else:
                before = (
                    changed(_NOBODY, id=id) if record is None else TaskState.from_record(record)
                )
            after = decide(before)
            same = beside is None and after is not None and after.state == before.state
            if after is None or (same and after == before):
                return _Written(record or Record.first(key, {}), before, None)
            new = self._next(key, record, before, after, detail)
            if write_settled(
                self.store,
                new.record,
                expect=record,
                changes=new.changes,
                ttl=ttl,
                labels=new.labels,
                beside=None if beside is None else beside(new.state),
            ):
                return new
            if time.monotonic() > deadline:
                raise ContentionTimeout(key, lost + 1, DEADLINE)
            if lost:
                time.sleep(chance.uniform(0, 0.001 * min(lost, 20)))
            record = self.store.read(key)
        raise AssertionError  # pragma: no cover - the deadline comes first

    def _next(
        self,
        key: str,
        record: Record | None,
        before: TaskState,
        after: TaskState,
        detail: Mapping[str, Any] | None = None,
    ) -> _Written:
        """What is to be written so that ``after`` follows ``before``, of which ``record`` is kept."""
        at = self.now()
        change = self._change(before, after, record, at, detail)
        after = changed(
            after,
            version=1 if record is None else record.version + 1,
            updated_at=at,
            changes=change.number if change else before.changes,
            source="record",
        )
        document = after.to_document(key)
        new = Record.first(key, document) if record is None else record.next(document, kept=KEPT)
        return _Written(new, after, change)

    def _change(
        self,
        before: TaskState,
        after: TaskState,
        record: Record | None,
        at: float,
        detail: Mapping[str, Any] | None,
    ) -> Change | None:
        if before.state == after.state and before.attempt == after.attempt and before.known:
            return None
        facts: dict[str, Any] = dict(detail or {})
        if after.error:
            facts["error"] = after.error["type"]
        if after.due_at is not None:
            facts["due_at"] = after.due_at
        return changed(
            _NO_CHANGE,
            number=before.changes + 1,
            version=1 if record is None else record.version + 1,
            from_state=before.state if before.known else "",
            to_state=after.state,
            at=at,
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


class PostedTask:
    """A PENDING that was sent to the store, while its message is being published."""

    def __init__(
        self, tracker: Tracker, written: _Written, posted: Posted, ttl: float | None
    ) -> None:
        self._tracker = tracker
        self._written = written
        self._posted = posted
        self._ttl = ttl
        self._doubt: AmbiguousWrite | None = None
        #: When it was sent, by this process's clock.
        self.at = written.state.updated_at
        #: What saves the run that is told of it a read.
        self.guess = written.guess

    def is_written(self, seconds: float) -> bool:
        """Whether the task is PENDING now; waits for the store at most ``seconds``, once.

        False: something was known of its id already.

        Raises:
            StoreError: it is not known whether it is; :meth:`settle` finds out.
        """
        try:
            written = self._posted.is_written(seconds)
        except AmbiguousWrite as exc:
            self._doubt = exc
            raise
        return self._told(written=written)

    def settle(self) -> bool:
        """As :meth:`is_written`, where that has raised; waits for as long as a write may take.

        The same record is sent again, so that it is known where the first one was taken.
        """
        return self._told(written=self._tracker.breaker.call(self._send_again))

    def _send_again(self) -> bool:
        new, store = self._written, self._tracker.store
        try:
            return write_settled(
                store,
                new.record,
                expect=None,
                changes=new.changes,
                ttl=self._ttl,
                labels=new.labels,
                doubt=self._doubt,
            )
        except AmbiguousWrite:
            # The store has answered where a run was quicker: the record is that run's.
            found = store.read(new.record.key)
            if found is None or found.incarnation == new.record.incarnation:
                raise
            return False

    def _told(self, *, written: bool) -> bool:
        if written and self._written.change is not None:
            self._tracker._tell(self._written.change)  # noqa: SLF001 - of the tracker
        return written


class Attempt:
    """One run of a task, from its claim to its end: what the run may write, and no other.

    Its writes come from the task's thread and from the flusher's; a lock keeps them in order.
    """

    def __init__(
        self, tracker: Tracker, flow: Flow, state: TaskState, queued: _Written | None = None
    ) -> None:
        self.tracker = tracker
        self.flow = flow
        self.reporter = Reporter()
        #: Number of the run, and the fence of its writes; 0 until it is claimed.
        self.number = 0
        #: Version of the newest state that was written together with what Celery keeps of it.
        self.shown = 0
        #: The record as this run last wrote it.
        self._written: _Written | None = None
        #: Version and incarnation to which the store went back, when that was raised.
        self._regress: tuple[int, str] | None = None
        self._state = state
        #: What the attempts before this one left; None: nothing, or it is not claimed.
        self._left: Checkpoint | None = None
        #: The record as who sent the message wrote it; None: it has to be read.
        self._queued = queued
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

    def claim(self, beside: BesideOf | None = None, *, urgent: bool = False) -> TaskState:
        """The run begins: STARTED, one attempt higher than any before it.

        Args:
            beside: what Celery keeps of it, written together with the record.
            urgent: try a store that is known to be away.

        Raises:
            AttemptEnded: the task has come to its end already.
            StoreError: it could not be written; the next write of the run claims again.
        """
        begun = self._state

        def decide(state: TaskState) -> TaskState:
            if state.forgotten:
                state = changed(_NOBODY, id=begun.id, attempt=state.attempt)
            if state.final:
                raise AttemptEnded(begun.task, begun.id, state.state)
            return changed(
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
                checkpoint=state.checkpoint and _left_for(begun.task, state),
            )

        with self._lock:
            guess, self._queued = self._queued, None
            written = self.tracker._commit(  # noqa: SLF001 - one class in two halves
                self.id, decide, guess=guess, beside=beside, urgent=urgent
            )
            self._written, self._state = written, written.state
            self.number = written.state.attempt
            self._left = written.state.checkpoint
            if beside is not None:
                self.shown = written.state.version
            return written.state

    def enter(
        self,
        to_state: str,
        *,
        reason: str = "",
        detail: Mapping[str, Any] | None = None,
        beside: BesideOf | None = None,
    ) -> TaskState:
        """The run enters ``to_state`` of its flow; what progress it made until now is kept.

        Raises:
            IllegalTransition: the flow does not allow it; nothing was changed.
            StaleAttempt: a newer run has taken over.
            AttemptEnded: the task was ended from outside.
            StateRegressed: the store went back to an older version; it was not entered. Raised
                once: the next write puts back what this run knows.
            StoreError: it could not be written; the record stands where it stood.
        """
        limits = self.tracker.store.limits
        reason = cut_text(reason, limits.message_bytes)
        if detail:
            _check_detail(detail, limits.record_bytes)

        def decide(state: TaskState) -> TaskState:
            state = self._own(state, to_state)
            self.flow.check(
                state.state, to_state, task=self.task, id=self.id, subject=state, by_hand=True
            )
            return changed(state, state=to_state, reason=reason, progress=self._progress())

        try:
            return self._commit(decide, detail=detail, beside=beside, urgent=True)
        except IllegalTransition as refusal:
            refused = signals.Refused(
                task=self.task, id=self.id, attempt=self.number, error=refusal
            )
            self.tracker.send(signals.transition_refused, self.task, refused=refused)
            raise

    def report(self, beside: BesideOf | None = None) -> Progress | None:
        """Write the newest progress if there is any that was not written; return it.

        Raises:
            StaleAttempt, AttemptEnded, StoreError: as :meth:`enter`.
        """
        with self._lock:
            progress = self._progress()
            if progress is None or content_of(progress) == content_of(self._state.progress):
                if self._finished_more():
                    self._commit_unseen(lambda state: self._own(state, "progress"))
                return None

            def decide(state: TaskState) -> TaskState:
                return changed(self._own(state, "progress"), progress=progress)

            self._commit(decide, beside=beside)
        return progress

    def checkpoint(self, value: Any) -> None:
        """The run leaves ``value`` for the next attempt, in place of what was left before.

        Raises:
            InvalidInput: it is no JSON; nothing was changed.
            PayloadTooLarge: it takes more than a quarter of a record's bytes; nothing was changed.
            NotRunning: the run has left already: for a retry, or for another task in its place.
            StaleAttempt, AttemptEnded, StateRegressed, StoreError: as :meth:`enter`.
        """
        value = checked_value(value, self.tracker.store.limits.record_bytes)

        def decide(state: TaskState) -> TaskState:
            state = self._own(state, "a checkpoint")
            if state.state in WAITING:
                raise NotRunning(self.task, "checkpoint")
            at = self.tracker.now()
            made = with_value(state.checkpoint, value, attempt=self.number, at=at)
            return changed(state, checkpoint=made)

        self._commit_unseen(decide, urgent=True)

    def left(self) -> Checkpoint | None:
        """What the attempts before this one left; None: nothing.

        Raises:
            AttemptEnded, StoreError: it is not known, for the run could not be claimed.
        """
        with self._lock:
            if self._written is None:
                self.claim(urgent=True)
            return self._left

    def track(
        self, iterable: Iterable[_T], message: str, total: float | None, *, resume: bool | str
    ) -> Iterator[_T]:
        """Iterate and report; with ``resume`` from where the last attempt was.

        Raises:
            InvalidInput: ``resume`` is no name, or that of another track of this run.
            AttemptEnded, StoreError: as :meth:`left`; only with ``resume``.
        """
        if resume is False:
            return self.reporter.track(iterable, message, total)
        name, left = name_of(resume), self.left()
        skip = 0 if left is None else left.finished.get(name, 0)
        return self.reporter.track(iterable, message, total, name=name, skip=skip)

    def show(self, beside: BesideOf) -> None:
        """Write the state as it stands, and with it what Celery keeps of it.

        Raises:
            StaleAttempt, AttemptEnded, StoreError: as :meth:`enter`.
        """
        self._commit(lambda state: self._own(state, "what is shown"), beside=beside)

    def leave_process(self, cause: str) -> None:
        """The run's process is ending because of ``cause``; its last progress is kept.

        It is no end: the worker's main process says how it went, and by this mark knows the run
        it speaks of, for the process may live a moment longer.
        """

        def decide(state: TaskState) -> TaskState:
            state = self._own(state, "progress")
            return changed(state, reason=f"{LEAVING}{cause}", progress=self._progress())

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
        beside: BesideOf | None = None,
    ) -> TaskState:
        """The run is over: an end, or RETRY, IGNORED, REJECTED; its last progress is kept.

        Raises:
            StaleAttempt, AttemptEnded, StoreError: as :meth:`enter`.
        """
        tracker = self.tracker
        progress = self._progress()

        def decide(state: TaskState) -> TaskState:
            state = changed(self._own(state, to_state), progress=progress)
            # LOST of a run that only seemed so: nobody took over, so it ends as it says.
            if state.state != "LOST" and self.flow.allowed(state.state):
                self.flow.check(state.state, to_state, task=self.task, id=self.id)
            return tracker._resting_or_ended(state, to_state, reason, error, due_at)  # noqa: SLF001

        ttl = tracker._after((due_at or 0.0) - tracker.now())  # noqa: SLF001
        try:
            return self._commit(decide, ttl=ttl, beside=beside)
        except InvalidInput:
            # Details too large to be kept must not keep the end from being recorded.
            logger.warning("the last progress of %s[%s] is not kept", self.task, brief(self.id))
            progress = self._state.progress
            return self._commit(decide, ttl=ttl, beside=beside)

    def confirm(self, *, only_looks: bool = False) -> None:
        """Check that this run is still the current one.

        Args:
            only_looks: leave it to the next write to find that the store went back.

        Raises:
            StaleAttempt: a newer run has taken over.
            AttemptEnded: the task was ended from outside.
        """
        with self._lock:
            if self._written is None:
                self.claim()
                return
            held, tracker = self._written, self.tracker
            record = tracker.breaker.call(lambda: tracker.store.read(held.record.key), reads=True)
            if held.is_lost(record):
                if not only_looks:
                    self._went_back(False, held, record)
            elif record is not None and not record.same(held.record):
                self._own(TaskState.from_record(record), "the end of the run")

    def _progress(self) -> Progress | None:
        if self.reporter.untouched:
            return self._state.progress
        progress = self.reporter.snapshot()
        if content_of(progress) == NOTHING:
            return self._state.progress
        message = cut_text(progress.message, self.tracker.store.limits.message_bytes)
        return changed(progress, message=message)

    def _commit(
        self,
        decide: Callable[[TaskState], TaskState | None],
        *,
        ttl: float | None = None,
        detail: Mapping[str, Any] | None = None,
        beside: BesideOf | None = None,
        urgent: bool = False,
    ) -> TaskState:
        with self._lock:
            if self._written is None:
                self.claim(urgent=urgent)
            written = self.tracker._commit(  # noqa: SLF001
                self.id,
                decide,
                held=self._written,
                ttl=ttl,
                detail=detail,
                beside=beside,
                urgent=urgent,
                regressed=partial(self._went_back, urgent),
            )
            self._written, self._state = written, written.state
            if beside is not None:
                self.shown = written.state.version
            return written.state

    def _went_back(self, raises: bool, held: _Written, found: Record | None) -> None:  # noqa: FBT001 - bound
        """The store has lost what this run wrote: say it once, then put it back."""
        version, incarnation = (found.version, found.incarnation) if found else (0, "")
        if found is not None and incarnation != held.record.incarnation:
            state = TaskState.from_record(found)
            if state.attempt:
                # Of two runs that both think they are the current one the later has begun since.
                self._fence(state.attempt, "what was lost")
        if self._regress == (version, incarnation):
            return
        self._regress = version, incarnation
        error = StateRegressed(held.record.key, held.record.version, version)
        if raises:
            raise error
        logger.warning("%s; what the run knows is written again", error)

    def _fence(self, current: int, wanted: str) -> NoReturn:
        fenced = signals.Fenced(
            task=self.task, id=self.id, attempt=self.number, current=current, wanted=wanted
        )
        self.tracker.send(signals.attempt_fenced, self.task, fenced=fenced)
        raise StaleAttempt(self.task, self.id, self.number, current)

    def _own(self, state: TaskState, wanted: str) -> TaskState:
        """Let only the current run pass; it knows best what a record that is gone said."""
        if state.attempt > self.number:
            self._fence(state.attempt, wanted)
        if state.final:
            raise AttemptEnded(self.task, self.id, state.state)
        state = state if state.known else self._state
        finished = self.reporter.finished
        if not finished:
            return state
        return changed(state, checkpoint=with_finished(state.checkpoint, finished))

    def _commit_unseen(
        self, decide: Callable[[TaskState], TaskState], *, urgent: bool = False
    ) -> None:
        """Write what changes nothing of what Celery keeps: it need not be shown again."""
        with self._lock:
            is_shown = self._written is not None and self.shown == self._state.version
            self._commit(decide, urgent=urgent)
            if is_shown:
                self.shown = self._state.version

    def _finished_more(self) -> bool:
        left, finished = self._state.checkpoint, self.reporter.finished
        return bool(finished) and with_finished(left, finished) != left


def _left_for(task: str, state: TaskState) -> Checkpoint | None:
    """What is left for the next attempt, if it is one of the same task and of the same work."""
    replaced = state.state == "IGNORED" and state.reason.startswith(REPLACED)
    return None if replaced or state.task != task else state.checkpoint


def _shape(document: Mapping[str, Any]) -> str:
    """The format of a record, and a checksum of what fields it has."""
    return f"{FORMAT}:{zlib.crc32(' '.join(sorted(document)).encode()):08x}"


def content_of(progress: Progress | None) -> Progress | None:
    """What was reported of ``progress``, without what follows from the clock."""
    return progress and changed(progress, rate=None, eta=None)


def _to_microseconds(at: float | None) -> float | None:
    return None if at is None else round(at, 6)


def _check_detail(detail: Mapping[str, Any], limit: int) -> None:
    try:
        check_nesting(detail)
    except (TypeError, ValueError) as exc:
        raise InvalidInput(f"detail is no JSON ({exc})", "detail", detail, "JSON") from exc
    size = len(dump_json(detail, "detail", "detail").encode())
    if size > limit:
        raise PayloadTooLarge("detail too large", "detail", size, f"{limit} bytes")
