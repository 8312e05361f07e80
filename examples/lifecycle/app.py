"""The lifecycle's app: tasks that add, sleep, and keep their result to themselves."""

from __future__ import annotations

import os
import time
from pathlib import Path

from celery import Celery

from celery_statekit import StatefulTask

app = Celery("lifecycle")
# Celery's own result shows STARTED too; the record always does.
app.conf.task_track_started = True


def wait_for(name: str) -> None:
    """Wait until the story has made this file. It looks at the task meanwhile, without hurry."""
    while not Path(os.environ["EXAMPLE_FOLDER"], name).exists():
        time.sleep(0.02)


@app.task(base=StatefulTask)
def add(a: int, b: int) -> int:
    """Add two numbers, if they are numbers."""
    wait_for("may-add")
    return a + b


@app.task(bind=True, base=StatefulTask)
def nap(self: StatefulTask) -> str:
    """Enter a state that nobody has declared: without ``states=`` any name will do."""
    self.update_state(state="GOING_TO_SLEEP", meta={"sheep": 3})
    wait_for("may-wake")
    return "rested"


@app.task(base=StatefulTask, ignore_result=True)
def whisper() -> str:
    """Return what Celery is told to ignore; how the task ended is recorded all the same."""
    return "nobody hears this"
