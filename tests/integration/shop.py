"""The tasks that the workers run; this file is copied to where they are."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import Celery

from celery_statekit import ClientState, States


class Import(States):
    READING = "Reading the file"
    IMPORTING = "Importing rows"
    INDEXING = "Rebuilding the index"


class OrderStates(States):
    BASKET = "In the basket"
    PAID = "Paid"
    SHIPPED = "Shipped"


class Order(ClientState, states=OrderStates):
    items: list[str] = []
    total: int = 0


def wait_at(gate: str) -> None:
    """Return when the test has opened the gate; a test that is gone opens none."""
    deadline = time.monotonic() + 60
    while not Path(gate).exists():
        assert time.monotonic() < deadline, f"nobody opened {gate}"
        time.sleep(0.02)


def load(self: Any, rows: int, gate: str = "") -> int:
    """Go through all states; the first attempt stops at the gate in the midst of it."""
    self.enter("READING")
    self.enter("IMPORTING", reason=f"{rows} rows")
    for _ in self.track(range(rows)):
        pass
    if gate and self.task_state.attempt == 1:
        wait_at(gate)
    self.enter("INDEXING")
    return rows


def retried(self: Any) -> int:
    """Fail twice, on two thirds of the way."""
    for number in self.track(range(3)):
        if number == 2 and self.request.retries < 2:
            raise self.retry(countdown=0, exc=ConnectionError("the bank is closed"))
    return self.task_state.attempt


def fail(*_: Any) -> None:
    raise KeyError("no such order")


def add(x: int, y: int) -> int:
    return x + y


def total(numbers: list[int]) -> int:
    return sum(numbers)


def report(self: Any, id: str) -> None:
    """Write PROGRESS over another task."""
    self.update_state(task_id=id, state="PROGRESS", meta={"current": 1})


def buy(self: Any, order_id: str, price: int) -> str:
    """Add to the order that the server keeps; return who did it."""

    def change(order: Order) -> None:
        order.items.append(self.request.id)
        order.total += price

    self.clients(Order).update(order_id, change)
    return self.request.hostname


def charge(self: Any, order_id: str, gate: str = "") -> int:
    """Have the order paid, once; the first attempt stops at the gate after that."""

    def pay(order: Order) -> None:
        order.total += 5
        order.enter(OrderStates.PAID)

    order = self.clients(Order).update(order_id, pay, once="charge")
    if gate and self.task_state.attempt == 1:
        self.enter("CHARGED")
        wait_at(gate)
    return order.total


def put(order: Order, item: str) -> Order:
    """Add to an order that travels with the message."""
    order.items.append(item)
    return order


#: The tasks, and their options.
TASKS: dict[Callable[..., Any], dict[str, Any]] = {
    load: {"bind": True, "states": Import},
    retried: {"bind": True},
    fail: {"throws": (KeyError,)},
    add: {},
    total: {},
    report: {"bind": True},
    buy: {"bind": True},
    charge: {"bind": True, "acks_late": True},
    put: {},
}


def add_tasks(app: Celery) -> None:
    """Give ``app`` the shop's tasks; not the other apps of the process."""
    for function, options in TASKS.items():
        app.task(name=f"shop.{function.__name__}", shared=False, **options)(function)
