"""One run of a task: what it may write, and no other."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final, NoReturn, TypeVar

from celery_statekit import signals
from celery_statekit.asked import CANCEL, PAUSE, Asked
from celery_statekit.breaker import log_failure
from celery_statekit.checkpoint import Checkpoint, checked_value, name_of, with_finished, with_value
from celery_statekit.errors import (
    AlreadyRunning,
    AttemptEnded,
    Cancelled,
    IllegalTransition,
    InvalidId,
    InvalidInput,
    NotRunning,
    PayloadTooLarge,
    PoisonTask,
    StaleAttempt,
    StatekitError,
    StateRegressed,
    brief,
)
from celery_statekit.frozen import changed
from celery_statekit.leases import Lease, lease_ended, renewer, seconds_left, wait_for_renewal
from celery_statekit.news import news_of
from celery_statekit.progress import NOTHING, Progress, check_nesting
from celery_statekit.record import REPLACED, Record, TaskState, cut_text, dump_json
from celery_statekit.reporter import Reporter
from celery_statekit.states import LOST, WAITING, Flow
from celery_statekit.tracker import BesideOf, Tracker
from celery_statekit.written import NOBODY, Written, as_queued

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

#: Begins the reason of a run whose process is ending.
LEAVING: Final = "its process is ending: "


class Attempt:
    """One run of a task, from its claim to its end: what the run may write, and no other.

    Its writes come from the task's thread and from the flusher's; a lock keeps them in order.
    """

    def __init__(
        self, tracker: Tracker, flow: Flow, state: TaskState, queued: Written | None = None
    ) -> None:
        self.tracker = tracker
        self.flow = flow
        self.reporter = Reporter()
        #: Number of the run, and the fence of its writes; 0 until it is claimed.
        self.number = 0
        #: Version of the newest state that was written together with what Celery keeps of it.
        self.shown = 0
        #: The record as this run last wrote it.
        self._written: Written | None = None
        #: Version and incarnation to which the store went back, when that was raised.
        self._regress: tuple[int, str] | None = None
        self._state = state
        #: What the attempts before this one left; None: nothing, or it is not claimed.
        self._left: Checkpoint | None = None
        #: The record as who sent the message wrote it; None: it has to be read.
        self._queued = queued
        #: By which it counts as alive; None: it holds none.
        self._lease: Lease | None = None
        self._most_losses: int | None = None
        #: Whether it was last seen to be said to be gone.
        self._seems_lost = False
        #: Whether what was to go before it has not come.
        self._is_overdue = False
        #: Ends that its lease is renewed.
        self._drop: Callable[[], None] | None = None
        #: The cancel that the run was told of; None: of none.
        self.cancelled: Asked | None = None
        #: Whether the reporter is to have the run heed what was asked.
        self._halts = False
        #: Set where what is asked has changed.
        self._woken = threading.Event()
        self._lock = threading.RLock()

    @classmethod
    def of(
        cls,
        tracker: Tracker,
        id: str,
        task: str,
        flow: Flow,
        *,
        worker: str = "",
        client_id: str = "",
        queued: object = "",
        comes_again: bool = False,
        message: str = "",
        retries: int = 0,
        most_losses: int | None = None,
    ) -> Attempt:
        """A run of the task that is about to begin; nothing is written before it is claimed.

        Args:
            comes_again: whether the broker delivers the message again where the run is lost.
            message: what of it is needed then, as JSON text.
            retries: how many runs before it have asked for another one.
            most_losses: how many runs of the task may be lost one after the other; None: any number.
            queued: what :meth:`Tracker.queue` has returned, where the message says it. It is a
                guess: a task that has moved since is read.
        """
        try:
            key = tracker.key(id)
        except InvalidId:
            key = ""  # of such a task nothing can be written; it runs all the same
        state = changed(NOBODY, id=id, task=task, worker=worker, client_id=client_id)
        begun = state
        if comes_again or message or retries:
            begun = changed(state, comes_again=comes_again, message=message, retries=retries)
        attempt = cls(tracker, flow, begun, as_queued(state, key, key and queued))
        attempt._most_losses = most_losses
        if key and tracker.terms is not None:
            attempt._lease = Lease(tracker.terms, key, worker)
        return attempt

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
            AlreadyRunning: another run of the task is alive.
            AttemptEnded: the task has come to its end already.
            PoisonTask: as many runs of the task were lost as may be.
            StoreError: it could not be written; the next write of the run claims again.
        """
        lease = self._lease
        with self._lock:
            if lease is not None and self._drop is None:
                # Before it is claimed: another run of this process looks whether this one lives.
                self._drop = renewer().hold(lease)
            while True:
                guess, self._queued = self._queued, None
                try:
                    written = self.tracker.commit(
                        self.id, self._begin, guess=guess, beside=beside, urgent=urgent
                    )
                except _Runs as other:
                    self._lose(other.state)
                    continue
                except _Waits as other:
                    self._wait_behind(other.state)
                    continue
                except (AttemptEnded, PoisonTask):
                    self.release()
                    raise
                break
            self._written, self._state = written, written.state
            self.number = written.state.attempt
            self._left = written.state.checkpoint
            self._note()
            if beside is not None:
                self.shown = written.state.version
            return written.state

    def _begin(self, state: TaskState) -> TaskState:
        begun, lease = self._state, self._lease
        if state.forgotten and not state.awaits_message:
            state = changed(NOBODY, id=begun.id, attempt=state.attempt)
        if state.final:
            raise AttemptEnded(begun.task, begun.id, state.state)
        if lease is not None and state.running and state.lease is not None:
            raise _Runs(state)
        if lease is not None and not self._is_overdue and _is_behind(begun, state):
            raise _Waits(state)
        most = self._most_losses
        if state.state == LOST and most is not None and state.losses >= most:
            raise PoisonTask(begun.task, begun.id, state.attempt, state.worker, state.losses)
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
            lease=None if lease is None else lease.terms.seconds,
            comes_again=begun.comes_again,
            message=begun.message,
            retries=begun.retries,
        )

    def _lose(self, other: TaskState) -> None:
        """Another run stands in the record: see that it is LOST, if it is.

        Raises:
            AlreadyRunning: it is alive.
        """
        lease, tracker = self._lease, self.tracker
        left, reason = 0.0, "its process does not run it any more"
        # Of a process of the same name and number, that of this run, another is known to be gone.
        if lease is None or other.worker != lease.owner or renewer().holds(lease):
            reason = lease_ended(other)
            left = self._left_of(other)
            if not left:
                wait_for_renewal(tracker.terms)
                left = self._left_of(other)
        if left:
            self.release()
            raise AlreadyRunning(
                other.task, other.id, self.number, other.attempt, other.worker, left
            )
        tracker.lose(self.id, lambda state: state.version == other.version, reason=reason)

    def _wait_behind(self, other: TaskState) -> None:
        """A run has left for another one, whose message is not this one: that goes first.

        Raises:
            AlreadyRunning: it may still come.
        """
        terms = self._lease and self._lease.terms
        seconds = (other.due_at or 0.0) - (other.updated_at or 0.0) if other.due_at else 0.0
        seconds = max(seconds, 0.0) + (terms.seconds if terms else 0.0)
        left = self._left_of(changed(other, lease=seconds))
        if left:
            self.release()
            raise AlreadyRunning(
                other.task, other.id, self.number, other.attempt, other.worker, left
            )
        self._is_overdue = True  # it was never sent, or is lost

    def _left_of(self, other: TaskState) -> float:
        tracker = self.tracker
        return tracker.breaker.call(
            lambda: seconds_left(tracker.store, tracker.key(self.id), other) or 0.0, reads=True
        )

    def release(self) -> None:
        """The run is over, or does not begin: its lease is not renewed any more."""
        drop, self._drop = self._drop, None
        if drop is not None:
            drop()

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
            Cancelled: the task was cancelled; nothing was changed.
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
            state = self._heeded(self._own(state, to_state))
            self.flow.check(
                state.state, to_state, task=self.task, id=self.id, subject=state, by_hand=True
            )
            return changed(state, state=to_state, reason=reason, progress=self._progress())

        try:
            return self._call(
                lambda: self._commit(decide, detail=detail, beside=beside, urgent=True)
            )
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
            Cancelled, StaleAttempt, AttemptEnded, StateRegressed, StoreError: as :meth:`enter`.
        """
        value = checked_value(value, self.tracker.store.limits.record_bytes)

        def decide(state: TaskState) -> TaskState:
            state = self._heeded(self._own(state, "a checkpoint"))
            if state.state in WAITING:
                raise NotRunning(self.task, "checkpoint")
            at = self.tracker.now()
            made = with_value(state.checkpoint, value, attempt=self.number, at=at)
            return changed(state, checkpoint=made)

        self._call(lambda: self._commit_unseen(decide, urgent=True))

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
            own = changed(self._own(state, "progress"), progress=self._progress())
            if state.state == LOST:
                # Who ends the process has said so: it does not go on.
                return changed(state, progress=own.progress, checkpoint=own.checkpoint)
            return changed(own, reason=f"{LEAVING}{cause}")

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
        kept: dict[str, Any] = {"progress": self._progress()}

        def decide(state: TaskState) -> TaskState:
            state = changed(self._own(state, to_state), **kept)
            if to_state == "RETRY" and state.asked is not None and state.asked.what == CANCEL:
                raise self._cancel(state.asked)
            if self.flow.allowed(state.state):
                self.flow.check(state.state, to_state, task=self.task, id=self.id)
            return tracker.resting_or_ended(state, to_state, reason, error, due_at)

        ttl = tracker.kept_for((due_at or 0.0) - tracker.now())
        try:
            left = self._leave(decide, kept, ttl, beside)
        except (StaleAttempt, AttemptEnded):
            self.release()
            raise
        # Not before: what was sent for it, and its end, are still the run's.
        self.release()
        return left

    def _leave(
        self,
        decide: Callable[[TaskState], TaskState],
        kept: dict[str, Any],
        ttl: float | None,
        beside: BesideOf | None,
    ) -> TaskState:
        try:
            return self._commit(decide, ttl=ttl, beside=beside)
        except InvalidInput:
            # Details too large to be kept must not keep the end from being recorded.
            logger.warning("the last progress of %s[%s] is not kept", self.task, brief(self.id))
            kept["progress"] = self._state.progress
        try:
            return self._commit(decide, ttl=ttl, beside=beside)
        except InvalidInput:
            logger.warning("what %s[%s] has left is not kept", self.task, brief(self.id))
            kept.update(progress=None, last_progress=None, checkpoint=None, asked=None)
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
                wanted = "to go on" if only_looks else "the end of the run"
                self._take_asked(TaskState.from_record(record), wanted)

    # --- what is asked of the run ------------------------------------------------------------

    def look(self) -> None:
        """See what was asked of the run since it last wrote. From any thread.

        Raises:
            StaleAttempt, AttemptEnded, StoreError: as :meth:`confirm`.
        """
        self.confirm(only_looks=True)
        with self._lock:
            if self._seems_lost:
                # It lives, though nobody heard of it for a while: before it is ended, it says so.
                self._seems_lost = False
                written = self.tracker.commit(self.id, lambda state: self._own(state, "to go on"))
                self._written, self._state = written, written.state

    def heed(self) -> None:
        """Wait while the run is paused. At its state calls, in its own thread.

        Raises:
            Cancelled: the task was cancelled; raised again at each later call.
            StaleAttempt: a newer run has taken over.
            AttemptEnded: the task was ended from outside.
        """
        if self._is_asked(PAUSE):
            self._stand_still()
        self.check_cancelled()

    def check_cancelled(self) -> None:
        """Return if the task was not cancelled, as far as the run knows.

        Raises:
            Cancelled, StaleAttempt, AttemptEnded: as :meth:`heed`.
        """
        asked = self._state.asked
        if asked is not None and self._is_asked(CANCEL):
            told = self._cancel(asked)
            self._show_seen()
            raise told

    @property
    def is_paused(self) -> bool:
        """Whether the run waits until it is resumed."""
        asked = self._state.asked
        return asked is not None and asked.seen and self._is_asked(PAUSE)

    def _is_asked(self, what: str) -> bool:
        state = self._state
        # Of a run that has left it is asked of the next one.
        return state.asked is not None and state.asked.what == what and state.running

    def _cancel(self, asked: Asked) -> Cancelled:
        self.cancelled = asked
        return Cancelled(self.task, self.id, asked.reason, asked.by)

    def _stand_still(self) -> None:
        store, key = self.tracker.store, self.tracker.key(self.id)
        with self.reporter.standing_still(), news_of(store, key, self._woken) as wait:
            while self._is_asked(PAUSE):
                self._show_seen()
                wait()
                try:
                    self.look()
                except (StaleAttempt, AttemptEnded):
                    raise
                except StatekitError:
                    log_failure(logger, "%s[%s] stays paused", self.task, brief(self.id))

    def _show_seen(self) -> None:
        """Say in the record that what was asked is heeded, and how far the run is.

        Where it cannot be written the run heeds it all the same.
        """

        def decide(state: TaskState) -> TaskState:
            state = self._own(state, "what was asked")
            seen = state.asked and replace(state.asked, seen=True)
            return changed(state, asked=seen, progress=progress)

        if self._state.asked is None or self._state.asked.seen:
            return
        progress = self._progress()
        try:
            try:
                self._commit(decide)
            except InvalidInput:
                progress = self._state.progress  # details too large to be kept
                self._commit(decide)
        except (StaleAttempt, AttemptEnded):
            raise
        except StatekitError:
            log_failure(logger, "what is asked of %s is not shown as seen", brief(self.id))

    def _call(self, write: Callable[[], _T]) -> _T:
        """Make a write of the run's own thread, once what was asked before it is heeded."""
        while True:
            self.heed()
            with self._lock:
                if self._halts:
                    continue  # it was asked in between: the flusher has seen it
                try:
                    return write()
                except _Unheeded as unheeded:
                    self._take_asked(unheeded.state, "what was asked")

    def _heeded(self, state: TaskState) -> TaskState:
        asked = state.asked
        if asked is not None and asked != self._state.asked and state.running:
            raise _Unheeded(state)
        return state

    def _take_asked(self, found: TaskState, wanted: str) -> None:
        asked = self._own(found, wanted).asked
        self._seems_lost = found.attempt == self.number and _is_gone(found) and self._state.running
        if self._written is not None and asked != self._state.asked:
            # Whoever asked has written since, so that what is held is written over nothing.
            self._state = changed(self._state, asked=asked)
            self._written = self._written._replace(state=self._state)
            self._note()

    def _note(self) -> None:
        """Have the run's next call of its reporter heed what was asked, if anything was."""
        halts = self._is_asked(PAUSE) or self._is_asked(CANCEL)
        if halts == self._halts:
            return
        self._halts = halts
        if halts:
            self.reporter.halt(self.heed)
        else:
            self.reporter.go_on()
        self._woken.set()

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
            written = self.tracker.commit(
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
            self._note()
            if beside is not None:
                self.shown = written.state.version
            return written.state

    def _went_back(self, raises: bool, held: Written, found: Record | None) -> None:  # noqa: FBT001 - bound
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
        if _is_gone(state) and self._state.running:
            # It only seemed so: it goes on from where it was.
            terms = self._lease and self._lease.terms
            state = changed(
                state,
                state=self._state.state,
                reason=self._state.reason,
                losses=self._state.losses,
                lease=terms and terms.seconds,
            )
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


class _Unheeded(Exception):
    """Something was asked of the run of which it did not know."""

    def __init__(self, state: TaskState) -> None:
        super().__init__(state.id)
        self.state = state


class _Runs(Exception):
    """Another run stands in the record, as one that goes on."""

    def __init__(self, state: TaskState) -> None:
        super().__init__(state.worker)
        self.state = state


class _Waits(Exception):
    """Another message of the task goes first."""

    def __init__(self, state: TaskState) -> None:
        super().__init__(state.state)
        self.state = state


def _is_gone(state: TaskState) -> bool:
    """Whether the record says that its latest run is gone: LOST, or sent again since."""
    return state.state == LOST or (state.state == "PENDING" and state.attempt > 0)


def _is_behind(begun: TaskState, state: TaskState) -> bool:
    """Whether the message is that of a run which has left for another one, and not its."""
    return state.state == "RETRY" and begun.retries <= state.retries


def _left_for(task: str, state: TaskState) -> Checkpoint | None:
    """What is left for the next attempt, if it is one of the same task and of the same work."""
    replaced = state.state == "IGNORED" and state.reason.startswith(REPLACED)
    return None if replaced or state.task != task else state.checkpoint


def content_of(progress: Progress | None) -> Progress | None:
    """What was reported of ``progress``, without what follows from the clock."""
    return progress and changed(progress, rate=None, eta=None)


def _check_detail(detail: Mapping[str, Any], limit: int) -> None:
    try:
        check_nesting(detail)
    except (TypeError, ValueError) as exc:
        raise InvalidInput(f"detail is no JSON ({exc})", "detail", detail, "JSON") from exc
    size = len(dump_json(detail, "detail", "detail").encode())
    if size > limit:
        raise PayloadTooLarge("detail too large", "detail", size, f"{limit} bytes")
