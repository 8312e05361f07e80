"""Clients are read, listed and watched."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from celery_statekit import Clients, ClientState, clients
from celery_statekit.errors import (
    CorruptRecord,
    InvalidState,
    NoSuchClient,
    StoreError,
    WatchTimeout,
)
from celery_statekit.record import Record
from celery_statekit.stores import MemoryStore, SQLiteStore, Store
from celery_statekit.testing import ManualClock

from .orders import DEADLINE, Order, OrderStates, add, pay


def test_nobody_is_nobody(orders: Clients[Order]) -> None:
    """``get`` of what is not stored is NoSuchClient; its history is empty."""
    with pytest.raises(NoSuchClient) as caught:
        orders.get("o-17")

    assert (caught.value.client, caught.value.id) == ("Order", "o-17")
    assert orders.history("o-17") == []


# --- lists ---------------------------------------------------------------------------------------


def test_a_list_has_every_client_of_the_class(
    store: Store, orders: Clients[Order], clock: ManualClock
) -> None:
    """``list`` gives those of this class and prefix, the oldest first, and nobody else's."""
    for id in ("o-2", "o-10", "o-1"):
        orders.create(id)
        clock.advance(1.0)
    Clients(store, ClientState).create("o-3")
    Clients(store, Order, prefix="other").create("o-4")

    assert [order.client_id for order in orders.list()] == ["o-2", "o-10", "o-1"]


def test_a_list_of_those_in_one_state(orders: Clients[Order]) -> None:
    """``list(state)`` takes a member or its stored name, and gives those that stand in it."""
    for id in ("o-1", "o-2", "o-3"):
        orders.create(id)
    orders.update("o-2", pay)

    assert [order.client_id for order in orders.list(OrderStates.PAID)] == ["o-2"]
    assert [order.client_id for order in orders.list(state="BASKET")] == ["o-1", "o-3"]
    assert orders.list("SHIPPED") == []


@pytest.mark.parametrize("state", ["READY", "paid", "", 5])
def test_a_list_of_no_state_is_refused(orders: Clients[Order], state: object) -> None:
    """A name that is no state of the class is InvalidState, not an empty list."""
    with pytest.raises(InvalidState):
        orders.list(state)


def test_a_list_is_no_longer_than_asked(orders: Clients[Order]) -> None:
    """``limit`` counts the clients that are given, not those that are looked at."""
    for number in range(6):
        orders.create(f"o-{number}")
    orders.update("o-4", pay)
    orders.update("o-5", pay)

    assert [order.client_id for order in orders.list(limit=2)] == ["o-0", "o-1"]
    assert [order.client_id for order in orders.list("PAID", limit=1)] == ["o-4"]
    assert orders.list(limit=0) == []


def test_a_list_longer_than_a_page_of_the_store(store: Store, orders: Clients[Order]) -> None:
    """Clients behind the store's first thousand keys are found."""
    for number in range(1002):
        record = Record.first(
            orders.key(f"o-{number:04}"), {"client": Order(f"o-{number:04}").to_dict()}
        )
        assert store.write(record, expect=None)
    orders.update("o-1001", pay)

    assert len(orders.list()) == 1000
    assert len(orders.list(limit=5000)) == 1002
    assert [order.client_id for order in orders.list("PAID")] == ["o-1001"]


def test_clients_that_move_meanwhile_are_listed_once(
    store: MemoryStore | SQLiteStore, orders: Clients[Order], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who moves or is deleted between two pages makes no other one come twice or not at all."""
    for number in range(6):
        orders.create(f"o-{number}")
    find = store.find
    events = iter((lambda: orders.update("o-0", pay), lambda: orders.delete("o-1")))

    def find_late(*args: Any, **options: Any) -> Any:
        page = find(*args, **options)
        next(events, lambda: None)()
        return page

    monkeypatch.setattr(clients, "PAGE", 2)
    monkeypatch.setattr(store, "find", find_late)

    assert sorted(order.client_id for order in orders.list()) == [f"o-{n}" for n in range(6)]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("limit", [5, 1000])
def test_a_list_ends_though_clients_go_on_moving(
    store: MemoryStore | SQLiteStore,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
) -> None:
    """All that are listed move at once, for ever; the others are all there, once each."""
    rounds = Clients(store, ClientState)
    for number in range(8):
        rounds.create(f"o-{number}")
        clock.advance(1.0)
    find = store.find

    after = {"READY": "IN_PROGRESS", "IN_PROGRESS": "SUCCESS", "SUCCESS": "READY"}

    def move(client: ClientState) -> None:
        client.enter(after[client.state])

    def find_and_move(*args: Any, **options: Any) -> Any:
        page = find(*args, **options)
        for found in page:
            clock.advance(1.0)
            rounds.update(found.key.rpartition(":")[2], move)
        return page

    monkeypatch.setattr(clients, "PAGE", 2)
    monkeypatch.setattr(store, "find", find_and_move)

    listed = [client.client_id for client in rounds.list(limit=limit)]
    assert listed == [f"o-{number}" for number in range(min(limit, 8))]


def test_a_list_with_a_corrupt_record_says_so(store: Store, orders: Clients[Order]) -> None:
    """A list is never shorter because something could not be read."""
    orders.create("o-1")
    store.write(Record.first(orders.key("o-2"), {}), expect=None)

    with pytest.raises(CorruptRecord):
        orders.list()


class Bare:
    """A store that can do no more than every store must."""

    def __init__(self, store: MemoryStore) -> None:
        self.name = store.name
        self.limits = store.limits
        self.read = store.read
        self.write = store.write
        self.history = store.history
        self.delete = store.delete
        self.close = store.close


@pytest.fixture
def bare() -> Iterator[Clients[Order]]:
    """Orders in such a store."""
    with closing(MemoryStore("bare")) as store:
        orders = Clients(Bare(store), Order, deadline=DEADLINE)
        yield orders
        orders.delete("o-17")


def test_a_store_that_lists_no_keys(bare: Clients[Order]) -> None:
    """``list`` on a store without keys() is a StoreError that says so."""
    with pytest.raises(StoreError, match="list"):
        bare.list()


def test_a_store_that_keeps_no_leases(bare: Clients[Order]) -> None:
    """Updates need none, even when they lose races; ``exclusive`` is a StoreError that says so."""
    bare.create("o-17")
    others = iter(range(5))

    def lose(order: Order) -> None:
        if next(others, None) is not None:
            bare.update("o-17", add)
        add(order)

    bare.update("o-17", lose)

    assert bare.get("o-17").count == 6
    with pytest.raises(StoreError, match="lease"), bare.exclusive("o-17"):
        pass


# --- watching ------------------------------------------------------------------------------------


def test_who_watches_gets_the_client_now_and_then_the_newer(orders: Clients[Order]) -> None:
    """First what is stored, then each version that is newer when it is asked for."""
    orders.create("o-17")
    watch = orders.watch("o-17", timeout=DEADLINE)

    assert next(watch).state == "BASKET"
    orders.update("o-17", pay)
    assert next(watch).state == "PAID"


def test_who_watches_slowly_gets_the_newest(orders: Clients[Order]) -> None:
    """Versions passed meanwhile are left out: no backlog."""
    orders.create("o-17")
    watch = orders.watch("o-17", timeout=DEADLINE)
    next(watch)

    for _ in range(10):
        orders.update("o-17", add)

    assert next(watch).count == 10


@pytest.fixture
def pay_after(
    orders: Clients[Order], monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], threading.Event]:
    """Lets an update come right after the n-th read from now on."""

    def arrange(n: int) -> threading.Event:
        paid = threading.Event()
        left = itertools.count(n - 1, -1)
        read = orders.store.read

        def read_then_pay(key: str) -> Record | None:
            record = read(key)
            if next(left) == 0:
                monkeypatch.setattr(orders.store, "read", read)
                orders.update("o-17", pay)
                paid.set()
            return record

        monkeypatch.setattr(orders.store, "read", read_then_pay)
        return paid

    return arrange


@pytest.mark.parametrize("reads", [1, 2, 3])
def test_who_watches_misses_no_news(
    orders: Clients[Order], pay_after: Callable[[int], threading.Event], reads: int
) -> None:
    """Whenever the newer version comes, the watch waits for it and gives it."""
    orders.create("o-17")
    watch = orders.watch("o-17", timeout=DEADLINE)
    next(watch)

    paid = pay_after(reads)
    newer = next(watch)

    assert paid.is_set()
    assert newer.state == "PAID"


def test_a_client_may_be_watched_before_it_is_made(orders: Clients[Order]) -> None:
    """A watch of nobody waits for the client; made again after a delete, it is news too."""
    steps = orders._steps("o-17", DEADLINE)
    assert next(steps) is None

    orders.create("o-17")
    first = next(steps)
    orders.delete("o-17")
    assert next(steps) is None
    orders.create("o-17", items=["book"])
    second = next(steps)

    assert first is not None
    assert first.items == []
    assert second is not None
    assert second.items == ["book"]


def test_a_watch_ends_after_its_time(orders: Clients[Order]) -> None:
    """Without news for ``timeout`` seconds it is WatchTimeout, and says where the client stood."""
    orders.create("o-17")
    watch = orders.watch("o-17", timeout=0.001)
    next(watch)

    with pytest.raises(WatchTimeout) as caught:
        next(watch)

    assert (caught.value.id, caught.value.seconds, caught.value.state) == ("o-17", 0.001, "BASKET")


def test_a_watch_ends_after_its_time_however_much_there_is_to_see(orders: Clients[Order]) -> None:
    """``timeout`` counts from the beginning, not from the last version."""
    orders.create("o-17")

    with pytest.raises(WatchTimeout):
        for order, _ in zip(orders.watch("o-17", timeout=0.01), range(5000), strict=False):
            orders.update(order.client_id, add)


def test_a_watch_of_nobody_ends_after_its_time(orders: Clients[Order]) -> None:
    """Nobody is UNKNOWN."""
    with pytest.raises(WatchTimeout) as caught:
        next(orders.watch("o-17", timeout=0.001))

    assert caught.value.state == "UNKNOWN"


@pytest.mark.parametrize("reads", [1, 2, 3, 4])
def test_a_coroutine_watches_alike(
    orders: Clients[Order], pay_after: Callable[[int], threading.Event], reads: int
) -> None:
    """``awatch`` gives the same, whenever it comes, and the loop runs on while it waits."""
    orders.create("o-17")

    async def follow() -> list[str]:
        watch = orders.awatch("o-17", timeout=5.0)
        pay_after(reads)
        seen = [(await anext(watch)).state]
        newer = asyncio.ensure_future(anext(watch))
        turns = 0
        while not newer.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns > 1
        seen.append(newer.result().state)
        await watch.aclose()
        return seen

    assert asyncio.run(follow()) == ["BASKET", "PAID"]


def test_a_coroutines_watch_ends_after_its_time(orders: Clients[Order]) -> None:
    """``awatch`` raises WatchTimeout too."""

    async def follow() -> None:
        async for _ in orders.awatch("o-17", timeout=0.001):
            pass

    with pytest.raises(WatchTimeout):
        asyncio.run(follow())
