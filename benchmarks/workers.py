"""What a worker gets done, and what a transition and a publish cost, all on one Redis."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from celery import Celery

from benchmarks.comparison import Missing, Row, each, in_turns
from benchmarks.server import connect, empty_database
from benchmarks.shop import MODES, app_of

TASKS: Final = 1500
ROUNDS: Final = 3
PUBLISHED: Final = 300
MOVES: Final = 300
#: Moves so far apart that each is shown in Celery's result backend, and seconds between them.
APART: Final = 8
PAUSE: Final = 0.3
#: Seconds for a worker to begin, and for it to run all tasks.
PATIENCE: Final = 60.0
#: A transition may take so many times what Celery's ``update_state`` takes, and a bare SET.
OF_UPDATE_STATE: Final = 0.4
OF_SET: Final = 2.0
#: A publish may take so many times what Celery's takes.
OF_DELAY: Final = 1.3
#: Ours may run so many times as fast as Celery's tasks, tracked by Celery and not at all.
SPEED: Final = {"tracked": 1.2, "plain": 0.9}
RIVALS: Final = {
    "tracked": "plain `Task`, `task_track_started`",
    "plain": "plain `Task`, not tracked",
}
POOLS: Final = {"solo": ("--pool=solo",), "prefork": ("--pool=prefork", "--concurrency=2")}


def throughput_rows() -> Iterator[Row]:
    """A worker's time for a task that does nothing, with all that is recorded of it."""
    for pool in POOLS:
        with empty_database(), workers(pool) as apps:
            spent = in_turns(*(partial(drain, apps[mode]) for mode in MODES), rounds=ROUNDS)
        seconds = dict(zip(MODES, spent, strict=True))
        for rival, speed in SPEED.items():
            yield Row(
                what=f"a task in a worker, {pool}: queued, started, end, history",
                ours=seconds["stateful"],
                rival=RIVALS[rival],
                theirs=seconds[rival],
                limit=1 / speed,
            )


def transition_rows() -> Iterator[Row]:
    """``enter()`` in a worker beside ``update_state`` in one, and a SET of what it writes.

    Of many moves in a row Celery's result backend shows the newest, once an interval.
    """
    with empty_database(), workers("solo") as apps:
        move = apps["stateful"].tasks["benchmarks.move"]
        update_state = apps["plain"].tasks["benchmarks.update_state"]
        ours, theirs, bare = in_turns(
            partial(spent_in, move, MOVES, 0.0),
            partial(spent_in, update_state, MOVES, 0.0),
            each(MOVES, setting(move)),
            rounds=15,
        )
        shown, apart = in_turns(
            partial(spent_in, move, APART, PAUSE),
            partial(spent_in, update_state, APART, PAUSE),
            rounds=3,
        )
    what, rival = "`enter()` in a worker", "`update_state`"
    many = f"{what}, {MOVES} in a row, shown once an interval"
    yield Row(what=many, ours=ours, rival=rival, theirs=theirs, limit=OF_UPDATE_STATE)
    yield Row(what=many, ours=ours, rival="redis-py `set`", theirs=bare, limit=OF_SET)
    each_shown = f"{what}, one in {PAUSE} s, each shown"
    yield Row(what=each_shown, ours=shown, rival=rival, theirs=apart)


def spent_in(task: Any, moves: int, pause: float) -> float:
    """What ``task`` measures in its worker."""
    return float(task.delay(moves, pause).get(PATIENCE))


def publish_row() -> Row:
    """``delay()`` with its PENDING record beside ``delay()``."""
    with empty_database():
        tasks = [app_of(mode).tasks["benchmarks.nothing"] for mode in ("stateful", "plain")]
        ours, theirs = in_turns(*(each(PUBLISHED, task.delay) for task in tasks), rounds=9)
    return Row(
        what="`delay()` with its PENDING",
        ours=ours,
        rival="`delay()`",
        theirs=theirs,
        limit=OF_DELAY,
    )


def setting(move: Any) -> Any:
    """Sets a value as large as what a transition writes."""
    result = move.delay(MOVES, 0.0)
    result.get(PATIENCE)
    client = connect()
    key = f"benchmark:task:{result.id}"
    value = b"".join(client.lrange(key, -2, -1))
    return lambda: client.set("benchmark:set", value)


@contextmanager
def workers(pool: str) -> Iterator[dict[str, Celery]]:
    """A worker of each mode's app, begun and idle.

    Raises:
        Missing: one does not begin.
    """
    with ExitStack() as stack:
        for mode in MODES:
            process = subprocess.Popen(  # noqa: S603 - ours
                [
                    *(sys.executable, "-m", "celery", "--quiet", "-A", "benchmarks.shop", "worker"),
                    *POOLS[pool],
                    *("--without-gossip", "--without-mingle", "--without-heartbeat"),
                    *("--loglevel=ERROR", f"--hostname={mode}@benchmarks"),
                ],
                env={**os.environ, "BENCHMARK_APP": mode, "PYTHONWARNINGS": "ignore"},
                stdout=subprocess.DEVNULL,
                cwd=Path(__file__).parents[1],
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
        apps = {mode: app_of(mode) for mode in MODES}
        try:
            for app in apps.values():
                app.tasks["benchmarks.nothing"].delay().get(timeout=PATIENCE)
        except Exception as exc:
            raise Missing(f"a worker does not begin: {exc!r}") from exc
        yield apps


def drain(app: Celery) -> float:
    """Seconds of one task: of many, published first, from when the worker may take them."""
    queue, task = f"{app.main}-work", app.tasks["benchmarks.nothing"]
    client = connect()
    ids = [task.apply_async(queue=queue).id for _ in range(TASKS)]
    began = time.perf_counter()
    app.control.add_consumer(queue, destination=[f"{app.main}@benchmarks"])
    while client.llen(queue):
        time.sleep(0.005)
    left = [f"celery-task-meta-{id}" for id in ids]
    while left:
        if time.perf_counter() - began > PATIENCE:
            raise Missing(f"{len(left)} tasks have not ended after {PATIENCE} s")
        metas = client.mget(left)
        left = [
            key for key, meta in zip(left, metas, strict=True) if b"SUCCESS" not in (meta or b"")
        ]
    spent = time.perf_counter() - began
    app.control.cancel_consumer(queue, destination=[f"{app.main}@benchmarks"])
    client.close()
    return spent / TASKS
