"""``update_state`` and the idioms around it, as code wrote them before it knew this library."""

from __future__ import annotations

import datetime as dt
import logging
import time
import uuid
from decimal import Decimal

import pytest
from celery.exceptions import Ignore, OperationalError, Reject

from celery_statekit import StatefulTask, States
from celery_statekit.errors import IllegalTransition, InvalidState, ReportedFailure


class Import(States):
    READING = "Reading the file"
    IMPORTING = "Importing rows"


@pytest.fixture
def place():
    """One pool and store will do: what is tested here depends on neither."""
    return "threads", "sqlite"


def test_progress_meta_is_shown_as_it_was_given(app, work, gate, ended, until):
    """The meta of ``update_state(state="PROGRESS")`` is ``AsyncResult.info``, and the progress."""
    go = gate()

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.update_state(state="PROGRESS", meta={"current": 2, "total": 5, "file": "a.csv"})
        go.wait()

    work()
    result = load.delay()
    until(lambda: result.state == "PROGRESS")
    assert result.info == {"current": 2, "total": 5, "file": "a.csv"}
    progress = result.task_state.progress
    assert (progress.current, progress.total, progress.details["file"]) == (2, 5, "a.csv")
    go.set()
    assert ended(result).progress.current == 2


def test_any_name_is_a_state_of_an_open_set(app, work, gate, ended, until, states_of):
    """``update_state("GOING_TO_SLEEP")`` enters that state, in the record and for Celery."""
    go = gate()

    @app.task(bind=True, base=StatefulTask)
    def sleep(self):
        self.update_state(state="GOING_TO_SLEEP", meta={"bed": 5})
        go.wait()

    work()
    result = sleep.delay()
    until(lambda: result.state == "GOING_TO_SLEEP")
    assert result.info == {"bed": 5}
    assert result.task_state.state == "GOING_TO_SLEEP"
    go.set()
    ended(result)
    assert states_of(result) == ["PENDING", "STARTED", "GOING_TO_SLEEP", "SUCCESS"]


def test_same_state_again_is_new_meta(app, work, gate, ended, until):
    """A loop of ``update_state`` with one name shows the newest meta each time."""
    go = gate()

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        for page in range(4):
            self.update_state(state="LOADING", meta={"page": page})
        go.wait()

    work()
    result = load.delay()
    until(lambda: result.state == "LOADING" and result.info == {"page": 3})
    go.set()
    assert ended(result).state == "SUCCESS"


def test_same_declared_state_again_is_new_meta(app, work, gate, ended, until):
    """A loop of ``update_state`` with a declared state's name shows the newest meta each time."""
    go = gate()

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        for page in range(4):
            self.update_state(state="READING", meta={"page": page})
        go.wait()

    work()
    result = load.delay()
    until(lambda: result.ready() or (result.state == "READING" and result.info == {"page": 3}))
    go.set()
    assert ended(result).state == "SUCCESS"


def test_declared_states_are_checked(app, work, ended):
    """``update_state`` of a task with declared states is refused where ``enter`` would be."""

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        self.update_state(state="IMPORTING")
        with pytest.raises(IllegalTransition):
            self.update_state(state="READING")
        with pytest.raises(InvalidState):
            self.update_state(state="GOING_TO_SLEEP")

    work()
    assert ended(load.delay()).state == "SUCCESS"


@pytest.mark.parametrize("meta", ["half way", 50, ["a", 1], None, 0.5])
def test_meta_need_not_be_a_dict(app, work, gate, ended, until, meta):
    """A meta that is no dict is shown as it was given, and does not fail the task."""
    go = gate()

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.update_state(state="LOADING", meta=meta)
        go.wait()

    work()
    result = load.delay()
    until(lambda: result.state == "LOADING" or result.ready())
    shown = result.info
    go.set()
    assert ended(result).state == "SUCCESS"
    assert meta is None or shown == meta


@pytest.mark.parametrize(
    "meta",
    [
        {"since": dt.datetime(2026, 1, 2, tzinfo=dt.timezone.utc)},
        {"price": Decimal("1.5")},
        {"id": uuid.UUID(int=5)},
        {7: "seven"},
        {"rows": {1: 2}},
        {"current": "half", "total": None},
        {"current": -1, "total": "many"},
        {"status": 404, "current": 3, "total": 4},
    ],
    ids=["datetime", "decimal", "uuid", "int-key", "inner-int-key", "text", "negative", "status"],
)
@pytest.mark.parametrize("state", ["PROGRESS", "LOADING"])
def test_meta_that_celery_stores_does_not_fail_the_task(app, work, gate, ended, until, state, meta):
    """What Celery's serializer takes as a meta is taken, and shown as Celery shows it."""
    go = gate()

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.update_state(state=state, meta=meta)
        go.wait()

    work()
    result = load.delay()
    until(lambda: result.state == state or result.ready())
    shown = result.info
    go.set()
    assert ended(result).state == "SUCCESS"
    backend = app.backend
    assert shown == backend.decode(backend.encode(meta))


def test_state_none_reports_progress(app, work, gate, ended, until):
    """``update_state(meta=...)`` without a state reports progress."""
    go = gate()

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.update_state(meta={"current": 1, "total": 2})
        go.wait()

    work()
    result = load.delay()
    state = until(lambda: (now := result.task_state).progress and now)
    assert (state.state, state.progress.current) == ("STARTED", 1)
    until(lambda: result.info == {"current": 1, "total": 2})
    go.set()
    ended(result)


def test_newer_progress_replaces_an_older_meta(app, work, gate, ended, until):
    """Progress reported after ``update_state`` is what ``AsyncResult`` shows."""
    go = gate()

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.update_state(state="PROGRESS", meta={"status": "reading"})
        for row in self.track(range(10)):
            if row == 6:
                go.wait()

    work()
    result = load.delay()
    until(lambda: result.task_state.progress and result.task_state.progress.current == 6)
    until(lambda: isinstance(result.info, dict) and result.info.get("current") == 6)
    go.set()
    ended(result)


def test_own_id_is_the_own_run(app, work, ended, states_of):
    """``update_state(task_id=self.request.id)`` is the same as without."""

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.update_state(self.request.id, "LOADING", {"page": 1})

    work()
    result = load.delay()
    ended(result)
    assert "LOADING" in states_of(result)


def test_another_tasks_id_is_celerys_own_business(app, work, ended, states_of):
    """``update_state(task_id=other)`` stores in Celery's backend, and moves nothing of this run."""
    other = str(uuid.uuid4())

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.update_state(task_id=other, state="LOADING", meta={"page": 1})

    work()
    result = load.delay()
    ended(result)
    assert states_of(result) == ["PENDING", "STARTED", "SUCCESS"]
    assert (app.AsyncResult(other).state, app.AsyncResult(other).info) == ("LOADING", {"page": 1})
    known = load.AsyncResult(other).task_state
    assert (known.state, known.source) == ("LOADING", "celery")


@pytest.mark.parametrize("state", ["PROGRESS", "LOADING", "SUCCESS"])
def test_many_calls_are_few_writes(app, work, ended, state):
    """Of many ``update_state`` with one name few are written: the state once, the rest is progress."""
    app.conf.statekit_progress_interval = 0.25

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        until = time.monotonic() + 0.4  # so long that a few intervals pass
        calls = 0
        while time.monotonic() < until:
            calls += 1
            self.update_state(state=state, meta={"current": calls})
        return calls

    work()
    result = load.delay()
    end = ended(result)
    assert end.progress.current == result.get() > 50
    assert end.version < 20


# --- ends by hand --------------------------------------------------------------------------------


def test_success_inside_run_is_never_shown_as_an_end(app, work, gate, ended, until, states_of):
    """``update_state("SUCCESS")`` inside ``run`` is kept as the last progress, and ends nothing."""
    go = gate()

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.update_state(state="SUCCESS", meta={"current": 9, "total": 9})
        go.wait()
        return "returned"

    work()
    result = load.delay()
    until(lambda: (now := result.task_state).progress and now.progress.current == 9)
    assert not result.ready()
    assert not result.task_state.final
    go.set()
    assert ended(result).progress.current == 9
    assert result.get() == "returned"
    assert states_of(result).count("SUCCESS") == 1


def test_success_inside_run_that_then_fails_is_a_failure(app, work, ended, states_of):
    """A task that says SUCCESS and then raises has failed."""

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.update_state(state="SUCCESS", meta={"current": 1})
        raise ValueError("no")

    work()
    result = load.delay()
    assert ended(result).state == "FAILURE"
    assert result.state == "FAILURE"
    assert "SUCCESS" not in states_of(result)


def test_success_inside_run_is_warned_of_once(app, work, ended, caplog):
    """The warning comes once, however often the task says it."""

    @app.task(bind=True, base=StatefulTask, name=f"shop.{uuid.uuid4()}")
    def load(self):
        for _ in range(3):
            self.update_state(state="SUCCESS", meta={})

    work()
    with caplog.at_level(logging.WARNING, "celery_statekit"):
        ended(load.delay())
        ended(load.delay())
    warnings = [record for record in caplog.records if "update_state" in record.getMessage()]
    assert len(warnings) == 1
    assert "SUCCESS" in warnings[0].getMessage()


def test_failure_meta_and_ignore_end_as_failure(app, work, ended, states_of):
    """``update_state("FAILURE", meta)`` and ``raise Ignore`` end as FAILURE, with that meta."""

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.update_state(state="FAILURE", meta={"why": "no such file", "current": 3})
        raise Ignore

    work()
    result = load.delay()
    state = ended(result)
    assert states_of(result) == ["PENDING", "STARTED", "FAILURE"]
    assert state.error["type"] == "ReportedFailure"
    assert state.progress.details["why"] == "no such file"
    assert result.state == "FAILURE"
    assert isinstance(result.info, ReportedFailure)
    assert result.info.meta == {"why": "no such file", "current": 3}
    with pytest.raises(ReportedFailure):
        result.get()


def test_failure_with_celerys_own_exception_meta_is_readable(app, work, ended):
    """The meta that Celery's documentation asks for with FAILURE ends readable too."""

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        meta = {"exc_type": "ValueError", "exc_message": ["no"], "exc_module": "builtins"}
        self.update_state(state="FAILURE", meta=meta)
        raise Ignore

    work()
    result = load.delay()
    assert ended(result).state == "FAILURE"
    assert result.state == "FAILURE"
    assert isinstance(result.info, Exception)


def test_failure_with_an_exception_as_meta_is_readable(app, work, ended):
    """An exception as the meta of FAILURE neither fails the call nor poisons the result."""

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.update_state(state="FAILURE", meta=ValueError("no rows"))
        raise Ignore

    work()
    result = load.delay()
    state = ended(result)
    assert state.state == "FAILURE"
    assert state.error["type"] in ("ReportedFailure", "ValueError")
    assert "no rows" in str(result.info)


def test_failure_meta_without_ignore_ends_as_the_task_does(app, work, ended, states_of):
    """``update_state("FAILURE")`` in a task that returns is no end."""

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.update_state(state="FAILURE", meta={"rows": 3})
        return "fine"

    work()
    result = load.delay()
    ended(result)
    assert result.get() == "fine"
    assert states_of(result) == ["PENDING", "STARTED", "SUCCESS"]


def test_failure_meta_never_poisons_the_result(app, work, gate, ended, until):
    """While the task runs on after ``update_state("FAILURE", dict)`` its result can be read."""
    go = gate()

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.update_state(state="FAILURE", meta={"rows": 3})
        go.wait()

    work()
    result = load.delay()
    until(lambda: result.info == {"rows": 3})
    assert result.state == "PROGRESS"
    go.set()
    assert ended(result).state == "SUCCESS"


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "REVOKED"])
def test_strict_refuses_ends_by_hand(app, work, until, states_of, state):
    """With ``statekit_strict`` an end by hand raises, and nothing is kept of it."""
    app.conf.statekit_strict = True

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        with pytest.raises(InvalidState) as raised:
            self.update_state(state=state, meta={"rows": 3})
        assert state in raised.value.got
        raise Ignore

    work()
    result = load.delay()
    until(lambda: result.task_state.state not in ("PENDING", "STARTED"))
    assert states_of(result) == ["PENDING", "STARTED", "IGNORED"]
    assert result.task_state.progress is None


# --- Ignore, Reject, replace ---------------------------------------------------------------------


def test_ignore_is_a_resting_place(app, work, until, states_of):
    """``raise Ignore`` ends nothing: the record rests in IGNORED."""

    @app.task(base=StatefulTask)
    def load():
        raise Ignore("not today")

    work()
    result = load.delay()
    state = until(lambda: (now := result.task_state).state == "IGNORED" and now)
    assert not state.final
    assert state.reason == "not today"
    assert states_of(result) == ["PENDING", "STARTED", "IGNORED"]


def test_reject_without_requeue_is_a_failure(app, work, ended):
    """``Reject(requeue=False)`` is FAILURE, in the record and for Celery."""

    @app.task(base=StatefulTask, acks_late=True)
    def load():
        raise Reject("bad", requeue=False)

    work()
    result = load.delay()
    assert ended(result).state == "FAILURE"
    assert result.state == "FAILURE"


def test_reject_with_requeue_starts_again(app, work, ended, states_of):
    """``Reject(requeue=True)`` rests in REJECTED, and the next delivery is the next attempt."""
    tried = []

    @app.task(bind=True, base=StatefulTask, acks_late=True)
    def load(self):
        tried.append(self.task_state.attempt)
        if len(tried) == 1:
            raise Reject("later", requeue=True)

    work()
    result = load.delay()
    ended(result)
    assert tried == [1, 2]
    assert states_of(result) == ["PENDING", "STARTED", "REJECTED", "STARTED", "SUCCESS"]


def test_retry_without_throw_goes_on(app, work, ended):
    """``self.retry(throw=False)`` sends the next attempt, and this one goes on to its return."""
    runs = []

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        runs.append(self.request.retries)
        if not self.request.retries:
            self.retry(countdown=0, throw=False)
        return self.request.retries

    work()
    result = load.delay()
    assert ended(result).state == "SUCCESS"
    assert result.state == "SUCCESS"
    assert runs[0] == 0


def test_too_many_retries_are_a_failure(app, work, ended, states_of):
    """A task that may retry no more is a FAILURE, and its last RETRY stands in the history."""

    @app.task(bind=True, base=StatefulTask, max_retries=1)
    def load(self):
        raise self.retry(countdown=0)

    work()
    result = load.delay()
    state = ended(result)
    assert state.error["type"] == "MaxRetriesExceededError"
    assert states_of(result) == ["PENDING", "STARTED", "RETRY", "STARTED", "FAILURE"]


def test_retry_that_cannot_be_sent_is_a_failure(app, work, ended, monkeypatch):
    """When the broker refuses the retry's message, the task is a FAILURE, as for Celery."""
    send = app.amqp.send_task_message

    def refuse(producer, name, message, **options):
        if message.headers["retries"]:
            raise OperationalError("no broker")
        return send(producer, name, message, **options)

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        raise self.retry(countdown=0)

    work()
    monkeypatch.setattr(app.amqp, "send_task_message", refuse)
    result = load.delay()
    assert ended(result).state == "FAILURE"
    assert result.state == "FAILURE"


def test_errbacks_are_called(app, work, ended, until):
    """``link_error`` is sent when a task fails, of the new kind and of the old."""
    called = []

    @app.task(base=StatefulTask)
    def new(id):
        called.append(("new", id))

    @app.task(base=StatefulTask)
    def old(request, exc, traceback):
        called.append(("old", request.id, str(exc)))

    @app.task(base=StatefulTask)
    def load():
        raise ValueError("no")

    work()
    result = load.apply_async(link_error=[new.s(), old.s()])
    ended(result)
    until(lambda: len(called) == 2)
    assert sorted(called) == [("new", result.id), ("old", result.id, "no")]


def test_replaced_task_goes_on_under_its_id(app, work, ended, states_of):
    """``self.replace`` rests in IGNORED, and the other task ends the same record."""

    @app.task(base=StatefulTask, name="shop.other")
    def other(n):
        return n + 1

    @app.task(bind=True, base=StatefulTask, name="shop.load")
    def load(self):
        raise self.replace(other.s(1))

    work()
    result = load.delay()
    state = ended(result)
    assert result.get() == 2
    assert (state.state, state.task) == ("SUCCESS", "shop.other")
    assert states_of(result) == ["PENDING", "STARTED", "IGNORED", "STARTED", "SUCCESS"]


def test_reported_failure_keeps_the_type_that_its_meta_names(app, work, until):
    """As Celery reads such a meta: an exception of that name, with those arguments."""

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        meta = {"exc_type": "ValueError", "exc_message": ["bad"], "row": 7}
        self.update_state(state="FAILURE", meta=meta)
        raise Ignore

    work()
    result = load.delay()
    until(result.ready)
    assert (type(result.result).__name__, result.result.args) == ("ValueError", ("bad",))
    assert result.task_state.error["type"] == "ValueError"
    assert result.task_state.progress.details["row"] == 7
