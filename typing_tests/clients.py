"""Clients as type checkers see them; read by mypy and pyright, never run."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import Any

from celery import Celery
from typing_extensions import assert_type

from celery_statekit import Change, Clients, ClientState, StatefulTask, States, stateful

app = Celery("shop")


class OrderStates(States):
    BASKET = "In the basket"
    PAID = "Paid"


class Order(ClientState, states=OrderStates, version=2):
    items: list[str] = []
    note: str | None = None

    @classmethod
    def upgrade(cls, data: dict[str, Any], version: int) -> dict[str, Any]:
        return data


order = Order("o-17", items=["book"])
assert_type(order.client_id, str)
assert_type(order.state, str)
assert_type(order.next_states, tuple[str, ...])
assert_type(order.items, list[str])
assert_type(order.note, "str | None")
assert_type(order.to_dict(), dict[str, Any])
assert_type(Order.from_dict({}), Order)
assert_type(Order.from_json("{}"), Order)
order.enter(OrderStates.PAID, reason="card")
_ = order.price  # type: ignore[attr-defined]

orders = Clients(app, Order)
assert_type(orders, Clients[Order])
assert_type(orders.get("o-17"), Order)
assert_type(orders.create("o-18"), Order)
assert_type(orders.list(state=OrderStates.PAID), list[Order])
assert_type(orders.history("o-17"), list[Change])
assert_type(orders.delete("o-17"), bool)
with orders.exclusive("o-17", seconds=5) as held:
    assert_type(held, Order)
Clients(app, str)  # type: ignore[type-var]


def pay(order: Order) -> None:
    order.enter(OrderStates.PAID)


def misread(order: str) -> None: ...


assert_type(orders.update("o-17", pay, once="pay"), Order)
orders.update("o-17", misread)  # type: ignore[arg-type]


@stateful(app, bind=True)
def charge(self: StatefulTask, order: Order) -> Order:
    assert_type(self.clients(Order), Clients[Order])
    return order


assert_type(charge.delay(order).get(), Order)
charge.delay("o-17")  # type: ignore[arg-type]
