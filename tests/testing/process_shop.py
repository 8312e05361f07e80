"""The app of the tests with worker processes, which import it by its name."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import Celery

from celery_statekit import StatefulTask, States

#: Environment variable with settings of the app, in JSON.
SETTINGS = "STATEKIT_TESTS_SHOP"

app = Celery("shop", broker="redis://nowhere.invalid", backend="redis://nowhere.invalid")
app.conf.update(json.loads(os.environ.get(SETTINGS, "{}")))


class Import(States):
    READING = "Reading the file"
    IMPORTING = "Importing rows"


@app.task(bind=True, base=StatefulTask, states=Import, acks_late=True)
def load(self: Any, rows: int, gate: str = "") -> list[Any]:
    """Import rows; the first attempt stops at row 7 until the file ``gate`` is there."""
    self.enter(Import.READING)
    found, attempt, done = self.last_checkpoint, self.task_state.attempt, []
    self.enter(Import.IMPORTING)
    for row in self.track(range(rows), "importing", resume=True):
        done.append(row)
        if row % 5 == 0:
            self.checkpoint({"row": row, "attempt": attempt})
        if row == 7 and attempt == 1 and gate:
            wait_for(gate)
    return [attempt, found, done]


@app.task(base=StatefulTask)
def add(*numbers: Any) -> int:
    """The sum, also of a list."""
    return sum(numbers[0] if isinstance(numbers[0], list) else numbers)


@app.task(base=StatefulTask)
def die() -> None:
    """Kill the process that runs it."""
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(base=StatefulTask)
def leave() -> None:
    """End the process that runs it."""
    os._exit(3)


@app.task(base=StatefulTask)
def environment(name: str) -> str:
    """A variable of the worker's process."""
    return os.environ.get(name, "")


def wait_for(gate: str) -> None:
    """Wait until there is a file ``gate``, a minute at most."""
    deadline = time.monotonic() + 60
    while not Path(gate).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
