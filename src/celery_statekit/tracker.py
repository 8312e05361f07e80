"""The one writer of task records: read, check, write if unchanged, signal.

Every move of a task goes through :meth:`Tracker.commit`, whatever its verb. A verb decides, from
the state as read, what becomes of it; the store says whether anybody else was quicker.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.dispatch import Signal

from celery_statekit import signals
from celery_statekit.asked import CANCEL, PAUSE, WHAT, Answer, Asked, left_of
from celery_statekit.breaker import Breaker
from celery_statekit.chance import chance
from celery_statekit.errors import (
    ContentionTimeout,
    CorruptRecord,
    InvalidInput,
    StoreFull,
    UnknownTask,
    brief,
)
from celery_statekit.frozen import changed
from celery_statekit.leases import Terms
from celery_statekit.record import (
    FORGOTTEN,
    REPLACED,
    Change,
    Record,
    TaskState,
    check_id,
    cut_text,
    task_key,
)
from celery_statekit.settling import write_settled
from celery_statekit.states import ENDS, LOST, WAITING
from celery_statekit.stores.base import Beside, Labels, Renews, Store
from celery_statekit.written import NOBODY, Written

logger = logging.getLogger(__name__)

#: How long, in seconds, a write may go on losing races before it gives up.
DEADLINE: Final = 5.0

#: Copied and filled: that is faster than to make one.
_NO_CHANGE: Final = Change(number=0, version=0, from_state="", to_state="", at=0.0)

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


#: Seconds for which a record is kept from its write on, where that follows from what is written.
TtlOf: TypeAlias = Callable[[TaskState], float | None]


class Answered(NamedTuple):
    """What became of what was asked of a task, and its state then."""

    answer: Answer
    state: TaskState

    @property
    def changed(self) -> bool:
        """Whether it was written."""
        return self.answer in ("asked", "revoked", "resumed")


class Tracker:
    """Writes the records of an app's tasks.

    Args:
        store: where they are kept.
        prefix: first part of every key.
        expires: seconds for which an ended task's record is kept; None: for ever.
        observe: called with every change after it was written (the task class's hook).
        now: the writer's clock in epoch seconds, for what people read; kept to the microsecond.
        silent: send no signal (a task that is called directly leaves no trace).
        lease: seconds for which a run counts as alive unless renewed; None: runs hold no leases,
            and the newest attempt wins.
        renewal: seconds between two renewals.
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
        lease: float | None = None,
        renewal: float = 10.0,
    ) -> None:
        self.store = store
        #: What keeps a store that is away from holding up runs and publishers.
        self.breaker = Breaker(store.name)
        #: On which terms runs hold their leases; None: they hold none.
        self.terms: Terms | None = None
        if lease is not None and isinstance(store, Renews):
            self.terms = Terms(store, self.breaker, lease, renewal)
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
                state = changed(NOBODY, id=id, attempt=state.attempt)
            if state.final and not late and (since is None or (state.started_at or 0.0) < since):
                logger.warning(
                    "%s[%s] was sent again after its end (%s): it will not run",
                    task,
                    brief(id),
                    state.state,
                )
            return None if state.known else self.queued(state, task, client_id, due_at)

        ttl = self.kept_until(due_at, expires_at)
        return self.commit(id, decide, ttl=ttl, fresh=True).guess

    def queued(
        self, state: TaskState, task: str, client_id: str, due_at: float | None
    ) -> TaskState:
        """What ``state`` becomes when a message of the task is published."""
        return changed(
            state,
            task=task,
            state="PENDING",
            client_id=client_id,
            due_at=to_microseconds(due_at),
            queued_at=self.now(),
        )

    def kept_until(self, due_at: float | None, expires_at: float | None) -> float | None:
        """Seconds for which PENDING is kept of a message that may wait until then."""
        return self.kept_for(max(due_at or 0.0, expires_at or 0.0) - self.now())

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
        may_come = state.attempt or state.awaits_message
        ttl = REVOKED_KEPT if state.state == "REVOKED" and may_come else FORGOTTEN_KEPT
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
                why = (state.cancelled_why or reason) if to_state == "REVOKED" else reason
                return self.resting_or_ended(state, to_state, why, error, None)
            return None

        self.commit(id, decide, ttl=self.kept_for(0.0), beside=beside)
        return outcome

    def lose(self, id: str, meant: Callable[[TaskState], bool], *, reason: str) -> TaskState | None:
        """The run is gone, and nobody has said how it ended: LOST, and ``task_lost`` is told of.

        Args:
            meant: given the state of a task that runs; False: another run, or one that lives.

        Returns:
            The state as it was written; None where nothing was.
        """
        lost = False

        def decide(state: TaskState) -> TaskState | None:
            nonlocal lost
            lost = state.running and meant(state)
            if not lost:
                return None
            return changed(
                state,
                state=LOST,
                reason=cut_text(reason, self.store.limits.message_bytes),
                losses=state.losses + 1,
                lease=None,
            )

        written = self.commit(id, decide, ttl=self.kept_for(0.0))
        if not lost or written.change is None:
            return None
        state = written.state
        told = signals.Lost(
            task=state.task,
            id=state.id,
            attempt=state.attempt,
            worker=state.worker,
            client_id=state.client_id,
            losses=state.losses,
            reason=state.reason,
        )
        self.send(signals.task_lost, state.task, lost=told)
        return state

    def queue_again(self, lost: TaskState, *, reason: str) -> bool:
        """A message of a task that is LOST was sent again: PENDING, unless it has been taken up."""

        def decide(state: TaskState) -> TaskState | None:
            if state.state != LOST or state.attempt != lost.attempt:
                return None
            return changed(state, state="PENDING", reason=reason, queued_at=self.now())

        return self.commit(lost.id, decide, ttl=self.kept_for(0.0)).change is not None

    # --- what is asked of a task ------------------------------------------------------------

    def ask(
        self,
        id: str,
        what: str,
        *,
        reason: str = "",
        by: str = "",
        beside: BesideOf | None = None,
    ) -> Answered:
        """Ask the task to end (``cancel``), or to wait until it is resumed (``pause``).

        A run sees it at its next state call: it need not read for that, for its next write loses
        its race. A task that is not running and is cancelled ends at once, as REVOKED.

        Args:
            reason: why, in words; cut like every reason.
            by: who asks.
            beside: what Celery keeps of it, written together with an end.

        Raises:
            UnknownTask: no record knows the id.
            InvalidInput: ``what`` may not be asked, ``reason`` is no text, ``by`` no short one.
        """
        if what not in WHAT:
            raise InvalidInput("nothing to ask", "what", what, " or ".join(WHAT))
        if not isinstance(reason, str):
            raise InvalidInput("reason is no text", "reason", reason, "a str")
        reason = cut_text(reason, self.store.limits.message_bytes)
        asked = Asked(what=what, reason=reason, by=check_actor(by), at=self.now())
        answer: Answer = "asked"

        def decide(state: TaskState) -> TaskState | None:
            nonlocal answer
            _check_known(state)
            answer = _answer(state, what)
            if answer == "revoked":
                ended = self.resting_or_ended(state, "REVOKED", reason, None, None)
                return changed(ended, asked=asked)
            return changed(state, asked=asked) if answer == "asked" else None

        written = self.commit(
            id,
            decide,
            ttl=self._kept_waiting,
            beside=beside and (lambda state: beside(state) if state.final else None),
            urgent=True,
        )
        return Answered(answer, written.state)

    def resume(self, id: str, *, by: str = "") -> Answered:
        """Let a paused task go on; one that was paused and has not begun is not held any more.

        Raises:
            UnknownTask: no record knows the id.
            InvalidInput: ``by`` is no short text.
        """
        check_actor(by)
        answer: Answer = "resumed"

        def decide(state: TaskState) -> TaskState | None:
            nonlocal answer
            _check_known(state)
            if _is_over(state):
                answer = "ended"
            elif state.asked is None or state.asked.what != PAUSE:
                answer = "not paused"
            else:
                answer = "resumed"
                return changed(state, asked=None)
            return None

        written = self.commit(id, decide, ttl=self._kept_waiting, urgent=True)
        if answer == "resumed":
            logger.info("%s[%s] is resumed%s", written.state.task, brief(id), by and f" by {by}")
        return Answered(answer, written.state)

    def take_cancelled(self, id: str) -> TaskState | None:
        """All that hangs on a cancelled task is told: after its run, or when its message has come.

        Returns:
            Its state, to the first who asks; None to all others, and of any other task.
        """
        taken = False

        def decide(state: TaskState) -> TaskState | None:
            nonlocal taken
            taken = state.awaits_message and not state.forgotten and state.asked is not None
            if not taken or state.asked is None:
                return None
            return changed(state, asked=replace(state.asked, seen=True))

        written = self.commit(id, decide, ttl=self.kept_for(0.0))
        return written.state if taken else None

    def _kept_waiting(self, state: TaskState) -> float | None:
        return None if state.running else self.kept_for((state.due_at or 0.0) - self.now())

    # --- the write --------------------------------------------------------------------------

    def kept_for(self, seconds: float) -> float | None:
        """Seconds for which a record is kept that nobody works on for ``seconds`` from now."""
        return None if self.expires is None else self.expires + max(seconds, 0.0)

    def resting_or_ended(
        self,
        state: TaskState,
        to_state: str,
        reason: str,
        error: Mapping[str, str] | None,
        due_at: float | None,
    ) -> TaskState:
        """What ``state`` becomes in an end, or a resting place."""
        final = to_state in ENDS
        limit = self.store.limits.message_bytes
        return changed(
            state,
            state=to_state,
            reason=cut_text(reason, limit),
            error=error and {name: cut_text(text, limit) for name, text in error.items()},
            due_at=to_microseconds(due_at),
            ended_at=self.now() if final else None,
            final=final,
            asked=left_of(state.asked, ends=final),
            lease=None,
            losses=state.losses if final else 0,
            message="",
        )

    def commit(
        self,
        id: str,
        decide: Callable[[TaskState], TaskState | None],
        *,
        held: Written | None = None,
        guess: Written | None = None,
        fresh: bool = False,
        ttl: float | TtlOf | None = None,
        detail: Mapping[str, Any] | None = None,
        beside: BesideOf | None = None,
        urgent: bool = False,
        regressed: Callable[[Written, Record | None], None] | None = None,
    ) -> Written:
        """Write what ``decide`` makes of the state as read, and tell of the change.

        ``urgent`` writes try a store that is known to be away. ``regressed`` is told where the
        store has lost what is ``held``; it raises, or ``held`` is what counts.
        """
        written = self.breaker.call(
            lambda: self._race(id, decide, held, guess, regressed, fresh, ttl, detail, beside),
            urgent=urgent,
        )
        if written.change is not None:
            self.tell(written.change)
        return written

    def _race(
        self,
        id: str,
        decide: Callable[[TaskState], TaskState | None],
        held: Written | None,
        guess: Written | None,
        regressed: Callable[[Written, Record | None], None] | None,
        fresh: bool,  # noqa: FBT001 - passed on
        ttl: float | TtlOf | None,
        detail: Mapping[str, Any] | None,
        beside: BesideOf | None,
    ) -> Written:
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
                before = changed(NOBODY, id=id) if record is None else TaskState.from_record(record)
            after = decide(before)
            same = beside is None and after is not None and after.state == before.state
            if after is None or (same and after == before):
                return Written(record or Record.first(key, {}), before, None)
            new = self.following(key, record, before, after, detail)
            if write_settled(
                self.store,
                new.record,
                expect=record,
                changes=new.changes,
                ttl=ttl(new.state) if callable(ttl) else ttl,
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

    def following(
        self,
        key: str,
        record: Record | None,
        before: TaskState,
        after: TaskState,
        detail: Mapping[str, Any] | None = None,
    ) -> Written:
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
        return Written(new, after, change)

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
        if after.state == "REVOKED" and after.asked and after.asked.by:
            facts["by"] = after.asked.by
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

    def tell(self, change: Change) -> None:
        """Tell who listens of a change that was written."""
        self.send(signals.state_changed, change.task, change=change)
        if self.observe is not None:
            try:
                self.observe(change)
            except SoftTimeLimitExceeded:
                raise
            except Exception:
                logger.exception("on_state_change of %s raised", change.task)


def check_actor(by: object) -> str:
    """Return ``by`` if it may say who asks; "" says nothing.

    Raises:
        InvalidId: it is no printable ``str`` of at most 200 bytes.
    """
    return "" if by == "" else check_id(by, "by")


def _check_known(state: TaskState) -> None:
    if not state.known or state.forgotten:
        raise UnknownTask(state.id, 0.0)


def _is_over(state: TaskState) -> bool:
    """Whether nothing more will come: an end, or ignored without another task in its place."""
    return state.final or (state.state == "IGNORED" and not state.reason.startswith(REPLACED))


def _answer(state: TaskState, what: str) -> Answer:
    if _is_over(state):
        return "ended"
    if what == CANCEL and not state.running:
        return "revoked"
    if state.asked is not None and state.asked.what in (what, CANCEL):
        return "again"
    return "asked"


def to_microseconds(at: float | None) -> float | None:
    """A moment as exactly as a record keeps it."""
    return None if at is None else round(at, 6)
