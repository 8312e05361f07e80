"""The hooks' app: a long task, and who hears of its moves: its class, and a signal's receiver."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_init, worker_process_init

from celery_statekit import Change, Progress, StatefulTask, signals

app = Celery("hooks")
# Seconds until the task of a process that died is given up; Celery takes 10.
app.conf.worker_lost_wait = 1.0


class LongTask(StatefulTask):
    """A task as a class: ``run`` is what it does, its hooks hear what becomes of it."""

    name = "hooks.long"

    def run(self, parts: int, then: str = "") -> str:
        """Work through the parts; after one half wait, fail or die, as ``then`` says."""
        for part in self.track(range(1, parts + 1), "parts"):
            if part == parts // 2 + 1:
                half_way(then)
        return f"{parts} parts done"

    def on_state_change(self, change: Change) -> None:
        """Hear of each change of the task."""
        call("on_state_change", change.to_state)

    def on_progress(self, progress: Progress) -> None:
        """Hear of progress as often as it is written, and always of the last."""
        if progress.percent in (50, 100):
            call("on_progress", str(progress))


long_task = app.register_task(LongTask())


@signals.state_changed.connect(sender=LongTask.name)
def act_on_ends(change: Change, **_: Any) -> None:
    """Act on SUCCESS and FAILURE. A receiver may stand in any module that the workers import."""
    if change.to_state == "SUCCESS":
        call("receiver", "SUCCESS: send the bill")
    elif change.to_state == "FAILURE":
        call("receiver", f"FAILURE: ring the alarm, {change.reason}")


# --- what the story needs -------------------------------------------------------------------------


class Here:
    """What this process is; Celery's signals say so in a worker."""

    process = "the sender"


@worker_init.connect
def _in_worker(**_: Any) -> None:
    Here.process = "the worker's main process"


@worker_process_init.connect
def _in_pool(**_: Any) -> None:
    Here.process = "a process of the worker's pool"


def call(who: str, what: str) -> None:
    """Tell the story: here by a datagram, in your app by a web hook, a queue, a Redis channel.

    The task waits for its hooks and receivers: keep them short.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        told = json.dumps([who, Here.process, what]).encode()
        line.sendto(told, ("127.0.0.1", int(os.environ["EXAMPLE_PORT"])))


def half_way(then: str) -> None:
    """Wait for the story, or fail, or end the process without a word."""
    if then == "wait":
        while not Path(os.environ["EXAMPLE_FOLDER"], "may-go-on").exists():
            time.sleep(0.02)
    elif then == "fail":
        raise ValueError("the rest is broken")
    elif then == "die":
        os.kill(os.getpid(), signal.SIGKILL)
