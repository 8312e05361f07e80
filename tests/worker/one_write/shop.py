"""The app of the tests with worker processes: it finds its Redis in the environment."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

from celery import Celery, Task
from celery.signals import worker_ready

from celery_statekit import setup

PLACE = "STATEKIT_ONE_WRITE_PLACE"


def build(url: str, name: str) -> Celery:
    """The app, with each task in a plain and in a stateful form."""
    app = Celery(name, broker=url, backend=url, set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        broker_transport_options={"global_keyprefix": f"{name}:"},
        result_backend_transport_options={"global_keyprefix": f"{name}:"},
        statekit_store=url,
        statekit_prefix=name,
        task_default_queue=name,
    )
    setup(app)
    for kind, base in (("plain", Task), ("stateful", app.Task)):
        _add_tasks(app, kind, base)
    return app


def _add_tasks(app: Celery, kind: str, base: Any) -> None:
    def task(function: Any, **options: Any) -> Any:
        options |= {"name": f"{kind}.{function.__name__}", "base": base, "shared": False}
        return app.task(**options)(function)

    def add(x: int, y: int = 1) -> int:
        return x + y

    def total(numbers: list[int]) -> int:
        return sum(numbers)

    def killed() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def wait(self: Any, seconds: float) -> None:
        mark(app, f"running:{self.request.id}")
        time.sleep(seconds)

    def caught(request: Any, exc: Any, traceback: Any) -> None:
        mark(app, f"caught:{request.id}")

    task(add)
    task(total)
    task(killed)
    task(caught)
    task(wait, bind=True, time_limit=None)


def mark(app: Celery, what: str) -> None:
    """Count ``what`` in Redis, for the test to see."""
    app.backend.client.incr(f"{app.main}:{what}")


if PLACE in os.environ:
    app = build(**json.loads(os.environ[PLACE]))

    @worker_ready.connect
    def _ready(**_: Any) -> None:
        mark(app, "ready")
