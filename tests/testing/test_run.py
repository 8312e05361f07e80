"""``stateful_run``: one run of a task, recorded, without a broker or a server."""

from __future__ import annotations

import logging
import threading

import pytest
from celery import Task, _state, chain, group, shared_task
from celery.exceptions import Ignore, Retry
from celery.signals import before_task_publish
from kombu.exceptions import EncodeError

from celery_statekit import Clients, ClientState, StatefulTask, States, signals, stateful, track
from celery_statekit.errors import (
    IllegalTransition,
    InvalidClientState,
    InvalidId,
    InvalidInput,
    InvalidState,
    PayloadTooLarge,
)
from celery_statekit.flusher import flusher
from celery_statekit.testing import FrozenClock, StatefulRun

pytest_plugins = ("celery_statekit.testing.fixtures",)


class Import(States):
    READING = "Reading the file"
    IMPORTING = "Importing rows"
    INDEXING = "Rebuilding the index"


class OrderStates(States):
    BASKET = "In the basket"
    PAID = "Paid"

    __guards__ = {("BASKET", "PAID"): lambda order: bool(order.items) or "nothing to pay"}


class Order(ClientState, states=OrderStates):
    items: list[str] = []


@pytest.fixture
def load(app):
    """A task that does what its argument says."""

    @app.task(bind=True, base=StatefulTask, states=Import, name="shop.load", shared=False)
    def load(self, act=lambda task: None):
        return ACTS[act](self)

    return load


ACTS = {}


@pytest.fixture
def does(load, stateful_run):
    """Run a function in the task."""

    def run(act, **options):
        ACTS["act"] = act
        return stateful_run(load, "act", **options)

    return run


# --- what a run tells ----------------------------------------------------------------------------


def test_what_a_run_did(does):
    """States, progress, checkpoints, refused moves, what was returned."""

    def act(self):
        self.enter(Import.READING)
        self.progress.set(1, 4, "one")
        self.enter(Import.IMPORTING, reason="4 rows", rows=4)
        for _ in self.track(range(4), "rows"):
            pass
        self.checkpoint({"row": 4})
        with pytest.raises(IllegalTransition):
            self.enter(Import.READING)
        self.checkpoint(None)
        return {"rows": 4}

    run = does(act)

    assert isinstance(run, StatefulRun)
    assert (run.task, run.attempt, run.state) == ("shop.load", 1, "SUCCESS")
    assert run.states == ("READING", "IMPORTING")
    run.assert_entered("READING", "IMPORTING")
    run.assert_entered(Import.READING, Import.IMPORTING)
    run.assert_ended()
    run.assert_refused("READING")
    assert [str(progress) for progress in run.progresses] == ["1/4 (25 %) one", "4/4 (100 %) rows"]
    assert run.progress.current == 4
    assert run.checkpoints == ({"row": 4}, None)
    assert run.refused[0].allowed == ("INDEXING",)
    assert run.result == {"rows": 4}
    assert run.error is None
    moves = [(change.to_state, change.reason, change.attempt) for change in run.changes]
    assert moves == [
        ("PENDING", "", 0),
        ("STARTED", "", 1),
        ("READING", "", 1),
        ("IMPORTING", "4 rows", 1),
        ("SUCCESS", "", 1),
    ]
    assert run.changes[3].detail == {"rows": 4}
    assert run.sent == ()


def test_a_run_that_fails(does):
    """Its error is at hand, and is raised by who asks for the result."""

    def act(self):
        self.enter(Import.READING)
        raise ValueError("bad row")

    run = does(act)

    assert (run.state, run.states) == ("FAILURE", ("READING",))
    assert isinstance(run.error, ValueError)
    run.assert_ended("FAILURE")
    with pytest.raises(ValueError, match="bad row"):
        _ = run.result
    assert run.task_state.error == {"type": "ValueError", "message": "bad row"}
    assert run.progress is None


def test_a_run_that_retries(does):
    """It is over with the retry, which is not waited for; the next attempt is a run of its own."""

    def act(self):
        self.enter(Import.READING)
        raise self.retry(countdown=3600, exc=OSError("again"))

    run = does(act)

    run.assert_ended("RETRY")
    assert isinstance(run.error, Retry)
    assert (str(run.error.exc), run.error.when) == ("again", 3600)
    assert run.task_state.due_at == pytest.approx(run.changes[-1].at + 3600, abs=60)
    assert run.sent == ()


def test_moves_that_the_task_does_not_catch(does):
    """They fail it, and are among those refused; a name that is no state is an error only."""

    def act(self):
        self.enter(Import.INDEXING)
        self.enter(Import.READING)

    run = does(act)
    other = does(lambda self: self.enter("READNIG"))

    assert run.refused == (run.error,)
    assert isinstance(other.error, InvalidState)
    assert other.refused == ()


def test_it_says_what_it_is(does):
    """In one line, for who prints it or reads a failed assertion."""
    run = does(lambda self: self.enter(Import.READING) and None)

    assert repr(run) == (
        "<StatefulRun shop.load attempt 1: PENDING -> STARTED -> READING -> SUCCESS>"
    )


# --- as in a worker ------------------------------------------------------------------------------


def test_arguments_and_result_are_sent_as_json(app, stateful_run):
    """What JSON makes of them is what the task, and who asks for its result, gets."""

    @app.task(base=StatefulTask, shared=False)
    def load(*args, **kwargs):
        return args, kwargs

    run = stateful_run(load, (1, 2), {3, 4}.__len__(), kwargs={"at": (5,)})

    assert run.result == [[[1, 2], 2], {"at": [5]}]


def test_what_cannot_be_sent_is_an_error_of_who_sends(app, stateful_run):
    """As ``delay`` raises it: nothing was run."""
    ran = []

    @app.task(base=StatefulTask, shared=False)
    def load(row):
        ran.append(row)

    with pytest.raises(EncodeError):
        stateful_run(load, object())
    with pytest.raises(TypeError):
        stateful_run(load, 1, 2)
    with pytest.raises(InvalidId):
        stateful_run(load, 1, client="two\nlines")
    assert ran == []


def test_an_argument_of_the_task_is_no_option(app, stateful_run):
    """A keyword that Celery would drop is an error that says where it belongs; nothing was run."""
    ran = []

    @app.task(base=StatefulTask, name="shop.load", shared=False)
    def load(path, skip=False):
        ran.append((path, skip))

    with pytest.raises(TypeError, match=r"shop\.load.* kwargs=\{'skip': True\}"):
        stateful_run(load, "a", skip=True)
    with pytest.raises(TypeError, match=r"kwargs=\{'lines': 2, 'skpi': True\}"):
        stateful_run(load.s("a"), skpi=True, lines=2, priority=3)
    assert ran == []

    stateful_run(load, "a", kwargs={"skip": True})
    assert ran == [("a", True)]


def test_options_of_a_class_of_the_tasks_own(app, stateful_run):
    """What its ``apply_async`` makes of them only it knows; an argument of the task is none."""

    class Once(StatefulTask):
        def apply_async(self, args=None, kwargs=None, **options):
            asked.append(options.get("once"))
            return super().apply_async(args, kwargs, **options)

    asked = []

    @app.task(base=Once, name="shop.load", shared=False)
    def load(path, skip=False):
        return [path, skip]

    run = stateful_run(load, "a", once={"graceful": True})

    assert (run.result, asked) == (["a", False], [{"graceful": True}])
    with pytest.raises(TypeError, match=r"kwargs=\{'skip': True\}"):
        stateful_run(load, "a", once={}, skip=True)


def test_options_are_those_of_apply_async(app, stateful_run):
    """Celery's own, AMQP's, stamps, and those of which a receiver makes something."""

    @app.task(bind=True, base=StatefulTask, shared=False)
    def load(self):
        headers = self.request.headers
        return [self.request.stamps, headers.get("shelf"), self.request.timelimit]

    def move(sender, headers, properties, **_):
        headers["shelf"] = properties.pop("shelf")

    before_task_publish.connect(move, sender=load.name)
    options = {"queue": "q", "expires": 60, "countdown": 1, "app_id": "me", "priority": 3}
    run = stateful_run(
        load, stamped_headers=["x"], x="y", shelf="7", soft_time_limit=3, shadow="z", **options
    )
    before_task_publish.disconnect(move, sender=load.name)

    assert run.result == [{"x": "y"}, "7", [None, 3]]


def test_a_result_that_cannot_be_sent_fails_the_task(does):
    """As it would in a worker."""
    run = does(lambda self: object())

    assert isinstance(run.error, EncodeError)
    run.assert_ended("FAILURE")


def test_clients_are_hydrated_and_checked(app, stateful_run):
    """An annotated parameter is a client, a copy; so is the result."""

    @app.task(base=StatefulTask, shared=False)
    def pay(order: Order) -> Order:
        order.enter(OrderStates.PAID)
        return order

    given = Order("o-1", items=["book"])
    run = stateful_run(pay, given)
    refused = stateful_run(pay, Order("o-2"))

    assert (run.result.state, given.state) == ("PAID", "BASKET")
    assert refused.error.why == "nothing to pay"
    assert isinstance(stateful_run(pay, {"client_id": "o-1"}).error, InvalidClientState)


def test_clients_in_the_store_of_the_run(app, stateful_run):
    """Those given are stored; what the task makes of them is there afterwards."""

    @app.task(bind=True, base=StatefulTask, shared=False)
    def pay(self, *others):
        orders = self.clients(Order)
        for id in (self.request.headers["client_id"], *others):
            orders.update(id, lambda order: order.enter(OrderStates.PAID), once="pay")
        Clients(self.app, Order).create("o-9")

    first, second = Order("o-1", items=["book"]), Order("o-2", items=["pen"])
    run = stateful_run(pay, "o-2", client=first, clients=[second])

    assert run.error is None
    assert run.task_state.client_id == "o-1"
    assert [run.clients(Order).get(f"o-{n}").state for n in (1, 2, 9)] == ["PAID", "PAID", "BASKET"]
    (change,) = run.clients(Order).history("o-1")
    assert (change.task_id, change.attempt) == (run.id, 1)
    assert first.state == "BASKET"


def test_whose_task_it_is(app, stateful_run):
    """An id says so too."""

    @app.task(bind=True, base=StatefulTask, shared=False)
    def whose(self):
        return self.task_state.client_id

    assert stateful_run(whose, client="o-7").result == "o-7"
    assert stateful_run(whose).result == ""


def test_hooks_and_signals(app, stateful_run):
    """They are called, in order, before the run is handed out; what they raise hurts nobody."""
    told = []

    class Told(StatefulTask):
        def on_state_change(self, change):
            told.append(change.to_state)

        def on_progress(self, progress):
            told.append(progress.current)
            raise RuntimeError("not now")

    @app.task(bind=True, base=Told, states=Import, shared=False)
    def load(self):
        self.enter(Import.READING)
        self.progress.update(2)

    def hear(sender, change, **_):
        told.append(f"signal {change.to_state}")

    signals.state_changed.connect(hear, sender=load.name)
    run = stateful_run(load)
    signals.state_changed.disconnect(hear, sender=load.name)

    run.assert_ended()
    assert told == [
        "signal PENDING", "PENDING",
        "signal STARTED", "STARTED",
        "signal READING", "READING",
        "signal SUCCESS", "SUCCESS",
        2,
    ]  # fmt: skip


def test_what_it_sends_goes_nowhere(app, stateful_run):
    """Other tasks, links, errbacks, chains and groups are listed."""

    @app.task(base=StatefulTask, name="shop.other", shared=False)
    def other(*args, **kwargs):
        raise AssertionError("it ran")

    @app.task(bind=True, base=StatefulTask, name="shop.load", shared=False)
    def load(self, fails=False):
        other.apply_async((1,), {"a": (2,)}, queue="slow")
        group(other.s(n) for n in range(2)).delay()
        if fails:
            raise ValueError("no")
        return 7

    @app.task(base=StatefulTask, name="shop.caught", shared=False)
    def caught(id):
        raise AssertionError("it ran")

    run = stateful_run(load.s().set(link=other.s("linked"), link_error=caught.s()))
    failed = stateful_run(load, True, link_error=caught.s())
    in_chain = stateful_run(load, chain=[other.s("next").set(immutable=True)])

    sent = [(sent.task, sent.args, sent.kwargs, sent.routing_key) for sent in run.sent]
    assert sent == [
        ("shop.other", (1,), {"a": [2]}, "slow"),
        ("shop.other", (0,), {}, "celery"),
        ("shop.other", (1,), {}, "celery"),
        ("shop.other", (7, "linked"), {}, "celery"),
    ]
    assert [(sent.task, sent.args) for sent in failed.sent][3:] == [("shop.caught", (failed.id,))]
    assert in_chain.sent[-1].args == ("next",)
    assert all(sent.headers["parent_id"] == run.id for sent in run.sent)


def test_what_takes_its_place_is_sent(app, stateful_run):
    """``replace`` sends another task under the same id."""

    @app.task(base=StatefulTask, name="shop.other", shared=False)
    def other():
        raise AssertionError("it ran")

    @app.task(bind=True, base=StatefulTask, shared=False)
    def load(self):
        raise self.replace(other.s())

    run = stateful_run(load)

    run.assert_ended("IGNORED")
    assert [(sent.task, sent.id) for sent in run.sent] == [("shop.other", run.id)]
    assert isinstance(run.error, Ignore)


def test_to_wait_for_another_task_is_refused(app, stateful_run):
    """As Celery refuses it in a worker, instead of waiting for what nobody runs."""

    @app.task(base=StatefulTask, shared=False)
    def other():
        """Nothing."""

    @app.task(base=StatefulTask, shared=False)
    def load():
        return other.delay().get()

    assert "Never call result.get() within a task" in str(stateful_run(load).error)


def test_the_request_is_that_of_a_worker(does):
    """Not eager, with id, headers, hostname and delivery."""

    def act(self):
        request = self.request
        assert _state.get_current_app() is self.app
        assert _state.get_current_task() is self
        return [
            request.id, request.is_eager, request.called_directly, request.hostname,
            request.delivery_info["redelivered"], request.headers["x"], request.retries,
        ]  # fmt: skip

    run = does(act, headers={"x": "y"}, task_id="t-1")

    assert run.id == "t-1"
    assert run.result == ["t-1", False, False, "celery@test", False, "y", 0]


def test_always_eager_makes_no_difference(app, does):
    """It is a run of its own all the same, and sends what it sends."""
    app.conf.task_always_eager = True

    run = does(lambda self: [self.request.is_eager, bool(self.s("act").delay())])

    assert run.result == [False, True]
    assert len(run.sent) == 1
    assert app.conf.task_always_eager is True


def test_a_shared_task(app, stateful_run):
    """The task of whatever app there is."""

    @shared_task(base=StatefulTask, name="shop.shared", bind=True)
    def shared(self):
        return self.app.main

    app.set_current()

    assert stateful_run(shared).result == app.main
    assert stateful_run(shared.s()).result == app.main


def test_a_task_with_its_own_call_and_class(app, stateful_run):
    """Class-based tasks, ``@stateful``, a ``__call__`` of their own, ``track`` without bind."""

    class Doubled(StatefulTask):
        name = "shop.doubled"

        def __call__(self, *args, **kwargs):
            return 2 * super().__call__(*args, **kwargs)

        def run(self, n):
            return len(list(track(range(n), resume=True)))

    doubled = app.register_task(Doubled())

    @stateful(app, bind=True, states=Import, name="shop.typed")
    def typed(self: StatefulTask, n: int) -> int:
        self.enter(Import.READING)
        return n

    run = stateful_run(doubled, 4)

    assert (run.result, run.progress.current) == (8, 4)
    assert stateful_run(typed, 3).states == ("READING",)


def test_a_result_that_nobody_wants(app, stateful_run):
    """Of a task that ignores its result it is what was returned."""

    @app.task(base=StatefulTask, ignore_result=True, shared=False)
    def load():
        return (1, 2)

    assert stateful_run(load).result == (1, 2)


def test_the_settings_are_those_of_the_app(app, does):
    """Limits, strictness, prefix."""
    app.conf.update(statekit_strict=True, statekit_record_bytes=4000, statekit_message_bytes=8)

    def act(self):
        with pytest.raises(PayloadTooLarge):
            self.checkpoint("x" * 1000)
        with pytest.raises(InvalidState):
            self.update_state(state="SUCCESS")
        self.enter(Import.READING, "x" * 100)

    run = does(act)

    run.assert_ended()
    assert run.changes[2].reason == "xxxxx…"


# --- attempts ------------------------------------------------------------------------------------


def test_a_later_attempt(does):
    """It finds what the one before left, whatever that was; its own changes are told."""
    found = []

    def act(self):
        found.append((self.last_checkpoint, self.request.retries, self.task_state.attempt))
        self.enter(Import.READING)
        rows = list(self.track(range(10), resume=True))
        self.checkpoint("new")
        return rows

    run = does(act, attempt=3, last_checkpoint={"row": [6]}, finished=6)

    assert found == [({"row": [6]}, 2, 3)]
    assert run.attempt == 3
    assert run.result == [6, 7, 8, 9]
    assert run.checkpoints == ("new",)
    states = [change.to_state for change in run.changes]
    assert states == ["STARTED", "READING", "SUCCESS"]
    assert run.changes[0].from_state == "RETRY"
    assert run.progress.current == 10


def test_a_message_that_came_again(does):
    """The run before has died, so nothing was retried."""

    def act(self):
        redelivered = self.request.delivery_info["redelivered"]
        return [self.request.retries, redelivered, self.last_checkpoint]

    run = does(act, attempt=2, redelivered=True, last_checkpoint="row 5")

    assert run.result == [0, True, "row 5"]
    assert run.changes[0].from_state == "STARTED"


def test_what_tracks_have_finished_by_name(does):
    """Each track has its own."""

    def act(self):
        return [list(self.track(range(3), resume=name)) for name in ("a", "b", "c")]

    run = does(act, attempt=2, finished={"a": 3, "b": 1})

    assert run.result == [[], [1, 2], [0, 1, 2]]
    assert run.checkpoints == ()


def test_nothing_is_heard_of_the_runs_before(app, stateful_run):
    """No hook and no signal tells of them."""
    told = []

    class Told(StatefulTask):
        def on_state_change(self, change):
            told.append(change.attempt)

    @app.task(base=Told, shared=False)
    def load():
        """Nothing."""

    stateful_run(load, attempt=4)

    assert told == [4, 4]


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"attempt": 0}, "attempt"),
        ({"attempt": True}, "attempt"),
        ({"attempt": "2"}, "attempt"),
        ({"last_checkpoint": 1}, "attempt"),
        ({"finished": 3}, "attempt"),
        ({"attempt": 2, "finished": -1}, "finished"),
        ({"attempt": 2, "finished": {"rows": 1.5}}, "finished"),
        ({"client": 5}, "client"),
        ({"client": [Order("o-1"), Order("o-2")]}, "client"),
        ({"clients": Order("o-1")}, "clients"),
        ({"clients": ["o-1"]}, "clients"),
        ({"clients": None}, "clients"),
        ({"attempt": 2, "last_checkpoint": {1, 2}}, "checkpoint"),
        ({"client": Order("o-1"), "clients": [Order("o-1")]}, "clients"),
    ],
)
def test_what_cannot_be_is_refused(does, options, path):
    """With the error that says so, and without a run."""
    with pytest.raises(InvalidInput) as refusal:
        does(lambda self: pytest.fail("it ran"), **options)

    assert refusal.value.path == path


def test_where_several_clients_go(does):
    """Who gives them as one is told."""
    with pytest.raises(InvalidInput, match=r"clients=\[\.\.\.\]"):
        does(lambda self: pytest.fail("it ran"), client=[Order("o-1"), Order("o-2")])
    with pytest.raises(InvalidInput, match="client="):
        does(lambda self: pytest.fail("it ran"), clients=Order("o-1"))


def test_only_stateful_tasks_are_run(app, stateful_run):
    """A task of Celery's own class has no states."""

    @app.task(base=Task, shared=False)
    def plain():
        """Nothing."""

    for task in (plain, plain.s(), len, "shop.load", chain(plain.s(), plain.s())):
        with pytest.raises(InvalidInput):
            stateful_run(task)


# --- what is left of it --------------------------------------------------------------------------


def test_everything_is_as_it_was(app, load, does):
    """The app, its tasks, the flusher, the current app, logging: whatever became of the run."""

    def state():
        return (
            {name: value for name, value in vars(app).items() if name not in made},
            dict(app.conf.changes),
            vars(app.amqp).get("_producer_pool"),
            vars(load).copy(),
            flusher(),
            _state.default_app,
            _state._tls.current_app,
            _state.task_join_will_block(),
            Task.__call__,
            logging.getLogger().handlers[:],
            threading.active_count(),
        )

    #: What Celery makes when it is first asked for.
    made = {"amqp", "tasks", "events", "timezone", "_after_fork_registered", "loader", "Task"}
    made |= {"AsyncResult", "_canvas", "GroupResult", "annotations"}
    does(lambda self: None)
    before = state()

    does(lambda self: self.enter(Import.READING) and None)
    does(lambda self: self.enter("no"))
    does(lambda self: 1 / 0, attempt=2)
    with pytest.raises(pytest.fail.Exception):
        does(lambda self: pytest.fail("at once"))
    with pytest.raises(InvalidInput):
        does(None, attempt=0)

    assert state() == before


def test_a_backend_of_the_tasks_own_is_not_used(app, stateful_run):
    """Its result goes nowhere either."""

    class Loud:
        def __getattr__(self, name):
            raise AssertionError(f"{name} was used")

    @app.task(base=StatefulTask, shared=False, backend=Loud())
    def load():
        return 5

    @app.task(base=Task, shared=False, backend=Loud())
    def plain():
        """Nothing."""

    @app.task(base=StatefulTask, shared=False)
    def sends():
        return str(type(plain.backend).__name__)

    assert stateful_run(load).result == 5
    assert stateful_run(sends).result == "MemoryResults"
    assert isinstance(load.own_backend, Loud)
    assert isinstance(plain.backend, Loud)


def test_two_runs_know_nothing_of_each_other(app, stateful_run):
    """Not even under one id."""

    @app.task(bind=True, base=StatefulTask, shared=False)
    def load(self):
        self.clients(Order).create("o-1")
        return self.task_state.attempt

    assert [stateful_run(load, task_id="t-1").result for _ in range(2)] == [1, 1]


def test_what_a_thread_of_the_task_sends(app, stateful_run):
    """It is recorded by the flusher of the process, and goes nowhere."""

    @app.task(base=StatefulTask, name="shop.other", shared=False)
    def other():
        raise AssertionError("it ran")

    @app.task(base=StatefulTask, shared=False)
    def load():
        thread = threading.Thread(target=other.delay)
        thread.start()
        thread.join()

    run = stateful_run(load)

    run.assert_ended()
    assert [sent.task for sent in run.sent] == ["shop.other"]


def test_in_a_run_progress_is_written_with_each_move(does):
    """And at the end; in between where the frozen clock says so."""

    def act(self):
        clock = FrozenClock.running()
        for n, state in enumerate(Import, 1):
            self.progress.set(n, 4)
            self.enter(state)
        self.progress.set(4, 4)
        assert clock is None

    run = does(act)

    assert [progress.current for progress in run.progresses] == [1, 2, 3, 4]
