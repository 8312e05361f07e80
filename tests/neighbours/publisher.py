"""Who sends the tasks: sends each once, waits for what becomes of it, and writes a report.

Run as a process of its own, for the neighbours change the process that they are installed in.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from celery import VERSION as CELERY
from celery import chain, chord
from celery.events.state import State
from celery.result import AsyncResult
from celery_once import AlreadyQueued
from django.core.management import call_command
from opentelemetry import trace

from celery_statekit import StatefulResult

from .app import PATIENCE, app
from .settings import PLACE

#: What an app understands without the library too, and how often each runs.
PLAIN = {
    "succeed": 1,
    "fail": 1,
    "fail_as_expected": 1,
    "retry": 2,
    "ignore": 1,
    "reject": 1,
    "replace": 2,
}


def wait_until(holds: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := holds()):
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.01)
    return found


class Monitor:
    """Receives the events of the worker, as Flower does."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.state = State()
        self._heard = threading.Event()
        threading.Thread(target=self._receive, daemon=True).start()
        # A monitor asks every worker for a sign of life, and hears it when it is connected.
        assert self._heard.wait(PATIENCE), "no event came"

    def _receive(self) -> None:
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": self._take})
            receiver.capture(limit=None, timeout=None, wakeup=True)

    def _take(self, event: dict[str, Any]) -> None:
        self.events.append(dict(event))  # State adds to it
        self.state.event(event)
        self._heard.set()

    def ended(self, id: str) -> bool:
        ends = ("task-succeeded", "task-failed", "task-rejected")
        return any(event["type"] in ends for event in self.events if event.get("uuid") == id)

    def report(self, id: str) -> dict[str, Any]:
        """What it was told of a task."""
        told = [event for event in self.events if event.get("uuid") == id]
        seen = self.state.tasks.get(id)
        return {
            "events": [event["type"] for event in told],
            "fields": {event["type"]: sorted(event) for event in told},
            "state": seen.state if seen else None,
            "name": seen.name if seen else None,
        }


def finish(id: str, runs: int = 1) -> None:
    """Return when so many runs of a task are over, and its result is there if it has one."""
    wait_until(lambda: ended_runs(id) >= runs, f"{runs} runs of {id}")


def ended_runs(id: str) -> int:
    return sum(
        span["id"] == id and span["name"].startswith("run/") for span in PLACE.noted("spans")
    )


def send_all(ids: dict[str, str]) -> None:
    """Send each task once, and wait until it has come to rest."""
    for name, runs in PLAIN.items():
        ids[name] = app.tasks[f"shop.{name}"].delay().id
        finish(ids[name], runs)
    succeed, fail = app.tasks["shop.succeed"], app.tasks["shop.fail"]
    last = chain(succeed.s(), fail.s())()
    ids |= {"chain_first": last.parent.id, "chain_last": last.id}
    finish(last.id)
    first = str(uuid4())
    second = app.tasks["shop.follow"].s(first)
    body = chord([succeed.s().set(task_id=first), second], succeed.s())()
    ids["chord"] = body.id
    finish(body.id)
    for name in ids.keys() - resting():
        wait_until(app.AsyncResult(ids[name]).ready, f"the result of {name}")


def resting() -> set[str]:
    """What never has a result; before 5.7 Celery stored none of a task that is rejected."""
    told = PLACE.with_statekit or CELERY >= (5, 7)
    return {"ignore"} if told else {"ignore", "reject"}


def send_ours(ids: dict[str, str]) -> dict[str, Any]:
    """Send what an app without the library would not understand."""
    pack = app.tasks["shop.pack"].delay()
    ids["pack"] = pack.id
    wait_until(lambda: pack.state == "SENDING", "its own state in Celery's result")
    told = {"standing": pack.state, "standing_row": row(pack.id)}
    PLACE.mark("seen").touch()
    finish(pack.id)
    ids["twice"] = app.tasks["shop.twice"].delay().id
    finish(ids["twice"])  # of the second delivery
    PLACE.mark("put-off").touch()
    again = app.tasks["shop.succeed"].delay()
    ids["again"] = again.id
    finish(again.id)
    wait_until(again.ready, "the result of the first delivery")
    told["again_row"] = row(again.id)
    app.tasks["shop.succeed"].apply_async(task_id=again.id)
    finish(again.id, 2)
    return told


def send_once(ids: dict[str, str]) -> dict[str, Any]:
    """Send each task of celery-once while it is locked, after it has succeeded, and has failed."""
    told: dict[str, Any] = {}
    for side in ("left", "right", "alone"):
        mark = f"{side}.{PLACE.name}"
        send = partial(app.tasks[f"shop.once_{side}"].apply_async, (mark,))
        ids[f"{side}_refused"] = str(uuid4())

        result = send()
        try:
            send(task_id=ids[f"{side}_refused"])
            refused = False
        except AlreadyQueued:
            refused = True
        PLACE.mark(mark).touch()
        finish(result.id)  # the lock is opened between the result and the end of the run
        again = send()
        finish(again.id)
        ids |= {f"{side}_first": result.id, f"{side}_second": again.id}
        for turn in ("failed", "failed_again"):
            failed = send(kwargs={"fails": True})
            finish(failed.id)
            ids[f"{side}_{turn}"] = failed.id
        told[side] = {"refused": refused, "returned": result.get() == again.get() == "done"}
    return told


def row(id: str) -> dict[str, Any] | None:
    """What django-celery-results keeps of a task."""
    from django_celery_results.models import TaskResult  # after django.setup()

    found = TaskResult.objects.filter(task_id=id).first()
    if found is None:
        return None
    return {
        "name": found.task_name,
        "status": found.status,
        "result": json.loads(found.result) if found.result else None,
        "traceback": bool(found.traceback),
        "worker": bool(found.worker),
        "done": found.date_done.isoformat(),
    }


def result(id: str) -> dict[str, Any]:
    """What Celery keeps of a task; of one that rests, not in which process."""
    found = AsyncResult(id, app=app)
    value = found.result
    if isinstance(value, BaseException):
        value = [type(value).__module__, type(value).__name__, *map(str, value.args)]
    return {"state": found.state, "value": sorted(value) if isinstance(value, dict) else value}


def record(id: str) -> dict[str, Any]:
    """What our record says of a task."""
    result: StatefulResult[Any] = StatefulResult(id, app=app)
    state = result.task_state
    return {
        "name": state.task,
        "state": state.state,
        "source": state.source,
        "history": " ".join(change.to_state for change in result.history()),
        "error": (state.error or {}).get("type"),
    }


def main() -> None:
    """Do all of it, and write the report to the file named by the first argument."""
    call_command("migrate", verbosity=0)
    wait_until(PLACE.mark("ready").exists, "the worker")
    monitor = Monitor()
    ids: dict[str, str] = {}
    send_all(ids)
    ours = send_ours(ids) if PLACE.with_statekit else {}
    once = send_once(ids)
    if PLACE.with_statekit:
        finish(ids["twice"], 3)
    wait_until(lambda: monitor.ended(ids["alone_failed_again"]), "the last event")
    report = {
        **ours,
        "ids": ids,
        "once": once,
        "monitor": {name: monitor.report(id) for name, id in ids.items()},
        "rows": {name: row(id) for name, id in ids.items()} if PLACE.results == "django" else {},
        "results": {name: result(id) for name, id in ids.items()},
        "records": {name: record(id) for name, id in ids.items()} if PLACE.with_statekit else {},
    }
    trace.get_tracer_provider().shutdown()  # type: ignore[attr-defined]
    Path(sys.argv[1]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
