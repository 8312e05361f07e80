"""The app of the workers that are killed: it finds its servers in the environment.

What its tasks do is written down line by line in files, so that what happens twice is seen.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from celery import Celery
from kombu import Exchange, Queue

from celery_statekit import StatefulTask, setup, signals

PLACE: Final = "STATEKIT_LOST_PLACE"
#: The second is asked for by name only.
QUEUES: Final = ("lost", "lost-too")
#: Seconds after which a run gives up to wait for its gate.
PATIENCE: Final = 120.0

place: dict[str, Any] = json.loads(os.environ[PLACE])
folder = Path(place["folder"])
app = Celery("lost", broker=place["broker"], backend=place["results"], set_as_current=False)
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_transport_options=place["transport_options"],
    statekit_lease=place["lease"],
    statekit_lost_grace=place["grace"],
    statekit_progress_interval=0.1,
    statekit_store=place["store"],
    task_default_queue=QUEUES[0],
    task_queues=[Queue(name, Exchange(name), routing_key=name) for name in QUEUES],
    worker_prefetch_multiplier=1,
)
setup(app)


def note(book: str, *words: object) -> None:
    """Write one line into a file of the trial's folder, at once with whoever else does."""
    with (folder / book).open("a") as lines:
        lines.write(" ".join(map(str, words)) + "\n")


@signals.attempt_fenced.connect(weak=False)
def _fenced(fenced: signals.Fenced, **_: Any) -> None:
    note("fenced", fenced.id, fenced.attempt)


def work(task: Any, name: str, held: list[int], *, talks: bool = False) -> str:
    """Run until the gate of this attempt is open, if it is to be held; talk of it meanwhile."""
    attempt = task.task_state.attempt
    note("begun", name, attempt)
    if attempt in held:
        for beat in _until_open(folder / f"{name}.{attempt}"):
            if talks:
                task.progress.update(beat)
    note("woken", name, attempt)
    if talks:
        task.checkpoint({"attempt": attempt})
        task.enter("PACKING")
    return name


def _until_open(gate: Path) -> Iterator[int]:
    deadline, beat = time.monotonic() + PATIENCE, 0
    while not gate.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
        beat += 1
        yield beat


@app.task(
    bind=True,
    base=StatefulTask,
    shared=False,
    name="late",
    acks_late=True,
    reject_on_worker_lost=True,
)
def late(self: Any, name: str, held: list[int], *, talks: bool = False) -> str:
    """Comes again where its run is lost."""
    return work(self, name, held, talks=talks)


@app.task(bind=True, base=StatefulTask, shared=False, name="early")
def early(self: Any, name: str, held: list[int], *, talks: bool = False) -> str:
    """Does not come again."""
    return work(self, name, held, talks=talks)


@app.task(
    bind=True, base=StatefulTask, shared=False, name="again", on_lost="requeue", max_attempts=5
)
def again(self: Any, name: str, held: list[int], *, talks: bool = False) -> str:
    """Is sent again where its run is lost."""
    return work(self, name, held, talks=talks)


@app.task(bind=True, base=StatefulTask, shared=False, name="count", acks_late=True)
def count(self: Any, name: str, seconds: float) -> str:
    """Hold the interpreter in calls of C, each of which lasts so long."""
    note("begun", name, self.task_state.attempt)
    some = 5_000_000
    began = time.monotonic()
    sum(range(some))
    rate = some / (time.monotonic() - began)
    sum(range(int(rate * seconds)))
    note("woken", name, self.task_state.attempt)
    return name


@app.task(base=StatefulTask, shared=False, name="quick", acks_late=True)
def quick() -> str:
    """The other part of a chord."""
    return ""


@app.task(base=StatefulTask, shared=False, name="after", acks_late=True)
def after(_: object, name: str) -> str:
    """What comes after a task that succeeds."""
    note("after", name)
    return name


@app.task(shared=False, name="failed")
def failed(_request: Any, _exc: Any, _traceback: Any, name: str) -> None:
    """What comes after one that fails."""
    note("failed", name)
