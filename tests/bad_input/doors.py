"""The doors by which input comes in: how each is tried, and what must then be as it was."""

from __future__ import annotations

import copy
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeAlias

from celery import Celery
from kombu.transport import memory as broker

from celery_statekit import (
    Clients,
    ClientState,
    Progress,
    StatefulResult,
    StatefulTask,
    States,
    TaskState,
    Watcher,
    open_store,
)
from celery_statekit.attempt import Attempt
from celery_statekit.record import Limits, Record, decode_change, decode_record
from celery_statekit.reporter import Reporter
from celery_statekit.settings import Settings
from celery_statekit.states import Flow
from celery_statekit.stores import MemoryStore, SQLiteStore, memory
from celery_statekit.tracker import Tracker

from .shop import CLASSES, Order, OrderStates, Wide, pay
from .words import made_of

#: Tries an input; and tells all that the input must not have changed.
Try: TypeAlias = Callable[[Any], object]
State: TypeAlias = Callable[[], object]
#: What a test does with the two.
Check: TypeAlias = Callable[[Try, State], None]


@dataclass(frozen=True)
class Place:
    """Where one input is tried: a store, an app that uses another, an empty folder."""

    store: MemoryStore | SQLiteStore
    app: Celery
    folder: Path

    def rows(self) -> object:
        """Everything that the store keeps: records, histories, leases."""
        if isinstance(self.store, SQLiteStore):
            with closing(sqlite3.connect(self.store._file.path)) as connection:
                return [
                    connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
                    for table in ("records", "changes", "leases")
                ]
        return shelf_rows(self.store)

    def orders(self) -> Clients[Order]:
        """The orders of the store, one of them stored."""
        orders = Clients(self.store, Order)
        orders.create("o-1", items=["book"])
        return orders

    def put(self, key: str, text: str) -> None:
        """Have the store keep ``text``, whatever it is."""
        record = Record(key=key, version=1, incarnation="0a", document={})
        self.store.write(record, expect=None)
        if isinstance(self.store, SQLiteStore):
            with closing(sqlite3.connect(self.store._file.path)) as connection, connection:
                connection.execute(
                    "UPDATE records SET text = ? WHERE key = ?", (text.encode(), key)
                )
        else:
            self.store._shelf.entries[key].text = text


def shelf_rows(store: MemoryStore) -> object:
    """Everything that a memory store keeps."""
    return copy.deepcopy(store._shelf.entries), dict(store._shelf.leases)


@dataclass(frozen=True)
class Door:
    """One way in."""

    name: str
    knock: Callable[[Place, Check], None]
    #: Whether it leads to a store, so that each kind of store is tried.
    stores: bool


DOORS: Final[dict[str, Door]] = {}

Knock = Callable[[Place, Check], None]


def door(*, stores: bool = False) -> Callable[[Knock], Knock]:
    """Name a door after its function."""

    def named(knock: Knock) -> Knock:
        DOORS[knock.__name__] = Door(knock.__name__, knock, stores)
        return knock

    return named


def nothing() -> None:
    """What a function without a place to keep anything keeps."""


# --- a client's document -------------------------------------------------------------------------


@door()
def from_dict(place: Place, check: Check) -> None:
    check(Order.from_dict, nothing)


@door()
def from_json(place: Place, check: Check) -> None:
    check(Order.from_json, nothing)


@door()
def from_classroom(place: Place, check: Check) -> None:
    check(ClientState.from_dict, nothing)


def _assigned(write: Callable[[Order], object]) -> Callable[[Place, Check], None]:
    def knock(place: Place, check: Check) -> None:
        order = Order("o-1", items=["book"])

        def assign(changes: dict[str, Any]) -> object:
            vars(order).update(changes)
            expected.append(made_of(order))
            return write(order)

        expected: list[object] = []
        # What was assigned stays; writing it must change nothing more.
        check(assign, lambda: bool(expected) and expected[-1] != made_of(order))

    return knock


@door()
def to_dict(place: Place, check: Check) -> None:
    _assigned(Order.to_dict)(place, check)


@door()
def to_json(place: Place, check: Check) -> None:
    _assigned(Order.to_json)(place, check)


@door()
def construct(place: Place, check: Check) -> None:
    check(Order, nothing)


@door()
def class_statement(place: Place, check: Check) -> None:
    def define(given: dict[str, Any]) -> object:
        body = {"__annotations__": given.get("fields", {}), **given.get("body", {})}
        return type(ClientState)("Bad", (ClientState,), body, **given.get("options", {}))

    check(define, lambda: (ClientState.kind, ClientState.version, ClientState._stored))


@door()
def client_enter(place: Place, check: Check) -> None:
    order = Order("o-1")
    check(lambda given: order.enter(**given), lambda: made_of(order))


@door()
def client_enter_of_many(place: Place, check: Check) -> None:
    client = Wide("w-1")
    check(lambda given: client.enter(**given), lambda: made_of(client))


@door()
def action_name(place: Place, check: Check) -> None:
    client = ClientState("c-1")

    def take(name: Any) -> None:
        with client.action(name):
            raise AssertionError("it began")

    check(take, lambda: made_of(client))


@door()
def action_result(place: Place, check: Check) -> None:
    client = ClientState("c-1")

    def take(result: Any) -> None:
        with client.action("read") as action:
            action.result = result

    # The action was taken and failed; no bad result is kept, and the client can go on.
    check(take, lambda: [kept.result for kept in client.actions if kept.result] or client.state)


@door()
def argument_of_a_task(place: Place, check: Check) -> None:
    ran: list[Order] = []

    @place.app.task(base=StatefulTask, name="ship")
    def ship(order: Order) -> None:
        ran.append(order)

    check(lambda value: ship.apply(args=[value], throw=True), lambda: list(ran))


# --- stored clients ------------------------------------------------------------------------------


@door()
def clients(place: Place, check: Check) -> None:
    place.orders()

    def make(given: dict[str, Any]) -> object:
        return Clients(**{"home": place.store, "client": Order, **given}).update("o-1", pay)

    check(make, place.rows)


@door(stores=True)
def clients_get(place: Place, check: Check) -> None:
    check(place.orders().get, place.rows)


@door(stores=True)
def clients_create(place: Place, check: Check) -> None:
    orders = place.orders()
    check(lambda given: orders.create(**{"id": "o-2", **given}), place.rows)


@door(stores=True)
def clients_update(place: Place, check: Check) -> None:
    orders = place.orders()
    check(lambda given: orders.update(**{"id": "o-1", "change": pay, **given}), place.rows)


@door(stores=True)
def change_of_an_update(place: Place, check: Check) -> None:
    orders = place.orders()

    def change(given: dict[str, Any]) -> Callable[[Order], None]:
        return lambda order: vars(order).update(given)

    check(lambda given: orders.update("o-1", change(given)), place.rows)


@door(stores=True)
def clients_exclusive(place: Place, check: Check) -> None:
    orders = place.orders()

    def work(given: dict[str, Any]) -> None:
        with orders.exclusive(**{"id": "o-1", **given}) as order:
            pay(order)

    check(work, place.rows)


@door(stores=True)
def clients_list(place: Place, check: Check) -> None:
    orders = place.orders()
    check(lambda given: orders.list(**given), place.rows)


@door(stores=True)
def clients_history(place: Place, check: Check) -> None:
    orders = place.orders()
    check(lambda given: orders.history(**{"id": "o-1", **given}), place.rows)


@door(stores=True)
def clients_delete(place: Place, check: Check) -> None:
    check(place.orders().delete, place.rows)


@door()
def clients_watch(place: Place, check: Check) -> None:
    orders = place.orders()
    check(lambda given: next(orders.watch(**{"id": "o-1", **given})), place.rows)


# --- states --------------------------------------------------------------------------------------


def states_of(given: dict[str, Any]) -> Any:
    """The class that ``given`` defines; ``members`` as they stand, ``body`` what is beside them."""
    base = given.get("base", States)
    members = type(base).__prepare__("Bad", (base,))
    for name, value in {**given.get("members", {}), **given.get("body", {})}.items():
        members[name] = value
    return type(base)("Bad", (base,), members)


@door()
def states(place: Place, check: Check) -> None:
    def define(given: Any) -> Flow:
        return Flow.of(states_of(given) if isinstance(given, dict) else given)

    check(define, nothing)


@door()
def states_of_a_task(place: Place, check: Check) -> None:
    def define(given: Any) -> object:
        states = states_of(given) if isinstance(given, dict) else given
        return place.app.task(base=StatefulTask, states=states, name="bad")(pay).delay

    check(define, place.rows)


@door()
def name_of_a_state(place: Place, check: Check) -> None:
    check(Flow.of(OrderStates).name_of, nothing)


@door()
def name_of_many_states(place: Place, check: Check) -> None:
    check(Flow.of(CLASSES["Many"]).name_of, nothing)


#: What a report is made of, and does not change.
MADE_OF: Final = ("_task", "_request", "_attempt")


def _in_run(
    place: Place, act: Callable[[Any, Any], object], check: Check, states: Any = OrderStates
) -> None:
    """Check inside a run of a task, where the store, the reporter and the report may change."""

    @place.app.task(bind=True, base=StatefulTask, states=states, name="run")
    def run(self: Any) -> None:
        self.progress.set(current=1, total=3, message="begun", details={"row": 1})
        store, report = Settings.of(place.app).store, self.request.statekit_report

        def state() -> object:
            told = (
                self.task_state,
                {name: value for name, value in vars(report).items() if name not in MADE_OF},
            )
            return shelf_rows(store), told, _reported(self.progress)

        check(lambda given: act(self, given), state)

    run.apply(throw=True)


@door()
def task_enter(place: Place, check: Check) -> None:
    _in_run(place, lambda task, given: task.enter(**given), check)


@door()
def task_enter_of_an_open_set(place: Place, check: Check) -> None:
    _in_run(place, lambda task, given: task.enter(**given), check, states=None)


@door()
def update_state(place: Place, check: Check) -> None:
    _in_run(place, lambda task, given: task.update_state(**given), check)


@door()
def checkpoint(place: Place, check: Check) -> None:
    _in_run(place, lambda task, given: task.checkpoint(given), check)


@door()
def track_that_resumes(place: Place, check: Check) -> None:
    _in_run(place, lambda task, given: task.track(**{"iterable": [1], **given}), check)


@door()
def clients_of_a_task(place: Place, check: Check) -> None:
    _in_run(place, lambda task, given: task.clients(given), check)


# --- progress ------------------------------------------------------------------------------------


def _reported(reporter: Reporter) -> object:
    now = reporter.snapshot()
    return now.to_dict() | {"rate": 0, "eta": 0}, reporter._plan, reporter._planned, now.details


def _reporting(place: Place, check: Check, act: Callable[[Reporter, Any], object]) -> None:
    reporter = Reporter()
    reporter.steps({"load": 1, "sort": 3, "y" * 400: 1, "z" * 400: 1, "w" * 400: 1})
    reporter.step("load", message="begun")
    reporter.set(current=1, total=3, details={"row": 1})
    check(lambda given: act(reporter, given), lambda: _reported(reporter))


@door()
def progress(place: Place, check: Check) -> None:
    check(lambda given: Progress(**given), nothing)


@door()
def progress_from_dict(place: Place, check: Check) -> None:
    check(Progress.from_dict, nothing)


@door()
def progress_update(place: Place, check: Check) -> None:
    _reporting(place, check, Reporter.update)


@door()
def progress_set(place: Place, check: Check) -> None:
    _reporting(place, check, lambda reporter, given: reporter.set(**given))


@door()
def progress_step(place: Place, check: Check) -> None:
    _reporting(place, check, lambda reporter, given: reporter.step(**given))


@door()
def progress_steps(place: Place, check: Check) -> None:
    reporter = Reporter()
    check(lambda given: reporter.steps(*given), lambda: _reported(reporter))


@door()
def progress_steps_too_late(place: Place, check: Check) -> None:
    _reporting(place, check, lambda reporter, given: reporter.steps(*given))


@door()
def track(place: Place, check: Check) -> None:
    def follow(reporter: Reporter, given: dict[str, Any]) -> None:
        next(reporter.track(**{"iterable": [1], **given}))

    _reporting(place, check, follow)


# --- ids of tasks, readers -----------------------------------------------------------------------


def _recorded(place: Place) -> Watcher:
    """A watcher of a task that has ended."""
    tracker = Tracker(place.store)
    attempt = Attempt.of(tracker, "t-1", "run", Flow.of(OrderStates))
    attempt.claim()
    attempt.leave("SUCCESS")
    return Watcher(place.store, patience=0.05)


@door(stores=True)
def task_id(place: Place, check: Check) -> None:
    watcher = _recorded(place)
    check(watcher.get, place.rows)


@door()
def task_id_of_a_result(place: Place, check: Check) -> None:
    store = Settings.of(place.app).store
    check(lambda id: StatefulResult(id, app=place.app).task_state, lambda: shelf_rows(store))


@door()
def watcher_wait(place: Place, check: Check) -> None:
    watcher = _recorded(place)
    check(lambda given: watcher.wait(**{"id": "t-1", **given}), place.rows)


@door()
def watcher_watch(place: Place, check: Check) -> None:
    watcher = _recorded(place)
    check(lambda given: list(islice(watcher.watch(**{"id": "t-1", **given}), 1)), place.rows)


@door(stores=True)
def asked_of_a_task(place: Place, check: Check) -> None:
    tracker = Tracker(place.store)
    attempt = Attempt.of(tracker, "t-1", "run", Flow.of(OrderStates))
    attempt.claim()
    check(lambda given: tracker.ask(**{"id": "t-1", "what": "cancel", **given}), place.rows)


@door(stores=True)
def resumed(place: Place, check: Check) -> None:
    tracker = Tracker(place.store)
    attempt = Attempt.of(tracker, "t-1", "run", Flow.of(OrderStates))
    attempt.claim()
    tracker.ask("t-1", "pause")
    check(lambda given: tracker.resume(**{"id": "t-1", **given}), place.rows)


@door()
def client_of_a_task(place: Place, check: Check) -> None:
    @place.app.task(base=StatefulTask, name="run")
    def run() -> None:
        raise AssertionError("it ran")

    def sent() -> object:
        queues = {name: queue.qsize() for name, queue in broker.Channel.queues.items()}
        return queues, shelf_rows(Settings.of(place.app).store)

    _ = run.name
    check(lambda client_id: run.apply_async(client_id=client_id), sent)


# --- settings, stores ----------------------------------------------------------------------------


def _made(place: Place) -> object:
    return sorted(place.folder.iterdir()), sorted(memory._shelves)


@door()
def store_url(place: Place, check: Check) -> None:
    check(open_store, lambda: _made(place))


@door()
def store_options(place: Place, check: Check) -> None:
    url = f"sqlite:///{place.folder}/new.db"
    check(lambda given: open_store(**{"url": url, **given}), lambda: _made(place))


@door()
def limits(place: Place, check: Check) -> None:
    check(lambda given: Limits(**given), nothing)


@door()
def settings(place: Place, check: Check) -> None:
    app = Celery("bad", broker="memory://", set_as_current=False)

    def configure(conf: dict[str, Any]) -> object:
        app.conf.update(conf)
        expected.append(made_of(dict(app.conf)))
        return Settings.of(app).store

    expected: list[object] = []
    # What was set stays; reading it must change nothing more, and open no store.
    check(
        configure,
        lambda: (_made(place), bool(expected) and expected[-1] != made_of(dict(app.conf))),
    )


# --- stored bytes --------------------------------------------------------------------------------


@door()
def stored_record(place: Place, check: Check) -> None:
    check(lambda text: decode_record("k", text), nothing)


@door()
def stored_change(place: Place, check: Check) -> None:
    check(lambda text: decode_change("k", text), nothing)


def _stored(place: Place, key: str, check: Check, read: Callable[[], object]) -> None:
    rows: list[object] = []

    def put(text: str) -> object:
        place.put(key, text)
        rows.append(place.rows())
        return read()

    # What was put there stays: it is not repaired, replaced or removed.
    check(put, lambda: bool(rows) and rows[-1] != place.rows())


@door(stores=True)
def stored_task(place: Place, check: Check) -> None:
    _stored(place, "k", check, lambda: TaskState.from_record(place.store.read("k")))


@door(stores=True)
def stored_client(place: Place, check: Check) -> None:
    orders = Clients(place.store, Order)
    _stored(place, orders.key("o-1"), check, lambda: orders.update("o-1", pay))
