"""Who is alive: leases, second deliveries, LOST, and the sweep.

A run that is gone is one that was claimed and is not renewed: a worker of that name was never here.
Workers that are killed and stopped in earnest are in ``tests/lost``.
"""

from __future__ import annotations

import threading
import uuid
from types import SimpleNamespace

import pytest
from billiard.exceptions import WorkerLostError
from celery import chain, chord
from celery.exceptions import ChordError
from celery.signals import after_task_publish, before_task_publish, worker_ready, worker_shutdown

from celery_statekit import StatefulTask, States, signals
from celery_statekit.attempt import Attempt
from celery_statekit.deliveries import wait_for_turn
from celery_statekit.errors import AlreadyRunning, InvalidDefinition, PoisonTask, TaskLost
from celery_statekit.leases import renewer
from celery_statekit.settings import Settings
from celery_statekit.sweep import sweep

#: Of the tests' leases, in seconds: long enough for a loaded machine, short enough to wait for.
LEASE = 1.0

threads = pytest.mark.parametrize("place", ["threads-memory", "threads-sqlite"], indirect=True)


class Import(States):
    READING = "Reading"
    WRITING = "Writing"


@pytest.fixture(autouse=True)
def short_leases(app):
    app.conf.update(statekit_lease=LEASE, statekit_lost_grace=0.2)


@pytest.fixture
def gone(app):
    """A task of which a run was begun by a worker that is gone."""

    def begin(task, result, **facts):
        attempt = Attempt.of(
            Settings.of(app).tracker,
            result.id,
            task.name,
            task._flow,
            worker="celery@gone:1",
            **facts,
        )
        attempt.claim()
        attempt.release()
        return attempt

    return begin


@pytest.fixture
def queued(app):
    """A task that waits, whose message nobody takes; and what its class says."""

    def send(**options):
        name = options.pop("name", "shop.load")

        @app.task(bind=True, base=StatefulTask, states=Import, name=name, **options)
        def load(self):
            return "done"

        return load, load.apply_async(queue=f"nobody-{uuid.uuid4().hex}")

    return send


@pytest.fixture
def lost(queued, gone, until):
    """A task whose run is gone, and whose lease has ended."""

    def lose(**options):
        facts = options.pop("facts", {})
        load, result = queued(**options)
        gone(load, result, **facts)
        until(lambda: result.task_state.state == "LOST")
        return load, result

    return lose


# --- readers -------------------------------------------------------------------------------------


def test_a_reader_sees_that_a_run_is_gone(app, queued, gone, until):
    """LOST as soon as the lease has ended, though nobody has written it."""
    load, result = queued()
    gone(load, result)
    assert result.task_state.state == "STARTED"
    state = until(lambda: (now := result.task_state).state == "LOST" and now)
    assert (state.attempt, state.worker, state.final) == (1, "celery@gone:1", False)
    assert state.reason == "no sign of life of celery@gone:1 for 1 s"
    assert Settings.of(app).tracker.read(result.id).state == "STARTED"
    assert [change.to_state for change in result.history()] == ["PENDING", "STARTED"]


def test_a_watcher_is_told_once(queued, gone, until):
    """LOST comes once, and what is newer after it."""
    load, result = queued()
    attempt = gone(load, result)
    seen = []

    def watch():
        seen.extend(state.state for state in result.watch(timeout=20))

    watching = threading.Thread(target=watch)
    watching.start()
    until(lambda: seen[-1:] == ["LOST"])
    attempt.leave("SUCCESS")
    watching.join(20)
    assert seen == ["STARTED", "LOST", "SUCCESS"]


def test_wait_until_lost(queued, gone):
    load, result = queued()
    gone(load, result)
    assert result.wait(until="LOST", timeout=20).state == "LOST"


def test_an_end_that_celery_knows_is_told_instead(app, queued, gone, until):
    """A worker that died between Celery's result and its last word leaves no LOST."""
    load, result = queued()
    gone(load, result)
    load.own_backend.store_result(result.id, 42, "SUCCESS")
    assert until(lambda: (now := result.task_state).final and now).state == "SUCCESS"
    sweep(app)
    assert Settings.of(app).tracker.read(result.id).state == "SUCCESS"
    assert result.get(timeout=5) == 42


@threads
def test_a_run_that_lives_is_not_lost(app, work, gate, until, ended, states_of):
    """It is renewed: for several leases, without a word of its own."""
    begun, go = gate(), gate()
    leases = 3

    @app.task(base=StatefulTask)
    def load():
        begun.set()
        go.wait(60)

    work()
    result = load.delay()
    assert begun.wait()
    store, key = Settings.of(app).store, Settings.of(app).tracker.key(result.id)
    renewed = []
    renew = store.renew
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            store, "renew", lambda batch, seconds: (renewed.append(batch), renew(batch, seconds))
        )
        until(lambda: len(renewed) > 3 * leases)
    assert sweep(app).lost == []
    assert result.task_state.state == "STARTED"
    assert store.left(key, result.task_state.worker, 0.0) > 0
    go.set()
    ended(result)
    assert states_of(result) == ["PENDING", "STARTED", "SUCCESS"]
    until(lambda: not renewer()._held)


def test_a_short_run_costs_no_renewal(app, work, ended):
    """A run that is over before a renewal is due asks the store for nothing more."""
    app.conf.update(statekit_lease=60)

    @app.task(base=StatefulTask)
    def load():
        return 1

    work()
    ended(load.delay())
    store, calls = Settings.of(app).store, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "renew", lambda *call: calls.append(call))
        patch.setattr(store, "left", lambda *call: calls.append(call))
        for _ in range(20):
            load.delay().get(timeout=10)
    assert calls == []


# --- second deliveries ---------------------------------------------------------------------------


@threads
def test_a_task_that_is_sent_twice_runs_once(app, work, gate, ended, until, states_of, caplog):
    """The second message waits for its turn, and does nothing when that comes."""
    begun, go, runs, turns = gate(), gate(), [], []

    @app.task(base=StatefulTask)
    def load():
        runs.append(1)
        begun.set()
        go.wait(60)
        return "done"

    def note(sender, headers, **_):
        if headers.get("statekit_turn"):
            turns.append(headers["statekit_turn"])

    after_task_publish.connect(note)
    work()
    result = load.delay()
    assert begun.wait()
    load.apply_async(task_id=result.id)
    until(lambda: 2 in turns)
    go.set()
    ended(result)
    after_task_publish.disconnect(note)

    assert runs == [1]
    assert result.get(timeout=5) == "done"
    assert states_of(result) == ["PENDING", "STARTED", "SUCCESS"]
    assert turns[:2] == [1, 2]
    until(lambda: "already ended" in caplog.text or app.control.purge() is not None)


@threads
def test_a_second_message_keeps_what_it_carries(app, work, gate, ended, until):
    """Links, client, priority, arguments; what it may not keep is its expiry."""
    begun, go, fired, seen = gate(), gate(), [], []

    @app.task(base=StatefulTask)
    def after(result):
        fired.append(result)

    @app.task(bind=True, base=StatefulTask)
    def load(self, a, *, b):
        begun.set()
        go.wait(60)
        return a + b

    def note(sender, headers, body, properties, **_):
        if headers.get("statekit_turn"):
            seen.append((body, headers, properties))

    before_task_publish.connect(note)
    work()
    options = {"link": after.s(), "client_id": "client-7", "priority": 3, "expires": 600}
    result = load.apply_async((1,), {"b": 2}, **options)
    assert begun.wait()
    load.apply_async((1,), {"b": 2}, task_id=result.id, **options)
    until(lambda: seen)
    go.set()
    ended(result)
    until(lambda: fired)
    before_task_publish.disconnect(note)

    (args, kwargs, embed), headers, properties = seen[0]
    assert (tuple(args), kwargs) == ((1,), {"b": 2})
    assert embed["callbacks"][0]["task"] == after.name
    assert (headers["client_id"], headers["expires"], headers["retries"]) == ("client-7", None, 0)
    assert properties["priority"] == 3
    assert fired == [3]


def test_the_turn_comes_before_the_broker_delivers_again(app, queued, gone, monkeypatch):
    """A message that waits is held by a worker: for less than the visibility timeout."""
    app.conf.update(statekit_lease=1000, broker_transport_options={"visibility_timeout": 8})
    load, result = queued()
    gone(load, result)
    sent = []
    monkeypatch.setattr(
        load, "signature_from_request", lambda request, **options: _Sent(sent, options)
    )
    request = SimpleNamespace(headers={}, id=result.id)
    wait_for_turn(load, request, AlreadyRunning(load.name, result.id, 0, 1, "w", 990.0))
    assert sent[0]["countdown"] == 4.0


class _Sent:
    def __init__(self, sent, options):
        self._sent, self.options = sent, {}
        sent.append(options)

    def apply_async(self, **options):
        self._sent.append(options)


@threads
def test_the_next_delivery_takes_over_what_is_lost(app, work, queued, gone, until, ended, hear):
    """It waits for the lease to end, and not longer; the history says that the run was lost."""
    heard = hear(signals.task_lost)
    load, result = queued()
    gone(load, result)
    work()
    load.apply_async(task_id=result.id)
    state = ended(result)
    assert (state.state, state.attempt, state.losses) == ("SUCCESS", 2, 1)
    assert [(change.to_state, change.attempt) for change in result.history()] == [
        ("PENDING", 0),
        ("STARTED", 1),
        ("LOST", 1),
        ("STARTED", 2),
        ("SUCCESS", 2),
    ]
    (lost,) = heard
    assert (lost.task, lost.id, lost.attempt) == ("shop.load", result.id, 1)
    assert (lost.worker, lost.losses) == ("celery@gone:1", 1)


def test_a_run_of_this_process_that_is_no_more_is_taken_over_at_once(app, queued, gone):
    """A process of the same name and number as that of the record knows that it does not run it."""
    app.conf.update(statekit_lease=1000)
    load, result = queued()
    tracker = Settings.of(app).tracker

    def run(worker):
        return Attempt.of(tracker, result.id, load.name, load._flow, worker=worker)

    first = run("celery@here:7")
    first.claim()
    with pytest.raises(AlreadyRunning) as running:
        run("celery@here:7").claim()
    assert (running.value.current, running.value.worker) == (1, "celery@here:7")
    assert 990 < running.value.left <= 1000
    first.release()
    with pytest.raises(AlreadyRunning):
        run("celery@there:7").claim()
    second = run("celery@here:7")
    assert second.claim().attempt == 2
    second.release()


def test_leases_end_by_the_clock_of_the_store(app, queued, gone):
    """What a worker's clock says decides nothing."""
    load, result = queued()
    tracker = Settings.of(app).tracker
    tracker.now = lambda: 4e9
    gone(load, result)
    tracker.now = lambda: 1.0
    assert result.task_state.state == "STARTED"
    with pytest.raises(AlreadyRunning):
        Attempt.of(tracker, result.id, load.name, load._flow, worker="celery@other:1").claim()


# --- a run that only seemed lost -----------------------------------------------------------------


def test_a_run_that_only_seemed_lost_goes_on(app, lost, hear):
    """Nobody took over: it enters its next state, and ends as it says."""
    fenced = hear(signals.attempt_fenced)
    load, result = lost(facts={"comes_again": True})
    assert sweep(app).lost == [result.id]
    tracker = Settings.of(app).tracker
    assert tracker.read(result.id).state == "LOST"
    attempt = Attempt.of(tracker, result.id, load.name, load._flow, worker="celery@late:1")
    attempt.claim()
    tracker.lose(result.id, lambda _: True, reason="it seems so")
    attempt.enter("READING")
    state = tracker.read(result.id)
    assert (state.state, state.attempt, state.losses) == ("READING", 2, 1)
    assert state.running
    tracker.lose(result.id, lambda _: True, reason="it seems so")
    attempt.leave("SUCCESS")
    assert tracker.read(result.id).state == "SUCCESS"
    assert fenced == []
    attempt.release()


def test_a_run_that_was_given_up_does_not_end_the_task_twice(app, lost, queued, gone, until):
    """After FAILURE "worker lost" whatever comes late is refused."""
    load, result = queued()
    attempt = gone(load, result)
    until(lambda: sweep(app).failed == [result.id])
    with pytest.raises(Exception, match="has already ended as FAILURE"):
        attempt.leave("SUCCESS")
    assert result.task_state.state == "FAILURE"


# --- the sweep -----------------------------------------------------------------------------------


def test_the_sweep_makes_it_lasting_and_then_ends_it(app, lost, until, hear):
    """LOST, and after the time of grace FAILURE "worker lost", for Celery too."""
    heard = hear(signals.task_lost)
    _, result = lost()
    assert sweep(app).lost == [result.id]
    assert result.history()[-1].to_state == "LOST"
    assert not result.ready()
    until(lambda: sweep(app).failed == [result.id])
    state = result.task_state
    assert (state.state, state.error["type"]) == ("FAILURE", "TaskLost")
    assert state.reason.startswith("worker lost: celery@gone:1 ran shop.load[")
    with pytest.raises(WorkerLostError):
        result.get(timeout=5)
    assert len(heard) == 1
    assert sweep(app) == sweep(app)
    assert sweep(app).lost == sweep(app).failed == []


def test_what_comes_again_stays_lost(app, lost, until):
    """Where the broker delivers the message again, nobody ends the task."""
    _, result = lost(facts={"comes_again": True})
    sweep(app)
    threading.Event().wait(0.5)  # longer than the time of grace
    assert sweep(app).failed == []
    assert result.task_state.state == "LOST"


@threads
def test_who_is_acknowledged_late_comes_again(app, work, gate, until):
    """The record of a run says whether its message does."""
    begun, go = gate(), gate()

    @app.task(bind=True, base=StatefulTask, acks_late=True)
    def late(self):
        begun.set()
        go.wait()
        return self.task_state.comes_again

    @app.task(bind=True, base=StatefulTask)
    def early(self):
        return self.task_state.comes_again

    work()
    result = late.delay()
    assert begun.wait()
    go.set()
    assert result.get(timeout=10) is True
    assert early.delay().get(timeout=10) is False


@threads
def test_a_lost_task_is_sent_again(app, work, gate, until, ended, states_of):
    """``on_lost="requeue"``: with its arguments, its links and its client, to its queue."""
    begun, stuck, fired = gate(), gate(), []

    @app.task(base=StatefulTask)
    def after(result):
        fired.append(result)

    @app.task(bind=True, base=StatefulTask, on_lost="requeue")
    def load(self, a, *, b):
        if self.task_state.attempt == 1:
            begun.set()
            stuck.wait(60)
        return [a, b, self.request.headers["client_id"]]

    work()
    result = load.apply_async((1,), {"b": {"c": [2]}}, link=after.s(), client_id="client-7")
    assert begun.wait()
    tracker = Settings.of(app).tracker
    with pytest.MonkeyPatch.context() as patch:
        # Its process stands still, so that nothing is renewed.
        patch.setattr(Settings.of(app).store, "renew", lambda *_: None)
        patch.setattr(Attempt, "look", lambda _: None)
        until(lambda: sweep(app).requeued == [result.id])
    state = ended(result)
    stuck.set()
    assert (state.state, state.attempt) == ("SUCCESS", 2)
    assert result.get(timeout=5) == [1, {"c": [2]}, "client-7"]
    until(lambda: fired)
    assert fired == [[1, {"c": [2]}, "client-7"]]
    history = states_of(result)
    assert history[:3] == ["PENDING", "STARTED", "LOST"]
    assert history[-2:] == ["STARTED", "SUCCESS"]
    assert tracker.read(result.id).message == ""


def test_run_after_run_that_is_lost_is_poison(app, queued, gone, until):
    """As many as may be; then FAILURE, whoever sees it first: a sweep ..."""
    load, result = queued(max_attempts=2)
    for number in (1, 2):
        gone(load, result, comes_again=True, most_losses=2)
        until(
            lambda n=number: (
                Settings.of(app).tracker.read(result.id).losses == n or sweep(app) is None
            )
        )
    state = until(lambda: (now := result.task_state).final and now)
    assert state.error["type"] == "PoisonTask"
    assert state.reason.startswith("poison: shop.load[")
    with pytest.raises(PoisonTask):
        result.get(timeout=5)


def test_poison_is_not_run_again(app, work, queued, gone, until, ended):
    """... or the next delivery, which does not run."""
    load, result = queued(max_attempts=1)
    gone(load, result, comes_again=True)
    Settings.of(app).tracker.lose(result.id, lambda _: True, reason="it seems so")
    work()
    load.apply_async(task_id=result.id)
    state = ended(result)
    assert (state.state, state.attempt) == ("FAILURE", 1)
    with pytest.raises(PoisonTask):
        result.get(timeout=5)


def test_a_retry_counts_its_losses_anew(app, queued, gone):
    """Losses count one after the other: a run that has spoken is between them."""
    load, result = queued()
    gone(load, result)
    tracker = Settings.of(app).tracker
    tracker.lose(result.id, lambda _: True, reason="it seems so")
    second = gone(load, result)
    assert second.state.losses == 1
    second.leave("RETRY")
    assert tracker.read(result.id).losses == 0


@pytest.mark.parametrize("sweepers", [8])
def test_any_number_of_sweepers(app, lost, hear, until, sweepers):
    """One of them writes, and tells of it; each step once."""
    heard = hear(signals.task_lost)
    _, result = lost()
    swept = []

    def look():
        swept.append(sweep(app))

    def all_look():
        threads = [threading.Thread(target=look) for _ in range(sweepers)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]

    all_look()
    assert [id for one in swept for id in one.lost] == [result.id]
    until(lambda: all_look() is None and any(one.failed for one in swept))
    assert [id for one in swept for id in one.failed] == [result.id]
    assert len(heard) == 1
    assert [change.to_state for change in result.history()] == [
        "PENDING",
        "STARTED",
        "LOST",
        "FAILURE",
    ]


def test_a_worker_sweeps(app, lost, ended):
    """About once in the time of a lease, without being asked."""
    _, result = lost()
    # Celery's worker of tests says nothing when it is ready (celery 5.7 contrib/testing/worker.py).
    worker = Worker()
    worker.app = app
    worker_ready.send(worker)
    assert ended(result).state == "FAILURE"
    worker_shutdown.send(worker)


class Worker:
    """Who says that it is ready."""


@threads
def test_who_waits_for_what_is_lost_is_told(app, work, gate, until):
    """A chord's body, the later steps of a chain, and errbacks."""
    begun, stuck, failed = gate(), gate(), []

    @app.task(base=StatefulTask, name="errback")
    def errback(*facts):
        failed.append(facts)

    @app.task(base=StatefulTask, name="stuck")
    def is_stuck():
        begun.set()
        stuck.wait(60)

    @app.task(base=StatefulTask, name="quick")
    def quick(*_):
        return 1

    work()
    in_chain = chain(is_stuck.s(), quick.s()).apply_async()
    assert begun.wait()
    begun.clear()
    in_chord = chord([is_stuck.s(), quick.s()])(quick.s())
    assert begun.wait()
    begun.clear()
    with_errback = is_stuck.apply_async(link_error=errback.s())
    assert begun.wait()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Settings.of(app).store, "renew", lambda *_: None)
        patch.setattr(Attempt, "look", lambda _: None)
        until(lambda: sweep(app) and with_errback.task_state.final)
        until(lambda: sweep(app) and in_chain.parent.task_state.final)
    stuck.set()
    with pytest.raises(TaskLost):
        in_chain.get(timeout=10)
    until(in_chord.ready)
    assert isinstance(in_chord.result, ChordError)
    until(lambda: failed)


def test_what_a_policy_may_be(app):
    """A wrong one is said when the task is made."""

    def does_nothing():
        """Does nothing."""

    for wrong in ({"on_lost": "again"}, {"max_attempts": 0}, {"max_attempts": True}):
        with pytest.raises(InvalidDefinition):
            app.task(base=StatefulTask, name=f"wrong-{uuid.uuid4()}", **wrong)(does_nothing).run()


def test_what_is_lost_and_cancelled_ends_at_once(queued, gone, until):
    """Nobody is there to be asked, whether or not a sweep has said so."""
    load, result = queued()
    gone(load, result)
    until(lambda: result.task_state.state == "LOST")
    assert result.cancel("not needed any more", by="ada") is True
    assert result.task_state.state == "REVOKED"
    assert [change.to_state for change in result.history()] == [
        "PENDING",
        "STARTED",
        "LOST",
        "REVOKED",
    ]


def test_an_end_is_recorded_however_full_the_record_is(app, queued, gone):
    """What the run has left behind goes before the end does."""
    app.conf.update(statekit_record_bytes=4000)
    load, result = queued()
    run = gone(load, result)
    run.checkpoint("c" * 900)
    run.reporter.set(1, details={"d": "d" * 2300})
    run.report()
    run.leave("FAILURE", reason="r" * 1000, error={"type": "E", "message": "m" * 1000})
    state = result.task_state
    assert (state.state, state.progress, state.checkpoint) == ("FAILURE", None, None)
    assert state.reason == "r" * 1000


@threads
def test_a_run_is_alive_until_its_end_is_stored(app, work, gate, ended, until):
    """A second delivery that comes while links are sent does not run."""
    runs, sending, go = [], gate(), gate()

    @app.task(base=StatefulTask)
    def after(_):
        """Is sent when the run has returned, and before its end is stored."""

    @app.task(base=StatefulTask)
    def load():
        runs.append(1)
        return 1

    def hold(sender, **_):
        if sender == after.name:
            sending.set()
            go.wait(60)

    before_task_publish.connect(hold)
    work()
    result = load.apply_async(link=after.s())
    assert sending.wait()
    load.apply_async(task_id=result.id)
    until(lambda: renewer()._held)
    threading.Event().wait(0.3)
    go.set()
    ended(result)
    before_task_publish.disconnect(hold)
    assert runs == [1]
    assert [change.to_state for change in result.history()] == ["PENDING", "STARTED", "SUCCESS"]


def test_a_message_of_before_a_retry_goes_behind_it(app, queued, gone, until):
    """It may claim only when the retry's own message has not come."""
    app.conf.update(statekit_lease=0.4)
    load, result = queued()
    first = gone(load, result)
    first.leave("RETRY", due_at=Settings.of(app).tracker.now() + 0.4)
    tracker = Settings.of(app).tracker

    def claim(retries):
        run = Attempt.of(
            tracker, result.id, load.name, load._flow, worker="celery@other:1", retries=retries
        )
        try:
            return run.claim()
        finally:
            run.release()

    with pytest.raises(AlreadyRunning):
        claim(0)

    def claims():
        try:
            return claim(0)
        except AlreadyRunning:
            return None

    assert until(claims).attempt == 2
    tracker.lose(result.id, lambda _: True, reason="by hand")
    third = Attempt.of(tracker, result.id, load.name, load._flow, worker="w:1", retries=0)
    third.claim()
    third.leave("RETRY")
    assert claim(1).attempt == 4


def test_a_run_that_was_sent_again_goes_on(app, queued, gone):
    """Its worker was cut off and comes back: the message that was sent again finds it alive."""
    load, result = queued()
    run = gone(load, result)
    tracker = Settings.of(app).tracker
    lost = tracker.lose(result.id, lambda _: True, reason="cut off")
    assert tracker.queue_again(lost, reason="sent again")
    assert result.task_state.state == "PENDING"
    run.enter("READING")
    assert result.task_state.state == "READING"
    with pytest.raises(AlreadyRunning):
        Attempt.of(tracker, result.id, load.name, load._flow, worker="celery@other:1").claim()
    run.leave("SUCCESS")
    assert result.task_state.state == "SUCCESS"


def test_others_tasks_are_lost_and_no_more(app, queued, gone, until):
    """A sweeper that does not have the task leaves the next step to who has it."""
    load, result = queued()
    gone(load, result)
    app.tasks.pop(load.name)
    until(lambda: sweep(app).lost == [result.id])
    threading.Event().wait(0.4)
    assert sweep(app).failed == []
    assert Settings.of(app).tracker.read(result.id).state == "LOST"


def test_who_cannot_be_told_ends_all_the_same(app, lost, until, monkeypatch):
    """A result backend that is away keeps no other task from being swept."""
    load, result = lost()
    monkeypatch.setattr(
        type(load.own_backend), "mark_as_failure", lambda *_, **__: 1 / 0, raising=True
    )
    until(lambda: sweep(app).failed == [result.id])
    assert Settings.of(app).tracker.read(result.id).state == "FAILURE"


def test_what_has_expired_does_not_stay_lost(app, queued, gone):
    """Its message comes again too late to be run: REVOKED, as Celery says."""
    load, result = queued()
    gone(load, result, comes_again=True)
    Settings.of(app).tracker.lose(result.id, lambda _: True, reason="by hand")
    load.backend.mark_as_revoked(result.id, "expired", request=load.request)
    assert result.task_state.state == "REVOKED"


@threads
def test_a_quiet_run_that_seemed_lost_says_that_it_lives(app, work, gate, ended, until, states_of):
    """Without a call of its own, before its time of grace is over."""
    begun, go = gate(), gate()
    app.conf.update(statekit_lost_grace=30)

    @app.task(base=StatefulTask)
    def load():
        begun.set()
        go.wait(60)

    work()
    result = load.delay()
    assert begun.wait()
    Settings.of(app).tracker.lose(result.id, lambda _: True, reason="its machine stood still")
    until(lambda: Settings.of(app).tracker.read(result.id).state == "STARTED")
    go.set()
    ended(result)
    assert states_of(result) == ["PENDING", "STARTED", "LOST", "STARTED", "SUCCESS"]
