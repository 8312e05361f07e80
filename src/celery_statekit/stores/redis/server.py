"""A Redis server of ours: its connections, and what its errors mean.

The client is ours: redis-py 8.1 repeats every command up to ten times where the reply is lost
(``redis/_defaults.py``), and so applies a write twice. Here nothing is repeated that may have
been applied.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Mapping
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ConnectionError,  # noqa: A004 - redis-py's own, which is no OSError
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004 - the same
)

from celery_statekit.errors import (
    AmbiguousWrite,
    CorruptRecord,
    InvalidSetting,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from celery_statekit.stores.redis.connections import Connections, words
from celery_statekit.stores.redis.url import Address

#: Seconds after which an idle connection is looked at before it is used: the server may have cut it.
FRESH: Final = 0.05
#: Connections kept for the next call.
IDLE: Final = 64
#: Times that a command is sent of which no reply can have been lost.
TRIES: Final = 3
#: What Redis and Lua count to exactly, milliseconds and numbers of changes.
LONGEST: Final = 2**52

#: What a server says that is there and does not serve.
_REFUSALS: Final = (BusyLoadingError, AuthenticationError, AuthorizationError)


class Script:
    """A Lua script: a file of this package, behind what it shares with others."""

    def __init__(self, *names: str) -> None:
        folder = files(__package__) / "lua"
        self.text = "\n".join(folder.joinpath(f"{name}.lua").read_text("utf-8") for name in names)
        self.sha = sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class RedisServer:
    """The connections of this process to one database, made when first needed.

    As many as there are calls at once. Those of a parent process are never used.

    Args:
        address: of the database.
        timeout: seconds to connect in, and to wait for a reply.
        options: further arguments of redis-py's connection, and ``master_name``,
            ``min_other_sentinels`` and ``sentinel_kwargs`` where there are Sentinels.

    Raises:
        InvalidSetting: ``timeout`` is no positive number, or an option cannot be obeyed.
    """

    def __init__(self, address: Address, timeout: float, options: Mapping[str, Any]) -> None:
        self.name = address.name()
        self.timeout = _seconds(timeout)
        self._connections = Connections(address, self.timeout, options)
        self._closed = False
        self._renew()

    def _renew(self) -> None:
        #: (connection, when it was last used); one list for each process.
        self._idle: list[tuple[Any, float]] = []
        self._process = os.getpid()

    # --- calls -----------------------------------------------------------------------------------

    def run(
        self, script: Script, key: str, *arguments: str | bytes, keys: int = 1, writes: bool
    ) -> Any:
        """What ``script`` returns; ``arguments`` begin with its keys.

        Raises:
            StoreUnavailable: nothing was changed.
            StoreFull: nothing was changed.
            CorruptRecord: what ``key`` holds is of another type than a record.
            AmbiguousWrite: it ``writes`` and the reply was lost.
        """
        try:
            return self._ask((b"EVALSHA", script.sha, b"%d" % keys, *arguments), writes)
        except NoScriptError:
            command = (b"EVAL", script.text, b"%d" % keys, *arguments)
        except RedisError as exc:
            raise self.error(exc, key) from exc
        try:
            return self._ask(command, writes)
        except RedisError as exc:
            raise self.error(exc, key) from exc

    def post(
        self, script: Script, key: str, *arguments: str | bytes, keys: int = 1
    ) -> Reply | None:
        """Send what :meth:`run` would by a connection that is open; None: there is none."""
        if self._closed or self._process != os.getpid():
            return None
        connection = self._open()
        if connection is None:
            return None
        try:
            return Reply(self, connection, key, script, b"%d" % keys, *arguments)
        except (ConnectionError, TimeoutError):
            connection.disconnect()
            return None
        except BaseException:
            connection.disconnect()
            raise

    def ask(self, key: str, *command: str | bytes) -> Any:
        """The reply to a command that may be sent twice; errors as of :meth:`run`."""
        try:
            return self._ask(command, writes=False)
        except RedisError as exc:
            raise self.error(exc, key) from exc

    def _ask(self, command: tuple[str | bytes, ...], writes: bool) -> Any:  # noqa: FBT001 - of run's own
        packed = _packed(command)
        deadline = time.monotonic() + self.timeout
        for left in reversed(range(TRIES)):
            connection = self.borrow()
            sent = False
            try:
                connection.send_packed_command((packed,))
                sent = True
                reply = connection.read_response()
            except _REFUSALS:
                connection.disconnect()
                raise
            except ResponseError as exc:
                self.after(connection, exc)
                raise
            except (ConnectionError, TimeoutError) as exc:
                connection.disconnect()
                if sent and writes and not _of_replica(exc):
                    raise AmbiguousWrite(self.name, words(exc)) from exc
                late = isinstance(exc, TimeoutError) or time.monotonic() >= deadline
                if late or not left:
                    raise
            except BaseException:
                # A time limit of the task, for one: the reply would be taken for another's.
                connection.disconnect()
                raise
            else:
                self.give_back(connection)
                return reply
        raise AssertionError("unreachable")

    def after(self, connection: Any, exc: ResponseError) -> None:
        """A command was refused: keep ``connection``, unless it leads to the wrong server."""
        if isinstance(exc, ReadOnlyError) or "READONLY" in str(exc) or "MASTERDOWN" in str(exc):
            # It has become a replica: whoever is the server now is asked for anew.
            connection.disconnect()
            self._disconnect_idle()
        else:
            self.give_back(connection)

    # --- connections -----------------------------------------------------------------------------

    def borrow(self) -> Any:
        """A connected connection, of redis-py's class; give it back, or disconnect it.

        Raises:
            StoreUnavailable: the server does not answer, or refuses us.
        """
        if self._closed:
            raise StoreUnavailable(self.name, "it is closed")
        if self._process != os.getpid():
            self._connections.renew()
            self._renew()
        return self._open() or self.connect()

    def _open(self) -> Any:
        """An open connection that nobody uses; None where there is none."""
        now = time.monotonic()
        while self._idle:
            try:
                connection, used = self._idle.pop()
            except IndexError:  # another thread has taken the last
                break
            if now - used < FRESH or not _stale(connection):
                return connection
            connection.disconnect()
        return None

    def connect(self) -> Any:
        """A connection of one's own; errors as of :meth:`borrow`."""
        return self._connections.connect()

    def give_back(self, connection: Any) -> None:
        """Keep ``connection`` for the next call."""
        if self._closed or len(self._idle) >= IDLE:
            connection.disconnect()
        else:
            self._idle.append((connection, time.monotonic()))

    def close(self) -> None:
        """Close the connections; those of calls under way close when these return."""
        self._closed = True
        self._disconnect_idle()

    def _disconnect_idle(self) -> None:
        while self._idle and self._process == os.getpid():
            try:
                connection, _ = self._idle.pop()
            except IndexError:
                return
            connection.disconnect()

    def error(self, exc: RedisError | OSError, key: str) -> StoreError:
        """What an error of redis-py means."""
        why = words(exc)
        # In 6.2 an error of a script is told by its text only.
        if type(exc).__name__ == "OutOfMemoryError" or re.search(r"\bOOM\b|used memory >", why):
            return StoreFull(self.name, why)
        if "WRONGTYPE" in why:
            return CorruptRecord(key, f"{self.name} keeps something else there ({why})")
        return StoreUnavailable(self.name, why)


class Reply:
    """What a server will say to a script that is sent by making this; to be asked for once."""

    def __init__(
        self,
        server: RedisServer,
        connection: Any,
        key: str,
        script: Script,
        *arguments: str | bytes,
    ) -> None:
        self._server = server
        self._connection = connection
        self._key = key
        self._script = script
        self._arguments = arguments
        self._send(b"EVALSHA", script.sha)

    def _send(self, *command: str | bytes) -> None:
        self._connection.send_packed_command((_packed((*command, *self._arguments)),))

    def get(self, seconds: float) -> Any:
        """What the script returned; waits at most ``seconds``.

        Raises:
            StoreError: as of :meth:`RedisServer.run`; AmbiguousWrite: nothing came in time.
        """
        server, connection = self._server, self._connection
        deadline = time.monotonic() + seconds
        try:
            try:
                reply = self._received(deadline)
            except NoScriptError:
                self._send(b"EVAL", self._script.text)
                reply = self._received(deadline)
        except ResponseError as exc:
            server.after(connection, exc)
            raise server.error(exc, self._key) from exc
        except (RedisError, OSError) as exc:
            connection.disconnect()
            if isinstance(exc, _REFUSALS) or _of_replica(exc):
                raise server.error(exc, self._key) from exc
            raise AmbiguousWrite(server.name, words(exc)) from exc
        except BaseException:
            connection.disconnect()
            raise
        server.give_back(connection)
        return reply

    def _received(self, deadline: float) -> Any:
        if not self._connection.can_read(max(deadline - time.monotonic(), 0.0)):
            raise TimeoutError("no reply in time")
        return self._connection.read_response()


def _packed(command: tuple[str | bytes, ...]) -> bytes:
    """``command`` as it is sent; redis-py's own way takes three times as long."""
    parts = [b"*%d\r\n" % len(command)]
    for part in command:
        encoded = part.encode() if isinstance(part, str) else part
        parts.append(b"$%d\r\n%b\r\n" % (len(encoded), encoded))
    return b"".join(parts)


def _of_replica(exc: BaseException) -> bool:
    """Whether Sentinel's connection says that the server has become a replica, and refuses."""
    return isinstance(exc.__context__, ReadOnlyError)


def _stale(connection: Any) -> bool:
    try:
        # What can be read before anything was asked is the end of the connection.
        return bool(connection.can_read(0))
    except (RedisError, OSError):
        return True


def _seconds(timeout: object) -> float:
    rule = "a number of seconds, over 0 and at most a day"
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise InvalidSetting("timeout is no number", "timeout", timeout, rule)
    if not 0 < timeout <= 24 * 60 * 60:
        raise InvalidSetting("timeout is out of range", "timeout", timeout, rule)
    return timeout


def milliseconds(seconds: float | None) -> str:
    """As a script takes it, rounded up; "" for never."""
    if seconds is None or seconds == math.inf:
        return ""
    return str(min(max(math.ceil(seconds * 1000), 0), LONGEST))
