"""Where each input is tried."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from kombu.transport import memory as broker

from celery_statekit.stores import MemoryStore, SQLiteStore, memory

from .doors import Place


@pytest.fixture
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """A store of the kind asked for, an app with a store in memory, and an empty folder."""
    monkeypatch.chdir(tmp_path)
    name = uuid.uuid4().hex
    store = (
        SQLiteStore(tmp_path / "states.db")
        if getattr(request, "param", "memory") == "sqlite"
        else MemoryStore(name)
    )
    app = Celery(name, broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(
        statekit_store=f"memory://{name}-app",
        statekit_progress_interval=60.0,
        task_default_queue=name,
    )
    yield Place(store, app, tmp_path)
    store.close()
    app.close()
    for shelf in (name, f"{name}-app"):
        memory._shelves.pop(shelf, None)
    broker.Channel.queues.pop(name, None)
