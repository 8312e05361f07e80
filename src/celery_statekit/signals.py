"""Signals: Celery's own ``Signal`` class, one frozen payload each, sent after the write.

The sender is the task's registered name (for ``client_changed`` the client's kind), so that
``state_changed.connect(receiver, sender="shop.import_orders")`` filters. A receiver's exception
is logged by Celery and hurts nobody (celery 5.7 utils/dispatch/signal.py). Receivers are held
weakly unless connected with ``weak=False``, as all of Celery's.

Where each fires: in the process that wrote. PENDING in the publisher; STARTED, declared states,
RETRY, IGNORED, REJECTED and the ends of a run in the process that runs the task (prefork: the
pool child); the end of a run whose process died, and REVOKED, in the worker's main process;
progress in the flusher's thread of the process that runs the task.
"""

from __future__ import annotations

from dataclasses import dataclass

from celery.utils.dispatch import Signal

from celery_statekit.errors import IllegalTransition
from celery_statekit.progress import Progress
from celery_statekit.record import Change


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed:
    """The payload of ``progressed``: a progress that was written."""

    task: str
    id: str
    attempt: int
    client_id: str
    progress: Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The payload of ``transition_refused``: a move that was not made."""

    task: str
    id: str
    attempt: int
    error: IllegalTransition


@dataclass(frozen=True, slots=True, kw_only=True)
class Fenced:
    """The payload of ``attempt_fenced``: a write of a run that is no longer the current one."""

    task: str
    id: str
    #: The run that was refused.
    attempt: int
    #: The run that counts.
    current: int
    #: What the refused run wanted to write.
    wanted: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientChanged:
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
#: A client's record was written. Payload: ``changed``, a :class:`ClientChanged`.
client_changed = Signal(name="client_changed", providing_args={"changed"})
