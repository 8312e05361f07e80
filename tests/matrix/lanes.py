"""A lane: one app with its store and its queue, and its workers, one after the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import truediv
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from celery import Celery
from celery.result import AsyncResult
from kombu import Connection

from celery_statekit import Change, StatefulResult

from .app import ENVIRONMENT, Place, build

HERE: Final = Path(__file__).parent
#: Seconds in which a worker has to come up, to end, or an outcome to be there.
DEADLINE: Final = 30.0
#: Seconds between two looks.
LOOK: Final = 0.03
CONCURRENCY: Final = {"prefork": 4, "gevent": 20, "solo": 1, "threads": 8}


@dataclass(frozen=True)
class Seen:
    """What is seen of one outcome; the steps of a chain are separated by ``/``."""

    #: States entered in our record, in order.
    history: str = ""
    #: Who knows it: ``record``, ``celery`` or ``nobody``.
    source: str = ""
    #: Type of the error in our record.
    error: str = ""
    #: State in Celery's result backend.
    celery_state: str = ""
    #: Type of what ``AsyncResult.get`` raises; empty where it returns or there is no end.
    celery_error: str = ""

    def __truediv__(self, step: Seen) -> Seen:
        mine, other = vars(self), vars(step)
        return Seen(**{name: f"{mine[name]} / {other[name]}" for name in mine})


class Stopped(Exception):
    """The other lane failed or the test was interrupted."""


@dataclass
class Lane:
    """One app with its store, its queue and its workers, one after the other."""

    place: Place
    expected: Mapping[str, Seen]
    stop: threading.Event
    ids: dict[str, list[str]] = field(default_factory=dict)
    seen: dict[str, Seen] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.place.mark("").mkdir(parents=True)
        self.app: Celery = build(self.place)

    def run(self, what_happens: Callable[[Lane], None]) -> None:
        """Let everything of the lane happen, in a thread of its own."""
        # A message sent by a task's mere name belongs to the thread's current app.
        self.app.set_current()
        try:
            what_happens(self)
        finally:
            # Each thread has a result backend of its own, and Celery leaves it to its end.
            backend = self.app.backend
            backend.result_consumer.stop()
            backend.result_consumer._pubsub = None  # results that go later would open it again
            backend.client.connection_pool.disconnect()

    def wait_for(
        self, what: str, happened: Callable[[], object], seconds: float = DEADLINE
    ) -> bool:
        """Look until ``happened``; False after ``seconds``."""
        deadline = time.monotonic() + seconds
        while not happened():
            if self.stop.is_set():
                raise Stopped(what)
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK)
        return True

    def wait_for_mark(self, name: str) -> None:
        if not self.wait_for(name, self.place.mark(name).exists):
            raise TimeoutError(f"{self.place.name}: no mark {name} after {DEADLINE:g} s")

    # --- sending ----------------------------------------------------------------------------

    def send(self, outcome: str, name: str, *args: Any, **options: Any) -> str:
        result = self.app.tasks[f"matrix.{name}"].apply_async(args=args, **options)
        self.ids[outcome] = [result.id]
        return str(result.id)

    def send_running(self, outcome: str) -> str:
        """Send a task that runs until its mark says go; return when it runs."""
        id = self.send(outcome, "wait")
        self.wait_for_mark(f"{id}.running")
        return id

    def let_go(self, id: str) -> None:
        self.place.set_mark(f"{id}.go")

    # --- looking ----------------------------------------------------------------------------

    def look(self, outcome: str) -> Seen:
        """What there is to be seen of ``outcome`` now."""
        first, *steps = (look(self.app, id) for id in self.ids[outcome])
        return reduce(truediv, steps, first)

    def changes(self, outcome: str) -> list[Change]:
        """The history of ``outcome``, of the first step where it has several."""
        return StatefulResult(self.ids[outcome][0], app=self.app).history()

    def settle(self, outcomes: Iterable[str]) -> None:
        """Wait until each outcome is as expected, or the deadline."""
        waiting = [outcome for outcome in outcomes if outcome in self.expected]
        self.wait_for(
            "outcomes",
            lambda: all(self.look(outcome) == self.expected[outcome] for outcome in waiting),
        )

    def remove(self) -> None:
        """Delete what is left in the broker; Redis is emptied by its owner."""
        self.app.close()
        name = self.place.name
        with Connection(self.place.broker_url) as connection:
            channel = connection.default_channel
            if connection.transport.driver_type != "redis":
                channel.queue_delete(name)
                for exchange in (name, f"{name}.events", f"{name}.pidbox", f"reply.{name}.pidbox"):
                    channel.exchange_delete(exchange)
        self.app.close()


def look(app: Celery, id: str) -> Seen:
    """What is seen of one task: first in our record, then in Celery's."""
    ours, celerys = StatefulResult(id, app=app), AsyncResult(id, app=app)
    state = ours.task_state
    raised = ""
    if celerys.ready():
        try:
            celerys.get(timeout=DEADLINE)
        except Exception as exc:  # noqa: BLE001 - whatever the task raised
            raised = type(exc).__name__
    return Seen(
        history=" ".join(change.to_state for change in ours.history()) or "-",
        source=state.source,
        error=(state.error or {}).get("type", ""),
        celery_state=celerys.state,
        celery_error=raised,
    )


class Worker:
    """One life of a worker, in a process group of its own that ends with the block."""

    def __init__(self, lane: Lane, life: str, visibility: int = 3600) -> None:
        self.lane = lane
        self.life = life
        self.place = replace(lane.place, visibility=visibility)
        self.node = f"{life}@{self.place.name}"
        self.log = Path(self.place.folder, f"{life}.log")

    def __enter__(self) -> Worker:  # noqa: PYI034 - Self is of Python 3.11
        place = self.place
        command = [sys.executable, "-m", "celery", "-A", f"{HERE.name}.app", "worker"]
        command += ["-P", place.pool, "-c", str(CONCURRENCY[place.pool]), "-n", self.node]
        command += ["-l", "INFO", "--without-gossip", "--without-mingle"]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), *filter(None, sys.path)]),
            ENVIRONMENT: place.to_json(),
            "STATEKIT_MATRIX_LIFE": self.life,
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=place.folder,
                start_new_session=True,
            )
        ready = place.mark(f"{self.life}.ready")
        try:
            self.lane.wait_for("ready", lambda: ready.exists() or self.process.poll() is not None)
            assert ready.exists(), f"the worker did not come up:\n{self.log.read_text()}"
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def signal(self, number: int) -> None:
        """Send ``number`` to the main process."""
        self.process.send_signal(number)

    def ended(self, seconds: float = DEADLINE) -> bool:
        """Whether the main process ends by itself within ``seconds``."""
        return self.lane.wait_for("end", lambda: self.process.poll() is not None, seconds)

    def turn(self) -> None:
        """Return when the main loop has gone round, so that what was to be acknowledged is.

        A worker that has ended has nothing more to do.
        """
        app = self.lane.app
        ping, success = app.control.ping, app.tasks["matrix.success"]
        for _ in range(2):
            self._wait_for_turn(lambda: ping(destination=[self.node], timeout=1))
            if self.place.pool == "gevent":  # a greenlet of its own answers
                self._wait_for_turn(success.delay().ready)

    def _wait_for_turn(self, happened: Callable[[], object]) -> None:
        came = self.lane.wait_for("turn", lambda: self.process.poll() is not None or happened())
        assert came, f"{self.node} does not answer"

    def wait_for_log(self, text: str) -> None:
        """Wait until the worker has said ``text``."""
        if not self.lane.wait_for(text, lambda: text in self.log.read_text(errors="replace")):
            raise TimeoutError(f"{self.log}: no {text!r} after {DEADLINE:g} s")

    def revoke(self, id: str, **options: Any) -> Any:
        return self.lane.app.control.revoke(id, destination=[self.node], **options)
