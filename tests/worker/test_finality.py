"""An end is final, and of two runs of one task only the newer one counts."""

from __future__ import annotations

import copy
import threading
import uuid
from types import SimpleNamespace

import pytest
from celery import Task, chain, chord
from celery.app.task import Context
from celery.signals import after_task_publish
from celery.worker.state import revoked
from kombu.transport import memory

from celery_statekit import StatefulTask, States, setup, signals, stateful
from celery_statekit.errors import AttemptEnded, StaleAttempt
from celery_statekit.settings import Settings


class Import(States):
    READING = "Reading the file"
    IMPORTING = "Importing rows"


@pytest.fixture
def deliver_twice(app):
    """Put each message that waits in the queue there a second time, as a broker may."""

    def duplicate():
        queue = memory.Channel.queues[app.conf.task_default_queue]
        for message in list(queue.queue):
            again = copy.deepcopy(message)
            again["properties"]["delivery_tag"] = str(uuid.uuid4())
            queue.put(again)

    return duplicate


@pytest.fixture
def idle(app, until, ended):
    """Wait until all that was queued has been taken, and run."""

    @app.task(base=StatefulTask, name="shop.last")
    def last():
        """Nothing."""

    def wait():
        until(lambda: not memory.Channel.queues[app.conf.task_default_queue].qsize())
        ended(last.delay())

    return wait


@pytest.mark.parametrize("fails", [False, True])
def test_second_delivery_after_the_end_does_nothing(app, work, ended, idle, fails):
    """A message that comes again after the end does not run, and changes nothing for Celery too."""
    app.conf.task_track_started = True
    runs = []

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        runs.append(self.request.id)
        if fails:
            raise ValueError("no")
        return len(runs)

    work()
    result = load.delay()
    end = ended(result)
    load.apply_async(task_id=result.id)
    idle()
    assert runs == [result.id]
    assert result.task_state == end
    # A result that was ready remembers what it has read.
    assert load.AsyncResult(result.id).state == ("FAILURE" if fails else "SUCCESS")
    assert len(result.history()) == 3


@pytest.mark.parametrize("place", ["solo-memory"], indirect=True)  # one delivery after the other
def test_duplicate_fires_no_link_and_no_body_twice(app, work, ended, deliver_twice, idle):
    """When each message comes twice, callbacks, chain steps and chord bodies run once."""
    runs = []

    @app.task(bind=True, base=StatefulTask)
    def step(self, *_, name):
        runs.append(name)
        return name

    @app.task(base=StatefulTask)
    def body(names):
        runs.append("body")
        return names

    linked = step.s(name="link")
    first = chain(step.s(name="one").set(link=linked), step.s(name="two")).apply_async()
    members = [step.s(name="a"), step.s(name="b")]
    second = chord(members, body.s()).apply_async()
    deliver_twice()
    work()
    ended(first)
    assert sorted(second.get(timeout=10, interval=0.01)) == ["a", "b"]
    idle()
    assert sorted(runs) == ["a", "b", "body", "link", "one", "two"]


def test_thread_that_kept_the_run_cannot_write_after_the_end(app, work, ended):
    """What a thread of a task writes after the task's end is refused, and changes nothing."""
    kept = SimpleNamespace()

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        kept.attempt, kept.progress = self.request.statekit, self.progress
        raise ValueError("no")

    work()
    result = load.delay()
    end = ended(result)
    kept.progress.set(5, 6)
    for write in (kept.attempt.report, kept.attempt.claim, lambda: kept.attempt.enter("AGAIN")):
        with pytest.raises(AttemptEnded) as raised:
            write()
        assert (raised.value.id, raised.value.state) == (result.id, "FAILURE")
    assert result.task_state == end
    assert load.AsyncResult(result.id).state == "FAILURE"


def test_end_told_from_outside_stops_the_run(app, work, gate, until, states_of):
    """A run whose end was recorded from outside is refused, and nothing of it leaves."""
    begun, go, raised, linked = gate(), gate(), [], []

    @app.task(base=StatefulTask)
    def after(_):
        linked.append(1)

    @app.task(bind=True, base=StatefulTask, name="shop.load")
    def load(self):
        begun.set()
        go.wait()
        with pytest.raises(AttemptEnded) as error:
            self.enter("AGAIN")
        raised.append(error.value)
        return "late"

    work()
    result = load.apply_async(link=after.s())
    assert begun.wait()
    tracker = Settings.of(app).tracker
    tracker.end_from_outside(result.id, "shop.load", "REVOKED", reason="by hand")
    go.set()
    until(lambda: raised)
    other = after.delay(0)
    until(other.ready)
    assert states_of(result) == ["PENDING", "STARTED", "REVOKED"]
    until(result.ready)
    assert str(result.result) == "by hand", "the end that is recorded, not the run's"
    assert linked == [1]


def test_run_that_was_ended_from_outside_stops_at_its_next_item(app, work, gate):
    """A loop of a run whose end was recorded from outside is left at the next item."""
    begun, left, rows = gate(), gate(), []

    @app.task(bind=True, base=StatefulTask, name="shop.load")
    def load(self):
        def forever():
            while True:
                yield 1

        try:
            for row in self.track(forever()):
                rows.append(row)
                begun.set()
                if len(rows) % 100 == 0:
                    threading.Event().wait(0.001)  # lets other threads in
        finally:
            left.set()

    work()
    result = load.delay()
    assert begun.wait()
    Settings.of(app).tracker.end_from_outside(result.id, "shop.load", "REVOKED", reason="by hand")
    assert left.wait()
    assert result.task_state.state == "REVOKED"


def test_revoked_before_it_begins(app, work, ended, until, states_of):
    """A task that was revoked before a worker took it is REVOKED, and is not run."""
    runs = []

    @app.task(base=StatefulTask)
    def load():
        runs.append(1)

    work()
    id = str(uuid.uuid4())
    app.control.revoke(id)
    until(lambda: id in revoked)
    result = load.apply_async(task_id=id)
    assert ended(result).state == "REVOKED"
    assert result.state == "REVOKED"
    # Celery's result says so since the revocation; the record, since the message was taken.
    until(lambda: states_of(result) == ["PENDING", "REVOKED"])
    assert runs == []


# --- two runs at the same time -------------------------------------------------------------------


#: Solo runs one task at a time.
threads = pytest.mark.parametrize("place", ["threads-memory", "threads-sqlite"], indirect=True)


@pytest.fixture
def takeover(app, work, gate, ended, until, seems_lost):
    """Have a task run twice at the same time; the first goes on when the second has ended."""

    def run(body, *, task_options=None, **options):
        begun, go = gate(), gate()
        left: list[BaseException | str] = []

        @app.task(
            bind=True, base=StatefulTask, states=Import, name="shop.load", **(task_options or {})
        )
        def load(self):
            if begun.is_set():
                return "second"
            begun.set()
            go.wait()
            try:
                returned = body(self)
            except BaseException as exc:
                left.append(exc)
                raise
            left.append("returned")
            return returned

        work()
        result = load.apply_async(**options)
        assert begun.wait()
        seems_lost(result)
        load.apply_async(task_id=result.id, **options)
        ended(result)
        go.set()
        until(lambda: left)
        return SimpleNamespace(result=result, left=left[0], load=load)

    return run


SECOND = ["PENDING", "STARTED", "LOST", "STARTED", "SUCCESS"]


@threads
def test_stale_run_may_enter_nothing(takeover, states_of, hear, idle):
    """``enter`` in a run that was taken over raises ``StaleAttempt``, and is signalled."""
    heard = hear(signals.attempt_fenced)

    def body(self):
        self.enter(Import.READING)

    run = takeover(body)
    idle()
    assert isinstance(run.left, StaleAttempt)
    assert (run.left.attempt, run.left.current) == (1, 2)
    assert states_of(run.result) == SECOND
    assert run.load.AsyncResult(run.result.id).get(timeout=5) == "second"
    assert (heard[0].task, heard[0].id) == ("shop.load", run.result.id)
    assert (heard[0].attempt, heard[0].current) == (1, 2)
    # Who looks in the background may have seen it first.
    assert heard[0].wanted in ("READING", "to go on")


@threads
def test_stale_run_that_only_returns_is_refused(takeover, states_of, idle, hear):
    """A run that was taken over and returns without a word changes nothing."""
    heard = hear(signals.attempt_fenced)
    run = takeover(lambda self: "first")
    idle()
    assert run.left == "returned"
    assert run.load.AsyncResult(run.result.id).get(timeout=5) == "second"
    assert states_of(run.result) == SECOND
    assert len(heard) >= 1


@threads
def test_stale_run_that_raises_is_no_failure(takeover, states_of, idle):
    """A run that was taken over and raises does not make the task a failure."""

    def body(self):
        raise ValueError("of a stale run")

    run = takeover(body)
    idle()
    assert states_of(run.result) == SECOND
    assert run.load.AsyncResult(run.result.id).get(timeout=1) == "second"


@threads
def test_stale_progress_is_not_written(takeover, idle):
    """What a stale run reports stands nowhere."""

    def body(self):
        self.progress.set(77, 78)

    run = takeover(body)
    idle()
    assert run.result.task_state.progress is None


@threads
@pytest.mark.parametrize("fails", [False, True])
def test_stale_run_fires_no_links_and_no_errbacks(app, takeover, idle, fails):
    """Links and errbacks of a stale run are not sent."""
    fired = []

    @app.task(base=StatefulTask)
    def after(result):
        fired.append(result)

    @app.task(base=StatefulTask)
    def failed(*_):
        fired.append("errback")

    def body(self):
        if fails:
            raise ValueError("of a stale run")
        return "first"

    takeover(body, link=after.s(), link_error=failed.s())
    idle()
    idle()
    assert fired == ["second"]


@threads
def test_stale_retry_is_not_sent(takeover, idle, states_of):
    """A stale run that retries sends no message: it would take over from the run that counts."""

    def body(self):
        raise self.retry(countdown=0)

    sent = []

    def note(sender, headers, **_):
        if headers["retries"]:
            sent.append(headers["id"])

    after_task_publish.connect(note)
    run = takeover(body)
    idle()
    after_task_publish.disconnect(note)
    assert sent == []
    assert states_of(run.result) == SECOND


@threads
def test_autoretry_lets_the_fence_through(takeover, idle, states_of):
    """``autoretry_for=(Exception,)`` does not retry a run that was refused as stale."""

    def body(self):
        self.enter(Import.READING)

    options = {"autoretry_for": (Exception,), "retry_kwargs": {"countdown": 0}}
    run = takeover(body, task_options=options)
    idle()
    assert isinstance(run.left, StaleAttempt)
    assert states_of(run.result) == SECOND


@threads
def test_stale_run_stops_at_its_next_item(takeover):
    """A loop of a stale run is left soon after its first report was refused."""

    def body(self):
        def forever():
            while True:
                threading.Event().wait(0.0005)
                yield 1

        for _ in self.track(forever()):
            pass

    run = takeover(body)
    assert isinstance(run.left, StaleAttempt)


@threads
def test_stale_run_cannot_swallow_its_fence(takeover, states_of, idle):
    """A stale run that catches everything and returns is refused all the same."""

    def body(self):
        try:
            self.enter(Import.READING)
        except Exception:  # noqa: BLE001 - as tasks do
            return "first"

    run = takeover(body)
    idle()
    assert run.load.AsyncResult(run.result.id).get(timeout=5) == "second"
    assert states_of(run.result) == SECOND


@threads
def test_run_that_was_taken_over_does_not_end_the_task(app, work, gate, ended, idle, seems_lost):
    """While the newer run goes on, the older one returns, and the task has not ended."""
    first_begun, second_begun, first_left, go = gate(), gate(), gate(), gate()

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        if not first_begun.is_set():
            first_begun.set()
            second_begun.wait()
            first_left.set()
            return "first"
        second_begun.set()
        first_left.wait()
        go.wait()
        return "second"

    work()
    result = load.delay()
    assert first_begun.wait()
    seems_lost(result)
    load.apply_async(task_id=result.id)
    assert first_left.wait()
    idle()
    assert not result.ready()
    assert result.task_state.state == "STARTED"
    go.set()
    ended(result)
    assert result.get() == "second"


def test_publishing_a_running_task_again_does_not_make_it_pending(app, work, gate, ended, until):
    """PENDING is written for what is not known yet, and over nothing."""
    go = gate()

    @app.task(base=StatefulTask)
    def load():
        go.wait()

    work()
    result = load.delay()
    until(lambda: result.task_state.state == "STARTED")
    version = result.task_state.version
    load.apply_async(task_id=result.id, countdown=1000)
    assert (result.task_state.state, result.task_state.version) == ("STARTED", version)
    go.set()
    ended(result)


def test_expired_duplicate_does_not_end_the_run(app, work, gate, until):
    """What is said of a message that never ran is not said of the run of another one."""
    begun, go = gate(), gate()

    @app.task(base=StatefulTask)
    def load():
        begun.set()
        go.wait()
        return "done"

    work()
    result = load.delay()
    assert begun.wait()
    load.backend.mark_as_revoked(result.id, "expired", request=Context(id=result.id))
    assert result.task_state.state == "STARTED"
    go.set()
    until(result.ready)
    assert (result.state, result.task_state.state) == ("SUCCESS", "SUCCESS")


def test_stateful_composes_after_setup(app):
    """``@stateful(app)`` takes the task class that ``setup`` has made."""

    class ContextTask(Task):
        """An app's own."""

    app.task_cls = ContextTask
    setup(app)

    @stateful(app)
    def load() -> int:
        return 1

    assert isinstance(load, ContextTask)
    assert load.apply().get() == 1


def test_replaced_by_a_task_without_record(app, work):
    """Where a task that keeps no record takes the id, Celery's result tells the end."""

    @app.task
    def plain():
        return "end"

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        raise self.replace(plain.s())

    work()
    result = load.delay()
    assert result.wait(until="SUCCESS", timeout=10).source == "celery"
    assert result.task_state.state == "SUCCESS"
