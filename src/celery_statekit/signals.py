"""Signals: Celery's own ``Signal`` class, one immutable payload each, sent after the write.

The sender is the task's registered name (for ``client_changed`` the client's kind), so that
``state_changed.connect(receiver, sender="shop.import_orders")`` filters. A receiver's exception
is logged by Celery and hurts nobody (celery 5.7 utils/dispatch/signal.py). Receivers are held
weakly unless connected with ``weak=False``, as all of Celery's.

Where each fires: in the process that wrote. PENDING in the publisher; STARTED, declared states,
RETRY, IGNORED, REJECTED and the ends of a run in the process that runs the task (prefork: the
pool child); the end of a run whose process died, and REVOKED, in the worker's main process;
progress in a thread of its own of the process that runs the task.
"""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING, Any, NoReturn

from celery.utils.dispatch import Signal

from celery_statekit.errors import IllegalTransition
from celery_statekit.progress import Progress
from celery_statekit.record import Change

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(**_: bool) -> Any:
        """Leave the class as it is, with what :class:`_Payload` has of a frozen dataclass.

        To generate the methods of one takes longer than to import this file.
        """
        return lambda made: made


class _Payload:
    if not TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None:
            if fields.keys() != self.__annotations__.keys():
                raise TypeError(f"{type(self).__name__} takes {', '.join(self.__annotations__)}")
            vars(self).update((name, fields[name]) for name in self.__annotations__)

        def __setattr__(self, name: str, value: Any) -> NoReturn:
            raise FrozenInstanceError(f"cannot assign to field {name!r}")

        def __delattr__(self, name: str) -> NoReturn:
            raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({fields})"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Progressed(_Payload):
    """The payload of ``progressed``: a progress that was written."""

    task: str
    id: str
    attempt: int
    client_id: str
    progress: Progress


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Refused(_Payload):
    """The payload of ``transition_refused``: a move that was not made."""

    task: str
    id: str
    attempt: int
    error: IllegalTransition


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Fenced(_Payload):
    """The payload of ``attempt_fenced``: a write of a run that is no longer the current one."""

    task: str
    id: str
    #: The run that was refused.
    attempt: int
    #: The run that counts.
    current: int
    #: What the refused run wanted to write.
    wanted: str


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Lost(_Payload):
    """The payload of ``task_lost``: a run that is gone, and nobody has said how it ended."""

    task: str
    id: str
    #: The run that was lost.
    attempt: int
    #: Node name and process id of it.
    worker: str
    client_id: str
    #: How many runs of the task were lost, one after the other.
    losses: int
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ClientChanged(_Payload):
    """The payload of ``client_changed``: a client's record that was written or deleted."""

    kind: str
    id: str
    #: The record's version; 0 when it was deleted.
    version: int
    state: str
    #: The moves that came with the write; empty when only fields changed.
    changes: tuple[Change, ...]


#: A task's record moved. Payload: ``change``, a :class:`~celery_statekit.record.Change`.
state_changed = Signal(name="state_changed", providing_args={"change"})
#: A task's progress was written. Payload: ``progressed``, a :class:`Progressed`.
progressed = Signal(name="progressed", providing_args={"progressed"})
#: A move was refused. Payload: ``refused``, a :class:`Refused`.
transition_refused = Signal(name="transition_refused", providing_args={"refused"})
#: A stale run was refused. Payload: ``fenced``, a :class:`Fenced`.
attempt_fenced = Signal(name="attempt_fenced", providing_args={"fenced"})
#: A run was lost; told of once for each. Payload: ``lost``, a :class:`Lost`.
task_lost = Signal(name="task_lost", providing_args={"lost"})
#: A client's record was written. Payload: ``changed``, a :class:`ClientChanged`.
client_changed = Signal(name="client_changed", providing_args={"changed"})
