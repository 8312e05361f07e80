"""The shop's app: an order, and the tasks that move it."""

from __future__ import annotations

from celery import Celery

from celery_statekit import ClientState, StatefulTask, States

app = Celery("shop")
# A message is acknowledged when its task has ended: if the worker dies before, it comes again.
app.conf.task_acks_late = True


class OrderStates(States):
    """Where an order stands."""

    BASKET = "In the basket"
    RESERVED = "Taken from the shelf"
    CHARGED = "Paid"
    SHIPPED = "On its way"


class Order(ClientState, states=OrderStates):
    """One order of one customer."""

    items: list[str] = []
    price: int = 0
    #: What the customer has paid: as much as the price, however often the charge is delivered.
    paid: int = 0


@app.task(bind=True, base=StatefulTask)
def reserve(self: StatefulTask, order_id: str) -> None:
    """Take the items from the shelf."""

    def take(order: Order) -> None:
        order.enter(OrderStates.RESERVED, reason=f"{len(order.items)} items")

    self.clients(Order).update(order_id, take, once="reserve")


@app.task(bind=True, base=StatefulTask)
def charge(self: StatefulTask, order_id: str) -> None:
    """Charge the card."""

    def pay(order: Order) -> None:
        order.paid += order.price
        order.enter(OrderStates.CHARGED, reason="card")

    self.clients(Order).update(order_id, pay, once="charge")


@app.task(bind=True, base=StatefulTask)
def ship(self: StatefulTask, order_id: str) -> None:
    """Hand the parcel over."""

    def send(order: Order) -> None:
        order.enter(OrderStates.SHIPPED, reason="by bicycle")

    self.clients(Order).update(order_id, send, once="ship")
