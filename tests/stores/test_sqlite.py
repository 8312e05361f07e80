"""What is SQLite's own: its file, its lock, its disk, and processes that are killed."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from celery_statekit.errors import (
    CorruptRecord,
    InvalidSetting,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from celery_statekit.record import Change, Record
from celery_statekit.stores import SQLiteStore
from celery_statekit.stores.base import kind_of
from celery_statekit.stores.sqlite import file as sqlite_file
from celery_statekit.stores.sqlite import leases as sqlite_leases
from celery_statekit.testing import ManualClock

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

KEY = "statekit:task:one"
#: Seconds after which something hangs.
DEADLINE = 20.0


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    store = SQLiteStore(path)
    yield store
    store.close()


def change(number: int) -> Change:
    return Change(number=number, version=number, from_state="A", to_state="B", at=1.0)


def write(store: SQLiteStore, record: Record, expect: Record | None = None) -> Record:
    assert store.write(record, expect=expect, changes=[change(record.version)])
    return record


@contextmanager
def child(work: Callable[[Connection], Any]) -> Iterator[tuple[Any, Connection]]:
    """A forked process that runs ``work`` with one end of a pipe; the other end is ours."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs,))
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join()
        ours.close()


def answer(work: Callable[[], Any]) -> Any:
    """What ``work`` returns in a child, or the type and text of the store error it raises."""

    def told(pipe: Connection) -> None:
        try:
            pipe.send(work())
        except StoreError as exc:
            pipe.send((type(exc).__name__, str(exc)))

    with child(told) as (_, pipe):
        assert pipe.poll(DEADLINE)
        return pipe.recv()


# --- killed, stopped ------------------------------------------------------------------------------


def test_kill_9_tears_nothing_and_loses_nothing(path: Path) -> None:
    """A writer killed at any moment: each acknowledged write is there, whole, with its change."""

    def work(pipe: Connection) -> None:
        with closing(SQLiteStore(path)) as store:
            while True:
                read = store.read(KEY)
                n = read.version + 1 if read else 1
                document = {"n": n, "copies": [n] * 500}
                record = read.next(document) if read else Record.first(KEY, document)
                write(store, record, read)
                pipe.send(n)

    chance = random.Random(17)
    acknowledged = 0
    for _ in range(40):
        with child(work) as (process, pipe):
            for _ in range(chance.randint(1, 8)):
                assert pipe.poll(DEADLINE)
                acknowledged = pipe.recv()
            os.kill(process.pid, signal.SIGKILL)
            process.join(DEADLINE)
            with suppress(EOFError):
                while True:
                    acknowledged = pipe.recv()
        with closing(SQLiteStore(path)) as store:
            record = store.read(KEY)
            numbers = [each.number for each in store.history(KEY, limit=10_000)]
        assert record is not None
        assert acknowledged <= record.version <= acknowledged + 1
        assert record.document == {"n": record.version, "copies": [record.version] * 500}
        assert numbers == list(range(1, record.version + 1))[-1000:]

    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_stopped_process_that_holds_the_lock(path: Path) -> None:
    """Others read on, are told within their timeout that they cannot write, and can once it dies."""

    def hold(pipe: Connection) -> None:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        pipe.send("held")
        pipe.recv()

    with closing(SQLiteStore(path, timeout=0.2)) as store:
        first = write(store, Record.first(KEY, {"n": 1}))
        with child(hold) as (process, pipe):
            assert pipe.poll(DEADLINE)
            os.kill(process.pid, signal.SIGSTOP)

            with pytest.raises(StoreUnavailable, match=r"held its lock for 0\.2 s"):
                store.write(first.next({"n": 2}), expect=first)
            with pytest.raises(StoreUnavailable, match="lock"):
                store.acquire(KEY, "me", 1.0)
            assert store.read(KEY) == first
            assert len(store.history(KEY)) == 1

            os.kill(process.pid, signal.SIGKILL)
            process.join(DEADLINE)

        assert store.write(first.next({"n": 2}), expect=first) is True


def test_a_closed_store_lets_calls_under_way_finish(path: Path) -> None:
    """A write that waits for the lock while another thread closes the store is still written."""
    store = SQLiteStore(path, timeout=DEADLINE)
    first = write(store, Record.first(KEY, {}))
    written: list[bool] = []
    waits = threading.Thread(
        target=lambda: written.append(store.write(first.next({}), expect=first))
    )
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waits.start()
        while not sqlite_file._gate._calls:
            threading.Event().wait(0.001)
        store.close()
        other.execute("COMMIT")
        waits.join(DEADLINE)

    assert written == [True]
    assert store._file._idle == []
    with pytest.raises(StoreUnavailable, match="closed"):
        store.read(KEY)


def test_a_block_that_raises_leaves_nothing(store: SQLiteStore) -> None:
    """Whatever interrupts a transaction, a time limit for one, it is as if it never was."""
    first = write(store, Record.first(KEY, {"n": 1}))

    with pytest.raises(KeyboardInterrupt), store._file.transaction(KEY) as connection:
        connection.execute("DELETE FROM records")
        raise KeyboardInterrupt

    assert store.read(KEY) == first
    assert store.write(first.next({"n": 2}), expect=first) is True


# --- no room --------------------------------------------------------------------------------------


def test_a_full_file_is_told_and_nothing_is_half_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """StoreFull; record and history before it are intact, and writing goes on once there is room."""
    room = [100]
    prepare = sqlite_file.SQLiteFile._prepare

    def with_little_room(self: Any, connection: Any) -> None:
        prepare(self, connection)
        connection.execute(f"PRAGMA max_page_count = {room[0]}")

    monkeypatch.setattr(sqlite_file.SQLiteFile, "_prepare", with_little_room)
    with closing(SQLiteStore(path)) as store:
        record = write(store, Record.first(KEY, {}))
        with pytest.raises(StoreFull, match="full"):
            while True:
                following = record.next({"text": "x" * 20_000 * record.version})
                record = write(store, following, record)
        intact = store.read(KEY), [each.number for each in store.history(KEY)]
        room[0] = 10_000
        again = store.write(record.next({"n": 1}), expect=record, changes=[change(99)])

    assert intact == (record, list(range(1, record.version + 1)))
    assert again is True


def test_a_full_disk_is_told_and_nothing_is_half_written(path: Path) -> None:
    """A process that may not write more bytes gets a typed error; others go on with what was."""
    with closing(SQLiteStore(path)) as store:
        record = write(store, Record.first(KEY, {"n": 1}))

        def work() -> Any:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, 80_000))
            store.write(record.next({"x": "x" * 200_000}), expect=record, changes=[change(2)])

        kind, _ = answer(work)

        assert kind in ("StoreFull", "StoreUnavailable")
        assert store.read(KEY) == record
        assert [each.number for each in store.history(KEY)] == [1]
        assert store.write(record.next({"n": 2}), expect=record) is True


# --- damage ---------------------------------------------------------------------------------------


def test_a_byte_changed_in_the_file_is_told(path: Path) -> None:
    """SQLite has no checksums of its own: what it calls a sound file is a CorruptRecord to us."""
    with closing(SQLiteStore(path)) as store:
        write(store, Record.first(KEY, {"price": 1234567}))
        other = write(store, Record.first("other", {"n": 1}))
    path.write_bytes(path.read_bytes().replace(b"1234567", b"9234567"))

    with closing(SQLiteStore(path)) as store:
        with pytest.raises(CorruptRecord) as raised:
            store.read(KEY)
        assert raised.value.key == KEY
        assert store.read("other") == other


def tells(store: SQLiteStore, record: Record) -> bool:
    """Whether the store says that the record is damaged; what it reads is what was written."""
    try:
        assert store.read(record.key) in (record, None)
        assert store.history(record.key) in ([change(1)], [])
    except (CorruptRecord, StoreUnavailable):
        return True
    return False


def test_random_damage_is_never_read_as_something_else(path: Path) -> None:
    """800 bytes overwritten anywhere: each record is the one written, none, or a typed error."""
    with closing(SQLiteStore(path)) as store:
        records = [
            write(store, Record.first(f"k{number}", {"text": f"{number} " * 300}))
            for number in range(40)
        ]
    sound = path.read_bytes()
    chance = random.Random(4)
    told = 0
    for _ in range(40):
        damaged = bytearray(sound)
        start = chance.randrange(100, len(sound) - 800)
        damaged[start : start + 800] = chance.randbytes(800)
        path.write_bytes(damaged)
        with closing(SQLiteStore(path)) as store:
            told += sum(tells(store, record) for record in records)

    assert told > 40


def test_a_damaged_page_is_told(path: Path) -> None:
    """What SQLite itself finds malformed is a CorruptRecord of the key that was asked for."""
    with closing(SQLiteStore(path)) as store:
        record = write(store, Record.first(KEY, {}))
    with closing(sqlite3.connect(path)) as connection:
        ((page,),) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'records'"
        ).fetchall()
        ((size,),) = connection.execute("PRAGMA page_size").fetchall()
    damaged = bytearray(path.read_bytes())
    damaged[(page - 1) * size : page * size] = b"\xff" * size
    path.write_bytes(damaged)

    with closing(SQLiteStore(path)) as store:
        with pytest.raises(CorruptRecord, match="malformed") as raised:
            store.read(KEY)
        with pytest.raises(CorruptRecord, match="malformed"):
            store.write(record.next({}), expect=record)
    assert raised.value.key == KEY


@pytest.mark.parametrize(
    ("statement", "call"),
    [
        ("UPDATE records SET version = 2", SQLiteStore.read),
        ("UPDATE records SET incarnation = 'other'", SQLiteStore.read),
        ("UPDATE records SET text = NULL", SQLiteStore.read),
        ("UPDATE records SET text = 5", SQLiteStore.read),
        ("UPDATE records SET incarnation = CAST(x'ff' AS TEXT)", SQLiteStore.read),
        ("UPDATE changes SET number = 7", SQLiteStore.history),
    ],
)
def test_columns_that_contradict_the_text_are_told(
    store: SQLiteStore, path: Path, statement: str, call: Callable[[SQLiteStore, str], Any]
) -> None:
    """A row that says other than its text does is corrupt, not a record that nobody can write on."""
    write(store, Record.first(KEY, {}))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA writable_schema = ON")
        other.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'text BLOB NOT NULL', 'text BLOB')"
        )
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(statement)

    with pytest.raises(CorruptRecord, match=KEY):
        call(store, KEY)


def test_a_change_number_that_is_there_already(store: SQLiteStore) -> None:
    """A history that does not fit the record is corrupt; neither is changed."""
    first = write(store, Record.first(KEY, {"n": 1}))

    with pytest.raises(CorruptRecord, match="UNIQUE"):
        store.write(first.next({"n": 2}), expect=first, changes=[change(1)])
    assert store.read(KEY) == first


# --- which file -----------------------------------------------------------------------------------


def test_nothing_is_opened_before_the_first_call(path: Path) -> None:
    """A store that is made and closed leaves no file."""
    SQLiteStore(path).close()

    assert not path.exists()


def test_a_file_that_is_deleted_is_made_anew(store: SQLiteStore, path: Path) -> None:
    """No write goes to a file that has no name any more, where nobody would find it."""
    write(store, Record.first(KEY, {"n": 1}))
    for name in path.parent.iterdir():
        name.unlink()

    assert store.read(KEY) is None
    record = write(store, Record.first(KEY, {"n": 2}))
    with closing(SQLiteStore(path)) as other:
        assert other.read(KEY) == record


def test_a_relative_path_is_of_the_directory_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that changes its directory later keeps its file."""
    monkeypatch.chdir(tmp_path)
    with closing(SQLiteStore("states.db")) as store:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        write(store, Record.first(KEY, {}))

    assert (tmp_path / "states.db").exists()


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    """The error says what is missing; nothing is made."""
    with closing(SQLiteStore(tmp_path / "missing" / "states.db")) as store:
        with pytest.raises(StoreUnavailable, match="missing does not exist"):
            store.read(KEY)
        with pytest.raises(StoreUnavailable, match="missing does not exist"):
            store.write(Record.first(KEY, {}), expect=None)

    assert not (tmp_path / "missing").exists()


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    """The error says that the path is a directory."""
    with (
        closing(SQLiteStore(tmp_path)) as store,
        pytest.raises(StoreUnavailable, match="it is a directory"),
    ):
        store.read(KEY)


def test_a_file_that_is_no_database(path: Path) -> None:
    """It is told, and left as it is."""
    path.write_text("to whom it may concern\n" * 100)

    with (
        closing(SQLiteStore(path)) as store,
        pytest.raises(StoreUnavailable, match="not a database"),
    ):
        store.read(KEY)
    assert path.read_text().startswith("to whom")


def test_a_database_of_another_program(path: Path) -> None:
    """A file with foreign tables is not touched: a store has its own."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE auth_user (id)")
    before = path.read_bytes()

    with (
        closing(SQLiteStore(path)) as store,
        pytest.raises(StoreUnavailable, match="database of another program"),
    ):
        store.write(Record.first(KEY, {}), expect=None)
    assert path.read_bytes() == before


def test_tables_of_a_newer_release(store: SQLiteStore, path: Path) -> None:
    """A file made by a newer release is refused, with both versions named."""
    write(store, Record.first(KEY, {}))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA user_version = 7")

    with (
        closing(SQLiteStore(path)) as older,
        pytest.raises(StoreUnavailable, match=r"version 7, made by a newer release.* knows 1"),
    ):
        older.read(KEY)


@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_may_not_be_written(path: Path, what: str) -> None:
    """Without permission a write is StoreUnavailable and says why; the record stays."""
    with closing(SQLiteStore(path)) as store:
        record = write(store, Record.first(KEY, {"n": 1}))
    for ancestor in path.parents:
        if ancestor.stat().st_uid == os.getuid() and ancestor.stat().st_mode & 0o777 == 0o700:
            ancestor.chmod(0o755)  # what pytest made for nobody else
    path.chmod(0o444 if what == "file" else 0o666)
    path.parent.chmod(0o777 if what == "file" else 0o555)

    def work() -> Any:
        if os.getuid() == 0:
            os.setuid(65534)
        with closing(SQLiteStore(path)) as own:
            return own.write(record.next({"n": 2}), expect=record)

    try:
        kind, why = answer(work)
    finally:
        path.chmod(0o644)
        path.parent.chmod(0o755)

    assert kind == "StoreUnavailable"
    assert "may not write the file or its directory" in why
    with closing(SQLiteStore(path)) as store:
        assert store.read(KEY) == record


@pytest.mark.parametrize("path", ["", ":memory:", "a\0b", None, 5, b"bytes"])
def test_what_names_no_file(path: Any) -> None:
    """InvalidSetting when the store is made."""
    with pytest.raises(InvalidSetting, match="names no file"):
        SQLiteStore(path)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "5", None, True])
def test_what_is_no_timeout(path: Path, timeout: Any) -> None:
    """InvalidSetting when the store is made."""
    with pytest.raises(InvalidSetting, match="timeout"):
        SQLiteStore(path, timeout=timeout)


def test_a_new_file_that_another_has_locked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite waits for nobody when it goes into WAL mode: the store does, for its timeout."""
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as other,
        closing(SQLiteStore(path, timeout=0.1)) as impatient,
        closing(SQLiteStore(path, timeout=DEADLINE)) as patient,
    ):
        other.execute("BEGIN IMMEDIATE")

        with pytest.raises(StoreUnavailable, match="lock"):
            impatient.read(KEY)
        monkeypatch.setattr(sqlite_file.time, "sleep", lambda _: other.execute("COMMIT"))
        assert patient.read(KEY) is None


# --- listings, queues and notices -----------------------------------------------------------------


@pytest.mark.parametrize("newest", [False, True])
@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ({}, "records_standing (kind=?"),
        ({"state": "A"}, "records_of_state (kind=? AND state=?"),
        ({"client": "c"}, "records_of_client (kind=? AND client=?"),
        ({"state": "A", "client": "c"}, "records_of_"),
        ({"state": "A", "older": 60.0}, "records_of_state (kind=? AND state=?"),
    ],
)
def test_a_page_costs_no_more_the_more_there_are(
    store: SQLiteStore, filters: dict[str, Any], index: str, newest: bool
) -> None:
    """Every page is read along one index, from its place on, and nothing is sorted."""
    plans: list[list[str]] = []
    with store._file.connection("") as connection:

        def explain(statement: str) -> None:
            if "FROM records" in statement and "EXPLAIN" not in statement:
                rows = connection.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
                plans.append([row[3] for row in rows])

        connection.set_trace_callback(explain)
    for after in (None, (1.5, "k:1")):
        store.find("k", newest=newest, after=after, **filters)

    assert len(plans) == 2
    for plan in plans:
        assert len(plan) == 1, plan
        assert f"SEARCH records USING INDEX {index}" in plan[0]
    assert "since" in plans[1][0]


def test_who_was_taken_for_dead_waits_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was stopped for a while, and whose place is gone, gets a new one."""
    monkeypatch.setattr(sqlite_leases, "RENEW", 0.0)
    with closing(SQLiteStore(path)) as store, closing(sqlite3.connect(path)) as other:
        store.acquire(KEY, "a", 1000.0)
        waits = threading.Thread(target=store.acquire, args=(KEY, "b", 1000.0, DEADLINE))
        waits.start()
        for _ in range(3):
            while not other.execute("SELECT 1 FROM waiters").fetchall():
                threading.Event().wait(0.001)
            with other:
                other.execute("DELETE FROM waiters")
        store.release(KEY, "a")
        waits.join(DEADLINE)

        assert store.acquire(KEY, "b", 1000.0) is True
        assert other.execute("SELECT count(*) FROM waiters").fetchall() == [(0,)]


def test_nobody_looks_for_writes_when_nobody_is_subscribed(store: SQLiteStore) -> None:
    """The thread ends with the last subscription, and another one begins with the next."""

    def looking() -> list[threading.Thread]:
        return [each for each in threading.enumerate() if each.name == "statekit-sqlite-notices"]

    for _ in range(2):
        woken = threading.Event()
        end = store.subscribe(KEY, woken.set)
        store.subscribe("other", woken.set)()
        (thread,) = looking()
        write(store, Record.first(KEY, {}))
        assert woken.wait(DEADLINE)
        end()
        thread.join(DEADLINE)
        assert looking() == []
        store.delete(KEY)


def test_notices_go_on_when_the_file_is_back(
    store: SQLiteStore, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While the file cannot be read there are none, which is said once; afterwards there are."""
    woken = threading.Event()
    # Made before: a folder made now might get the inode of a file that was there.
    folder = path.with_suffix(".folder")
    folder.mkdir()
    store.subscribe(KEY, woken.set)
    path.rename(path.with_suffix(".away"))
    for name in ("-wal", "-shm"):
        path.with_name(path.name + name).unlink(missing_ok=True)
    while not path.is_dir():
        path.unlink(missing_ok=True)  # the store may have made a new one meanwhile
        with suppress(NotADirectoryError):
            folder.rename(path)
    while "no notices of writes for now" not in caplog.text:
        threading.Event().wait(0.001)
    path.rmdir()
    write(store, Record.first(KEY, {}))

    assert woken.wait(DEADLINE)
    assert caplog.text.count("no notices of writes for now") == 1


# --- connections ----------------------------------------------------------------------------------


def test_the_file_is_in_wal_mode(store: SQLiteStore, path: Path) -> None:
    """With ``synchronous`` NORMAL (1), which is a setting of each connection."""
    store.read(KEY)

    with closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
    with store._file.connection(KEY) as connection:
        assert connection.execute("PRAGMA synchronous").fetchall() == [(1,)]


def test_a_file_that_was_set_back_is_in_wal_mode_again(path: Path) -> None:
    """As some backups and tools leave it."""
    with closing(SQLiteStore(path)) as store:
        record = write(store, Record.first(KEY, {}))
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA journal_mode = DELETE").fetchall() == [("delete",)]

    with closing(SQLiteStore(path)) as store, closing(sqlite3.connect(path)) as other:
        assert store.read(KEY) == record
        assert other.execute("PRAGMA journal_mode").fetchall() == [("wal",)]


def test_threads_that_are_gone_leave_no_connection(store: SQLiteStore) -> None:
    """One after the other, any number of threads needs one connection."""
    for _ in range(20):
        thread = threading.Thread(target=store.read, args=(KEY,))
        thread.start()
        thread.join(DEADLINE)

    assert len(store._file._idle) == 1


def test_a_store_that_is_dropped_leaves_no_connection(path: Path) -> None:
    """Celery closes nothing of an app that goes; from Python 3.13 on a connection would complain."""
    store = SQLiteStore(path)
    store.read(KEY)
    (connection,) = store._file._idle

    del store
    gc.collect()

    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


def test_no_foreign_code_runs_inside_a_transaction(path: Path) -> None:
    """The clock may be anything, even a writer to the same file: no lock is held when it is asked."""
    with closing(SQLiteStore(path, timeout=0.1)) as other:
        ticks = iter(range(1_000_000))

        def now() -> float:
            tick = next(ticks)
            assert other.write(Record.first(f"tick {tick}", {}), expect=None)
            return 1e9 + tick

        with closing(SQLiteStore(path, timeout=0.1, now=now)) as store:
            record = write(store, Record.first(KEY, {}))
            assert store.read(KEY) == record
            assert len(store.history(KEY)) == 1
            assert store.acquire(KEY, "me", 1000.0) is True
            assert store.acquire(KEY, "you", 1.0, wait=0.01) is False
            assert [found.key for found in store.find(kind_of(KEY))] == [KEY]
            assert store.count(kind_of(KEY)) == {"": 1}
            assert store.delete(KEY) is True


def test_the_expired_are_removed_from_the_file(path: Path) -> None:
    """Each write removes a few, so that what expires leaves nothing for ever."""
    clock = ManualClock()
    with closing(SQLiteStore(path, now=clock)) as store:
        for number in range(10):
            record = Record.first(f"k{number}", {})
            store.write(record, expect=None, changes=[change(1)], ttl=1.0)
            store.acquire(f"k{number}", "me", 1.0)
        clock.advance(2.0)
        for number in range(6):
            store.write(Record.first(f"n{number}", {}), expect=None)
            store.acquire(f"n{number}", "me", 1.0)
            store.acquire(f"n{number}", "you", 1.0, wait=0.001)

    with closing(sqlite3.connect(path)) as connection:
        counts = connection.execute(
            "SELECT (SELECT count(*) FROM records), (SELECT count(*) FROM changes), "
            "(SELECT count(*) FROM leases), (SELECT count(*) FROM waiters)"
        ).fetchall()
    assert counts == [(6, 0, 6, 0)]


def test_who_has_been_dead_for_long_is_removed_from_the_file(path: Path) -> None:
    """By the next renewal; who died just now is not, nor who lives."""
    clock = ManualClock()
    with closing(SQLiteStore(path, now=clock)) as store:
        for seconds, owner in ((1.0, "long"), (65.0, "now"), (600.0, "lives")):
            store.renew([(KEY, owner)], seconds)
        clock.advance(70.0)
        store.renew([(KEY, "new")], 1.0)

    with closing(sqlite3.connect(path)) as connection:
        owners = connection.execute("SELECT owner FROM alive ORDER BY owner").fetchall()
    assert owners == [(b"lives",), (b"new",), (b"now",)]


def test_delete_leaves_nothing_in_the_file(store: SQLiteStore, path: Path) -> None:
    """Neither the record nor its changes."""
    write(store, Record.first(KEY, {}))
    store.delete(KEY)

    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM changes").fetchall() == [(0,)]
        assert connection.execute("SELECT count(*) FROM records").fetchall() == [(0,)]


def test_a_purge_that_fails_does_not_hurt_the_write_before_it(path: Path) -> None:
    """Damage where something has expired does not stop others from writing."""
    clock = ManualClock()
    with closing(SQLiteStore(path, now=clock)) as store:
        store.write(Record.first(KEY, {}), expect=None, ttl=1.0)
        clock.advance(2.0)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute(
                "CREATE TRIGGER damage BEFORE DELETE ON records "
                "BEGIN SELECT raise(ABORT, 'database disk image is malformed'); END"
            )

        assert store.write(Record.first("other", {}), expect=None) is True


def test_a_fork_that_passes_by_python_is_told(store: SQLiteStore) -> None:
    """Where a server forks in C with a connection open, the child refuses to risk the file."""
    record = write(store, Record.first(KEY, {}))
    ours, store._file._process = store._file._process, os.getppid()

    with pytest.raises(StoreUnavailable, match="forked while a connection was open"):
        store.read(KEY)
    store._file.close_idle()
    inherited = len(store._file._idle)
    store._file._process = ours

    assert inherited == 1
    assert store.read(KEY) == record


def test_a_fork_closes_what_is_idle_and_waits_for_what_is_not(path: Path) -> None:
    """A fork comes after the calls under way, with no connection open on either side."""
    store = SQLiteStore(path, timeout=DEADLINE)
    first = write(store, Record.first(KEY, {}))
    waits = threading.Thread(target=store.write, args=(first.next({}),), kwargs={"expect": first})
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        waits.start()
        while not sqlite_file._gate._calls:
            threading.Event().wait(0.001)

        def release_it_once_a_fork_waits() -> None:
            while not sqlite_file._gate._forks:
                threading.Event().wait(0.001)
            other.execute("COMMIT")

        release = threading.Thread(target=release_it_once_a_fork_waits)
        release.start()
        found = answer(lambda: (len(store._file._idle), store.read(KEY).version))  # type: ignore[union-attr]
        release.join(DEADLINE)
        waits.join(DEADLINE)

    assert found == (0, 2)
    store.close()
