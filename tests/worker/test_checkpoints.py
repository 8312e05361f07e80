"""Checkpoints, and tracks that resume: what an attempt leaves for the next one."""

from __future__ import annotations

import copy
import json
import os
import signal
import sys
import threading
import uuid
from itertools import count
from pathlib import Path

import pytest
from celery import Celery
from celery.backends.cache import CacheBackend
from kombu.transport import memory

from celery_statekit import StatefulTask, States, track
from celery_statekit.attempt import Attempt
from celery_statekit.errors import (
    InvalidInput,
    NotRunning,
    PayloadTooLarge,
    StaleAttempt,
    StoreUnavailable,
)
from celery_statekit.record import TaskState, task_key
from celery_statekit.reporter import Reporter
from celery_statekit.settings import Settings
from celery_statekit.states import task_flow
from celery_statekit.stores import MemoryStore
from celery_statekit.testing import FailsAt
from celery_statekit.tracker import Tracker

pytest_plugins = ("celery_statekit.testing.fixtures",)

ALWAYS = 10**9


class Import(States):
    READING = "Reading the file"
    IMPORTING = "Importing rows"


@pytest.fixture
def deliver_again(app):
    """Put each message that waits in the queue there a second time, as a broker may."""

    def duplicate():
        queue = memory.Channel.queues[app.conf.task_default_queue]
        for message in list(queue.queue):
            again = copy.deepcopy(message)
            again["properties"]["delivery_tag"] = str(uuid.uuid4())
            queue.put(again)

    return duplicate


# --- a value -------------------------------------------------------------------------------------


def test_the_next_attempt_finds_what_the_last_one_left(app, work, ended):
    """None for the first; then what was given last, whatever that attempt does meanwhile."""
    found = []

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        found.append(self.last_checkpoint)
        self.checkpoint({"row": self.request.retries, "done": ["é", None, 1.5]})
        self.checkpoint({"row": self.request.retries + 10})
        found.append(self.last_checkpoint)
        if self.request.retries < 2:
            raise self.retry(countdown=0)

    work()
    state = ended(load.delay())

    assert found == [None, None, {"row": 10}, {"row": 10}, {"row": 11}, {"row": 11}]
    assert (state.checkpoint.value, state.checkpoint.attempt) == ({"row": 12}, 3)
    assert state.started_at <= state.checkpoint.at <= state.ended_at


def test_an_attempt_that_leaves_nothing_passes_on_what_it_found(app, work, ended):
    """What the last attempt left that made a checkpoint is found, whoever came between."""
    found = []

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        found.append(self.last_checkpoint)
        if self.request.retries == 0:
            self.checkpoint([1])
        if self.request.retries < 3:
            raise self.retry(countdown=0)

    work()
    state = ended(load.delay())

    assert found == [None, [1], [1], [1]]
    assert (state.attempt, state.checkpoint.attempt) == (4, 1)


@pytest.mark.parametrize("value", [0, False, "", [], {}, "é\u2028\U0001f600", 12345678901234567])
def test_any_json_is_found_as_it_was(app, work, ended, value):
    """Also what counts as false."""
    found = []

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        found.append(self.last_checkpoint)
        if not self.request.retries:
            self.checkpoint(value)
            raise self.retry(countdown=0)

    work()
    ended(load.delay())

    assert repr(found) == repr([None, value])


def test_none_leaves_nothing(app, work, ended):
    """A run that has come past what there was to resume from says so with None."""
    found = []

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        found.append(self.last_checkpoint)
        self.checkpoint({"row": 1} if not self.request.retries else None)
        if self.request.retries < 2:
            raise self.retry(countdown=0)

    work()
    ended(load.delay())

    assert found == [None, {"row": 1}, None]


def test_it_is_written_when_the_call_returns(app, work, gate, ended):
    """A reader sees it while the run goes on, and after its end."""
    made, go = gate(), gate()

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        self.enter(Import.READING)
        self.checkpoint({"row": 7})
        made.set()
        go.wait()

    work()
    result = load.delay()
    assert made.wait()
    running = result.task_state
    go.set()

    assert (running.state, running.checkpoint.value) == ("READING", {"row": 7})
    assert ended(result).checkpoint == running.checkpoint


def test_it_stays_what_it_was_whatever_becomes_of_the_value(app, work, ended):
    """Neither what was given nor what was handed out is the record's own."""
    found = []

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        for handed in (self.last_checkpoint, self.task_state.checkpoint):
            if handed is not None:
                getattr(handed, "value", handed)["rows"].append("changed")
        found.append(self.last_checkpoint)
        given = {"rows": [1]}
        if not self.request.retries:
            self.checkpoint(given)
            given["rows"].append("changed")
            self.task_state.checkpoint.value["rows"].append("changed")
            self.enter(Import.READING)
            raise self.retry(countdown=0)
        self.enter(Import.READING)

    work()
    state = ended(load.delay())

    assert found == [None, {"rows": [1]}]
    assert state.checkpoint.value == {"rows": [1]}


def test_one_that_is_refused_leaves_the_one_before(app, work, ended):
    """What is no JSON, or too large, is an error at once, and changes nothing."""
    raised = []

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.checkpoint("x" * (64 * 1024 - 2))
        for value in ("x" * (64 * 1024 - 1), {"at": object()}, {1: "a"}, float("nan")):
            with pytest.raises(InvalidInput) as refusal:
                self.checkpoint(value)
            raised.append(type(refusal.value))

    work()
    state = ended(load.delay())

    assert state.state == "SUCCESS"
    assert state.checkpoint.value == "x" * (64 * 1024 - 2)
    assert raised == [PayloadTooLarge, InvalidInput, InvalidInput, InvalidInput]


def test_its_size_follows_from_that_of_a_record(app, work, ended):
    """It may take a quarter of ``statekit_record_bytes``."""
    app.conf.statekit_record_bytes = 4000

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.checkpoint("x" * 998)
        with pytest.raises(PayloadTooLarge):
            self.checkpoint("x" * 999)

    work()

    assert ended(load.delay()).state == "SUCCESS"


def test_a_replacement_of_the_task_begins_with_nothing(app, work, ended):
    """``replace`` puts other work in its place under the same id, though it be the same task."""
    found = []

    @app.task(bind=True, base=StatefulTask)
    def load(self, times):
        found.append((self.last_checkpoint, list(self.track(range(4), resume=True))))
        self.checkpoint(times)
        if times:
            raise self.replace(self.s(times - 1))

    work()
    state = ended(load.delay(2))

    assert found == [(None, [0, 1, 2, 3])] * 3
    assert state.checkpoint.value == 0


def test_a_run_that_has_left_for_a_retry_leaves_nothing_more(app, work, ended):
    """Its record waits for the next attempt, and expires if that never comes."""
    found = []

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        found.append(self.last_checkpoint)
        if not self.request.retries:
            self.checkpoint(1)
            self.retry(countdown=0.05, throw=False)
            with pytest.raises(NotRunning):
                self.checkpoint(2)

    work()
    ended(load.delay())

    assert found == [None, 1]


def test_a_run_that_does_not_use_it_pays_nothing(app, work, ended):
    """Its record says nothing of checkpoints."""

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        self.enter(Import.READING)
        for _ in self.track(range(3)):
            pass
        if not self.request.retries:
            raise self.retry(countdown=0)

    work()
    result = load.delay()
    ended(result)
    tracker = Settings.of(app).tracker

    assert "checkpoint" not in tracker.store.read(tracker.key(result.id)).document


def test_celery_is_not_told_again_what_it_shows(app, work, ended, monkeypatch, until):
    """A checkpoint changes nothing of the state and progress that its result backend shows."""
    shown, checkpoints = [], 20

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        self.enter(Import.READING)
        until(lambda: shown == ["READING"])
        for number in range(checkpoints):
            self.checkpoint(number)
            threading.Event().wait(0.01)

    store_result = CacheBackend.store_result

    def note(self, id, result, state, *args, **options):
        shown.append(state)
        return store_result(self, id, result, state, *args, **options)

    monkeypatch.setattr(CacheBackend, "store_result", note)
    work()
    state = ended(load.delay())

    assert state.version == checkpoints + 4
    assert shown == ["READING", "SUCCESS"]


# --- tracks that resume --------------------------------------------------------------------------


def test_a_track_passes_over_what_the_last_attempt_finished(app, work, ended):
    """After a retry each item was done once, but for the one that failed."""
    done, seen = [], []

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        for row in self.track(range(100), "loading", resume=True):
            seen.append(self.progress.current)
            if row in (30, 70) and done.count(row) < 1:
                done.append(row)
                raise self.retry(countdown=0)
            done.append(row)

    work()
    state = ended(load.delay())

    assert done == [*range(31), *range(30, 71), *range(70, 100)]
    assert seen == done
    assert (state.progress.current, state.progress.total) == (100, 100)
    assert state.last_progress.current == 70
    assert state.checkpoint.finished == {"": 100}
    assert state.checkpoint.attempt == 0


def test_several_tracks_resume_each_under_its_name(app, work, ended):
    """One that was finished is passed over whole; one that was not begun is not."""
    done = []

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        for name in ("a", "b", "c"):
            for row in self.track((row for row in range(3)), resume=name):
                done.append((name, row))
                if done == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)]:
                    raise self.retry(countdown=0)

    work()
    state = ended(load.delay())

    assert done[5:] == [("b", 1), ("b", 2), ("c", 0), ("c", 1), ("c", 2)]
    assert state.checkpoint.finished == {"a": 3, "b": 3, "c": 3}


def test_a_track_in_another_resumes_with_it(app, work, ended):
    """The outer one goes on with its item, the inner one where it was."""
    done = []

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        for page in self.track(range(3), resume="pages"):
            for row in self.track(range(3), resume=f"rows of {page}"):
                done.append((page, row))
                if done == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]:
                    raise self.retry(countdown=0)

    work()
    ended(load.delay())

    assert done[5:] == [(1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]


def test_a_track_of_a_step_resumes_in_it(app, work, ended):
    """It counts on from what the step has done, towards the step's total."""
    seen = []

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.progress.step("load", total=10)
        self.progress.update(2)
        for row in self.track(range(8), resume=True):
            seen.append(self.progress.current)
            if row == 5 and not self.request.retries:
                raise self.retry(countdown=0)

    work()
    state = ended(load.delay())

    assert seen == [2, 3, 4, 5, 6, 7, 7, 8, 9]
    assert (state.progress.current, state.progress.total) == (10, 10)


def test_the_rate_does_not_count_what_was_passed_over():
    """Passing over items is no speed."""
    now = [0.0]
    reporter = Reporter(clock=lambda: now[0])
    items = reporter.track(range(1000), name="", skip=900)
    next(items)
    now[0] = 10.0
    next(items)

    snapshot = reporter.snapshot()

    assert (snapshot.current, snapshot.rate, snapshot.eta) == (901, 0.1, pytest.approx(990))


def test_without_bind_a_track_resumes_too(app, work, ended):
    """The free function does as ``self.track``; outside a task it merely iterates."""
    done = []

    @app.task(base=StatefulTask, autoretry_for=(OSError,), default_retry_delay=0)
    def load():
        for row in track(range(5), resume=True):
            done.append(row)
            if done == [0, 1, 2]:
                raise OSError

    work()
    ended(load.delay())

    assert done == [0, 1, 2, 2, 3, 4]
    assert list(track("ab", resume=True)) == ["a", "b"]


def test_two_tracks_of_one_name_are_refused(app, work, ended):
    """Which of them was how far could not be told; so are more than a record should hold."""
    raised = []

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        list(self.track(range(3), resume=True))
        with pytest.raises(InvalidInput, match="a name of its own for each"):
            self.track(range(3), resume=True)
        for number in range(63):
            list(self.track(range(3), resume=f"t{number}"))
        for name in (True, "t1", "one too many", "", "two\nlines", "x" * 101, 1, None):
            with pytest.raises(InvalidInput) as refusal:
                self.track(range(3), resume=name)
            raised.append(refusal.value.path)

    work()
    state = ended(load.delay())

    assert state.state == "SUCCESS"
    assert raised == ["resume"] * 8
    assert len(state.checkpoint.finished) == 64


def test_a_shorter_source_ends_at_once(app, work, ended):
    """Nothing is left of it to do."""
    done = []

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        for row in self.track(range(5 if not self.request.retries else 2), resume=True):
            done.append(row)
            if row == 4:
                raise self.retry(countdown=0)

    work()

    assert ended(load.delay()).state == "SUCCESS"
    assert done == [0, 1, 2, 3, 4]


def test_the_place_is_written_while_the_run_goes_on(app, work, gate, until):
    """The flusher writes it, also where the progress that is shown stands still."""
    gates = {2: gate(), 6: gate()}

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        for row in self.track(range(10), resume=True):
            self.progress.set(0, 10)
            if row in gates:
                gates[row].wait()

    def at(row):
        state = result.task_state
        return state.checkpoint and state.checkpoint.finished[""] == row and state

    work()
    result = load.delay()
    before = until(lambda: at(2))
    gates[2].set()
    state = until(lambda: at(6))
    gates[6].set()

    assert before.progress.current == 0

    assert state.progress.current == 0
    assert state.checkpoint.finished == {"": 6}


# --- another run takes over ----------------------------------------------------------------------


@pytest.mark.parametrize("place", ["threads-memory", "threads-sqlite"], indirect=True)
def test_a_second_delivery_resumes_and_fences_the_first(
    app, work, gate, ended, until, deliver_again, seems_lost
):
    """The older run's checkpoints and places are refused, and are not found by anybody."""
    stuck, go, done, raised = gate(), gate(), [], []

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        attempt = self.task_state.attempt
        done.append((attempt, self.last_checkpoint))
        for row in self.track(range(5), resume=True):
            done.append((attempt, row))
            if attempt == 1 and row == 2:
                self.checkpoint("made by 1")
                stuck.set()
                go.wait()
                with pytest.raises(StaleAttempt) as fenced:
                    self.checkpoint("late")
                raised.append((fenced.value.attempt, fenced.value.current))
                return
        self.checkpoint("made by 2")

    result = load.delay()
    deliver_again()
    original, begins = StatefulTask._begin, count(1)

    def second_waits(self, request):
        if next(begins) == 2:
            assert stuck.wait()
            seems_lost(result)
        return original(self, request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StatefulTask, "_begin", second_waits)
        work()
        until(lambda: (2, "made by 1") in done)
        ended(result)
        go.set()
        until(lambda: raised)
    state = result.task_state

    assert done == [
        (1, None), (1, 0), (1, 1), (1, 2),
        (2, "made by 1"), (2, 2), (2, 3), (2, 4),
    ]  # fmt: skip
    assert raised == [(1, 2)]
    assert state.checkpoint.value == "made by 2"
    assert state.checkpoint.finished == {"": 5}


# --- a store that is away ------------------------------------------------------------------------


@pytest.fixture
def put(app):
    """Put a store that fails around the app's store, before anything has used it."""

    def replace(*args):
        settings = Settings.of(app)
        settings.store = FailsAt(settings.store, *args)
        return settings.store

    return replace


def test_all_of_it_says_that_the_store_is_away(app, work, put):
    """Nothing is made, nothing seems to be left, no item is taken for undone: each is an error."""
    put(1, ALWAYS)

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        for use in (
            lambda: self.checkpoint(1),
            lambda: self.last_checkpoint,
            lambda: self.track([1], resume=True),
        ):
            with pytest.raises(StoreUnavailable):
                use()
        return list(self.track([1, 2]))

    work()

    assert load.delay().get(timeout=10, interval=0.005) == [1, 2]


class AwayOnce:
    """A store that is away when the second attempt begins, and back a moment later."""

    def __init__(self, store):
        self._store = store
        self.was_away = False

    def __getattr__(self, name):
        return getattr(self._store, name)

    def write(self, record, **options):
        if record.document.get("run") == 2 and not self.was_away:
            self.was_away = True
            raise StoreUnavailable(self.name, "on purpose")
        return self._store.write(record, **options)


def test_all_of_it_works_when_the_store_is_back(app, work, ended):
    """An attempt that began without the store finds what was left."""
    settings = Settings.of(app)
    settings.store = store = AwayOnce(settings.store)
    found = []

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        found.append(self.last_checkpoint)
        if len(found) == 1:
            self.checkpoint({"row": 1})
            raise self.retry(countdown=0)

    work()
    state = ended(load.delay())

    assert store.was_away
    assert found == [None, {"row": 1}]
    assert state.attempt == 2


# --- where no worker runs ------------------------------------------------------------------------


@pytest.fixture(params=["memory", "sqlite", "redis", "postgresql", "mariadb"])
def each_store(request, tmp_path):
    """URL of each kind of store."""
    if request.param == "memory":
        return f"memory://{uuid.uuid4()}"
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/states.db"
    return request.getfixturevalue(f"{request.param}_url")


def test_under_every_store(each_store):
    """An eager run, whose retries are runs of their own, leaves and finds it all."""
    app = Celery("eager", broker="memory://", set_as_current=False)
    app.conf.update(statekit_store=each_store, statekit_prefix=f"t{uuid.uuid4().hex[:8]}")
    found, done = [], []

    @app.task(bind=True, base=StatefulTask, shared=False)
    def load(self):
        found.append(self.last_checkpoint)
        self.checkpoint({"é": [1, 2.5, None, {}], "big": 2**70})
        for row in self.track(range(4), resume=True):
            done.append(row)
            if row == 2 and not self.request.retries:
                raise self.retry(countdown=0)

    try:
        state = load.apply().task_state
    finally:
        Settings.of(app).store.close()
        app.close()

    assert found == [None, {"é": [1, 2.5, None, {}], "big": 2**70}]
    assert done == [0, 1, 2, 2, 3]
    assert (state.checkpoint.attempt, state.checkpoint.finished) == (2, {"": 4})


def test_called_directly_it_leaves_no_trace():
    """It is checked, and there is nothing to resume from."""
    app = Celery("direct", broker="memory://", set_as_current=False)

    @app.task(bind=True, base=StatefulTask, shared=False)
    def load(self):
        assert self.last_checkpoint is None
        self.checkpoint({"row": 1})
        with pytest.raises(InvalidInput):
            self.checkpoint({1, 2})
        return self.last_checkpoint, list(self.track(range(3), resume=True))

    assert load() == load() == (None, [0, 1, 2])
    with pytest.raises(NotRunning):
        load.checkpoint(1)
    with pytest.raises(NotRunning):
        _ = load.last_checkpoint
    app.close()


# --- what is stored ------------------------------------------------------------------------------


def test_what_a_newer_release_has_left_is_kept():
    """Fields that this release does not know pass through a run of it."""
    tracker = Tracker(MemoryStore(None))
    attempt = Attempt.of(tracker, "t-1", "load", task_flow(None))
    attempt.claim()
    attempt.checkpoint([1])
    record = tracker.store.read(task_key("t-1"))
    document = {**record.document, "checkpoint": {**record.document["checkpoint"], "newer": 1}}
    assert tracker.store.write(record.next(document), expect=record)

    again = Attempt.of(tracker, "t-1", "load", task_flow(None))
    again.claim()
    assert again.left().value == [1]
    again.checkpoint([2])
    kept = tracker.store.read(task_key("t-1"))

    assert kept.document["checkpoint"]["newer"] == 1
    assert TaskState.from_record(kept).checkpoint.value == [2]


# --- a worker that is killed ---------------------------------------------------------------------


@pytest.fixture(params=["rabbitmq", "redis"])
def broker(request, monkeypatch, tmp_path):
    """RabbitMQ, with the store in a file; Redis alone, where results and records are one write."""
    name = f"shop{uuid.uuid4().hex[:8]}"
    if request.param == "rabbitmq":
        name = request.getfixturevalue("rabbitmq_queue")
        place = {
            "broker": request.getfixturevalue("rabbitmq_url"),
            "results": None,
            "store": f"sqlite:///{tmp_path}/states.db",
            "transport_options": {},
        }
    else:
        url = request.getfixturevalue("redis_url")
        # It comes again after two seconds; Redis is asked each second (kombu 5.7 transport/redis.py).
        options = {"visibility_timeout": 2, "unacked_restore_interval": 1}
        # A worker that is killed while it looks keeps all others from looking until then.
        options |= {"unacked_restore_throttle": 1, "unacked_mutex_expire": 2}
        options |= {"global_keyprefix": f"{name}:"}
        place = {"broker": url, "results": url, "store": url, "transport_options": options}
    monkeypatch.setenv("STATEKIT_RESUMING_PLACE", json.dumps({**place, "name": name}))
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.delitem(sys.modules, "resuming_shop", raising=False)
    return request.param


@pytest.fixture
def crashing(broker, stateful_worker_process):
    """A worker that is about to be killed, and a task of it that has come to row 7."""
    worker = stateful_worker_process("resuming_shop:app", pool="prefork", own_servers=True)
    app, backends = worker.app, []
    app._get_backend = lambda: backends.append(Celery._get_backend(app)) or backends[-1]
    yield worker
    worker.close()
    app.control.purge()
    for backend in backends:
        if hasattr(backend, "result_consumer"):
            backend.result_consumer.stop()
            backend.result_consumer._pubsub = None
            backend.client.connection_pool.disconnect()
    Settings.of(app).store.close()
    app.close()


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["worker", "child"])
def test_a_crash_costs_what_was_not_finished(crashing, tmp_path, killed):
    """After kill -9 the message comes again, and the next attempt goes on where the last one was."""
    worker, app = crashing, crashing.app
    gate = tmp_path / "gate"
    result = app.tasks["shop.load"].delay(10, str(gate))

    def at_row_7():
        state = result.task_state
        return state.checkpoint and state.checkpoint.finished.get("") == 7 and state

    state = worker.until(at_row_7, what="row 7")
    if killed == "child":
        os.kill(int(state.worker.rpartition(":")[2]), signal.SIGKILL)
    else:
        worker.restart()
    state = worker.until(lambda: (now := result.task_state).final and now, what="the end")

    assert (state.state, state.attempt) == ("SUCCESS", 2)
    assert state.checkpoint.value == {"found": {"row": 5}, "done": [7, 8, 9]}
    assert state.checkpoint.finished == {"": 10}
    assert state.last_progress.current == 7
    moves = [(change.to_state, change.attempt) for change in result.history()]
    assert moves[1:4] == [("STARTED", 1), ("READING", 1), ("IMPORTING", 1)]
    assert moves[-4:] == [("STARTED", 2), ("READING", 2), ("IMPORTING", 2), ("SUCCESS", 2)]


@pytest.mark.parametrize("skip", [0, 1, 2, 3])
def test_a_source_that_raises_and_goes_on_loses_no_item(skip):
    """What the source raised is no item: none is passed over for it, and the loop goes on."""

    class Source:
        def __init__(self):
            self.left = ["a", ValueError(), "b", "c", ValueError(), "d"]

        def __iter__(self):
            return self

        def __next__(self):
            if not self.left:
                raise StopIteration
            item = self.left.pop(0)
            if isinstance(item, ValueError):
                raise item
            return item

    reporter = Reporter()
    items, seen = reporter.track(Source(), name="", skip=skip), []
    while True:
        try:
            seen.append(next(items))
        except ValueError:
            continue
        except StopIteration:
            break
        assert reporter.finished == {"": skip + len(seen) - 1}
    assert seen == ["a", "b", "c", "d"][skip:]
    assert reporter.finished == {"": 4}
