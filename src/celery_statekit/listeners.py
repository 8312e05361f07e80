"""Celery's signals that no method of a task hears: publishing, and messages that no task takes.

Connected when this module is imported, once a process. Receivers must not raise, and must not
keep a publish or the worker's main process waiting: what they write is written in the background.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from datetime import datetime
from functools import wraps
from typing import Any, Final
from weakref import WeakSet

from celery import Celery, signals
from celery._state import _get_active_apps, get_current_task
from celery.exceptions import NotRegistered

from celery_statekit.errors import (
    InvalidId,
    InvalidSetting,
    StatekitError,
    StoreNotConfigured,
    error_facts,
    sentence,
)
from celery_statekit.flusher import PATIENCE, end_process, flusher
from celery_statekit.record import check_id
from celery_statekit.settings import Settings

logger = logging.getLogger(__name__)

#: The header that saves the run a read of its PENDING record.
QUEUED: Final = "statekit_queued"


class _Publisher(threading.local):
    """The app whose task is being published in this thread."""

    app: Celery | None = None
    #: Id of the message that is being sent.
    id: str = ""


publisher: Final = _Publisher()
#: The apps of this process that have stateful tasks.
stateful_apps: WeakSet[Celery] = WeakSet()


def take_up(app: Celery) -> None:
    """``app`` has stateful tasks: from now on it is known which app sends a message."""
    if app in stateful_apps:
        return
    stateful_apps.add(app)
    send = app.send_task

    @wraps(send)
    def send_task(*args: Any, **options: Any) -> Any:
        before, publisher.app = publisher.app, app
        try:
            return send(*args, **options)
        finally:
            publisher.app = before

    app.send_task = send_task


def client_of(headers: Mapping[str, Any] | None) -> str:
    """The client named by a message's headers; "" if none is."""
    client = (headers or {}).get("client_id")
    try:
        return check_id(client) if client else ""
    except InvalidId:
        return ""


@signals.before_task_publish.connect(weak=False, dispatch_uid="celery_statekit.publish")
def _publishing(
    sender: str = "",
    headers: dict[str, Any] | None = None,
    properties: dict[str, Any] | None = None,
    **_: Any,
) -> None:
    """Record PENDING, and see that the client's id travels in the headers.

    Celery puts an unknown option among the message's properties, which AMQP drops.
    """
    if not headers or not headers.get("id"):
        return
    client = client_of(properties) or client_of(headers) or _client_of_current_task()
    if client:
        headers["client_id"] = client
    if properties:
        properties.pop("client_id", None)
    headers.pop(QUEUED, None)  # a retry's is its first run's
    app = _publishing_app(sender)
    if app is None or headers.get("retries"):
        return
    publisher.id = headers["id"]
    due_at, expires_at = _moment(headers.get("eta")), _moment(headers.get("expires"))

    queued: list[str] = []
    sent = False

    def write() -> None:
        queued.append(
            Settings.of(app).tracker.queue(
                headers["id"],
                sender,
                client_id=client,
                due_at=due_at,
                expires_at=expires_at,
                late=sent,
            )
        )

    try:  # until here nobody can have run it
        breaker = Settings.of(app).tracker.breaker
        if breaker.refuses:
            breaker.skip()
        else:
            # What finds out whether the store is back keeps no publisher waiting.
            done = flusher().call(write, 0.0 if breaker.is_open else PATIENCE)
            if done and queued and queued[0]:
                headers[QUEUED] = queued[0]
    except StatekitError:
        logger.exception("PENDING of %s is not recorded", sender)
    sent = True


def not_sent(app: Celery) -> None:
    """The message that was being sent has failed to leave: it is not PENDING."""
    id, publisher.id = publisher.id, ""
    if id:
        flusher().call(lambda: Settings.of(app).tracker.unqueue(id), PATIENCE, insists=True)


@signals.worker_init.connect(weak=False, dispatch_uid="celery_statekit.init")
def _starting(sender: Any = None, **_: Any) -> None:
    """A worker whose settings cannot be obeyed does not start: each of its tasks would fail."""
    app = getattr(sender, "app", None)
    if app is None or app not in stateful_apps:
        return
    try:
        store = Settings.of(app).store
        store.read(Settings.of(app).tracker.key("celery_statekit"))
    except (InvalidSetting, StoreNotConfigured) as exc:
        raise SystemExit(f"celery_statekit: {exc}") from exc
    except StatekitError:
        logger.exception("the store cannot be read; tasks run, and their states are not recorded")
    else:
        if store.name.startswith("memory:") and not str(app.conf.broker_url).startswith("memory:"):
            logger.warning("%s is seen by this process alone, not by who sends tasks", store.name)


@signals.task_unknown.connect(weak=False, dispatch_uid="celery_statekit.unknown")
def _unknown(sender: Any = None, name: str = "", id: str = "", **_: Any) -> None:
    """A message of a task that this worker does not know is acknowledged, and never runs."""
    _never_runs(getattr(sender, "app", None), id, NotRegistered(name))


@signals.task_rejected.connect(weak=False, dispatch_uid="celery_statekit.rejected")
def _rejected(sender: Any = None, message: Any = None, exc: Any = None, **_: Any) -> None:
    """A malformed message is thrown away."""
    headers = getattr(message, "headers", None) or {}
    _never_runs(getattr(sender, "app", None), headers.get("id"), exc)


def _never_runs(app: Celery | None, id: Any, exc: Any) -> None:
    if app not in stateful_apps or not isinstance(id, str) or not id:
        return

    def write() -> None:
        tracker = Settings.of(app).tracker
        state = tracker.read(id)
        if state.known:
            tracker.end_from_outside(
                id,
                state.task,
                "FAILURE",
                reason=sentence(exc),
                error=error_facts(exc),
                meant=lambda _: False,
            )

    flusher().call(write, PATIENCE, insists=True)


@signals.worker_shutdown.connect(weak=False, dispatch_uid="celery_statekit.end")
@signals.worker_process_shutdown.connect(weak=False, dispatch_uid="celery_statekit.end_process")
def _ending(**_: Any) -> None:
    """A pool's child ends without the interpreter's own farewell (billiard 4.3 process.py)."""
    end_process()


def _client_of_current_task() -> str:
    task = get_current_task()
    request = None if task is None else task.request_stack.top
    return "" if request is None else client_of(request.headers)


def _publishing_app(name: str) -> Celery | None:
    """The app of a stateful task that is published by its name; None if it is none of ours.

    An app with stateful tasks says that it is the one. Of a message that another app sends the
    name alone is known: it is a stateful task's if no second app has a task of that name.
    """
    if publisher.app is not None:
        # Makes the tasks of an app that has only declared them: it is about to use them.
        knows = [publisher.app] if name in publisher.app.tasks else []
    else:
        knows = [app for app in _get_active_apps() if name in _tasks_of(app)]
    if len(knows) == 1 and getattr(knows[0].tasks[name], "is_stateful", False):
        return knows[0]
    return None


def _tasks_of(app: Celery) -> Mapping[str, Any]:
    # An app without stateful tasks may not want to make those it has only declared.
    tasks: Mapping[str, Any] = app.tasks if app in stateful_apps else app._tasks  # noqa: SLF001
    return tasks


def _moment(text: object) -> float | None:
    """Epoch seconds of an eta or expiry, which travel as ISO 8601."""
    try:
        return datetime.fromisoformat(str(text)).timestamp() if text else None
    except ValueError:
        return None
