"""The SQL stores keep the contract, by a URL and by an engine of the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, Final

import psycopg
import pymysql
import pytest
from sqlalchemy import Engine, create_engine, make_url

from celery_statekit.record import Limits
from celery_statekit.stores import Store
from celery_statekit.stores.sql.mysql import MySQLStore
from celery_statekit.stores.sql.postgresql import PostgreSQLStore
from celery_statekit.testing import (
    EnumeratesContract,
    LeasesContract,
    NotifiesContract,
    RenewsContract,
    StoreContract,
)

pytestmark = pytest.mark.sql

TABLES: Final = tuple(
    f"statekit_{name}" for name in ("records", "changes", "alive", "leases", "waiters")
)

Plant = Callable[[str, bytes], None]
Reopens = Callable[[Limits | None], Store]


def connected(url: str) -> Any:
    """A connection of the driver's own to the database at ``url``."""
    parts = make_url(url)
    where: dict[str, Any] = {"host": parts.host, "port": parts.port, "user": parts.username}
    if parts.get_backend_name() == "postgresql":
        return psycopg.connect(**where, dbname=parts.database, autocommit=True)
    return pymysql.connect(**where, database=parts.database, autocommit=True)


def run(url: str, *statements: str, row: dict[str, Any] | None = None) -> None:
    """Run statements on a connection of their own."""
    with closing(connected(url)) as connection:
        for statement in statements:
            connection.cursor().execute(statement, row)


def emptied(url: str, store: Store) -> None:
    """Make the tables of ``store`` if need be, and remove what is in them."""
    store.read("anything")
    store.close()
    run(url, *(f"DELETE FROM {table}" for table in TABLES))


def planted(url: str, key: str, text: bytes) -> None:
    """Put ``text`` in place of a record and of each of its changes."""
    for table in TABLES[:2]:
        run(
            url,
            f"UPDATE {table} SET text = %(text)s WHERE name = %(name)s",
            row={"text": text, "name": key.encode()},
        )


class TestPostgreSQLStore(
    StoreContract, LeasesContract, RenewsContract, EnumeratesContract, NotifiesContract
):
    @pytest.fixture
    def reopen(self, postgresql_url: str) -> Reopens:
        emptied(postgresql_url, PostgreSQLStore(postgresql_url))
        return lambda limits=None: PostgreSQLStore(postgresql_url, limits)

    @pytest.fixture
    def plant(self, postgresql_url: str) -> Plant:
        return lambda key, text: planted(postgresql_url, key, text)


class TestMySQLStore(StoreContract, LeasesContract, RenewsContract, EnumeratesContract):
    @pytest.fixture
    def reopen(self, mariadb_url: str) -> Reopens:
        emptied(mariadb_url, MySQLStore(mariadb_url))
        return lambda limits=None: MySQLStore(mariadb_url, limits)

    @pytest.fixture
    def plant(self, mariadb_url: str) -> Plant:
        return lambda key, text: planted(mariadb_url, key, text)


@pytest.fixture
def engine_of() -> Iterator[Callable[[str], Engine]]:
    """Makes an engine as users do; disposed of at the end."""
    engines: list[Engine] = []

    def make(url: str) -> Engine:
        engines.append(create_engine(url))
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()


class TestPostgreSQLStoreOnAnEngine(StoreContract, RenewsContract):
    @pytest.fixture
    def reopen(self, postgresql_url: str, engine_of: Callable[[str], Engine]) -> Reopens:
        engine = engine_of(postgresql_url)
        emptied(postgresql_url, PostgreSQLStore(engine))
        return lambda limits=None: PostgreSQLStore(engine, limits)

    @pytest.fixture
    def plant(self, postgresql_url: str) -> Plant:
        return lambda key, text: planted(postgresql_url, key, text)


class TestMySQLStoreOnAnEngine(StoreContract, RenewsContract):
    @pytest.fixture
    def reopen(self, mariadb_url: str, engine_of: Callable[[str], Engine]) -> Reopens:
        engine = engine_of(mariadb_url)
        emptied(mariadb_url, MySQLStore(engine))
        return lambda limits=None: MySQLStore(engine, limits)

    @pytest.fixture
    def plant(self, mariadb_url: str) -> Plant:
        return lambda key, text: planted(mariadb_url, key, text)
