"""Celery's signals that no method of a task hears: publishing, and messages that no task takes.

Connected when this module is imported, once a process. Receivers must not raise, and must not
keep a publish or the worker's main process waiting: what they write is written in the background.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final
from weakref import WeakSet

from celery import Celery, signals
from celery._state import get_current_app, get_current_task
from celery.exceptions import NotRegistered

from celery_statekit.backends import PATIENCE, error_facts, sentence
from celery_statekit.errors import InvalidId, InvalidSetting, StatekitError, StoreNotConfigured
from celery_statekit.flusher import flusher
from celery_statekit.record import check_id
from celery_statekit.settings import Settings

logger = logging.getLogger(__name__)


class _Publisher(threading.local):
    """The app whose task is being published in this thread."""

    app: Celery | None = None
    #: Id of the message that is being sent.
    id: str = ""


publisher: Final = _Publisher()
#: The apps of this process that have stateful tasks.
stateful_apps: WeakSet[Celery] = WeakSet()


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
    app = _publishing_app(sender)
    if app is None or headers.get("retries"):
        return
    publisher.id = headers["id"]
    due_at, expires_at = _moment(headers.get("eta")), _moment(headers.get("expires"))

    def write() -> None:
        Settings.of(app).tracker.queue(
            headers["id"], sender, client_id=client, due_at=due_at, expires_at=expires_at
        )

    _soon(write)


def not_sent(app: Celery) -> None:
    """The message that was being sent has failed to leave: it is not PENDING."""
    id, publisher.id = publisher.id, ""
    if id:
        _soon(lambda: Settings.of(app).tracker.unqueue(id))


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

    _soon(write)


def _soon(write: Callable[[], None]) -> None:
    try:
        flusher().call(write, PATIENCE)
    except StatekitError:
        logger.exception("not recorded")


def _client_of_current_task() -> str:
    task = get_current_task()
    request = None if task is None else task.request_stack.top
    return "" if request is None else client_of(request.headers)


def _publishing_app(name: str) -> Celery | None:
    """The app of a stateful task that is published by its name; None if it is none of ours."""
    current = publisher.app or get_current_app()
    for app in (current, *stateful_apps):
        # Makes the tasks of an app that has only declared them: it is about to use them.
        task = app.tasks.get(name)
        if getattr(task, "is_stateful", False):
            return app
    return None


def _moment(text: object) -> float | None:
    """Epoch seconds of an eta or expiry, which travel as ISO 8601."""
    try:
        return datetime.fromisoformat(str(text)).timestamp() if text else None
    except ValueError:
        return None
