"""The proxy breaks what it is told to break, and passes on all else."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from celery_statekit.errors import InvalidInput
from celery_statekit.testing import FaultProxy

ANSWER = 5.0


class Echo(socketserver.StreamRequestHandler):
    """Says back each line, and writes down that it has heard it."""

    def handle(self) -> None:
        for line in self.rfile:
            self.server.heard.append(line)  # type: ignore[attr-defined]
            self.wfile.write(line)


class EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Echo)
        self.heard: list[bytes] = []

    def handle_error(self, request: object, address: object) -> None:
        """A connection that is reset is what is tested."""


@pytest.fixture
def server() -> Iterator[EchoServer]:
    with EchoServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(server: EchoServer) -> Iterator[FaultProxy]:
    with FaultProxy(f"tcp://127.0.0.1:{server.server_address[1]}/here?x=1") as proxy:
        yield proxy


def connect(proxy: FaultProxy, timeout: float = ANSWER) -> closing[socket.socket]:
    return closing(socket.create_connection(("127.0.0.1", proxy.port), timeout))


def say(connection: socket.socket, word: bytes) -> bytes:
    """What is answered to ``word``; b"" at the end of the connection."""
    connection.sendall(word + b"\n")
    return connection.recv(1 << 20)


def test_it_passes_on_what_is_said(proxy: FaultProxy, server: EchoServer) -> None:
    """To and fro, as much as there is, on any number of connections."""
    much = b"x" * 3_000_000
    with connect(proxy) as one, connect(proxy) as two:
        assert say(one, b"a") == b"a\n"
        assert say(two, b"b") == b"b\n"
        two.sendall(much + b"\n")
        got = b""
        while not got.endswith(b"\n"):
            got += two.recv(1 << 20)
        assert len(got) == len(much) + 1
    assert proxy.done["accepted"] == 2
    assert server.heard[:2] == [b"a\n", b"b\n"]


def test_its_url_is_the_servers_but_for_the_place(proxy: FaultProxy) -> None:
    """Credentials, path and options stay; a port that is not said is that of the scheme."""
    assert proxy.url == f"tcp://127.0.0.1:{proxy.port}/here?x=1"
    with FaultProxy("redis://me:secret@localhost/3") as other:
        assert other.url == f"redis://me:secret@127.0.0.1:{other.port}/3"
    with pytest.raises(InvalidInput) as caught:
        FaultProxy("tcp://:secret@/x")
    assert "secret" not in str(caught.value)


def test_a_lost_reply_is_one_to_a_request_that_was_heard(
    proxy: FaultProxy, server: EchoServer
) -> None:
    """Each third of those that match; the connection is reset, the next one is as any."""
    proxy.lose_replies(every=3, matching=b"w")
    lost = []
    for number in range(1, 10):
        with connect(proxy) as connection:
            assert say(connection, b"read") == b"read\n"
            try:
                assert say(connection, b"w%d" % number) == b"w%d\n" % number
            except ConnectionResetError:
                lost.append(number)

    assert lost == [3, 6, 9]
    assert [word for word in server.heard if b"w" in word] == [b"w%d\n" % n for n in range(1, 10)]
    assert proxy.done["lost"] == 3


def test_so_many_replies_are_lost(proxy: FaultProxy) -> None:
    """And then no more."""
    proxy.lose_replies(2)
    for _ in range(2):
        with connect(proxy) as connection, pytest.raises(ConnectionResetError):
            say(connection, b"a")
    with connect(proxy) as connection:
        assert say(connection, b"a") == b"a\n"


def test_a_connection_may_hang_after_a_lost_reply(proxy: FaultProxy, server: EchoServer) -> None:
    """Its client has to give it up by itself."""
    proxy.lose_replies(1, then="hang")
    with connect(proxy, timeout=0.1) as connection:
        for word in (b"a", b"b"):
            with pytest.raises(TimeoutError):
                say(connection, word)
    with connect(proxy) as connection:
        assert say(connection, b"c") == b"c\n"
    assert server.heard == [b"a\n", b"b\n", b"c\n"]


def test_connections_are_cut(proxy: FaultProxy) -> None:
    """All that there are; later ones are not."""
    with connect(proxy) as one, connect(proxy) as two:
        for connection in (one, two):
            assert say(connection, b"a") == b"a\n"
        assert proxy.cut() == 2
        for connection in (one, two):
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
    with connect(proxy) as three:
        assert say(three, b"c") == b"c\n"
    assert proxy.done["cut"] == 2


def test_replies_are_held_back(proxy: FaultProxy) -> None:
    """For as long as was said, and no longer."""
    proxy.delay(0.1)
    with connect(proxy) as connection:
        began = time.monotonic()
        assert say(connection, b"a") == b"a\n"
        assert time.monotonic() - began >= 0.1
        with pytest.raises(TimeoutError):
            proxy.delay(30)
            connection.settimeout(0.05)
            say(connection, b"b")


def test_a_black_hole_takes_all_and_gives_nothing(proxy: FaultProxy, server: EchoServer) -> None:
    """Until it is over: then what was said comes through."""
    with connect(proxy) as before:
        assert say(before, b"a") == b"a\n"
        proxy.black_hole()
        with connect(proxy) as during:
            for connection in (before, during):
                connection.settimeout(0.05)
                with pytest.raises(TimeoutError):
                    say(connection, b"b")
                connection.settimeout(ANSWER)
            assert server.heard == [b"a\n"]
            proxy.pass_all()
            assert before.recv(10) == during.recv(10) == b"b\n"


def test_it_refuses_and_takes_again(proxy: FaultProxy) -> None:
    """At the same port; connections that are there stay."""
    with connect(proxy) as before:
        assert say(before, b"a") == b"a\n"
        proxy.refuse()
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        assert say(before, b"b") == b"b\n"
        proxy.pass_all()
        with connect(proxy) as after:
            assert say(after, b"c") == b"c\n"


def test_a_server_that_is_down_resets(proxy: FaultProxy, server: EchoServer) -> None:
    """Who comes meanwhile finds the connection reset, not left open."""
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionResetError), connect(proxy) as connection:
        say(connection, b"a")
        say(connection, b"b")
    assert proxy.done["refused"] == 1


def test_its_end_ends_its_connections(server: EchoServer) -> None:
    """Even while it passes nothing on; ending it twice is allowed."""
    proxy = FaultProxy(f"tcp://127.0.0.1:{server.server_address[1]}")
    with connect(proxy) as connection:
        assert say(connection, b"a") == b"a\n"
        proxy.black_hole()
        connection.sendall(b"b\n")
        proxy.close()
        proxy.close()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_controls_may_come_from_any_thread(proxy: FaultProxy) -> None:
    """While others talk through it; each of them gets its answer or finds the connection cut."""
    over = threading.Event()

    def talk() -> None:
        while not over.is_set():
            try:
                with connect(proxy) as connection:
                    assert say(connection, b"a") in {b"a\n", b""}
            except ConnectionError:
                pass

    threads = [threading.Thread(target=talk) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        proxy.cut()
        proxy.refuse()
        proxy.delay(0.001)
        proxy.lose_replies(1)
        proxy.pass_all()
    over.set()
    for thread in threads:
        thread.join(ANSWER)
        assert not thread.is_alive()
