"""Which run a report from outside speaks of."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from billiard.exceptions import WorkerLostError

from celery_statekit.attempt import LEAVING
from celery_statekit.record import TaskState
from celery_statekit.states import LOST


def run_of(task: Any, request: Any, exc: BaseException) -> Callable[[TaskState], bool]:
    """Which run the worker's main process speaks of: one of its own node.

    A lost worker's process is gone; where it lives, and does not leave, another run of the same
    task is meant. Billiard 4.3 reports an exit before the process has ended.
    """
    if request is not None and request is task.request_stack.top:
        return no_run  # a before_start has raised
    node = getattr(request, "hostname", None)

    def meant(state: TaskState) -> bool:
        host, _, pid = state.worker.rpartition(":")
        if node is None or (host and host != node):
            return False
        if not isinstance(exc, WorkerLostError) or state.reason.startswith(LEAVING):
            return True
        return not (pid.isdigit() and _lives(int(pid)))

    return meant


def no_run(state: TaskState) -> bool:
    """What speaks of a message that was never run does not speak of a run; of a lost one it does."""
    return state.state == LOST


def _lives(pid: int) -> bool:
    if pid == os.getpid():
        return False  # a pool of threads: it is this process that reports
    try:
        os.kill(pid, 0)
    except OSError as exc:
        return exc.errno == errno.EPERM
    return True
