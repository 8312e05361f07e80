"""What becomes of records when a Redis server of the tests' own is broken."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress

import pytest
import redis
from tests.servers import RedisServer, find, free_port

from celery_statekit.errors import (
    AmbiguousWrite,
    CorruptRecord,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from celery_statekit.record import Change, Record
from celery_statekit.stores.base import Beside, Labels
from celery_statekit.stores.redis import RedisStore

pytestmark = pytest.mark.redis

KEY = "statekit:task:one"
A, B = Labels("A", "client"), Labels("B", "client")
DEADLINE = 20.0

Own = Callable[..., RedisServer]


def change(number: int) -> Change:
    return Change(number=number, version=number, from_state="A", to_state="B", at=1.5)


@pytest.fixture
def opened() -> Iterator[Callable[..., RedisStore]]:
    """Opens stores and closes them after the test."""
    with ExitStack() as stack:
        yield lambda *args, **more: stack.enter_context(closing(RedisStore(*args, **more)))


def until(condition: Callable[[], object]) -> None:
    """Wait for it; a server that changes its role cuts connections, which counts as not yet."""
    deadline = time.monotonic() + DEADLINE
    while True:
        with suppress(redis.RedisError):
            if condition():
                return
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def whole(store: RedisStore, record: Record | None, changes: int) -> None:
    """Assert that record, history and listing are those of one write."""
    assert store.read(KEY) == record
    assert [each.number for each in store.history(KEY)] == list(range(1, changes + 1))
    listed = [found.record() for found in store.find("statekit:task")]
    assert listed == ([] if record is None else [record])
    assert sum(store.count("statekit:task").values()) == len(listed)


# --- no room -------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"ttl": 60.0}])
def test_a_full_server_keeps_the_record_before(own_redis: Own, opened, more) -> None:
    """Whatever size does not fit: StoreFull, and record, history and listings are as before."""
    server = own_redis()
    store = opened(server.url)
    first = Record.first(KEY, {"n": 0})
    store.write(first, expect=None, changes=[change(1)], labels=A)
    beside = Beside("celery-task-meta-one", "x", None)
    with redis.Redis.from_url(server.url) as client:
        room = client.info("memory")["used_memory"] + 400_000
        client.config_set("maxmemory", room)
        while True:
            try:
                client.append("filling", "x" * 20_000)
            except redis.RedisError:
                break
        full = 0
        for step in range(60):
            client.config_set("maxmemory", room + step * 1000)
            following = first.next({"n": "x" * step * 500})
            try:
                store.write_beside(
                    following, beside, expect=first, changes=[change(2)], labels=B, **more
                )
            except StoreFull:
                full += 1
                client.config_set("maxmemory", 0)
                assert client.get(beside.key) is None
                whole(store, first, 1)
                assert store.count("statekit:task") == {"A": 1}
            else:
                break
        with pytest.raises(StoreFull):
            client.config_set("maxmemory", 1)
            store.write(Record.first("statekit:task:two", {}), expect=None, labels=A)
        client.config_set("maxmemory", 0)
        assert full > 0
        assert store.read("statekit:task:two") is None
        assert len(store.find("statekit:task")) == 1


def test_a_full_server_still_reads_and_deletes(own_redis: Own, opened) -> None:
    """What frees room needs none."""
    server = own_redis()
    store = opened(server.url)
    record = Record.first(KEY, {})
    store.write(record, expect=None, labels=A)
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", 1)

    whole(store, record, 0)
    assert store.delete(KEY) is True
    whole(store, None, 0)


def test_eviction_takes_whole_records(own_redis: Own, opened) -> None:
    """A record is there with its history, or it is not; listings name none that is not."""
    server = own_redis(maxmemory="4mb", maxmemory_policy="allkeys-lru")
    store = opened(server.url)
    written = {}
    for number in range(3000):
        key = f"statekit:task:{number}"
        record = Record.first(key, {"n": "x" * 1000})
        with suppress(StoreFull):
            assert store.write(record, expect=None, changes=[change(1)], labels=A)
            written[key] = record

    there = {key for key, record in written.items() if store.read(key) is not None}
    assert 0 < len(there) < len(written)
    for key, record in written.items():
        read = store.read(key)
        assert read in (None, record)
    for found in store.find("statekit:task", limit=10_000):
        assert found.record() == written[found.key]


# --- foreign and damaged values ------------------------------------------------------------------


def test_a_foreign_value_under_our_key(own_redis: Own, opened) -> None:
    """CorruptRecord that names the key; it is left alone, and delete is the way out."""
    server = own_redis()
    store = opened(server.url)
    with redis.Redis.from_url(server.url) as client:
        client.set(KEY, "foreign")
        for call in (
            lambda: store.read(KEY),
            lambda: store.history(KEY),
            lambda: store.write(Record.first(KEY, {}), expect=None, labels=A),
        ):
            with pytest.raises(CorruptRecord) as raised:
                call()
            assert raised.value.key == KEY
        assert client.get(KEY) == b"foreign"
    assert store.delete(KEY) is True
    whole(store, None, 0)


@pytest.mark.parametrize("line", [b"", b"foreign", b"x y z\n", b"1 abc 5 A \n{}"])
def test_a_foreign_list_under_our_key(own_redis: Own, opened, line: bytes) -> None:
    """A list that is none of ours is no record either."""
    server = own_redis()
    store = opened(server.url)
    with redis.Redis.from_url(server.url) as client:
        client.rpush(KEY, line, line)
        with pytest.raises(CorruptRecord):
            store.read(KEY)
        with pytest.raises(CorruptRecord):
            store.history(KEY)
        with pytest.raises(CorruptRecord):
            store.write(Record.first(KEY, {}), expect=None)
        assert client.lrange(KEY, 0, -1) == [line, line]


@pytest.mark.parametrize("name", ["states", "state:A", "state:B", "client:client", "expiry"])
def test_a_foreign_value_in_place_of_a_listing(own_redis: Own, opened, name: str) -> None:
    """Writes go through, for the record is what counts; listings say what they found instead."""
    server = own_redis()
    store = opened(server.url)
    first = Record.first(KEY, {"n": 1})
    store.write(first, expect=None, changes=[change(1)], labels=A)
    second, two = first.next({"n": 2}), Record.first("statekit:task:two", {})
    with redis.Redis.from_url(server.url) as client:
        client.delete(f"statekit:task|{name}")
        client.set(f"statekit:task|{name}", "foreign")

        assert store.write(second, expect=first, changes=[change(2)], ttl=60.0, labels=B) is True
        assert store.write(two, expect=None, ttl=60.0, labels=A) is True
        assert client.get(f"statekit:task|{name}") == b"foreign"
    assert store.read(KEY) == second
    assert [each.number for each in store.history(KEY)] == [1, 2]
    with pytest.raises(CorruptRecord, match="keeps something else there"):
        store.find("statekit:task", client="client" if name.startswith("client") else None)
    assert store.delete(KEY) is True


# --- restarts, pauses, failover ------------------------------------------------------------------


def test_a_restart_that_forgets(own_redis: Own, opened) -> None:
    """Without persistence nothing is there; the next write is refused or anew, and not in doubt."""
    server = own_redis()
    store = opened(server.url)
    first = Record.first(KEY, {})
    store.write(first, expect=None, labels=A)
    server.kill()
    with pytest.raises(StoreUnavailable):
        store.read(KEY)
    with pytest.raises(StoreUnavailable):
        store.write(first.next({}), expect=first)
    server.start()

    assert store.write(first.next({}), expect=first) is False
    whole(store, None, 0)
    assert store.write(first, expect=None, changes=[change(1)], labels=A) is True
    whole(store, first, 1)


def test_idle_connections_that_were_cut(own_redis: Own, opened) -> None:
    """A write after a restart, or after the server's own timeout, is not in doubt."""
    server = own_redis(appendonly=True)
    store = opened(server.url)
    record = Record.first(KEY, {"n": 0})
    store.write(record, expect=None)
    with ThreadPoolExecutor(8) as pool:  # several connections
        list(pool.map(lambda _: store.read(KEY), range(200)))
    for number in range(1, 4):
        if number == 1:
            server.restart()
        else:
            with redis.Redis.from_url(server.url) as client:
                client.client_kill_filter(_type="normal", skipme=True)
        time.sleep(0.1)  # idle: of one used a moment before nothing can be told
        following = record.next({"n": number})
        assert store.write(following, expect=record) is True
        record = following


def test_a_server_that_hangs(own_redis: Own, opened) -> None:
    """A read gives up at its timeout, a write is in doubt; both go on when the server does."""
    server = own_redis()
    store = opened(server.url, timeout=0.3)
    first = Record.first(KEY, {"n": 1})
    store.write(first, expect=None, labels=A)
    second = first.next({"n": 2})
    server.pause()
    try:
        with pytest.raises(AmbiguousWrite):
            store.write(second, expect=first, labels=A)
        with pytest.raises(StoreUnavailable):
            store.read(KEY)
        with pytest.raises((StoreUnavailable, AmbiguousWrite)):
            store.write(second, expect=first, labels=A)
    finally:
        server.resume()

    until(lambda: store.read(KEY) == second)
    whole(store, second, 0)


def test_scripts_that_are_forgotten(own_redis: Own, opened) -> None:
    """A server that forgets its scripts all the time is told them again."""
    server = own_redis()
    store = opened(server.url)
    record = Record.first(KEY, {"n": 0})
    store.write(record, expect=None)
    stop = threading.Event()

    def flush() -> None:
        with redis.Redis.from_url(server.url) as client:
            while not stop.is_set():
                client.script_flush()

    thread = threading.Thread(target=flush)
    thread.start()
    try:
        for number in range(1, 500):
            following = record.next({"n": number})
            assert store.write(following, expect=record, changes=[change(number)]) is True
            record = following
    finally:
        stop.set()
        thread.join()

    assert store.read(KEY) == record
    assert len(store.history(KEY, limit=1000)) == 499


def test_a_failover_that_loses_writes(own_redis: Own, opened) -> None:
    """The promoted server has an older version, whole; a write upon the lost one is refused."""
    main = own_redis()
    replica = own_redis(replicaof=f"127.0.0.1 {main.port}")
    store, other = opened(main.url), opened(replica.url)
    first = Record.first(KEY, {"n": 1})
    store.write(first, expect=None, changes=[change(1)], labels=A)
    until(lambda: other.read(KEY) == first)
    with pytest.raises(StoreUnavailable, match=r"(?i)read.?only"):
        other.write(first.next({}), expect=first)
    replica.pause()
    second = first.next({"n": 2})
    store.write(second, expect=first, changes=[change(2)], labels=B)
    main.kill()
    replica.resume()
    with redis.Redis.from_url(replica.url) as client:
        client.replicaof("NO", "ONE")

    read = other.read(KEY)
    if read == first:  # else it had reached the replica's socket
        assert other.write(second.next({"n": 3}), expect=second) is False
    whole(other, read, read.version)


# --- who and where -------------------------------------------------------------------------------


def test_passwords(own_redis: Own, opened) -> None:
    """The right one works; a wrong one or none is told, and not shown."""
    server = own_redis(requirepass="hunter2")
    right = opened(server.url)
    assert right.write(Record.first(KEY, {}), expect=None) is True

    for url in (server.url.replace("hunter2", "hunter3"), server.url.replace(":hunter2@", "")):
        with pytest.raises(StoreUnavailable) as raised:
            opened(url).read(KEY)
        assert "hunter" not in f"{raised.value} {raised.value!r}"


def test_a_password_that_nobody_asks_for(own_redis: Own, opened, caplog) -> None:
    """It is left away, as redis-py's own way to greet a server lets it in, and said once."""
    store = opened(own_redis().url.replace("redis://", "redis://:hunter2@"))

    assert store.write(Record.first(KEY, {}), expect=None) is True
    assert store.read(KEY) is not None
    assert [record.message.count("asks for no password") for record in caplog.records] == [1]
    assert "hunter2" not in caplog.text


def test_a_server_that_is_not_there(opened) -> None:
    """StoreUnavailable at once, for every call."""
    store = opened(f"redis://127.0.0.1:{free_port()}/0")
    began = time.monotonic()
    for call in (
        lambda: store.read(KEY),
        lambda: store.write(Record.first(KEY, {}), expect=None),
        lambda: store.find("k"),
        lambda: store.acquire(KEY, "a", 1.0, wait=5.0),
        lambda: store.subscribe(KEY, print),
    ):
        with pytest.raises(StoreUnavailable):
            call()
    assert time.monotonic() - began < store._server.timeout


def test_a_unix_socket(own_redis: Own, opened, tmp_path_factory) -> None:
    """The same store by another way."""
    path = tmp_path_factory.mktemp("s") / "redis.sock"
    server = own_redis(unixsocket=path)
    store = opened(f"redis+socket://{path}?virtual_host=1")
    record = Record.first(KEY, {})
    store.write(record, expect=None, labels=A)

    whole(store, record, 0)
    assert opened(server.url.replace("/0", "/1")).read(KEY) == record
    assert store.reaches({"path": str(path), "db": "1"})


def test_tls(own_redis: Own, opened, tmp_path) -> None:
    """By a certificate that is trusted; one that is not is refused."""
    try:
        program = find("openssl")
    except Exception as exc:  # noqa: BLE001 - not installed
        pytest.skip(str(exc))
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key,
         "-out", certificate, "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    port = free_port()
    own_redis(
        tls_port=port, tls_cert_file=certificate, tls_key_file=key, tls_ca_cert_file=certificate,
        tls_auth_clients="no",
    )  # fmt: skip
    url = f"rediss://127.0.0.1:{port}/0"
    store = opened(f"{url}?ssl_ca_certs={certificate}")
    record = Record.first(KEY, {})
    heard = threading.Event()
    store.subscribe(KEY, heard.set)
    store.write(record, expect=None, labels=A)

    whole(store, record, 0)
    assert heard.wait(DEADLINE)
    assert opened(f"{url}?ssl_cert_reqs=none").read(KEY) == record
    with pytest.raises(StoreUnavailable, match="certificate"):
        opened(url).read(KEY)


class Sentinel(RedisServer):
    """A Sentinel that watches one server."""

    def command(self) -> list[str]:
        """``redis-server --sentinel`` with a file that it may rewrite."""
        return [*super().command(), "--sentinel"]


@pytest.mark.slow
def test_a_failover_by_sentinels(own_redis: Own, opened, tmp_path) -> None:
    """The store goes to the server that the Sentinels name, and nothing acknowledged is lost."""
    main = own_redis()
    replica = own_redis(replicaof=f"127.0.0.1 {main.port}")
    sentinel = Sentinel()
    del sentinel.options["save"], sentinel.options["enable_debug_command"]
    sentinel.options["sentinel"] = f"monitor mine 127.0.0.1 {main.port} 1"
    with sentinel:
        store = opened(f"sentinel://127.0.0.1:{sentinel.port}/0?master_name=mine")
        record = Record.first(KEY, {"n": 0})
        store.write(record, expect=None, changes=[change(1)], labels=A)
        with (
            redis.Redis.from_url(main.url) as former,
            redis.Redis.from_url(replica.url) as other,
            redis.Redis(port=sentinel.port) as watching,
        ):
            until(lambda: other.exists(KEY))
            with suppress(redis.ResponseError):  # before Redis 7 it looks every ten seconds only
                watching.execute_command(
                    "SENTINEL", "DEBUG", "INFO-PERIOD", 100, "PUBLISH-PERIOD", 100
                )
            until(lambda: len(watching.sentinel_slaves("mine")) == 1)
            until(lambda: _done(lambda: watching.sentinel_failover("mine")))
            # redis-py 6.4 cannot read the reply to its own method for it.
            named = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mine")
            until(lambda: int(watching.execute_command(*named)[1]) == replica.port)
            until(lambda: other.info("replication")["role"] == "master")
            # Until then it takes writes that nobody will have heard of.
            until(lambda: former.info("replication")["role"] == "slave")
        following = record.next({"n": 1})
        until(lambda: _done(lambda: store.write(following, expect=store.read(KEY), labels=A)))

        assert opened(replica.url).read(KEY).document == {"n": 1}


def _done(call: Callable[[], object]) -> bool:
    with suppress(redis.RedisError, StoreError):
        call()
        return True
    return False


# --- many at once --------------------------------------------------------------------------------


def increments(store: RedisStore, times: int) -> None:
    for _ in range(times):
        while True:
            record = store.read(KEY)
            if store.write(record.next({"n": record.document["n"] + 1}), expect=record):
                break


def test_many_threads(own_redis: Own, opened) -> None:
    """Of 32 threads none loses an update, and connections are as many as calls at once."""
    server = own_redis()
    store = opened(server.url)
    store.write(Record.first(KEY, {"n": 0}), expect=None)
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda _: increments(store, 10), range(32)))

    assert store.read(KEY).document == {"n": 320}
    with redis.Redis.from_url(server.url) as client:
        assert len(client.client_list()) <= 34


def test_many_greenlets(own_redis: Own) -> None:
    """A hundred greenlets of one thread, with notifications and leases."""
    pytest.importorskip("gevent")
    server = own_redis()
    script = f"""
from gevent import monkey; monkey.patch_all()
import gevent, threading
from celery_statekit.record import Record
from celery_statekit.stores.redis import RedisStore
store = RedisStore({server.url!r})
key = "k:1"
store.write(Record.first(key, {{"n": 0}}), expect=None)
woken = []
end = store.subscribe(key, lambda: woken.append(1))
def work(number):
    while not store.acquire(key, str(number), 5.0, wait=10.0):
        pass
    record = store.read(key)
    assert store.write(record.next({{"n": record.document["n"] + 1}}), expect=record)
    store.release(key, str(number))
gevent.joinall([gevent.spawn(work, number) for number in range(100)], raise_error=True)
assert store.read(key).document == {{"n": 100}}
while not woken:
    gevent.sleep(0.01)
end()
store.close()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=50)


def test_a_call_that_is_interrupted(own_redis: Own, opened) -> None:
    """An exception from a signal handler does not make a reply that of the next call."""
    server = own_redis()
    store = opened(server.url)
    record, other = Record.first(KEY, {"n": 1}), Record.first("statekit:task:two", {"n": 2})
    store.write(record, expect=None)
    store.write(other, expect=None)
    script = f"""
import signal
from celery_statekit.errors import StoreUnavailable
from celery_statekit.stores.redis import RedisStore
store = RedisStore({server.url!r})
class TimeLimit(Exception): pass
def limit(*_): raise TimeLimit
signal.signal(signal.SIGALRM, limit)
interrupted = 0
for delay in range(1, 400):
    try:
        signal.setitimer(signal.ITIMER_REAL, delay * 0.000005)
        for _ in range(2000):
            assert store.read({KEY!r}).document == {{"n": 1}}
            assert store.read("statekit:task:two").document == {{"n": 2}}
    except (TimeLimit, StoreUnavailable):  # redis-py 5.2 makes an error of its own of it
        interrupted += 1
# Python swallows what is raised inside a callback of its own.
assert interrupted > 300
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=50)


# --- notifications -------------------------------------------------------------------------------


def test_notifications_after_a_restart(own_redis: Own, opened) -> None:
    """Whoever is subscribed is woken once the connection is back, and by each write from then on."""
    server = own_redis()
    store = opened(server.url)
    wakes: list[float] = []
    store.subscribe(KEY, lambda: wakes.append(time.monotonic()))
    server.restart()
    until(lambda: wakes)
    count = len(wakes)
    store.write(Record.first(KEY, {}), expect=None)
    until(lambda: len(wakes) > count)


def test_notifications_know_databases(own_redis: Own, opened) -> None:
    """Publishing knows no database; a write of another one's key wakes nobody."""
    server = own_redis()
    store, other = opened(server.url), opened(server.url.replace("/0", "/1"))
    here, there = threading.Event(), threading.Event()
    store.subscribe(KEY, here.set)
    other.subscribe(KEY, there.set)
    other.write(Record.first(KEY, {}), expect=None)

    assert there.wait(DEADLINE)
    assert not here.is_set()


def test_many_subscriptions_are_one_connection(own_redis: Own, opened) -> None:
    """A process has one, which ends with the store."""
    server = own_redis()
    store = opened(server.url)
    with redis.Redis.from_url(server.url) as client:
        ends = [store.subscribe(f"statekit:task:{number}", print) for number in range(50)]
        assert len(client.client_list(_type="pubsub")) == 1
        ends[0]()
        ends[0]()
        store.close()
        until(lambda: not client.client_list(_type="pubsub"))


def test_a_server_that_hangs_and_subscriptions(own_redis: Own, opened) -> None:
    """Subscribing gives up after one timeout; closing asks nobody."""
    server = own_redis()
    store = opened(server.url, timeout=2.0)
    store.subscribe("statekit:task:other", print)
    server.pause()
    try:
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            store.subscribe(KEY, print)
        gave_up = time.monotonic()
        store.close()
        closed = time.monotonic()
    finally:
        server.resume()

    assert gave_up - began < 2 * 2.0
    assert closed - gave_up < 2.0
    with redis.Redis.from_url(server.url) as client:
        until(lambda: not client.client_list(_type="pubsub"))


# --- beside --------------------------------------------------------------------------------------


def test_a_value_beside_the_record(own_redis: Own, opened) -> None:
    """Both or neither; it expires, and is published under its key."""
    server = own_redis()
    store = opened(server.url)
    first = Record.first(KEY, {})
    with redis.Redis.from_url(server.url) as client, client.pubsub() as listening:
        listening.subscribe("celery-task-meta-one")
        listening.get_message(timeout=DEADLINE)
        beside = Beside("celery-task-meta-one", b"\x80\xffmeta", 100.0)

        assert store.write_beside(first, beside, expect=None, labels=A) is True
        assert listening.get_message(timeout=DEADLINE)["data"] == b"\x80\xffmeta"
        assert client.get("celery-task-meta-one") == b"\x80\xffmeta"
        assert 90 < client.ttl("celery-task-meta-one") <= 100

        other = Beside(b"celery-task-meta-one", "other", None)
        assert store.write_beside(first.next({}).next({}), other, expect=first.next({})) is False
        assert client.get("celery-task-meta-one") == b"\x80\xffmeta"
        assert store.write_beside(first.next({}), other, expect=first, changes=[change(1)]) is True
        assert client.get("celery-task-meta-one") == b"other"
        assert client.ttl("celery-task-meta-one") == -1


# --- indexes -------------------------------------------------------------------------------------


def test_nothing_is_left_of_what_expired(own_redis: Own, opened) -> None:
    """Writes and listings take the entries of expired records out of every index."""
    server = own_redis()
    store = opened(server.url)
    for number in range(700):
        record = Record.first(f"statekit:task:{number}", {})
        store.write(
            record, expect=None, ttl=0.05, labels=Labels("AB"[number % 2], f"c{number % 3}")
        )
    time.sleep(0.1)

    assert store.count("statekit:task") == {}
    with redis.Redis.from_url(server.url) as client:
        assert client.keys() == []


def test_nothing_is_left_of_what_was_deleted(own_redis: Own, opened) -> None:
    """Delete takes its entries along, also those of a record that has changed both labels."""
    server = own_redis()
    store = opened(server.url)
    first = Record.first(KEY, {})
    store.write(first, expect=None, ttl=60.0, labels=Labels("A", "x"))
    store.write(first.next({}), expect=first, ttl=60.0, labels=Labels("B", "y"))
    store.delete(KEY)
    store.write(first, expect=None, labels=Labels("A", "x"))
    store.write(first.next({}), expect=first, ttl=0.0, labels=Labels("B", "y"))

    with redis.Redis.from_url(server.url) as client:
        assert client.keys() == []


def test_what_renewals_leave_behind(own_redis: Own, opened) -> None:
    """A key for each, which expires with it, and no entry of a listing; none for no time."""
    server = own_redis()
    store = opened(server.url)
    store.renew([(KEY, "celery@host:1|\u00e9"), (KEY, "gone")], 60.0)
    store.renew([(KEY, "gone")], 0.0)

    with redis.Redis.from_url(server.url) as client:
        (name,) = client.keys()
        assert name == f"{KEY}|alive:celery%40host%3A1%7C%C3%A9".encode()
        assert 59_000 < client.pttl(name) <= 60_000


def test_what_is_no_record_is_leased_to_nobody(own_redis: Own, opened) -> None:
    """CorruptRecord for a key of another type, and for a list of something else."""
    server = own_redis()
    store = opened(server.url)
    with redis.Redis.from_url(server.url) as client:
        client.set("a", "x")
        client.rpush("b", "x")
        client.rpush("c", "")

    for key in "abc":
        with pytest.raises(CorruptRecord):
            store.left(key, "me", 60.0)


def test_a_state_label_that_is_no_longer_used(own_redis: Own, opened) -> None:
    """Is forgotten: what a write or a listing costs does not grow with the labels ever used."""
    server = own_redis()
    store = opened(server.url)
    record = Record.first(KEY, {})
    store.write(record, expect=None, labels=Labels("row 0"))
    with redis.Redis.from_url(server.url) as client:
        for number in range(1, 100):
            following = record.next({})
            assert store.write(following, expect=record, ttl=60.0, labels=Labels(f"row {number}"))
            record = following
        assert client.smembers("statekit:task|states") == {b"row%2099"}
        assert client.zcard("statekit:task|expiry") == 1
    assert store.count("statekit:task") == {"row 99": 1}


@pytest.mark.parametrize("ttl", [None, 60.0])
@pytest.mark.parametrize("labels", [A, B, Labels("A", "other"), Labels("B", "other")])
def test_a_record_in_place_of_one_that_expired(own_redis: Own, opened, ttl, labels) -> None:
    """What the other one has left goes, and nothing of the one that lives."""
    server = own_redis()
    store = opened(server.url)
    store.write(Record.first(KEY, {}), expect=None, ttl=0.02, labels=A)
    until(lambda: store.read(KEY) is None)
    record = Record.first(KEY, {})
    store.write(record, expect=None, ttl=ttl, labels=labels)

    whole(store, record, 0)
    assert store.count("statekit:task") == {labels.state: 1}
    assert [found.key for found in store.find("statekit:task", client=labels.client)] == [KEY]
    with redis.Redis.from_url(server.url) as client:
        assert client.zcard("statekit:task|expiry") == (ttl is not None)
        assert client.smembers("statekit:task|states") == {labels.state.encode()}
        assert client.keys("*|client:*") == [f"statekit:task|client:{labels.client}".encode()]
        store.delete(KEY)
        assert client.keys() == []


def test_listings_forget_what_was_evicted(own_redis: Own, opened) -> None:
    """Entries whose record is gone, or is another one by now, go when a listing meets them."""
    server = own_redis()
    store = opened(server.url)
    record = Record.first(KEY, {})
    with redis.Redis.from_url(server.url) as client:
        store.write(record, expect=None, labels=A)
        client.delete(KEY)  # as an eviction does
        store.write(record, expect=None, labels=Labels("B", "other"))
        assert store.find("statekit:task", client="client") == []
        whole(store, record, 0)
        assert store.count("statekit:task") == {"B": 1}
        client.delete(KEY)
        assert store.find("statekit:task") == store.find("statekit:task", client="other") == []
        assert client.keys() == []


def test_a_clients_own_record_needs_no_entry(own_redis: Own, opened) -> None:
    """It is found by its label without an index of one entry for each client."""
    server = own_redis()
    store = opened(server.url)
    key = "statekit:client:Order:a%20b"
    record = Record.first(key, {})
    store.write(record, expect=None, labels=Labels("A", "a b"))

    assert [found.key for found in store.find("statekit:client:Order", client="a b")] == [key]
    with redis.Redis.from_url(server.url) as client:
        assert not client.keys("*|client:*")
