"""The app, in the worker's process and in the publisher's."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import django
from celery import Celery, Task, signals
from celery.exceptions import Ignore, Reject
from celery_once import QueueOnce

from celery_statekit import States, setup

from .place import Place
from .settings import PLACE
from .witnesses import install

#: Seconds after which a task stops waiting for the test.
PATIENCE = 20.0
#: Seconds after which a delivery that was put off comes again.
LEASE = 5.0


class Sale(States):
    PACKING = "Packing"
    SENDING = "Sending"


def build(place: Place) -> Celery:
    """Make the app; its tasks are the same with the library and without it."""
    app = Celery("neighbours", set_as_current=True)
    app.config_from_object("django.conf:settings", namespace="CELERY")
    app.conf.ONCE = {
        "backend": "celery_once.backends.Redis",
        "settings": {"url": place.redis_url, "default_timeout": 3600},
    }
    if place.with_statekit:
        app.conf.statekit_prefix = place.name
        app.conf.statekit_lease = LEASE
        app.conf.statekit_store = (
            f"sqlite:///{place.folder}/states.db" if place.results == "django" else place.redis_url
        )
        setup(app)
    task = partial(app.task, bind=True, shared=False)
    _add_plain_tasks(task)
    _add_tasks_that_wait(task, {"states": Sale} if place.with_statekit else {})
    _add_tasks_of_once(task, app.Task)
    return app


def wait_for(mark: str) -> None:
    """Return when the mark is made."""
    deadline = time.monotonic() + PATIENCE
    while not PLACE.mark(mark).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(mark)
        time.sleep(0.005)


def _add_plain_tasks(task: Callable[..., Any]) -> None:
    @task(name="shop.succeed")
    def succeed(self: Any, *given: int) -> int:
        return 3

    @task(name="shop.fail")
    def fail(self: Any, *given: int) -> None:
        raise KeyError("missing")

    @task(name="shop.fail_as_expected", throws=(ValueError,))
    def fail_as_expected(self: Any) -> None:
        raise ValueError("known")

    @task(name="shop.retry")
    def retry(self: Any) -> int:
        if not self.request.retries:
            raise self.retry(countdown=0, exc=ConnectionError("not yet"))
        return 3

    @task(name="shop.ignore")
    def ignore(self: Any) -> None:
        raise Ignore

    @task(name="shop.reject")
    def reject(self: Any) -> None:
        raise Reject("no", requeue=False)

    @task(name="shop.replace")
    def replace(self: Any) -> None:
        raise self.replace(succeed.si())


def _add_tasks_that_wait(task: Callable[..., Any], states: dict[str, Any]) -> None:
    @task(name="shop.follow")
    def follow(self: Any, other: str) -> int:
        """Wait until another task's run is over: two that write at once, SQLite may refuse."""
        wait_for(f"{other}.over")
        return 3

    @task(name="shop.pack", **states)
    def pack(self: Any) -> None:
        """Stand in a state of its own until the test has seen it; then move against the flow."""
        self.enter(Sale.SENDING)
        wait_for("seen")
        self.enter(Sale.PACKING)

    @task(name="shop.twice")
    def twice(self: Any) -> str:
        """A second delivery comes while the first one runs: it is put off, and then too late."""
        self.apply_async(task_id=self.request.id)
        wait_for("put-off")
        return "by the first"


def _add_tasks_of_once(task: Callable[..., Any], base_of_app: type[Task]) -> None:
    """Celery-once's class stands to the left or to the right of the app's own, or alone."""
    left = type("Left", (QueueOnce, base_of_app), {"abstract": True})
    right = type("Right", (base_of_app, QueueOnce), {"abstract": True})
    for side, base in (("left", left), ("right", right), ("alone", QueueOnce)):

        @task(name=f"shop.once_{side}", base=base)
        def once(self: Any, mark: str, fails: bool = False) -> str:
            wait_for(mark)
            if fails:
                raise KeyError("missing")
            return "done"


def _end_with(parent: int) -> None:
    """End this worker when the test that started it is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(os.getpgid(0), signal.SIGKILL)


@signals.worker_init.connect(weak=False)
def _watch_parent(**_: Any) -> None:
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


@signals.task_postrun.connect(weak=False)
def _say_over(task_id: str = "", **_: Any) -> None:
    PLACE.mark(f"{task_id}.over").touch()


@signals.worker_ready.connect(weak=False)
def _say_ready(**_: Any) -> None:
    PLACE.mark("ready").touch()


install(PLACE)
app = build(PLACE)
django.setup()
