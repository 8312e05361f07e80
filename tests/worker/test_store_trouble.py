"""A store that fails, hangs or loses its replies: what tasks and publishers notice of it."""

from __future__ import annotations

import pytest
from celery import signals as celery_signals
from celery.backends.cache import CacheBackend

from celery_statekit import StatefulTask, States, signals
from celery_statekit.errors import CorruptRecord, PayloadTooLarge, StoreUnavailable
from celery_statekit.settings import Settings
from celery_statekit.testing import FailsAt, LosesReplies


class Import(States):
    READING = "Reading the file"
    IMPORTING = "Importing rows"


PASSED = ["PENDING", "STARTED", "READING", "IMPORTING", "SUCCESS"]
ALWAYS = 10**9


@pytest.fixture
def put(app):
    """Put a store that fails around the app's store, before anything has used it."""

    def replace(make, *args, **options):
        settings = Settings.of(app)
        settings.store = make(settings.store, *args, **options)
        return settings.store

    return replace


@pytest.fixture
def got():
    """What Celery's result says, waited for."""
    return lambda result: result.get(timeout=10, interval=0.005)


class Around:
    """A store that is another one: what a test changes of it is the test's."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        return getattr(self._store, name)


# --- down ----------------------------------------------------------------------------------------


def test_task_runs_to_its_end_without_a_store(app, work, put, got):
    """With the store down tasks are published, run, report, and end for Celery."""
    put(FailsAt, 1, ALWAYS)

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        for _ in self.track(range(3)):
            pass
        self.progress.set(3, 3, "done")
        return "loaded"

    work()
    assert got(load.delay()) == "loaded"


def test_failure_and_retry_work_without_a_store(app, work, put, got):
    """With the store down a task retries, and fails, for Celery as ever."""
    put(FailsAt, 1, ALWAYS)
    attempts = []

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        attempts.append(self.request.retries)
        if len(attempts) == 1:
            raise self.retry(countdown=0)
        raise ValueError("no")

    work()
    with pytest.raises(ValueError, match="no"):
        got(load.delay())
    assert attempts == [0, 1]


def test_replace_works_without_a_store(app, work, put, got):
    """With the store down a task replaces itself as ever."""
    put(FailsAt, 1, ALWAYS)

    @app.task(base=StatefulTask)
    def other(n):
        return n + 1

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        raise self.replace(other.s(1))

    work()
    assert got(load.delay()) == 2


def test_enter_says_that_the_store_is_down(app, work, put, got):
    """``enter`` never fails silently: it raises ``StoreUnavailable``."""
    put(FailsAt, 1, ALWAYS)
    raised = []

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        with pytest.raises(StoreUnavailable) as error:
            self.enter(Import.READING)
        raised.append(error.value)
        return "went on"

    work()
    assert got(load.delay()) == "went on"
    assert "memory" in raised[0].store or "sqlite" in raised[0].store


def test_reading_says_that_the_store_is_down(app, put):
    """A reader gets ``StoreUnavailable``, never a task that seems unknown."""
    put(FailsAt, 1, ALWAYS)

    @app.task(base=StatefulTask)
    def load():
        """Never run."""

    result = load.AsyncResult("some-id")
    for read in (
        lambda: result.task_state,
        result.history,
        lambda: next(result.watch(timeout=1)),
        lambda: result.wait(until="SUCCESS", timeout=1),
    ):
        with pytest.raises(StoreUnavailable):
            read()


def test_next_call_works_when_the_store_is_back(app, work, put, got, states_of):
    """A run whose start could not be recorded is recorded from its next write on."""
    store = put(FailsAt, 1, ALWAYS)

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        with pytest.raises(StoreUnavailable):
            self.enter(Import.READING)
        store.until = 0
        self.enter(Import.IMPORTING)

    work()
    result = load.delay()
    got(result)
    state = result.task_state
    assert (state.state, state.attempt) == ("SUCCESS", 1)
    assert states_of(result) == ["STARTED", "IMPORTING", "SUCCESS"]


@pytest.mark.parametrize("n", range(1, 9))
def test_one_failed_call_loses_no_end(app, work, put, got, until, n):
    """Whichever single call fails, the task ends for Celery, and its record says so in the end."""
    app.conf.statekit_progress_interval = 60.0
    put(FailsAt, n)

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.progress.set(1, 2)
        return "loaded"

    work()
    result = load.delay()
    assert got(result) == "loaded"

    def final():
        try:
            state = result.task_state
            # Until the end is written, Celery's result is what is known.
            return state.final and state.source == "record" and state
        except StoreUnavailable:
            return None

    state = until(final)
    assert (state.state, state.progress.current) == ("SUCCESS", 1)


def test_damaged_record_does_not_stop_the_task(app, work, put, got):
    """A record that cannot be read keeps no task from running, and is never taken for none."""

    class Damaged(Around):
        def read(self, key):
            raise CorruptRecord(key, "on purpose")

    put(Damaged)

    @app.task(base=StatefulTask)
    def load():
        return "loaded"

    work()
    result = load.delay()
    assert got(result) == "loaded"
    with pytest.raises(CorruptRecord):
        _ = result.task_state


# --- slow ----------------------------------------------------------------------------------------


def test_publish_does_not_wait_for_a_store_that_hangs(app, put, gate, until):
    """``delay`` sends the message although the store does not answer; PENDING comes later."""
    asked, answer, sent = gate(), gate(), []

    class Hangs(Around):
        def write(self, record, **options):
            asked.set()
            answer.wait(60)
            return self._store.write(record, **options)

    store = put(Hangs)

    @app.task(base=StatefulTask)
    def load():
        """Never run."""

    def note(headers, **_):
        sent.append(headers["id"])

    celery_signals.after_task_publish.connect(note)
    result = load.delay()
    celery_signals.after_task_publish.disconnect(note)
    assert asked.is_set()
    assert sent == [result.id]
    assert store._store.history(Settings.of(app).watcher.key(result.id)) == []
    answer.set()
    until(lambda: result.task_state.state == "PENDING")


def test_reporting_does_not_wait_for_a_store_that_hangs(app, work, put, gate, ended):
    """A loop goes on reporting while the store does not answer."""
    hanging, answer = gate(), gate()

    class Hangs(Around):
        def write(self, record, **options):
            if record.document.get("progress"):
                hanging.set()
                answer.wait(60)
            return self._store.write(record, **options)

    put(Hangs)

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.progress.set(1, 9)
        assert hanging.wait()
        for _ in range(7):
            self.progress.update()
        answer.set()

    work()
    assert ended(load.delay()).progress.current == 8


def test_late_pending_does_not_overwrite_the_run(app, work, put, gate, ended, until, states_of):
    """PENDING that was held up until the task runs is not written over it."""
    held, go = gate(), gate()

    class HoldsTheFirst(Around):
        first = True

        def write(self, record, **options):
            if self.first:
                self.first = False
                held.wait(60)
            return self._store.write(record, **options)

    put(HoldsTheFirst)

    @app.task(base=StatefulTask)
    def load():
        held.set()
        go.wait()

    work()
    result = load.delay()
    until(lambda: result.task_state.state == "STARTED")
    go.set()
    assert ended(result).state == "SUCCESS"
    assert states_of(result) == ["STARTED", "SUCCESS"]


# --- lost replies --------------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "applied"), [(1, True), (2, True), (2, False)])
def test_lost_replies_are_settled(app, work, put, ended, states_of, hear, every, applied):
    """A write whose reply, or request, was lost happens once: one change, one signal."""
    heard = hear(signals.state_changed)
    store = put(LosesReplies, every, applied=applied)

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        self.enter(Import.READING)
        self.enter(Import.IMPORTING)
        self.progress.set(1, 2)

    work()
    result = load.delay()
    state = ended(result)
    assert (state.state, state.progress.current) == ("SUCCESS", 1)
    assert states_of(result) == PASSED
    assert [change.to_state for change in heard] == PASSED
    assert [change.number for change in result.history()] == [1, 2, 3, 4, 5]
    assert store.lost >= 2


# --- too much ------------------------------------------------------------------------------------


def test_progress_that_is_too_large_does_not_lose_the_result(app, work, got, until):
    """Details larger than a record may be are dropped; the task ends as it would without."""

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.progress.set(1, 2, details={"blob": "x" * 400_000})
        return "loaded"

    work()
    result = load.delay()
    assert got(result) == "loaded"
    assert until(lambda: result.task_state.final and result.task_state).state == "SUCCESS"


@pytest.mark.parametrize(
    "odd", [{"blob": "x" * 400_000}, {"loss": float("nan")}, {"file": "caf\udce9.csv"}]
)
def test_old_meta_fails_no_task(app, work, ended, odd):
    """What Celery's backend has always taken is taken: too large, NaN, or with a lone surrogate."""

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.update_state(state="PROGRESS", meta={**odd, "current": 9, "total": 10})

    work()
    state = ended(load.delay())
    assert (state.state, state.progress.current, state.progress.total) == ("SUCCESS", 9, 10)


def test_detail_that_is_too_large_is_refused(app, work, ended, states_of):
    """``enter`` with a detail larger than a record may be raises, and changes nothing."""

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        with pytest.raises(PayloadTooLarge):
            self.enter(Import.READING, blob="x" * 400_000)
        self.enter(Import.IMPORTING)

    work()
    result = load.delay()
    assert ended(result).state == "SUCCESS"
    assert states_of(result) == ["PENDING", "STARTED", "IMPORTING", "SUCCESS"]


# --- Celery's backend ----------------------------------------------------------------------------


def test_mirror_that_fails_does_not_fail_the_task(app, work, got, monkeypatch, gate):
    """When Celery's result backend cannot store PROGRESS, the run goes on."""
    refused, go = gate(), gate()
    store_result = CacheBackend.store_result

    def refuse(self, task_id, result, state, *args, **kwargs):
        if state == "PROGRESS":
            refused.set()
            raise ConnectionError("on purpose")
        return store_result(self, task_id, result, state, *args, **kwargs)

    monkeypatch.setattr(CacheBackend, "store_result", refuse)

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.progress.set(1, 2)
        go.wait()
        return "loaded"

    work()
    result = load.delay()
    assert refused.wait()
    go.set()
    assert got(result) == "loaded"
    assert result.task_state.progress.current == 1
