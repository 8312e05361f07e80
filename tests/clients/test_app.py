"""The clients of an app: from a task, and from anywhere."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_statekit import Clients, ClientState, StatefulTask
from celery_statekit.errors import ContentionTimeout, InvalidInput, NoSuchClient
from celery_statekit.stores import MemoryStore

from .orders import Order, add, pay


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Celery]:
    """An app whose store is a file."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.statekit_store = f"sqlite:///{tmp_path}/states.db"
    yield app
    Clients(app, Order).store.close()


def test_all_clients_of_an_app_are_in_its_store(app: Celery) -> None:
    """Each ``Clients(app, Order)`` sees what another stored."""
    Clients(app, Order).create("o-17")

    Clients(app, Order).update("o-17", add)

    assert Clients(app, Order).get("o-17").count == 1


def test_the_apps_prefix_separates_it(tmp_path: Path) -> None:
    """Two apps in one store do not meet unless they have one prefix."""
    apps = []
    for prefix in ("eu", "us", "eu"):
        app = Celery("shop", broker="memory://", set_as_current=False)
        app.conf.statekit_store = f"sqlite:///{tmp_path}/states.db"
        app.conf.statekit_prefix = prefix
        apps.append(app)
    eu, us, eu_too = (Clients(app, Order) for app in apps)

    eu.create("o-17")

    assert eu_too.get("o-17").client_id == "o-17"
    with pytest.raises(NoSuchClient):
        us.get("o-17")
    for clients in (eu, us, eu_too):
        clients.store.close()


def test_the_apps_deadline_holds(app: Celery) -> None:
    """``statekit_update_deadline`` is the deadline where none is given."""
    app.conf.statekit_update_deadline = 0.01
    orders = Clients(app, Order)
    orders.create("o-17")

    with orders.exclusive("o-17"), pytest.raises(ContentionTimeout) as caught:
        orders.update("o-17", add)

    assert caught.value.seconds == 0.01
    assert Clients(app, Order, deadline=2.5).deadline == 2.5


def test_a_task_signs_what_it_does(app: Celery) -> None:
    """A change made in a task names the task, its id and its attempt."""

    @app.task(bind=True, base=StatefulTask, name="shop.charge")
    def charge(self: StatefulTask, order_id: str) -> None:
        self.clients(Order).update(order_id, pay, once="charge")

    Clients(app, Order).create("o-17")
    task_id = uuid.uuid4().hex
    charge.apply(("o-17",), task_id=task_id).get()

    (change,) = Clients(app, Order).history("o-17")
    assert ("shop.charge", task_id, 1) == (change.task, change.task_id, change.attempt)


def test_a_retried_task_applies_a_named_update_once(app: Celery) -> None:
    """What the first attempt applied under a name, the second leaves as it is."""

    @app.task(bind=True, base=StatefulTask, name="shop.charge", max_retries=2)
    def charge(self: StatefulTask, order_id: str) -> int:
        orders = self.clients(Order)
        orders.update(order_id, add, once="charge")
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return orders.update(order_id, add, once="another").count

    Clients(app, Order).create("o-17")

    assert charge.apply(("o-17",)).get() == 2
    # Another task applies it again.
    assert charge.apply(("o-17",)).get() == 4


def test_a_client_may_expire() -> None:
    """With ``ttl`` a client is kept that many seconds after its last write."""
    now = time.time()
    with closing(MemoryStore(uuid.uuid4().hex, now=lambda: now)) as store:
        orders = Clients(store, Order, ttl=60)
        orders.create("o-17")
        now += 59
        orders.update("o-17", add)
        now += 59
        with orders.exclusive("o-17") as order:
            add(order)
        now += 59
        assert orders.get("o-17").count == 2
        now += 1
        with pytest.raises(NoSuchClient):
            orders.get("o-17")
        assert orders.list() == []


@pytest.mark.parametrize("home", ["memory://", None, 5, Order, object()])
def test_what_keeps_no_clients_is_refused(home: Any) -> None:
    """Clients are kept in an app's store or in a store; a URL is neither."""
    with pytest.raises(InvalidInput, match="home"):
        Clients(home, Order)


@pytest.mark.parametrize("client", [dict, Order("o-17"), "Order", None])
def test_what_is_no_class_of_clients_is_refused(client: Any) -> None:
    """Only a ClientState class says how its clients are read and written."""
    with pytest.raises(InvalidInput, match="client"):
        Clients(MemoryStore(), client)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), True, "5"], ids=repr)
@pytest.mark.parametrize("name", ["deadline", "ttl"])
def test_what_is_no_duration_is_refused(name: str, seconds: Any) -> None:
    """A deadline and a time to live are finite and over 0, else nothing would ever be kept."""
    with pytest.raises(InvalidInput, match=name):
        Clients(MemoryStore(), ClientState, **{name: seconds})
