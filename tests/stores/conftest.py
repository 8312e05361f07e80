"""Places where the contract of a store can be run."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from celery_statekit.stores import memory
from celery_statekit.testing import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    """The clock of the store under test."""
    return ManualClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a SQLite store is."""
    return tmp_path / "states.db"


@pytest.fixture
def place() -> Iterator[str]:
    """Name of a memory store that nobody else uses."""
    name = "under test"
    yield name
    memory._shelves.pop(name, None)


@pytest.fixture
def plant_in_sqlite(path: Path) -> Callable[[str, bytes], None]:
    """Overwrites what the file keeps of a key."""

    def plant(key: str, text: bytes) -> None:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE records SET text = ? WHERE key = ?", (text, key))
            connection.execute("UPDATE changes SET text = ? WHERE key = ?", (text, key))

    return plant


@pytest.fixture
def plant_in_memory(place: str) -> Callable[[str, bytes], None]:
    """Overwrites what the shelf keeps of a key."""

    def plant(key: str, text: bytes) -> None:
        entry = memory._shelves[place].entries[key]
        entry.text = text.decode("utf-8", "surrogateescape")
        entry.changes = [(number, entry.text) for number, _ in entry.changes]

    return plant
