"""What is said of a task from outside its run: through ``app.backend``, as Celery's worker does."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context
from celery.exceptions import NotRegistered

from celery_statekit.settings import Settings

TELL = {
    "REVOKED": lambda backend, id: backend.mark_as_revoked(id, "revoked"),
    "FAILURE": lambda backend, id: backend.mark_as_failure(id, KeyError("row")),
    "SUCCESS": lambda backend, id: backend.store_result(id, 7, "SUCCESS"),
}


@pytest.fixture
def late(app: Celery) -> Any:
    """A task that should not run."""

    @app.task(name="late")
    def late() -> str:
        return "ran"

    return late


@pytest.fixture
def other(app: Celery) -> Any:
    """A task that is sent after it."""

    @app.task(name="other")
    def other() -> str:
        return "ran"

    return other


@pytest.mark.parametrize("end", TELL)
def test_a_task_that_waits_is_ended(
    app: Celery, late: Any, other: Any, work: Any, until: Any, end: str
) -> None:
    """Record and result say the same, and its message does nothing any more."""
    result = late.delay()
    until(lambda: result.task_state.state == "PENDING")
    TELL[end](app.backend, result.id)

    assert (result.state, Settings.of(app).tracker.read(result.id).state) == (end, end)
    before = app.backend.get_task_meta(result.id, cache=False)
    work()
    assert other.delay().get(timeout=10) == "ran"
    assert [change.to_state for change in result.history()] == ["PENDING", end]
    assert app.backend.get_task_meta(result.id, cache=False)["date_done"] == before["date_done"]


def test_the_reason_is_recorded(app: Celery, late: Any, until: Any) -> None:
    """The error of a FAILURE, as if its run had raised it."""
    result = late.delay()
    until(lambda: result.task_state.state == "PENDING")
    app.backend.mark_as_failure(result.id, KeyError("row"))

    state = Settings.of(app).tracker.read(result.id)
    assert state.error is not None
    assert state.error["type"] == "KeyError"
    assert "row" in state.reason


def test_revoked_though_nobody_recorded_that_it_waits(
    app: Celery, late: Any, other: Any, work: Any
) -> None:
    """Celery's REVOKED alone keeps the task from running."""
    result = late.delay()
    Settings.of(app).store.delete(Settings.of(app).tracker.key(result.id))
    app.backend.mark_as_revoked(result.id, "revoked")
    work()

    assert other.delay().get(timeout=10) == "ran"
    assert app.backend.get_state(result.id) == "REVOKED"
    assert not Settings.of(app).tracker.read(result.id).known


def test_a_plain_task_gets_no_record(app: Celery) -> None:
    """Only what is known is ended."""
    app.backend.mark_as_revoked("plain", "revoked")

    assert app.backend.get_state("plain") == "REVOKED"
    assert not Settings.of(app).tracker.read("plain").known


@pytest.mark.parametrize("kind", ["plain"])
def test_what_a_task_says_of_another_is_not_said_of_itself(app: Celery, kind: str) -> None:
    """FAILURE told of another task leaves one's own end alone."""
    request = Context(id="mine", task="plain", args=(), kwargs={})
    app.backend.store_result("other", KeyError("o"), "FAILURE", request=request)
    app.backend.mark_as_failure("mine", KeyError("worker lost"))
    app.backend.mark_as_done("mine", "late", request=request)

    assert app.backend.get_state("mine") == "FAILURE"


@pytest.mark.parametrize("kind", ["plain"])
def test_an_end_that_another_told_in_the_meantime(app: Celery, kind: str) -> None:
    """FAILURE that is not the one which the run said of itself stands."""
    request = Context(id="mine", task="plain", args=(), kwargs={})
    app.backend.store_result("mine", KeyError("own"), "FAILURE", request=request)
    app.backend.forget("mine")
    app.backend.mark_as_failure("mine", KeyError("worker lost"))
    app.backend.mark_as_done("mine", "late", request=request)

    assert app.backend.get_state("mine") == "FAILURE"


def test_a_task_that_the_worker_does_not_know(
    app: Celery, other: Any, work: Any, until: Any
) -> None:
    """It fails, and the worker goes on: what Celery tells of it is no request."""
    work()
    unknown = app.send_task("nobody")

    with pytest.raises(NotRegistered):
        unknown.get(timeout=10)
    assert other.delay().get(timeout=10) == "ran"
