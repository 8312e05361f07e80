"""State-aware Celery task base classes: checked, fenced, remembered, and nearly free."""

from __future__ import annotations

from celery_statekit import listeners as _listeners  # noqa: F401 - connects itself
from celery_statekit.adoption import setup, stateful, track
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
    "Change",
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
