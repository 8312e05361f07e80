"""The apps that workers are measured with: Celery's own task, tracked by Celery, and ours.

A worker's app is the one that ``BENCHMARK_APP`` names: ``python -m celery -A benchmarks.shop worker``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Final

from celery import Celery, Task

from benchmarks.server import URL
from celery_statekit import StatefulTask, States, setup

#: Each has a queue of its own name.
MODES: Final = ("plain", "tracked", "stateful")


class Sides(States):
    """States between which a task may move for ever."""

    LEFT = "Left"
    RIGHT = "Right"

    __flow__ = {"LEFT": "RIGHT", "RIGHT": "LEFT"}  # noqa: RUF012 - no field of an Enum


def app_of(mode: str) -> Celery:
    """The app of a mode, with its one task that does nothing."""
    app = Celery(mode, broker=URL, backend=URL, set_as_current=False)
    app.conf.update(
        task_default_queue=mode,
        task_track_started=mode == "tracked",
        statekit_store=URL,
        statekit_prefix="benchmark",
        broker_connection_retry_on_startup=True,
    )
    if mode == "stateful":
        setup(app)
        app.task(move, bind=True, states=Sides, name="benchmarks.move", shared=False)
    else:
        app.task(update_state, bind=True, name="benchmarks.update_state", shared=False)
    app.task(nothing, name="benchmarks.nothing", shared=False)
    return app


def nothing() -> None:
    """Nothing."""


def move(self: StatefulTask, moves: int, pause: float) -> float:
    """Seconds of one move, ``pause`` seconds after the one before."""
    return each_of(moves, pause, lambda left: self.enter(Sides.LEFT if left else Sides.RIGHT))


def update_state(self: Task[Any, Any], moves: int, pause: float) -> float:
    """Seconds of one ``update_state``, likewise."""
    return each_of(
        moves,
        pause,
        lambda left: self.update_state(state="LEFT" if left else "RIGHT", meta={}),
    )


def each_of(times: int, pause: float, call: Callable[[bool], object]) -> float:
    """Seconds of one ``call`` of many; every second one is given False."""
    spent = 0.0
    for number in range(times):
        if pause:
            time.sleep(pause)
        began = time.perf_counter()
        call(number % 2 == 0)
        spent += time.perf_counter() - began
    return spent / times


app = app_of(os.environ.get("BENCHMARK_APP", "plain"))
