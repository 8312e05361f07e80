"""The SQL stores in use: tables made by many at once, engines of the user's, sizes, what is left."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Final
from uuid import uuid4

import psycopg
import pymysql
import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from celery_statekit.errors import InvalidInput, InvalidSetting, StoreUnavailable
from celery_statekit.record import Change, Limits, Record
from celery_statekit.stores import MySQLStore, PostgreSQLStore, open_store
from celery_statekit.stores.base import Labels, Notifies
from celery_statekit.stores.sql import PURGES_EVERY
from celery_statekit.stores.sql.tables import schema_sql
from celery_statekit.testing.contract.crowd import in_child, in_processes, in_threads, patiently

pytestmark = [
    pytest.mark.sql,
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
]

KEY: Final = "statekit:task:one"
NAMES: Final = "records", "changes", "alive", "leases", "waiters"

AnyStore = PostgreSQLStore | MySQLStore


class Place:
    """A database, and a beginning of table names that nobody else has."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.tables = f"t{uuid4().hex}"
        self.kind: type[AnyStore] = PostgreSQLStore if "postgresql" in url else MySQLStore

    def open(self, engine: Engine | None = None, **options: Any) -> AnyStore:
        """A store there."""
        return self.kind(engine or self.url, tables=self.tables, **options)

    def run(self, statement: str) -> list[Any]:
        """The rows of a statement, in which {} begins the tables' names."""
        url = make_url(self.url)
        where: dict[str, Any] = {"host": url.host, "port": url.port, "user": url.username}
        connection: Any = (
            psycopg.connect(**where, dbname=url.database, autocommit=True)
            if self.kind is PostgreSQLStore
            else pymysql.connect(**where, database=url.database, autocommit=True)
        )
        with closing(connection):
            cursor = connection.cursor()
            cursor.execute(statement.format(self.tables))
            return list(cursor.fetchall()) if cursor.description else []

    def count(self, name: str) -> int:
        """How many rows a table has."""
        ((number,),) = self.run(f"SELECT count(*) FROM {{}}_{name}")
        return int(number)


@pytest.fixture(params=["postgresql_url", "mariadb_url"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A place of its own for a test."""
    place = Place(request.getfixturevalue(request.param))
    yield place
    for name in NAMES:
        place.run(f"DROP TABLE IF EXISTS {{}}_{name}")


@pytest.fixture
def engine(place: Place) -> Iterator[Engine]:
    """An engine as users have it."""
    engine = create_engine(place.url, pool_size=1, max_overflow=0)
    yield engine
    engine.dispose()


def test_tables_are_made_by_many_at_once(place: Place) -> None:
    """Eight processes that each are the first: all of them write."""

    def work(by: int) -> bool:
        with closing(place.open()) as store:
            return store.write(Record.first(f"k{by}", {}), expect=None)

    assert in_processes(8, work) == [True] * 8
    assert place.count("records") == 8


def test_thirty_two_threads_share_a_store(place: Place) -> None:
    """More than it has connections: they wait for one another, and none fails."""
    with closing(place.open()) as store:

        def work(by: int) -> list[bool]:
            record = Record.first(f"k:{by}", {})
            won = [store.write(record, expect=None, labels=Labels("A"))]
            for n in range(10):
                record, before = record.next({"n": n}), record
                won.append(store.write(record, expect=before, labels=Labels("B")))
            return won

        assert in_threads(32, work) == [[True] * 11] * 32
        assert store.count("k") == {"B": 32}


def test_what_has_expired_is_removed(place: Place) -> None:
    """By later writes, with its history, and nothing else is."""
    change = Change(number=1, version=1, from_state="", to_state="A", at=1.0)
    with closing(place.open()) as store:
        for number in range(20):
            record = Record.first(f"old:{number}", {})
            store.write(record, expect=None, changes=[change], ttl=0.001)
        store.write(Record.first(KEY, {}), expect=None, changes=[change], ttl=60.0)
        record = Record.first("new", {})
        store.write(record, expect=None)

        def removed() -> bool:
            nonlocal record
            record, before = record.next({}), record
            assert store.write(record, expect=before)
            return place.count("records") == 2

        patiently(removed)
        assert place.count("changes") == 1
        assert store.read(KEY) is not None
        assert record.version < 100 * PURGES_EVERY


def test_a_deleted_record_leaves_nothing(place: Place) -> None:
    """Neither its history, nor leases that were given back, nor who waited for them."""
    change = Change(number=1, version=1, from_state="", to_state="A", at=1.0)
    with closing(place.open()) as store:
        store.write(Record.first(KEY, {}), expect=None, changes=[change])
        assert store.acquire(KEY, "a", 60.0) is True
        assert store.acquire(KEY, "b", 60.0, wait=0.05) is False
        store.release(KEY, "a")
        store.delete(KEY)

    assert [place.count(name) for name in NAMES] == [0] * 5


def test_who_has_been_dead_for_long_is_forgotten(place: Place) -> None:
    """By later renewals, as many as there are; who died just now is not, nor who lives."""
    with closing(place.open()) as store:
        store.renew([(f"old:{number}", "a") for number in range(50)], 60.0)
        place.run("UPDATE {}_alive SET until = until - 3600000000")
        store.renew([("new:1", "a")], -1.0)

        def forgotten() -> bool:
            store.renew([("new:2", "a"), ("old:7", "a")], 60.0)
            return place.count("alive") == 3

        patiently(forgotten)
        rows = place.run("SELECT name FROM {}_alive ORDER BY name")
        assert rows == [(b"new:1",), (b"new:2",), (b"old:7",)]


def test_those_who_renew_the_same_wait_for_one_another(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is undone by the server because of another, in whatever order they name them."""
    leases = [(f"k:{number}", "a") for number in range(500)]
    told: list[str] = []
    with closing(place.open()) as store:
        store.renew(leases, 60.0)
        fault = store._server.fault
        monkeypatch.setattr(
            store._server, "fault", lambda exc: (told.append(str(exc)), fault(exc))[1]
        )

        def work(by: int) -> None:
            for _ in range(20):
                store.renew(leases[:: 1 if by % 2 else -1], 60.0)

        in_threads(4, work)

    assert told == []
    assert place.count("alive") == 500


def test_the_longest_key_with_the_longest_owner(place: Place) -> None:
    """1500 bytes that do not compress, and an owner of any length, which are told apart."""
    key = "".join(uuid4().hex for _ in range(50))[:1500]
    owners = ["".join(uuid4().hex for _ in range(30))[:length] for length in (799, 800, 801)]
    owners += [f"{owners[0] * 10}{end}" for end in "ab"]
    with closing(place.open()) as store:
        store.write(Record.first(key, {}), expect=None)
        store.renew([(key, owner) for owner in owners[:-1]], 60.0)

        left = [store.left(key, owner, 0.0) for owner in owners]
        assert [each and each > 0 for each in left] == [True] * 4 + [0.0]
        with pytest.raises(InvalidInput, match="longer"):
            store.renew([(KEY, "a"), (key + "x", "a")], 60.0)

    assert place.count("alive") == 4


def test_the_longest_keys_and_labels(place: Place) -> None:
    """1500 and 800 bytes that do not compress are kept; one more is refused, and nothing done."""
    key = "".join(uuid4().hex for _ in range(50))[:1492] + ":\u00e9\u00e9\u00e9x"
    label = "".join(uuid4().hex for _ in range(30))[:800]
    with closing(place.open()) as store:
        record = Record.first(key, {})
        assert len(key.encode()) == 1500
        assert store.write(record, expect=None, labels=Labels(label, label[::-1])) is True
        (found,) = store.find(key.rpartition(":")[0], state=label, client=label[::-1])
        assert (found.key, found.record()) == (key, record)
        for bad, labels in (
            (key + "x", Labels()),
            (KEY, Labels(state=label + "x")),
            (KEY, Labels(client=label + "x")),
        ):
            with pytest.raises(InvalidInput, match="longer"):
                store.write(Record.first(bad, {}), expect=None, labels=labels)
        with pytest.raises(InvalidInput, match="longer"):
            store.read(key + "x")

    assert place.count("records") == 1


def test_keys_with_every_byte(place: Place) -> None:
    """NUL and control characters too."""
    key = "".join(map(chr, range(256))) + ":id"
    with closing(place.open()) as store:
        record = Record.first(key, {})

        assert store.write(record, expect=None, labels=Labels("\0", "\1")) is True
        assert store.read(key) == record
        assert store.find(key[:-3], state="\0")[0].key == key
        assert store.count(key[:-3]) == {"\0": 1}
        assert store.acquire(key, "\0", 5.0) is True
        assert store.acquire(key, "", 5.0) is False


def test_an_engine_stays_as_it_is(place: Place, engine: Engine) -> None:
    """Its one connection is given back as it was, and is neither closed nor disposed of."""
    names = {
        "postgresql": "SHOW lock_timeout",
        "mysql": "SELECT CONCAT(@@innodb_lock_wait_timeout, @@autocommit, @@tx_isolation)",
    }

    def settings() -> list[Any]:
        with engine.connect() as connection:
            isolation = connection.get_isolation_level()
            rows = connection.execute(text(names[engine.dialect.name])).fetchall()
            return [isolation, *rows, connection.connection.driver_connection]

    with closing(place.open(engine, timeout=3.0)) as store:
        store.read(KEY)
        before = settings()
        record = Record.first(KEY, {})
        assert store.write(record, expect=None) is True
        assert store.write(record, expect=None) is False
        assert store.find("statekit:task") != []
        assert store.acquire(KEY, "a", 1.0) is True
        assert store.delete(KEY) is True
        after = settings()

    assert after == before
    assert settings() == before
    with pytest.raises(StoreUnavailable):
        store.read(KEY)


def test_an_engine_in_a_forked_child(place: Place, engine: Engine) -> None:
    """The child opens connections of its own; the parent's goes on."""
    with closing(place.open(engine)) as store:
        first = Record.first(KEY, {})
        second = first.next({})
        assert store.write(first, expect=None) is True
        assert in_child(lambda: store.write(second, expect=first)) is True
        assert in_child(lambda: store.write(second.next({}), expect=second)) is True

        assert store.write(second, expect=first) is False


def test_who_goes_on_after_an_error_finds_it_as_it_was(place: Place, engine: Engine) -> None:
    """An error in a call is not in the way of the next, on an engine of one connection."""
    with closing(place.open(engine, timeout=1.0)) as store:
        record = Record.first(KEY, {})
        assert store.write(record, expect=None) is True
        too_large = Record(key="k", version=2**70, incarnation="i", writes=("w",), document={})
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                store.write(too_large, expect=None)

            assert store.read(KEY) == record


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"timeout": 0}, "timeout"),
        ({"timeout": "5"}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"tables": "a;b"}, "tables"),
        ({"tables": ""}, "tables"),
        ({"tables": "Upper"}, "tables"),
        ({"tables": "x" * 41}, "tables"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], path: str) -> None:
    """A clear error before anything is connected to."""
    for kind, url in ((PostgreSQLStore, "postgresql://h/d"), (MySQLStore, "mysql://h/d")):
        with pytest.raises(InvalidSetting) as raised:
            kind(url, **options)
        assert raised.value.path == path


def test_urls_of_another_store() -> None:
    """Each store takes its own; no password is shown."""
    for kind, url in (
        (PostgreSQLStore, "mysql://me:secret@h/d"),
        (MySQLStore, "postgresql://me:secret@h/d"),
        (MySQLStore, "mysql://me:secret@h:port/d"),
        (PostgreSQLStore, "secret"),
        (PostgreSQLStore, create_engine("sqlite://")),
        (MySQLStore, create_engine("sqlite://")),
    ):
        with pytest.raises(InvalidSetting) as raised:
            kind(url)
        assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "kind", "name"),
    [
        ("postgresql://me:secret@h:1/d?x=secret", PostgreSQLStore, "postgresql://h:1/d"),
        ("postgres://h/d", PostgreSQLStore, "postgres://h/d"),
        ("postgresql+psycopg2://h/d", PostgreSQLStore, "postgresql://h/d"),
        ("db+postgresql+psycopg://h/d", PostgreSQLStore, "postgresql://h/d"),
        ("mysql://me:secret@h/d", MySQLStore, "mysql://h/d"),
        ("mysql+pymysql://h/d", MySQLStore, "mysql://h/d"),
        ("mariadb+pymysql://h/d", MySQLStore, "mariadb://h/d"),
        ("db+mysql://h/d", MySQLStore, "mysql://h/d"),
    ],
)
def test_stores_by_url(url: str, kind: type, name: str) -> None:
    """Whatever driver it names: the store has its own. Nothing is connected to."""
    with closing(open_store(url, limits=Limits(history_changes=3))) as store:
        assert type(store) is kind
        assert store.name == name
        assert store.limits.history_changes == 3
        assert isinstance(store, Notifies) == (kind is PostgreSQLStore)


def test_the_script_of_no_dialect() -> None:
    """A clear error, also for a name that would need quoting."""
    with pytest.raises(InvalidSetting):
        schema_sql("oracle")
    with pytest.raises(InvalidSetting):
        schema_sql("postgresql", "a b")


def test_nobody_is_notified_where_nobody_listens(postgresql_url: str) -> None:
    """A NOTIFY has a price for the whole server: it is sent while somebody is subscribed."""
    place = Place(postgresql_url)
    url = postgresql_url.replace("+psycopg", "")
    with closing(place.open()) as store, psycopg.connect(url, autocommit=True) as spy:
        spy.execute(f"LISTEN {place.tables}_writes")
        record = Record.first(KEY, {})
        assert store.write(record, expect=None)
        assert isinstance(store, PostgreSQLStore)
        end = store.subscribe(KEY, lambda: None)
        second = record.next({})
        assert store.write(second, expect=record)
        spy.execute("SELECT 1")

        assert len(list(spy.notifies(timeout=0.5))) == 1
        end()


def test_greenlets_wait_for_each_other(place: Place) -> None:
    """With gevent's patches a call that waits for the server lets others go on."""
    script = f"""
        from gevent import monkey; monkey.patch_all()
        import gevent, sys
        from celery_statekit.stores import MySQLStore, PostgreSQLStore
        from celery_statekit.record import Record
        store = {place.kind.__name__}({place.url!r}, tables={place.tables!r})
        record = Record.first("k", {{}})
        assert store.write(record, expect=None)
        assert store.acquire("k", "a", 60)
        order = []
        def waits():
            order.append("waits"); assert store.acquire("k", "b", 60, wait=10); order.append("has")
        waiting = gevent.spawn(waits)
        def busy(n):
            assert store.write(Record.first(f"k{{n}}", {{}}), expect=None)
        gevent.joinall([gevent.spawn(busy, n) for n in range(40)], raise_error=True)
        order.append("busy")
        store.release("k", "a")
        waiting.join(); waiting.get()
        assert order == ["waits", "busy", "has"], order
        def sleeps():
            session = store._server.call("k", lambda s: s.rows({"SELECT pg_sleep(0.5)" if place.kind is PostgreSQLStore else "SELECT sleep(0.5)"!r}, None))
            order.append("slept")
        slow = gevent.spawn(sleeps); gevent.sleep(0); quick = gevent.spawn(store.read, "k")
        quick.join(); order.append("read"); slow.join()
        assert order[-2:] == ["read", "slept"], order
        store.close()
    """
    lines = script.splitlines()
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(line[8:] for line in lines)],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
