"""Celery's signals that no method of a task hears: publishing, and messages that no task takes.

Connected when this module is imported, once a process. Receivers must not raise, and must not
keep a publish or the worker's main process waiting: what they write is written in the background.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial, wraps
from typing import Any, Final
from weakref import WeakSet

from celery import Celery, signals
from celery._state import _get_active_apps, get_current_task
from celery.exceptions import NotRegistered

from celery_statekit.breaker import AWAY
from celery_statekit.deliveries import TURN
from celery_statekit.errors import (
    InvalidId,
    InvalidSetting,
    StatekitError,
    StoreNotConfigured,
    brief,
    error_facts,
    sentence,
)
from celery_statekit.flusher import PATIENCE, end_process, flusher
from celery_statekit.leases import Lease, renewer
from celery_statekit.posted import PostedTask
from celery_statekit.record import check_id
from celery_statekit.settings import Settings
from celery_statekit.signals import state_changed
from celery_statekit.states import LOST
from celery_statekit.sweep import Sweeper
from celery_statekit.tracker import Tracker

logger = logging.getLogger(__name__)

#: The header that saves the run a read of its PENDING record.
QUEUED: Final = "statekit_queued"


class _Publisher(threading.local):
    """What is being published in this thread, by an app with stateful tasks."""

    app: Celery | None = None
    pending: _Pending | None = None


publisher: Final = _Publisher()
#: The apps of this process that have stateful tasks.
stateful_apps: WeakSet[Celery] = WeakSet()


def take_up(app: Celery) -> None:
    """``app`` has stateful tasks: from now on it is known which app sends a message."""
    if app in stateful_apps:
        return
    stateful_apps.add(app)
    own = vars(app).get("send_task")

    @wraps(app.send_task)
    def send_task(*args: Any, **options: Any) -> Any:
        # Asked of the class each time: others put theirs there later (Sentry).
        send = own or partial(type(app).send_task, app)
        # A receiver of Celery's signals may publish another task before this one is sent.
        before = publisher.app, publisher.pending
        publisher.app, publisher.pending = app, None
        try:
            return send(*args, **options)
        except Exception:
            if publisher.pending is not None:
                publisher.pending.withdraw()
            raise
        finally:
            pending = publisher.pending
            publisher.app, publisher.pending = before
            if pending is not None:
                pending.settle()

    app.send_task = send_task


class _Pending:
    """PENDING of one message that is being published."""

    def __init__(self, tracker: Tracker, id: str, task: str, facts: Mapping[str, Any]) -> None:
        #: What saves the run a read; "" where it is not known to be written.
        self.guess = ""
        self._id = id
        self._tracker = tracker
        self._post = partial(PostedTask.of, tracker, id, task, **facts)
        self._queue = partial(tracker.queue, id, task, **facts)
        #: What the store has not answered yet.
        self._posted: PostedTask | None = None
        #: Whether the store may hold it, and not that of an earlier message.
        self._is_there = self._late = False

    def post(self) -> bool:
        """Send it to the store, and wait for nothing; False where that cannot be done."""
        if not flusher().is_stuck:
            self._posted = self._post()
        if self._posted is None:
            return False
        self.guess, self._is_there = self._posted.guess, True
        self._queue = partial(self._queue, since=self._posted.at)
        return True

    def write(self, patience: float) -> None:
        """Have it written, in ``patience`` seconds; else that goes on in the background, or not."""
        breaker = self._tracker.breaker
        if breaker.refuses:
            breaker.skip()
            return
        self._is_there = True
        # What finds out whether the store is back keeps no publisher waiting.
        flusher().call(self._write, 0.0 if breaker.is_open else patience)
        self._late = True  # until here hardly anybody can have run it

    def settle(self) -> None:
        """See what has become meanwhile of what was sent."""
        posted, self._posted = self._posted, None
        if posted is None:
            return
        deadline = time.monotonic() + PATIENCE
        try:
            if not posted.is_written(PATIENCE):
                # Of that id something is known already, from before this message.
                self.write(deadline - time.monotonic())
        except AWAY:
            flusher().call(partial(self._settle, posted), 0.0)  # it was waited for
        except StatekitError:
            logger.exception("PENDING of %s is not recorded", brief(self._id))

    def withdraw(self) -> None:
        """The message has failed to leave: it is not PENDING."""
        self.settle()
        if self._is_there:
            flusher().call(self._unqueue, PATIENCE, insists=True)

    def _write(self) -> None:
        self.guess = self._queue(late=self._late)
        self._is_there = self.guess != ""

    def _settle(self, posted: PostedTask) -> None:
        self._is_there = posted.settle()

    def _unqueue(self) -> None:
        if self._is_there:
            self._tracker.unqueue(self._id)


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
    if app is None or headers.get("retries") or headers.get(TURN):
        return
    facts = {
        "client_id": client,
        "due_at": _moment(headers.get("eta")),
        "expires_at": _moment(headers.get("expires")),
    }
    try:
        pending = _Pending(Settings.of(app).tracker, headers["id"], sender, facts)
        posts = False
        if publisher.app is not None and publisher.pending is None:
            # It will be seen whether the message leaves. Who hears of PENDING hears of it before.
            publisher.pending, posts = pending, not _is_heard(app.tasks[sender])
        if not (posts and pending.post()):
            pending.write(PATIENCE)
        if pending.guess:
            headers[QUEUED] = pending.guess
    except StatekitError:
        logger.exception("PENDING of %s is not recorded", sender)


@signals.after_task_publish.connect(weak=False, dispatch_uid="celery_statekit.published")
def _published(**_: Any) -> None:
    """The message is sent: see what has become of its PENDING meanwhile."""
    if publisher.pending is not None:
        publisher.pending.settle()


def _is_heard(task: Any) -> bool:
    """Whether anybody is told of the task's changes."""
    return bool(task.hears_changes or state_changed.has_listeners(task.name))


@signals.worker_init.connect(weak=False, dispatch_uid="celery_statekit.init")
def _starting(sender: Any = None, **_: Any) -> None:
    """A worker whose settings cannot be obeyed does not start: each of its tasks would fail."""
    app = getattr(sender, "app", None)
    if app is None:
        return
    for task in [*app.tasks.values()]:
        # app.tasks.register() does not, and the worker would end (celery 5.7 app/trace.py:381).
        if hasattr(task, "is_stateful") and not task.__bound__:
            task.bind(app)
    if app not in stateful_apps:
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


@signals.worker_ready.connect(weak=False, dispatch_uid="celery_statekit.ready")
def _ready(sender: Any = None, **_: Any) -> None:
    """The worker's main process sees who is alive: it renews for its children, and sweeps."""
    app = getattr(sender, "app", None)
    if app not in stateful_apps:
        return
    try:
        terms = Settings.of(app).tracker.terms
    except StatekitError:
        logger.exception("leases are not renewed here")
        return
    if terms is not None:
        sweeper = Sweeper(app)
        sweeper.start()
        _sweepers.append(sweeper)
        _stops.append(renewer().hold_for(partial(_leases_of_children, app), terms.renewal))


@signals.worker_shutting_down.connect(weak=False, dispatch_uid="celery_statekit.shutting_down")
def _shutting_down(**_: Any) -> None:
    """A worker that ends leaves it to others to say what becomes of the tasks that it gives up."""
    while _sweepers:
        _sweepers.pop().stop()


_sweepers: Final[list[Sweeper]] = []
#: What ends with the worker of this process.
_stops: Final[list[Callable[[], None]]] = []


def _leases_of_children(app: Celery) -> list[Lease]:
    """The leases of the runs in a pool's processes: one that holds its interpreter cannot renew."""
    from celery.worker import state as worker  # noqa: PLC0415 - a worker has it

    tracker, own = Settings.of(app).tracker, os.getpid()
    terms = tracker.terms
    if terms is None:
        return []
    leases = []
    for request in [*worker.active_requests]:
        if request.worker_pid in (None, own) or not getattr(request.task, "is_stateful", False):
            continue
        with suppress(InvalidId):  # of such a task there is no record
            key, owner = tracker.key(request.id), f"{request.hostname}:{request.worker_pid}"
            leases.append(Lease(terms, key, owner))
    return leases


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
                meant=lambda now: now.state == LOST,
            )

    flusher().call(write, PATIENCE, insists=True)


@signals.worker_shutdown.connect(weak=False, dispatch_uid="celery_statekit.end")
@signals.worker_process_shutdown.connect(weak=False, dispatch_uid="celery_statekit.end_process")
def _ending(**_: Any) -> None:
    """A pool's child ends without the interpreter's own farewell (billiard 4.3 process.py)."""
    _shutting_down()
    while _stops:
        _stops.pop()()
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
