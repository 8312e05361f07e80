"""What a move, and a whole task, costs beside Celery on the same kind of storage."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Callable
from typing import Final

from celery import Celery
from celery.exceptions import ImproperlyConfigured

from benchmarks.comparison import Missing, Row, each, in_turns
from celery_statekit import StatefulTask, States
from celery_statekit.settings import Settings

MOVES: Final = 300
TASKS: Final = 200
ROUNDS: Final = 7


class Sides(States):
    """States between which a task may move for ever."""

    LEFT = "Left"
    RIGHT = "Right"

    __flow__ = {"LEFT": "RIGHT", "RIGHT": "LEFT"}  # noqa: RUF012 - no field of an Enum


def move_row(store: str, backend: str) -> Row:
    """``enter()`` in a store beside ``update_state`` in a backend.

    Args:
        store: URL of the store; ``{folder}`` in it stands for a new one.
        backend: URL of Celery's result backend, likewise.

    Raises:
        Missing: a module that Celery's backend needs is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        app = app_with(store.format(folder=folder))
        theirs = each(MOVES, update_state(backend.format(folder=folder)))
        ours, price = in_turns(moving(app), theirs, rounds=ROUNDS)
        Settings.of(app).store.close()
    here, there = store.partition(":")[0], backend.partition(":")[0]
    return Row(
        what=f"`enter()`, `{here}://`",
        ours=ours,
        rival=f"`update_state`, `{there}://`",
        theirs=price,
    )


def task_row() -> Row:
    """A task that does nothing, run in this process: record, history and fence included."""
    app = app_with("memory://tasks")

    @app.task(base=StatefulTask, name="benchmarks.stateful", shared=False)
    def stateful() -> None:
        """Nothing."""

    @app.task(name="benchmarks.plain", shared=False)
    def plain() -> None:
        """Nothing."""

    ours, theirs = in_turns(each(TASKS, stateful.apply), each(TASKS, plain.apply), rounds=ROUNDS)
    return Row(what="a whole task, `apply()`", ours=ours, rival="plain Task", theirs=theirs)


def app_with(store: str, backend: str = "cache+memory://") -> Celery:
    """An app of its own."""
    app = Celery("benchmarks", broker="memory://", backend=backend, set_as_current=False)
    app.conf.statekit_store = store
    return app


def moving(app: Celery) -> Callable[[], float]:
    """Seconds of one move of a running task."""

    @app.task(bind=True, base=StatefulTask, states=Sides, name="benchmarks.move", shared=False)
    def move(self: StatefulTask) -> float:
        began = time.perf_counter()
        for _ in range(MOVES // 2):
            self.enter(Sides.LEFT)
            self.enter(Sides.RIGHT)
        return (time.perf_counter() - began) / MOVES

    return lambda: move.apply().get()


def update_state(backend: str) -> Callable[[], None]:
    """Celery's ``update_state`` of a task whose results are in ``backend``.

    Raises:
        Missing: a module that it needs is not installed.
    """
    app = app_with("memory://plain", backend)

    @app.task(bind=True, name="benchmarks.plain", shared=False)
    def task(self: object) -> None:
        """Celery's own."""

    try:
        _ = app.backend
    except (ImportError, ImproperlyConfigured) as exc:
        raise Missing(f"Celery's backend {backend} cannot be used: {exc}") from exc
    task_id = uuid.uuid4().hex
    return lambda: task.update_state(task_id, "LEFT", {})
