"""Clients are made, changed and deleted; what is refused changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from celery_statekit import Clients, ClientState
from celery_statekit.clients import ONCE_KEPT, Actor
from celery_statekit.errors import (
    ClientExists,
    CorruptRecord,
    IllegalTransition,
    InvalidClientState,
    InvalidId,
    InvalidInput,
    NoSuchClient,
    PayloadTooLarge,
)
from celery_statekit.record import Limits, Record
from celery_statekit.signals import ClientChanged, client_changed
from celery_statekit.stores import MemoryStore, Store

from .orders import Order, OrderStates, add, pay

BAD_IDS: list[Any] = ["", None, 5, b"o-17", "o\n17", "o\x00", "\u202eo", "\ud800", "o" * 201]


def run(store: Store, task_id: str, attempt: int = 1) -> Clients[Order]:
    """The orders as one run of a task updates them."""
    actor = Actor(task="shop.charge", task_id=task_id, attempt=attempt, worker="celery@host:4711")
    return Clients(store, Order, actor=actor)


# --- making and deleting -------------------------------------------------------------------------


def test_a_client_is_stored_as_it_was_made(orders: Clients[Order]) -> None:
    """``create`` stores the fields given and returns what ``get`` returns."""
    made = orders.create("o-17", items=["book"])

    assert Order("o-17", items=["book"]) == made
    assert made == orders.get("o-17")


def test_a_client_is_made_once(orders: Clients[Order]) -> None:
    """``create`` refuses an id that is taken, and says whose; what is stored stays."""
    orders.create("o-17", items=["book"])

    with pytest.raises(ClientExists) as caught:
        orders.create("o-17", items=["pen"])

    assert (caught.value.client, caught.value.id) == ("Order", "o-17")
    assert orders.get("o-17").items == ["book"]


def test_a_field_that_cannot_be_stored_makes_no_client(orders: Clients[Order]) -> None:
    """``create`` refuses a value of another type, and nothing is stored."""
    with pytest.raises(InvalidClientState, match="items"):
        orders.create("o-17", items=5)

    with pytest.raises(NoSuchClient):
        orders.get("o-17")


@pytest.mark.parametrize("id", BAD_IDS)
def test_what_is_no_id_is_refused_everywhere(orders: Clients[Order], id: Any) -> None:
    """Every call refuses an id that may not name a client."""
    for call in (
        orders.get,
        orders.create,
        orders.history,
        orders.delete,
        lambda id: orders.update(id, add),
        lambda id: orders.exclusive(id).__enter__(),
        lambda id: next(orders.watch(id)),
    ):
        with pytest.raises(InvalidId):
            call(id)
    assert orders.list() == []


@pytest.mark.parametrize(
    "id",
    ["*", "{a}", "a:b", "a%3Ab", "~", "../../etc/passwd", "'; DROP TABLE records;--", "ß" * 100],
)
def test_an_id_forges_no_other_key(orders: Clients[Order], id: str) -> None:
    """An id full of separators and quotes names one client, which is not its neighbour."""
    orders.create(id)
    orders.create(f"{id[:-1]} ")

    orders.update(id, add)

    assert orders.get(id).count == 1
    assert orders.get(f"{id[:-1]} ").count == 0


def test_clients_of_two_classes_do_not_meet(store: Store, orders: Clients[Order]) -> None:
    """The same id in another class, or under another prefix, is another client."""
    orders.create("o-17")
    plain = Clients(store, ClientState)
    others = Clients(store, Order, prefix="other")

    with pytest.raises(NoSuchClient):
        plain.get("o-17")
    with pytest.raises(NoSuchClient):
        others.get("o-17")


def test_a_deleted_client_is_gone(orders: Clients[Order]) -> None:
    """``delete`` removes client and history, and says whether there was one."""
    orders.create("o-17")
    orders.update("o-17", pay)

    assert orders.delete("o-17")
    assert not orders.delete("o-17")

    with pytest.raises(NoSuchClient):
        orders.get("o-17")
    assert orders.history("o-17") == []


def test_a_client_made_again_begins_again(orders: Clients[Order]) -> None:
    """After ``delete`` the id is free; nothing of the earlier client shows."""
    orders.create("o-17", items=["book"])
    orders.update("o-17", pay, once="pay")
    orders.delete("o-17")

    orders.create("o-17")
    orders.update("o-17", pay, once="pay")

    assert orders.get("o-17").state == "PAID"
    assert orders.get("o-17").items == []
    assert [change.number for change in orders.history("o-17")] == [1]


# --- changing ------------------------------------------------------------------------------------


def test_an_update_is_stored(orders: Clients[Order]) -> None:
    """``update`` stores what the function did, and returns the client so."""
    orders.create("o-17")

    updated = orders.update("o-17", lambda order: order.items.append("book"))

    assert updated.items == ["book"]
    assert updated == orders.get("o-17")


def test_a_client_that_was_read_is_a_copy(orders: Clients[Order]) -> None:
    """What is done to a client outside ``update`` is not stored."""
    orders.create("o-17")

    for order in (orders.get("o-17"), orders.update("o-17", add), *orders.list()):
        order.items.append("book")
        order.enter(OrderStates.SHIPPED)

    assert Order("o-17", count=1) == orders.get("o-17")


def test_no_update_of_what_is_not_there(orders: Clients[Order]) -> None:
    """``update`` of an id that is not stored is NoSuchClient, a LookupError, and stores nothing."""
    with pytest.raises(NoSuchClient) as caught:
        orders.update("o-17", add)

    assert isinstance(caught.value, LookupError)
    assert (caught.value.client, caught.value.id) == ("Order", "o-17")
    assert orders.list() == []


def test_an_update_may_make_the_client(orders: Clients[Order]) -> None:
    """With ``create=True`` the function gets a new client where none is stored, else the stored."""
    orders.update("o-17", add, create=True)
    orders.update("o-17", add, create=True)

    assert orders.get("o-17").count == 2


def test_a_function_that_raises_leaves_nothing(
    orders: Clients[Order], told: list[ClientChanged]
) -> None:
    """Its exception goes to the caller; client, history and signal are as if it was not called."""
    orders.create("o-17", items=["book"])
    told.clear()

    def fail(order: Order) -> None:
        order.items.clear()
        order.enter(OrderStates.PAID)
        raise KeyError("till")

    with pytest.raises(KeyError, match="till"):
        orders.update("o-17", fail, once="fail")
    with pytest.raises(KeyError, match="till"):
        orders.update("o-18", fail, create=True)

    assert [Order("o-17", items=["book"])] == orders.list()
    assert orders.history("o-17") == []
    assert told == []
    # The name was not used up either.
    assert orders.update("o-17", add, once="fail").count == 1


def rename(order: Order) -> None:
    order.client_id = "o-18"


def spoil(order: Order) -> None:
    order.count = "many"  # type: ignore[assignment]


def swell(order: Order) -> None:
    order.items.append("x" * 300_000)


def move_back(order: Order) -> None:
    order.enter(OrderStates.SHIPPED)
    order.enter(OrderStates.BASKET)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (rename, InvalidClientState),
        (spoil, InvalidClientState),
        (swell, PayloadTooLarge),
        (move_back, IllegalTransition),
    ],
)
def test_what_may_not_be_stored_is_not(
    orders: Clients[Order], change: Callable[[Order], None], error: type[Exception]
) -> None:
    """Another id, another type, too much, a move the flow forbids: an error, nothing changed."""
    before = orders.create("o-17", items=["book"])
    other = orders.create("o-18")

    with pytest.raises(error):
        orders.update("o-17", change)
    with pytest.raises(error), orders.exclusive("o-17") as order:
        change(order)

    assert [before, other] == orders.list()
    assert orders.history("o-17") == []
    # Nor is anything left that holds up the next.
    assert orders.update("o-17", add).count == 1


def test_a_forbidden_move_says_what_is_allowed(orders: Clients[Order]) -> None:
    """IllegalTransition names the class, the id, both states and the moves that are left."""
    orders.create("o-17")
    orders.update("o-17", lambda order: order.enter(OrderStates.SHIPPED))

    with pytest.raises(IllegalTransition) as caught:
        orders.update("o-17", pay)

    error = caught.value
    assert (
        error.task,
        error.id,
        error.from_state,
        error.to_state,
        error.allowed,
    ) == ("Order", "o-17", "SHIPPED", "PAID", ())


def test_a_record_over_the_stores_limit_is_refused() -> None:
    """A client that fits by itself may still be over what this store takes: PayloadTooLarge."""
    orders = Clients(MemoryStore("small records", Limits(record_bytes=1000)), Order)
    orders.create("o-17")

    with pytest.raises(PayloadTooLarge):
        orders.update("o-17", lambda order: order.items.append("x" * 1000))

    assert orders.get("o-17").items == []
    orders.delete("o-17")


def test_a_coroutine_function_is_refused(orders: Clients[Order]) -> None:
    """An update that nobody would await is an error, not an update that does nothing."""
    orders.create("o-17")

    async def change(order: Order) -> None:
        add(order)

    with pytest.raises(InvalidInput, match="coroutine"):
        orders.update("o-17", change)


# --- moves ---------------------------------------------------------------------------------------


def test_moves_become_changes(store: Store, orders: Clients[Order]) -> None:
    """Each move is a change: from, to, why, by which run of which task; numbered from 1."""
    orders.create("o-17")

    def ship(order: Order) -> None:
        pay(order)
        order.enter("SHIPPED")

    run(store, "t-1", attempt=3).update("o-17", ship)

    paid, shipped = orders.history("o-17")
    assert (
        paid.number,
        paid.from_state,
        paid.to_state,
        paid.reason,
    ) == (1, "BASKET", "PAID", "card")
    assert (
        shipped.number,
        shipped.from_state,
        shipped.to_state,
        shipped.reason,
    ) == (2, "PAID", "SHIPPED", "")
    for change in (paid, shipped):
        assert change.version == 2
        assert (change.task, change.task_id, change.attempt) == ("shop.charge", "t-1", 3)
        assert (change.worker, change.client_id) == ("celery@host:4711", "o-17")


def test_outside_a_task_nobody_is_named(orders: Clients[Order]) -> None:
    """A change made outside a task has no task, no task id and no attempt."""
    orders.create("o-17")
    orders.update("o-17", pay)

    (change,) = orders.history("o-17")

    assert (change.task, change.task_id, change.attempt, change.worker) == ("", "", 0, "")


def test_numbers_go_on_over_updates(orders: Clients[Order]) -> None:
    """Changes are numbered without gaps, whatever comes between them."""
    plain = Clients(orders.store, ClientState)
    plain.create("c-7")

    for _ in range(5):
        plain.update("c-7", lambda client: client.actions.clear())
        with plain.exclusive("c-7") as client, client.action("first_action"):
            pass

    history = plain.history("c-7")
    assert list(range(1, 16)) == [change.number for change in history]
    assert history[-1].to_state == "READY"
    assert history[12:14] == plain.history("c-7", after=12, limit=2)


def test_a_long_reason_is_cut_to_what_the_store_takes() -> None:
    """A reason over the store's limit is stored cut, not refused."""
    orders = Clients(MemoryStore("short reasons", Limits(message_bytes=20)), Order)
    orders.create("o-17")

    orders.update("o-17", lambda order: order.enter(OrderStates.PAID, reason="because " * 50))

    assert len(orders.history("o-17")[0].reason.encode()) <= 20
    orders.delete("o-17")


# --- once ----------------------------------------------------------------------------------------


def test_a_named_update_is_applied_once_in_a_task(store: Store, orders: Clients[Order]) -> None:
    """Deliveries and retries of one task id apply it once; a later call returns the client as is."""
    orders.create("o-17")

    for attempt in (1, 2, 3):
        run(store, "t-1", attempt).update("o-17", add, once="charge")
    orders.update("o-17", lambda order: order.items.append("book"))
    late = run(store, "t-1").update("o-17", add, once="charge")

    assert Order("o-17", items=["book"], count=1) == late
    assert late == orders.get("o-17")


def test_a_named_update_is_one_tasks_own(store: Store, orders: Clients[Order]) -> None:
    """Another task id, another name and another client each apply it."""
    orders.create("o-17")
    orders.create("o-18")

    run(store, "t-1").update("o-17", add, once="charge")
    run(store, "t-2").update("o-17", add, once="charge")
    run(store, "t-1").update("o-17", add, once="charge again")
    run(store, "t-1").update("o-18", add, once="charge")

    assert orders.get("o-17").count == 3
    assert orders.get("o-18").count == 1


def test_a_named_update_outside_a_task(orders: Clients[Order]) -> None:
    """Outside a task a name is used once by all who are outside."""
    orders.create("o-17")

    for _ in range(3):
        orders.update("o-17", add, once="import of May")
        Clients(orders.store, Order).update("o-17", add, once="import of May")

    assert orders.get("o-17").count == 1


def test_a_repeated_update_tells_nothing(
    store: Store, orders: Clients[Order], told: list[ClientChanged]
) -> None:
    """What was not applied again is no new version, no change and no signal."""
    orders.create("o-17")
    run(store, "t-1").update("o-17", pay, once="pay")
    told.clear()

    run(store, "t-1").update("o-17", pay, once="pay")

    assert told == []
    assert len(orders.history("o-17")) == 1


def test_names_are_kept_through_other_writes(store: Store, orders: Clients[Order]) -> None:
    """Neither ``exclusive`` nor updates without a name forget the names."""
    orders.create("o-17")
    run(store, "t-1").update("o-17", add, once="charge")

    with orders.exclusive("o-17") as order:
        order.items.append("book")
    orders.update("o-17", add)
    run(store, "t-1").update("o-17", add, once="charge")

    assert orders.get("o-17").count == 2


def test_the_newest_names_are_kept(store: Store, orders: Clients[Order]) -> None:
    """A client keeps 256 names: one more, and the oldest may be applied again."""
    orders.create("o-17")
    task = run(store, "t-1")
    for number in range(ONCE_KEPT + 1):
        task.update("o-17", add, once=f"row {number}")

    for number in range(1, ONCE_KEPT + 1):
        task.update("o-17", add, once=f"row {number}")
    assert orders.get("o-17").count == ONCE_KEPT + 1

    task.update("o-17", add, once="row 0")
    assert orders.get("o-17").count == ONCE_KEPT + 2


@pytest.mark.parametrize("once", ["", 5, b"charge", "a\n", "x" * 101, ("a", "b")])
def test_what_is_no_name_is_refused(orders: Clients[Order], once: Any) -> None:
    """``once`` is a printable text of 1 to 100 characters; else nothing is applied."""
    orders.create("o-17")

    with pytest.raises(InvalidInput, match="once"):
        orders.update("o-17", add, once=once)

    assert orders.get("o-17").count == 0


# --- what is told --------------------------------------------------------------------------------


def test_each_write_is_told(orders: Clients[Order], told: list[ClientChanged]) -> None:
    """``client_changed`` carries kind, id, version, state and the moves; 0 when deleted."""
    orders.create("o-17")
    orders.update("o-17", add)
    orders.update("o-17", pay)
    orders.delete("o-17")
    orders.delete("o-17")

    assert [
        (
            changed.kind,
            changed.id,
            changed.version,
            changed.state,
            tuple(change.to_state for change in changed.changes),
        )
        for changed in told
    ] == [
        ("Order", "o-17", 1, "BASKET", ()),
        ("Order", "o-17", 2, "BASKET", ()),
        ("Order", "o-17", 3, "PAID", ("PAID",)),
        ("Order", "o-17", 0, "", ()),
    ]


def test_it_is_told_after_the_write(orders: Clients[Order]) -> None:
    """A receiver reads what it is told of."""
    read: list[int] = []

    def receive(changed: ClientChanged, **_: object) -> None:
        read.append(orders.get(changed.id).count)

    orders.create("o-17")
    client_changed.connect(receive, sender="Order")
    try:
        orders.update("o-17", add)
    finally:
        client_changed.disconnect(receive, sender="Order")

    assert read == [1]


@pytest.mark.filterwarnings("default")
def test_a_receiver_that_raises_hurts_nobody(
    orders: Clients[Order], caplog: pytest.LogCaptureFixture
) -> None:
    """Its exception is logged; the update is applied and returned."""

    def receive(**_: object) -> None:
        raise RuntimeError("till on fire")

    orders.create("o-17")
    client_changed.connect(receive, sender="Order")
    try:
        updated = orders.update("o-17", add)
    finally:
        client_changed.disconnect(receive, sender="Order")

    assert updated == orders.get("o-17")
    assert "till on fire" in caplog.text


# --- documents of other releases -----------------------------------------------------------------


class OldParcel(ClientState, kind="Parcel"):
    grams: int = 0
    colour: str = "brown"


class Parcel(ClientState, kind="Parcel", version=2):
    kilos: float = 0.0

    @classmethod
    def upgrade(cls, data: dict[str, Any], version: int) -> dict[str, Any]:
        return {**data, "kilos": data.pop("grams") / 1000}


def test_an_older_document_is_upgraded_by_the_update(store: Store) -> None:
    """Read, changed and stored as the newer version; what it does not know comes along."""
    Clients(store, OldParcel).create("p-1", grams=1500, colour="red")
    parcels = Clients(store, Parcel)

    assert parcels.get("p-1").kilos == 1.5
    parcels.update("p-1", lambda parcel: setattr(parcel, "kilos", 2.0))
    with parcels.exclusive("p-1") as parcel:
        parcel.kilos += 1

    document = parcels.get("p-1").to_dict()
    assert (document["version"], document["kilos"], document["colour"]) == (2, 3.0, "red")


def test_a_newer_document_is_neither_read_nor_written(store: Store) -> None:
    """An older class refuses what a newer one stored, and leaves it as it is."""
    parcels = Clients(store, Parcel)
    stored = parcels.create("p-1", kilos=1.5)
    old = Clients(store, OldParcel)

    with pytest.raises(InvalidClientState, match="newer release"):
        old.get("p-1")
    with pytest.raises(InvalidClientState, match="newer release"):
        old.update("p-1", lambda _: None)
    with pytest.raises(InvalidClientState, match="newer release"), old.exclusive("p-1"):
        pass

    assert stored == parcels.get("p-1")
    assert parcels.update("p-1", lambda p: setattr(p, "kilos", 2.0)).kilos == 2.0


def test_what_a_newer_release_keeps_beside_the_client_stays(
    store: Store, orders: Clients[Order]
) -> None:
    """Parts of the document that this release does not know are written back."""
    record = Record.first(
        orders.key("o-17"), {"client": Order("o-17").to_dict(), "watchers": [1, {"a": []}]}
    )
    store.write(record, expect=None)

    orders.update("o-17", add, once="charge")
    with orders.exclusive("o-17"):
        pass

    stored = store.read(orders.key("o-17"))
    assert stored is not None
    assert stored.document["watchers"] == [1, {"a": []}]


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"client": 5},
        {"client": {}, "once": 5},
        {"client": {}, "once": [5]},
        {"client": {}, "changes": "x"},
    ],
)
def test_a_record_that_is_no_client_is_told(
    store: Store, orders: Clients[Order], document: dict[str, Any]
) -> None:
    """What stands under the key and is no client's record is CorruptRecord, and stays."""
    record = Record.first(orders.key("o-17"), document)
    store.write(record, expect=None)

    for call in (
        orders.get,
        lambda id: orders.update(id, add),
        lambda id: orders.exclusive(id).__enter__(),
    ):
        with pytest.raises(CorruptRecord):
            call("o-17")

    assert record == store.read(orders.key("o-17"))
