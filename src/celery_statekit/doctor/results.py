"""Checks of Celery's result backend and of what it is told to keep."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from typing import Final

from celery import Celery, Task

from celery_statekit.derived import backend_url, broker_url
from celery_statekit.doctor.extras import lacking
from celery_statekit.doctor.finding import REACH, Finding, line
from celery_statekit.errors import InvalidSetting, sentence
from celery_statekit.settings import check_seconds, expires_after

_PICKLE: Final = frozenset({"pickle", "application/x-python-serialize"})


def result_backend(app: Celery) -> Iterator[Finding]:
    """Celery can make it, it answers, and who waits for a result can see it."""
    url = backend_url(app.conf) or "disabled://"
    scheme = url.partition(":")[0]
    instead = line(app, "result_backend", "redis://localhost:6379/0")
    if scheme == "disabled":
        found = "none: get() and chords do not work; the states of stateful tasks are kept"
        yield Finding.warning("result_backend", found, instead)
    elif scheme == "rpc":
        found = "rpc:// shows results to the process that sent the task alone, and has no chords"
        yield Finding.warning("result_backend", found, instead)
    elif url.startswith("cache+memory") and not broker_url(app.conf).startswith("memory:"):
        found = "cache+memory:// is seen by one process alone: no get() of another one ends"
        yield Finding.must("result_backend", found, instead)
    elif url in ("db+sqlite://", "db+sqlite:///", "db+sqlite:///:memory:"):
        # Each connection is another empty database (celery 5.7, NullPool).
        found = "SQLite in memory has no tables when a result is stored"
        yield Finding.must("result_backend", found, line(app, "result_backend", "db+sqlite:///f"))
    else:
        # What is not installed is not mended by another URL.
        yield from [*lacking("result_backend", url)] or [_answer(app, scheme, instead)]


def _answer(app: Celery, scheme: str, instead: str) -> Finding:
    try:
        expires_after(app)
    except InvalidSetting:  # with it Celery can make none
        return Finding.warning("result_backend", "not examined before result_expires is right")
    try:
        backend = app.backend
    except Exception as exc:  # noqa: BLE001 - each kind has its own errors
        return Finding.must(
            "result_backend", f"{scheme}:// cannot be made: {sentence(exc)}", instead
        )
    try:
        # Beneath get_task_meta, which repeats an error with result_backend_always_retry.
        backend._get_task_meta_for(str(uuid.uuid4()))  # noqa: SLF001
    except Exception as exc:  # noqa: BLE001 - the same
        found = f"{scheme}:// cannot be read: {sentence(exc)}"
        return Finding.must("result_backend", found, f"{REACH}, or {instead}")
    return Finding.ok("result_backend", f"{scheme}:// answers")


def limit_of(task: Task) -> float | None:
    """Seconds that a run of the task may take; None where nothing limits it.

    Raises:
        InvalidSetting: its limit is no duration.
    """
    for name in ("time_limit", "soft_time_limit"):
        limit = getattr(task, name) or task.app.conf.get(f"task_{name}")
        if limit:
            return check_seconds(f"{name} of {task.name}", limit)
    return None


def result_expires(app: Celery) -> Iterator[Finding]:
    """Results are kept for longer than any task may run."""
    kept = expires_after(app)
    if kept is None:
        found = "results are kept for ever"
        yield Finding.warning("result_expires", found, line(app, "result_expires", 86400))
        return
    limits = {
        name: limit_of(task)
        for name, task in app.tasks.items()
        if not name.startswith("celery.") and not task.ignore_result
    }
    longest = max(limits.items(), key=lambda each: each[1] or 0, default=("", None))
    if longest[1] and longest[1] > kept:
        found = (
            f"results are kept for {kept:g} s, and {longest[0]} may run for {longest[1]:g} s: "
            "the first results of a chord are gone before it ends"
        )
        change = line(app, "result_expires", math.ceil(2 * longest[1]))
        yield Finding.must("result_expires", found, change)
    else:
        limit = f"; no task may run for over {longest[1]:g} s" if longest[1] else ""
        yield Finding.ok("result_expires", f"results are kept for {kept:g} s{limit}")


def result_retries(app: Celery) -> Iterator[Finding]:
    """A result backend that is away does not hold a worker for ever."""
    if app.conf.result_backend_always_retry and app.conf.result_backend_max_retries == math.inf:
        found = (
            "result_backend_always_retry without an end: a task ends only when the backend is up"
        )
        change = line(app, "result_backend_max_retries", 10)
        yield Finding.warning("result_retries", found, change)


def serializers(app: Celery) -> Iterator[Finding]:
    """Nobody who can write to broker or backend can run code in who reads."""
    safe = True
    for name in ("accept_content", "result_accept_content"):
        if _PICKLE & set(app.conf.get(name) or ()):
            safe = False
            found = f"{name} has pickle: whoever writes to the server runs code in who reads it"
            yield Finding.warning("serializers", found, line(app, name, ["json"]))
    for name in ("task_serializer", "result_serializer"):
        if app.conf.get(name) in _PICKLE:
            safe = False
            found = f"{name} is pickle: who reads must accept pickle, and run what it holds"
            yield Finding.warning("serializers", found, line(app, name, "json"))
    if safe:
        yield Finding.ok("serializers", "no pickle")
