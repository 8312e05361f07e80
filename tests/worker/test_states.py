"""The states of a task: what may be entered, what is refused, what Celery's result shows."""

from __future__ import annotations

import enum

import pytest
from celery.backends.cache import CacheBackend

from celery_statekit import StatefulTask, States, signals
from celery_statekit.errors import IllegalTransition, InvalidDefinition, InvalidInput, InvalidState


class Import(States):
    READING = "Reading the file"
    IMPORTING = "Importing rows"
    INDEXING = "Rebuilding the index"


class Review(States):
    DRAFT = "Draft"
    WAITING = "Waiting for review"
    DONE = "Done"

    __flow__ = {"DRAFT": "WAITING", "WAITING": "DRAFT DONE"}


class Guarded(States):
    OPEN = "Open"
    PAID = "Paid"

    __guards__ = {("OPEN", "PAID"): lambda state: state.progress is not None or "nothing counted"}


class Colour(str, enum.Enum):
    RED = "red"
    BLUE = "blue"


def test_states_are_entered_in_order(app, work, ended, states_of):
    """The states a run enters stand in its history, between those of its lifecycle."""

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        for state in Import:
            self.enter(state)

    work()
    result = load.delay()
    assert ended(result).state == "SUCCESS"
    assert states_of(result) == [
        *("PENDING", "STARTED"),
        *("READING", "IMPORTING", "INDEXING"),
        "SUCCESS",
    ]


def test_history_says_who_when_and_why(app, work, ended):
    """A change says number, version, reason, detail, attempt, worker, task and id."""

    @app.task(bind=True, base=StatefulTask, states=Import, name="shop.load")
    def load(self):
        self.enter(Import.READING, "a new file", rows=7)

    work()
    result = load.delay()
    end = ended(result)
    change = result.history()[2]
    assert (change.from_state, change.to_state) == ("STARTED", "READING")
    assert (change.reason, change.detail) == ("a new file", {"rows": 7})
    assert (change.task, change.task_id, change.attempt) == ("shop.load", result.id, 1)
    assert change.worker.startswith("celery@test:")
    assert change.worker == end.worker
    assert end.queued_at <= end.started_at <= change.at <= end.ended_at


def test_enter_returns_the_new_state(app, work, ended):
    """``enter`` gives the task's state as it was written, and ``task_state`` is the same."""
    got = []

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        entered = self.enter("READING")
        got.extend([entered, self.task_state])

    work()
    ended(load.delay())
    entered, stands = got
    assert (entered.state, entered.attempt, entered.source) == ("READING", 1, "record")
    assert stands == entered


def test_next_states_say_what_may_be_entered(app, work, ended):
    """``next_states`` names the states a run may enter now, and no state of the lifecycle."""
    seen = []

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        seen.append(self.next_states)
        self.enter(Import.IMPORTING)
        seen.append(self.next_states)
        self.enter(Import.INDEXING)
        seen.append(self.next_states)

    work()
    ended(load.delay())
    assert seen == [("READING", "IMPORTING", "INDEXING"), ("INDEXING",), ()]


def test_declared_flow_allows_a_way_back(app, work, ended, states_of):
    """With ``__flow__`` a run moves as it says, also back."""

    @app.task(bind=True, base=StatefulTask, states=Review)
    def review(self):
        for state in ("DRAFT", "WAITING", "DRAFT", "WAITING", "DONE"):
            self.enter(state)

    work()
    result = review.delay()
    assert ended(result).state == "SUCCESS"
    assert states_of(result)[2:-1] == ["DRAFT", "WAITING", "DRAFT", "WAITING", "DONE"]


def test_refused_move_says_why_and_changes_nothing(app, work, ended, states_of):
    """A move that the flow does not allow raises its facts, and the record stands as it stood."""
    seen = []

    @app.task(bind=True, base=StatefulTask, states=Import, name="shop.load")
    def load(self):
        before = self.enter(Import.IMPORTING)
        with pytest.raises(IllegalTransition) as raised:
            self.enter(Import.READING)
        seen.extend([raised.value, before, self.AsyncResult(self.request.id).task_state])

    work()
    result = load.delay()
    assert ended(result).state == "SUCCESS"
    error, before, after = seen
    assert (error.task, error.id) == ("shop.load", result.id)
    assert (error.from_state, error.to_state) == ("IMPORTING", "READING")
    assert error.allowed == ("INDEXING",)
    assert after == before
    assert states_of(result) == ["PENDING", "STARTED", "IMPORTING", "SUCCESS"]


def test_refused_move_is_signalled(app, work, ended, hear):
    """``transition_refused`` carries the error, and is sent once."""
    heard = hear(signals.transition_refused)

    @app.task(bind=True, base=StatefulTask, states=Import, name="shop.load")
    def load(self):
        self.enter(Import.INDEXING)
        with pytest.raises(IllegalTransition):
            self.enter(Import.READING)

    work()
    result = load.delay()
    ended(result)
    (refused,) = heard
    assert (refused.task, refused.id, refused.attempt) == ("shop.load", result.id, 1)
    assert refused.error.to_state == "READING"


def test_refused_move_that_is_not_caught_fails_the_task(app, work, ended):
    """An ``IllegalTransition`` reaches the client that asks for the result, with its facts."""

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        self.enter(Import.INDEXING)
        self.enter(Import.READING)

    work()
    result = load.delay()
    state = ended(result)
    assert (state.state, state.error["type"]) == ("FAILURE", "IllegalTransition")
    with pytest.raises(IllegalTransition) as raised:
        result.get()
    assert (raised.value.from_state, raised.value.to_state) == ("INDEXING", "READING")


def test_guard_refuses_with_its_reason(app, work, ended):
    """A guard sees the task's state; what it answers is the error's ``why``."""
    whys = []

    @app.task(bind=True, base=StatefulTask, states=Guarded)
    def pay(self):
        self.enter(Guarded.OPEN)
        with pytest.raises(IllegalTransition) as raised:
            self.enter(Guarded.PAID)
        whys.append(raised.value.why)

    work()
    assert ended(pay.delay()).state == "SUCCESS"
    assert whys == ["nothing counted"]


@pytest.mark.parametrize("stranger", ["NOWHERE", Review.DRAFT, "", 5, None])
def test_what_is_no_state_of_the_task_is_refused(app, work, ended, stranger):
    """Only the task's own states may be entered: a typed error says which those are."""
    errors = []

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        with pytest.raises(InvalidState) as raised:
            self.enter(stranger)
        errors.append(raised.value)

    work()
    assert ended(load.delay()).state == "SUCCESS"
    assert "READING" in errors[0].allowed


@pytest.mark.parametrize("name", ["SUCCESS", "FAILURE", "REVOKED", "PENDING", "STARTED", "LOST"])
@pytest.mark.parametrize("states", [Import, None])
def test_the_lifecycle_is_not_entered_by_hand(app, states, name):
    """Celery's own states are refused by ``enter``, with declared states and without."""

    @app.task(bind=True, base=StatefulTask, states=states)
    def load(self):
        with pytest.raises((IllegalTransition, InvalidState)):
            self.enter(name)
        return [change.to_state for change in self.AsyncResult(self.request.id).history()]

    assert load.apply().get() == ["STARTED"]


def test_detail_that_is_no_json_is_refused(app, work, ended, states_of):
    """A detail that cannot be stored raises, and the state is not entered."""

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        with pytest.raises(InvalidInput):
            self.enter(Import.READING, rows=object())

    work()
    result = load.delay()
    assert ended(result).state == "SUCCESS"
    assert "READING" not in states_of(result)


def test_definition_is_checked_when_the_task_is_made(app):
    """States that cannot work are refused when the task is bound, not when it runs."""

    class Reserved(States):
        SUCCESS = "Yes"

    with pytest.raises(InvalidDefinition) as raised:

        @app.task(base=StatefulTask, states=Reserved, lazy=False)
        def load():
            """Never made."""

    assert "SUCCESS" in str(raised.value)


def test_values_of_a_foreign_enum_are_stored(app, work, ended, states_of):
    """Of an Enum of texts that is not ours the value is what is stored."""

    @app.task(bind=True, base=StatefulTask, states=Colour)
    def paint(self):
        self.enter(Colour.RED)
        self.enter("blue")

    work()
    result = paint.delay()
    assert ended(result).state == "SUCCESS"
    assert states_of(result)[2:-1] == ["red", "blue"]


def test_without_states_any_name_may_be_entered(app, work, ended, states_of):
    """A task that declares no states enters any name, as often as it likes."""

    @app.task(bind=True, base=StatefulTask)
    def sleep(self):
        for name in ("YAWNING", "DREAMING", "YAWNING"):
            self.enter(name)

    work()
    result = sleep.delay()
    assert ended(result).state == "SUCCESS"
    assert states_of(result)[2:-1] == ["YAWNING", "DREAMING", "YAWNING"]


def test_next_attempt_begins_the_flow_again(app, work, ended, states_of):
    """A retry may enter the states again from the first."""

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        self.enter(Import.READING)
        self.enter(Import.INDEXING)
        if not self.request.retries:
            raise self.retry(countdown=0, exc=OSError("again"))

    work()
    result = load.delay()
    assert ended(result).state == "SUCCESS"
    assert states_of(result) == [
        *("PENDING", "STARTED", "READING", "INDEXING", "RETRY"),
        *("STARTED", "READING", "INDEXING", "SUCCESS"),
    ]
    assert [change.attempt for change in result.history()] == [0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert result.history()[4].reason == "OSError: again"


# --- what Celery's result backend shows ----------------------------------------------------------


def test_declared_state_is_celerys_state(app, work, gate, ended, until):
    """``AsyncResult`` shows a declared state by its name, with its label and the progress."""
    go = gate()

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        self.enter(Import.READING)
        self.progress.set(1, 4, "first rows")
        go.wait()

    work()
    result = load.delay()
    info = until(
        lambda: result.state == "READING" and result.info.get("current") == 1 and result.info
    )
    assert (info["state"], info["label"]) == ("READING", "Reading the file")
    assert (info["total"], info["percent"], info["description"]) == (4, 25, "first rows")
    assert info["pending"] is False
    go.set()
    ended(result)


def test_progress_is_celerys_progress(app, work, gate, ended, until):
    """Progress without a state is shown as PROGRESS, with the keys that its readers know."""
    go = gate()

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.progress.set(3, 8, "rows", file="a.csv")
        go.wait()

    work()
    result = load.delay()
    until(lambda: result.state == "PROGRESS")
    assert result.info == {
        "pending": False,
        "current": 3,
        "total": 8,
        "percent": 37.5,
        "description": "rows",
        "status": "rows",
        "file": "a.csv",
    }
    go.set()
    ended(result)


def test_status_setting_shows_states_as_progress(app, work, gate, ended, until):
    """With ``statekit_status = "PROGRESS"`` a declared state is shown that way, named in the meta."""
    app.conf.statekit_status = "PROGRESS"
    go = gate()

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        self.enter(Import.IMPORTING)
        go.wait()

    work()
    result = load.delay()
    until(lambda: result.task_state.state == "IMPORTING" and result.state == "PROGRESS")
    assert (result.info["state"], result.info["label"]) == ("IMPORTING", "Importing rows")
    assert {"pending", "current", "total", "percent", "description", "status"} <= set(result.info)
    go.set()
    ended(result)


def test_started_is_shown_where_celery_would(app, work, gate, ended, until):
    """``task_track_started`` still shows STARTED with the process and the node."""
    app.conf.task_track_started = True
    go = gate()

    @app.task(base=StatefulTask)
    def load():
        go.wait()

    work()
    result = load.delay()
    until(lambda: result.state == "STARTED")
    assert result.info["hostname"] == "celery@test"
    assert isinstance(result.info["pid"], int)
    go.set()
    ended(result)


def test_started_is_not_shown_where_celery_would_not(app, work, gate, ended, until):
    """Without ``task_track_started`` Celery's result stays PENDING while the record says STARTED."""
    go = gate()

    @app.task(base=StatefulTask)
    def load():
        go.wait()

    work()
    result = load.delay()
    until(lambda: result.task_state.state == "STARTED")
    assert result.state == "PENDING"
    go.set()
    ended(result)


def test_report_under_way_does_not_hide_the_end(app, work, gate, until, monkeypatch):
    """A report that Celery's backend is still storing when the task ends never comes after the end."""
    showing, returned, shown, end_stored = gate(), gate(), gate(), gate()
    store_result = CacheBackend.store_result

    def slow(self, task_id, result, state, *args, **kwargs):
        if state == "PROGRESS":
            showing.set()
            returned.wait()
            end_stored.wait(0.2)  # the end comes now, if it does not wait
        stored = store_result(self, task_id, result, state, *args, **kwargs)
        {"PROGRESS": shown, "FAILURE": end_stored}[state].set()
        return stored

    monkeypatch.setattr(CacheBackend, "store_result", slow)
    begun = gate()

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.progress.update()
        begun.wait()
        returned.set()
        raise ValueError("no")

    work()
    result = load.delay()
    assert showing.wait()
    begun.set()
    assert end_stored.wait()
    assert shown.wait()
    assert (result.state, result.task_state.state) == ("FAILURE", "FAILURE")


def test_end_is_the_last_that_celery_shows(app, work, until):
    """A state entered and progress made just before the end never hide the end."""

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        self.progress.update()
        self.enter(Import.READING)
        raise ValueError("no")

    work()
    for _ in range(20):
        result = load.delay()
        until(result.ready)
        result = load.AsyncResult(result.id)  # a ready one remembers what it has read
        assert (result.state, result.task_state.state) == ("FAILURE", "FAILURE")
