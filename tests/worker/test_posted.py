"""PENDING that is sent to a Redis store while its message is published: it is there, once."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress

import pytest
import redis
from celery import Celery, chain, chord, group
from celery import signals as celery_signals
from kombu.exceptions import OperationalError
from kombu.transport import memory
from tests.stores.posting import Answer, PostingStore

from celery_statekit import StatefulTask, flusher, listeners, signals
from celery_statekit.attempt import Attempt
from celery_statekit.errors import AmbiguousWrite, StoreUnavailable
from celery_statekit.listeners import QUEUED, publisher
from celery_statekit.settings import Settings
from celery_statekit.stores import MemoryStore, open_store
from celery_statekit.testing import FailsAt, FaultProxy, LosesReplies

pytestmark = pytest.mark.redis

ALWAYS = 10**9


@pytest.fixture
def place():
    """The worker's pool."""
    return "threads", "redis"


@pytest.fixture
def store_url(redis_url):
    """The store is in Redis."""
    return redis_url


@pytest.fixture
def app(app):
    """The app, with keys of its own."""
    app.conf.statekit_prefix = app.main
    yield app
    Settings.of(app).store.close()


@pytest.fixture(autouse=True)
def rested(until):
    """Wait until nothing is left to be done in the background, of the test before for one."""
    background = flusher.flusher()

    def rest():
        until(lambda: not (background._calls or background._calling or background.is_stuck))

    rest()
    return rest


@pytest.fixture(autouse=True)
def patient(request, monkeypatch):
    """However busy the machine is, PENDING is waited for, but where it is counted for how long."""
    if "waits" not in request.fixturenames:
        monkeypatch.setattr(listeners, "PATIENCE", 20.0)


@pytest.fixture
def put(app):
    """Put a store in place of the app's, before anything has used it."""

    def replace(store):
        Settings.of(app).store = store
        return store

    return replace


@pytest.fixture
def load(app):
    """A task, and how often it has run."""

    @app.task(bind=True, base=StatefulTask, name="shop.load")
    def load(self):
        load.runs.append(self.request.id)
        return "loaded"

    load.runs = []
    return load


@pytest.fixture
def posts(app, monkeypatch):
    """What has come of each attempt to post, as it is made: whether there was anything to wait for."""
    made, store = [], Settings.of(app).store
    post = store.post

    def note(*args, **facts):
        posted = post(*args, **facts)
        made.append(posted is not None)
        return posted

    monkeypatch.setattr(store, "post", note)
    return made


@pytest.fixture
def headers():
    """The headers of each message, as they are sent."""
    sent = []

    def note(headers, **_):
        sent.append(dict(headers))

    celery_signals.after_task_publish.connect(note)
    yield sent
    celery_signals.after_task_publish.disconnect(note)


@pytest.fixture
def before_publish():
    """Connect receivers of Celery's ``before_task_publish``, which are called after ours."""
    connected = []

    def connect(receiver):
        celery_signals.before_task_publish.connect(receiver, weak=False)
        connected.append(receiver)

    yield connect
    for receiver in connected:
        celery_signals.before_task_publish.disconnect(receiver)


@pytest.fixture
def refuse(monkeypatch):
    """Let the broker refuse messages, in a block."""

    @contextmanager
    def refusing(error=OperationalError):
        def put(*_, **__):
            raise error("on purpose")

        with monkeypatch.context() as patch:
            patch.setattr(memory.Channel, "_put", put)
            yield

    return refusing


@pytest.fixture
def waits(monkeypatch):
    """The seconds that publishers were ready to wait: for an answer, or for the flusher."""
    seconds, get, wait = [], listeners.PostedTask.is_written, threading.Event.wait

    def note(posted, patience):
        seconds.append(patience)
        return get(posted, patience)

    class Noting(threading.Event):
        def wait(self, timeout=None):
            seconds.append(timeout)
            return wait(self, timeout)

    call = flusher._Call
    monkeypatch.setattr(listeners.PostedTask, "is_written", note)
    monkeypatch.setattr(
        flusher, "_Call", lambda *args, **facts: call(*args, **facts, tried=Noting())
    )
    return seconds


def pending(result):
    """Whether the task is PENDING, by one change, and by the record that its message names."""
    state = result.task_state
    changes = [change.to_state for change in result.history()]
    return state.state == "PENDING" and changes == ["PENDING"] and state.version == 1


def record_of(result):
    settings = Settings.of(result.app)
    return settings.store.read(settings.tracker.key(result.id))


def named(sent):
    """Incarnation and write of the record that a message's headers name."""
    return tuple(sent[QUEUED].split()[1:3])


def idle(app):
    return Settings.of(app).store._server._idle


# --- it is there ---------------------------------------------------------------------------------


def test_pending_is_there_when_delay_returns(load, posts, headers):
    """By the first publish of a process, which has no connection, and by the next ones."""
    results = []
    for _ in range(5):
        results.append(load.delay())
        assert pending(results[-1])
    assert posts == [False, True, True, True, True]
    for result, sent in zip(results, headers, strict=True):
        record = record_of(result)
        assert named(sent) == (record.incarnation, record.writes[-1])
    assert results[4].task_state.queued_at >= results[0].task_state.queued_at


def test_a_run_takes_up_what_was_posted(load, posts, work, ended, states_of):
    """Without a read, for its message names the record."""
    work()
    results = [load.delay() for _ in range(20)]
    for result in results:
        assert ended(result).attempt == 1
        assert states_of(result) == ["PENDING", "STARTED", "SUCCESS"]
        assert [change.number for change in result.history()] == [1, 2, 3]
    assert True in posts


def test_when_it_is_due_and_when_it_expires(app, load, posts):
    """It lives until then, and as long as results are kept."""
    load.delay()
    store, kept = Settings.of(app).store, app.conf.result_expires.total_seconds()
    with redis.Redis.from_url(app.conf.statekit_store) as client:
        for options, seconds in [
            ({}, 0),
            ({"countdown": 1000}, 1000),
            ({"expires": 2000}, 2000),
            ({"countdown": 3000, "expires": 2000}, 3000),
        ]:
            result = load.apply_async(**options)
            lives = client.pttl(Settings.of(app).tracker.key(result.id)) / 1000 - kept
            assert seconds - 60 < lives <= seconds
            assert pending(result)
            due_at = result.task_state.due_at
            assert (due_at is None) == ("countdown" not in options)
    app.conf.result_expires = None
    Settings.of(app).__dict__.pop("tracker")
    assert Settings.of(app).store is store
    with redis.Redis.from_url(app.conf.statekit_store) as client:
        assert client.pttl(Settings.of(app).tracker.key(load.delay().id)) == -1
    assert posts == [False] + [True] * 5


def test_whose_it_is(app, load, posts, headers):
    """The client's id travels with the message, and finds the record."""
    load.delay()
    result = load.apply_async(client_id="c-7")
    assert result.task_state.client_id == "c-7"
    assert headers[-1]["client_id"] == "c-7"
    tracker = Settings.of(app).tracker
    kind = tracker.key(result.id).rpartition(":")[0]
    found = Settings.of(app).store.find(kind, client="c-7", state="PENDING")
    assert [each.key for each in found] == [tracker.key(result.id)]
    assert posts == [False, True]


@pytest.mark.parametrize("id", ["a b/c:d", "caf\u00e9", "x" * 300])
def test_odd_ids(load, posts, headers, id):
    """What is posted names itself as what is written does."""
    load.delay()
    result = load.apply_async(task_id=id)
    assert pending(result)
    assert result.task_state.id == id
    record = record_of(result)
    assert named(headers[-1]) == (record.incarnation, record.writes[-1])
    assert posts == [False, True]


def test_send_task_by_name(app, load, posts):
    """As by the task itself."""
    results = [app.send_task("shop.load") for _ in range(2)]
    assert all(pending(load.AsyncResult(result.id)) for result in results)
    assert posts == [False, True]


def test_another_app_sends_it(app, load, posts, refuse):
    """Nobody sees whether its message leaves: it is written, and its app's own are posted."""
    load.delay()
    other = Celery("other", broker="memory://", set_as_current=False)
    result = other.send_task("shop.load", queue=app.conf.task_default_queue)
    assert pending(load.AsyncResult(result.id))
    with refuse():
        for _ in range(10):
            with pytest.raises(OperationalError):
                other.send_task("shop.load", queue="q", retry=False)
    assert posts == [False]
    assert pending(load.delay())
    assert posts == [False, True]
    assert publisher.pending is None


def test_canvas(app, posts, work, ended, states_of):
    """Each part of chains, groups and chords is PENDING first, once."""

    @app.task(base=StatefulTask)
    def add(x, y=1):
        return x + y

    @app.task(base=StatefulTask)
    def total(numbers):
        return sum(numbers)

    add.delay(0)
    work()
    last = chain(add.s(1), add.s(2), add.s(3))()
    members = group(add.s(n) for n in range(5))()
    body = chord([add.s(n) for n in range(3)])(total.s())
    assert last.get(timeout=10, interval=0.005) == 7
    assert members.get(timeout=10, interval=0.005) == [1, 2, 3, 4, 5]
    assert body.get(timeout=10, interval=0.005) == 6
    parts = [last, last.parent, last.parent.parent, *members, *body.parent, body]
    for part in parts:
        assert ended(part).state == "SUCCESS"
        assert states_of(part) == ["PENDING", "STARTED", "SUCCESS"]
    assert sum(posts) >= len(parts) - 4  # a thread of the worker that has no connection yet


def test_a_run_publishes(app, load, posts, work, ended, states_of):
    """For the client that it runs for itself."""

    @app.task(base=StatefulTask)
    def parent():
        return [load.delay().id for _ in range(3)]

    load.delay()
    work()
    result = parent.apply_async(client_id="c-7")
    for id in result.get(timeout=10, interval=0.005):
        child = load.AsyncResult(id)
        assert ended(child).client_id == "c-7"
        assert states_of(child) == ["PENDING", "STARTED", "SUCCESS"]
    assert posts.count(True) >= 3


def test_many_threads_publish(app, load, posts):
    """At once, each with a connection of its own; no answer is taken for another's."""
    load.delay()
    start = threading.Barrier(20)

    def publish(_):
        start.wait(10)
        return [load.delay() for _ in range(10)]

    with ThreadPoolExecutor(20) as pool:
        results = [result for each in pool.map(publish, range(20)) for result in each]
    assert all(map(pending, results))
    assert True in posts[1:]
    assert len(posts) == 201
    assert len(idle(app)) <= 21


def test_a_fork_between_publishes(app, load, posts):
    """Parent and child go on with connections of their own."""
    before = [load.delay(), load.delay()]
    ids = [f"{before[0].id}-{number}" for number in range(3)]
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            seen = [pending(load.apply_async(task_id=id)) for id in ids]
            os._exit(0 if seen == [True] * 3 and posts == [False, True, False, True, True] else 1)
        os._exit(2)
    after = [load.delay() for _ in range(3)]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert all(map(pending, before + after))
    assert all(pending(load.AsyncResult(id)) for id in ids)
    assert posts == [False, True, True, True, True]


GREENLETS = """
from gevent import monkey
monkey.patch_all()
import json, sys
import gevent
from celery import Celery
from celery_statekit import StatefulTask, listeners
from celery_statekit.settings import Settings

listeners.PATIENCE = 20.0
app = Celery("greenlets", broker="memory://", set_as_current=False)
app.conf.update(statekit_store=sys.argv[1], statekit_prefix=sys.argv[2])

@app.task(base=StatefulTask, name="shop.load")
def load():
    pass

store, posts = Settings.of(app).store, []
post = store.post
def note(*args, **facts):
    posted = post(*args, **facts)
    posts.append(posted is not None)
    return posted
store.post = note

def publish():
    results = [load.delay() for _ in range(5)]
    return [[change.to_state for change in result.history()] for result in results]

greenlets = [gevent.spawn(publish) for _ in range(40)]
gevent.joinall(greenlets, raise_error=True, timeout=40)
print(json.dumps([[greenlet.value for greenlet in greenlets], posts.count(True)]))
"""


def test_many_greenlets_publish(app, redis_url):
    """Under gevent, where one waits for the store the others go on."""
    pytest.importorskip("gevent")
    ran = subprocess.run(
        [sys.executable, "-c", GREENLETS, redis_url, app.main],
        check=True, timeout=50, stdout=subprocess.PIPE,
    )  # fmt: skip
    seen, posted = json.loads(ran.stdout)
    assert seen == [[["PENDING"]] * 5] * 40
    assert posted > 100


# --- the same id again ---------------------------------------------------------------------------


def test_sent_again_while_it_is_pending(load, posts, caplog):
    """It is PENDING as it was."""
    load.delay()
    result = load.apply_async(task_id="chosen-1")
    record = record_of(result)
    assert pending(load.apply_async(task_id="chosen-1", countdown=100))
    assert record_of(result) == record
    assert posts == [False, True, True]
    assert not [r for r in caplog.records if r.name.startswith("celery_statekit")]


def test_sent_again_after_its_end(load, work, ended, states_of, caplog):
    """It is said, and it does not run again."""
    caplog.set_level(logging.WARNING, "celery_statekit")
    load.delay()
    work()
    result = load.apply_async(task_id="chosen-2")
    ended(result)
    said = "was sent again after its end (SUCCESS): it will not run"
    assert said not in caplog.text
    load.apply_async(task_id="chosen-2")
    assert said in caplog.text
    ended(load.delay())  # the queue is empty
    assert load.runs.count("chosen-2") == 1
    assert states_of(result) == ["PENDING", "STARTED", "SUCCESS"]


def test_sent_again_after_it_was_forgotten(load, work, ended, until, caplog):
    """It begins anew."""
    load.delay()
    work()
    result = load.apply_async(task_id="chosen-3")
    ended(result)
    result.forget()
    assert result.task_state.state == "UNKNOWN"
    again = load.apply_async(task_id="chosen-3")
    until(lambda: load.runs.count("chosen-3") == 2)
    assert ended(again).state == "SUCCESS"
    assert not [r for r in caplog.records if r.name.startswith("celery_statekit")]


# --- a message that does not leave ---------------------------------------------------------------


@pytest.mark.parametrize("how", ["apply_async", "send_task"])
def test_what_was_not_sent_is_not_pending(app, load, posts, refuse, how):
    """The broker refuses it: nobody knows of it, and nothing is left of the way to the store."""
    send = load.apply_async if how == "apply_async" else lambda **o: app.send_task(load.name, **o)
    load.delay()
    for number in range(10):
        with refuse(), pytest.raises(OperationalError):
            send(task_id=f"refused-{number}", retry=False)
        assert load.AsyncResult(f"refused-{number}").task_state.state == "UNKNOWN"
        assert load.AsyncResult(f"refused-{number}").history() == []
    assert posts == [False] + [True] * 10
    assert len(idle(app)) <= 2
    assert publisher.pending is None
    assert pending(load.delay())


def test_what_cannot_be_sent_is_not_pending(load, posts):
    """Nor what no serializer takes."""
    load.delay()
    with pytest.raises(TypeError):
        load.apply_async((object(),), task_id="object")
    assert load.AsyncResult("object").task_state.state == "UNKNOWN"
    assert posts[1:] in ([], [True])


def test_what_was_sent_before_stays_pending_though_that_is_found_late(
    load, put, gate, until, waits, rested, refuse
):
    """The store hangs while the second message is refused."""
    answer = gate()

    class Hangs(MemoryStore):
        hangs = False

        def write(self, record, **facts):
            if self.hangs:
                answer.wait(60)
            return super().write(record, **facts)

    store = put(Hangs(None))
    results = [load.delay(), load.delay()]
    store.hangs = True
    with refuse():
        for result in results:
            with pytest.raises(OperationalError):
                load.apply_async(task_id=result.id, retry=False)
    assert waits == [0.25] * 3
    answer.set()
    rested()
    assert all(map(pending, results))


def test_what_was_sent_before_stays_pending(load, posts, refuse):
    """That its id could not be sent a second time says nothing of the first message."""
    for _ in range(2):  # by a write, and posted
        result = load.delay()
        with refuse(), pytest.raises(OperationalError):
            load.apply_async(task_id=result.id, retry=False)
        assert pending(result)
    assert posts == [False, True, True, True]


def test_a_publish_that_is_interrupted(app, load, posts, refuse):
    """By what is no error: whether it was sent is not known, and nothing is left open."""
    load.delay()
    for _ in range(10):
        with refuse(KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            load.delay()
    assert len(idle(app)) == 1
    assert publisher.pending is None
    assert posts == [False] + [True] * 10
    assert pending(load.delay())


def test_a_publish_within_a_publish(app, load, posts, before_publish, refuse):
    """Each is recorded as what it is: which of them fails makes no difference to the other."""

    @app.task(base=StatefulTask, name="shop.audit")
    def audit():
        """Never run."""

    inner = []

    def receive(sender, headers, **_):
        if sender == "shop.load":
            assert publisher.pending is not None
            inner.append(audit.AsyncResult(f"inner-{headers['id']}"))
            with suppress(OperationalError), fails["inner"]():
                audit.apply_async(task_id=inner[-1].id, retry=False)

    before_publish(receive)
    passes = fails = {"inner": suppress}
    audit.delay()
    outer = load.delay()
    assert pending(outer)
    assert pending(inner[-1])

    fails = {"inner": refuse}
    outer = load.delay()
    assert pending(outer)
    assert inner[-1].task_state.state == "UNKNOWN"

    fails = passes

    def receive_last(sender, **_):
        if sender == "shop.load":
            raising.__enter__()

    raising = refuse()
    before_publish(receive_last)
    try:
        with pytest.raises(OperationalError):
            load.apply_async(task_id="outer", retry=False)
    finally:
        raising.__exit__(None, None, None)
    assert load.AsyncResult("outer").task_state.state == "UNKNOWN"
    assert pending(inner[-1])
    assert posts == [False] + [True, False] + [True] * 4
    assert publisher.pending is None


# --- who hears of it -----------------------------------------------------------------------------


def test_who_hears_of_pending_hears_before_the_message_is_sent(load, posts, headers, hear):
    """Once, and of what was written; the task is sent again, and nobody hears of that."""
    heard = hear(signals.state_changed)
    told = []

    def note(change, **_):
        told.append(
            (
                threading.current_thread().name,
                len(headers),
                load.AsyncResult(change.task_id).task_state.state,
            )
        )

    signals.state_changed.connect(note)
    results = [load.delay() for _ in range(3)]
    load.apply_async(task_id=results[0].id)
    signals.state_changed.disconnect(note)
    assert heard == [result.history()[0] for result in results]
    assert told == [("statekit-flusher", number, "PENDING") for number in range(3)]


def test_a_task_with_a_hook_hears_of_it_too(app, load, posts):
    """And where nobody hears of a task's changes, it is not waited for."""
    heard = []

    class Hooked(StatefulTask):
        def on_state_change(self, change):
            heard.append((change.to_state, threading.current_thread().name))

    @app.task(base=Hooked, name="shop.hooked")
    def hooked():
        """Never run."""

    def receive(**_):
        raise AssertionError

    load.delay()
    signals.state_changed.connect(receive, sender="shop.other")
    try:
        hooked.delay()
        load.delay()
    finally:
        signals.state_changed.disconnect(receive, sender="shop.other")
    assert heard == [("PENDING", "statekit-flusher")]
    assert posts == [False, True]


def test_a_receiver_holds_up_no_publish(load, gate, until, waits):
    """It may take its time."""
    hears, go = gate(), gate()

    def receive(**_):
        hears.set()
        go.wait()

    signals.state_changed.connect(receive)
    try:
        results = [load.delay() for _ in range(3)]
        assert waits == [0.25]
        assert hears.wait()
        go.set()
        until(lambda: all(map(pending, results)))
    finally:
        signals.state_changed.disconnect(receive)


# --- stores that fail on purpose -----------------------------------------------------------------


FAILURES = [(mode, after) for mode in ("error", "doubt") for after in (False, True)]


@pytest.mark.parametrize(("mode", "after"), FAILURES)
@pytest.mark.parametrize(("n", "lasts"), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)])
def test_whichever_call_fails(load, put, headers, rested, n, lasts, mode, after):
    """One that fails alone loses nothing; of more PENDING may be skipped. It is there once."""
    there = PostingStore(None)
    store = put(FailsAt(there, n, n + lasts - 1, mode=mode, after=after))
    key = Settings.of(load.app).tracker.key
    for number in range(3):
        result = load.delay()
        rested()
        record = there.read(key(result.id))
        changes = [change.to_state for change in there.history(key(result.id))]
        assert changes == ["PENDING"] * (record is not None)
        assert record is not None or lasts > 1
        if record is not None and QUEUED in headers[number]:
            assert named(headers[number]) == (record.incarnation, record.writes[-1])
    assert store.fired


@pytest.mark.parametrize(("every", "applied"), [(1, True), (2, True), (2, False)])
def test_answers_that_are_lost(load, put, headers, rested, every, applied):
    """The same record is sent again, so that there is one PENDING however often one is lost."""
    store = put(LosesReplies(PostingStore(None), every, applied=applied))
    for _ in range(3):
        result = load.delay()
        rested()
        assert pending(result)
        assert named(headers[-1]) == (record_of(result).incarnation, record_of(result).writes[-1])
    assert store.lost >= 1


@pytest.mark.parametrize("end", [None, "SUCCESS"])
def test_a_run_that_overtakes_its_pending(load, put, caplog, end):
    """What is found then is its own: nobody is told that it was sent again."""

    class Overtaken(PostingStore):
        def post(self, record, **facts):
            def arrive():
                run = Attempt.of(tracker, "overtaken", load.name, load._flow)
                run.claim()
                if end:
                    run.leave(end)
                return self.write(record, expect=None, **facts)

            return Answer(arrive)

    put(Overtaken(None))
    tracker = Settings.of(load.app).tracker
    result = load.apply_async(task_id="overtaken")
    assert [change.to_state for change in result.history()] == list(filter(None, ["STARTED", end]))
    assert not [r for r in caplog.records if r.name.startswith("celery_statekit")]


def test_a_store_that_is_away_is_posted_nothing(load, put):
    """While the breaker is open a publish does not even try."""

    class Away(PostingStore):
        posted = 0

        def post(self, record, **facts):
            self.posted += 1
            raise AssertionError

        def write(self, record, **facts):
            raise StoreUnavailable(self.name, "on purpose")

    store = put(Away(None))
    tracker = Settings.of(load.app).tracker
    with pytest.raises(StoreUnavailable):
        tracker.queue("t-1", load.name)
    for _ in range(10):
        load.delay()
    assert store.posted == 0


def test_what_is_waited_for_is_a_quarter_of_a_second_in_all(load, put, waits, monkeypatch):
    """An answer that comes late, and says that something is known, leaves less for finding out."""
    now = [100.0]

    class Clock:
        @staticmethod
        def monotonic():
            return now[0]

    class Slow(PostingStore):
        def post(self, record, **facts):
            def say():
                now[0] += 0.2
                return False

            return Answer(say)

    monkeypatch.setattr(listeners, "time", Clock)
    put(Slow(None))
    result = load.delay()
    assert waits == [0.25, pytest.approx(0.05)]
    assert pending(result)


def test_a_store_that_cannot_post_is_waited_for(load, put, waits):
    """As before."""
    put(MemoryStore(None))
    assert pending(load.delay())
    assert waits == [0.25]


# --- a server that is broken ---------------------------------------------------------------------


@pytest.fixture
def server(own_redis):
    """A server to be broken."""
    return own_redis()


@pytest.fixture
def proxy(server):
    """A way to it that can be broken as well."""
    with FaultProxy(server.url) as proxy:
        yield proxy


@pytest.fixture
def warm(put, posts_of, proxy, load):
    """The store, by way of the proxy, with a connection that was used; then what is posted."""
    store = put(open_store(proxy.url, timeout=1.0))
    assert pending(load.delay())
    with closing(store):
        yield posts_of(store)


@pytest.fixture
def posts_of(monkeypatch):
    """What has come of each attempt to post to a store, from now on."""

    def listen(store):
        made, post = [], store.post

        def note(*args, **facts):
            posted = post(*args, **facts)
            made.append(posted is not None)
            return posted

        monkeypatch.setattr(store, "post", note)
        return made

    return listen


def test_scripts_that_were_forgotten(server, warm, load, headers):
    """The server is told them at once."""
    for _ in range(3):
        with redis.Redis.from_url(server.url) as client:
            client.script_flush()
        result = load.delay()
        assert pending(result)
        assert named(headers[-1]) == (record_of(result).incarnation, record_of(result).writes[-1])
    assert warm == [True] * 3


@pytest.mark.parametrize("then", ["cut", "hang"])
def test_the_answer_is_lost(proxy, warm, load, headers, rested, waits, then):
    """The publish is none the wiser; the record is there once, and is what the message names."""
    proxy.lose_replies(1, matching=b"EVALSHA", then=then)
    result = load.delay()
    assert proxy.done["lost"] == 1
    rested()
    assert pending(result)
    record = record_of(result)
    assert named(headers[-1]) == (record.incarnation, record.writes[-1])
    assert pending(load.delay())
    assert warm[0]
    assert not Settings.of(load.app).tracker.breaker.is_open


def test_a_server_that_does_not_answer(proxy, warm, load, waits, until):
    """One publish waits for it, for a quarter of a second; those after it for nothing."""
    proxy.black_hole()
    results = [load.delay() for _ in range(20)]
    assert waits == [0.25]
    assert warm == [True]
    proxy.pass_all()
    until(lambda: pending(results[0]))

    def sent():
        with suppress(StoreUnavailable, AmbiguousWrite):
            return pending(load.delay())

    until(sent)
    for result in results:
        assert [change.to_state for change in result.history()] in ([], ["PENDING"])


def test_many_threads_and_a_server_that_does_not_answer(proxy, warm, load, waits, until):
    """Each waits once at most."""
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda _: load.delay(), range(30)))
        waits.clear()
        proxy.black_hole()
        results = list(pool.map(lambda _: load.delay(), range(30)))
    assert 1 <= len(waits) <= 10
    assert max(waits) <= 0.25
    proxy.pass_all()
    until(lambda: any(result.task_state.known for result in results))


def test_a_connection_that_was_cut_while_idle(proxy, warm, load, monkeypatch):
    """It is noticed before anything is sent: PENDING is there when ``delay`` returns."""
    monkeypatch.setattr("celery_statekit.stores.redis.server.FRESH", 0.0)
    for _ in range(3):
        assert proxy.cut() == 1
        assert pending(load.delay())
    assert warm == [False] * 3


def test_a_connection_that_is_cut_in_use(proxy, warm, load, monkeypatch, until, headers):
    """Of one used a moment ago nothing can be told: it is found out."""
    monkeypatch.setattr("celery_statekit.stores.redis.server.FRESH", 60.0)
    for _ in range(5):
        proxy.cut()
        result = load.delay()
        until(lambda result=result: pending(result))
        record = record_of(result)
        assert named(headers[-1]) == (record.incarnation, record.writes[-1])


def test_a_server_that_is_restarted(server, warm, load):
    """Between two publishes: the second is as good as the first."""
    for _ in range(2):
        server.restart()
        assert pending(load.delay())
        assert pending(load.delay())
    assert warm == [False, True] * 2


def test_a_server_that_is_gone(server, warm, load, until):
    """A publish fails for nothing; PENDING is written again once it is back."""
    server.kill()
    for _ in range(10):
        load.delay()
    server.start()

    def sent():
        with suppress(StoreUnavailable):
            return pending(load.delay())

    until(sent)


def test_a_server_without_room(server, warm, load, until, caplog):
    """The publisher hears nothing of it, but for one warning; then all is as before."""
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", 1)
        results = [load.delay() for _ in range(10)]
        client.config_set("maxmemory", 0)
    until(lambda: pending(load.delay()))
    for result in results:
        assert [change.to_state for change in result.history()] in ([], ["PENDING"])
    until(lambda: not Settings.of(load.app).tracker.breaker.is_open)
    assert pending(load.delay())
    assert {r.name for r in caplog.records if r.levelno >= logging.WARNING} <= {
        "celery_statekit.breaker"
    }


@pytest.mark.parametrize("how", ["lost", "away", "full"])
def test_neither_store_nor_broker(server, proxy, warm, load, refuse, until, rested, how):
    """What was not sent is not PENDING, once the store is back."""
    with redis.Redis.from_url(server.url) as client:
        if how == "lost":
            proxy.lose_replies(matching=b"EVALSHA")
        elif how == "away":
            proxy.cut()
            proxy.refuse()
        else:
            client.config_set("maxmemory", 1)
        with refuse(), pytest.raises(OperationalError):
            load.apply_async(task_id="refused", retry=False)
        proxy.pass_all()
        client.config_set("maxmemory", 0)
    rested()
    until(lambda: not flusher.flusher()._insisted)
    rested()
    assert load.AsyncResult("refused").task_state.state == "UNKNOWN"
