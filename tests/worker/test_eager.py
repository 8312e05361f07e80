"""Eager runs: the same interface, in the caller's process."""

from __future__ import annotations

import asyncio

import pytest
from celery import Celery
from celery.exceptions import Ignore

from celery_statekit import StatefulTask, States, signals
from celery_statekit.errors import StateNotReached, StoreNotConfigured


class Import(States):
    READING = "Reading the file"
    IMPORTING = "Importing rows"


def apps():
    """Apps of all kinds that run eagerly, by name."""
    return {
        "store": {"broker": "memory://", "statekit_store": "memory://eager-tests"},
        "derived": {"broker": "memory://"},
        "nothing": {},
        "elsewhere": {"broker": "amqp://nowhere.invalid"},
    }


@pytest.fixture(params=apps())
def app(request):
    conf = apps()[request.param]
    app = Celery("eager", set_as_current=False, broker=conf.pop("broker", None))
    app.conf.update(conf, result_backend="cache+memory://")
    yield app
    app.close()


@pytest.fixture(params=["apply", "delay"])
def call(app, request):
    """Run a task eagerly, in either way."""
    app.conf.task_always_eager = request.param == "delay"
    return lambda task, *args: getattr(task, request.param)(
        args if request.param == "apply" else args[0]
    )


def test_result_has_record_and_history(app, call):
    """An eager result has the record and the history of any other."""

    @app.task(bind=True, base=StatefulTask, states=Import, shared=False)
    def load(self, rows):
        self.enter(Import.READING)
        for _ in self.track(range(rows)):
            pass
        return rows

    result = call(load, 4)
    assert (result.get(), result.state) == (4, "SUCCESS")
    state = result.task_state
    assert (state.state, state.attempt, state.final) == ("SUCCESS", 1, True)
    assert state.progress.current == 4
    steps = [change.to_state for change in result.history()]
    assert steps in (
        ["STARTED", "READING", "SUCCESS"],
        ["PENDING", "STARTED", "READING", "SUCCESS"],
    )


def test_result_can_be_watched(app, call):
    """An eager result can be watched and waited for, though it has ended already."""

    @app.task(bind=True, base=StatefulTask, states=Import, shared=False)
    def load(self, rows):
        self.enter(Import.READING)

    result = call(load, 4)
    assert [state.state for state in result.watch(timeout=5)] == ["SUCCESS"]
    assert result.wait(until=Import.READING, timeout=5).state == "SUCCESS"
    with pytest.raises(StateNotReached):
        result.wait(until=Import.IMPORTING, timeout=5)

    async def watch():
        return [state.state async for state in result.awatch(timeout=5)]

    assert asyncio.run(watch()) == ["SUCCESS"]


def test_failure_is_recorded(app, call):
    """An eager run that raises is a FAILURE with its error."""

    @app.task(base=StatefulTask, shared=False)
    def load(rows):
        raise ValueError("no")

    result = call(load, 4)
    assert result.state == "FAILURE"
    assert result.task_state.error == {"type": "ValueError", "message": "no"}
    with pytest.raises(ValueError, match="no"):
        result.get()


def test_retry_is_recorded(app, call):
    """An eager retry is RETRY and a second attempt of the same id."""

    @app.task(bind=True, base=StatefulTask, states=Import, shared=False)
    def load(self, rows):
        self.enter(Import.READING)
        if not self.request.retries:
            raise self.retry(countdown=0, exc=OSError("again"))
        return rows

    result = call(load, 4)
    assert (result.get(), result.state) == (4, "SUCCESS")
    assert result.task_state.attempt == 2
    steps = [change.to_state for change in result.history() if change.to_state != "PENDING"]
    assert steps == ["STARTED", "READING", "RETRY", "STARTED", "READING", "SUCCESS"]


def test_ignore_rests(app, call):
    """An eager run that raises ``Ignore`` rests in IGNORED."""

    @app.task(base=StatefulTask, shared=False)
    def load(rows):
        raise Ignore

    result = call(load, 4)
    assert (result.state, result.task_state.state) == ("IGNORED", "IGNORED")


@pytest.mark.filterwarnings("ignore:Results are not stored:RuntimeWarning")
def test_nothing_is_left_in_celerys_backend(app, call):
    """An eager run leaves no PROGRESS behind in Celery's result backend."""

    @app.task(bind=True, base=StatefulTask, shared=False)
    def load(self, rows):
        self.update_state(state="LOADING", meta={"page": 1})
        self.progress.set(1, 2)

    result = call(load, 4)
    assert app.backend.get_task_meta(result.id)["status"] == "PENDING"


def test_signals_are_sent(app, call, hear):
    """The signals of an eager run are those of any other."""
    heard = hear(signals.state_changed)

    @app.task(bind=True, base=StatefulTask, states=Import, shared=False)
    def load(self, rows):
        self.enter(Import.READING)

    result = call(load, 4)
    steps = [change.to_state for change in heard if change.to_state != "PENDING"]
    assert steps == ["STARTED", "READING", "SUCCESS"]
    assert {change.task_id for change in heard} == {result.id}


def test_client_id_is_known(app, call):
    """``client_id=`` reaches an eager run."""

    @app.task(bind=True, base=StatefulTask, shared=False)
    def load(self):
        return self.request.headers["client_id"]

    result = load.apply(client_id="c-1")
    assert (result.get(), result.task_state.client_id) == ("c-1", "c-1")
    result = load.apply_async(client_id="c-2") if app.conf.task_always_eager else result
    assert result.task_state.client_id == result.get()


def test_publishing_without_a_store_says_what_to_set():
    """A real publish in an app from which no store follows is an error that names the setting."""
    app = Celery("lost", set_as_current=False, broker="amqp://nowhere.invalid//", backend="rpc://")

    @app.task(base=StatefulTask, shared=False)
    def load():
        """Never run."""

    with pytest.raises(StoreNotConfigured, match="statekit_store"):
        load.delay()
    app.close()


def test_chosen_store_is_used(store_url):
    """With a store configured, an eager run is recorded there, for other readers to see."""
    apps = [Celery(name, set_as_current=False, broker="memory://") for name in ("one", "two")]
    for app in apps:
        app.conf.update(statekit_store=store_url, result_backend="cache+memory://")
    one, two = apps

    @one.task(base=StatefulTask, shared=False)
    def load():
        return 5

    @two.task(base=StatefulTask, shared=False)
    def other():
        """Only reads."""

    result = load.apply()
    assert other.AsyncResult(result.id).task_state == result.task_state
    for app in apps:
        app.close()


def test_stored_eager_result_is_celerys_result(store_url):
    """``task_store_eager_result`` stores the end in Celery's backend as ever."""
    app = Celery("stored", set_as_current=False, broker="memory://", backend="cache+memory://")
    app.conf.update(statekit_store=store_url, task_always_eager=True, task_store_eager_result=True)

    @app.task(base=StatefulTask, shared=False)
    def load():
        return 5

    result = load.delay()
    assert app.AsyncResult(result.id).get(timeout=5) == 5
    app.close()
