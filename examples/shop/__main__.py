"""An order that several workers move, and a charge that comes twice."""

from __future__ import annotations

from collections import Counter

from celery import chain

from celery_statekit import Change, Clients
from examples.shop.app import Order, app, charge, reserve, ship
from examples.workers import Workers, arguments, running


def steps(order_id: str) -> chain:
    """What is done with an order, one task after the other."""
    return chain(reserve.si(order_id), charge.si(order_id), ship.si(order_id))


def show(changes: list[Change]) -> None:
    """Print one line a change."""
    for change in changes:
        task, worker = change.task.rpartition(".")[2], change.worker.partition(":")[0]
        attempt = f"attempt {change.attempt} on {worker}" if change.attempt else "-"
        print(f"  {change.to_state:9} {task:8} {attempt:26} {change.reason}".rstrip())


def accident(workers: Workers) -> None:
    """Move an order with a worker that is killed on the way, then with two others."""
    orders = Clients(app, Order)
    orders.create("o-17", items=["book", "lamp"], price=30)
    doomed = workers.start(concurrency=1, include="examples.shop.accident")
    shipped = steps("o-17").delay()
    charged = shipped.parent
    doomed.wait_until_dead()

    order = orders.get("o-17")
    print(f"{doomed.name} was killed. The order: {order.state}, paid {order.paid}.")
    print(f"The charge: {charged.task_state.state}, not acknowledged.")
    workers.wait_until_due()
    workers.start_many(2)
    print("Two other workers start, and it is delivered again:")
    shipped.get(timeout=30)
    show(charged.history())
    order = orders.get("o-17")
    print(f"\nThe order: {order.state}, paid {order.paid}. Its history:")
    show(orders.history("o-17"))


def busy_day() -> None:
    """Move many orders at once."""
    orders = Clients(app, Order)
    ids = [f"o-{number}" for number in range(100, 140)]
    for id in ids:
        orders.create(id, items=["pen"], price=2)
    for result in [steps(id).delay() for id in ids]:
        result.get(timeout=30)
    ended = Counter((order.state, order.paid) for order in orders.list() if order.client_id in ids)
    print(f"\n{len(ids)} more orders at once. Where they stand, what each has paid, how many:")
    for (state, paid), number in ended.items():
        print(f"  {state}, {paid}: {number}")


def main() -> None:
    """Tell the story."""
    with running(app, arguments(__doc__), workers=0, redeliver_after=10) as workers:
        accident(workers)
        busy_day()


if __name__ == "__main__":
    main()
