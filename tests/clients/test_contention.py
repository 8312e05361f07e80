"""Many writers of one client: nothing acknowledged is lost, nothing is applied twice."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from celery_statekit import Clients
from celery_statekit.clients import Actor
from celery_statekit.errors import AmbiguousWrite, ClientExists
from celery_statekit.stores import MemoryStore, Store
from celery_statekit.testing import LosesReplies

from . import storm
from .orders import DEADLINE, Order, OrderStates, add
from .storm import Pendulum, pendulums, swing

PROCESSES = 8
UPDATES = 1000
#: Which processes are killed, and after how many updates that they were told of.
KILLED = {"2": 250, "5": 600}


# --- processes -----------------------------------------------------------------------------------


def wait_until(condition: Callable[[], bool]) -> None:
    """Return as soon as ``condition`` holds."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_no_update_of_processes_is_lost_or_doubled_though_two_are_killed(tmp_path: Path) -> None:
    """8 processes of 1,000 updates, two of them killed -9 on the way.

    Every acknowledged update is kept, none is doubled, and at most one that was not acknowledged
    is kept of each killed process.
    """
    file = tmp_path / "states.db"
    clients = pendulums(file)
    clients.create("p-1")
    names = [str(number) for number in range(PROCESSES)]
    logs = {name: tmp_path / f"{name}.log" for name in names}

    def acknowledged(name: str) -> list[str]:
        return logs[name].read_text().splitlines() if logs[name].exists() else []

    with ExitStack() as stack:
        processes = {}
        for name in names:
            command = [storm.__file__, str(file), name, str(logs[name]), str(UPDATES)]
            processes[name] = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            )
            stack.callback(processes[name].kill)
        for process in processes.values():
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        for process in processes.values():
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
        for name, updates in KILLED.items():
            wait_until(lambda name=name, updates=updates: len(acknowledged(name)) >= updates)
            processes[name].kill()
        ended = {name: process.wait(storm.PATIENCE) for name, process in processes.items()}

    assert {name: -9 if name in KILLED else 0 for name in names} == ended
    pendulum = clients.get("p-1")
    history = clients.history("p-1", limit=storm.HISTORY)
    applied = Counter(change.reason for change in history)
    for name in names:
        told = acknowledged(name)
        unsure = pendulum.counts[name] - len(told)
        assert [f"{name}:{number}" for number in range(1, len(told) + 1)] == told
        assert 0 <= unsure <= (name in KILLED)
        assert len(told) < UPDATES if name in KILLED else len(told) == UPDATES
        assert pendulum.counts[name] == pendulum.newest[name]
        assert all(
            applied[f"{name}:{number}"] == 1 for number in range(1, pendulum.counts[name] + 1)
        )
    # And the history has these and no others, in the order in which they were applied.
    total = sum(pendulum.counts.values())
    assert total == len(history) == len(applied)
    assert list(range(1, total + 1)) == [change.number for change in history]
    # Marks of whose turn it is take versions too.
    versions = [change.version for change in history]
    assert versions == sorted(set(versions))
    clients.store.close()


# --- threads -------------------------------------------------------------------------------------


Returned = TypeVar("Returned")


def at_once(count: int, work: Callable[[int], Returned]) -> list[Returned]:
    """What ``work(0)`` to ``work(count - 1)`` return, in as many threads, which begin together."""
    barrier = threading.Barrier(count)

    def begin(number: int) -> Returned:
        barrier.wait(DEADLINE)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(begin, number) for number in range(count)]
        return [future.result(DEADLINE) for future in futures]


def test_no_update_of_threads_is_lost_or_doubled() -> None:
    """32 threads on one client in memory: each update is applied once."""
    orders = Clients(MemoryStore("32 threads"), Order, deadline=DEADLINE)
    orders.create("o-17")

    def put(item: str, order: Order) -> None:
        order.items.append(item)

    def work(number: int) -> None:
        for step in range(20):
            orders.update("o-17", partial(put, f"{number}:{step}"))

    at_once(32, work)

    items = orders.get("o-17").items
    assert 32 * 20 == len(items) == len(set(items))
    for number in range(32):
        own = [item for item in items if item.startswith(f"{number}:")]
        assert [f"{number}:{step}" for step in range(20)] == own
    orders.delete("o-17")


def test_history_has_no_gaps_under_contention(store: Store) -> None:
    """Of threads that move one client at once each change is numbered, once."""
    clients = Clients(store, Pendulum, deadline=DEADLINE)
    clients.create("p-1")

    def work(number: int) -> None:
        for step in range(1, 11):
            clients.update("p-1", lambda pendulum, step=step: swing(pendulum, str(number), step))

    at_once(8, work)

    history = clients.history("p-1")
    assert [change.number for change in history] == list(range(1, 81))
    versions = [change.version for change in history]
    assert versions == sorted(set(versions))
    assert len({change.reason for change in history}) == 80


def test_of_many_one_makes_the_client(orders: Clients[Order]) -> None:
    """Of threads that create the same id one succeeds, the others get ClientExists."""

    def work(number: int) -> int | None:
        try:
            orders.create("o-17", count=number)
        except ClientExists:
            return None
        return number

    made = [number for number in at_once(8, work) if number is not None]

    assert [orders.get("o-17").count] == made


def test_many_may_begin_the_client(orders: Clients[Order]) -> None:
    """Of threads that update with ``create=True`` none undoes another's."""
    at_once(8, lambda _: orders.update("o-17", add, create=True))

    assert orders.get("o-17").count == 8


def test_a_named_update_by_many_is_applied_once(store: Store) -> None:
    """Deliveries of one task that run at once apply it once; those of another once more."""
    Clients(store, Order).create("o-17")

    def work(number: int) -> Order:
        actor = Actor(task_id=f"t-{number % 2}", attempt=number)
        return Clients(store, Order, actor=actor, deadline=DEADLINE).update(
            "o-17", add, once="charge"
        )

    returned = at_once(8, work)

    assert Clients(store, Order).get("o-17").count == 2
    assert {order.count for order in returned} <= {1, 2}


def test_one_at_a_time_is_in_a_block(orders: Clients[Order]) -> None:
    """Blocks of threads never overlap, updates never fall into one, and none is lost."""
    orders.create("o-17")
    inside = threading.Semaphore(1)

    def work(number: int) -> None:
        for _ in range(5):
            if number % 2:
                orders.update("o-17", add)
                continue
            with orders.exclusive("o-17") as order:
                assert inside.acquire(blocking=False), "another is in a block"
                add(order)
                inside.release()

    at_once(8, work)

    assert orders.get("o-17").count == 40


@pytest.mark.parametrize("applied", [True, False], ids=["reply", "request"])
def test_lost_replies_among_many(store: Store, applied: bool) -> None:
    """Of threads that lose replies or requests each update counts once, or is told to be unsure."""
    orders = Clients(store, Order, deadline=DEADLINE)
    orders.create("o-17")

    def work(_: int) -> Counter[str]:
        lossy = Clients(LosesReplies(store, every=3, applied=applied), Order, deadline=DEADLINE)
        return Counter(outcome(lossy) for _ in range(10))

    def outcome(lossy: Clients[Order]) -> str:
        try:
            lossy.update("o-17", add)
        except AmbiguousWrite:
            # The others wrote more often meanwhile than a record keeps ids of writes.
            return "unsure"
        return "applied"

    outcomes = sum(at_once(6, work), Counter())

    assert 0 <= orders.get("o-17").count - outcomes["applied"] <= outcomes["unsure"]
    assert outcomes["applied"] >= 30


def test_blocks_and_moves_of_many(orders: Clients[Order]) -> None:
    """A move allowed once is made once, whoever tries it at the same time."""
    orders.create("o-17")

    def work(_: int) -> bool:
        paid = False

        def pay_if_unpaid(order: Order) -> None:
            nonlocal paid
            paid = order.state == "BASKET"
            if paid:
                order.enter(OrderStates.PAID)

        orders.update("o-17", pay_if_unpaid)
        return paid

    assert sum(at_once(8, work)) == 1
    assert len(orders.history("o-17")) == 1
