"""The one reader that waits: get, wait, follow. Async twins only wait differently.

A snapshot comes first, then every newer version; a slow reader gets the newest state, never a
backlog, and the end is never dropped. It reads again every ``poll`` seconds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from enum import Enum
from typing import Final, Generic, TypeAlias, TypeVar

from celery_statekit.errors import (
    InvalidInput,
    StateNotReached,
    StateRegressed,
    UnknownTask,
    WatchTimeout,
)
from celery_statekit.frozen import changed
from celery_statekit.leases import lease_ended, seconds_left
from celery_statekit.record import REPLACED, Record, TaskState, task_key
from celery_statekit.states import LOST, NAME_LENGTH, WAITING, Flow
from celery_statekit.stores.base import Store

logger = logging.getLogger(__name__)

View = TypeVar("View")

#: What :meth:`Watcher.wait` waits for: a state, several, or a function of the state.
Until: TypeAlias = "str | Enum | Collection[str | Enum] | Callable[[TaskState], bool] | None"

#: Seconds between two questions to Celery about a task that is waiting, or that has no record.
CELERY_INTERVAL: Final = 2.0
#: The same about a run that was found to be gone: it may come back.
LOOK: Final = 1.0


class Follow(Generic[View]):
    """One reader's place in the versions of one key; knows no clock and does not wait.

    Where the store goes back to an older version than was read, that is raised once; what is there
    then is news.
    """

    def __init__(
        self, store: Store, key: str, view: Callable[[Record], View], after: int = 0
    ) -> None:
        self._store = store
        self._key = key
        self._view = view
        self._after = after
        self._incarnation = ""

    def news(self) -> View | None:
        """The newest version if it is one not seen yet."""
        record = self._store.read(self._key)
        return None if record is None or not self._is_new(record) else self._view(record)

    def _is_new(self, record: Record) -> bool:
        if record.incarnation == self._incarnation and record.version < self._after:
            self._went_back(record.version)
        same = self._incarnation in ("", record.incarnation)
        new = not same or record.version > self._after
        if new:
            self._after = record.version
        self._incarnation = record.incarnation
        return new

    def _went_back(self, found: int) -> None:
        held, self._after, self._incarnation = self._after, 0, ""
        raise StateRegressed(self._key, held, found)


class _FollowTask(Follow[TaskState]):
    """Also asks who is alive, and Celery where no record, or none of a live run, says more."""

    def __init__(self, watcher: Watcher, id: str, after: int) -> None:
        super().__init__(watcher.store, watcher.key(id), TaskState.from_record, after)
        self._ask = watcher.ask
        self._id = id
        self._asked = float("-inf")
        #: Until when the run is known to be alive, or need not be asked about.
        self._alive = float("-inf")
        #: The state that the record says, where its run is found to be gone.
        self._gone: TaskState | None = None
        self.last = TaskState(id=id)

    def news(self) -> TaskState | None:
        record = self._store.read(self._key)
        if record is None and self._incarnation and self.last.state not in WAITING:
            # A live run's record neither expires nor is it forgotten; of an end nobody asks again.
            # But the run may have ended since it was seen, and its end have gone: Celery may know.
            self._asked = float("-inf")
            self.last = self._from_celery() or self.last
            if self.last.final:
                return self.last
            self._went_back(0)
        new = record is not None and self._is_new(record)
        if record is not None and (new or self.last.source != "record"):
            self.last, self._gone = TaskState.from_record(record), None
        seen = self.last
        if (self._gone or self.last).running:
            self._look()
        if new or self.last is not seen:
            return self.last
        if self.last.state in WAITING:
            state = self._from_celery()
            self.last = state or self.last
            return state
        return None

    def _look(self) -> None:
        """The record says that a run goes on: see whether it does, when that may have changed."""
        now = time.monotonic()
        if now < self._alive:
            return
        state = self._gone or self.last
        left = seconds_left(self._store, self._key, state)
        if left == 0.0:
            self._alive = now + LOOK
            if self._gone is None:
                self._gone = state
                reason = lease_ended(state)
                self.last = self._end_in_celery() or changed(state, state=LOST, reason=reason)
            return
        self._alive = float("inf") if left is None else now + left
        if self._gone is not None:
            self.last, self._gone = self._gone, None

    def _end_in_celery(self) -> TaskState | None:
        self._asked = float("-inf")
        state = self._from_celery()
        return state if state is not None and state.final else None

    def _from_celery(self) -> TaskState | None:
        now = time.monotonic()
        if self._ask is None or now - self._asked < CELERY_INTERVAL:
            return None
        self._asked = now
        try:
            state = self._ask(self._id)
        except Exception:
            logger.debug("Celery's result backend cannot be asked", exc_info=True)
            return None
        if state.final or (self.last.state == "UNKNOWN" and state.known):
            return state if state.state != self.last.state else None
        return None


class Watcher:
    """Reads the records of tasks; cannot move one.

    Args:
        store: where they are kept.
        prefix: first part of every key.
        ask: what Celery's result backend says of an id; None where there is none to ask.
        poll: seconds between two reads.
        patience: seconds for which an id that nobody knows is waited for.
    """

    def __init__(
        self,
        store: Store,
        *,
        prefix: str = "statekit",
        ask: Callable[[str], TaskState] | None = None,
        poll: float = 0.1,
        patience: float = 10.0,
    ) -> None:
        self.store = store
        self.prefix = prefix
        self.ask = ask
        self.poll = poll
        self.patience = patience

    def key(self, id: str) -> str:
        """The key of the task's record."""
        return task_key(id, prefix=self.prefix)

    def get(self, id: str) -> TaskState:
        """The task's state now; where there is no record, what Celery knows."""
        follow = _FollowTask(self, id, 0)
        follow.news()
        if follow.last.source == "record" and follow.last.state in WAITING:
            # Revoked by a worker that has not seen the message; or replaced by a task without record.
            follow.news()
        return TaskState(id=id) if follow.last.forgotten else follow.last

    def watch(
        self,
        id: str,
        *,
        after: int = 0,
        timeout: float | None = None,
    ) -> Iterator[TaskState]:
        """The state now, then every newer one, until the end, or until the task is ignored.

        Args:
            after: a version seen already; only newer ones come.
            timeout: seconds in all; None: until the task ends.

        Raises:
            UnknownTask: nobody knows the id for ``patience`` seconds.
            WatchTimeout: it has not ended after ``timeout`` seconds.
            StateRegressed: the store went back to an older version, or lost a live run's record;
                or the task ended and both its record and Celery's result were gone before the next
                read (ends are kept for less than ``poll``, or were deleted by hand).
        """
        self._check(id, after, timeout)
        return pace(self._steps(id, after, timeout), self.poll)

    def awatch(
        self,
        id: str,
        *,
        after: int = 0,
        timeout: float | None = None,
    ) -> AsyncIterator[TaskState]:
        """As :meth:`watch`; reads in a thread, so the event loop is never blocked."""
        self._check(id, after, timeout)
        return apace(self._steps(id, after, timeout), self.poll)

    def wait(
        self,
        id: str,
        until: Until = None,
        *,
        timeout: float | None = None,
    ) -> TaskState:
        """Wait until the task has entered a state, or has ended.

        Args:
            until: a state, several, or a function of a :class:`~.record.TaskState`; None: the end.
                A state that was passed between two reads counts: the history is looked at.
            timeout: seconds; None: as long as it takes.

        Returns:
            The state in which that was seen.

        Raises:
            StateNotReached: it ended without.
            WatchTimeout, UnknownTask: as :meth:`watch`.
        """
        reached, awaited = _condition(until)
        seen = 0
        state = TaskState(id=id)
        for state in self.watch(id, timeout=timeout):
            if reached(state):
                return state
            if awaited and state.changes > seen:
                passed = self.store.history(self.key(id), after=seen, limit=1000)
                # What is newer than the state just read is seen with a newer state.
                known = [change for change in passed if change.number <= state.changes]
                if any(change.to_state in awaited for change in known):
                    return state
                seen = state.changes
        if until is None:
            return state
        raise StateNotReached(id, awaited, state.state)

    def _check(self, id: str, after: int, timeout: float | None) -> None:
        self.key(id)
        check_whole(after, "after")
        check_timeout(timeout)

    def _steps(self, id: str, after: int, timeout: float | None) -> Iterator[TaskState | None]:
        """A newer state each time there is one; None where it is time to wait a little."""
        follow = _FollowTask(self, id, after)
        began = time.monotonic()
        while True:
            state = follow.news()
            waited = time.monotonic() - began
            if state is not None:
                yield state
            if is_over(follow.last):
                return
            if not follow.last.known and waited > self.patience:
                raise UnknownTask(id, self.patience)
            if timeout is not None and waited > timeout:
                raise WatchTimeout(id, timeout, follow.last.state)
            if state is None:
                yield None


def is_over(state: TaskState) -> bool:
    """Whether nothing more will come: an end, or ignored without another task in its place."""
    return state.final or (state.state == "IGNORED" and not state.reason.startswith(REPLACED))


def _condition(until: Until) -> tuple[Callable[[TaskState], bool], tuple[str, ...]]:
    if until is None:
        return is_over, ()
    if callable(until) and not isinstance(until, (Enum, type)):
        return until, ()
    members: Collection[object] = (until,)
    if isinstance(until, Collection) and not isinstance(until, (str, type)):
        members = until
    awaited = tuple(_stored_name(member) for member in members)
    if not awaited:
        raise _no_state(until)
    return (lambda state: state.state in awaited), awaited


def _stored_name(member: object) -> str:
    if isinstance(member, Enum):
        return Flow.of(type(member)).name_of(member)
    if isinstance(member, str) and member.isprintable() and 0 < len(member) <= NAME_LENGTH:
        return member
    raise _no_state(member)


def _no_state(got: object) -> InvalidInput:
    return InvalidInput("no state to wait for", "until", got, "a state, several, or a function")


def check_timeout(timeout: object) -> None:
    """Return if ``timeout`` is None or a number of seconds.

    Raises:
        InvalidInput: it is neither.
    """
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
        raise InvalidInput("no timeout", "timeout", timeout, "None, or seconds of 0 or more")


def check_whole(number: object, path: str) -> None:
    """Return if ``number`` is an int.

    Raises:
        InvalidInput: it is none.
    """
    if isinstance(number, bool) or not isinstance(number, int):
        raise InvalidInput("no whole number", path, number, "an int")


def pace(steps: Iterator[View | None], poll: float) -> Iterator[View]:
    """What ``steps`` yields, waiting ``poll`` seconds at each None."""
    for step in steps:
        if step is None:
            time.sleep(poll)
        else:
            yield step


async def apace(steps: Iterator[View | None], poll: float) -> AsyncIterator[View]:
    """As :func:`pace`, on the event loop: each step is taken in a thread."""
    import asyncio  # noqa: PLC0415 - costs a tenth of Celery's own import, and few need it

    def step() -> list[View | None]:
        # StopIteration cannot cross a future; an empty list can.
        return [found for _, found in zip("1", steps, strict=False)]

    while found := await asyncio.to_thread(step):
        if found[0] is None:
            await asyncio.sleep(poll)
        else:
            yield found[0]
