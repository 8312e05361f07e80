"""A stateful task's record and its result are one write: they never disagree."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import Celery, Task
from celery.exceptions import Ignore, TaskRevokedError
from celery.result import AsyncResult

from celery_statekit import States, setup
from celery_statekit.backends import RedisBackend


class Import(States):
    READING = "Reading"
    WRITING = "Writing"


def test_setup_puts_the_backend_in_place(app: Celery) -> None:
    """The user's URL stays as it is; doing it twice changes nothing."""
    setup(app)

    assert type(app.backend) is RedisBackend


def test_result_and_record_of_a_success(app: Celery, work: Any, ended: Any) -> None:
    """What returned is there for Celery and in the record, which says the same."""

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    work()
    result = add.delay(2, 3)

    assert result.get(timeout=10) == 5
    # The record was there when Celery's message of the result came.
    assert result.task_state.state == "SUCCESS"
    assert [change.to_state for change in result.history()] == ["PENDING", "STARTED", "SUCCESS"]


def test_result_and_record_of_a_failure(app: Celery, work: Any) -> None:
    """The error and its traceback are Celery's; the record says the same."""

    @app.task
    def fail() -> None:
        raise KeyError("row")

    work()
    result = fail.delay()

    with pytest.raises(KeyError):
        result.get(timeout=10)
    assert result.task_state.state == "FAILURE"
    assert "KeyError: 'row'" in result.traceback


def test_an_unserialisable_result_is_a_failure(app: Celery, work: Any) -> None:
    """Neither the record nor Celery has ever said SUCCESS."""

    @app.task
    def give() -> Any:
        return object()

    work()
    result = give.delay()

    with pytest.raises(Exception, match="not JSON serializable"):
        result.get(timeout=10)
    assert [change.to_state for change in result.history()] == ["PENDING", "STARTED", "FAILURE"]


def test_started_is_shown_with_its_claim(app: Celery, work: Any, gate: Any, until: Any) -> None:
    """``task_track_started`` shows STARTED, with process and host, as Celery does."""
    app.conf.task_track_started = True
    go, here = gate(), gate()

    @app.task
    def wait() -> None:
        here.set()
        go.wait()

    work()
    result = wait.delay()
    here.wait()

    assert result.state == "STARTED"
    assert result.info["hostname"] == "celery@test"
    go.set()
    result.get(timeout=10)


def test_an_entered_state_is_shown_at_once(app: Celery, work: Any) -> None:
    """``enter`` returns when both the record and Celery say so; once an interval."""
    app.conf.statekit_progress_interval = 60
    seen: list[Any] = []

    @app.task(bind=True, states=Import)
    def load(self: Any) -> None:
        self.progress.set(1, 4)
        self.enter(Import.READING)
        seen.append(AsyncResult(self.request.id, app=app)._get_task_meta())
        self.enter(Import.WRITING)
        seen.append(AsyncResult(self.request.id, app=app)._get_task_meta())

    work()
    load.delay().get(timeout=10)

    assert [meta["status"] for meta in seen] == ["READING", "READING"]
    assert seen[0]["result"]["current"] == 1
    assert seen[0]["result"]["label"] == "Reading"


def test_of_states_entered_at_once_the_newest_is_shown_soon(
    app: Celery, work: Any, gate: Any, until: Any
) -> None:
    """A run that enters many states waits for its record only."""
    go = gate()

    @app.task(bind=True, states=Import)
    def load(self: Any) -> None:
        self.enter(Import.READING)
        self.enter(Import.WRITING)
        go.wait()

    work()
    result = load.delay()

    until(lambda: result.state == "WRITING")
    go.set()
    result.get(timeout=10)


def test_progress_is_shown(app: Celery, work: Any, gate: Any, until: Any) -> None:
    """Progress is PROGRESS to Celery, with the meta that old front ends read."""
    go = gate()

    @app.task(bind=True)
    def count(self: Any) -> int:
        self.progress.set(3, 10, "rows")
        go.wait()
        return 10

    work()
    result = count.delay()

    until(lambda: result.state == "PROGRESS")
    assert result.info["current"] == 3
    go.set()
    assert result.get(timeout=10) == 10


def test_what_cannot_be_shown_does_not_keep_a_state_from_being_entered(
    app: Celery, work: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A meta that Celery's serializer refuses is left out, once said; the task goes on."""

    @app.task(bind=True, states=Import)
    def load(self: Any) -> str:
        self.request.children.append(object())  # no result has this
        try:
            return str(self.enter(Import.READING).state)
        finally:
            self.request.children.clear()

    work()

    assert load.delay().get(timeout=10) == "READING"
    assert caplog.text.count("is not shown") == 1


def test_retry_is_stored_before_its_message_is_sent(app: Celery, work: Any, until: Any) -> None:
    """RETRY with its cause; then the next run, and its end."""
    seen: list[Any] = []

    @app.task(bind=True, max_retries=1)
    def again(self: Any) -> str:
        if self.request.retries:
            seen.append(AsyncResult(self.request.id, app=app)._get_task_meta())
            return "done"
        raise self.retry(exc=ValueError("not yet"), countdown=0)

    work()
    result = again.delay()

    assert result.get(timeout=10) == "done"
    assert seen[0]["status"] == "RETRY"
    assert isinstance(seen[0]["result"], ValueError)
    assert "ValueError" in result.history()[2].reason


def test_an_ignored_result_is_not_stored(app: Celery, work: Any, until: Any) -> None:
    """The record knows the end; Celery keeps nothing."""

    @app.task(ignore_result=True)
    def quiet() -> int:
        return 1

    work()
    result = quiet.delay()

    until(lambda: result.task_state.final)
    assert AsyncResult(result.id, app=app).state == "PENDING"


def test_an_end_told_by_update_state_and_ignore(app: Celery, work: Any, until: Any) -> None:
    """The old idiom ends as FAILURE with its meta, in both."""

    @app.task(bind=True)
    def old(self: Any) -> None:
        self.update_state(state="FAILURE", meta={"exc_type": "OldError", "exc_message": ["no"]})
        raise Ignore

    work()
    result = old.delay()

    with pytest.raises(Exception, match="no"):
        result.get(timeout=10)
    assert result.task_state.state == "FAILURE"


def test_a_revoked_task(app: Celery, work: Any, until: Any) -> None:
    """Revoked before it ran: REVOKED in both, and its waiter hears of it."""

    @app.task
    def never() -> None:
        """Does nothing."""

    from celery.worker import state as worker_state

    result = never.apply_async(countdown=0)
    worker_state.revoked.add(result.id)
    try:
        work()
        with pytest.raises(TaskRevokedError):
            result.get(timeout=10)
    finally:
        worker_state.revoked.discard(result.id)
    assert result.task_state.state == "REVOKED"


def test_a_plain_task_of_the_app_has_no_record(app: Celery, work: Any) -> None:
    """It is Celery's, with Celery's result."""

    @app.task(base=Task)
    def add(x: int, y: int) -> int:
        return x + y

    work()
    result = add.delay(1, 2)

    assert result.get(timeout=10) == 3
    assert result.task_state.source == "celery"


def test_the_result_is_as_celery_stores_it(
    app: Celery, make: Any, work: Any, client: Any, name: str
) -> None:
    """The same JSON under the same key, for the same time."""

    @app.task
    def ours(x: int) -> dict[str, int]:
        return {"x": x}

    plain = make("celery")
    plain.backend.store_result("celerys", {"x": 1}, "SUCCESS")
    work()
    result = ours.delay(1)
    result.get(timeout=10)

    key, celerys = (f"{name}:celery-task-meta-{id}" for id in (result.id, "celerys"))
    mine, theirs = json.loads(client.get(key)), json.loads(client.get(celerys))
    assert list(mine) == list(theirs)
    assert mine | {"date_done": "", "task_id": "", "children": []} == theirs | {
        "date_done": "", "task_id": "", "children": []
    }  # fmt: skip
    assert abs(client.ttl(key) - client.ttl(celerys)) <= 5
    assert AsyncResult(result.id, app=plain).get(timeout=10) == {"x": 1}
