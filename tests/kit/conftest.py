"""Every kind of store, each at a place of the test's own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_statekit.stores import Store, open_store

STORES = ("memory", "sqlite", "redis", "postgresql", "mariadb")


@pytest.fixture(params=STORES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a store; each kind in turn. On a server others use it, too, under other prefixes."""
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/states.db"
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """A store at that place."""
    store = open_store(store_url)
    yield store
    store.close()
