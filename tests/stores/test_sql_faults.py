"""The SQL stores on servers that fail: a typed error each, and the record before it is intact."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any, Final

import psycopg
import pymysql
import pytest
from sqlalchemy import make_url
from tests.servers import MariaDBServer, PostgresServer, free_port

from celery_statekit.errors import AmbiguousWrite, StoreFull, StoreUnavailable
from celery_statekit.record import Change, Record
from celery_statekit.stores import Store, open_store
from celery_statekit.stores.base import Notifies, Renews
from celery_statekit.stores.sql.mysql import MySQLStore
from celery_statekit.stores.sql.postgresql import PostgreSQLStore
from celery_statekit.stores.sql.tables import schema_sql
from celery_statekit.testing import FaultProxy

pytestmark = [
    pytest.mark.sql,
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
]

KEY: Final = "statekit:task:one"
#: Seconds that a store waits here; long enough for a slow machine, short enough for a test.
SHORT: Final = 1.0
#: Seconds after which a test gives up.
DEADLINE: Final = 20.0

Own = PostgresServer | MariaDBServer


def connected(server: Own, user: str = "") -> Any:
    """A connection of the driver's own."""
    url = make_url(server.url)
    where: dict[str, Any] = {"host": url.host, "port": url.port, "user": user or url.username}
    if isinstance(server, PostgresServer):
        return psycopg.connect(**where, dbname=url.database, autocommit=True)
    return pymysql.connect(**where, database=url.database, autocommit=True)


def run(server: Own, *statements: str) -> list[Any]:
    """Run statements on a connection of their own; the rows of the last."""
    with closing(connected(server)) as connection:
        cursor = connection.cursor()
        for statement in statements:
            cursor.execute(statement)
        return list(cursor.fetchall()) if cursor.description else []


@pytest.fixture(params=["postgresql", "mariadb"])
def start(request: pytest.FixtureRequest) -> Callable[..., Own]:
    """Starts an own server of either kind."""
    name = "own_postgres" if request.param == "postgresql" else "own_mariadb"
    starts: Callable[..., Own] = request.getfixturevalue(name)
    return starts


@pytest.fixture
def server(start: Callable[..., Own]) -> Own:
    """A server of the test's own."""
    return start()


@pytest.fixture
def store(server: Own) -> Iterator[Store]:
    """A store there, which is not patient."""
    with closing(open_store(server.url, timeout=SHORT)) as store:
        yield store


@pytest.fixture
def record(store: Store) -> Record:
    """A record that is there."""
    record = Record.first(KEY, {"n": 1})
    assert store.write(record, expect=None)
    return record


def kill_connections(server: Own) -> None:
    """Let an administrator end every connection but his own."""
    if isinstance(server, PostgresServer):
        run(
            server,
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'",
        )
        return
    for id, _, _, _, command, *_ in run(server, "SHOW PROCESSLIST"):
        if command == "Sleep":
            with suppress(pymysql.err.MySQLError):
                run(server, f"KILL {id}")


def test_connections_that_were_ended_put_no_write_in_doubt(
    server: Own, store: Store, record: Record
) -> None:
    """A pool of connections that an administrator has ended is as good as none."""
    hold = threading.Barrier(4)

    def read() -> None:
        hold.wait(DEADLINE)
        store.read(KEY)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    kill_connections(server)

    for n in range(5):
        record, before = record.next({"n": n}), record
        assert store.write(record, expect=before) is True


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_a_restart_loses_no_acknowledged_write(
    server: Own, store: Store, record: Record, how: str
) -> None:
    """In order or by kill -9; meanwhile the store is unavailable, and afterwards it works on."""
    records = [record]
    for n in range(20):
        records.append(records[-1].next({"n": n}))
        assert store.write(records[-1], expect=records[-2]) is True
    server.stop() if how == "restart" else server.kill()
    # In doubt where the connection's own process outlived the server's by a moment.
    with pytest.raises((StoreUnavailable, AmbiguousWrite)):
        store.write(records[-1].next({"n": -1}), expect=records[-1])
    with pytest.raises(StoreUnavailable):
        store.read(KEY)
    server.start()

    assert store.read(KEY) == records[-1]
    assert store.write(records[-1].next({"n": 99}), expect=records[-1]) is True


def test_a_crash_of_the_server_declares_nobody_dead(server: Own, store: Store) -> None:
    """Who has renewed lives on when it is back."""
    assert isinstance(store, Renews)
    store.write(Record.first(KEY, {}), expect=None)
    store.renew([(KEY, "a")], 600.0)
    server.kill()
    server.start()

    left = store.left(KEY, "a", 0.0)
    assert left is not None
    assert left > 0


def test_a_row_that_another_client_holds(server: Own, store: Store, record: Record) -> None:
    """A client that idles in a transaction makes it unavailable in time; nothing is written."""
    with closing(connected(server)) as other:
        cursor = other.cursor()
        cursor.execute("BEGIN")
        cursor.execute(f"SELECT 1 FROM statekit_records WHERE name = '{KEY}' FOR UPDATE")

        with pytest.raises(StoreUnavailable):
            store.write(record.next({"n": 2}), expect=record)
        with pytest.raises(StoreUnavailable):
            store.delete(KEY)
        assert store.read(KEY) == record
        assert store.write(Record.first("other", {}), expect=None) is True

    assert store.write(record.next({"n": 3}), expect=record) is True


def test_a_server_that_stands_still(server: Own, store: Store, record: Record) -> None:
    """Nobody waits for ever; once it goes on, so does the store, without doubt left."""
    second = record.next({"n": 2})
    server.pause()
    try:
        with pytest.raises((AmbiguousWrite, StoreUnavailable)):
            store.write(second, expect=record)
        with pytest.raises(StoreUnavailable):
            store.read(KEY)
    finally:
        server.resume()

    now = store.read(KEY)
    assert now in (record, second)
    assert now is not None
    assert store.write(now.next({"n": 3}), expect=now) is True


@pytest.mark.parametrize("with_history", [False, True])
def test_a_reply_that_is_lost_is_a_doubt(
    server: Own, record: Record, *, with_history: bool
) -> None:
    """AmbiguousWrite where the write may be in; who asks again finds its id."""
    change = Change(number=1, version=2, from_state="", to_state="A", at=1.0)
    changes = [change] if with_history else []
    with FaultProxy(server.url) as proxy, closing(through(proxy, server)) as store:
        assert store.read(KEY) == record
        second = record.next({"n": 2})
        proxy.lose_replies(1, matching=doubtful(server, of_several=with_history))

        with pytest.raises(AmbiguousWrite):
            store.write(second, expect=record, changes=changes)
        assert store.read(KEY) == second
        assert store.history(KEY) == changes


def through(proxy: FaultProxy, server: Own) -> Store:
    """A store whose every word passes the proxy."""
    url = make_url(server.url).set(port=proxy.port)
    return open_store(url.render_as_string(hide_password=False), timeout=SHORT)


def doubtful(server: Own, *, of_several: bool = False) -> bytes:
    """What stands in the request from which on a write, of several statements in MariaDB, is in."""
    if isinstance(server, PostgresServer):
        return b'"n":'
    return b"COMMIT" if of_several else b"UPDATE statekit_records"


def test_what_the_server_undid_is_done_again(server: Own, store: Store, record: Record) -> None:
    """A deadlock or a failed serialisation is no error: nothing was applied, so it is repeated."""
    if isinstance(server, PostgresServer):
        run(
            server,
            "CREATE SEQUENCE tries",
            """CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('tries') < 3 THEN RAISE 'no' USING ERRCODE = '40001'; END IF;
            IF nextval('tries') < 6 THEN RAISE 'no' USING ERRCODE = '40P01'; END IF;
            RETURN NEW; END $$""",
            "CREATE TRIGGER fails BEFORE UPDATE ON statekit_records FOR EACH ROW "
            "EXECUTE FUNCTION fails()",
        )
    else:
        run(
            server,
            "CREATE SEQUENCE tries",
            """CREATE TRIGGER fails BEFORE UPDATE ON statekit_records FOR EACH ROW BEGIN
            IF NEXT VALUE FOR tries < 4 THEN
                SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213; END IF; END""",
        )

    assert store.write(record.next({"n": 2}), expect=record) is True
    assert run(server, "SELECT last_value FROM tries" if isinstance(server, PostgresServer)
               else "SELECT NEXT VALUE FOR tries")[0][0] >= 4  # fmt: skip


def test_a_server_that_is_not_there() -> None:
    """StoreUnavailable that shows no password."""
    for scheme in ("postgresql", "mysql"):
        with closing(open_store(f"{scheme}://me:secret@127.0.0.1:{free_port()}/db")) as store:
            with pytest.raises(StoreUnavailable) as raised:
                store.read(KEY)

            assert "secret" not in str(raised.value)
            assert "secret" not in repr(store)


def test_every_lost_reply_is_settled_by_the_write_id(server: Own, record: Record) -> None:
    """However many are lost: whoever looks for his write finds it or not, and goes on."""
    lost = 0
    with FaultProxy(server.url) as proxy, closing(through(proxy, server)) as store:
        proxy.lose_replies(every=3, matching=doubtful(server))
        for n in range(60):
            after = record.next({"n": n})
            try:
                assert store.write(after, expect=record) is True
            except AmbiguousWrite:
                lost += 1
                assert store.read(KEY) == after
            record = after

    # Other transactions may be hit too: those that remove what has expired.
    assert lost >= 10


def test_a_password_that_is_wrong_is_not_shown(own_mariadb: Callable[..., MariaDBServer]) -> None:
    """Neither by the store nor by the driver."""
    server = own_mariadb()
    url = server.url.replace("root@", "nobody:secret@")
    with closing(open_store(url)) as store, pytest.raises(StoreUnavailable) as raised:
        store.read(KEY)

    assert "secret" not in str(raised.value)


def test_too_many_connections(start: Callable[..., Own]) -> None:
    """StoreUnavailable; it works again when somebody leaves."""
    server = start(max_connections=6)
    with closing(open_store(server.url, timeout=SHORT)) as store:
        others = []
        with pytest.raises((psycopg.Error, pymysql.err.MySQLError)):
            while True:
                others.append(connected(server))
        try:
            with pytest.raises(StoreUnavailable):
                store.read(KEY)
        finally:
            for other in others:
                other.close()

        def works() -> bool:
            # A server needs a moment to see that somebody has left.
            with suppress(StoreUnavailable):
                return store.read(KEY) is None
            return False

        until(works)


def until(holds: Callable[[], bool]) -> None:
    """Wait until it holds."""
    ends = threading.Event()
    timer = threading.Timer(DEADLINE, ends.set)
    timer.start()
    try:
        while not holds():
            assert not ends.wait(0.01), "it never came true"
    finally:
        timer.cancel()


# --- no room -------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(own_postgres: Callable[..., PostgresServer]) -> Iterator[PostgresServer]:
    """A server whose tables are on a disk of 8 megabytes."""
    server = own_postgres()
    folder = server.folder / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=777", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        place = folder / "tablespace"
        place.mkdir()
        shutil.chown(place, "postgres")
        run(server, f"CREATE TABLESPACE small LOCATION '{place}'")
        run(server, "ALTER DATABASE postgres SET default_tablespace = small")
        yield server
        server.kill()
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(store: Store) -> tuple[Record, int]:
    """Write until there is no room; the first record, as it was last written, and how many."""
    first = Record.first("first", {"n": 0})
    assert store.write(first, expect=None)
    for number in range(10_000):
        filler = Record.first(f"filler:{number}", {"text": os.urandom(20_000).hex()})
        try:
            assert store.write(filler, expect=None) is True
        except StoreFull:
            return first, number
    raise AssertionError("there was room for everything")


def assert_intact(store: Store, first: Record, count: int) -> None:
    """What was acknowledged is there, what was refused is not."""
    assert store.read("first") == first
    assert store.read(f"filler:{count - 1}") is not None
    assert store.read(f"filler:{count}") is None


def test_a_full_disk_of_postgresql(small_disk: PostgresServer) -> None:
    """StoreFull, and nothing that was acknowledged is harmed."""
    with closing(open_store(small_disk.url)) as store:
        first, count = fill(store)

        assert_intact(store, first, count)
        assert all(store.delete(f"filler:{number}") for number in range(count))


def test_a_full_tablespace_of_mariadb(own_mariadb: Callable[..., MariaDBServer]) -> None:
    """The same."""
    server = own_mariadb(
        innodb_file_per_table=0, innodb_data_file_path="ibdata1:12M:autoextend:max:20M"
    )
    with closing(open_store(server.url)) as store:
        first, count = fill(store)
        assert_intact(store, first, count)
    # InnoDB needs room for its undo log to delete anything, and may have none left.
    server.stop()
    server.options["innodb_data_file_path"] = "ibdata1:12M:autoextend:max:40M"
    server.start()
    with closing(open_store(server.url)) as store:
        assert_intact(store, first, count)
        assert all(store.delete(f"filler:{number}") for number in range(count))


# --- tables --------------------------------------------------------------------------------------


def by_client(server: Own, sql: str) -> None:
    """Run a script by the server's own command line client."""
    url = make_url(server.url)
    if isinstance(server, PostgresServer):
        command = ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", server.url.replace("+psycopg", "")]
    else:
        command = ["mariadb", "-h", f"{url.host}", "-P", f"{url.port}", "-u", "root", "statekit"]
    subprocess.run(command, input=sql.encode(), check=True, capture_output=True)


def test_a_user_who_may_make_no_tables(server: Own) -> None:
    """The script makes them, twice if need be; reading and writing is all that is needed then."""
    dialect = "postgresql" if isinstance(server, PostgresServer) else "mariadb"
    names = ("records", "changes", "alive", "leases", "waiters")
    if isinstance(server, PostgresServer):
        run(server, "CREATE ROLE app LOGIN", "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        granted = "GRANT SELECT, INSERT, UPDATE, DELETE ON shop_{} TO app"
    else:
        run(server, "CREATE USER app")
        granted = "GRANT SELECT, INSERT, UPDATE, DELETE ON statekit.shop_{} TO app"
    url = make_url(server.url).set(username="app")
    kind = PostgreSQLStore if isinstance(server, PostgresServer) else MySQLStore
    with closing(kind(url, tables="shop", create=False)) as store:
        with pytest.raises(StoreUnavailable, match=r"schema_sql|denied"):
            store.read(KEY)
        with (
            closing(kind(url, tables="shop")) as creating,
            pytest.raises(StoreUnavailable, match="denied"),
        ):
            creating.read(KEY)
        for _ in range(2):
            by_client(server, schema_sql(dialect, "shop"))
        run(server, *(granted.format(name) for name in names))
        record = Record.first(KEY, {})

        assert store.write(record, expect=None) is True
        assert store.read(KEY) == record
        assert store.acquire(KEY, "a", 5.0, wait=1.0) is True
        assert store.acquire(KEY, "b", 5.0, wait=0.1) is False
        store.renew([(KEY, "a")], 60.0)
        assert store.left(KEY, "a", 0.0)
        assert store.find("statekit:task")[0].key == KEY
        assert store.delete(KEY) is True


def test_tables_that_were_dropped_are_made_anew(server: Own, store: Store, record: Record) -> None:
    """Without a restart of those who use them."""
    run(server, *(f"DROP TABLE statekit_{name}" for name in ("records", "changes", "alive")))

    assert isinstance(store, Renews)
    store.renew([(KEY, "a")], 60.0)
    assert store.read(KEY) is None
    assert store.write(record, expect=None) is True


# --- notices -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_who_listens_is_woken_after_the_connection_broke(
    own_postgres: Callable[..., PostgresServer], how: str
) -> None:
    """It is woken once, for what it may have missed, and by each write from then on."""
    server = own_postgres()
    woken = threading.Semaphore(0)
    with closing(open_store(server.url, timeout=SHORT)) as store:
        assert isinstance(store, Notifies)
        end = store.subscribe(KEY, woken.release)
        if how == "terminate":
            kill_connections(server)
        else:
            server.kill()
            server.start()
        assert woken.acquire(timeout=DEADLINE)
        assert store.write(Record.first(KEY, {}), expect=None) is True

        assert woken.acquire(timeout=DEADLINE)
        end()


def test_who_cannot_listen_is_told(own_postgres: Callable[..., PostgresServer]) -> None:
    """StoreUnavailable in time, and no subscription is left."""
    server = own_postgres()
    server.stop()
    with closing(open_store(server.url, timeout=SHORT)) as store:
        assert isinstance(store, Notifies)
        with pytest.raises(StoreUnavailable):
            store.subscribe(KEY, pytest.fail)
        server.start()
        assert store.write(Record.first(KEY, {}), expect=None) is True
