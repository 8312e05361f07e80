"""What following a loop costs beside tqdm, and one ``update()`` beside Celery's on Redis."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from celery import Celery

from benchmarks import bench_track
from benchmarks.comparison import Missing, Row, each, in_turns
from celery_statekit import StatefulTask

ITEMS: Final = 10_000_000
UPDATES: Final = 1_000_000
ROUNDS: Final = 5
REDIS: Final = "redis://127.0.0.1:6379/8"
#: ``update()`` may take this much of what Celery's ``update_state`` takes on Redis.
LIMIT: Final = 1 / 1000

app = Celery("benchmarks", broker="memory://", backend="cache+memory://", set_as_current=False)
app.conf.statekit_store = "memory://tracking"


@app.task(bind=True, base=StatefulTask, name="benchmarks.count")
def count(self: StatefulTask, times: int) -> float:
    """Seconds of one update of a running task's progress."""
    progress = self.progress
    began = time.perf_counter()
    for _ in range(times):
        progress.update()
    return (time.perf_counter() - began) / times


def loop_row() -> Row:
    """``track()`` beside tqdm, both above the bare loop."""
    figures = {name: value * 1e-9 for name, value, _ in bench_track.rows(ITEMS)}
    return Row(
        what=f"`track()` an item, above the bare loop, {ITEMS:,} items",
        ours=figures["track(), above the bare loop"],
        rival="tqdm",
        theirs=figures["tqdm, above the bare loop"],
        limit=bench_track.LIMIT,
    )


def update_row() -> Row:
    """``progress.update()`` beside Celery's ``update_state`` on Redis.

    Raises:
        Missing: no Redis answers.
    """
    with redis_update_state() as theirs:
        ours, price = in_turns(
            lambda: count.apply((UPDATES,)).get(), each(500, theirs), rounds=ROUNDS
        )
    return Row(
        what="`progress.update()` in a task",
        ours=ours,
        rival="`update_state`, Redis",
        theirs=price,
        limit=LIMIT,
    )


@contextmanager
def redis_update_state() -> Iterator[Callable[[], None]]:
    """Celery's ``update_state`` of a task whose results are in Redis."""
    plain = Celery("plain", broker="memory://", backend=REDIS, set_as_current=False)
    plain.conf.redis_socket_connect_timeout = 1.0

    @plain.task(bind=True, name="benchmarks.plain", shared=False)
    def task(self: object) -> None:
        """Celery's own."""

    try:
        plain.backend.client.ping()
    except Exception as exc:
        raise Missing(f"no Redis answers at {REDIS}: {exc}") from exc
    task_id = uuid.uuid4().hex
    try:
        yield lambda: task.update_state(task_id, "PROGRESS", {"current": 1, "total": 100})
    finally:
        plain.AsyncResult(task_id).forget()
