"""Odd input that is good: each case of ``accepted.json`` comes back as it was, to the bit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
from celery import Celery
from kombu.utils import json as kombu_json

from celery_statekit import Clients, Progress, StatefulTask, Watcher
from celery_statekit.attempt import Attempt
from celery_statekit.errors import InvalidInput, PayloadTooLarge
from celery_statekit.record import Limits, Record, decode_record, encode_record
from celery_statekit.settings import Settings
from celery_statekit.states import Flow, task_flow
from celery_statekit.tracker import Tracker

from .doors import Place, states_of
from .shop import Order, OrderStates, pay
from .words import ROOM, hooked, made_of, resolved

CASES: Final[dict[str, list[dict[str, Any]]]] = json.loads(
    Path(__file__).with_name("accepted.json").read_text()
)


def cases(group: str) -> Any:
    """Run a test with each case of ``group``."""
    return pytest.mark.parametrize("case", CASES[group], ids=[case["is"] for case in CASES[group]])


both_stores = pytest.mark.parametrize("place", ["memory", "sqlite"], indirect=True)


# --- clients -------------------------------------------------------------------------------------


@both_stores
@cases("values")
def test_a_value_comes_back_exactly(place: Place, case: dict[str, Any]) -> None:
    """As a document, as JSON, over kombu's wire, through a task and out of a store."""
    value = resolved(case["input"])
    made = made_of(value)
    order = Order("o-1", anything=value)
    got: list[Any] = []

    @place.app.task(base=StatefulTask, name="ship")
    def ship(order: Order) -> None:
        got.append(order.anything)

    ship.apply(args=[order.to_dict()], throw=True)
    got.append(Order.from_dict(order.to_dict()).anything)
    got.append(Order.from_json(order.to_json()).anything)
    got.append(Order.from_json(order.to_json().encode()).anything)
    got.append(Order.from_dict(kombu_json.loads(kombu_json.dumps(order))).anything)
    orders = Clients(place.store, Order)
    orders.create("o-1", anything=value)
    orders.update("o-1", pay)
    got.append(orders.get("o-1").anything)

    assert [made_of(back) for back in got] == [made] * 6
    assert made_of(value) == made
    assert not hooked


def test_a_document_of_exactly_the_largest_size() -> None:
    """256 KiB are taken and written; one byte more is not (see the refused)."""
    document = resolved({"$": "sized order", "size": ROOM})
    order = Order.from_dict(document)

    assert order.to_dict() == document
    assert len(order.to_json().encode()) == ROOM
    assert Order.from_json(order.to_json()) == order


def test_a_record_of_exactly_the_largest_size() -> None:
    """A record of as many bytes as the limit is written; of one more, not."""
    record = Record.first("k", {"text": "é" * 100})
    size = len(encode_record(record, Limits()).encode())

    assert decode_record("k", encode_record(record, Limits(record_bytes=size))) == record
    with pytest.raises(PayloadTooLarge):
        encode_record(record, Limits(record_bytes=size - 1))


@both_stores
def test_each_odd_id_names_one_client(place: Place) -> None:
    """Stored beside each other, each is read, moved, listed and deleted alone; no file is made."""
    ids = [resolved(case["input"]) for case in CASES["client_ids"]]
    orders = Clients(place.store, Order)
    for id in ids:
        orders.create(id, items=[id])

    assert sorted(order.client_id for order in orders.list()) == sorted(ids)
    assert len({orders.key(id) for id in ids}) == len(ids)
    for id in ids:
        assert re.fullmatch(r"statekit:client:Order:[A-Za-z0-9_.%-]+", orders.key(id))
        assert (orders.get(id).client_id, orders.get(id).items) == (id, [id])
        assert Order.from_json(Order(id).to_json()).client_id == id
        orders.update(id, pay)
        assert [order.client_id for order in orders.list(state=OrderStates.PAID)] == [id]
        assert [change.client_id for change in orders.history(id)] == [id]
        assert orders.delete(id)
        assert orders.list(state=OrderStates.PAID) == []
    assert orders.list() == []
    files = {path.name for path in place.folder.rglob("*")}
    assert files <= {"states.db", "states.db-wal", "states.db-shm"}


@both_stores
@pytest.mark.parametrize("limit", [0, -1])
def test_a_list_of_at_most_nothing(place: Place, limit: int) -> None:
    """At most none are none, as of a history."""
    orders = place.orders()

    assert orders.list(limit=limit) == []
    assert orders.history("o-1", limit=limit) == []


@cases("reasons")
def test_any_reason_is_kept_as_text(place: Place, case: dict[str, Any]) -> None:
    """As far as it can be shown, and cut to its limit; a move never fails by its reason."""
    reason = resolved(case["input"])
    orders = place.orders()

    @place.app.task(bind=True, base=StatefulTask, states=OrderStates, name="run")
    def run(self: Any) -> None:
        self.enter(OrderStates.BASKET, reason=reason)

    result = run.apply(throw=True)
    orders.update("o-1", lambda order: order.enter(OrderStates.PAID, reason=reason))
    kept = [result.history()[1].reason, orders.history("o-1")[0].reason]

    assert kept[0] == kept[1]
    assert len(kept[0].encode()) <= Limits().message_bytes
    assert case.get("kept", kept[0]) == kept[0]


def test_a_name_of_the_most_characters(place: Place) -> None:
    """``once`` takes 100 characters, of which each update is applied once."""
    orders = place.orders()
    for _ in range(2):
        orders.update("o-1", lambda order: order.items.append("pen"), once="é" * 100)

    assert orders.get("o-1").items == ["book", "pen"]


# --- tasks ---------------------------------------------------------------------------------------


@cases("task_ids")
def test_a_task_runs_whatever_its_id(
    place: Place, case: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """And is recorded under it alone; one that cannot be recorded runs all the same.

    No id breaks a line of our log.
    """

    @place.app.task(bind=True, base=StatefulTask, states=OrderStates, name="run")
    def run(self: Any) -> str:
        self.progress.update()
        return "done"

    for other in CASES["task_ids"]:
        if other is not case:
            run.apply(task_id=resolved(other["input"]))
    caplog.clear()
    id = resolved(case["input"])
    result = run.apply(task_id=id, throw=True)

    assert result.get() == "done"
    for record in caplog.records:
        if record.name.startswith("celery_statekit"):
            assert record.getMessage().isprintable()
            assert len(record.getMessage()) < 1000
    if not case.get("unrecorded"):
        key = Settings.of(place.app).tracker.key(id)
        assert re.fullmatch(r"statekit:task:[A-Za-z0-9_.%~-]+", key)
        assert len(key) < 700
        assert (result.task_state.id, result.task_state.state) == (id, "SUCCESS")
        assert {change.task_id for change in result.history()} == {id}


@cases("messages")
def test_a_message_is_kept_and_shown_in_one_line(place: Place, case: dict[str, Any]) -> None:
    """Whatever a task puts in; a long one is cut where it is recorded."""
    message = resolved(case["input"])

    @place.app.task(bind=True, base=StatefulTask, name="run")
    def run(self: Any) -> None:
        self.progress.set(current=1, message=message)

    recorded = run.apply(throw=True).task_state.progress
    progress = Progress(current=1, message=message)

    assert progress.message == case.get("kept", message)
    assert Progress.from_dict(json.loads(json.dumps(progress.to_dict()))) == progress
    assert str(progress).isprintable()
    assert len(recorded.message.encode()) <= Limits().message_bytes
    assert case.get("cut") or recorded.message == progress.message


@cases("amounts")
def test_an_odd_amount_is_one(case: dict[str, Any]) -> None:
    """It is kept as it is, its share of the total is from 0 to 100, and it is JSON."""
    progress = Progress(**resolved(case["input"]))

    assert repr(progress.percent) == repr(case["percent"])
    assert Progress.from_dict(json.loads(json.dumps(progress.to_dict()))) == progress
    assert json.dumps(progress.meta(), allow_nan=False)


@cases("metas")
def test_a_meta_that_celery_takes(place: Place, case: dict[str, Any]) -> None:
    """``update_state`` keeps it as details, as JSON has it; what is no amount moves no bar."""
    meta = resolved(case["input"])

    @place.app.task(bind=True, base=StatefulTask, name="run")
    def run(self: Any) -> dict[str, Any]:
        self.update_state(state="PROGRESS", meta=meta)
        self.update_state(state="SLEEPING", meta=meta)
        return dict(self.progress.details)

    result = run.apply(throw=True)
    details = result.get()

    assert details == case.get("kept", details)
    assert [change.to_state for change in result.history()] == ["STARTED", "SLEEPING", "SUCCESS"]


@cases("values")
def test_a_checkpoint_comes_back_exactly(place: Place, case: dict[str, Any]) -> None:
    """The next attempt, and a reader, get what was given."""
    value = resolved(case["input"])
    made = made_of(value)
    got: list[Any] = []

    @place.app.task(bind=True, base=StatefulTask, name="run")
    def run(self: Any) -> None:
        got.append(self.last_checkpoint)
        self.checkpoint(value)
        if not self.request.retries:
            raise self.retry(countdown=0)

    got.append(run.apply().task_state.checkpoint.value)

    assert [made_of(back) for back in got] == [made_of(None), made, made]
    assert made_of(value) == made


@cases("states")
def test_odd_states_can_be_drawn(case: dict[str, Any]) -> None:
    """They make a flow, whose pictures are lines of printable text."""
    flow = Flow.of(states_of(resolved(case["input"])))

    assert flow.name_of(flow.initial) == flow.initial
    for line in (*flow.mermaid().split("\n"), *flow.markdown().split("\n")):
        assert line.isprintable()
        assert "<" not in line.replace("-->", "")


def test_a_state_named_like_the_open_set(place: Place) -> None:
    """``*`` is a name like any other; a flow that declares it stays closed."""
    flow = task_flow(Flow.of(states_of({"members": {"*": "any", "B": "b"}})))

    assert flow.name_of("*") == "*"
    with pytest.raises(InvalidInput):
        flow.name_of("C")


@cases("settings")
def test_odd_settings_are_obeyed(case: dict[str, Any]) -> None:
    """Those given are used, None means the default, and names of others are theirs."""
    given = resolved(case["input"])
    app = Celery("odd", broker="memory://", set_as_current=False)
    app.conf.update(given)
    values = Settings.of(app).values

    for name, value in given.items():
        if name.startswith("statekit_") and value is not None:
            assert getattr(values, name.removeprefix("statekit_")) == value


@cases("until")
def test_what_may_be_waited_for(place: Place, case: dict[str, Any]) -> None:
    """The end, a state, several in any collection."""
    attempt = Attempt.of(Tracker(place.store), "t-1", "run", Flow.of(OrderStates))
    attempt.claim()
    attempt.leave("SUCCESS")

    state = Watcher(place.store).wait("t-1", resolved(case["input"]), timeout=10)

    assert state.state == "SUCCESS"
