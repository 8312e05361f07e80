"""The app of the matrix, in the worker's process and in the test's: one task for each outcome.

A worker finds its place in the environment; a test builds as many apps as it measures places.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from celery import Celery, signals
from celery.exceptions import Ignore, Reject
from kombu import Exchange, Queue

from celery_statekit import StatefulTask, setup

ENVIRONMENT = "STATEKIT_MATRIX_PLACE"
#: Seconds after which a body stops waiting for the test: a lost test leaves no task behind.
PATIENCE = 20.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one lane of one configuration runs: nothing of it is shared with another lane."""

    #: Prefix of every key, queue and exchange.
    name: str
    pool: str
    ack: str
    mode: str
    broker_url: str
    redis_url: str
    #: Holds the store, the marks and the logs.
    folder: str
    #: Seconds after which this worker takes up what another left unacknowledged (Redis only).
    visibility: int = 3600

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Place:
        return cls(**json.loads(text))

    def mark(self, name: str) -> Path:
        """The file whose being there tells the other process something."""
        return Path(self.folder, "marks", name)

    def set_mark(self, name: str) -> bool:
        """Make the mark; False where it was made before."""
        try:
            self.mark(name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def wait_for(self, name: str, seconds: float = PATIENCE) -> None:
        """Return when the mark is made, or after so many seconds."""
        deadline = time.monotonic() + seconds
        while not self.mark(name).exists() and time.monotonic() < deadline:
            time.sleep(0.01)


def build(place: Place) -> Celery:
    """Make the app of ``place``, with all its tasks."""
    app = Celery("matrix", set_as_current=False)
    app.conf.update(_settings(place))
    if place.mode == "setup":
        setup(app)
        _add_tasks(app, place, app.Task, {})
    else:
        _add_tasks(app, place, StatefulTask, {"base": StatefulTask})
    return app


def _settings(place: Place) -> dict[str, Any]:
    redis = place.broker_url.startswith("redis")
    return {
        "broker_url": place.broker_url,
        "result_backend": place.redis_url,
        "result_backend_transport_options": {"global_keyprefix": f"{place.name}."},
        "broker_connection_retry_on_startup": True,
        "broker_transport_options": {
            "global_keyprefix": f"{place.name}.",
            "visibility_timeout": place.visibility,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
            "unacked_mutex_expire": 2,
        }
        if redis
        else {},
        # Without these a worker obeys the control messages of every other one on the server.
        "control_exchange": place.name,
        "event_exchange": f"{place.name}.events",
        "task_queues": [
            Queue(
                place.name,
                Exchange(place.name, auto_delete=True),
                routing_key=place.name,
                expires=None if redis else 600,  # where a test was killed before it could delete it
            )
        ],
        "task_default_queue": place.name,
        "task_default_exchange": place.name,
        "task_default_routing_key": place.name,
        "task_track_started": True,
        "task_acks_late": place.ack == "late",
        "statekit_store": f"sqlite:///{place.folder}/store.sqlite",
        "statekit_lease": 5.0,  # longer than the pool takes to see that a child is gone
        "statekit_lost_grace": 4.0,  # until then what comes again has come
    }


def _add_tasks(app: Celery, place: Place, base: Any, options: dict[str, Any]) -> None:
    def task(name: str, **more: Any) -> Callable[[Any], Any]:
        return app.task(name=f"matrix.{name}", bind=True, shared=False, **{**options, **more})

    def first(self: Any) -> bool:
        return place.set_mark(f"{self.request.id}.first")

    @task("success")
    def success(self: Any) -> str:
        return "done"

    @task("exception")
    def exception(self: Any) -> None:
        raise KeyError("missing")

    @task("retry")
    def retry(self: Any) -> str:
        if first(self):
            raise self.retry(countdown=0.2, exc=ConnectionError("not yet"))
        return "done"

    @task("retry_exhausted", max_retries=1)
    def retry_exhausted(self: Any) -> None:
        raise self.retry(countdown=0.1)

    @task(
        "autoretry_for",
        autoretry_for=(ConnectionError,),
        retry_kwargs={"max_retries": 1, "countdown": 0},
    )
    def autoretry_for(self: Any) -> str:
        if first(self):
            raise ConnectionError("not yet")
        return "done"

    @task("ignore")
    def ignore(self: Any) -> None:
        raise Ignore

    @task("replace")
    def replace(self: Any) -> None:
        raise self.replace(success.si())

    @task("reject")
    def reject(self: Any) -> None:
        raise Reject("no", requeue=False)

    @task("reject_requeue")
    def reject_requeue(self: Any) -> str:
        if first(self):
            raise Reject("not here", requeue=True)
        return "done"

    @task("outlive")
    def outlive(self: Any, seconds: float) -> str:
        place.wait_for("never", seconds)
        return "outlived"

    @task("wait")
    def wait(self: Any) -> str:
        """Run until the test says go; a second delivery ends at once."""
        if place.set_mark(f"{self.request.id}.running"):
            place.wait_for(f"{self.request.id}.go")
        return "done"

    def wait_for_acknowledgement(self: Any) -> None:
        """The main thread acknowledges, as before 5.7 Celery's main greenlet, when it comes to it."""
        if place.pool in ("gevent", "threads"):
            place.wait_for(f"{self.request.id}.go")

    def kill(self: Any) -> str:
        if first(self):
            wait_for_acknowledgement(self)
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    task("kill_child")(kill)
    task("kill_child_requeue", reject_on_worker_lost=True)(kill)

    @task("sys_exit")
    def sys_exit(self: Any) -> str:
        if first(self):
            wait_for_acknowledgement(self)
            sys.exit(3)
        return "done"

    @task("unserialisable_return")
    def unserialisable_return(self: Any) -> object:
        return object()

    class OnSuccessRaises(base):
        abstract = True

        def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
            super().on_success(retval, task_id, args, kwargs)
            raise ValueError("on_success")

    class OnFailureRaises(base):
        abstract = True

        def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            super().on_failure(exc, task_id, args, kwargs, einfo)
            raise ValueError("on_failure")

    class BeforeStartRaises(base):
        abstract = True

        def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
            super().before_start(task_id, args, kwargs)
            raise ValueError("before_start")

    @task("on_success_raises", base=OnSuccessRaises)
    def on_success_raises(self: Any) -> str:
        return "done"

    @task("on_failure_raises", base=OnFailureRaises)
    def on_failure_raises(self: Any) -> None:
        raise KeyError("missing")

    @task("before_start_raises", base=BeforeStartRaises)
    def before_start_raises(self: Any) -> str:
        return "done"


def _end_with(parent: int) -> None:
    """End this worker when the test that started it is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(os.getpgid(0), signal.SIGKILL)


if ENVIRONMENT in os.environ:
    _place = Place.from_json(os.environ[ENVIRONMENT])
    app = build(_place)

    @signals.worker_init.connect(weak=False)
    def _watch_parent(**_: Any) -> None:
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    @signals.worker_ready.connect(weak=False)
    def _say_ready(**_: Any) -> None:
        _place.set_mark(os.environ["STATEKIT_MATRIX_LIFE"] + ".ready")

    @signals.worker_shutting_down.connect(weak=False)
    def _say_shutting_down(**_: Any) -> None:
        _place.set_mark(os.environ["STATEKIT_MATRIX_LIFE"] + ".shutting_down")
