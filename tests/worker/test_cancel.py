"""Cancel: a run is told at its state calls, cleans up, and ends as REVOKED with all that hangs on it."""

from __future__ import annotations

import copy
import threading
import time
import uuid

import pytest
from celery import Task, chain, chord, group
from celery.exceptions import ChordError, Ignore, Reject, Retry, TaskRevokedError
from celery.result import AsyncResult
from kombu.transport import memory

from celery_statekit import ClientState, StatefulResult, StatefulTask, States, signals
from celery_statekit.attempt import Attempt
from celery_statekit.errors import AttemptEnded, Cancelled, InvalidInput, UnknownTask
from celery_statekit.settings import Settings
from celery_statekit.states import task_flow
from celery_statekit.tracker import Tracker

WAIT = 10


class Import(States):
    READING = "Reading the file"
    IMPORTING = "Importing rows"


def enter(self, _):
    self.enter(Import.IMPORTING if self.task_state.state == "READING" else Import.READING)


#: Each sort of state call, made again and again.
CALLS = {
    "enter": enter,
    "track": lambda self, _: list(self.track(range(1))),
    "update": lambda self, _: self.progress.update(1),
    "update by nothing": lambda self, _: self.progress.update(0),
    "set": lambda self, n: self.progress.set(n, message="counting"),
    "steps": lambda self, n: self.progress.step(f"step {n}"),
    "checkpoint": lambda self, n: self.checkpoint(n),
    "update_state": lambda self, n: self.update_state(state="PROGRESS", meta={"current": n}),
    "update_state of a name": lambda self, n: self.update_state(state=f"S{n}"),
    "retry": lambda self, _: self.retry(countdown=60),
}


@pytest.fixture
def begun(gate):
    """An event for a task to say that it has begun, and one for it to wait for."""
    return gate(), gate()


def cancelled(result, state):
    """Whoever waits is told; record and result agree."""
    with pytest.raises(TaskRevokedError) as told:
        result.get(timeout=WAIT)
    assert (state.state, result.state) == ("REVOKED", "REVOKED")
    assert str(told.value) == state.reason
    return state


# --- what is seen, and where ---------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
def test_it_is_seen_at_each_sort_of_state_call(app, work, begun, ended, until, states_of, call):
    """``Cancelled`` is raised there with its facts; then the task ends as REVOKED."""
    raised = []
    declared = Import if call == "enter" else None

    @app.task(bind=True, base=StatefulTask, states=declared, max_retries=None)
    def load(self):
        begun[0].set()
        begun[1].wait()
        try:
            for number in range(100_000):
                CALLS[call](self, number)
                if call == "enter" and number:
                    break
                time.sleep(0.001)
        except Cancelled as told:
            raised.append(told)
            raise

    work()
    result = load.delay()
    assert begun[0].wait()
    assert result.cancel("no longer wanted", by="ada") is True
    begun[1].set()
    state = cancelled(result, ended(result))

    assert state.reason == "no longer wanted"
    assert (state.asked.what, state.asked.by) == ("cancel", "ada")
    until(lambda: result.task_state.asked.seen)
    (told,) = raised
    facts = (told.task, told.id, told.reason, told.by)
    assert facts == (load.name, result.id, "no longer wanted", "ada")
    assert isinstance(told, Ignore)
    assert states_of(result)[-1] == "REVOKED"
    assert result.history()[-1].detail == {"by": "ada"}


def test_a_slow_loop_without_news_sees_it(app, work, begun, ended):
    """Whatever is written or not: within about ``statekit_progress_interval``."""
    seen = []

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        begun[0].set()
        while True:
            self.progress.update(0)
            seen.append(time.monotonic())
            time.sleep(0.005)

    work()
    result = load.delay()
    assert begun[0].wait()
    time.sleep(0.2)
    asked = time.monotonic()
    result.cancel()
    ended(result)

    assert seen[-1] - asked < 2


def test_a_running_track_ends_between_two_items(app, work, begun, ended):
    """The source is closed, and what came of it counts as done."""
    closed, done = [], []

    def rows():
        try:
            yield from range(10_000)
        finally:
            closed.append(True)

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        for row in self.track(rows(), "rows"):
            begun[0].set()
            done.append(row)
            time.sleep(0.002)

    work()
    result = load.delay()
    assert begun[0].wait()
    result.cancel()
    state = cancelled(result, ended(result))

    assert closed == [True]
    assert state.progress.current == len(done) < 10_000


def test_a_run_that_never_looks_succeeds(app, work, begun, ended):
    """It is not interrupted; what it returns stands, and the record says that it was asked."""

    @app.task(base=StatefulTask)
    def load():
        begun[0].set()
        begun[1].wait()
        return 7

    work()
    result = load.delay()
    assert begun[0].wait()
    assert result.cancel("too late", by="ada") is True
    begun[1].set()
    state = ended(result)

    assert (result.get(timeout=WAIT), state.state) == (7, "SUCCESS")
    assert (state.asked.what, state.asked.seen) == ("cancel", False)


def test_a_run_that_fails_without_looking_fails(app, work, begun, ended):
    """It was never told."""

    @app.task(base=StatefulTask)
    def load():
        begun[0].set()
        begun[1].wait()
        raise ValueError("bad row")

    work()
    result = load.delay()
    assert begun[0].wait()
    result.cancel()
    begun[1].set()

    assert ended(result).state == "FAILURE"
    with pytest.raises(ValueError, match="bad row"):
        result.get(timeout=WAIT)


def test_a_run_without_news_that_is_stale_is_fenced_once(app, work, begun, until, hear):
    """It is looked at again and again; who listens hears of it once."""
    fenced, looks = hear(signals.attempt_fenced), []

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        begun[0].set()
        begun[1].wait()

    work()
    result = load.delay()
    assert begun[0].wait()
    tracker = Settings.of(app).tracker
    read = tracker.store.read
    newer = Attempt.of(Tracker(tracker.store), result.id, load.name, task_flow(None))
    newer.claim()
    until(lambda: fenced)
    tracker.store.read = lambda key: looks.append(key) or read(key)
    time.sleep(0.2)

    assert (len(fenced), looks) == (1, [])


# --- cleaning up ---------------------------------------------------------------------------------


def test_clean_up_runs_and_state_calls_raise_again(app, work, begun, ended):
    """In it, clients are updated and tasks are sent as ever."""
    raised, noted = [], []

    @app.task(base=StatefulTask)
    def note(what):
        noted.append(what)

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        self.enter(Import.READING)
        begun[0].set()
        try:
            while True:
                self.progress.update(1)
                time.sleep(0.001)
        except Cancelled:
            calls = (
                lambda: self.enter(Import.IMPORTING),
                lambda: self.progress.update(1),
                lambda: self.checkpoint(1),
                lambda: list(self.track([1])),
                lambda: self.update_state(meta={"current": 1}),
            )
            for call in calls:
                with pytest.raises(Cancelled):
                    call()
                raised.append(True)
            self.clients(ClientState).update("c-1", lambda client: None, create=True)
            note.delay("cleaned up")
            raise

    work()
    result = load.delay()
    assert begun[0].wait()
    result.cancel()
    state = cancelled(result, ended(result))
    ended(note.delay("after"))

    assert raised == [True] * 5
    assert noted == ["cleaned up", "after"]
    assert state.checkpoint is None
    assert [change.to_state for change in result.history()][-2:] == ["READING", "REVOKED"]


def fails(self):
    raise ValueError("in the clean-up")


def rejects(self):
    raise Reject("no", requeue=True)


def ignores(self):
    raise Ignore


def replaces(self):
    raise self.replace(self.app.tasks["other"].s())


#: What user code makes of a cancel that it was told of.
SWALLOWS = {
    "returns": lambda self: "never mind",
    "raises": fails,
    "retries": lambda self: self.retry(countdown=0),
    "retries without raising": lambda self: self.retry(countdown=0, throw=False) and None,
    "rejects": rejects,
    "ignores": ignores,
    "replaces": replaces,
}


@pytest.mark.parametrize("how", SWALLOWS)
def test_who_was_told_ends_as_revoked(app, work, begun, ended, how, states_of):
    """Whatever the task's code makes of it."""
    runs = []

    @app.task(name="other", base=StatefulTask)
    def other():
        runs.append("other")

    @app.task(bind=True, base=StatefulTask, max_retries=None)
    def load(self):
        runs.append("load")
        begun[0].set()
        try:
            while True:
                self.progress.update(0)
                time.sleep(0.001)
        except Cancelled:
            return SWALLOWS[how](self)

    work()
    result = load.delay()
    assert begun[0].wait()
    result.cancel("stop")
    cancelled(result, ended(result))
    ended(other.apply_async(countdown=0))

    assert runs == ["load", "other"]
    assert states_of(result) == ["PENDING", "STARTED", "REVOKED"]


def test_autoretry_lets_it_through(app, work, begun, ended):
    """``autoretry_for=(Exception,)`` does not try again what was cancelled."""
    runs = []

    @app.task(bind=True, base=StatefulTask, autoretry_for=(Exception,), default_retry_delay=0)
    def load(self):
        runs.append(self.request.retries)
        begun[0].set()
        while True:
            self.progress.update(0)
            time.sleep(0.001)

    work()
    result = load.delay()
    assert begun[0].wait()
    result.cancel()
    cancelled(result, ended(result))

    assert runs == [0]


def test_a_retry_after_an_unseen_cancel_is_not_sent(app, work, begun, ended):
    """The retry looks, though the run did not; so does what autoretry makes of an error."""
    runs = []

    @app.task(bind=True, base=StatefulTask, autoretry_for=(OSError,), default_retry_delay=0)
    def load(self):
        runs.append(self.request.retries)
        begun[0].set()
        begun[1].wait()
        raise OSError

    work()
    result = load.delay()
    assert begun[0].wait()
    result.cancel("stop")
    begun[1].set()
    cancelled(result, ended(result))

    assert runs == [0]


def test_a_retry_that_is_raised_by_hand_is_none_either(app, work, begun, ended, states_of):
    """The run leaves for no other attempt once it was asked to end."""

    @app.task(base=StatefulTask)
    def load():
        begun[0].set()
        begun[1].wait()
        raise Retry("later", when=60)

    work()
    result = load.delay()
    assert begun[0].wait()
    result.cancel("stop")
    begun[1].set()
    cancelled(result, ended(result))

    assert states_of(result) == ["PENDING", "STARTED", "REVOKED"]


# --- what hangs on it ----------------------------------------------------------------------------


@pytest.fixture
def shop(app, work, begun, until):
    """Tasks to make canvases of, and what came of them."""

    class Shop:
        ran, caught = [], []

        def begin(self, result):
            """The task runs; it ends when it is told."""
            assert begun[0].wait()
            return result

        def is_revoked(self, *results):
            for result in results:
                until(lambda result=result: AsyncResult(result.id, app=app).state == "REVOKED")

        def settle(self):
            """What was sent until now has run."""
            assert AsyncResult(shop.add.delay(1, 1).id, app=app).get(timeout=WAIT) == 2

    shop = Shop()

    @app.task(bind=True, base=StatefulTask)
    def wait(self, *_):
        shop.ran.append("wait")
        begun[0].set()
        while True:
            self.progress.update(0)
            time.sleep(0.001)

    @app.task(base=StatefulTask)
    def add(x, y=1):
        shop.ran.append("add")
        return x + y

    @app.task(base=StatefulTask)
    def total(numbers):
        shop.ran.append("total")
        return sum(numbers)

    @app.task(base=Task)
    def caught(request, exc, traceback):
        shop.caught.append((request.id, type(exc).__name__))

    shop.wait, shop.add, shop.total, shop.on_error = wait, add, total, caught
    app.finalize()
    return shop


def test_the_rest_of_a_chain_is_revoked(work, shop, ended):
    """Each later step is REVOKED for who waits for it, and does not run."""
    work()
    result = chain(shop.add.s(1), shop.wait.s(), shop.add.s(), shop.add.s()).apply_async()
    shop.begin(result)
    assert result.parent.parent.cancel("stop") is True

    with pytest.raises(TaskRevokedError, match="stop"):
        result.get(timeout=WAIT)
    shop.is_revoked(result, result.parent, result.parent.parent)
    assert result.parent.parent.parent.state == "SUCCESS"
    shop.settle()
    assert shop.ran == ["add", "wait", "add"]


def test_an_errback_is_called_once(work, shop, until):
    """With the id of the task, and the error that who waits gets."""
    work()
    result = shop.begin(shop.wait.apply_async(link_error=shop.on_error.s()))
    result.cancel("stop")
    shop.is_revoked(result)
    until(lambda: shop.caught)
    shop.settle()

    assert shop.caught == [(result.id, "TaskRevokedError")]


def test_a_chord_whose_header_is_cancelled_fails(app, work, shop):
    """Its body does not run."""
    work()
    joined = chord([shop.add.s(1), shop.wait.s()])(shop.total.s())
    shop.begin(joined)
    joined.parent.results[1].cancel("stop")

    with pytest.raises(ChordError):
        AsyncResult(joined.id, app=app).get(timeout=WAIT)
    shop.is_revoked(joined.parent.results[1])
    shop.settle()
    assert "total" not in shop.ran


def test_a_chords_body_is_cancelled_like_any_task(work, shop, until):
    """Its header has succeeded."""
    work()
    joined = chord([shop.add.s(1), shop.add.s(2)])(shop.wait.s())
    shop.begin(joined)
    until(lambda: joined.cancel("stop"))

    with pytest.raises(TaskRevokedError, match="stop"):
        joined.get(timeout=WAIT)
    assert [result.state for result in joined.parent.results] == ["SUCCESS", "SUCCESS"]


def test_one_of_a_group_is_cancelled(work, shop):
    """The others give what they give."""
    work()
    result = group(shop.add.s(1), shop.wait.s(), shop.add.s(2)).apply_async()
    shop.begin(result)
    result.results[1].cancel("stop")

    shop.is_revoked(result.results[1])
    assert [each.get(timeout=WAIT) for each in (result.results[0], result.results[2])] == [2, 3]
    with pytest.raises(TaskRevokedError):
        result.get(timeout=WAIT)


def test_no_hook_of_a_failure_runs(app, work, begun, ended):
    """Neither ``on_failure`` nor ``after_return``: it did not fail."""
    called = []

    class Base(StatefulTask):
        def on_failure(self, *args, **kwargs):
            called.append("on_failure")

        def after_return(self, *args, **kwargs):
            called.append("after_return")

    @app.task(bind=True, base=Base)
    def load(self):
        begun[0].set()
        while True:
            self.progress.update(0)
            time.sleep(0.001)

    work()
    result = load.delay()
    assert begun[0].wait()
    result.cancel()
    cancelled(result, ended(result))

    assert called == []


def test_watchers_of_events_hear_of_it(app, work, begun, ended, until):
    """``task-revoked``, as of a task that was revoked before it began."""
    heard = []

    class Base(StatefulTask):
        def send_event(self, type_, **fields):
            heard.append((type_, self.request.id, fields))

    @app.task(bind=True, base=Base)
    def load(self):
        begun[0].set()
        while True:
            self.progress.update(0)
            time.sleep(0.001)

    work()
    result = load.delay()
    assert begun[0].wait()
    result.cancel()
    cancelled(result, ended(result))

    until(lambda: heard)
    fields = {"retry": False, "terminated": False, "signum": None, "expired": False}
    assert heard == [("task-revoked", result.id, fields)]


# --- a task that does not run --------------------------------------------------------------------


def test_one_that_waits_ends_at_once(app, work, shop, until):
    """Before any worker sees it; who waits is told at once. Then its message comes, and all ends."""
    result = chain(shop.add.s(1), shop.add.s(2), shop.add.s(3)).apply_async(
        link_error=shop.on_error.s()
    )
    first = result.parent.parent
    until(lambda: first.task_state.state == "PENDING")
    assert first.cancel("not needed", by="ada") is True

    state = first.task_state
    assert (state.state, state.reason, state.attempt) == ("REVOKED", "not needed", 0)
    assert first.history()[-1].detail == {"by": "ada"}
    with pytest.raises(TaskRevokedError, match="not needed"):
        first.get(timeout=WAIT)
    assert result.state == "PENDING"

    work()
    shop.is_revoked(result, result.parent)
    with pytest.raises(TaskRevokedError, match="not needed"):
        result.get(timeout=WAIT)
    until(lambda: shop.caught)
    shop.settle()
    assert shop.ran == ["add"]
    assert shop.caught == [(first.id, "TaskRevokedError")]
    assert [change.to_state for change in first.history()] == ["PENDING", "REVOKED"]


def test_a_message_that_comes_twice_ends_it_once(app, work, shop, until):
    """A broker may deliver twice: errbacks are called once."""
    result = shop.add.apply_async((1,), link_error=shop.on_error.s())
    until(lambda: result.task_state.state == "PENDING")
    queue = memory.Channel.queues[app.conf.task_default_queue]
    for message in list(queue.queue):
        again = copy.deepcopy(message)
        again["properties"]["delivery_tag"] = str(uuid.uuid4())
        queue.put(again)
    result.cancel()
    work()
    shop.settle()
    shop.settle()

    assert shop.ran == ["add", "add"]
    assert shop.caught == [(result.id, "TaskRevokedError")]


def test_a_chord_whose_header_was_cancelled_before_it_began(app, work, shop, until):
    """It fails when the message comes."""
    joined = chord([shop.add.s(1), shop.add.s(2)])(shop.total.s())
    member = joined.parent.results[1]
    until(lambda: member.task_state.state == "PENDING")
    member.cancel("stop")
    work()

    with pytest.raises(ChordError):
        AsyncResult(joined.id, app=app).get(timeout=WAIT)
    shop.settle()
    assert "total" not in shop.ran


def test_one_that_was_forgotten_meanwhile_does_not_run(work, shop, until):
    """Its message comes, and does nothing."""
    result = shop.add.delay(1)
    until(lambda: result.task_state.state == "PENDING")
    result.cancel()
    result.forget()
    work()
    shop.settle()

    assert shop.ran == ["add"]


@pytest.mark.parametrize("wait", [0.2, 3600])
def test_one_that_waits_for_its_retry_ends_at_once(app, work, ended, until, wait):
    """And the next attempt does not begin."""
    runs = []

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        runs.append(self.request.retries)
        raise self.retry(countdown=wait)

    work()
    result = load.delay()
    until(lambda: result.task_state.state == "RETRY")
    assert result.cancel("enough") is True
    cancelled(result, result.task_state)
    time.sleep(0.3)

    assert runs == [0]


def test_one_that_was_replaced_ends_before_its_replacement_begins(app, work, gate, until, ended):
    """The id is that of the replacement, which does not run."""
    go, runs = gate(), []

    @app.task(base=StatefulTask)
    def other():
        runs.append("other")

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        raise self.replace(other.s().set(countdown=0.3))

    work()
    result = load.delay()
    until(lambda: result.task_state.state == "IGNORED")
    assert result.cancel() is True
    cancelled(result, result.task_state)
    time.sleep(0.4)
    go.set()

    assert runs == []


def test_one_that_was_ignored_is_over(app, work, until):
    """Nothing of it will come."""

    @app.task(base=StatefulTask)
    def load():
        raise Ignore

    work()
    result = load.delay()
    until(lambda: result.task_state.state == "IGNORED")

    assert result.cancel() is False
    assert result.pause() is False
    assert result.task_state.asked is None


@pytest.mark.parametrize("end", ["SUCCESS", "FAILURE"])
def test_one_that_has_ended_stays_as_it_is(app, work, ended, end):
    """False; not a version more."""

    @app.task(base=StatefulTask)
    def load():
        if end == "FAILURE":
            raise ValueError

    work()
    result = load.delay()
    before = ended(result)

    assert result.cancel("late") is False
    assert result.cancel("late", hard=True) is False
    assert result.task_state == before


def test_nobody_knows_it(app):
    """``UnknownTask``; Celery says PENDING of any id, which is nothing to know."""
    result = StatefulResult("nobody", app=app)

    for call in (result.cancel, result.pause, result.resume):
        with pytest.raises(UnknownTask) as unknown:
            call()
        assert str(unknown.value) == "nothing is known of 'nobody'"
    assert Settings.of(app).store.read(Settings.of(app).tracker.key("nobody")) is None


@pytest.mark.parametrize(
    "given",
    [
        {"reason": 7},
        {"reason": None},
        {"reason": b"why"},
        {"by": 7},
        {"by": None},
        {"by": "two\nlines"},
        {"by": "x" * 201},
        {"by": "\ud800"},
    ],
)
def test_what_cannot_be_used_changes_nothing(app, until, given):
    """Of cancel, pause and resume alike."""

    @app.task(base=StatefulTask)
    def load():
        """Never run."""

    result = load.delay()
    until(lambda: result.task_state.state == "PENDING")
    before = result.task_state
    calls = [result.cancel, result.pause] + ([result.resume] if "by" in given else [])

    for call in calls:
        with pytest.raises(InvalidInput) as refusal:
            call(**given)
        assert refusal.value.path == next(iter(given))
    assert result.task_state == before
    with pytest.raises(InvalidInput):
        Settings.of(app).tracker.ask(result.id, "sing")


def test_a_long_reason_is_cut(app, until):
    """As every reason is."""

    @app.task(base=StatefulTask)
    def load():
        """Never run."""

    result = load.delay()
    until(lambda: result.task_state.state == "PENDING")
    result.cancel("é" * 5000 + "\ud800")

    assert len(result.task_state.reason.encode()) <= 1024
    assert result.task_state.asked.reason == result.task_state.reason


# --- twice, and at the same time -----------------------------------------------------------------


def test_the_first_of_two_counts(app, work, begun, ended):
    """The second is False, and changes nothing."""

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        begun[0].set()
        begun[1].wait()
        self.progress.update(1)
        list(self.track(range(3)))

    work()
    result = load.delay()
    assert begun[0].wait()
    assert result.cancel("first", by="ada") is True
    version = result.task_state.version
    assert result.cancel("second", by="bob") is False
    assert result.pause() is False
    assert result.task_state.version == version
    assert (result.task_state.asked.reason, result.task_state.asked.by) == ("first", "ada")
    deadline = time.monotonic() + WAIT
    while not result.task_state.asked.seen and time.monotonic() < deadline:
        begun[1].set()
        if result.task_state.final:
            break
    state = ended(result)

    assert state.state in ("REVOKED", "SUCCESS")
    assert state.asked.by == "ada"


def test_cancels_that_race_with_the_end(app, work, ended):
    """One end, which record and result agree on; what was asked in vain changes nothing."""
    rounds, ends = 60, []

    @app.task(bind=True, base=StatefulTask)
    def load(self, items):
        for number in range(items):
            self.checkpoint(number)
        return items

    work()
    for number in range(rounds):
        result = load.delay(number % 20)
        time.sleep(0.0007 * (number % 30))
        asked = result.cancel(str(number))
        state = ended(result)
        ends.append(state.state)

        assert state.state == result.state
        if state.state == "SUCCESS":
            assert result.get(timeout=WAIT) == number % 20
        else:
            assert (state.state, asked) == ("REVOKED", True)
            with pytest.raises(TaskRevokedError):
                result.get(timeout=WAIT)
        final = [change.to_state for change in result.history()]
        assert len([end for end in final if end in ("SUCCESS", "REVOKED")]) == 1
    assert "REVOKED" in ends


def test_many_ask_at_once(app, work, begun, ended):
    """One of them is told that it did."""

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        begun[0].set()
        while True:
            self.progress.update(1)
            time.sleep(0.001)

    work()
    result = load.delay()
    assert begun[0].wait()
    answers = []

    def ask(number):
        answers.append((result.cancel(str(number)), str(number)))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = ended(result)

    ((_, reason),) = [answer for answer in answers if answer[0]]
    assert state.reason == reason


# --- eager, direct -------------------------------------------------------------------------------


@pytest.mark.parametrize("propagates", [False, True])
def test_an_eager_run_is_cancelled(app, propagates):
    """Who called it gets ``TaskRevokedError``."""
    app.conf.update(task_always_eager=True, task_eager_propagates=propagates)
    cleaned = []

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        assert StatefulResult(self.request.id, app=app).cancel("stop", by="ada")
        try:
            self.checkpoint(1)
        finally:
            cleaned.append(self.request.id)

    if propagates:
        with pytest.raises(TaskRevokedError, match="stop"):
            load.delay()
        result = StatefulResult(cleaned[0], app=app)
    else:
        result = load.delay()
        with pytest.raises(TaskRevokedError, match="stop"):
            result.get()
        assert result.state == "REVOKED"
        assert (result.cancel(), result.pause(), result.resume()) == (False, False, False)

    state = result.task_state
    assert (state.state, state.reason, state.asked.by) == ("REVOKED", "stop", "ada")
    assert cleaned == [result.id]


def test_an_eager_retry_is_not_made(app):
    """As in a worker."""
    app.conf.task_always_eager = True
    runs = []

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        runs.append(self.request.retries)
        StatefulResult(self.request.id, app=app).cancel()
        raise self.retry(countdown=0)

    result = load.delay()

    assert (result.state, result.task_state.state, runs) == ("REVOKED", "REVOKED", [0])


def test_a_task_that_is_called_directly_goes_on(app):
    """It has no record, so nobody can ask anything of it."""

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        self.enter(Import.READING)
        return list(self.track(range(3)))

    assert load() == [0, 1, 2]


@pytest.mark.parametrize("state", ["PENDING", "RETRY", "REJECTED", "LOST"])
def test_wherever_a_task_waits_it_ends_at_once(app, state):
    """No run of it goes on; the next one would meet the end."""
    tracker = Tracker(Settings.of(app).store)
    tracker.queue("t-1", "load")
    attempt = Attempt.of(tracker, "t-1", "load", task_flow(None))
    if state == "LOST":
        attempt.claim()
        tracker.lose("t-1", lambda _: True, reason="gone")
    elif state != "PENDING":
        attempt.claim()
        attempt.leave(state)
    answered = tracker.ask("t-1", "cancel", reason="stop")

    assert (answered.answer, answered.changed) == ("revoked", True)
    assert (answered.state.state, answered.state.reason) == ("REVOKED", "stop")
    with pytest.raises(AttemptEnded):
        Attempt.of(tracker, "t-1", "load", task_flow(None)).claim()


def test_who_kills_a_cancelled_run_speaks_for_who_cancelled_it(app):
    """Whatever the worker's main process calls it: the record says why, and by whom."""
    tracker = Settings.of(app).tracker
    attempt = Attempt.of(tracker, "t-1", "load", task_flow(None))
    attempt.claim()
    tracker.ask("t-1", "cancel", reason="the wrong file", by="ada")
    outcome = tracker.end_from_outside("t-1", "load", "REVOKED", reason="terminated")
    attempt.release()
    state = tracker.read("t-1")

    assert (outcome, state.reason) == ("moved", "the wrong file")


def test_what_a_run_did_not_come_to_tell_is_told_when_its_message_comes_again(
    app, work, shop, until, monkeypatch
):
    """It is killed between its end and what follows from it; the broker delivers again."""
    monkeypatch.setattr("celery_statekit.backends.standing.TELLING", 0.1)
    result = chain(shop.add.s(1), shop.add.s(2)).apply_async(link_error=shop.on_error.s())
    first = result.parent
    until(lambda: first.task_state.state == "PENDING")
    tracker = Tracker(Settings.of(app).store)
    attempt = Attempt.of(tracker, first.id, shop.add.name, task_flow(None))
    attempt.claim()
    tracker.ask(first.id, "cancel", reason="stop")
    with pytest.raises(Cancelled):
        attempt.checkpoint(1)
    attempt.leave("REVOKED", reason="stop")
    work()

    for step in (first, result):
        with pytest.raises(TaskRevokedError, match="stop"):
            AsyncResult(step.id, app=app).get(timeout=WAIT)
    until(lambda: shop.caught)
    until(lambda: first.task_state.asked.seen)
    shop.settle()
    assert shop.caught == [(first.id, "TaskRevokedError")]
    assert shop.ran == ["add"]
