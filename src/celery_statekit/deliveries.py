"""Messages beside the one that is run: that of a task which is being run already, and of one lost.

A second delivery neither runs nor is dropped while a run is alive: it is sent again for later,
with the same id. On Redis both deliveries share one tag, so that to acknowledge the second takes
the broker's copy from the first (kombu 5.7 transport/redis.py); the new message stands in for it.
So does one for what a stale run acknowledges, which may be its successor's.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, Final

from celery.app.task import Context
from celery.exceptions import Ignore, Reject
from kombu.utils.json import dumps

from celery_statekit.attempt import Attempt
from celery_statekit.chance import chance
from celery_statekit.checkpoint import SHARE
from celery_statekit.errors import AlreadyRunning, StaleAttempt, StatekitError, brief
from celery_statekit.record import TaskState

if TYPE_CHECKING:
    from celery import Celery

logger = logging.getLogger(__name__)

#: The header of a message that waits for the run of another one to be over; how often it was sent.
TURN: Final = "statekit_turn"
#: Kombu's own, in seconds (kombu 5.7 transport/redis.py).
VISIBILITY_TIMEOUT: Final = 3600.0
#: What Celery needs of a message to report the failure of its task.
_REPORTED: Final = (
    "chord",
    "errbacks",
    "group",
    "group_index",
    "root_id",
    "parent_id",
    "reply_to",
    "correlation_id",
    "ignore_result",
)
#: Of which the others are needed.
_FOLLOWED: Final = ("chord", "errbacks", "chain")


def wait_for_turn(task: Any, request: Any, running: AlreadyRunning) -> None:
    """The message of ``request`` comes again when the lease of the run that is alive may have ended.

    Raises:
        Reject: it cannot be sent; the broker keeps this one, unless it was acknowledged early.
    """
    _send_for_later(task, request, running.left, running)


def stand_in(task: Any, request: Any, stale: StaleAttempt) -> None:
    """A message for that of the newer run, which ``request`` takes from the broker with its own.

    Raises:
        Reject: as :func:`wait_for_turn`.
    """
    terms = request.statekit.tracker.terms
    # What was acknowledged early is not acknowledged again. Without leases it would run at once.
    if task.acks_late and terms is not None:
        _send_for_later(task, request, terms.seconds, stale)


def wait_for_store(task: Any, request: Any, attempt: Attempt, away: StatekitError) -> None:
    """A message that was delivered before does not run while nobody can say whether that run lives.

    Raises:
        Ignore: it comes again, for it is such a message.
        Reject: as :func:`wait_for_turn`.
    """
    given, terms = request.delivery_info or {}, attempt.tracker.terms
    again = task.acks_late and given.get("redelivered")
    if (again or (request.headers or {}).get(TURN)) and terms is not None:
        attempt.release()
        _send_for_later(task, request, terms.seconds, away)
        raise Ignore(str(away)) from away


def _send_for_later(task: Any, request: Any, left: float, why: Exception) -> None:
    # Until then a worker holds it, unacknowledged.
    seconds = min(left + chance.uniform(0.1, 1.0), visibility_timeout(task.app) / 2)
    turn = int((request.headers or {}).get(TURN) or 0) + 1
    message = task.signature_from_request(request, countdown=seconds)
    message.options["headers"] = {**(message.options.get("headers") or {}), TURN: turn}
    # That it was to begin by then was kept: it has begun.
    message.options["expires"] = None
    try:
        message.apply_async(add_to_parent=False)
    except Exception as exc:
        logger.warning("%s; its second delivery cannot be sent again", why, exc_info=True)
        raise Reject(exc, requeue=True) from exc
    logger.info("%s; this delivery comes again in %.1f s", why, seconds)


def visibility_timeout(app: Celery) -> float:
    """Seconds after which the app's broker delivers a message again that nobody acknowledged."""
    given = (app.conf.broker_transport_options or {}).get("visibility_timeout")
    return float(given) if isinstance(given, (int, float)) and given > 0 else VISIBILITY_TIMEOUT


def kept_of(task: Any, request: Any, limit: int) -> str:
    """What is needed of the message where its run is lost, as JSON text; "" where that is nothing.

    All of it where the task is then sent again; else who waits for its end.
    """
    # Where the broker delivers it again, nobody else sends it, and nobody ends it.
    if request.is_eager or (task.acks_late and task.max_attempts is None):
        return ""
    whole = task.on_lost == "requeue" and not task.acks_late
    if whole and (task.serializer or "json") != "json":
        logger.warning("%s is not sent again if it is lost: it is not sent as JSON", task.name)
        whole = False
    if not whole and not any(getattr(request, name, None) for name in _FOLLOWED):
        return ""
    kept: dict[str, Any] = {
        name: value for name in _REPORTED if (value := getattr(request, name, None))
    }
    if request.chain:
        kept["chain"] = [{**step, "args": (), "kwargs": {}} for step in request.chain]
    try:
        if whole:
            message = task.signature_from_request(request)
            message.options["expires"] = None
            kept["sent"] = {name: message[name] for name in ("args", "kwargs", "options")}
        # As it travels: what only Celery's JSON knows is made into it by who takes the message.
        text: str = dumps(kept)
    except Exception:
        logger.warning(
            "the message of %s[%s] is not kept", task.name, brief(request.id), exc_info=True
        )
        return ""
    if len(text) * SHARE > limit:
        logger.warning(
            "the message of %s[%s] is not kept: %d characters are too many",
            task.name,
            brief(request.id),
            len(text),
        )
        return ""
    return text


def context_of(state: TaskState) -> Context:
    """The message of a task whose run is lost, as far as Celery needs it to report its failure."""
    kept = _kept(state)
    kept.pop("sent", None)
    return Context({"id": state.id, "task": state.task, **kept})


def send_again(task: Any, state: TaskState) -> bool:
    """Send the task of ``state``, which is LOST, as it was sent; False where that is not known."""
    sent = _kept(state).get("sent")
    if not isinstance(sent, dict):
        return False
    options = {**sent.get("options", {}), "task_id": state.id, "add_to_parent": False}
    options["headers"] = {**(options.get("headers") or {}), TURN: 0}
    task.apply_async(sent.get("args"), sent.get("kwargs"), **options)
    return True


def _kept(state: TaskState) -> dict[str, Any]:
    try:
        kept = json.loads(state.message) if state.message else {}
    except ValueError:
        kept = None
    if not isinstance(kept, dict):
        logger.warning("what is kept of the message of %s cannot be read", brief(state.id))
        return {}
    return kept
