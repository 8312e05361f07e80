"""The app of the tests that kill its worker: it finds its servers in the environment."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from celery import Celery
from kombu import Exchange, Queue

from celery_statekit import StatefulTask, States, setup

PLACE = "STATEKIT_RESUMING_PLACE"

place: dict[str, Any] = json.loads(os.environ[PLACE])
name: str = place["name"]
app = Celery("shop", broker=place["broker"], backend=place["results"], set_as_current=False)
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_transport_options=place["transport_options"],
    result_backend_transport_options={"global_keyprefix": f"{name}:"},
    statekit_prefix=name[-40:],
    statekit_progress_interval=0.05,
    statekit_lease=3.0,
    statekit_store=place["store"],
    task_acks_late=True,
    task_default_queue=name,
    task_queues=[Queue(name, Exchange(name), routing_key=name)],
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
)
setup(app)


class Import(States):
    READING = "Reading the file"
    IMPORTING = "Importing rows"


@app.task(bind=True, base=StatefulTask, states=Import, shared=False, name="shop.load")
def load(self: Any, rows: int, gate: str) -> None:
    """Import rows; the first attempt stops at row 7 until the file ``gate`` is there."""
    self.enter(Import.READING)
    found, attempt, done = self.last_checkpoint, self.task_state.attempt, []
    self.enter(Import.IMPORTING)
    for row in self.track(range(rows), "importing", resume=True):
        done.append(row)
        if row == 5:
            self.checkpoint({"row": row})
        if row == 7 and attempt == 1:
            deadline = time.monotonic() + 60
            while not Path(gate).exists() and time.monotonic() < deadline:
                time.sleep(0.01)
    self.checkpoint({"found": found, "done": done})
