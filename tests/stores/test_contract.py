"""Both stores of this release keep the contract."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from celery_statekit.record import Limits
from celery_statekit.stores import MemoryStore, SQLiteStore, Store
from celery_statekit.testing import (
    EnumeratesContract,
    LeasesContract,
    ManualClock,
    NotifiesContract,
    RenewsContract,
    StoreContract,
)


class TestMemoryStore(
    StoreContract, LeasesContract, RenewsContract, EnumeratesContract, NotifiesContract
):
    shared_between_processes = False

    @pytest.fixture
    def reopen(self, place: str, clock: ManualClock) -> Callable[[Limits | None], Store]:
        return lambda limits=None: MemoryStore(place, limits, now=clock)

    @pytest.fixture
    def elapse(self, clock: ManualClock) -> Callable[[float], None]:
        return clock.advance

    @pytest.fixture
    def plant(self, plant_in_memory: Callable[[str, bytes], None]) -> Callable[[str, bytes], None]:
        return plant_in_memory


class TestSQLiteStore(
    StoreContract, LeasesContract, RenewsContract, EnumeratesContract, NotifiesContract
):
    @pytest.fixture
    def reopen(self, path: Path, clock: ManualClock) -> Callable[[Limits | None], Store]:
        return lambda limits=None: SQLiteStore(path, limits, now=clock)

    @pytest.fixture
    def elapse(self, clock: ManualClock) -> Callable[[float], None]:
        return clock.advance

    @pytest.fixture
    def plant(self, plant_in_sqlite: Callable[[str, bytes], None]) -> Callable[[str, bytes], None]:
        return plant_in_sqlite
