"""How each outcome is brought about on real workers.

A configuration is measured in two lanes, side by side: in ``running`` one worker lives through
everything and is shut down warm at the end; in ``dying`` workers die, one after the other.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Final

from celery import VERSION as CELERY
from celery import chain

from celery_statekit import Change

from .app import Place
from .lanes import DEADLINE, Lane, Seen, Worker

#: Seconds in which a revoke must have reached the worker before its task is due.
DUE: Final = 3.0
#: Seconds of the time limits, and of a body that exceeds them where nobody keeps them.
LIMIT: Final = 0.3
BEYOND: Final = 1.0
#: The time limits that each pool keeps.
KEPT: Final = {"gevent": ("hard",), "prefork": ("hard", "soft"), "solo": (), "threads": ()}


# --- what is sent --------------------------------------------------------------------------------


def _same_name(lane: Lane, outcome: str) -> None:
    lane.send(outcome, outcome)


def _hard_limit(lane: Lane, outcome: str) -> None:
    lane.send(outcome, "outlive", _length(lane, "hard"), time_limit=LIMIT)


def _soft_limit(lane: Lane, outcome: str) -> None:
    lane.send(outcome, "outlive", _length(lane, "soft"), soft_time_limit=LIMIT)


def _length(lane: Lane, limit: str) -> float:
    return DEADLINE if limit in KEPT[lane.place.pool] else BEYOND


def _unknown(lane: Lane, outcome: str) -> None:
    lane.ids[outcome] = [lane.app.send_task("matrix.nowhere").id]


def _wrong_arguments(lane: Lane, outcome: str) -> None:
    lane.ids[outcome] = [lane.app.send_task("matrix.success", args=(1, 2)).id]


def _steps(*names: str) -> Callable[[Lane, str], None]:
    def send(lane: Lane, outcome: str) -> None:
        result = chain(*(lane.app.tasks[f"matrix.{name}"].si() for name in names)).apply_async()
        ids = lane.ids[outcome] = []
        while result is not None:
            ids.insert(0, result.id)
            result = result.parent

    return send


#: Outcomes that need nothing but a message.
SENT: Final[dict[str, Callable[[Lane, str], None]]] = {
    "autoretry_for": _same_name,
    "before_start_raises": _same_name,
    "chain": _steps("success", "success"),
    "exception": _same_name,
    "failed_chain": _steps("exception", "success", "success"),
    "hard_time_limit": _hard_limit,
    "ignore": _same_name,
    "kill_child": _same_name,
    "kill_child_requeue": _same_name,
    "on_failure_raises": _same_name,
    "on_success_raises": _same_name,
    "reject": _same_name,
    "reject_requeue": _same_name,
    "replace": _same_name,
    "retry": _same_name,
    "retry_exhausted": _same_name,
    "soft_time_limit": _soft_limit,
    "success": _same_name,
    "sys_exit": _same_name,
    "unknown_task": _unknown,
    "unserialisable_return": _same_name,
    "wrong_arguments": _wrong_arguments,
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

        # What expires in a queue of RabbitMQ is dropped without a word: the worker must have it.
        lane.send("expired", "success", countdown=2 * LIMIT, expires=LIMIT)
        for outcome in SENT:
            if outcome not in KILLING[lane.place.pool]:
                SENT[outcome](lane, outcome)

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
        if pool == "solo" and CELERY < (5, 7):  # it fails the task, and lives on
            lane.settle(["cold_shutdown"])
            ended = True
        elif pool == "gevent" and CELERY < (5, 7):
            # The handler breaks off where it may not block, or another greenlet reads the broker's
            # socket; in a task's greenlet nobody hears of it, and the worker goes on without the
            # flag that the handler was to set (celery 5.6 apps/worker.py:300, 414).
            ended = True
        else:
            ended = worker.ended()
    assert ended, "a cold shutdown did not end the worker"
    lane.seen["cold_shutdown"] = lane.look("cold_shutdown")
    lane.ids["cold_shutdown_next_worker"] = lane.ids["cold_shutdown"]

    over = ["cold_shutdown_next_worker"]
    for outcome in KILLING[pool]:
        with Worker(lane, outcome, visibility=1) as worker:
            lane.settle(over)
            SENT[outcome](lane, outcome)
            id = lane.ids[outcome][0]
            if outcome == "on_failure_raises":  # it may end the worker, or not
                lane.settle([outcome])
            else:
                lane.wait_for_mark(f"{id}.first")
                worker.turn()
                lane.let_go(id)
                if outcome == "sys_exit":  # the same
                    worker.turn()
                else:
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


@dataclass(frozen=True)
class Measured:
    """What was seen of every outcome, after the last worker was gone."""

    seen: dict[str, Seen]
    #: The history of every outcome, of the first step where it has several.
    changes: dict[str, list[Change]]


def measure(place: Place, expected: Mapping[str, Seen]) -> Measured:
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
            lane.remove()
