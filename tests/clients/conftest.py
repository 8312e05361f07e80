"""Orders kept in each store, and what is told of them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_statekit import Clients
from celery_statekit.signals import ClientChanged, client_changed
from celery_statekit.stores import MemoryStore, SQLiteStore, Store, memory
from celery_statekit.testing import ManualClock

from .orders import DEADLINE, Order


@pytest.fixture
def clock() -> ManualClock:
    """The clock of the store."""
    return ManualClock()


@pytest.fixture(params=["memory", "sqlite"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock
) -> Iterator[MemoryStore | SQLiteStore]:
    """A store that nobody else uses; each kind in turn."""
    if request.param == "sqlite":
        store: MemoryStore | SQLiteStore = SQLiteStore(tmp_path / "states.db", now=clock)
    else:
        store = MemoryStore(uuid.uuid4().hex, now=clock)
    yield store
    store.close()
    memory._shelves.pop(store.name.removeprefix("memory://"), None)


@pytest.fixture
def orders(store: Store) -> Clients[Order]:
    """The orders in it."""
    return Clients(store, Order, deadline=DEADLINE)


@pytest.fixture
def hasty(store: Store) -> Clients[Order]:
    """The same orders, for one who waits for nobody."""
    return Clients(store, Order, deadline=0.01)


@pytest.fixture
def told() -> Iterator[list[ClientChanged]]:
    """What ``client_changed`` told of orders, oldest first."""
    told: list[ClientChanged] = []

    def receive(changed: ClientChanged, **_: object) -> None:
        told.append(changed)

    client_changed.connect(receive, sender=Order.kind)
    yield told
    client_changed.disconnect(receive, sender=Order.kind)
