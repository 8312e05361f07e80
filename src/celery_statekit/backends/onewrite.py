"""Ends that stand, and results written beside a record, for a result backend of keys and values.

Celery reads the stored state, and unless that is SUCCESS writes the new one (celery 5.7
backends/base.py:1355): two writers may both have read before either writes, and FAILURE and
REVOKED are overwritten by whatever comes late. Here a state is written only if what was read is
still there, and no end is left.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from celery import VERSION as CELERY
from celery import states
from celery.exceptions import BackendStoreError, TaskRevokedError
from kombu.utils.encoding import bytes_to_str

from celery_statekit.chance import chance
from celery_statekit.errors import InvalidSetting, StoreNotConfigured, brief
from celery_statekit.flusher import PATIENCE, flusher
from celery_statekit.settings import Settings
from celery_statekit.states import LOST, WAITING
from celery_statekit.stores.base import Beside, Store, WritesBeside

if TYPE_CHECKING:
    from celery.backends.redis import RedisBackend as _Celerys
else:
    _Celerys = ABC

logger = logging.getLogger(__name__)

#: How often a write is tried while others change the same result.
TRIES: Final = 100

#: What became of an end: it may not be; it is recorded, and Celery may store its result; both
#: were written at once; or both will be, when the store is back.
Verdict: TypeAlias = Literal["refused", "recorded", "stored", "waits"]

#: Id of the task whose result was stored before this thread, or greenlet, reports it.
_stored: ContextVar[str] = ContextVar("celery_statekit_stored", default="")


@contextmanager
def stored(task_id: str) -> Iterator[None]:
    """In this block Celery reports the end of a task, and stores nothing of it a second time."""
    token = _stored.set(task_id)
    try:
        yield
    finally:
        _stored.reset(token)


class _Stands(Exception):
    """Raised when a task has ended, and its result stays as it is."""

    def __init__(self, meta: dict[str, Any], *, by_itself: bool) -> None:
        super().__init__(meta["status"])
        self.meta = meta
        #: Whether the very run that is refused stored it.
        self.by_itself = by_itself


class OneWrite(_Celerys):
    """Mixed into a backend of Celery's that keeps each result under a key.

    A refused end reports to no chord, propagates to no chain and fires no errback. What a chord is
    told instead, once more, is the end that stands: the run that stored it may have died before it
    told anybody, and Celery counts a member once.
    """

    _reached: tuple[Store, bool] | None = None

    @abstractmethod
    def compare_and_set(self, beside: Beside, current: bytes | str | None) -> bool:
        """Store and publish ``beside`` if ``current`` is still what is stored under its key."""

    @abstractmethod
    def chord_misses(self, request: Any) -> bool:
        """Whether the chord of ``request`` waits for this member, and counts it once."""

    # --- beside a record ----------------------------------------------------------------------

    def reached_by(self, store: Store) -> bool:
        """Whether ``store`` writes into the same database, so that one write can do for both."""
        if self._reached is None or self._reached[0] is not store:
            may = isinstance(store, WritesBeside) and store.reaches(self.connparams)
            self._reached = (store, may)
        return self._reached[1]

    def to_store(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None
    ) -> Beside:
        """What Celery stores of ``result``, for a store to write it beside the task's record.

        Raises:
            EncodeError: the result serializer cannot take it.
            BackendStoreError: it is larger than a value may be.
        """
        encoded = self.encode_result(result, state)
        return self._to_store(task_id, encoded, state, traceback, request)

    def _to_store(
        self, task_id: str, encoded: Any, state: str, traceback: Any, request: Any
    ) -> Beside:
        # Asked as of a state that is no end: Celery's way to the date of an end takes as long as all
        # else that it does here (celery 5.7 app/base.py:1382).
        meta = self._get_result_meta(
            result=encoded, state=states.STARTED, traceback=traceback, request=request
        )
        meta["status"] = state
        if state in states.READY_STATES:
            meta["date_done"] = datetime.now(timezone.utc).astimezone(self.app.timezone).isoformat()
        meta["task_id"] = bytes_to_str(task_id)
        value = self.encode(meta)
        if len(value) > self._MAX_STR_VALUE_SIZE:
            raise BackendStoreError(
                "value too large for Redis backend", state=state, task_id=task_id
            )
        # Celery 5.7 keeps a failure for as long as result_failure_expires says.
        seconds = getattr(self, "failure_expires", None) if state == states.FAILURE else None
        seconds = self.expires if seconds is None else seconds
        return Beside(self.get_key_for_task(task_id), value, seconds or None)

    def show(
        self, task_id: str, result: Any, state: str, request: Any, *, fence: Callable[[], object]
    ) -> bool:
        """Store a state that is no end, unless others have changed it since ``fence`` was asked.

        Args:
            fence: raises if the run of ``request`` is no longer the current one.

        Returns:
            Whether it is stored.
        """
        mine = self.to_store(task_id, result, state, request=request)
        current = self.get(mine.key)
        if current and self.decode(current)["status"] in states.READY_STATES:
            return False
        fence()
        return bool(self.ensure(self.compare_and_set, (mine, current)))

    # --- one result ---------------------------------------------------------------------------

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As Celery's; nothing happens where the task has ended."""
        if _stored.get() == task_id:
            return self.encode_result(result, state)
        try:
            encoded = super().store_result(
                task_id, result, state, traceback=traceback, request=request, **kwargs
            )
        except _Stands as stands:
            _say(task_id, state, stands)
            return self.encode_result(result, state)
        if _is_own(task_id, request) and state in states.READY_STATES:
            # ``update_state(state="FAILURE")`` inside a task: the run itself may still say better,
            # and after "SUCCESS" its chord gets what it returns, as Celery has it.
            request.statekit_reported = request.statekit_stored
        return encoded

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **kwargs: Any,  # noqa: ARG002 - Celery's signature
    ) -> Any:
        new = self._to_store(task_id, result, state, traceback, request)
        # Written already, and the reply was lost: by this very call, or beside the record.
        mine = {_as_bytes(new.value), _as_bytes(getattr(request, "statekit_doubtful", None))}
        own = _is_own(task_id, request)
        if own:
            request.statekit_stored = new.value
        for lost in range(TRIES):
            current = self.get(new.key)
            if current:
                if _as_bytes(current) in mine:
                    return result
                standing = self.decode(current)
                may = standing["status"] in states.PROPAGATE_STATES and _reported(current, request)
                if standing["status"] in states.READY_STATES and not may:
                    raise _Stands(standing, by_itself=_reported(current, request))
            from_outside = not own and not lost and state in states.READY_STATES
            if from_outside and self._is_ended_with(new, task_id, result, state):
                return result
            if self.ensure(self.compare_and_set, (new, current)):
                return result
            time.sleep(chance.uniform(0, 0.001 * min(lost, 20)))
        raise BackendStoreError(
            f"others changed the result {TRIES} times", state=state, task_id=task_id
        )

    def _is_ended_with(self, new: Beside, task_id: str, result: Any, state: str) -> bool:
        """Somebody other than a run speaks: end the record of a task that waits, so that none begins.

        ``control.revoke`` of a task that no worker has goes this way (celery 5.7
        worker/control.py:244), in the worker's main process, which must not wait for a store.

        Returns:
            Whether ``new`` was written with it.
        """
        try:
            tracker = Settings.of(self.app).tracker
        except (StoreNotConfigured, InvalidSetting):
            return False
        beside = None if one_write(self, tracker.store) is None else (lambda _: new)
        written: list[bool] = []

        def write() -> None:
            found = tracker.read(task_id)
            if found.known and found.state in WAITING | {LOST}:
                outcome = tracker.end_from_outside(
                    task_id,
                    found.task,
                    state,
                    meant=lambda now: now.state == LOST,
                    beside=beside,
                    **_facts(result, state),
                )
                written.append(beside is not None and outcome == "moved")

        flusher().call(write, PATIENCE, insists=True)
        return written == [True]

    def forget(self, task_id: str) -> None:
        """Forget the result, and the record of a task that has ended."""
        super().forget(task_id)
        try:
            Settings.of(self.app).tracker.forget(bytes_to_str(task_id))
        except StoreNotConfigured:
            logger.debug("no record to forget", exc_info=True)

    # --- an end, and what follows from it -----------------------------------------------------

    def mark_as_done(
        self,
        task_id: str,
        result: Any,
        request: Any = None,
        store_result: bool = True,  # noqa: FBT001, FBT002 - Celery's signature
        state: str = states.SUCCESS,
    ) -> None:
        """As Celery's, unless the task has ended."""
        ignored = not store_result or getattr(request, "ignore_result", False)
        if ignored or self._may_report(task_id, result, state, None, request):
            with stored(task_id):
                super().mark_as_done(task_id, result, request, store_result, state)

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
        """As Celery's, unless the task has ended."""
        if not store_result or self._may_report(task_id, exc, state, traceback, request):
            with stored(task_id):
                super().mark_as_failure(
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
        """As Celery's, unless the task has ended."""
        if CELERY < (5, 7) and request is None and self._is_being_run(task_id):
            return
        exc = TaskRevokedError(reason)
        if not store_result or self._may_report(task_id, exc, state, None, request):
            with stored(task_id):
                super().mark_as_revoked(task_id, reason, request, store_result, state)

    def _is_being_run(self, task_id: str) -> bool:
        """Whether a worker runs it, and is to say how it ends, though a revoke was broadcast.

        Celery asks this itself from 5.7 on (celery 5.7 worker/control.py:222).
        """
        from celery.worker import state as worker  # noqa: PLC0415 - a worker has it

        waiting = (states.PENDING, states.RECEIVED, states.RETRY, states.REJECTED)
        return (
            any(request.id == task_id for request in worker.active_requests)
            or self.get_state(task_id) not in waiting
        )

    def report_standing(self, task_id: str, request: Any) -> None:
        """Tell the chord of a task that has ended how it ended, once more."""
        if not getattr(request, "chord", None):
            return
        current = self.get(self.get_key_for_task(task_id))
        if current:
            self._tell_chord(request, self.decode(current))

    def _may_report(
        self, task_id: str, result: Any, state: str, traceback: Any, request: Any
    ) -> bool:
        if _stored.get() == task_id:
            return True
        try:
            super().store_result(task_id, result, state, traceback=traceback, request=request)
        except _Stands as stands:
            _say(task_id, state, stands)
            if not stands.by_itself:
                self._tell_chord(request, stands.meta)
            return stands.by_itself
        return True

    def _tell_chord(self, request: Any, standing: dict[str, Any]) -> None:
        # Celery counts a member once from 5.7 on only.
        if getattr(request, "chord", None) and (CELERY >= (5, 7) or self.chord_misses(request)):
            self.on_chord_part_return(request, standing["status"], standing["result"])


def one_write(backend: Any, store: Store) -> OneWrite | None:
    """``backend``, where ``store`` can write its results beside a record."""
    return backend if isinstance(backend, OneWrite) and backend.reached_by(store) else None


def _is_own(task_id: str, request: Any) -> bool:
    """Whether it is the run of ``request`` that speaks, and of itself."""
    return request is not None and getattr(request, "id", None) == task_id


def _reported(current: bytes | str, request: Any) -> bool:
    """Whether the end that stands is what this very run said of itself by ``update_state``."""
    reported = getattr(request, "statekit_reported", None)
    return reported is not None and _as_bytes(reported) == _as_bytes(current)


def _facts(result: Any, state: str) -> dict[str, Any]:
    """Why a task ended, from what Celery makes of an exception to store it."""
    if state == states.SUCCESS:
        return {"reason": ""}
    if isinstance(result, Mapping):
        name, message = str(result.get("exc_type", state)), result.get("exc_message", "")
    else:
        name, message = type(result).__name__, str(result)
    if isinstance(message, (list, tuple)):
        message = ", ".join(map(str, message))
    if state == states.REVOKED:
        return {"reason": str(message)}
    reason = f"{name}: {message}" if message else name
    return {"reason": reason, "error": {"type": name, "message": str(message)}}


def _say(task_id: str, state: str, stands: _Stands) -> None:
    logger.info("%s is %s already: %s is not stored", brief(task_id), stands, state)


def _as_bytes(value: bytes | str | None) -> bytes:
    return value.encode() if isinstance(value, str) else value or b""
