"""What readers of a result get: the record, its history, and news of it until the end."""

from __future__ import annotations

import asyncio
import threading

import pytest
from celery import chain, chord
from celery.exceptions import Ignore

from celery_statekit import StatefulResult, StatefulTask, States, Watcher, open_store
from celery_statekit.errors import StateNotReached, UnknownTask, WatchTimeout
from celery_statekit.settings import Settings


class Import(States):
    READING = "Reading the file"
    IMPORTING = "Importing rows"
    INDEXING = "Rebuilding the index"


@pytest.fixture
def go(gate):
    """Opened when the task may go on."""
    return gate()


@pytest.fixture
def load(app, go):
    """A task that waits in IMPORTING until ``go`` is set."""

    @app.task(bind=True, base=StatefulTask, states=Import, name="shop.load")
    def load(self):
        self.enter(Import.READING)
        self.enter(Import.IMPORTING)
        self.progress.set(1, 2)
        go.wait()
        self.progress.set(2, 2)
        return "loaded"

    return load


def test_task_state_is_one_snapshot(load, work, ended, go):
    """``task_state`` says all that is known of the task, and cannot be changed."""
    work()
    go.set()
    result = load.delay()
    state = ended(result)
    assert (state.id, state.task, state.state) == (result.id, "shop.load", "SUCCESS")
    assert (state.attempt, state.final, state.source, state.known) == (1, True, "record", True)
    assert state.queued_at <= state.started_at <= state.ended_at
    with pytest.raises(AttributeError):
        state.state = "FAILURE"


def test_history_numbers_have_no_gaps(load, work, ended, go):
    """Changes are numbered from 1 without gaps, and each begins where the last one ended."""
    work()
    go.set()
    result = load.delay()
    state = ended(result)
    history = result.history()
    assert [change.number for change in history] == list(range(1, len(history) + 1))
    assert state.changes == len(history)
    assert [change.from_state for change in history[1:]] == [
        change.to_state for change in history[:-1]
    ]
    assert history[0].from_state == ""
    versions = [change.version for change in history]
    assert versions == sorted(set(versions))


def test_history_can_be_read_in_parts(load, work, ended, go):
    """``after`` and ``limit`` give the part of the history that is asked for."""
    work()
    go.set()
    result = load.delay()
    ended(result)
    history = result.history()
    assert result.history(after=2) == history[2:]
    assert result.history(after=1, limit=2) == history[1:3]
    assert result.history(after=99) == []


def test_failure_says_what_went_wrong(app, work, ended):
    """FAILURE carries the type and the message of the exception, and one line of it."""

    @app.task(base=StatefulTask)
    def load():
        raise KeyError("orders.csv")

    work()
    state = ended(load.delay())
    assert state.error == {"type": "KeyError", "message": "'orders.csv'"}
    assert state.reason == "KeyError: 'orders.csv'"


def test_message_of_an_error_is_cut(app, work, ended):
    """A long message does not fill the store."""
    app.conf.statekit_message_bytes = 100

    @app.task(base=StatefulTask)
    def load():
        raise ValueError("x" * 100_000)

    work()
    state = ended(load.delay())
    assert state.state == "FAILURE"
    assert len(state.error["message"]) <= 100
    assert len(state.reason) <= 100


# --- watch ---------------------------------------------------------------------------------------


def test_watch_begins_with_the_state_now_and_ends_with_the_end(load, work, go, until):
    """``watch`` gives the state as it stands, then newer ones, and the end as the last."""
    work()
    result = load.delay()
    until(lambda: (now := result.task_state).progress and now.progress.current == 1)
    seen = []
    for state in result.watch(timeout=10):
        seen.append(state)
        go.set()
    assert (seen[0].state, seen[0].progress.current) == ("IMPORTING", 1)
    assert (seen[-1].state, seen[-1].progress.current, seen[-1].final) == ("SUCCESS", 2, True)
    versions = [state.version for state in seen]
    assert versions == sorted(set(versions))
    assert {state.source for state in seen} == {"record"}


def test_watch_begins_while_the_task_is_queued(load, work, go):
    """A watcher that comes before any worker sees PENDING first, then the run."""
    result = load.delay()
    seen = []
    for state in result.watch(timeout=10):
        if not seen:
            work()
            go.set()
        seen.append(state.state)
    assert (seen[0], seen[-1]) == ("PENDING", "SUCCESS")


def test_slow_watcher_gets_the_newest(app, work, gate):
    """A watcher that takes its time gets the newest state, not a backlog, and the end."""
    step, passed = gate(), gate()

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        step.wait()
        for number in range(30):
            self.enter(f"STATE_{number}")
        passed.set()

    work()
    result = load.delay()
    seen = []
    for state in result.watch(timeout=10):
        seen.append(state.state)
        step.set()
        assert passed.wait()
    assert len(seen) <= 3
    assert seen[-1] == "SUCCESS"


def test_watch_of_an_ended_task_gives_the_end(load, work, ended, go):
    """Watching a task that has ended gives its end, and stops."""
    work()
    go.set()
    result = load.delay()
    end = ended(result)
    assert list(result.watch(timeout=10)) == [end]


def test_watch_after_a_version_gives_newer_ones_only(app, load, work, go, until):
    """``after=`` resumes: what was seen does not come again, and nothing else comes instead."""
    work()
    result = load.delay()
    until(lambda: result.state == "IMPORTING" and result.info["current"] == 1)
    version = result.task_state.version
    store, reads, states = Settings.of(app).store, [], []
    read = store.read

    def counted(key):
        reads.append(key)
        return read(key)

    store.read = counted
    watching = threading.Thread(
        target=lambda: states.extend(result.watch(after=version, timeout=10))
    )
    watching.start()
    until(lambda: len(reads) > 3)
    go.set()
    watching.join(10)
    assert {state.source for state in states} == {"record"}
    assert min(state.version for state in states) > version
    assert states[-1].state == "SUCCESS"


@pytest.mark.parametrize("ignore_result", [True, False])
def test_watch_after_the_end_stops(app, work, until, ignore_result):
    """A watcher that has seen the end, and comes again, is not kept waiting."""

    @app.task(base=StatefulTask, ignore_result=ignore_result)
    def load():
        """Nothing."""

    work()
    result = load.delay()
    end = until(lambda: (now := result.task_state).final and now)
    assert all(state == end for state in result.watch(after=end.version, timeout=1))


def test_watch_times_out(load, work, until, go):
    """``timeout`` is an error that says where the task stands."""
    work()
    result = load.delay()
    until(lambda: result.task_state.state == "IMPORTING")
    with pytest.raises(WatchTimeout) as raised:
        list(result.watch(timeout=0.05))
    assert (raised.value.id, raised.value.state) == (result.id, "IMPORTING")
    assert isinstance(raised.value, TimeoutError)
    go.set()


def test_awatch_leaves_the_event_loop_free(load, work, go):
    """``async for`` over ``awatch`` gives the same, and other coroutines run meanwhile."""
    work()
    result = load.delay()

    async def watch():
        seen = []
        async for state in result.awatch(timeout=10):
            seen.append(state.state)
        return seen

    async def both():
        watching = asyncio.create_task(watch())
        while result.task_state.state != "IMPORTING":
            await asyncio.sleep(0.002)
        turns = 0
        while turns < 50:  # turns that a blocked loop would not get
            await asyncio.sleep(0)
            turns += 1
        assert not watching.done()
        go.set()
        return await asyncio.wait_for(watching, 10)

    seen = asyncio.run(both())
    assert seen[-1] == "SUCCESS"


def test_awatch_does_not_block_while_the_store_does(load, work, app, go, gate, until):
    """While the store takes its time to answer, the event loop turns."""
    work()
    result = load.delay()
    until(lambda: result.task_state.state == "IMPORTING")
    asked, answer = gate(), gate()
    store = Settings.of(app).store
    read = store.read

    def slow_read(key):
        asked.set()
        answer.wait()
        return read(key)

    store.read = slow_read

    async def first():
        async for state in result.awatch(timeout=10):
            return state.state
        return None

    async def both():
        watching = asyncio.create_task(first())
        while not asked.is_set():
            await asyncio.sleep(0.002)
        answer.set()
        return await asyncio.wait_for(watching, 10)

    assert asyncio.run(both()) == "IMPORTING"
    go.set()


# --- wait ----------------------------------------------------------------------------------------


def test_wait_until_a_state(load, work, go):
    """``wait(until=state)`` returns when the task has entered it."""
    work()
    result = load.delay()
    state = result.wait(until=Import.IMPORTING, timeout=10)
    assert state.state == "IMPORTING"
    go.set()


def test_wait_until_a_state_that_was_passed(load, work, go, ended):
    """A state that was entered and left before anybody looked counts."""
    work()
    go.set()
    result = load.delay()
    ended(result)
    assert result.wait(until="READING", timeout=10).state == "SUCCESS"


def test_wait_returns_a_state_in_which_it_was_seen(app, load, work, go, until):
    """A state entered while ``wait`` reads is seen at its next look, never in an older state."""
    work()
    result = load.delay()
    until(lambda: result.task_state.state == "IMPORTING")
    store = Settings.of(app).store
    history = store.history

    def meanwhile_it_ends(key, after=0, limit=100):
        go.set()
        until(lambda: result.task_state.final)
        return history(key, after, limit)

    store.history = meanwhile_it_ends
    assert result.wait(until="SUCCESS", timeout=10).final


def test_wait_until_one_of_several(load, work, go):
    """Several states may be waited for: the first one entered counts."""
    work()
    result = load.delay()
    state = result.wait(until=[Import.INDEXING, "IMPORTING"], timeout=10)
    assert state.state == "IMPORTING"
    go.set()


def test_wait_until_a_predicate_holds(load, work, go):
    """A function of the state may be waited for."""
    work()
    result = load.delay()
    state = result.wait(until=lambda now: now.progress is not None, timeout=10)
    assert state.progress.current == 1
    go.set()


def test_wait_until_an_end(load, work, go):
    """An end may be waited for by its name."""
    work()
    go.set()
    assert load.delay().wait(until="SUCCESS", timeout=10).final


def test_wait_for_a_state_that_is_not_reached(load, work, go):
    """A task that ends without it raises what it ended as."""
    work()
    go.set()
    result = load.delay()
    with pytest.raises(StateNotReached) as raised:
        result.wait(until=[Import.INDEXING], timeout=10)
    assert raised.value.awaited == ("INDEXING",)
    assert (raised.value.id, raised.value.state) == (result.id, "SUCCESS")


def test_wait_for_a_predicate_that_never_holds(load, work, go):
    """So does a predicate that never held."""
    work()
    go.set()
    with pytest.raises(StateNotReached):
        load.delay().wait(until=lambda now: now.attempt == 5, timeout=10)


def test_wait_times_out(load, work, go):
    """``timeout`` is a WatchTimeout."""
    work()
    with pytest.raises(WatchTimeout):
        load.delay().wait(until=Import.INDEXING, timeout=0.05)
    go.set()


def test_wait_without_until_is_celerys_wait(load, work, go):
    """Without ``until`` it is ``get``, as in Celery."""
    work()
    go.set()
    assert load.delay().wait(timeout=10, interval=0.01) == "loaded"


# --- ids that have no record ---------------------------------------------------------------------


def test_id_that_was_never_sent_is_unknown(load):
    """An id that nobody knows is UNKNOWN, not PENDING, and has no history."""
    result = load.AsyncResult("never-sent")
    state = result.task_state
    assert (state.state, state.known, state.source, state.version) == (
        "UNKNOWN",
        False,
        "nobody",
        0,
    )
    assert result.history() == []


def test_watching_an_id_that_nobody_knows_ends(app, load):
    """Watching it raises ``UnknownTask`` after a while, as waiting for it does."""
    Settings.of(app).watcher.patience = 0.03
    Settings.of(app).watcher.poll = 0.005
    result = load.AsyncResult("never-sent")
    with pytest.raises(UnknownTask) as raised:
        list(result.watch())
    assert raised.value.id == "never-sent"
    with pytest.raises(UnknownTask):
        result.wait(until=Import.READING)
    assert isinstance(raised.value, LookupError)


def test_watching_an_id_before_it_is_sent(load, work, go):
    """An id that is sent a moment later is watched from then on."""
    go.set()
    work()
    seen = []
    result = load.AsyncResult("sent-soon")
    watching = threading.Thread(
        target=lambda: seen.extend(state.state for state in result.watch(timeout=10))
    )
    watching.start()
    load.apply_async(task_id="sent-soon")
    watching.join(10)
    assert seen[-1] == "SUCCESS"


def test_later_steps_of_a_failed_chain_are_known_from_celery(app, work, ended, until):
    """A step that never ran because one before it failed is FAILURE, as Celery says."""

    @app.task(base=StatefulTask)
    def fail(*_):
        raise ValueError("first")

    @app.task(base=StatefulTask)
    def after(*_):
        """Never run."""

    work()
    result = chain(fail.s(), after.s(), after.s()).apply_async()
    assert ended(result.parent.parent).state == "FAILURE"
    until(result.ready)
    for step in (result, result.parent):
        state = step.task_state
        assert (state.state, state.source, state.final) == ("FAILURE", "celery", True)
        assert state.error["type"] == "ValueError"
        assert step.history() == []
        assert [seen.state for seen in step.watch(timeout=10)] == ["FAILURE"]
        assert step.wait(until="FAILURE", timeout=10).final


def test_body_of_a_failed_chord_is_known_from_celery(app, work, until):
    """The body of a chord whose member failed is FAILURE, as Celery says."""

    @app.task(base=StatefulTask)
    def fail():
        raise ValueError("member")

    @app.task(base=StatefulTask)
    def body(_):
        """Never run."""

    work()
    result = chord([fail.s(), fail.s()], body.s()).apply_async()
    until(result.ready)
    assert (result.task_state.state, result.task_state.source) == ("FAILURE", "celery")


def test_result_from_an_id(app, load, work, ended, go):
    """``StatefulResult(id, app=app)`` reads the same as the result of ``delay``."""
    work()
    go.set()
    result = load.delay()
    end = ended(result)
    again = StatefulResult(result.id, app=app)
    assert (again.task_state, again.history()) == (end, result.history())
    assert again.get(timeout=5) == "loaded"


def test_forget_forgets_both(load, work, ended, go):
    """After ``forget`` neither Celery nor the record says anything of the task."""
    work()
    go.set()
    result = load.delay()
    ended(result)
    result.forget()
    again = load.AsyncResult(result.id)
    assert again.task_state.state == "UNKNOWN"
    assert again.state == "PENDING"


def test_watcher_needs_no_task(load, work, go, ended, store_url):
    """A web process reads records by id with a Watcher, without the tasks."""
    if store_url.startswith("memory"):
        store = open_store(store_url)
    else:
        store = open_store(store_url, timeout=1.0)
    work()
    go.set()
    result = load.delay()
    end = ended(result)
    watcher = Watcher(store)
    assert watcher.get(result.id) == end
    assert list(watcher.watch(result.id, timeout=5)) == [end]
    store.close()


def test_watch_stops_when_the_task_is_ignored(app, work):
    """Nothing more comes of a task that raised ``Ignore``: its watcher is not kept waiting."""

    @app.task(base=StatefulTask)
    def load():
        raise Ignore

    work()
    assert [state.state for state in load.delay().watch(timeout=10)][-1] == "IGNORED"


def test_task_state_knows_a_revocation_that_no_worker_has_seen(app):
    """A queued task that Celery's backend says is REVOKED is not shown as PENDING."""

    @app.task(base=StatefulTask)
    def load():
        """Never run."""

    result = load.delay()
    app.backend.mark_as_revoked(result.id, "by hand")
    assert (result.task_state.state, result.task_state.source) == ("REVOKED", "celery")
