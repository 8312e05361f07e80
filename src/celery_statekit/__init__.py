"""State-aware Celery task base classes: checked, fenced, remembered, and nearly free.

The names below are imported when they are first used: a worker without clients, say, does not
pay for their validation.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery_statekit.adoption import setup, stateful, track
    from celery_statekit.asked import Asked
    from celery_statekit.checkpoint import Checkpoint
    from celery_statekit.client import ClientState, ClientStates
    from celery_statekit.clients import Clients
    from celery_statekit.progress import Progress
    from celery_statekit.record import Change, TaskState
    from celery_statekit.result import StatefulResult
    from celery_statekit.states import States
    from celery_statekit.stores import open_store
    from celery_statekit.task import StatefulTask
    from celery_statekit.watcher import Watcher

__all__ = [
    "Asked",
    "Change",
    "Checkpoint",
    "ClientState",
    "ClientStates",
    "Clients",
    "Progress",
    "StatefulResult",
    "StatefulTask",
    "States",
    "TaskState",
    "Watcher",
    "open_store",
    "setup",
    "stateful",
    "track",
]

_HOMES = {
    "Asked": "asked",
    "Change": "record",
    "Checkpoint": "checkpoint",
    "ClientState": "client",
    "ClientStates": "client",
    "Clients": "clients",
    "Progress": "progress",
    "StatefulResult": "result",
    "StatefulTask": "task",
    "States": "states",
    "TaskState": "record",
    "Watcher": "watcher",
    "open_store": "stores",
    "setup": "adoption",
    "stateful": "adoption",
    "track": "adoption",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
