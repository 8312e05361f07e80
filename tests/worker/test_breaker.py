"""A store that is away for long: what it costs tasks and publishers, and what is told of it."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, suppress
from functools import partial

import pytest

from celery_statekit import StatefulTask, States, flusher
from celery_statekit.attempt import Attempt
from celery_statekit.breaker import Breaker, this_thread
from celery_statekit.errors import (
    AmbiguousWrite,
    AttemptEnded,
    StaleAttempt,
    StateRegressed,
    StoreFull,
    StoreUnavailable,
)
from celery_statekit.settings import Settings
from celery_statekit.stores import SQLiteStore, open_store
from celery_statekit.testing import FailsAt, ManualClock

ALWAYS = 10**9


class Steps(States):
    FIRST = "First"
    SECOND = "Second"
    THIRD = "Third"


@pytest.fixture
def put(app):
    """Put a store around the app's store, before anything has used it."""

    def replace(make, *args, **options):
        settings = Settings.of(app)
        settings.store = make(settings.store, *args, **options)
        return settings.store

    return replace


class Around:
    """A store that is another one: what a test changes of it is the test's."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        return getattr(self._store, name)


# --- the breaker ---------------------------------------------------------------------------------


class Server:
    """A store's server, as far as a breaker sees it."""

    def __init__(self):
        self.error = None
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self.error is not None:
            raise self.error
        return "written"


@pytest.fixture
def server():
    """A server that works."""
    return Server()


@pytest.fixture
def clock():
    """The breaker's clock."""
    return ManualClock()


@pytest.fixture
def breaker(clock):
    """A breaker whose pauses are 0.25, 0.5, 1, ... 5 seconds."""
    return Breaker("redis://shop", clock=clock, jitter=lambda _, high: high)


@pytest.fixture
def in_background(monkeypatch):
    """Nobody waits for this thread."""
    monkeypatch.setattr(this_thread, "in_background", True)


@pytest.mark.parametrize("error", [StoreUnavailable, StoreFull, AmbiguousWrite])
def test_one_failure_opens_it(breaker, server, error):
    """After a call that failed the next ones fail at once, and say since when and why."""
    server.error = error("redis://shop", "no answer")
    with pytest.raises(error):
        breaker.call(server)
    with pytest.raises(StoreUnavailable, match=r"away for 0\.0 s \(no answer\)") as caught:
        breaker.call(server)

    assert caught.value.again == 0.25
    assert server.calls == 1
    assert breaker.is_open


def test_what_is_not_the_stores_fault_does_not_open_it(breaker):
    """A refused move says nothing about the store."""

    def refuse():
        raise AttemptEnded("shop.load", "t-1", "SUCCESS")

    with pytest.raises(AttemptEnded):
        breaker.call(refuse)
    assert not breaker.is_open


@pytest.mark.usefixtures("in_background")
def test_the_pause_grows_and_one_success_closes_it(breaker, server, clock):
    """It asks after 0.25 s, then after twice as long each time, at most 5 s; then all pass."""
    server.error = StoreUnavailable("redis://shop", "refused")
    with pytest.raises(StoreUnavailable):
        breaker.call(server)
    for number, pause in enumerate([0.25, 0.5, 1, 2, 4, 5, 5], 1):
        clock.advance(pause - 0.01)
        with pytest.raises(StoreUnavailable):
            breaker.call(server)
        assert server.calls == number
        clock.advance(0.01)
        with pytest.raises(StoreUnavailable, match=r"refused$"):
            breaker.call(server)
        assert server.calls == number + 1
    server.error = None
    clock.advance(5)

    assert breaker.call(server) == "written"
    assert not breaker.is_open
    assert breaker.call(server) == "written"


@pytest.mark.usefixtures("in_background")
def test_one_asks_at_a_time(breaker, server, clock):
    """While one finds out whether the store is back, the others fail at once."""
    server.error = StoreUnavailable("redis://shop", "refused")
    with pytest.raises(StoreUnavailable):
        breaker.call(server)
    clock.advance(1)

    def ask():
        assert breaker.refuses
        with pytest.raises(StoreUnavailable, match="not asked before"):
            breaker.call(server)
        return "back"

    assert not breaker.refuses
    assert breaker.call(ask) == "back"
    assert server.calls == 1


def test_who_is_waited_for_asks_last(breaker, server, clock, monkeypatch):
    """A call that holds up a task finds out only where the background has not for a while."""
    server.error = StoreUnavailable("redis://shop", "refused")
    with pytest.raises(StoreUnavailable):
        breaker.call(server)
    clock.advance(0.25)
    with pytest.raises(StoreUnavailable, match="not asked before"):
        breaker.call(server)
    monkeypatch.setattr(this_thread, "in_background", True)
    with pytest.raises(StoreUnavailable, match=r"refused$"):
        breaker.call(server)
    monkeypatch.setattr(this_thread, "in_background", False)
    clock.advance(1)

    with pytest.raises(StoreUnavailable, match=r"refused$"):
        breaker.call(server)
    assert server.calls == 3


def test_urgent_calls_are_tried(breaker, server):
    """They pass an open breaker, and their success closes it."""
    server.error = StoreUnavailable("redis://shop", "refused")
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match=r"refused$"):
            breaker.call(server, urgent=True)
    server.error = None

    assert breaker.call(server, urgent=True) == "written"
    assert not breaker.is_open


@pytest.mark.usefixtures("in_background")
def test_a_read_does_not_heal(breaker, server, clock):
    """A store that is full can be read all the time."""
    server.error = StoreFull("redis://shop", "no room")
    with pytest.raises(StoreFull):
        breaker.call(server)
    server.error = None
    clock.advance(1)

    assert breaker.call(server, reads=True) == "written"
    assert breaker.is_open
    assert breaker.call(server) == "written"
    assert not breaker.is_open


@pytest.mark.usefixtures("in_background")
def test_it_is_logged_once_when_it_opens_and_once_when_it_heals(breaker, server, clock, caplog):
    """With how long it was away, and how many writes were skipped."""
    server.error = StoreUnavailable("redis://shop", "refused")
    for _ in range(5):
        with suppress(StoreUnavailable):
            breaker.call(server)
    breaker.skip()
    server.error = None
    clock.advance(12.5)
    breaker.call(server)

    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "refused" in said[0]
    assert said[1] == "redis://shop is back after 12.5 s; 5 writes were skipped"


@pytest.mark.usefixtures("in_background")
def test_a_fork_while_somebody_asks(breaker, server, clock):
    """A child forked while a thread held the breaker, or asked, uses it as any other."""
    server.error = StoreUnavailable("redis://shop", "refused")
    with pytest.raises(StoreUnavailable):
        breaker.call(server)
    clock.advance(1)
    server.error = None

    def ask():
        with breaker._lock:
            child = os.fork()
        if child == 0:
            os._exit(breaker.call(server) != "written")
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)

    assert breaker.call(ask) == 0


# --- tasks and publishers ------------------------------------------------------------------------


def test_a_run_asks_a_store_that_is_away_once(app, work, put):
    """What a run and its publisher wait for is one failed call, however much they write."""
    asked = []

    class Away(Around):
        def _away(self, *_, **__):
            if not this_thread.in_background:
                asked.append(threading.current_thread().name)
            raise StoreUnavailable("shop", "on purpose")

        read = write = delete = history = _away

    put(Away)
    clock = ManualClock()
    Settings.of(app).tracker.breaker._clock = clock

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.progress.set(1, 2)
        return "loaded"

    work()
    results = [load.delay() for _ in range(20)]
    assert [result.get(timeout=10, interval=0.005) for result in results] == ["loaded"] * 20
    # What is left is a worker's look at its start; nobody else has asked but the background.
    assert len(asked) <= 1


def test_nothing_waits_for_a_store_that_hangs_again(app, put, gate, until):
    """While a call hangs, one publish waits a moment for it, and no other."""
    answer, waited = gate(), []

    class Hangs(Around):
        def write(self, record, **options):
            answer.wait(60)
            return self._store.write(record, **options)

    put(Hangs)

    @app.task(base=StatefulTask)
    def load():
        """Never run."""

    wait = threading.Event.wait

    class Waits(threading.Event):
        def wait(self, timeout=None):
            waited.append(timeout)
            return wait(self, timeout)

    background = flusher.flusher()
    call = flusher._Call
    flusher._Call = lambda *args, **options: call(*args, **options, tried=Waits())
    try:
        results = [load.delay() for _ in range(50)]
    finally:
        flusher._Call = call
    assert waited == [0.25]
    answer.set()
    until(lambda: all(result.task_state.state == "PENDING" for result in results))
    assert not background._calls


def test_publishing_with_an_open_breaker_hands_nothing_on(app, put, monkeypatch):
    """While the breaker is open a publish does not even ask the background to write."""
    put(FailsAt, 1, ALWAYS)

    @app.task(base=StatefulTask)
    def load():
        """Never run."""

    breaker = Settings.of(app).tracker.breaker
    breaker._clock = ManualClock()
    with pytest.raises(StoreUnavailable):
        Settings.of(app).tracker.queue("t-1", load.name)

    def refuse(*_, **__):
        raise AssertionError

    monkeypatch.setattr(flusher.Flusher, "call", refuse)
    for _ in range(100):
        load.delay()
    assert breaker._skipped == 100


def test_ends_are_written_when_the_store_is_back(app, work, put, until, states_of, caplog):
    """Of each task that ended meanwhile the record tells the truth after a while."""
    caplog.set_level(logging.WARNING, "celery_statekit")
    store = put(FailsAt, 1, ALWAYS)

    @app.task(base=StatefulTask)
    def load(n):
        if n % 2:
            raise ValueError(n)
        return n

    work()
    results = [load.delay(n) for n in range(20)]
    for result in results:
        result.get(timeout=10, interval=0.005, propagate=False)
    store.until = 0

    def recorded(result):
        state = result.task_state
        return state.final and state.source == "record" and state

    ends = [until(lambda result=result: recorded(result)).state for result in results]
    assert ends == ["SUCCESS", "FAILURE"] * 10
    assert states_of(results[0]) == ["STARTED", "SUCCESS"]
    said = [r.getMessage() for r in caplog.records if r.name == "celery_statekit.breaker"]
    assert len(said) == 2
    assert "is back after" in said[1]
    others = {r.name for r in caplog.records if r.name.startswith("celery_statekit")}
    assert others == {"celery_statekit.breaker", "celery_statekit.listeners"}


def test_enter_tries_a_store_that_seems_away(app, work, put, ended):
    """``enter`` passes an open breaker, and heals it."""
    store = put(FailsAt, 1, ALWAYS)
    breaker = Settings.of(app).tracker.breaker
    breaker._clock = ManualClock()

    @app.task(bind=True, base=StatefulTask, states=Steps)
    def load(self):
        with pytest.raises(StoreUnavailable, match="on purpose"):
            self.enter(Steps.FIRST)
        assert breaker.is_open
        store.until = 0
        self.enter(Steps.SECOND)
        assert not breaker.is_open
        return "went on"

    work()
    result = load.delay()
    assert result.get(timeout=10, interval=0.005) == "went on"
    assert ended(result).state == "SUCCESS"


def test_a_locked_file_ends_no_task_and_loses_no_end(app, work, until, tmp_path):
    """While another program holds the SQLite file locked, tasks end; their records follow."""
    path = tmp_path / "locked.db"
    Settings.of(app).store = SQLiteStore(path, timeout=0.05)

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.progress.set(1, 2)
        return "loaded"

    work()
    with closing(sqlite3.connect(path)) as lock:
        Settings.of(app).store.read("statekit:task:none")
        lock.execute("BEGIN EXCLUSIVE")
        results = [load.delay() for _ in range(5)]
        for result in results:
            assert result.get(timeout=10, interval=0.005) == "loaded"
        lock.rollback()
    for result in results:
        until(lambda result=result: (s := result.task_state).final and s.source == "record")


def test_a_server_that_hangs_ends_no_task_and_loses_no_end(app, work, own_redis, until, caplog):
    """While Redis is stopped tasks are sent, run and end, ``enter`` says so; the records follow."""
    server = own_redis()
    Settings.of(app).store = open_store(server.url, timeout=0.3)
    told = []

    @app.task(bind=True, base=StatefulTask, states=Steps)
    def load(self, n):
        self.progress.set(n, 9)
        if not n:
            with pytest.raises((StoreUnavailable, AmbiguousWrite)) as caught:
                self.enter(Steps.FIRST)
            told.append(caught.value)
        return n

    work()
    server.pause()
    results = [load.delay(n) for n in range(9)]
    assert [result.get(timeout=30, interval=0.005) for result in results] == [*range(9)]
    assert len(told) == 1
    server.resume()

    def recorded(result):
        with suppress(StoreUnavailable):
            state = result.task_state
            return state.final and state.source == "record" and state
        return None

    for result in results:
        assert until(lambda result=result: recorded(result)).state == "SUCCESS"
    said = [r.getMessage() for r in caplog.records if r.name == "celery_statekit.breaker"]
    assert len(said) == 2


def test_a_server_that_forgets_is_told_of(app, work, ended, own_redis):
    """Redis that is killed and comes back empty: ``enter`` says so once, and the run goes on."""
    server = own_redis()
    Settings.of(app).store = open_store(server.url, timeout=5.0)

    @app.task(bind=True, base=StatefulTask, states=Steps)
    def load(self):
        self.enter(Steps.FIRST)
        server.kill()
        with pytest.raises((StoreUnavailable, AmbiguousWrite)):
            self.enter(Steps.SECOND)
        server.start()
        with pytest.raises(StateRegressed, match="holds nothing"):
            self.enter(Steps.SECOND)
        self.enter(Steps.SECOND)

    work()
    result = load.delay()
    result.get(timeout=30, interval=0.005)
    state = ended(result)
    assert (state.state, state.attempt) == ("SUCCESS", 1)
    assert [change.to_state for change in result.history()] == ["SECOND", "SUCCESS"]


# --- what waits is bounded -----------------------------------------------------------------------


@pytest.fixture
def background():
    """A flusher of the test's own."""
    return flusher.Flusher()


def test_pending_that_piles_up_is_dropped_and_counted(background, gate, until, caplog):
    """While a call hangs others wait behind it, up to a bound; the thread goes on afterwards."""
    hangs, done = gate(), []
    began = threading.Event()

    def hang():
        began.set()
        hangs.wait(60)

    background.call(hang, 0)
    assert began.wait(10)
    for number in range(flusher.WAITING + 50):
        background.call(lambda number=number: done.append(number), 0)
    hangs.set()
    until(lambda: not background._calls)
    assert background.call(lambda: None, 10)
    assert done == [*range(flusher.WAITING)]
    assert [record.getMessage() for record in caplog.records] == [
        f"{flusher.WAITING} PENDING writes wait for the store: no more are kept",
        "nothing waits for the store now; 50 PENDING writes were dropped",
    ]


def test_ends_that_pile_up_are_dropped_and_counted(background, monkeypatch, caplog):
    """At most so many wait for the store; when it is back it is said how many were dropped."""
    away = True

    def write():
        if away:
            raise StoreUnavailable("shop", "on purpose", 60.0)

    monkeypatch.setattr(flusher, "ENDS_WAITING", 100)
    for _ in range(150):
        background.insist(write)
    assert len(background._insisted) == 100
    away = False
    background.end(10)
    assert [record.getMessage() for record in caplog.records] == [
        "100 ends wait for the store: no more are kept",
        "nothing waits for the store now; 50 ends were dropped",
    ]


def test_thousands_of_ends_are_kept(background):
    """A store that is away for long costs no end of a busy worker."""
    done = []
    for number in range(10_000):
        background.insist(partial(done.append, number))
    background.end(30)
    assert sorted(done) == [*range(10_000)]


def test_a_slow_receiver_delays_no_other_run(background, gate):
    """Progress of other runs is written while somebody takes his time to hear of it."""
    told, go = gate(), gate()
    written = threading.Semaphore(0)

    class Run:
        interval = 0.001

        def flush(self):
            written.release()

    class Slow(Run):
        def flush(self):
            def hear():
                told.set()
                go.wait(60)

            return hear

    slow, run = Slow(), Run()
    background.watch(slow)
    assert told.wait()
    background.watch(run)
    for _ in range(3):
        assert written.acquire(timeout=10)
    background.forget(slow)
    background.forget(run)
    go.set()


def test_receivers_are_told_in_order(background):
    """What is told is told in the order in which it was written."""
    heard, done = [], threading.Event()
    for number in range(100):
        background.tell(lambda number=number: heard.append(number))
    background.tell(done.set)
    assert done.wait(10)
    assert heard == [*range(100)]


def test_the_end_of_the_process_is_a_last_chance(background):
    """What still waits is tried once more, past an open breaker, and not waited for for ever."""
    tried = []

    def write():
        tried.append(this_thread.last_chance)
        if not this_thread.last_chance:
            raise StoreUnavailable("shop", "away", 3600.0)

    background.insist(write)
    assert background.call(lambda: None, 10)
    while not tried:
        threading.Event().wait(0.005)
    background.end()
    assert tried == [False, True]


PROGRAM = """
import sys, threading
from celery import Celery
from celery_statekit import StatefulTask
from celery_statekit.settings import Settings
from celery_statekit.testing import FailsAt

app = Celery("shop", broker="memory://", backend="cache+memory://")
app.conf.statekit_store = sys.argv[1]
settings = Settings.of(app)
settings.store = FailsAt(settings.store, 1, 10**9)

@app.task(base=StatefulTask)
def load():
    pass

load.apply(task_id="t-1")
settings.store.until = 0 if sys.argv[2] == "back" else 10**9
"""


@pytest.mark.parametrize("store", ["back", "away"])
def test_a_process_that_ends_writes_what_it_can(tmp_path, store):
    """At its exit an end that waited is written, or it is said that it is not; it never hangs."""
    url = f"sqlite:///{tmp_path}/states.db"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, url, store],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    with closing(SQLiteStore(tmp_path / "states.db")) as states:
        record = states.read("statekit:task:t-1")
    if store == "back":
        assert record is not None
        assert record.document["state"] == "SUCCESS"
    else:
        assert record is None
        assert "1 ends are not recorded" in done.stderr


# --- a store that goes back ----------------------------------------------------------------------


@pytest.fixture
def go_back(app):
    """Make the store what it was when it was ``kept``, by its own reads and writes."""
    store = Settings.of(app).store

    class Backup:
        def keep(self, id):
            self.key = Settings.of(app).tracker.key(id)
            self.record = store.read(self.key)
            self.changes = store.history(self.key)

        def restore(self):
            store.delete(self.key)
            if self.record is not None:
                assert store.write(self.record, expect=None, changes=self.changes)

        def lose(self):
            store.delete(self.key)

    return Backup()


@pytest.mark.parametrize("how", ["restore", "lose"])
def test_enter_says_once_that_the_store_went_back(app, work, ended, states_of, go_back, how):
    """It is not entered; the next call goes on from what the run knows, and the record is whole."""
    raised = []

    @app.task(bind=True, base=StatefulTask, states=Steps)
    def load(self):
        go_back.keep(self.request.id)
        self.enter(Steps.FIRST)
        held = self.task_state.version
        getattr(go_back, how)()
        with pytest.raises(StateRegressed) as caught:
            self.enter(Steps.SECOND)
        raised.append((held, caught.value))
        assert self.task_state.state == "FIRST"
        self.enter(Steps.SECOND)
        self.enter(Steps.THIRD)

    work()
    result = load.delay()
    state = ended(result)
    held, error = raised[0]
    assert (error.held, error.found) == (held, held - 1 if how == "restore" else 0)
    assert (state.state, state.attempt) == ("SUCCESS", 1)
    assert states_of(result)[-3:] == ["SECOND", "THIRD", "SUCCESS"]
    assert [change.number for change in result.history()][-3:] == [4, 5, 6]


@pytest.mark.parametrize("how", ["restore", "lose"])
def test_the_end_puts_back_what_the_store_lost(app, work, ended, go_back, how, caplog):
    """Lifecycle writes raise nothing: the record says what the run knows, and it is logged."""

    @app.task(bind=True, base=StatefulTask, states=Steps)
    def load(self):
        go_back.keep(self.request.id)
        self.progress.set(5, 9)
        self.enter(Steps.FIRST)
        getattr(go_back, how)()

    work()
    state = ended(load.delay())
    assert (state.state, state.attempt, state.progress.current) == ("SUCCESS", 1, 5)
    assert state.started_at is not None
    assert any("the store went back" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("how", ["restore", "lose"])
def test_a_watcher_says_that_the_store_went_back(app, work, until, gate, go_back, how):
    """Whoever watches is told, never shown an older state as news; a new watch begins there."""
    entered, go = gate(), gate()

    @app.task(bind=True, base=StatefulTask, states=Steps)
    def load(self):
        go_back.keep(self.request.id)
        self.enter(Steps.FIRST)
        entered.set()
        go.wait()

    work()
    result = load.delay()
    assert entered.wait()
    seen = []
    with pytest.raises(StateRegressed) as caught:
        for state in result.watch(timeout=10):
            seen.append(state.state)
            if state.state == "FIRST":
                getattr(go_back, how)()
    assert seen[-1] == "FIRST"
    assert caught.value.found < caught.value.held
    if how == "restore":
        assert next(result.watch(timeout=10)).state == "STARTED"
    go.set()
    until(lambda: result.task_state.state == "SUCCESS")


def test_of_two_runs_on_a_store_that_lost_its_records_the_later_counts(app):
    """A run that began since, under the same number, is the current one; the other is stale."""

    @app.task(base=StatefulTask, states=Steps)
    def load():
        """Never run."""

    tracker = Settings.of(app).tracker
    first = Attempt.of(tracker, "t-1", load.name, load._flow, worker="a:1")
    first.claim()
    tracker.store.delete(tracker.key("t-1"))
    second = Attempt.of(tracker, "t-1", load.name, load._flow, worker="b:2")
    second.claim()

    for late in (lambda: first.enter("FIRST"), lambda: first.leave("SUCCESS"), first.confirm):
        with pytest.raises(StaleAttempt):
            late()
    second.enter("FIRST")
    second.leave("SUCCESS")
    assert [change.worker for change in tracker.store.history(tracker.key("t-1"))] == ["b:2"] * 3


def test_an_end_that_was_recorded_since_stands(app):
    """What another recorded as the end on an empty store is not undone by the run."""

    @app.task(base=StatefulTask, states=Steps)
    def load():
        """Never run."""

    tracker = Settings.of(app).tracker
    run = Attempt.of(tracker, "t-1", load.name, load._flow)
    run.claim()
    tracker.store.delete(tracker.key("t-1"))
    tracker.end_from_outside("t-1", load.name, "REVOKED", reason="terminated")

    with pytest.raises(AttemptEnded):
        run.leave("SUCCESS")
    assert tracker.read("t-1").state == "REVOKED"


def test_forgetting_a_task_that_runs_is_no_loss(app, work, ended, gate):
    """``delay().forget()`` keeps the record of what has not ended; so no run loses its own."""
    begun, go = gate(), gate()

    @app.task(bind=True, base=StatefulTask, states=Steps)
    def load(self):
        begun.set()
        go.wait()
        self.enter(Steps.FIRST)

    work()
    result = load.delay()
    assert begun.wait()
    result.forget()
    go.set()
    assert ended(result).state == "SUCCESS"
    result.forget()
    assert not result.task_state.known
