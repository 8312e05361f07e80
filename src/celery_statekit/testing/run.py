"""What one run of a task did, recorded for a test to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, NoReturn, TypeVar

from celery_statekit.attempt import content_of
from celery_statekit.client import ClientState
from celery_statekit.clients import Clients
from celery_statekit.errors import IllegalTransition, sentence
from celery_statekit.progress import Progress
from celery_statekit.record import Change, TaskState
from celery_statekit.states import LIFECYCLE, Flow
from celery_statekit.stores.base import Store

Client = TypeVar("Client", bound=ClientState)

_NOTHING: Final = object()


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A task that was sent, and went nowhere."""

    #: Its registered name.
    task: str
    id: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    #: The queue, or the routing key.
    routing_key: str = ""
    headers: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, eq=False, kw_only=True)
class StatefulRun:
    """One run: the states it entered, its progress, its checkpoints, its end."""

    #: Name of the task.
    task: str
    id: str
    #: Number of the run.
    attempt: int
    #: Every move of the run, from PENDING or STARTED to where it stands.
    changes: tuple[Change, ...]
    #: The record as the run left it.
    task_state: TaskState
    #: Each progress that was written, in order; the last one is :attr:`progress`.
    progresses: tuple[Progress, ...]
    #: Each value that was given to ``self.checkpoint()``, in order.
    checkpoints: tuple[Any, ...]
    #: Each move that was refused, in order.
    refused: tuple[IllegalTransition, ...]
    #: What it sent, but for its own retry: links, steps of a chain, ``delay()`` of other tasks.
    sent: tuple[Sent, ...]
    #: What left it: the exception that it raised, ``Retry``, ``Ignore``; None: it returned.
    error: BaseException | None
    _flow: Flow
    _store: Store
    _prefix: str
    _returned: Any = _NOTHING

    def __repr__(self) -> str:
        way = " -> ".join(change.to_state for change in self.changes)
        return f"<StatefulRun {self.task} attempt {self.attempt}: {way}>"

    @property
    def states(self) -> tuple[str, ...]:
        """The task's own states that it entered, in order."""
        entered = (change.to_state for change in self.changes)
        return tuple(state for state in entered if state not in LIFECYCLE)

    @property
    def state(self) -> str:
        """Where the task stands now: SUCCESS, FAILURE, RETRY, IGNORED, REJECTED."""
        return self.task_state.state

    @property
    def progress(self) -> Progress | None:
        """How far it came; None: it reported nothing."""
        return self.task_state.progress

    @property
    def result(self) -> Any:
        """What it returned, as its caller gets it: sent through the result backend.

        Of a task whose result is ignored it is what was returned.

        Raises:
            BaseException: what left the run, if it did not return.
        """
        if self.error is not None:
            raise self.error
        return self._returned

    def clients(self, client: type[Client]) -> Clients[Client]:
        """The stored clients of a class, as the run left them."""
        return Clients(self._store, client, prefix=self._prefix)

    def assert_entered(self, *states: Enum | str) -> None:
        """The run entered these states of its task, in this order, and no others.

        Raises:
            AssertionError: it did not; the message says what it did.
            InvalidState: one of them is no state of the task.
        """
        __tracebackhide__ = True
        expected = tuple(self._flow.name_of(state) for state in states)
        if self.states != expected:
            what = "did not enter the states expected"
            self._fail(what, expected=_listed(expected), entered=_listed(self.states))

    def assert_refused(self, *states: Enum | str) -> None:
        """These moves of the run were refused, in this order, and no others.

        Raises:
            AssertionError: they were not; the message says which were.
            InvalidState: one of them is no state of the task.
        """
        __tracebackhide__ = True
        expected = tuple(self._flow.name_of(state) for state in states)
        refused = tuple(error.to_state for error in self.refused)
        if refused != expected:
            what = "was not refused the moves expected"
            self._fail(what, expected=_listed(expected), refused=_listed(refused))

    def assert_ended(self, state: str = "SUCCESS") -> None:
        """The task stands in ``state``: SUCCESS, FAILURE, RETRY, IGNORED, REJECTED.

        Raises:
            AssertionError: it stands elsewhere; the message says why.
        """
        __tracebackhide__ = True
        if self.state != state:
            self._fail("did not end as expected", expected=state, ended=self.state)

    def _fail(self, what: str, **facts: str) -> NoReturn:
        __tracebackhide__ = True
        width = max(map(len, facts)) + 1
        lines = [f"{self.task} {what}"]
        lines += [f"  {f'{name}:':<{width}} {fact}" for name, fact in facts.items()]
        lines += ["what it did:", *self.story()]
        # Where the run failed is what one looks for first.
        raise AssertionError("\n".join(lines)) from self.error

    def story(self) -> list[str]:
        """What the run did, in lines to read."""
        begun = self.changes[0].at if self.changes else 0.0
        width = max((len(change.to_state) for change in self.changes), default=0)
        lines = [
            f"  {change.at - begun:+8.3f} s  {change.to_state:<{width}}  {change.reason}".rstrip()
            for change in self.changes
        ]
        lines += [f"  refused: {error}" for error in self.refused]
        lines += [f"  checkpoint: {value!r}" for value in self.checkpoints]
        if self.progress is not None:
            lines.append(f"  progress: {self.progress}")
        if self.error is not None:
            lines.append(f"  left by {sentence(self.error)}")
        return lines


def progresses_of(written: Sequence[TaskState], attempt: int) -> tuple[Progress, ...]:
    """Each progress that ``attempt`` wrote, in order."""
    found: list[Progress] = []
    for state in written:
        progress = state.progress
        if state.attempt != attempt or progress is None:
            continue
        if not found or content_of(found[-1]) != content_of(progress):
            found.append(progress)
        else:
            found[-1] = progress
    return tuple(found)


def checkpoints_of(written: Sequence[TaskState], attempt: int) -> tuple[Any, ...]:
    """Each value that ``attempt`` left, in order."""
    found: list[tuple[Any, float | None]] = []
    for state in written:
        left = state.checkpoint
        if left is not None and left.attempt == attempt:
            made = (left.value, left.at)
            if not found or found[-1] != made:
                found.append(made)
    return tuple(value for value, _ in found)


def _listed(states: tuple[str, ...]) -> str:
    return ", ".join(states) or "none"
