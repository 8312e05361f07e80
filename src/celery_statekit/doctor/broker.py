"""Checks of the broker: what it loses, and what it delivers a second time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from celery import Celery

from celery_statekit.derived import broker_url
from celery_statekit.doctor.extras import lacking
from celery_statekit.doctor.finding import REACH, Finding, line
from celery_statekit.doctor.results import limit_of
from celery_statekit.errors import sentence
from celery_statekit.settings import check_seconds

#: Seconds after which Redis gives a message that is not acknowledged to another worker, unless
#: broker_transport_options says otherwise (kombu 5.7 transport/redis.py).
_VISIBILITY: Final = 3600.0


def broker(app: Celery) -> Iterator[Finding]:
    """The broker answers, loses no message, and there are workers to have it."""
    url = broker_url(app.conf)
    instead = line(app, "broker_url", "redis://localhost:6379/0")
    if app.conf.task_always_eager:
        found = "task_always_eager: tasks run where they are called, no worker sees them"
        yield Finding.warning("broker", found, line(app, "task_always_eager", False))
    elif url.startswith("filesystem:"):
        # A file is seen before it is written (kombu 5.7 transport/filesystem.py:262).
        found = "filesystem:// loses messages, and a half-written one ends a worker"
        yield Finding.warning("broker", found, instead)
    elif url.startswith("memory:"):
        yield Finding.warning("broker", "memory:// reaches this process alone", instead)
    else:
        # What is not installed is not mended by another URL.
        scheme = f"{url.partition(':')[0] or 'amqp'}://"
        yield from [*lacking("broker", url)] or [_answer(app, scheme, instead)]


def _answer(app: Celery, scheme: str, instead: str) -> Finding:
    try:
        with app.connection_for_write() as connection:
            # Each of those that stand in for one another is asked once.
            connection.ensure_connection(max_retries=len(connection.alt or "-") - 1)
    except Exception as exc:  # noqa: BLE001 - each transport has its own errors
        found = f"{scheme} cannot be reached: {sentence(exc)}"
        return Finding.must("broker", found, f"{REACH}, or {instead}")
    return Finding.ok("broker", f"{scheme} answers")


def visibility(app: Celery) -> Iterator[Finding]:
    """Redis gives no message to a second worker while the first one still runs it."""
    if not broker_url(app.conf).startswith(("redis", "rediss", "sentinel")):
        return
    options = app.conf.broker_transport_options or {}
    seconds = check_seconds(
        "broker_transport_options['visibility_timeout']",
        options.get("visibility_timeout", _VISIBILITY),
    )
    late = {
        name: limit_of(task)
        for name, task in app.tasks.items()
        if not name.startswith("celery.") and task.acks_late
    }
    over = sorted(name for name, limit in late.items() if limit and limit >= seconds)
    unlimited = sorted(name for name, limit in late.items() if not limit)
    found = f"visibility_timeout is {seconds:g} s"
    if over:
        found += f", and {over[0]} (acks_late) may run for {late[over[0]]:g} s: it is delivered again meanwhile"
        # The other options are not shown: Sentinel's hold a password.
        longer = {"visibility_timeout": 2 * int(max(filter(None, late.values())))}
        change = line(app, "broker_transport_options", longer)
        beside = ", beside its other options" if options.keys() - longer.keys() else ""
        yield Finding.must("visibility", found, f"{change}{beside}")
    elif unlimited:
        found += f", and nothing limits {unlimited[0]} (acks_late): a longer run is delivered again meanwhile"
        limit = max(1, int(0.9 * seconds))
        yield Finding.warning("visibility", found, line(app, "task_time_limit", limit))
    elif late:
        yield Finding.ok("visibility", f"{found}: no task with acks_late may run for so long")
    else:
        yield Finding.ok("visibility", f"{found}; no task has acks_late")
