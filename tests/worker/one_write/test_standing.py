"""Who waits for a task, and its chord, learn of the end that is recorded, and of no other."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery, chord
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from celery_statekit import StatefulTask
from celery_statekit.attempt import Attempt
from celery_statekit.errors import ResultLost, StoreUnavailable
from celery_statekit.settings import Settings


@pytest.mark.parametrize("raises", [False, True], ids=["returned", "raised"])
@pytest.mark.parametrize("end", ["REVOKED", "FAILURE"])
def test_an_end_recorded_from_outside_is_told(
    app: Celery, work: Any, gate: Any, end: str, raises: bool
) -> None:
    """Whoever recorded it told nobody; the run that meets it does, not of its own end."""
    begun, go = gate(), gate()

    @app.task(name="load")
    def load() -> str:
        begun.set()
        go.wait()
        if raises:
            raise KeyError("its own")
        return "its own"

    work()
    result = load.delay()
    begun.wait()
    error = {"type": "WorkerLostError", "message": "by hand"} if end == "FAILURE" else None
    tracker = Settings.of(app).tracker
    tracker.end_from_outside(result.id, "load", end, reason="by hand", error=error)
    go.set()

    with pytest.raises(Exception, match="by hand") as raised:
        result.get(timeout=10)
    assert type(raised.value).__name__ == (error["type"] if error else TaskRevokedError.__name__)
    assert (result.state, result.task_state.state) == (end, end)


def test_a_success_whose_value_is_gone(app: Celery, work: Any) -> None:
    """A run that died between the two writes left a record only: it is said that it is so."""

    @app.task(name="load")
    def load() -> str:
        return "again"

    attempt = Attempt.of(Settings.of(app).tracker, "gone", "load", load._flow)
    attempt.claim()
    attempt.leave("SUCCESS")
    work()
    result = load.apply_async(task_id="gone")

    with pytest.raises(ResultLost):
        result.get(timeout=10)
    assert result.task_state.state == "SUCCESS"


@pytest.mark.parametrize("where", ["returned", "linked"])
def test_a_success_that_waits_for_the_store_stays_one(
    app: Celery, work: Any, until: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Celery stores nothing while it waits; afterwards both say the same, and the chord is told."""
    store = Settings.of(app).store
    write, away, failed = store.write_beside, [True], []

    def write_or_fail(record: Any, beside: Any, **options: Any) -> bool:
        if away and record.document["state"] in ("SUCCESS", "FAILURE"):
            failed.append(record.document["state"])
            raise StoreUnavailable(store.name, "it is away")
        return bool(write(record, beside, **options))

    def store_result(*_: Any, **__: Any) -> None:
        raise ConnectionError("it is away")

    @app.task(name="member")
    def member() -> int:
        monkeypatch.setattr(store, "write_beside", write_or_fail)
        monkeypatch.setattr(type(app.backend), "_store_result", store_result)
        return 1

    @app.task(name="linked")
    def linked(_: int) -> None:
        """Be sent when a member has returned."""

    @app.task(name="body")
    def body(values: Any) -> Any:
        return values

    work()
    header = member.s().set(link=linked.s()) if where == "linked" else member.s()
    result = chord([header])(body.s())
    (child,) = result.parent.results
    until(lambda: failed)
    state = child.state
    monkeypatch.undo()
    away.clear()

    assert state not in ("SUCCESS", "FAILURE")
    assert result.get(timeout=10) == [1]
    assert (child.state, child.result, child.task_state.state) == ("SUCCESS", 1, "SUCCESS")
    assert set(failed) == {"SUCCESS"}


@pytest.mark.parametrize("kind", ["celery", "plain"])
def test_a_chord_gets_what_returned_after_an_early_success(task: Any, work: Any, kind: str) -> None:
    """As in Celery, ``update_state(state="SUCCESS")`` stands in the result, not in the chord."""

    @task(name="early", bind=True)
    def early(self: Any) -> str:
        self.update_state(state="SUCCESS", meta="early")
        return "late"

    @task(name="body")
    def body(values: Any) -> Any:
        return values

    work()
    result = chord([early.s(), early.s()])(body.s())

    assert result.get(timeout=10) == ["late", "late"]
    assert [child.get(timeout=10) for child in result.parent.results] == ["early", "early"]


def test_retry_without_throw_is_no_end(app: Celery, work: Any, gate: Any, until: Any) -> None:
    """What the run returns after it is dropped, for its chord too: the next attempt says."""
    go = gate()
    seen: list[str] = []

    @app.task(name="load", bind=True)
    def load(self: Any) -> str:
        if not self.request.retries:
            self.retry(countdown=0, throw=False)
            return "first"
        seen.append(AsyncResult(self.request.id, app=app).state)
        go.wait()
        return "second"

    @app.task(name="body")
    def body(values: Any) -> Any:
        return values

    work()
    result = chord([load.s()])(body.s())
    (child,) = result.parent.results
    until(lambda: seen)
    go.set()

    assert result.get(timeout=10) == ["second"]
    assert seen == ["RETRY"]
    assert child.get(timeout=10) == "second"


@pytest.mark.parametrize("how", ["option", "class"])
def test_a_task_with_a_backend_of_its_own(
    app: Celery, make: Any, work: Any, ended: Any, how: str
) -> None:
    """``backend=`` of a task or of its base class: its results go there, and are guarded."""
    other = make("celery").backend

    class Elsewhere(StatefulTask):
        abstract = True
        backend = other

    options = {"backend": other} if how == "option" else {"base": Elsewhere}

    @app.task(name="load", **options)
    def load() -> int:
        return 1

    work()
    result = load.delay()

    assert ended(result).state == "SUCCESS"
    assert load.own_backend is other
    assert result.get(timeout=10) == 1


def test_forgetting_forgets_the_record_once(
    app: Celery, work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backend does it, whatever its id is made of."""

    @app.task(name="load")
    def load() -> int:
        return 1

    work()
    result = load.delay()
    result.get(timeout=10)
    forgotten: list[str] = []
    tracker = Settings.of(app).tracker
    monkeypatch.setattr(tracker, "forget", forgotten.append)
    result.forget()
    app.backend.forget(result.id.encode())

    assert forgotten == [result.id, result.id]


def test_what_is_handed_out_is_the_callers(app: Celery, work: Any) -> None:
    """What a task does to the fields of its state is not written with the next one."""

    @app.task(name="load", bind=True)
    def load(self: Any) -> None:
        self.task_state.extra["x"] = 1
        self.enter("READING").extra["y"] = 1

    work()
    result = load.delay()
    result.get(timeout=10)

    assert not {"x", "y"} & set(result.task_state.extra)
