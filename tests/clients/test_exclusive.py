"""Work that nobody else may write into, and what ends it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from celery_statekit import Clients, contention
from celery_statekit.errors import ContentionTimeout, InvalidInput, LeaseLost, NoSuchClient
from celery_statekit.signals import ClientChanged
from celery_statekit.stores import MemoryStore, SQLiteStore
from celery_statekit.testing import FailsAt, ManualClock

from .orders import DEADLINE, Order, add, pay


def test_a_block_is_stored_at_its_end(orders: Clients[Order], told: list[ClientChanged]) -> None:
    """What the block did is one write, with its moves; before its end nobody sees any of it."""
    orders.create("o-17")
    told.clear()

    with orders.exclusive("o-17") as order:
        order.items.append("book")
        pay(order)
        during = orders.get("o-17")

    assert Order("o-17") == during
    assert order == orders.get("o-17")
    assert [change.to_state for change in orders.history("o-17")] == ["PAID"]
    assert [(changed.state, len(changed.changes)) for changed in told] == [("PAID", 1)]


def test_a_block_needs_a_client(orders: Clients[Order], hasty: Clients[Order]) -> None:
    """NoSuchClient where none is stored; the lease is given back."""
    with pytest.raises(NoSuchClient), orders.exclusive("o-17"):
        pass

    orders.create("o-17")
    with hasty.exclusive("o-17") as order:
        add(order)


def test_nobody_writes_into_a_block(orders: Clients[Order], hasty: Clients[Order]) -> None:
    """Updates and blocks of others wait until their deadline: ContentionTimeout, nothing applied."""
    orders.create("o-17")

    with orders.exclusive("o-17") as order:
        with pytest.raises(ContentionTimeout) as update:
            hasty.update("o-17", add)
        with pytest.raises(ContentionTimeout), hasty.exclusive("o-17") as other:
            add(other)
        order.items.append("book")

    assert orders.key("o-17") == update.value.key
    assert update.value.attempts >= 1
    assert update.value.seconds == 0.01
    assert Order("o-17", items=["book"]) == orders.get("o-17")


def test_other_clients_go_on(orders: Clients[Order], hasty: Clients[Order]) -> None:
    """A block holds up one client, not its neighbours, and no reader."""
    orders.create("o-17")
    orders.create("o-18")

    with orders.exclusive("o-17"), hasty.exclusive("o-18") as neighbour:
        add(neighbour)
        hasty.create("o-19")
        assert len(hasty.list()) == 3

    assert orders.get("o-18").count == 1


def test_updates_go_on_after_a_block(
    store: MemoryStore | SQLiteStore, orders: Clients[Order], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update that waits for a block's end is then applied to what the block stored."""
    orders.create("o-17")
    waiting = threading.Event()
    acquire = store.acquire

    def tell(key: str, owner: str, seconds: float, wait: float) -> bool:
        if threading.current_thread() is updating:
            waiting.set()
        return acquire(key, owner, seconds, wait)

    monkeypatch.setattr(store, "acquire", tell)
    updating = threading.Thread(target=orders.update, args=("o-17", add))
    with orders.exclusive("o-17") as order:
        updating.start()
        assert waiting.wait(DEADLINE)
        order.count = 10
    updating.join(DEADLINE)

    assert orders.get("o-17").count == 11


def test_a_block_that_raises_stores_nothing(orders: Clients[Order], hasty: Clients[Order]) -> None:
    """Its exception goes on, nothing of it is stored, and the next one may begin at once."""
    orders.create("o-17")

    with pytest.raises(KeyError, match="till"), orders.exclusive("o-17") as order:
        pay(order)
        order.items.append("book")
        raise KeyError("till")

    assert Order("o-17") == orders.get("o-17")
    assert orders.history("o-17") == []
    assert hasty.update("o-17", add).count == 1


def test_a_block_whose_lease_ended_is_stored(orders: Clients[Order], clock: ManualClock) -> None:
    """A block that took too long is stored where nobody wrote meanwhile."""
    orders.create("o-17")

    with orders.exclusive("o-17", seconds=30) as order:
        clock.advance(31)
        add(order)

    assert orders.get("o-17").count == 1


@pytest.mark.parametrize("others", ["update", "exclusive", "delete"])
def test_a_block_that_was_overtaken_is_lost(
    orders: Clients[Order], hasty: Clients[Order], clock: ManualClock, others: str
) -> None:
    """Once its lease has ended and another wrote, it is LeaseLost, and nothing of it is stored."""
    orders.create("o-17", items=["book"])

    def overtake() -> None:
        if others == "update":
            hasty.update("o-17", add)
        elif others == "delete":
            hasty.delete("o-17")
            hasty.create("o-17", count=1)
        else:
            with hasty.exclusive("o-17") as other:
                add(other)

    with pytest.raises(LeaseLost) as caught, orders.exclusive("o-17", seconds=30) as order:
        order.items.clear()
        pay(order)
        clock.advance(31)
        overtake()

    assert (orders.key("o-17"), 30) == (caught.value.key, caught.value.seconds)
    assert orders.get("o-17").state == "BASKET"
    assert orders.get("o-17").count == 1
    assert orders.history("o-17") == []


def test_a_lost_block_does_not_end_the_next_ones_lease(
    orders: Clients[Order], hasty: Clients[Order], clock: ManualClock
) -> None:
    """Whoever holds the client now keeps holding it when an overtaken block ends."""
    orders.create("o-17")
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(orders.exclusive("o-17", seconds=30))
        clock.advance(31)
        second.enter_context(orders.exclusive("o-17", seconds=30)).items.append("book")

        with pytest.raises(LeaseLost):
            first.close()
        with pytest.raises(ContentionTimeout):
            hasty.update("o-17", add)

    assert Order("o-17", items=["book"]) == orders.get("o-17")


def test_a_block_whose_lease_ended_before_it_began_waits_again(
    store: MemoryStore | SQLiteStore,
    orders: Clients[Order],
    hasty: Clients[Order],
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who was stopped between lease and first write does not write into the block of another."""
    orders.create("o-17")
    write = store.write
    with ExitStack() as other:

        def stop_before(*args: Any, **kwargs: Any) -> bool:
            monkeypatch.setattr(store, "write", write)
            clock.advance(31)
            add(other.enter_context(orders.exclusive("o-17", seconds=3600)))
            return write(*args, **kwargs)

        monkeypatch.setattr(store, "write", stop_before)
        with pytest.raises(ContentionTimeout), hasty.exclusive("o-17", seconds=30) as order:
            order.items.append("book")

    assert Order("o-17", count=1) == orders.get("o-17")


def test_an_update_whose_lease_ended_before_it_began_waits_again(
    store: MemoryStore | SQLiteStore,
    orders: Clients[Order],
    hasty: Clients[Order],
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who was stopped after it waited for a block does not write into the next one."""
    orders.create("o-17")
    acquire = store.acquire
    with ExitStack() as first, ExitStack() as second:

        def stop_after(key: str, owner: str, seconds: float, wait: float) -> bool:
            monkeypatch.setattr(store, "acquire", acquire)
            clock.advance(31)
            assert acquire(key, owner, seconds, wait)
            clock.advance(31)
            add(second.enter_context(orders.exclusive("o-17", seconds=3600)))
            return True

        first.enter_context(orders.exclusive("o-17", seconds=30))
        monkeypatch.setattr(store, "acquire", stop_after)
        with pytest.raises(ContentionTimeout):
            hasty.update("o-17", lambda order: order.items.append("book"))
        with pytest.raises(LeaseLost):
            first.close()

    assert orders.get("o-17") == Order("o-17", count=1)


@pytest.mark.parametrize("raises", [False, True])
def test_after_a_block_nobody_needs_a_lease(
    store: MemoryStore | SQLiteStore,
    orders: Clients[Order],
    monkeypatch: pytest.MonkeyPatch,
    raises: bool,
) -> None:
    """When a block is over, by the next update at the latest, updates cost what they did before."""
    orders.create("o-17")
    with suppress(KeyError), orders.exclusive("o-17"):
        if raises:
            raise KeyError
    if raises:
        orders.update("o-17", add)

    def refuse(*_: object) -> bool:
        raise AssertionError

    monkeypatch.setattr(store, "acquire", refuse)

    orders.update("o-17", add)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), True, "30", None], ids=repr)
def test_what_is_no_duration_is_refused(
    orders: Clients[Order], hasty: Clients[Order], seconds: Any
) -> None:
    """A lease lasts a finite number of seconds over 0; else nothing is taken."""
    orders.create("o-17")

    with pytest.raises(InvalidInput, match="seconds"), orders.exclusive("o-17", seconds):
        pass

    assert hasty.update("o-17", add).count == 1


def test_an_update_that_keeps_losing_takes_the_lease(
    store: MemoryStore | SQLiteStore, orders: Clients[Order], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a few lost races an update holds the key's lease; it gives it back at its end.

    Others who do not ask for it beat it once more; then they see that it is in use.
    """
    orders.create("o-17")
    acquired: list[str] = []
    released: list[str] = []
    acquire, release = store.acquire, store.release

    def tell_acquired(key: str, owner: str, seconds: float, wait: float) -> bool:
        acquired.append(owner)
        return acquire(key, owner, seconds, wait)

    def tell_released(key: str, owner: str) -> None:
        released.append(owner)
        release(key, owner)

    monkeypatch.setattr(store, "acquire", tell_acquired)
    monkeypatch.setattr(store, "release", tell_released)
    refused: list[bool] = []
    tries: list[int] = []
    others = iter(range(5))

    def lose(order: Order) -> None:
        tries.append(order.count)
        if next(others, None) is not None:
            # As in a process that knows nothing of the crowd.
            newcomer = Clients(FailsAt(store, 0), Order, deadline=0.01)
            try:
                newcomer.update("o-17", add)
            except ContentionTimeout:
                refused.append(True)
        add(order)

    orders.update("o-17", lose)

    assert refused == [True]
    assert tries == [0, 1, 2, 3, 4]
    assert orders.get("o-17").count == 5
    assert len(acquired) == 2
    assert [acquired[0]] == released


def test_a_crowded_key_is_written_in_turn_at_once(
    store: MemoryStore | SQLiteStore, orders: Clients[Order], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that had to take the lease takes it first for a while; alone, no longer than that."""
    orders.create("o-17")
    acquired: list[str] = []
    acquire = store.acquire

    def tell_acquired(key: str, owner: str, seconds: float, wait: float) -> bool:
        acquired.append(owner)
        return acquire(key, owner, seconds, wait)

    monkeypatch.setattr(store, "acquire", tell_acquired)
    others = iter(range(3))

    def lose(order: Order) -> None:
        if next(others, None) is not None:
            Clients(FailsAt(store, 0), Order).update("o-17", add)
        add(order)

    orders.update("o-17", lose)
    assert len(acquired) == 1
    orders.update("o-17", add)
    assert len(acquired) == 2
    now = time.monotonic
    monkeypatch.setattr(contention.time, "monotonic", lambda: now() + contention.REMEMBERED)
    orders.update("o-17", add)
    assert len(acquired) == 2
    assert orders.get("o-17").count == 6


def test_few_keys_are_remembered() -> None:
    """However many keys are crowded, the memory of it is bounded."""
    crowd = contention._Crowd()
    for number in range(contention.KEYS * 2):
        crowd.seen(f"k{number}")

    assert len(crowd._keys) == contention.KEYS
    assert "k0" not in crowd
    assert f"k{contention.KEYS * 2 - 1}" in crowd


def test_an_update_that_never_wins_gives_up(
    store: MemoryStore | SQLiteStore, orders: Clients[Order], hasty: Clients[Order]
) -> None:
    """When others keep winning until its deadline it is ContentionTimeout, and nothing of it."""
    orders.create("o-17")
    tries: list[int] = []

    def lose(order: Order) -> None:
        tries.append(order.count)
        add(order)
        # By somebody who looks neither for leases nor for marks.
        record = store.read(orders.key("o-17"))
        assert record is not None
        others = record.next({**record.document, "client": order.to_dict()})
        assert store.write(others, expect=record)
        order.items.append("book")

    with pytest.raises(ContentionTimeout) as caught:
        hasty.update("o-17", lose)

    assert len(tries) == caught.value.attempts
    assert Order("o-17", count=len(tries)) == orders.get("o-17")


# --- killed --------------------------------------------------------------------------------------

HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from orders import Order
from celery_statekit import Clients, open_store
with Clients(open_store(sys.argv[2]), Order).exclusive("o-17", seconds=60) as order:
    order.items.append("book")
    print("inside", flush=True)
    time.sleep(600)
"""


def test_after_a_kill_the_others_go_on_when_the_lease_ends(tmp_path: Path) -> None:
    """kill -9 inside a block: nothing of it is stored, and others wait for the lease's end only."""
    url = f"sqlite:///{tmp_path}/states.db"
    path = tmp_path / "states.db"
    later_on = SQLiteStore(path, now=lambda: time.time() + 61)
    with closing(SQLiteStore(path)) as now, closing(later_on) as later:
        Clients(now, Order).create("o-17")
        command = [sys.executable, "-c", HOLDER, str(Path(__file__).parent), url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "inside\n"
            holder.kill()
            assert holder.wait(DEADLINE) == -signal.SIGKILL

        with pytest.raises(ContentionTimeout):
            Clients(now, Order, deadline=0.01).update("o-17", add)
        assert Order("o-17", count=1) == Clients(later, Order).update("o-17", add)

        # And it left nothing behind: whoever comes next need not wait at all.
        Clients(now, Order, deadline=0.01).update("o-17", add)
        assert Order("o-17", count=2) == Clients(now, Order).get("o-17")
