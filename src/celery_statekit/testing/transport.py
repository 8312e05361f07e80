"""Brokers for tests: in this process's memory, and in a folder for several processes.

Both answer within milliseconds, where Celery's own ``memory://`` and ``filesystem://`` look once a
second and take four to stop (kombu 5.7 transport/virtual/base.py, celery 5.7 worker/loops.py).
What one test leaves in its queues no other test finds. A folder keeps what was taken and not
acknowledged, so that it comes again after its taker was killed.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from typing import Any, Final
from urllib.parse import quote, unquote

from kombu.connection import Connection
from kombu.transport import TRANSPORT_ALIASES, virtual

#: Seconds between two looks into a queue.
POLL: Final = 0.005
#: Seconds after which a worker that waits looks whether it should stop.
LOOP: Final = 0.02


class _Transport(virtual.Transport):
    """Looks often, and never waits for long."""

    polling_interval = POLL
    implements = virtual.Transport.implements.extend(
        asynchronous=False, exchange_type=frozenset(["direct", "topic", "fanout"])
    )

    def drain_events(self, connection: Any, timeout: Any = None, **_: Any) -> Any:
        """Deliver one message; ``socket.timeout`` where none comes soon."""
        return super().drain_events(connection, timeout=min(timeout or LOOP, LOOP))

    def driver_version(self) -> str:
        """Of no driver."""
        return "N/A"


# --- in memory -----------------------------------------------------------------------------------


class Wire:
    """The broker of one test, in this process."""

    def __init__(self) -> None:
        self.state = virtual.BrokerState()
        self.queues: dict[str, Queue[Any]] = {}
        #: Every message that was published, as it was published.
        self.published: list[Any] = []

    def connect(self) -> Connection:
        """A connection to it."""
        options = {"wire": self}
        return Connection("test", transport="statekit-memory", transport_options=options)

    def messages(self, accept: Iterable[str]) -> list[Any]:
        """The tasks that were published, as a consumer gets them that accepts these contents."""
        with self.connect() as connection:
            channel = connection.default_channel
            return [
                channel.Message(message, channel=channel, accept=set(accept))
                for message in self.published
                if "task" in message["headers"]
            ]


class MemoryChannel(virtual.Channel):
    """A channel whose queues are those of a :class:`Wire`."""

    do_restore = False
    supports_fanout = True

    @property
    def wire(self) -> Wire:
        """What it is a channel of."""
        wire: Wire = self.connection.wire
        return wire

    def basic_publish(self, message: Any, exchange: str, routing_key: str, **options: Any) -> Any:
        """As any channel, and remember it."""
        self.wire.published.append(message)
        return super().basic_publish(message, exchange, routing_key, **options)

    def _queue(self, queue: str) -> Queue[Any]:
        return self.wire.queues.setdefault(queue, Queue())

    def _new_queue(self, queue: str, **_: Any) -> None:
        self._queue(queue)

    def _has_queue(self, queue: str, **_: Any) -> bool:
        return queue in self.wire.queues

    def _get(self, queue: str, timeout: Any = None) -> Any:  # noqa: ARG002 - kombu's signature
        return self._queue(queue).get(block=False)

    def _put(self, queue: str, message: Any, **_: Any) -> None:
        self._queue(queue).put(message)

    def _put_fanout(self, exchange: str, message: Any, routing_key: str, **_: Any) -> None:
        for queue in self._lookup(exchange, routing_key):
            self._put(queue, message)

    def _queue_bind(self, *_: Any) -> None:
        """Remembered by the state that all connections share."""

    def _size(self, queue: str) -> int:
        return self._queue(queue).qsize()

    def _delete(self, queue: str, *_: Any, **__: Any) -> None:
        self.wire.queues.pop(queue, None)

    def _purge(self, queue: str) -> int:
        held = self._queue(queue)
        size = held.qsize()
        held.queue.clear()
        return size


class MemoryTransport(_Transport):
    """The transport of a :class:`Wire`."""

    Channel = MemoryChannel
    driver_type = driver_name = "memory"

    def __init__(self, client: Any, **options: Any) -> None:
        super().__init__(client, **options)
        self.wire: Wire = client.transport_options["wire"]
        self.state = self.wire.state


# --- in a folder ---------------------------------------------------------------------------------


class Folder:
    """The broker of one test, for all processes that know its folder.

    Each message is a file, put there whole and moved by whoever takes it, so that one process gets
    it; what was taken lies aside until it is acknowledged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.queues, self.taken = path / "queues", path / "taken"
        self.exchanges = path / "exchanges"
        for folder in (self.queues, self.taken, self.exchanges):
            folder.mkdir(parents=True, exist_ok=True)

    def connect(self) -> Connection:
        """A connection to it."""
        options = {"folder": str(self.path)}
        return Connection("test", transport="statekit-folder", transport_options=options)

    def put(self, queue: str, message: Any, name: str = "") -> None:
        """Put ``message`` at the end of ``queue``; with the ``name`` it had, where it was."""
        name = name or f"{time.monotonic_ns():020d}-{uuid.uuid4().hex}"
        there = self.queues / quote(queue, safe="")
        there.mkdir(exist_ok=True)
        _write(there / name, json.dumps(message).encode())

    def take(self, queue: str) -> tuple[Path, Any] | None:
        """The first message of ``queue``, and where it lies until it is acknowledged."""
        name = quote(queue, safe="")
        for path in _files(self.queues / name):
            taken = self.taken / f"{name}:{path.name}"
            with suppress(FileNotFoundError):  # another process was quicker
                path.rename(taken)
                return taken, json.loads(taken.read_bytes())
        return None

    def give_back(self, taken: Path) -> None:
        """What was taken is delivered again; nothing happens where it was acknowledged."""
        with suppress(FileNotFoundError):
            message = json.loads(taken.read_bytes())
            message["properties"]["delivery_info"]["redelivered"] = True
            queue, _, name = taken.name.partition(":")
            self.put(unquote(queue), message, name)
            taken.unlink()

    def give_all_back(self) -> None:
        """Whoever had taken something is dead."""
        for taken in _files(self.taken):
            self.give_back(taken)


class FolderChannel(virtual.Channel):
    """A channel whose queues are those of a :class:`Folder`."""

    supports_fanout = True

    def __init__(self, connection: Any, **options: Any) -> None:
        super().__init__(connection, **options)
        self.folder: Folder = connection.folder
        #: Where a message lies that was not acknowledged, by its delivery tag.
        self._taken: dict[str, Path] = {}
        self._without_ack: set[str] = set()

    def basic_consume(self, queue: str, no_ack: Any, *args: Any, **options: Any) -> None:
        """As any channel."""
        if no_ack:
            self._without_ack.add(queue)
        super().basic_consume(queue, no_ack, *args, **options)

    def basic_ack(self, delivery_tag: str, *args: Any, **options: Any) -> None:
        """As any channel; it is not delivered again."""
        super().basic_ack(delivery_tag, *args, **options)
        self._settle(delivery_tag)

    def basic_reject(self, delivery_tag: str, *args: Any, **options: Any) -> None:
        """As any channel; it is delivered again with ``requeue`` only."""
        super().basic_reject(delivery_tag, *args, **options)
        self._settle(delivery_tag)

    def _settle(self, delivery_tag: str) -> None:
        taken = self._taken.pop(delivery_tag, None)
        if taken is not None:
            taken.unlink(missing_ok=True)

    def _restore(self, message: Any) -> None:
        taken = self._taken.pop(message.delivery_tag, None)
        if taken is not None:
            self.folder.give_back(taken)

    def _get(self, queue: str, timeout: Any = None) -> Any:  # noqa: ARG002 - kombu's signature
        found = self.folder.take(queue)
        if found is None:
            raise Empty
        taken, message = found
        if queue in self._without_ack:
            taken.unlink()
        else:
            self._taken[message["properties"]["delivery_tag"]] = taken
        return message

    def _put(self, queue: str, message: Any, **_: Any) -> None:
        self.folder.put(queue, message)

    def _put_fanout(self, exchange: str, message: Any, *_: Any, **__: Any) -> None:
        for _rule, _pattern, queue in self.get_table(exchange):
            self._put(queue, message)

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        bound = json.dumps([routing_key or "", pattern or "", queue or ""])
        there = self.folder.exchanges / quote(exchange, safe="")
        there.mkdir(exist_ok=True)
        (there / quote(bound, safe="")).touch()

    def get_table(self, exchange: str) -> list[tuple[str, str, str]]:
        """Who is bound to ``exchange``, in any process."""
        there = self.folder.exchanges / quote(exchange, safe="")
        return [tuple(json.loads(unquote(path.name))) for path in _files(there)]

    def _has_queue(self, queue: str, **_: Any) -> bool:
        return (self.folder.queues / quote(queue, safe="")).exists()

    def _size(self, queue: str) -> int:
        return len(_files(self.folder.queues / quote(queue, safe="")))

    def _delete(self, queue: str, exchange: str, *meta: str, **_: Any) -> None:
        self._purge(queue)
        bound = quote(json.dumps([*(part or "" for part in meta[:2]), queue]), safe="")
        (self.folder.exchanges / quote(exchange, safe="") / bound).unlink(missing_ok=True)

    def _purge(self, queue: str) -> int:
        paths = _files(self.folder.queues / quote(queue, safe=""))
        for path in paths:
            path.unlink(missing_ok=True)
        return len(paths)


class FolderTransport(_Transport):
    """The transport of a :class:`Folder`."""

    Channel = FolderChannel
    driver_type = driver_name = "folder"

    def __init__(self, client: Any, **options: Any) -> None:
        super().__init__(client, **options)
        self.folder = Folder(Path(client.transport_options["folder"]))


TRANSPORT_ALIASES.update(
    {
        "statekit-memory": f"{__name__}:{MemoryTransport.__name__}",
        "statekit-folder": f"{__name__}:{FolderTransport.__name__}",
    }
)


def _files(folder: Path) -> list[Path]:
    """What lies in ``folder``, the oldest first."""
    with suppress(FileNotFoundError):
        return sorted(path for path in folder.iterdir() if path.suffix != ".new")
    return []


def _write(path: Path, content: bytes) -> None:
    """Make the file as a whole: nobody sees half of it."""
    new = path.with_name(f"{path.name}-{uuid.uuid4().hex}.new")
    new.write_bytes(content)
    new.replace(path)
