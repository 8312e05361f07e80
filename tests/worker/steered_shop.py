"""The app of the tests that cancel and pause in worker processes: its servers are in the environment."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from celery import Celery, Task
from celery.signals import worker_ready

from celery_statekit import StatefulTask, setup

PLACE = "STATEKIT_STEERED_PLACE"


def build(url: str, name: str, store: str) -> Celery:
    """The app; ``store`` is that of its results, which is one write, or another one."""
    app = Celery(name, broker=url, backend=url, set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        broker_transport_options={"global_keyprefix": f"{name}:"},
        result_backend_transport_options={"global_keyprefix": f"{name}:"},
        statekit_progress_interval=0.05,
        statekit_store=store,
        statekit_prefix=name,
        task_default_queue=name,
    )
    if store == url:
        setup(app)
    options: dict[str, Any] = {"base": app.Task if store == url else StatefulTask, "shared": False}

    @app.task(name="wait", bind=True, **options)
    def wait(self: Any, looks: bool = True) -> None:
        mark(app, f"begun:{self.request.id}")
        try:
            while True:
                if looks:
                    self.progress.update(1)
                time.sleep(0.005)
        finally:
            mark(app, f"cleaned:{self.request.id}")

    @app.task(name="add", **options)
    def add(x: int, y: int = 1) -> int:
        return x + y

    @app.task(name="caught", base=Task, shared=False)
    def caught(request: Any, exc: Any, traceback: Any) -> None:
        mark(app, f"caught:{request.id}")

    @app.task(name="limited", bind=True, soft_time_limit=1, **options)
    def limited(self: Any) -> str:
        from celery.exceptions import SoftTimeLimitExceeded

        mark(app, f"begun:{self.request.id}")
        try:
            while True:
                self.progress.update(1)
                time.sleep(0.005)
        except SoftTimeLimitExceeded:
            return "out of time"

    return app


def mark(app: Celery, what: str) -> None:
    """Count ``what`` in Redis, for the test to see."""
    app.backend.client.incr(f"{app.main}:{what}")


if PLACE in os.environ:
    app = build(**json.loads(os.environ[PLACE]))

    @worker_ready.connect
    def _ready(**_: Any) -> None:
        mark(app, "ready")
