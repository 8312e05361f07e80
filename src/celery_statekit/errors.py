"""The tree of errors; each carries its facts as attributes and builds its sentence from them.

.. code-block:: text

    StatekitError
    ├── InvalidInput (ValueError)      what was wrong, where, what was got, what is allowed
    │   ├── InvalidDefinition          a States, ClientState or task class that cannot work
    │   ├── InvalidId                  a client or task id that may not be used
    │   ├── InvalidState               a name that is no state of this task or client
    │   ├── InvalidClientState         a document that is no such client state
    │   ├── InvalidProgress            a progress value that means nothing
    │   ├── InvalidSetting             a statekit_* setting that cannot be obeyed
    │   └── PayloadTooLarge            more bytes than the limit
    ├── IllegalTransition              a move that the flow does not allow
    ├── StaleAttempt (Ignore)          a newer attempt of the same task has started
    │   └── AlreadyRunning             another run of the same task is alive
    ├── AttemptEnded (Ignore)          the task has already ended
    ├── Cancelled (Ignore)             the task was cancelled; its run is to clean up and end
    ├── TaskLost (WorkerLostError)     a run is gone, and its message does not come again
    │   └── PoisonTask                 run after run of the task was lost
    ├── NotRunning                     a call that needs a running task
    ├── SetupTooLate                   setup() after the tasks were made
    ├── ReportedFailure                a task reported FAILURE by update_state and raised Ignore
    ├── ResultLost                     a task succeeded, and what it returned was not stored
    ├── NoSuchClient (LookupError)     no client of that id is stored
    ├── ClientExists                   a client of that id is stored already
    ├── ContentionTimeout              an update that could not be applied before its deadline
    ├── LeaseLost                      exclusive() outlived its lease and somebody else wrote
    ├── UnknownTask (LookupError)      nobody knows the id that is watched
    ├── WatchTimeout (TimeoutError)    what was waited for did not happen in time
    ├── StateNotReached                the task ended without entering the awaited state
    └── StoreError
        ├── StoreNotConfigured         no store can be derived from the app's settings
        ├── StoreUnavailable           the store cannot be reached now; nothing was written
        ├── StoreFull                  the store has no room; nothing was written
        ├── AmbiguousWrite             the reply was lost; the write may have been applied
        ├── StateRegressed             the store went back to an older version
        ├── CorruptRecord              stored bytes that are not what was written
        └── NewerFormat                a record of a newer release: readable, not writable

Every error is made from positional facts, so that it survives being sent from a worker
(Celery rebuilds an exception from its type and ``args``).
"""

from __future__ import annotations

import reprlib
from typing import Any, ClassVar, Final

from billiard.exceptions import WorkerLostError
from celery.exceptions import Ignore

#: Longest sentence of an error, in characters.
LINE: Final = 990

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 80
_repr.maxlevel = 3


def brief(value: object) -> str:
    """``repr(value)`` cut to 80 characters, safe to print in one line of a log."""
    try:
        text = _repr.repr(value)
    except Exception as exc:  # noqa: BLE001 - a foreign __repr__ may raise anything
        text = f"<{type(value).__name__} whose repr raises {type(exc).__name__}>"
    return one_line(text, 80)


def error_facts(exc: object) -> dict[str, str]:
    """``{"type", "message"}`` of an exception; nothing of it is ever made into one again."""
    try:
        message = str(exc)
    except Exception:  # noqa: BLE001 - a foreign __str__ may raise anything
        message = "its message cannot be shown"
    return {"type": type(exc).__name__, "message": message}


def sentence(exc: object) -> str:
    """An exception in one line: ``ValueError: bad row``."""
    facts = error_facts(exc)
    return f"{facts['type']}: {facts['message']}" if facts["message"] else facts["type"]


def one_line(text: str, limit: int) -> str:
    """``text`` as it may stand in a line of a log: escaped if not printable, cut to ``limit``."""
    line = text[: limit + 1]
    line = line if line.isprintable() else line.encode("unicode_escape").decode("ascii")
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


class StatekitError(Exception):
    """The root: everything this library raises on purpose."""

    _facts: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *facts: Any) -> None:
        super().__init__(*facts)
        for name, fact in zip(self._facts, facts, strict=False):
            setattr(self, name, fact)

    def sentence(self) -> str:
        """What went wrong, in one sentence made from the facts."""
        return " ".join(str(fact) for fact in self.args)

    def __str__(self) -> str:
        return one_line(self.sentence(), LINE)


class InvalidInput(StatekitError, ValueError):
    """Raised when something given from outside cannot be used; nothing was changed."""

    _facts = ("what", "path", "got", "allowed")
    what: str
    #: Where: ``$.items[0]`` in a document, a parameter or a setting's name.
    path: str
    #: The offending value, as a short ``repr``.
    got: str
    #: The rule, in words.
    allowed: str

    def __init__(
        self,
        what: str,
        path: str,
        got: object,
        allowed: str,
        shown: bool = False,  # noqa: FBT001, FBT002 - an error is rebuilt from positional args
    ) -> None:
        # Already a short repr where the error is rebuilt from its own args, also those that came
        # through Celery's JSON, which makes plain text of a Brief.
        text = str(got) if shown or isinstance(got, Brief) else brief(got)
        super().__init__(
            one_line(what, 300),
            one_line(path, 250),
            Brief(one_line(text, 80)),
            one_line(allowed, 330),
            True,
        )

    def sentence(self) -> str:
        return f"{self.what} at {self.path}; got {self.got}; allowed: {self.allowed}"


class Brief(str):
    """A ``repr`` that was cut already."""

    __slots__ = ()


class InvalidDefinition(InvalidInput):
    """Raised when a States, ClientState or task class is defined so that it cannot work."""


class InvalidId(InvalidInput):
    """Raised when an id is no short, printable text."""


class InvalidState(InvalidInput):
    """Raised when a name is no state of this task or client."""


class InvalidClientState(InvalidInput):
    """Raised when a document is not the client state it should be."""


class InvalidProgress(InvalidInput):
    """Raised when a progress value means nothing (NaN, negative, not a number)."""


class InvalidSetting(InvalidInput):
    """Raised when a ``statekit_*`` setting is unknown, of the wrong type or out of range."""


class PayloadTooLarge(InvalidInput):
    """Raised before any I/O when a record, message or document is over its limit of bytes."""


class IllegalTransition(StatekitError):
    """Raised when a task or client may not move as asked; nothing was changed."""

    _facts = ("task", "id", "from_state", "to_state", "allowed", "why")
    #: Name of the task, or of the client's class.
    task: str
    id: str
    from_state: str
    to_state: str
    #: The states that may be entered from ``from_state``, in the order declared.
    allowed: tuple[str, ...]
    #: Why a declared move was refused (a guard's reason), or "".
    why: str

    def __init__(
        self,
        task: str,
        id: str,
        from_state: str,
        to_state: str,
        allowed: tuple[str, ...] | list[str] = (),
        why: str = "",
    ) -> None:
        super().__init__(task, id, from_state, to_state, tuple(allowed), why)

    def sentence(self) -> str:
        allowed = ", ".join(self.allowed) or "nothing"
        why = f" ({self.why})" if self.why else ""
        return (
            f"{self.task}[{brief(self.id)}] cannot move from {self.from_state} "
            f"to {self.to_state}{why}; allowed: {allowed}"
        )


class StaleAttempt(StatekitError, Ignore):
    """Raised in a run whose task has been started again since; nothing of it is kept.

    It is an ``Ignore``: autoretry lets it through and Celery publishes nothing after it.
    """

    _facts: ClassVar[tuple[str, ...]] = ("task", "id", "attempt", "current")
    task: str
    id: str
    attempt: int
    #: The attempt that has taken over.
    current: int

    def __init__(self, task: str, id: str, attempt: int, current: int) -> None:
        super().__init__(task, id, attempt, current)

    def sentence(self) -> str:
        return (
            f"{self.task}[{brief(self.id)}] attempt {self.attempt} is stale: "
            f"attempt {self.current} has taken over"
        )


class AttemptEnded(StatekitError, Ignore):
    """Raised in a run, or before it begins, when the task's end is already recorded."""

    _facts = ("task", "id", "state")
    task: str
    id: str
    state: str

    def __init__(self, task: str, id: str, state: str) -> None:
        super().__init__(task, id, state)

    def sentence(self) -> str:
        return f"{self.task}[{brief(self.id)}] has already ended as {self.state}"


class AlreadyRunning(StaleAttempt):
    """Raised in place of a run while another run of the same task is alive."""

    _facts = ("task", "id", "attempt", "current", "worker", "left")
    #: Node name and process id of the run that is alive.
    worker: str
    #: Seconds that its lease still lasts, unless it is renewed.
    left: float

    def __init__(
        self, task: str, id: str, attempt: int, current: int, worker: str, left: float
    ) -> None:
        super(StaleAttempt, self).__init__(task, id, attempt, current, worker, left)

    def sentence(self) -> str:
        return (
            f"{self.task}[{brief(self.id)}] is being run by {self.worker} (attempt {self.current}): "
            f"its lease lasts {self.left:.1f} s unless renewed"
        )


class TaskLost(StatekitError, WorkerLostError):
    """How a task ends whose run is gone, and whose message does not come again."""

    _facts: ClassVar[tuple[str, ...]] = ("task", "id", "attempt", "worker")
    task: str
    id: str
    #: The attempt that was lost.
    attempt: int
    #: Node name and process id of it.
    worker: str

    def __init__(self, task: str, id: str, attempt: int, worker: str) -> None:
        super().__init__(task, id, attempt, worker)

    def sentence(self) -> str:
        return f"worker lost: {self.worker} ran {self._which()} and said nothing more"

    def _which(self) -> str:
        return f"{self.task}[{brief(self.id)}] attempt {self.attempt}"


class PoisonTask(TaskLost):
    """How a task ends of which as many runs were lost, one after the other, as may be."""

    _facts = ("task", "id", "attempt", "worker", "losses")
    losses: int

    def __init__(self, task: str, id: str, attempt: int, worker: str, losses: int) -> None:
        super(TaskLost, self).__init__(task, id, attempt, worker, losses)

    def sentence(self) -> str:
        return f"poison: {self._which()} was lost too, after {self.losses - 1} before it"


class Cancelled(StatekitError, Ignore):
    """Raised at each state call of a run that was cancelled: it is to clean up, and ends as REVOKED.

    It is an ``Ignore``: autoretry lets it through.
    """

    _facts = ("task", "id", "reason", "by")
    task: str
    id: str
    #: Why, in the words of who cancelled it.
    reason: str
    #: Who did; "" where that was not said.
    by: str

    def __init__(self, task: str, id: str, reason: str = "", by: str = "") -> None:
        super().__init__(task, id, reason, by)

    def sentence(self) -> str:
        by = f" by {self.by}" if self.by else ""
        return f"{self.task}[{brief(self.id)}] was cancelled{by}{f': {self.reason}' if self.reason else ''}"


class NotRunning(StatekitError):
    """Raised when a call needs a running task and there is none in this thread."""

    _facts = ("task", "call")
    task: str
    call: str

    def __init__(self, task: str, call: str) -> None:
        super().__init__(task, call)

    def sentence(self) -> str:
        return (
            f"{self.task}.{self.call} needs a running task; in a thread of your own, "
            f"take what you need (self.progress) in the task's thread first"
        )


class SetupTooLate(StatekitError):
    """Raised when ``setup(app)`` is called after the app has made its tasks."""

    _facts = ("app", "tasks")
    app: str
    tasks: tuple[str, ...]

    def __init__(self, app: str, tasks: tuple[str, ...] | list[str]) -> None:
        super().__init__(app, tuple(tasks))

    def sentence(self) -> str:
        names = ", ".join(self.tasks[:5])
        return (
            f"setup() of app {self.app!r} came too late: these tasks are made already: {names}; "
            f"call it right after the app is created, before its tasks are used"
        )


class ReportedFailure(StatekitError):
    """The result of a task that called ``update_state(state="FAILURE", meta)`` and raised Ignore."""

    _facts = ("meta",)
    meta: Any

    def __init__(self, meta: Any = None) -> None:
        super().__init__(meta)

    def sentence(self) -> str:
        return f"the task reported FAILURE: {brief(self.meta)}"


class ResultLost(StatekitError):
    """The result of a task that succeeded, where what it returned did not reach the backend."""

    _facts = ("task", "id")
    task: str
    id: str

    def __init__(self, task: str, id: str) -> None:
        super().__init__(task, id)

    def sentence(self) -> str:
        return f"{self.task}[{brief(self.id)}] succeeded, and what it returned was not stored"


class _ClientError(StatekitError):
    _facts = ("client", "id")
    #: Name of the client's class.
    client: str
    id: str

    def __init__(self, client: str, id: str) -> None:
        super().__init__(client, id)


class NoSuchClient(_ClientError, LookupError):
    """Raised when no client of that id is stored."""

    def sentence(self) -> str:
        return f"no {self.client} is stored under id {brief(self.id)}; create(id) makes one"


class ClientExists(_ClientError):
    """Raised by ``create`` when a client of that id is stored already."""

    def sentence(self) -> str:
        return f"{self.client} {brief(self.id)} is stored already"


class ContentionTimeout(StatekitError):
    """Raised when others kept winning until the deadline; nothing was applied."""

    _facts = ("key", "attempts", "seconds")
    key: str
    attempts: int
    seconds: float

    def __init__(self, key: str, attempts: int, seconds: float) -> None:
        super().__init__(key, attempts, seconds)

    def sentence(self) -> str:
        return (
            f"{self.key} was not updated: {self.attempts} attempts in {self.seconds:g} s "
            f"each met a newer version or a lease held by another; nothing was applied"
        )


class LeaseLost(StatekitError):
    """Raised when ``exclusive`` outlived its lease and another writer has written since."""

    _facts = ("key", "seconds")
    key: str
    #: The lease's length in seconds.
    seconds: float

    def __init__(self, key: str, seconds: float) -> None:
        super().__init__(key, seconds)

    def sentence(self) -> str:
        return (
            f"the lease of {self.seconds:g} s on {self.key} ended and another has written since; "
            f"nothing of this block was applied"
        )


class UnknownTask(StatekitError, LookupError):
    """Raised when neither a record nor Celery's result backend knows the id."""

    _facts = ("id", "seconds")
    id: str
    seconds: float

    def __init__(self, id: str, seconds: float) -> None:
        super().__init__(id, seconds)

    def sentence(self) -> str:
        after = f" after {self.seconds:g} s" if self.seconds else ""
        return f"nothing is known of {brief(self.id)}{after}"


class WatchTimeout(StatekitError, TimeoutError):
    """Raised when what was waited for did not happen in time."""

    _facts = ("id", "seconds", "state")
    id: str
    seconds: float
    #: Where the task or client stood then.
    state: str

    def __init__(self, id: str, seconds: float, state: str) -> None:
        super().__init__(id, seconds, state)
        # OSError, of which TimeoutError is one, keeps only the first two.
        self.args = id, seconds, state

    def sentence(self) -> str:
        return f"{brief(self.id)} is still {self.state} after {self.seconds:g} s"


class StateNotReached(StatekitError):
    """Raised when a task ended without entering the awaited state."""

    _facts = ("id", "awaited", "state")
    id: str
    awaited: tuple[str, ...]
    #: The end it came to.
    state: str

    def __init__(self, id: str, awaited: tuple[str, ...] | list[str], state: str) -> None:
        super().__init__(id, tuple(awaited), state)

    def sentence(self) -> str:
        return f"{brief(self.id)} ended as {self.state} without entering {', '.join(self.awaited)}"


class StoreError(StatekitError):
    """The root of what can be wrong with a store."""

    _facts: ClassVar[tuple[str, ...]] = ("store", "why")
    #: The store's URL without its password, or its name.
    store: str
    why: str

    def __init__(self, store: str, why: str) -> None:
        super().__init__(store, why)

    def sentence(self) -> str:
        return f"{self.store}: {self.why}"


class StoreNotConfigured(StoreError):
    """Raised when ``statekit_store`` names no store and none can be derived from the app."""


class StoreUnavailable(StoreError):
    """Raised when the store cannot be reached now; nothing was written."""

    _facts = ("store", "why", "again")
    #: Seconds until it is asked again, where it was not asked at all; None: it was asked.
    again: float | None

    def __init__(self, store: str, why: str, again: float | None = None) -> None:
        StatekitError.__init__(self, store, why, again)


class StoreFull(StoreError):
    """Raised when the store has no room; the previous record is intact."""


class AmbiguousWrite(StoreError):
    """Raised when a write's reply was lost: it may or may not have been applied.

    Repeating is safe: the same write is known by its id, an update by its ``once`` name.
    """

    _facts = ("store", "why", "write")
    #: The write's id; "" where it is not known.
    write: str

    def __init__(self, store: str, why: str, write: str = "") -> None:
        StatekitError.__init__(self, store, why, write)

    def sentence(self) -> str:
        write = f"write {self.write}" if self.write else "the write"
        return (
            f"{self.store}: {self.why}; whether {write} was applied is not known. It is safe to "
            f"repeat: an update with a once name is applied once"
        )


class StateRegressed(StoreError):
    """Raised when the store went back: it failed over, was restored, or lost what it held."""

    _facts = ("key", "held", "found")
    key: str
    #: The version that was read or written before.
    held: int
    #: The version that is there now; 0: none.
    found: int

    def __init__(self, key: str, held: int, found: int) -> None:
        StatekitError.__init__(self, key, held, found)

    def sentence(self) -> str:
        found = f"version {self.found}" if self.found else "nothing"
        return (
            f"the store went back: it holds {found} of {self.key}, which was at version "
            f"{self.held}; it failed over, was restored, or does not keep what it is given"
        )


class CorruptRecord(StoreError):
    """Raised when stored bytes are not what was written; never a default value instead."""

    _facts = ("key", "why")
    key: str

    def sentence(self) -> str:
        return f"the record {self.key} is corrupt: {self.why}"


class NewerFormat(StoreError):
    """Raised when a record written by a newer release would be written back by this one."""

    _facts = ("key", "why")
    key: str

    def sentence(self) -> str:
        return f"the record {self.key} cannot be written: {self.why}"
