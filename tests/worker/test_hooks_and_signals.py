"""What is told of a task's moves, to whom, when, and what listeners can spoil: nothing."""

from __future__ import annotations

import inspect
import pickle

import pytest

from celery_statekit import Clients, ClientState, StatefulTask, States, signals
from celery_statekit.errors import IllegalTransition


class Import(States):
    READING = "Reading the file"
    IMPORTING = "Importing rows"


PASSED = ["PENDING", "STARTED", "READING", "IMPORTING", "SUCCESS"]


@pytest.fixture
def listen():
    """Connect receivers of a test's own to signals of ours."""
    connected = []

    def connect(signal, receiver, **options):
        signal.connect(receiver, weak=False, **options)
        connected.append((signal, receiver, options))

    yield connect
    for signal, receiver, options in connected:
        signal.disconnect(receiver, **options)


@pytest.fixture
def load(app):
    """A task that passes through its states."""

    @app.task(bind=True, base=StatefulTask, states=Import, name="shop.load")
    def load(self):
        self.enter(Import.READING)
        self.progress.set(1, 2)
        self.enter(Import.IMPORTING)

    return load


def test_each_change_is_signalled_once_in_order(load, work, ended, hear):
    """``state_changed`` carries each change of the history, in its order, once."""
    heard = hear(signals.state_changed)
    work()
    result = load.delay()
    ended(result)
    assert heard == result.history()
    assert [change.to_state for change in heard] == PASSED


def test_sender_is_the_tasks_name(app, load, work, ended, listen):
    """A receiver may ask for the changes of one task."""
    heard = []

    def receive(sender, change, **_):
        heard.append((sender, change.task))

    listen(signals.state_changed, receive, sender="shop.load")

    @app.task(base=StatefulTask, name="shop.other")
    def other():
        """Nothing."""

    work()
    ended(other.delay())
    ended(load.delay())
    assert heard == [("shop.load", "shop.load")] * 5


def test_signal_comes_after_the_write(load, work, ended, listen):
    """A receiver that reads the record sees the change, or what came after it."""
    seen = []

    def receive(sender, change, **_):
        state = load.AsyncResult(change.task_id).task_state
        history = load.AsyncResult(change.task_id).history()
        seen.append((change.to_state, state.version >= change.version, change in history))

    listen(signals.state_changed, receive)
    work()
    ended(load.delay())
    assert seen == [(state, True, True) for state in PASSED]


def test_progress_signal_comes_after_the_write(app, work, ended, listen, gate, until):
    """A receiver of ``progressed`` that reads the record sees that progress."""
    seen, go = [], gate()

    def receive(sender, progressed, **_):
        seen.append((progressed.progress, load.AsyncResult(progressed.id).task_state.progress))

    listen(signals.progressed, receive)

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.progress.set(1, 2)
        go.wait()

    work()
    result = load.delay()
    until(lambda: seen)
    go.set()
    ended(result)
    told, stored = seen[0]
    assert told.current == stored.current == 1


def test_payloads_are_frozen(app, work, ended, hear, gate, until):
    """No receiver can change what the next one gets."""
    listened = (signals.state_changed, signals.progressed, signals.transition_refused)
    heard, go = [hear(signal) for signal in listened], gate()

    @app.task(bind=True, base=StatefulTask, states=Import)
    def load(self):
        self.enter(Import.IMPORTING)
        self.progress.update()
        go.wait()
        with pytest.raises(IllegalTransition):
            self.enter(Import.READING)

    work()
    result = load.delay()
    until(lambda: heard[1])
    go.set()
    ended(result)
    for payloads in heard:
        payload = payloads[0]
        for name in inspect.signature(type(payload)).parameters:
            with pytest.raises(AttributeError):
                setattr(payload, name, None)


def test_client_changed_carries_the_moves(app, hear):
    """``client_changed`` says which client was written, and how it moved."""
    heard = hear(signals.client_changed)
    clients = Clients(app, ClientState)
    clients.create("c-1")
    with clients.exclusive("c-1") as client:
        client.enter("IN_PROGRESS")
    clients.delete("c-1")
    assert [(changed.kind, changed.id) for changed in heard] == [("ClientState", "c-1")] * 3
    assert [[change.to_state for change in changed.changes] for changed in heard] == [
        [],
        ["IN_PROGRESS"],
        [],
    ]
    assert heard[-1].version == 0


def test_raising_receivers_hurt_nobody(load, work, ended, hear, listen, states_of):
    """A receiver that raises changes nothing, and the others are still called."""

    def fail(sender, **_):
        raise RuntimeError("a receiver's fault")

    for signal in (signals.state_changed, signals.progressed, signals.transition_refused):
        listen(signal, fail)
    heard = hear(signals.state_changed)
    work()
    result = load.delay()
    state = ended(result)
    assert (state.state, result.state, state.progress.current) == ("SUCCESS", "SUCCESS", 1)
    assert states_of(result) == PASSED == [change.to_state for change in heard]


def test_raising_hooks_hurt_nobody(app, work, ended, gate, until, states_of):
    """``on_state_change`` and ``on_progress`` that raise change nothing."""
    raised = []

    class Base(StatefulTask):
        def on_state_change(self, change):
            raised.append(change)
            raise RuntimeError("a hook's fault")

        def on_progress(self, progress):
            raised.append(progress)
            raise RuntimeError("a hook's fault")

    go = gate()

    @app.task(bind=True, base=Base, states=Import)
    def load(self):
        self.enter(Import.READING)
        self.progress.set(1, 2)
        go.wait()
        self.enter(Import.IMPORTING)

    work()
    result = load.delay()
    until(lambda: any(not hasattr(fact, "to_state") for fact in raised))
    go.set()
    assert ended(result).state == "SUCCESS"
    assert states_of(result) == PASSED


def test_on_state_change_is_called_once_per_change(app, work, ended):
    """The hook of the task's class gets each change once, in order."""
    got = []

    class Base(StatefulTask):
        states = Import

        def on_state_change(self, change):
            got.append(change)

    @app.task(bind=True, base=Base)
    def load(self):
        self.enter(Import.READING)
        self.enter(Import.IMPORTING)

    work()
    result = load.delay()
    ended(result)
    assert got == result.history()


def test_on_state_change_in_an_eager_run(app):
    """The hook is called in an eager run too."""
    got = []

    class Base(StatefulTask):
        def on_state_change(self, change):
            got.append(change.to_state)

    @app.task(base=Base)
    def load():
        """Nothing."""

    load.apply()
    assert got == ["STARTED", "SUCCESS"]


def test_receiver_may_publish(app, load, work, ended, listen, until):
    """A receiver that sends another task keeps nothing waiting."""
    followed = []

    @app.task(base=StatefulTask, name="shop.after")
    def after():
        """Nothing."""

    def follow(sender, change, **_):
        if change.to_state in ("PENDING", "SUCCESS"):
            followed.append(after.delay())

    listen(signals.state_changed, follow, sender="shop.load")
    work()
    assert ended(load.delay()).state == "SUCCESS"
    until(lambda: len(followed) == 2)
    assert [ended(result).state for result in followed] == ["SUCCESS"] * 2


def test_blocking_on_progress_keeps_no_task_waiting(app, work, gate):
    """While ``on_progress``, in the flusher's thread, takes its time, the task comes to its end."""
    stuck, go = gate(), gate()

    class Base(StatefulTask):
        def on_progress(self, progress):
            stuck.set()
            go.wait(60)

    @app.task(bind=True, base=Base)
    def load(self):
        self.progress.update()
        assert stuck.wait()

    work()
    result = load.delay()
    assert stuck.wait()
    assert result.wait(until="SUCCESS", timeout=3).final


def test_a_payload_is_what_it_names():
    """A signal's payload has named fields only: it is no tuple, and it does not change."""
    payload = signals.ClientChanged(kind="Order", id="1", version=2, state="", changes=())
    same = signals.ClientChanged(changes=(), state="", version=2, id="1", kind="Order")

    assert (payload, hash(payload)) == (same, hash(same))
    assert pickle.loads(pickle.dumps(payload)) == payload
    assert repr(payload) == "ClientChanged(kind='Order', id='1', version=2, state='', changes=())"
    assert payload != ("Order", "1", 2, "", ())
    with pytest.raises(TypeError, match="iterable"):
        tuple(payload)
    with pytest.raises(AttributeError):
        payload.version = 3
    with pytest.raises(TypeError, match="takes kind, id"):
        signals.ClientChanged(kind="Order")
