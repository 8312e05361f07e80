"""What is posted to a Redis server that is broken meanwhile: what is there, and what is said."""

from __future__ import annotations

import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest
import redis
from tests.servers import RedisServer

from celery_statekit.errors import AmbiguousWrite, CorruptRecord, StoreFull, StoreUnavailable
from celery_statekit.record import Change, Record
from celery_statekit.stores.base import Labels, Posted
from celery_statekit.stores.redis import RedisStore
from celery_statekit.testing import FaultProxy

pytestmark = pytest.mark.redis

KEY, OTHER = "statekit:task:one", "statekit:task:other"
A = Labels("A", "client")
#: Seconds for an answer that comes, and for one that does not.
LONG, SHORT = 20.0, 0.1


@pytest.fixture
def server(own_redis: Callable[..., RedisServer]) -> RedisServer:
    """A server to be broken."""
    return own_redis()


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[FaultProxy]:
    """A way to it that can be broken as well."""
    with FaultProxy(server.url) as proxy:
        yield proxy


@pytest.fixture
def opened() -> Iterator[Callable[..., RedisStore]]:
    """Opens stores and closes them after the test."""
    with ExitStack() as stack:
        yield lambda *args, **more: stack.enter_context(closing(RedisStore(*args, **more)))


@pytest.fixture
def store(proxy: FaultProxy, opened: Callable[..., RedisStore]) -> RedisStore:
    """A store that has a connection open, through the proxy, to a server that knows the scripts."""
    store = opened(proxy.url)
    store.write(Record.first(KEY, {}), expect=None)
    store.delete(KEY)
    return store


@pytest.fixture
def beside(server: RedisServer, opened: Callable[..., RedisStore]) -> RedisStore:
    """The same store without the proxy."""
    return opened(server.url)


def post(store: RedisStore, record: Record) -> Posted:
    """Post ``record`` with one change by the connection that is open."""
    change = Change(number=1, version=1, from_state="", to_state="A", at=1.5)
    posted = store.post(record, changes=[change], labels=A)
    assert posted is not None
    return posted


def whole(store: RedisStore, record: Record | None) -> None:
    """Assert that record, history and listings are those of one posted write, or of none."""
    assert store.read(KEY) == record
    assert [each.number for each in store.history(KEY)] == [1] * (record is not None)
    assert [each.key for each in store.find("statekit:task")] == [KEY] * (record is not None)


# --- nothing to post by --------------------------------------------------------------------------


def test_before_the_first_call_nothing_is_posted(server: RedisServer, opened) -> None:
    """No connection is made for it."""
    store = opened(server.url)
    assert store.post(Record.first(KEY, {})) is None
    with redis.Redis.from_url(server.url) as client:
        assert len(client.client_list()) == 1
    whole(store, None)


def test_while_all_connections_are_busy_nothing_is_posted(store: RedisStore, beside) -> None:
    """One that awaits an answer is busy."""
    record = Record.first(KEY, {})
    posted = post(store, record)
    assert store.post(Record.first(OTHER, {})) is None
    assert posted.is_written(LONG) is True
    assert store.post(Record.first(KEY, {})) is not None
    whole(beside, record)


@pytest.mark.parametrize("how", ["cut", "restart", "kill"])
def test_by_a_connection_that_was_cut_nothing_is_posted(
    server: RedisServer, proxy: FaultProxy, store: RedisStore, beside, how: str, monkeypatch
) -> None:
    """It is looked at before it is used, if that was not a moment ago."""
    monkeypatch.setattr("celery_statekit.stores.redis.server.FRESH", 0.0)
    if how == "cut":
        proxy.cut()
    elif how == "restart":
        server.restart()
    else:
        server.kill()
        server.start()
    assert store.post(Record.first(KEY, {})) is None
    whole(beside, None)
    store.read(KEY)
    assert post(store, Record.first(KEY, {})).is_written(LONG) is True


def test_by_a_closed_store_nothing_is_posted(store: RedisStore, beside) -> None:
    """Nor by one whose process was forked."""
    pid = os.fork()
    if pid == 0:
        os._exit(store.post(Record.first(KEY, {})) is not None)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    store.close()
    assert store.post(Record.first(KEY, {})) is None
    whole(beside, None)


def test_a_store_that_is_closed_meanwhile(store: RedisStore, beside) -> None:
    """The answer is still to be had, and the connection goes."""
    record = Record.first(KEY, {})
    posted = post(store, record)
    store.close()
    assert posted.is_written(LONG) is True
    assert store._server._idle == []
    whole(beside, record)


# --- no answer, or no good one -------------------------------------------------------------------


@pytest.mark.parametrize("then", ["cut", "hang"])
def test_the_answer_is_lost(proxy: FaultProxy, store: RedisStore, beside, then) -> None:
    """It is in doubt; the record is there, and the connection is used no more."""
    record = Record.first(KEY, {})
    proxy.lose_replies(1, matching=b"EVALSHA", then=then)
    posted = post(store, record)
    with pytest.raises(AmbiguousWrite):
        posted.is_written(LONG if then == "cut" else SHORT)
    assert store._server._idle == []
    whole(beside, record)


def test_nothing_arrives(proxy: FaultProxy, store: RedisStore, beside) -> None:
    """It is in doubt; what comes late is no answer to anything else."""
    record = Record.first(KEY, {})
    proxy.black_hole()
    posted = post(store, record)
    with pytest.raises(AmbiguousWrite, match="no reply in time"):
        posted.is_written(SHORT)
    proxy.pass_all()

    assert store.read(OTHER) is None
    assert store.history(OTHER) == []
    # The server may get it yet, or not.
    change = Change(number=1, version=1, from_state="", to_state="A", at=1.5)
    store.write(record, expect=None, changes=[change], labels=A)
    whole(beside, record)


def test_a_server_that_stops_and_goes_on(server: RedisServer, store: RedisStore, beside) -> None:
    """While it stands still it is in doubt; what it was sent it does afterwards."""
    record = Record.first(KEY, {})
    server.pause()
    try:
        posted = post(store, record)
        with pytest.raises(AmbiguousWrite):
            posted.is_written(SHORT)
    finally:
        server.resume()
    assert store.write(record, expect=None) in (True, False)
    assert beside.read(KEY) == record


def test_a_server_that_dies(server: RedisServer, proxy: FaultProxy, store: RedisStore) -> None:
    """It is in doubt."""
    proxy.black_hole()
    posted = post(store, Record.first(KEY, {}))
    server.kill()
    proxy.pass_all()
    with pytest.raises(AmbiguousWrite):
        posted.is_written(LONG)


@pytest.mark.parametrize("there", [False, True])
def test_scripts_that_are_forgotten(
    server: RedisServer, store: RedisStore, beside, there: bool
) -> None:
    """The server is told them, and does what it would have done."""
    first = Record.first(KEY, {"n": 1})
    if there:
        assert post(store, first).is_written(LONG)
    with redis.Redis.from_url(server.url) as client:
        client.script_flush()
        client.config_resetstat()
        posted = post(store, Record.first(KEY, {"n": 2}) if there else first)
        assert posted.is_written(LONG) is not there
        assert client.info("commandstats")["cmdstat_eval"]["calls"] == 1
    whole(beside, first)
    assert len(store._server._idle) == 1


def test_scripts_that_are_forgotten_and_then_no_answer(
    server: RedisServer, proxy: FaultProxy, store: RedisStore, beside
) -> None:
    """It is in doubt as ever."""
    record = Record.first(KEY, {})
    with redis.Redis.from_url(server.url) as client:
        client.script_flush()
    proxy.lose_replies(1, matching=b"EVAL\r\n")
    posted = post(store, record)
    with pytest.raises(AmbiguousWrite):
        posted.is_written(LONG)
    whole(beside, record)


def test_a_server_without_room(server: RedisServer, store: RedisStore, beside) -> None:
    """StoreFull, and nothing was changed; the connection is kept."""
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", 1)
        posted = post(store, Record.first(KEY, {}))
        with pytest.raises(StoreFull):
            posted.is_written(LONG)
        client.config_set("maxmemory", 0)
    assert len(store._server._idle) == 1
    whole(beside, None)


def test_a_server_that_has_become_a_replica(
    server: RedisServer, own_redis: Callable[..., RedisServer], store: RedisStore
) -> None:
    """StoreUnavailable, for nothing was changed; no connection to it is kept."""
    other = own_redis()
    post(store, Record.first(OTHER, {})).is_written(LONG)
    with redis.Redis.from_url(server.url) as client:
        client.replicaof("127.0.0.1", str(other.port))
        posted = post(store, Record.first(KEY, {}))
        with pytest.raises(StoreUnavailable, match=r"(?i)read.?only|MASTERDOWN"):
            posted.is_written(LONG)
        client.replicaof("NO", "ONE")
    assert store._server._idle == []
    assert store.read(KEY) is None


def test_a_server_that_refuses(server: RedisServer, store: RedisStore) -> None:
    """StoreUnavailable, for nothing was changed: who is connected need no longer be let in."""
    post(store, Record.first(OTHER, {})).is_written(LONG)
    with redis.Redis.from_url(server.url) as client:
        client.acl_setuser("default", enabled=True, nopass=True, commands=["+@all", "-evalsha"])
        posted = post(store, Record.first(KEY, {}))
        with pytest.raises(StoreUnavailable, match=r"(?i)no permissions"):
            posted.is_written(LONG)
        client.acl_setuser("default", enabled=True, nopass=True, commands=["+@all"])
    assert store.read(KEY) is None


@pytest.mark.parametrize("kind", ["string", "list"])
def test_a_foreign_value_in_its_place(server: RedisServer, store: RedisStore, kind: str) -> None:
    """CorruptRecord, and the value is left as it is."""
    with redis.Redis.from_url(server.url) as client:
        put = client.set if kind == "string" else client.rpush
        put(KEY, "foreign")
        posted = post(store, Record.first(KEY, {}))
        with pytest.raises(CorruptRecord):
            posted.is_written(LONG)
        assert client.type(KEY).decode() == kind
    assert len(store._server._idle) == 1


def test_who_waits_is_interrupted(server: RedisServer) -> None:
    """By a task's time limit, for one, at any point: no answer is taken for another's."""
    script = f"""
import signal
from celery_statekit.errors import StoreError
from celery_statekit.record import Record
from celery_statekit.stores.redis import RedisStore

store = RedisStore({server.url!r})
store.write(Record.first("there", {{}}), expect=None)
class TimeLimit(Exception): pass
def limit(*_): raise TimeLimit
signal.signal(signal.SIGALRM, limit)
interrupted = 0
for delay in range(1, 400):
    try:
        signal.setitimer(signal.ITIMER_REAL, delay * 0.000005)
        for number in range(100):
            posted = store.post(Record.first("there", {{}}))
            assert store.read("other") is None
            assert posted is None or posted.is_written(5.0) is False
            posted = store.post(Record.first(f"k{{delay}}.{{number}}", {{}}))
            assert posted is None or posted.is_written(5.0) is True
    except (TimeLimit, StoreError):  # redis-py may make an error of its own of it
        interrupted += 1
# Python swallows what is raised inside a callback of its own.
assert interrupted > 300
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=50)


class Scripted(socketserver.BaseRequestHandler):
    """A server that says the same to whatever it is asked to write."""

    says = b""

    def handle(self) -> None:
        while asked := self.request.recv(65536):
            self.request.sendall(self.says if b"EVALSHA" in asked else b"$-1\r\n")


@pytest.mark.parametrize(
    ("says", "error"),
    [
        (b"-LOADING it is\r\n", StoreUnavailable),
        (b"-NOAUTH who are you\r\n", StoreUnavailable),
        (b"-MASTERDOWN it is\r\n", StoreUnavailable),
        (b"-ERR whatever\r\n", StoreUnavailable),
        (b"-OOM no room\r\n", StoreFull),
        (b"what?\r\n", AmbiguousWrite),
        (b":", AmbiguousWrite),
    ],
)
def test_what_a_server_may_say(opened, monkeypatch, says: bytes, error: type[Exception]) -> None:
    """It is told as what it means, and by nothing but errors of ours."""
    monkeypatch.setattr(Scripted, "says", says)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Scripted) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        store = opened(f"redis://127.0.0.1:{server.server_address[1]}", timeout=0.3)
        assert store.read(KEY) is None
        posted = post(store, Record.first(KEY, {}))
        with pytest.raises(error):
            posted.is_written(LONG)
        # What the server says next is no answer to what was asked before.
        assert store.read(KEY) is None
        server.shutdown()
