"""What an operator does: revoke, purge, ask the doctor; and what anybody may write late."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from celery_statekit import StatefulResult

from .nodes import PATIENCE, states_of, until
from .places import BOTH_BACKENDS

pytestmark = [pytest.mark.redis, pytest.mark.timeout(180)]


@pytest.mark.parametrize("settings", [{"result_expires": 5}], ids=["expires in 5 s"])
def test_unknown_queued_and_purged(celery_setup: Any, tasks: Any, settings: Any) -> None:
    """Celery says PENDING of all three: we tell them apart."""
    app, worker = celery_setup.app, celery_setup.worker
    worker.tell("cancel_consumer", "celery")

    queued = tasks.add.delay(1, 2)
    unknown: Any = StatefulResult(str(uuid.uuid4()), app=app)

    assert (queued.task_state.state, queued.task_state.source) == ("PENDING", "record")
    assert (unknown.task_state.state, unknown.task_state.source) == ("UNKNOWN", "nobody")
    assert AsyncResult(queued.id, app=app).state == AsyncResult(unknown.id, app=app).state

    code, said = worker.celery("purge", "-f")

    assert code == 0, said
    assert "Purged 1 message" in said
    until(lambda: not queued.task_state.known)


@BOTH_BACKENDS
def test_revoked_before_it_runs(celery_setup: Any, tasks: Any) -> None:
    """REVOKED at once; its message, when it comes, is dropped."""
    worker = celery_setup.worker
    worker.tell("cancel_consumer", "celery")
    result = tasks.add.delay(1, 2)
    worker.tell("revoke", result.id)

    worker.tell("add_consumer", "celery")

    with pytest.raises(TaskRevokedError):
        result.get(timeout=PATIENCE)
    until(lambda: result.task_state.state == "REVOKED")
    assert states_of(result) == "PENDING REVOKED"


@BOTH_BACKENDS
def test_terminated(celery_setup: Any, tasks: Any) -> None:
    """A run that is terminated is REVOKED, by the worker's main process; where it stood remains."""
    result = tasks.load.delay(10, gate="never")
    result.wait(until="IMPORTING", timeout=PATIENCE)

    result.revoke(terminate=True)

    with pytest.raises(TaskRevokedError):
        result.get(timeout=PATIENCE)
    until(lambda: result.task_state.final)
    assert states_of(result) == "PENDING STARTED READING IMPORTING REVOKED"


@BOTH_BACKENDS
def test_late_writers(celery_setup: Any, tasks: Any) -> None:
    """Another task and another process write over an end: the record keeps it.

    Where result and record are one write, Celery's own result keeps it too.
    """
    app = celery_setup.app
    result = tasks.add.delay(1, 2)
    result.get(timeout=PATIENCE)
    until(lambda: result.task_state.final)

    tasks.report.delay(result.id).get(timeout=PATIENCE)
    app.backend.store_result(result.id, {"current": 2}, "PROGRESS")

    assert states_of(result) == "PENDING STARTED SUCCESS"
    assert result.task_state.state == "SUCCESS"
    if "redis" in app.conf.result_backend:
        asked = AsyncResult(result.id, app=app)
        assert (asked.state, asked.result) == ("SUCCESS", 3)


@BOTH_BACKENDS
@pytest.mark.usefixtures("nothing_unusual")
def test_doctor(celery_setup: Any, tasks: Any) -> None:
    """Of this cluster there is nothing to change; it says what store it found."""
    tasks.add.delay(1, 2).get(timeout=PATIENCE)

    code, said = celery_setup.worker.celery("statekit", "doctor", "--json")

    told = json.loads(said[said.index("{") :])
    assert code == 0, said
    assert told["must_change"] == 0
    levels = {each["name"]: each["level"] for each in told["findings"]}
    assert levels["store.round_trip"] == levels["broker"] == levels["tasks"] == "ok"
