"""A task becomes a StatefulTask in whatever way its app makes tasks."""

from __future__ import annotations

import contextvars
import gc
import tracemalloc
from typing import Any

import pytest
from celery import VERSION as CELERY
from celery import Celery, Task, chord, shared_task
from celery.beat import ScheduleEntry, Scheduler
from celery.contrib.django.task import DjangoTask
from celery.exceptions import Ignore
from celery.result import AsyncResult
from celery.schedules import schedule
from celery.signals import before_task_publish
from kombu.exceptions import OperationalError
from kombu.transport import memory

from celery_statekit import StatefulResult, StatefulTask, States, setup, signals, stateful, track
from celery_statekit.errors import IllegalTransition, InvalidSetting, NotRunning, SetupTooLate


class Import(States):
    READING = "Reading the file"
    IMPORTING = "Importing rows"


@pytest.fixture
def load_class():
    """Make a class-based task: a new one each time, for Celery binds a class to an app."""

    class Load(StatefulTask):
        name = "shop.load_class"
        states = Import

        def run(self, rows):
            self.enter(Import.READING)
            for _ in self.track(range(rows)):
                pass
            return rows

    return Load


#: What Flask's application context is in the classes below.
context: contextvars.ContextVar[str] = contextvars.ContextVar("context", default="")


class ContextTask(Task):
    """As Flask's documentation makes it."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        token = context.set("flask")
        try:
            return self.run(*args, **kwargs)
        finally:
            context.reset(token)


class SuperTask(Task):
    """The same, by way of ``super``."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        token = context.set("flask")
        try:
            return super().__call__(*args, **kwargs)
        finally:
            context.reset(token)


PASSED = ["PENDING", "STARTED", "READING", "SUCCESS"]


@pytest.mark.parametrize("as_class", [True, False])
def test_class_registered_with_the_app(app, work, ended, states_of, load_class, as_class):
    """``app.register_task`` takes a StatefulTask, its class or an instance."""
    task = app.register_task(load_class if as_class else load_class())
    work()
    result = task.delay(3)
    assert ended(result).progress.current == 3
    assert result.get() == 3
    assert states_of(result) == PASSED


def test_class_registered_in_the_registry(app, work, ended, states_of, load_class):
    """``app.tasks.register`` does the same, once the task is bound as Celery's worker needs it."""
    app.tasks.register(load_class())
    app.tasks["shop.load_class"].bind(app)
    work()
    result = app.tasks["shop.load_class"].delay(3)
    ended(result)
    assert result.get() == 3
    assert states_of(result) == PASSED


@pytest.mark.parametrize("bind", [True, False])
def test_class_registered_in_the_registry_alone(app, work, ended, states_of, load_class, bind):
    """A worker binds what is only registered, also where it has a ``bind`` as functions have."""
    load = type("Load", (load_class,), {"bind": bind})()
    app.tasks.register(load)
    work()
    result = load.delay(3)
    ended(result)
    assert result.get() == 3
    assert states_of(result) == PASSED


def test_class_that_celery_has_not_bound_yet(app, load_class):
    """The first publish of a task in the registry binds it, and is recorded."""
    app.tasks.register(load_class())
    result = app.tasks["shop.load_class"].delay(3)
    assert isinstance(result, StatefulResult)
    assert result.task_state.state == "PENDING"


def test_class_based_task_as_base(app, work, ended, states_of):
    """A subclass of StatefulTask is a base for function tasks."""

    class Base(StatefulTask):
        states = Import

    @app.task(bind=True, base=Base)
    def load(self):
        self.enter(Import.READING)

    work()
    result = load.delay()
    ended(result)
    assert states_of(result) == PASSED


def test_shared_task(app, work, ended, states_of):
    """``shared_task(base=StatefulTask)`` makes a stateful task of whatever app there is."""

    # Any app that lives gets it, also one that got that of another test.
    @shared_task(name=f"{app.main}.load", bind=True, base=StatefulTask, states=Import)
    def load(self):
        self.enter(Import.READING)

    work()
    result = load.delay()
    ended(result)
    assert states_of(result) == PASSED


def test_stateful_with_an_app(app, work, ended, states_of):
    """``@stateful(app, states=...)`` makes a task of the app."""

    @stateful(app, bind=True, states=Import)
    def load(self, rows):
        self.enter(Import.READING)
        return rows

    work()
    result = load.delay(2)
    ended(result)
    assert result.get() == 2
    assert states_of(result) == PASSED


def test_stateful_without_an_app(app, work, ended, states_of):
    """``@stateful(states=...)`` makes a shared task."""

    # Also of each other app of this process, where the name may be taken.
    @stateful(states=Import, name=f"{app.main}.load")
    def load():
        return sum(track([1, 2]))

    work()
    result = load.delay()
    assert ended(result).progress.current == 2
    assert states_of(result) == ["PENDING", "STARTED", "SUCCESS"]


def test_stateful_passes_options_on(app):
    """``@stateful`` takes every option of ``app.task``."""

    @stateful(app, name="shop.named", max_retries=7, ignore_result=True)
    def load():
        """Nothing."""

    assert (load.name, load.max_retries, load.ignore_result) == ("shop.named", 7, True)


@pytest.fixture
def app_with(store_url, request):
    """Make an app with other arguments."""

    def make(**options: Any) -> Celery:
        options = {"broker": "memory://", "backend": "cache+memory://", **options}
        app = Celery("other", set_as_current=False, **options)
        app.conf.update(statekit_store=store_url, statekit_progress_interval=0.02)
        request.addfinalizer(app.close)
        return app

    return make


def test_task_cls_of_the_app(app_with):
    """``Celery(task_cls=StatefulTask)`` makes every task stateful."""
    app = app_with(task_cls=StatefulTask)

    @app.task(bind=True, states=Import)
    def load(self):
        self.enter(Import.READING)

    result = load.apply()
    assert [change.to_state for change in result.history()] == ["STARTED", "READING", "SUCCESS"]


class TestSetup:
    """``setup(app)``."""

    @pytest.fixture
    def app(self, app):
        return setup(app)

    def test_makes_every_task_stateful(self, app, work, ended, states_of):
        """A task that names no base is a StatefulTask."""

        @app.task(bind=True, states=Import)
        def load(self):
            self.enter(Import.READING)

        work()
        result = load.delay()
        ended(result)
        assert states_of(result) == PASSED

    def test_makes_results_from_an_id_stateful(self, app, work, ended):
        """``app.AsyncResult(id)`` and ``app.send_task`` give a StatefulResult."""

        @app.task(name="shop.load")
        def load():
            return 5

        work()
        result = app.send_task("shop.load")
        assert isinstance(result, StatefulResult)
        ended(result)
        again = app.AsyncResult(result.id)
        assert isinstance(again, AsyncResult)
        assert (again.task_state.state, again.get()) == ("SUCCESS", 5)

    def test_twice_changes_nothing(self, app):
        """Calling it again, also after tasks were made, is no error."""

        @app.task
        def load():
            return 5

        load.apply()
        assert setup(app) is app

    def test_leaves_celerys_tasks_alone(self, app, work, until):
        """No record is kept of a task of Celery's own."""

        @app.task
        def load():
            """Nothing."""

        work()
        result = app.tasks["celery.backend_cleanup"].delay()
        until(result.ready)
        state = result.task_state
        assert (state.state, state.source) == ("SUCCESS", "celery")
        assert result.history() == []

    @pytest.mark.parametrize("place", ["threads-memory"], indirect=True)
    def test_leaves_the_chord_unlocking_task_alone(self, app, work, hear, tmp_path):
        """Nor of the task that polls for a chord where the backend cannot count its members."""
        app.conf.result_backend = f"file://{tmp_path}"
        published, heard = [], hear(signals.state_changed)

        @app.task(name="shop.member")
        def member(n):
            return n

        @app.task(name="shop.body")
        def body(numbers):
            return sum(numbers)

        def note(sender, **_):
            published.append(sender)

        work()
        before_task_publish.connect(note)
        result = chord([member.s(1), member.s(2)], body.s()).apply_async()
        assert result.get(timeout=10, interval=0.01) == 3
        before_task_publish.disconnect(note)
        assert "celery.chord_unlock" in published
        assert {change.task for change in heard} == {"shop.member", "shop.body"}

    def test_leaves_tasks_made_before_alone_until_they_are_used(self, app_with):
        """Tasks that were declared before, but not used, become stateful too."""
        app = app_with()

        @app.task
        def load():
            """Nothing."""

        setup(app)
        assert load.apply().task_state.state == "SUCCESS"


def test_setup_after_tasks_were_used_is_an_error(app_with):
    """``setup`` that comes too late says which tasks are made already."""
    app = app_with()

    @app.task(name="shop.early")
    def load():
        """Nothing."""

    load.apply()
    with pytest.raises(SetupTooLate) as raised:
        setup(app)
    assert raised.value.tasks == ("shop.early",)
    assert load.apply().state == "SUCCESS"


@pytest.mark.parametrize("task_cls", [ContextTask, SuperTask])
def test_setup_composes_with_the_apps_own_class(app, work, ended, states_of, task_cls):
    """The ``__call__`` of Flask's task class still runs around each run."""
    app.task_cls = task_cls
    setup(app)

    @app.task(bind=True, states=Import)
    def load(self):
        self.enter(Import.READING)
        return context.get()

    work()
    result = load.delay()
    ended(result)
    assert isinstance(load, task_cls)
    assert result.get() == "flask"
    assert states_of(result) == PASSED


@pytest.mark.parametrize("task_cls", [ContextTask, SuperTask])
def test_apps_own_class_is_called_in_an_eager_run_too(app, task_cls):
    """Run eagerly, the class's ``__call__`` runs around it, and the run is recorded."""
    app.task_cls = task_cls
    setup(app)

    @app.task(bind=True, states=Import)
    def load(self):
        self.enter(Import.READING)
        return context.get()

    result = load.apply()
    assert result.get() == "flask"
    assert [change.to_state for change in result.history()] == ["STARTED", "READING", "SUCCESS"]


def test_stateful_composes_with_the_apps_own_class(app, work, ended):
    """``@stateful(app)`` keeps the class that the app has."""
    app.task_cls = ContextTask

    @stateful(app)
    def load():
        return context.get()

    work()
    result = load.delay()
    assert ended(result).state == "SUCCESS"
    assert result.get() == "flask"


def test_setup_composes_with_djangos_class(app, work, ended):
    """Django's task class keeps its ``delay_on_commit``."""
    app.task_cls = "celery.contrib.django.task:DjangoTask"
    setup(app)

    @app.task
    def load():
        return 5

    work()
    assert ended(load.delay()).state == "SUCCESS"
    assert isinstance(load, DjangoTask)
    assert callable(load.delay_on_commit)


def test_class_that_overrides_call_and_calls_run(app, work, states_of):
    """A StatefulTask with a ``__call__`` of its own that calls ``run``, as Celery says, is recorded."""

    class Base(StatefulTask):
        def __call__(self, *args, **kwargs):
            token = context.set("flask")
            try:
                return self.run(*args, **kwargs)
            finally:
                context.reset(token)

    @app.task(bind=True, base=Base, states=Import)
    def load(self):
        self.enter(Import.READING)
        return context.get()

    work()
    result = load.delay()
    assert result.get(timeout=10, interval=0.01) == "flask"
    assert states_of(result) == PASSED


def test_class_that_overrides_call_and_calls_super(app, work, ended, states_of):
    """A StatefulTask with a ``__call__`` of its own that calls ``super`` is recorded."""

    class Base(StatefulTask):
        def __call__(self, *args, **kwargs):
            token = context.set("flask")
            try:
                return super().__call__(*args, **kwargs)
            finally:
                context.reset(token)

    @app.task(bind=True, base=Base, states=Import)
    def load(self):
        self.enter(Import.READING)
        return context.get()

    work()
    result = load.delay()
    ended(result)
    assert result.get() == "flask"
    assert states_of(result) == PASSED


@pytest.mark.parametrize("by", ["run", "super"])
def test_own_call_is_called_directly_too(app, by):
    """A task that is called as a function goes through the ``__call__`` of its class, as ever."""

    class Base(StatefulTask):
        def __call__(self, *args, **kwargs):
            token = context.set("flask")
            try:
                return (self.run if by == "run" else super().__call__)(*args, **kwargs)
            finally:
                context.reset(token)

    @app.task(base=Base)
    def load():
        return context.get()

    load.apply()
    assert load() == "flask"


def test_tasks_of_celery_in_the_same_app_stay_what_they_are(app, work, until):
    """A task without our base leaves no record."""

    @app.task(base=StatefulTask)
    def ours():
        return 1

    @app.task
    def theirs():
        return 2

    work()
    result = theirs.delay()
    until(result.ready)
    assert not isinstance(result, StatefulResult)
    state = ours.AsyncResult(result.id).task_state
    assert (state.state, state.source) == ("SUCCESS", "celery")


def test_users_hooks_are_called(app, work, ended, until):
    """Celery's hooks of the task's class are called as ever, with its request at hand."""
    called = []

    class Base(StatefulTask):
        def before_start(self, task_id, args, kwargs):
            called.append(("before_start", self.request.id == task_id))

        def on_success(self, retval, task_id, args, kwargs):
            called.append(("on_success", self.task_state.state))

        def on_failure(self, exc, task_id, args, kwargs, einfo):
            called.append(("on_failure", self.task_state.state))

        def after_return(self, status, retval, task_id, args, kwargs, einfo):
            called.append(("after_return", status))

    @app.task(base=Base)
    def load(fails):
        if fails:
            raise ValueError("no")

    work()
    ended(load.delay(fails=False))
    ended(load.delay(fails=True))
    until(lambda: len(called) == 6)
    assert called == [
        *(("before_start", True), ("on_success", "SUCCESS"), ("after_return", "SUCCESS")),
        *(("before_start", True), ("on_failure", "FAILURE"), ("after_return", "FAILURE")),
    ]


def test_before_start_does_not_hide_the_run(app, work, until, states_of):
    """A ``before_start`` that asks for state or progress leaves the run as recorded as any other."""

    class Base(StatefulTask):
        def before_start(self, task_id, args, kwargs):
            try:
                self.progress.set(0, 3, "starting")
            except NotRunning:
                """Better than a run without a record."""

    @app.task(bind=True, base=Base, states=Import)
    def load(self):
        self.enter(Import.READING)

    work()
    result = load.delay()
    until(result.ready)
    assert result.state == "SUCCESS"
    assert states_of(result) == PASSED


def test_before_start_may_ignore_after_it_spoke(app, work, until):
    """A ``before_start`` that reports and then raises ``Ignore`` leaves no run that seems to go on."""

    class Base(StatefulTask):
        def before_start(self, task_id, args, kwargs):
            try:
                self.progress.set(0, 3, "starting")
            except NotRunning:
                """Better than a run without an end."""
            raise Ignore

    @app.task(base=Base)
    def load():
        """Never run."""

    @app.task(base=StatefulTask)
    def after():
        """Nothing."""

    work()
    result = load.delay()
    until(after.delay().ready)
    assert until(lambda: result.task_state.state in ("PENDING", "IGNORED"))


def test_raising_before_start_is_a_recorded_failure(app, work, ended):
    """A task whose ``before_start`` raises has failed, in its record too."""

    class Base(StatefulTask):
        def before_start(self, task_id, args, kwargs):
            raise ValueError("not ready")

    @app.task(base=Base)
    def load():
        """Never run."""

    work()
    result = load.delay()
    state = ended(result)
    assert (state.state, state.error["type"]) == ("FAILURE", "ValueError")
    assert result.state == "FAILURE"


# --- direct calls --------------------------------------------------------------------------------


def test_direct_call_returns_and_leaves_no_trace(app, hear):
    """``task()`` runs here: no signal, and nothing in the store."""
    heard = [hear(signal) for signal in (signals.state_changed, signals.progressed)]

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self, n):
        self.enter(Import.READING)
        return sum(self.track(range(n)))

    assert load(4) == 6
    assert heard == [[], []]


def test_direct_call_checks_moves(app, hear):
    """A task that is called directly is refused the same moves."""
    heard = hear(signals.transition_refused)

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        seen = [self.next_states]
        self.enter(Import.IMPORTING)
        seen.append(self.next_states)
        with pytest.raises(IllegalTransition):
            self.enter(Import.READING)
        return [*seen, self.task_state.state]

    assert load() == [("READING", "IMPORTING"), (), "IMPORTING"]
    assert heard == []


def test_direct_call_inside_another_run_does_not_disturb_it(app, work, ended, states_of):
    """A task called as a function by another moves its own state, and not its caller's."""

    @app.task(bind=True, base=StatefulTask, states=Import)
    def inner(self):
        self.enter(Import.IMPORTING)
        self.progress.set(50, 60)
        return list(track([7, 8]))

    @app.task(bind=True, base=StatefulTask, states=Import)
    def outer(self):
        self.progress.set(1, 2)
        got = inner()
        self.enter(Import.READING)
        return got

    work()
    result = outer.delay()
    state = ended(result)
    assert result.get() == [7, 8]
    assert states_of(result) == PASSED
    assert (state.progress.current, state.progress.total) == (1, 2)


def test_direct_call_of_itself_goes_on_in_the_same_run(app, work, ended, states_of):
    """A task that calls itself as a function is still the same run: Celery gives it the same id."""

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self, depth):
        if depth:
            self.enter(Import.READING)
            load(depth - 1)
            self.progress.update()
        else:
            self.enter(Import.IMPORTING)
        return self.request.id

    work()
    result = load.delay(1)
    state = ended(result)
    assert result.get() == result.id
    assert states_of(result) == ["PENDING", "STARTED", "READING", "IMPORTING", "SUCCESS"]
    assert state.progress.current == 1


def test_direct_calls_keep_nothing(app):
    """What a task that is called directly says of itself is gone when it returns."""

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        self.enter(Import.READING, text="x" * 100_000)

    load()
    tracemalloc.start()
    for _ in range(50):
        load()
    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 1_000_000


def test_apply_inside_another_run_does_not_disturb_it(app, work, ended, states_of):
    """A task run eagerly inside another has a record of its own."""

    @app.task(bind=True, base=StatefulTask, states=Import)
    def inner(self):
        self.enter(Import.IMPORTING)

    @app.task(bind=True, base=StatefulTask, states=Import)
    def outer(self):
        eager = inner.apply()
        self.enter(Import.READING)
        return eager.task_state.state

    work()
    result = outer.delay()
    ended(result)
    assert result.get() == "SUCCESS"
    assert states_of(result) == PASSED


# --- ways to publish -----------------------------------------------------------------------------


def test_chosen_id(app, work, ended):
    """``apply_async(task_id=...)`` is recorded under that id, whatever is in it."""

    @app.task(base=StatefulTask)
    def load():
        """Nothing."""

    work()
    result = load.apply_async(task_id="import: 2026/01 *é")
    assert result.id == "import: 2026/01 *é"
    assert ended(result).id == "import: 2026/01 *é"


def test_pending_is_recorded_before_anybody_runs_it(app, hear):
    """Queued is not unknown: PENDING is recorded when ``delay`` returns."""
    heard = hear(signals.state_changed)

    @app.task(base=StatefulTask, name="shop.load")
    def load():
        """Never run."""

    result = load.delay()
    state = result.task_state
    assert (state.state, state.task, state.attempt) == ("PENDING", "shop.load", 0)
    assert state.queued_at is not None
    assert [change.to_state for change in heard] == ["PENDING"]
    assert load.AsyncResult("never sent").task_state.state == "UNKNOWN"


def test_misspelt_setting_is_an_error(app):
    """A setting that is none of ours is refused where it is first used, with the one it resembles."""
    app.conf.statekit_progres_interval = 1

    @app.task(base=StatefulTask)
    def load():
        """Never run."""

    with pytest.raises(InvalidSetting, match="statekit_progress_interval"):
        load.delay()


def test_message_that_was_not_sent_is_not_pending(app, monkeypatch):
    """When the broker refuses a publish, nothing says that the task is queued."""

    def refuse(*_, **__):
        raise OperationalError("no broker")

    @app.task(base=StatefulTask)
    def load():
        """Never run."""

    monkeypatch.setattr(memory.Channel, "_put", refuse)
    with pytest.raises(OperationalError):
        load.apply_async(task_id="chosen", retry=False)
    assert load.AsyncResult("chosen").task_state.state == "UNKNOWN"


def test_countdown_and_eta_say_when_it_is_due(app):
    """PENDING of a task with a countdown says when it is due."""

    @app.task(base=StatefulTask)
    def load():
        """Never run."""

    state = load.apply_async(countdown=100).task_state
    assert 99 < state.due_at - state.queued_at < 101
    assert load.delay().task_state.due_at is None


def test_retry_says_when_it_is_due(app, work, until):
    """RETRY with a countdown says when the next attempt is due, and why."""

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        raise self.retry(countdown=100, exc=OSError("no disk"))

    work()
    result = load.delay()
    state = until(lambda: (now := result.task_state).state == "RETRY" and now)
    assert 98 < state.due_at - state.updated_at < 101
    assert state.error == {"type": "OSError", "message": "no disk"}
    assert not state.final


def test_expired_task_is_revoked(app, work, ended, states_of):
    """A message that comes too late is REVOKED, in the record and for Celery."""

    @app.task(base=StatefulTask)
    def load():
        """Never run."""

    result = load.apply_async(expires=-1)
    work()
    assert ended(result).state == "REVOKED"
    assert result.state == "REVOKED"
    assert states_of(result) == ["PENDING", "REVOKED"]


def test_sent_by_name(app, work, ended, states_of):
    """``app.send_task`` records PENDING of a task that the app knows."""

    @app.task(base=StatefulTask, name="shop.sent_by_name")
    def load(n):
        return n

    app.finalize()
    result = app.send_task("shop.sent_by_name", (3,))
    assert load.AsyncResult(result.id).task_state.state == "PENDING"
    work()
    ended(load.AsyncResult(result.id))
    assert result.get() == 3
    assert states_of(load.AsyncResult(result.id)) == ["PENDING", "STARTED", "SUCCESS"]


def test_sent_with_wrong_arguments_fails(app, work, ended):
    """Arguments that do not fit are a FAILURE of the run, in the record too."""

    @app.task(base=StatefulTask, name="shop.load")
    def load(n):
        """Never run."""

    work()
    result = load.AsyncResult(app.send_task("shop.load", (1, 2, 3)).id)
    state = ended(result)
    assert (state.state, state.error["type"]) == ("FAILURE", "TypeError")


def test_published_by_beat(app, work, ended):
    """An entry of beat's schedule is recorded as any other publish, with its client."""

    @app.task(base=StatefulTask, name="shop.load")
    def load(n):
        return n

    work()
    scheduler = Scheduler(app, lazy=True)
    entry = ScheduleEntry(
        "every now and then",
        "shop.load",
        schedule=schedule(10, app=app),
        args=(4,),
        options={"client_id": "c-1"},
        app=app,
    )
    sent = scheduler.apply_async(entry, advance=False)
    result = load.AsyncResult(sent.id)
    assert ended(result).client_id == "c-1"
    assert result.get() == 4
    assert result.history()[0].to_state == "PENDING"


def test_task_that_the_worker_does_not_know_is_a_failure(app, app_with, work, until, states_of):
    """A message that no worker can run ends as FAILURE: it is thrown away."""
    producer = app_with()
    producer.conf.task_default_queue = app.conf.task_default_queue

    @app.task(base=StatefulTask, shared=False)
    def known():
        """Makes the worker's app one of ours."""

    @producer.task(base=StatefulTask, name="shop.unknown", shared=False)
    def unknown():
        """Never run."""

    result = unknown.delay()
    work()
    # Celery's result says so first: the worker stores it, and tells us afterwards.
    state = until(lambda: (now := result.task_state).final and now.source == "record" and now)
    assert (state.state, state.error["type"]) == ("FAILURE", "NotRegistered")
    assert states_of(result) == ["PENDING", "FAILURE"]


def test_result_that_cannot_be_sent_is_a_failure(app, work, ended, states_of):
    """A return value that Celery cannot serialise is a FAILURE, never a SUCCESS first."""

    @app.task(base=StatefulTask)
    def load():
        return object()

    work()
    result = load.delay()
    assert ended(result).state == "FAILURE"
    assert states_of(result) == ["PENDING", "STARTED", "FAILURE"]
    assert result.state == "FAILURE"


def test_ignored_result_leaves_nothing_in_the_backend(app, work, gate, until, states_of):
    """With ``ignore_result`` the record is kept, and Celery's backend stores nothing."""
    go = gate()

    @app.task(bind=True, base=StatefulTask, states=Import, ignore_result=True)
    def load(self):
        self.enter(Import.READING)
        self.progress.set(1, 2)
        go.wait()
        return 5

    work()
    result = load.delay()
    until(lambda: (now := result.task_state).progress and now.progress.current == 1)
    assert result.state == "PENDING"
    go.set()
    state = until(lambda: (now := result.task_state).final and now)
    assert (state.state, state.progress.current) == ("SUCCESS", 1)
    assert states_of(result) == PASSED
    assert (result.state, result.result) == ("PENDING", None)


def test_ignored_result_of_one_call(app, work, until):
    """``apply_async(ignore_result=True)`` keeps the record, and stores nothing for Celery."""

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.update_state(state="LOADING", meta={"page": 1})
        raise ValueError("no")

    work()
    result = load.apply_async(ignore_result=True)
    state = until(lambda: (now := result.task_state).final and now)
    assert (state.state, state.reason) == ("FAILURE", "ValueError: no")
    if CELERY >= (5, 6, 3):
        assert result.state == "PENDING"
    else:  # it stores a failure though the call ignores it (celery 5.6.0 app/trace.py:168)
        until(lambda: result.state == "FAILURE")


def test_who_changes_celerys_class_later_is_heard(app, monkeypatch):
    """Sentry, started when the tasks are made already, sees what is sent by name."""

    @app.task(base=StatefulTask)
    def load():
        pass

    app.finalize()
    send, sent = Celery.send_task, []

    def send_task(self, name, *args, **options):
        sent.append(name)
        return send(self, name, *args, **options)

    monkeypatch.setattr(Celery, "send_task", send_task)
    result = app.send_task(load.name)
    assert sent == [load.name]
    assert load.AsyncResult(result.id).task_state.state == "PENDING"


def test_disabled_backend_keeps_the_record(work, app, until):
    """An app without a result backend has records all the same."""
    app.conf.result_backend = "disabled"

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        self.enter(Import.READING)
        return object()

    work()
    result = load.delay()
    state = until(lambda: (now := result.task_state).final and now)
    assert state.state == "SUCCESS"
    assert load.AsyncResult("never sent").task_state.state == "UNKNOWN"
