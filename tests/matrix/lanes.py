"""How each outcome is brought about on real workers, and what is seen of it afterwards.

A configuration is measured in two lanes, side by side: in ``running`` one worker lives through
everything and is shut down warm at the end; in ``dying`` workers are killed one after the other.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from celery import Celery, chain
from celery.result import AsyncResult
from kombu import Connection

from celery_statekit import Change, StatefulResult

from .app import ENVIRONMENT, Place, build

HERE: Final = Path(__file__).parent
#: Seconds in which a worker has to come up, to end, or an outcome to be there.
DEADLINE: Final = 30.0
#: Seconds between two looks.
LOOK: Final = 0.03
#: Seconds without any change after which an outcome is taken as it is, where none is expected.
QUIET: Final = 6.0
#: Seconds in which a revoke must have reached the worker before its task is due.
DUE: Final = 3.0
#: Seconds of the time limits, and of a body that exceeds them where nobody keeps them.
LIMIT: Final = 0.3
BEYOND: Final = 1.0

TIME_LIMITS: Final = {"prefork": ("soft", "hard"), "gevent": ("hard",), "solo": (), "threads": ()}
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
    expected: Mapping[str, Seen] | None
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
        what_happens(self)

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
        steps = [look(self.app, id, self.place.mode) for id in self.ids[outcome]]
        seen = steps[0]
        for step in steps[1:]:
            seen /= step
        return seen

    def changes(self, outcome: str) -> list[Change]:
        """The history of ``outcome``; empty without this library."""
        if self.place.mode == "plain":
            return []
        return StatefulResult(self.ids[outcome][0], app=self.app).history()

    def settle(self, outcomes: Iterable[str]) -> None:
        """Wait until each outcome is as expected, or the deadline."""
        waiting = list(outcomes)
        if self.expected is not None:
            expected = self.expected
            waiting = [outcome for outcome in waiting if outcome in expected]
            self.wait_for(
                "outcomes",
                lambda: all(self.look(outcome) == expected[outcome] for outcome in waiting),
            )
            return
        before: list[Seen] = []
        since = time.monotonic()
        while time.monotonic() - since < QUIET:
            now = [self.look(outcome) for outcome in waiting]
            if now != before:
                before, since = now, time.monotonic()
            time.sleep(LOOK)


def look(app: Celery, id: str, mode: str) -> Seen:
    """What is seen of one task: first in our record, then in Celery's."""
    ours = {}
    if mode != "plain":
        result = StatefulResult(id, app=app)
        state = result.task_state
        ours = {
            "history": " ".join(change.to_state for change in result.history()) or "-",
            "source": state.source,
            "error": (state.error or {}).get("type", ""),
        }
    celery = AsyncResult(id, app=app)
    error = ""
    if celery.ready():
        try:
            celery.get(timeout=DEADLINE)
        except Exception as exc:  # noqa: BLE001 - whatever the task raised
            error = type(exc).__name__
    return Seen(**ours, celery_state=celery.state, celery_error=error)


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
        ping = self.lane.app.control.ping
        for _ in range(2):
            assert self.lane.wait_for(
                "turn",
                lambda: self.process.poll() is not None or ping(destination=[self.node], timeout=1),
            ), f"{self.node} does not answer"

    def wait_for_log(self, text: str) -> None:
        """Wait until the worker has said ``text``."""
        if not self.lane.wait_for(text, lambda: text in self.log.read_text(errors="replace")):
            raise TimeoutError(f"{self.log}: no {text!r} after {DEADLINE:g} s")

    def revoke(self, id: str, **options: Any) -> Any:
        return self.lane.app.control.revoke(id, destination=[self.node], **options)


# --- what is sent --------------------------------------------------------------------------------


def _send_failing(lane: Lane) -> None:
    tasks = lane.app.tasks
    last = chain(
        tasks["matrix.exception"].si(), tasks["matrix.success"].si(), tasks["matrix.success"].si()
    ).apply_async()
    lane.ids["failed_chain"] = [last.parent.parent.id, last.parent.id, last.id]


def _send_two(lane: Lane) -> None:
    success = lane.app.tasks["matrix.success"]
    last = chain(success.si(), success.si()).apply_async()
    lane.ids["chain"] = [last.parent.id, last.id]


def _limits(pool: str, kind: str) -> float:
    """Seconds that a body runs whose limit is ``kind``."""
    return DEADLINE if kind in TIME_LIMITS[pool] else BEYOND


def _send_by_name(lane: Lane, outcome: str, name: str, *args: Any) -> None:
    lane.ids[outcome] = [lane.app.send_task(name, args=args).id]


#: Outcomes that need nothing but a message.
SENT: Final[dict[str, Callable[[Lane], object]]] = {
    "autoretry_for": lambda lane: lane.send("autoretry_for", "autoretry_for"),
    "before_start_raises": lambda lane: lane.send("before_start_raises", "before_start_raises"),
    "chain": _send_two,
    "exception": lambda lane: lane.send("exception", "exception"),
    "failed_chain": _send_failing,
    "hard_time_limit": lambda lane: lane.send(
        "hard_time_limit", "outlive", _limits(lane.place.pool, "hard"), time_limit=LIMIT
    ),
    "ignore": lambda lane: lane.send("ignore", "ignore"),
    "kill_child": lambda lane: lane.send("kill_child", "kill_child"),
    "kill_child_requeue": lambda lane: lane.send("kill_child_requeue", "kill_child_requeue"),
    "on_failure_raises": lambda lane: lane.send("on_failure_raises", "on_failure_raises"),
    "on_success_raises": lambda lane: lane.send("on_success_raises", "on_success_raises"),
    "reject": lambda lane: lane.send("reject", "reject"),
    "reject_requeue": lambda lane: lane.send("reject_requeue", "reject_requeue"),
    "replace": lambda lane: lane.send("replace", "replace"),
    "retry": lambda lane: lane.send("retry", "retry"),
    "retry_exhausted": lambda lane: lane.send("retry_exhausted", "retry_exhausted"),
    "soft_time_limit": lambda lane: lane.send(
        "soft_time_limit", "outlive", _limits(lane.place.pool, "soft"), soft_time_limit=LIMIT
    ),
    "success": lambda lane: lane.send("success", "success"),
    "sys_exit": lambda lane: lane.send("sys_exit", "sys_exit"),
    "unknown_task": lambda lane: _send_by_name(lane, "unknown_task", "matrix.nowhere"),
    "unserialisable_return": lambda lane: lane.send(
        "unserialisable_return", "unserialisable_return"
    ),
    "wrong_arguments": lambda lane: _send_by_name(lane, "wrong_arguments", "matrix.success", 1, 2),
}


#: Outcomes that end or cripple the whole worker, by pool. What ``on_failure`` raises leaves the
#: tracer, and ends the solo worker unless its event loop swallows it. After ``sys.exit`` the pool's
#: report of it is a TypeError (celery 5.7 worker/request.py:1027): solo likewise; in a thread or
#: greenlet nobody hears of it, and the worker holds the message until it ends.
KILLING: Final[dict[str, tuple[str, ...]]] = {
    "gevent": ("kill_child", "kill_child_requeue", "sys_exit"),
    "prefork": (),
    "solo": ("kill_child", "kill_child_requeue", "sys_exit", "on_failure_raises"),
    "threads": ("kill_child", "kill_child_requeue", "sys_exit"),
}


# --- the two lanes -------------------------------------------------------------------------------


def running(lane: Lane) -> None:
    """One worker lives through everything; then it is shut down warm, with a task running."""
    with Worker(lane, "running") as worker:
        id = lane.send("revoked_before_start", "success", countdown=DUE)
        assert worker.revoke(id, reply=True, timeout=DUE), "the worker does not answer"

        # RabbitMQ drops what expires in the queue without a word to anybody: the worker has it before.
        lane.send("expired", "success", countdown=2 * LIMIT, expires=LIMIT)
        sent = [outcome for outcome in SENT if outcome not in KILLING[lane.place.pool]]
        for outcome in sent:
            SENT[outcome](lane)

        id = lane.send_running("revoke_terminate")
        # The one thread of a solo worker is in the task: it answers when that is over.
        worker.revoke(id, terminate=True, reply=lane.place.pool != "solo", timeout=DEADLINE)
        if lane.place.pool in ("solo", "threads"):
            lane.let_go(id)
        lane.settle(lane.ids)

        id = lane.send_running("warm_shutdown")
        worker.signal(signal.SIGTERM)
        lane.wait_for_mark("running.shutting_down")
        lane.let_go(id)
        ended = worker.ended()
    assert ended, "a warm shutdown did not end the worker"
    for outcome in lane.ids:
        lane.seen[outcome] = lane.look(outcome)


def dying(lane: Lane) -> None:
    """Workers die with a task running; the next one finds what is left."""
    pool = lane.place.pool
    with Worker(lane, "cold_shutdown") as worker:
        id = lane.send_running("cold_shutdown")
        worker.signal(signal.SIGQUIT)
        worker.wait_for_log("Hitting Ctrl+C again")
        if pool == "threads":  # it waits for its threads
            lane.let_go(id)
        ended = worker.ended()
    assert ended, "a cold shutdown did not end the worker"
    lane.seen["cold_shutdown"] = lane.look("cold_shutdown")
    lane.ids["cold_shutdown_next_worker"] = lane.ids["cold_shutdown"]

    over = ["cold_shutdown_next_worker"]
    for outcome in KILLING[pool]:
        with Worker(lane, outcome, visibility=1) as worker:
            lane.settle(over)
            SENT[outcome](lane)
            id = lane.ids[outcome][0]
            if outcome == "on_failure_raises":  # it may end the worker, or not
                lane.settle([outcome])
            elif outcome == "sys_exit":  # the same
                lane.wait_for_mark(f"{id}.first")
                worker.turn()
            else:
                if pool == "threads":
                    lane.wait_for_mark(f"{id}.first")
                    worker.turn()
                    lane.let_go(id)
                assert worker.ended(), f"{outcome} did not end the worker"
        over.append(outcome)
    with Worker(lane, "last", visibility=1) as worker:
        lane.settle(over)
        worker.signal(signal.SIGTERM)
        ended = worker.ended()
    assert ended, "a warm shutdown did not end the worker"
    for outcome in over:
        lane.seen[outcome] = lane.look(outcome)


LANES: Final = {"running": running, "dying": dying}


def remove(lane: Lane) -> None:
    """Delete what the lane left in the broker; Redis is emptied by its owner."""
    name = lane.place.name
    with Connection(lane.place.broker_url) as connection:
        channel = connection.default_channel
        if connection.transport.driver_type != "redis":
            channel.queue_delete(name)
            for exchange in (name, f"{name}.events", f"{name}.pidbox", f"reply.{name}.pidbox"):
                channel.exchange_delete(exchange)


@dataclass(frozen=True)
class Measured:
    """What was seen of every outcome, after the last worker was gone."""

    seen: dict[str, Seen]
    #: The history of every outcome, of the first step where it has several.
    changes: dict[str, list[Change]]


def measure(place: Place, expected: Mapping[str, Seen] | None) -> Measured:
    """Bring about every outcome at ``place`` and tell what is seen of each."""
    stop = threading.Event()
    lanes = [
        Lane(
            replace(place, name=f"{place.name}.{name}", folder=f"{place.folder}/{name}"),
            expected,
            stop,
        )
        for name in LANES
    ]
    try:
        with ThreadPoolExecutor(len(lanes)) as threads:
            work = [
                threads.submit(lane.run, LANES[name])
                for name, lane in zip(LANES, lanes, strict=True)
            ]
            try:
                for lane_ended in as_completed(work):
                    lane_ended.result()
            finally:
                stop.set()
        return Measured(
            seen={outcome: seen for lane in lanes for outcome, seen in lane.seen.items()},
            changes={outcome: lane.changes(outcome) for lane in lanes for outcome in lane.ids},
        )
    finally:
        for lane in lanes:
            remove(lane)
            lane.app.close()
