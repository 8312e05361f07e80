"""The clients of these tests."""

from __future__ import annotations

from celery_statekit import ClientState, States

#: Seconds that anything here may take before it counts as hanging.
DEADLINE = 30.0


class OrderStates(States):
    BASKET = "In the basket"
    PAID = "Paid"
    SHIPPED = "Shipped"


class Order(ClientState, states=OrderStates):
    items: list[str] = []
    #: How often an update was applied.
    count: int = 0


def add(order: Order) -> None:
    """An update that shows how often it was applied."""
    order.count += 1


def pay(order: Order) -> None:
    """An update that moves."""
    order.enter(OrderStates.PAID, reason="card")
