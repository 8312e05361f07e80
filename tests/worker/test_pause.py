"""Pause: a run waits in place at its next state call, until it is resumed, cancelled or fenced."""

from __future__ import annotations

import threading
import time
import uuid

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError

from celery_statekit import Asked, StatefulResult, StatefulTask, States
from celery_statekit.attempt import Attempt
from celery_statekit.errors import AttemptEnded, CorruptRecord, StaleAttempt, StoreUnavailable
from celery_statekit.record import Record, TaskState, task_key
from celery_statekit.reporter import Reporter
from celery_statekit.settings import Settings
from celery_statekit.states import task_flow
from celery_statekit.stores import MemoryStore
from celery_statekit.tracker import Tracker

WAIT = 10


class Import(States):
    READING = "Reading the file"
    IMPORTING = "Importing rows"
    INDEXING = "Rebuilding the index"


@pytest.fixture
def load(app, work, gate):
    """A task that counts until ``load.stop`` is set, and how far it is."""
    begun, stop, seen = gate(), threading.Event(), []

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        begun.set()
        while not stop.is_set():
            self.progress.update(1)
            seen.append(True)
            time.sleep(0.001)
        return len(seen)

    work()
    load.seen, load.stop, load.begun = seen, stop, begun
    yield load
    stop.set()


def begin(load):
    result = load.delay()
    assert load.begun.wait()
    return result


# --- what is seen --------------------------------------------------------------------------------


def test_it_waits_in_place_until_it_is_resumed(load, until, ended):
    """``paused`` is true once it waits; it says who paused it, and why."""
    result = begin(load)
    assert result.pause("lunch", by="bob") is True
    state = until(lambda: (now := result.task_state).paused and now)
    assert (state.state, state.asked.what, state.asked.seen) == ("STARTED", "pause", True)
    assert (state.asked.reason, state.asked.by) == ("lunch", "bob")
    assert state.started_at <= state.asked.at

    stood = len(load.seen)
    assert state.progress.current == stood
    time.sleep(0.2)
    assert len(load.seen) == stood
    assert result.resume(by="bob") is True
    until(lambda: len(load.seen) > stood)
    state = result.task_state
    assert (state.paused, state.asked) == (False, None)
    load.stop.set()
    assert ended(result).state == "SUCCESS"
    assert [change.to_state for change in result.history()] == ["PENDING", "STARTED", "SUCCESS"]


def test_twice_and_for_nothing(load, until, ended):
    """Paused twice, resumed twice: False, and not a version more."""
    result = begin(load)
    assert result.resume() is False
    assert result.pause("first") is True
    version = until(lambda: (now := result.task_state).paused and now.version)
    assert result.pause("second") is False
    assert (result.task_state.version, result.task_state.asked.reason) == (version, "first")
    assert result.resume() is True
    assert result.resume() is False
    load.stop.set()
    ended(result)
    assert (result.pause(), result.resume()) == (False, False)


def test_paused_and_resumed_again_and_again(load, until, ended):
    """Nothing gets lost, and nothing stays behind."""
    result = begin(load)
    for number in range(20):
        assert result.pause(str(number)) is True
        if number % 3:
            until(lambda: result.task_state.paused)
        assert result.resume() is True
    before = len(load.seen)
    until(lambda: len(load.seen) > before)
    load.stop.set()

    assert ended(result).asked is None


@pytest.mark.parametrize("call", ["enter", "checkpoint", "track", "update_state"])
def test_each_sort_of_state_call_waits(app, work, gate, until, ended, call):
    """Before it does what it is for."""
    begun, go, past = gate(), gate(), []
    calls = {
        "enter": lambda self: self.enter(Import.READING),
        "checkpoint": lambda self: self.checkpoint({"row": 1}),
        "track": lambda self: past.extend(self.track([1])),
        "update_state": lambda self: self.update_state(state="READING"),
    }

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        begun.set()
        go.wait()
        if call == "track":
            until(lambda: self.progress._halted)
        calls[call](self)
        past.append(call)

    work()
    result = load.delay()
    assert begun.wait()
    result.pause()
    go.set()
    state = until(lambda: (now := result.task_state).paused and now)
    assert (state.state, state.checkpoint, past) == ("STARTED", None, [])
    result.resume()
    ended(result)

    assert past[-1] == call


def test_what_is_seen_in_between_holds_the_very_call(monkeypatch):
    """The flusher sees it after the call has looked, and before it writes."""
    tracker = Tracker(MemoryStore(None))
    attempt = Attempt.of(tracker, "t-1", "load", task_flow(None))
    attempt.claim()
    heed, stood = attempt.heed, []

    def heed_and_see():
        heed()
        if not stood:
            tracker.ask("t-1", "pause")
            attempt.look()
            stood.append(True)
            threading.Timer(0.1, tracker.resume, ["t-1"]).start()

    monkeypatch.setattr(attempt, "heed", heed_and_see)
    attempt.enter("A")

    assert stood == [True]
    assert tracker.read("t-1").asked is None


def test_a_slow_track_without_news_waits(app, work, gate, until, ended):
    """The loop asks for its next item, and gets it after it was resumed."""
    begun, items, stop = gate(), [], threading.Event()

    def rows():
        for row in range(10_000):
            if stop.is_set():
                return
            yield row

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        for row in self.track(rows()):
            items.append(row)
            begun.set()
            time.sleep(0.002)

    work()
    result = load.delay()
    assert begun.wait()
    result.pause()
    until(lambda: result.task_state.paused)
    stood = len(items)
    time.sleep(0.1)
    assert len(items) == stood
    result.resume()
    until(lambda: len(items) > stood)
    stop.set()
    state = ended(result)

    assert items == list(range(len(items)))
    assert state.progress.current == len(items)


def test_it_stands_still_for_rate_and_eta():
    """A lunch is no part of the work."""
    now = [0.0]
    reporter = Reporter(clock=lambda: now[0])
    reporter.set(0, 100)
    now[0] = 2.0
    reporter.update(20)
    reporter.snapshot()
    with reporter.standing_still():
        now[0] = 3602.0
        assert reporter.snapshot().rate == 10
    now[0] = 3604.0
    reporter.update(20)
    snapshot = reporter.snapshot()

    assert (snapshot.rate, snapshot.eta) == (10, 6)


def test_without_a_store_that_tells_it_looks_again(load, until, ended, monkeypatch):
    """A quarter of a second later, say; and it waits, it does not spin."""
    monkeypatch.setattr("celery_statekit.news.Notifies", int)  # no store is one
    result = begin(load)
    result.pause()
    until(lambda: result.task_state.paused)
    used = time.process_time()
    time.sleep(0.5)
    used = time.process_time() - used
    stood = len(load.seen)
    result.resume()
    until(lambda: len(load.seen) > stood)
    load.stop.set()
    ended(result)

    assert used < 0.3


# --- before it begins ----------------------------------------------------------------------------


def test_one_that_is_paused_before_it_begins_is_held_after_its_claim(
    app, work, until, ended, states_of
):
    """Not a line of the task runs before it is resumed."""
    runs = []

    @app.task(base=StatefulTask)
    def load():
        runs.append(True)

    result = load.delay()
    until(lambda: result.task_state.state == "PENDING")
    assert result.pause("not yet") is True
    assert result.task_state.paused is False
    work()
    state = until(lambda: (now := result.task_state).paused and now)
    assert (state.state, state.attempt, state.asked.reason) == ("STARTED", 1, "not yet")
    time.sleep(0.1)
    assert runs == []
    result.resume()

    assert ended(result).state == "SUCCESS"
    assert (runs, states_of(result)) == ([True], ["PENDING", "STARTED", "SUCCESS"])


def test_one_that_is_resumed_before_it_begins_is_not_held(app, work, until, ended):
    """As if nothing had been."""

    @app.task(base=StatefulTask)
    def load():
        return 7

    result = load.delay()
    until(lambda: result.task_state.state == "PENDING")
    assert (result.pause(), result.resume()) == (True, True)
    work()

    assert ended(result).asked is None
    assert result.get(timeout=WAIT) == 7


def test_a_pause_that_a_run_did_not_see_holds_the_next_one(app, work, gate, until, ended):
    """The run asks to be tried again: the pause stays, and holds the next attempt."""
    begun, go, runs = gate(), gate(), []

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        runs.append(self.request.retries)
        if not self.request.retries:
            begun.set()
            go.wait()
            raise self.retry(countdown=0)

    work()
    result = load.delay()
    assert begun.wait()
    result.pause("later")
    go.set()
    state = until(lambda: (now := result.task_state).paused and now)
    assert (state.attempt, runs) == (2, [0])
    result.resume()

    assert ended(result).state == "SUCCESS"
    assert runs == [0, 1]


def test_a_pause_that_nobody_saw_goes_with_the_end(app, work, gate, ended):
    """There is nothing more to hold."""
    begun, go = gate(), gate()

    @app.task(base=StatefulTask)
    def load():
        begun.set()
        go.wait()

    work()
    result = load.delay()
    assert begun.wait()
    assert result.pause() is True
    go.set()
    state = ended(result)

    assert (state.state, state.asked, state.paused) == ("SUCCESS", None, False)


def test_the_record_of_a_paused_message_expires_like_any_other(app):
    """A purged queue leaves nothing for ever."""
    app.conf.result_expires = 100
    tracker = Settings.of(app).tracker
    kept = []
    write = tracker.store.write

    def note(record, *, ttl=None, **options):
        kept.append(ttl)
        return write(record, ttl=ttl, **options)

    tracker.store.write = note
    tracker.queue("t-1", "load", due_at=tracker.now() + 50)
    tracker.ask("t-1", "pause")
    tracker.resume("t-1")
    tracker.ask("t-1", "cancel")

    assert kept == [pytest.approx(150, abs=5)] * 3 + [pytest.approx(150, abs=60)]


# --- how it ends ---------------------------------------------------------------------------------


def test_a_paused_run_is_cancelled(load, until, ended):
    """It need not be resumed first; its clean-up is not held."""
    result = begin(load)
    result.pause()
    until(lambda: result.task_state.paused)
    stood = len(load.seen)
    assert result.cancel("enough", by="ada") is True
    with pytest.raises(TaskRevokedError, match="enough"):
        result.get(timeout=WAIT)
    state = ended(result)

    assert (state.state, state.asked.what, state.paused) == ("REVOKED", "cancel", False)
    assert len(load.seen) == stood
    assert result.resume() is False


def test_a_paused_run_that_is_fenced_ends(app):
    """A newer run, or an end from outside: as at any state call."""
    tracker = Tracker(MemoryStore(None))
    for end, error in (
        (lambda: Attempt.of(tracker, "t-1", "load", task_flow(None)).claim(), StaleAttempt),
        (lambda: tracker.end_from_outside("t-2", "", "FAILURE", reason="lost"), AttemptEnded),
    ):
        id = "t-1" if error is StaleAttempt else "t-2"
        attempt = Attempt.of(tracker, id, "load", task_flow(None))
        attempt.claim()
        tracker.ask(id, "pause")
        attempt.look()
        thread = threading.Timer(0.1, end)
        thread.start()
        with pytest.raises(error):
            attempt.reporter.update(1)
        thread.join()


def test_a_soft_time_limit_passes_through(app, monkeypatch):
    """What is raised while it waits leaves the wait, and the subscription ends."""
    tracker = Tracker(MemoryStore(None))
    attempt = Attempt.of(tracker, "t-1", "load", task_flow(None))
    attempt.claim()
    tracker.ask("t-1", "pause")
    attempt.look()

    def exceeded(_):
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(attempt._woken, "wait", exceeded)
    with pytest.raises(SoftTimeLimitExceeded):
        attempt.reporter.update(1)

    assert tracker.store._subscribers.keys() == []


def test_a_paused_run_waits_while_the_store_is_away(app):
    """It goes on when it is back, and was resumed."""
    tracker = Tracker(store := MemoryStore(None))
    attempt = Attempt.of(tracker, "t-1", "load", task_flow(None))
    attempt.claim()
    tracker.ask("t-1", "pause")
    attempt.look()
    read, looks = store.read, []

    def away(key):
        looks.append(key)
        if len(looks) > 2:
            return read(key)
        if len(looks) == 2:
            tracker.resume("t-1")
        raise StoreUnavailable("store", "away")

    store.read = away
    attempt.reporter.update(1)

    assert len(looks) >= 3
    assert attempt.reporter.current == 1
    assert attempt.reporter._halted is None


def test_what_is_no_asking_is_corrupt():
    """Stored bytes are untrusted; what a newer release asks is kept, and not heeded."""
    for asked in (
        7,
        [],
        {"what": 1},
        {"what": "pause", "at": "now"},
        {},
        {"what": "pause", "by": 1},
    ):
        record = Record.first(task_key("t-1"), {"state": "STARTED", "asked": asked})
        with pytest.raises(CorruptRecord):
            TaskState.from_record(record)
    record = Record.first(
        task_key("t-1"), {"state": "A", "run": 1, "asked": {"what": "sing", "n": 1}}
    )
    state = TaskState.from_record(record)

    assert state.asked == Asked(what="sing", extra={"n": 1})
    assert state.to_document(record.key)["asked"] == {"what": "sing", "n": 1}
    assert (state.paused, state.awaits_message) == (False, False)


def test_a_run_that_is_lost_is_not_paused():
    """It does not wait any more; the next one does."""
    tracker = Tracker(MemoryStore(None))
    attempt = Attempt.of(tracker, "t-1", "load", task_flow(None))
    attempt.claim()
    tracker.ask("t-1", "pause")
    attempt.look()
    attempt._show_seen()
    assert tracker.read("t-1").paused is True
    tracker.lose("t-1", lambda _: True, reason="gone")
    lost = tracker.read("t-1")

    assert (lost.state, lost.paused, lost.asked.what) == ("LOST", False, "pause")
    assert tracker.ask("t-1", "cancel").answer == "revoked"


@pytest.fixture(
    params=[
        "memory",
        "sqlite",
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("postgresql", marks=pytest.mark.sql),
        pytest.param("mariadb", marks=pytest.mark.sql),
    ]
)
def each_store(request, tmp_path):
    """URL of an empty store of each kind."""
    if request.param == "memory":
        return f"memory://{uuid.uuid4()}"
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/states.db"
    return request.getfixturevalue(f"{request.param}_url")


def test_under_every_store(each_store, until):
    """An eager run in a thread is paused, resumed, paused and cancelled."""
    app = Celery("eager", broker="memory://", set_as_current=False)
    app.conf.update(
        statekit_store=each_store,
        statekit_prefix=f"t{uuid.uuid4().hex[:8]}",
        statekit_progress_interval=0.02,
    )
    ids, results, seen = [], [], []

    @app.task(bind=True, base=StatefulTask, shared=False)
    def load(self):
        ids.append(self.request.id)
        while True:
            self.progress.update(0)
            seen.append(True)
            time.sleep(0.001)

    thread = threading.Thread(target=lambda: results.append(load.apply()))
    thread.start()
    try:
        until(lambda: ids)
        result = StatefulResult(ids[0], app=app)
        assert result.pause("é", by="bob") is True
        until(lambda: result.task_state.paused)
        stood = len(seen)
        assert result.resume() is True
        until(lambda: len(seen) > stood)
        assert result.pause() is True
        until(lambda: result.task_state.paused)
    finally:
        assert StatefulResult(ids[0], app=app).cancel("done") is True
        thread.join(WAIT)
        state = result.task_state
        Settings.of(app).store.close()
        app.close()

    assert results[0].state == "REVOKED"
    assert (state.state, state.reason) == ("REVOKED", "done")
