"""A TCP proxy that breaks connections on purpose, in front of any server."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import Counter
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, TypeVar
from urllib.parse import urlsplit

from celery_statekit.errors import InvalidInput

if TYPE_CHECKING:
    from typing_extensions import Self

Returned = TypeVar("Returned")
#: What becomes of a connection whose reply is lost.
Fate: TypeAlias = Literal["cut", "hang"]

#: Ports of servers whose URL names none.
PORTS: Final = {"redis": 6379, "postgresql": 5432, "mysql": 3306, "mariadb": 3306}
#: SO_LINGER on, for 0 seconds: closing resets the connection (RST) instead of ending it.
RESET: Final = struct.pack("ii", 1, 0)
CHUNK: Final = 65536


@dataclass
class _Plan:
    """Which replies are lost."""

    #: How many more; negative: no end.
    left: int
    every: int
    matching: bytes
    then: Fate
    requests: int = 0

    def strikes(self, request: bytes) -> bool:
        if self.left == 0 or self.matching not in request:
            return False
        self.requests += 1
        if self.requests % self.every:
            return False
        self.left -= 1
        return True


class FaultProxy:
    """Passes on what clients and a server say to each other, but for what it is told to break.

    A context manager; its methods may be called from any thread, at any time.

    >>> import socket
    >>> with socket.create_server(("127.0.0.1", 0)) as server:
    ...     with FaultProxy(f"tcp://127.0.0.1:{server.getsockname()[1]}") as proxy:
    ...         proxy.refuse()
    ...         try:
    ...             socket.create_connection(("127.0.0.1", proxy.port))
    ...         except ConnectionRefusedError:
    ...             "refused"
    'refused'

    Args:
        url: the server's URL, with its host.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        port = parts.port or PORTS.get(parts.scheme.partition("+")[0], 0)
        if not parts.hostname or not port:
            # Not what it is: it may hold a password.
            raise InvalidInput("no server", "url", parts.scheme, "a URL with host and port")
        self._server = (parts.hostname, port)
        #: How often it did what: ``accepted`` and ``refused`` connections, ``lost`` replies,
        #: ``cut`` connections.
        self.done: Counter[str] = Counter()
        self._plan: _Plan | None = None
        self._delay = 0.0
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._passing = asyncio.Event()
        self._serving: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        #: The port that it listens on, at 127.0.0.1.
        self.port = 0
        self._run(self._pass_all())
        before = parts.netloc.rpartition("@")[0]
        place = f"127.0.0.1:{self.port}"
        #: The server's URL by way of this proxy.
        self.url = parts._replace(netloc=f"{before}@{place}" if before else place).geturl()

    # --- controls -----------------------------------------------------------------------------

    def pass_all(self) -> None:
        """Break nothing from now on; connections that were cut stay so."""
        self._run(self._pass_all())

    def lose_replies(
        self, count: int = 0, *, every: int = 1, matching: bytes = b"", then: Fate = "cut"
    ) -> None:
        """Let requests reach the server, and no reply to them the client.

        Args:
            count: how many replies; 0: until told otherwise.
            every: each how-many-th request; 1: each.
            matching: of those requests that hold these bytes: ``EVALSHA``, ``COMMIT``.
            then: whether the connection is reset then, or hangs until its client gives it up.
        """
        self._plan = _Plan(count or -1, every, matching, then)

    def delay(self, seconds: float) -> None:
        """Hold each reply back for ``seconds``; 0: no longer."""
        self._delay = seconds

    def black_hole(self) -> None:
        """Take connections, and pass nothing on in either direction until ``pass_all``."""
        self._loop.call_soon_threadsafe(self._passing.clear)

    def cut(self) -> int:
        """Reset all connections (RST); returns how many there were."""
        return self._run(self._cut())

    def refuse(self) -> None:
        """Take no new connection until ``pass_all``; those that are there stay."""
        self._run(self._refuse())

    def close(self) -> None:
        """Cut everything and end; nothing happens the second time."""
        if not self._loop.is_closed():
            self._run(self._close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    # --- in the thread of the loop ------------------------------------------------------------

    def _run(self, work: Awaitable[Returned]) -> Returned:
        async def awaited() -> Returned:
            return await work

        return asyncio.run_coroutine_threadsafe(awaited(), self._loop).result()

    async def _pass_all(self) -> None:
        self._plan, self._delay = None, 0.0
        self._passing.set()
        if self._listener is None:
            # Not asyncio's server: closed while it accepts, it may forget a connection (3.11).
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)
            self._listener.setblocking(False)
            self.port = self._listener.getsockname()[1]
            self._loop.add_reader(self._listener, self._accept, self._listener)

    async def _refuse(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def _cut(self) -> int:
        links = list(self._links)
        for link in links:
            link.reset()
        self.done["cut"] += len(links)
        return len(links)

    async def _close(self) -> None:
        await self._refuse()
        self._passing.set()
        while self._serving:
            await self._cut()
            await asyncio.wait(self._serving, timeout=0.01)
        await asyncio.sleep(0)  # transports end in the next round of the loop

    def _accept(self, listener: socket.socket) -> None:
        with suppress(BlockingIOError, ConnectionAbortedError):  # gone again
            client, _ = listener.accept()
            client.setblocking(False)
            serving = self._loop.create_task(self._serve(client))
            self._serving.add(serving)
            serving.add_done_callback(self._serving.discard)

    async def _serve(self, client: socket.socket) -> None:
        try:
            server = await asyncio.open_connection(*self._server)
        except OSError:
            self.done["refused"] += 1
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.close()
            return
        self.done["accepted"] += 1
        link = _Link(self, await asyncio.open_connection(sock=client), server)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)

    # --- what a link asks ---------------------------------------------------------------------

    async def passing(self, *, reply: bool) -> None:
        """Wait as long as a request, or a reply, is not passed on."""
        if reply and self._delay:
            await asyncio.sleep(self._delay)
        if not self._passing.is_set():
            await self._passing.wait()

    def fate_of(self, request: bytes) -> Fate | None:
        """What becomes of the connection when the reply to ``request`` is there."""
        plan = self._plan
        if plan is None or not plan.strikes(request):
            return None
        self.done["lost"] += 1
        return plan.then


class _Link:
    """One client's connection, and its counterpart to the server."""

    def __init__(
        self,
        proxy: FaultProxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy = proxy
        self._from_client, self._to_client = client
        self._from_server, self._to_server = server
        self._fate: Fate | None = None

    async def run(self) -> None:
        """Pass on both ways until either side ends."""
        ways = [asyncio.ensure_future(self._requests()), asyncio.ensure_future(self._replies())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for writer in (self._to_client, self._to_server):
                writer.close()

    def reset(self) -> None:
        """Let both sides find the connection reset."""
        for writer in (self._to_client, self._to_server):
            _reset(writer)

    async def _requests(self) -> None:
        while request := await self._from_client.read(CHUNK):
            await self._proxy.passing(reply=False)
            self._fate = self._fate or self._proxy.fate_of(request)
            self._to_server.write(request)
            await self._to_server.drain()

    async def _replies(self) -> None:
        while reply := await self._from_server.read(CHUNK):
            await self._proxy.passing(reply=True)
            if self._fate == "cut":
                self.reset()
            elif self._fate is None:
                self._to_client.write(reply)
                await self._to_client.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket | None = writer.get_extra_info("socket")
    with suppress(OSError):  # closed already
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()
