"""Clients that several workers write, and clients that travel."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from celery import chain

from celery_statekit import Clients

from .nodes import PATIENCE
from .places import BOTH_BACKENDS, RABBITMQ
from .shop import Order, OrderStates

pytestmark = [pytest.mark.redis, pytest.mark.timeout(180)]


@BOTH_BACKENDS
@pytest.mark.usefixtures("nothing_unusual")
def test_two_workers_and_one_client(celery_setup: Any, tasks: Any, second_worker: Any) -> None:
    """Of what two workers add to one client at once nothing is lost."""
    workers = (celery_setup.worker, second_worker)
    clients = Clients(celery_setup.app, Order)
    clients.create("o-1")
    for number, worker in enumerate(workers):  # a queue of its own for each
        worker.tell("add_consumer", f"q{number}")

    results = [tasks.buy.apply_async(("o-1", 2), queue=f"q{n % 2}") for n in range(40)]
    by = Counter(result.get(timeout=PATIENCE) for result in results)

    assert by == {worker.hostname(): 20 for worker in workers}
    order = clients.get("o-1")
    assert order.total == 80
    assert sorted(order.items) == sorted(result.id for result in results)


@RABBITMQ
def test_once(celery_setup: Any, tasks: Any) -> None:
    """An update with a name is applied once, though its task was killed after it and ran again."""
    clients = Clients(celery_setup.app, Order)
    clients.create("o-1")
    result = tasks.charge.delay("o-1", gate="never")
    result.wait(until="CHARGED", timeout=PATIENCE)

    celery_setup.worker.kill()
    celery_setup.worker.restart()

    assert result.get(timeout=PATIENCE) == 5
    assert result.task_state.attempt == 2
    assert clients.get("o-1").total == 5
    assert [change.to_state for change in clients.history("o-1")] == ["PAID"]


@pytest.mark.usefixtures("nothing_unusual")
def test_a_client_that_travels(celery_setup: Any, tasks: Any) -> None:
    """Each step of a chain gets it as the step before left it; the caller's own stays as it was."""
    mine = Order("o-1", items=["book"])
    mine.enter(OrderStates.PAID)

    theirs = chain(tasks.put.s(mine, "pen"), tasks.put.s("ink")).apply_async().get(timeout=PATIENCE)

    assert isinstance(theirs, Order)
    assert theirs.items == ["book", "pen", "ink"]
    assert theirs.state == "PAID"
    assert mine.items == ["book"]
