"""The one connection and the one thread by which a process hears of writes to a Redis server."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final
from weakref import WeakSet

from redis.exceptions import RedisError

from celery_statekit.errors import StoreError, StoreUnavailable
from celery_statekit.stores.redis.server import RedisServer
from celery_statekit.stores.subscribers import Subscribers

logger = logging.getLogger(__name__)

#: Seconds between two looks at whether anything else is to be done than to listen.
LOOK: Final = 1.0
#: Seconds of silence after which the server is asked whether it is still there.
SILENCE: Final = 10.0
#: Longest wait in seconds before it connects again.
LONGEST_PAUSE: Final = 5.0


class Listener:
    """Subscriptions of this process; its thread runs while there are any.

    Only the thread uses the connection. It is told of a new subscription by a message on a
    channel of its own, which any connection can send.
    """

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._closed = False
        self.renew()
        _listeners.add(self)

    def renew(self) -> None:
        """Begin without subscriptions, thread and connection, as a forked process has to."""
        self._subscribers = Subscribers()
        self._state = threading.Condition()
        #: Channels that the server has confirmed.
        self._heard: set[str] = set()
        self._thread: threading.Thread | None = None
        #: How many connections have failed, and why the last one did.
        self._failures = 0
        self._why = ""
        self._own = f"statekit-listener-{os.urandom(16).hex()}"

    def subscribe(self, channel: str, wake: Callable[[], None]) -> Callable[[], None]:
        """Call ``wake`` after each message on ``channel``; the return is what ends it.

        Raises:
            StoreUnavailable: the server has not confirmed it within the server's timeout.
        """
        with self._state:
            if self._closed:
                raise StoreUnavailable(self._server.name, "it is closed")
            end = self._subscribers.add(channel, wake)
            self._start()
            failures, heard = self._failures, channel in self._heard
        if not heard:
            try:
                self._await(channel, failures)
            except BaseException:
                end()
                raise
        return end

    def _await(self, channel: str, failures: int) -> None:
        deadline = time.monotonic() + self._server.timeout
        # Before its connection stands the thread does not hear it, and need not.
        with suppress(StoreError):
            self._server.ask(self._own, "PUBLISH", self._own, "")
        with self._state:
            self._state.wait_for(
                lambda: channel in self._heard or self._failures != failures or self._closed,
                deadline - time.monotonic(),
            )
            if channel not in self._heard:
                why = self._why if self._failures != failures else "it confirms no subscription"
                raise StoreUnavailable(self._server.name, "it is closed" if self._closed else why)

    def close(self) -> None:
        """End all subscriptions, without asking the server; the thread ends within a second or so."""
        with self._state:
            self._closed = True
            self._subscribers.clear()
            self._state.notify_all()

    # --- in the thread ---------------------------------------------------------------------------

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._listen, name="statekit redis listener", daemon=True
            )
            self._thread.start()

    def _listen(self) -> None:
        pause, anew = 0.05, False
        while True:
            began = time.monotonic()
            try:
                self._hear(anew=anew)
            except (RedisError, OSError, StoreError) as exc:
                self._failed(str(exc))
            except Exception as exc:
                logger.exception("the connection that hears of writes failed")
                self._failed(repr(exc))
            with self._state:
                if self._closed or not self._subscribers.keys():
                    self._thread = None
                    return
                if time.monotonic() - began > SILENCE:
                    pause = 0.05
                self._state.wait_for(lambda: self._closed, pause)
            pause, anew = min(pause * 2, LONGEST_PAUSE), True

    def _failed(self, why: str) -> None:
        with self._state:
            self._failures += 1
            self._why = why
            self._state.notify_all()

    def _hear(self, *, anew: bool) -> None:
        """Listen until the connection breaks, or nobody is left to wake; ``anew``: once more."""
        connection = self._server.connect()
        try:
            connection.send_command("SUBSCRIBE", self._own)
            silent, asked = 0.0, set[str]()
            while self._follow(connection, asked):
                if anew and self._heard >= asked:
                    # Of what was written while there was no connection nobody has told.
                    anew = False
                    for channel in asked:
                        self._subscribers.wake(channel)
                if connection.can_read(LOOK):
                    silent = 0.0
                    self._take(connection.read_response())
                else:
                    silent += LOOK
                    if silent == SILENCE:
                        connection.send_command("PING")
                    elif silent > 2 * SILENCE:
                        raise StoreUnavailable(self._server.name, "it has fallen silent")
        finally:
            with self._state:
                self._heard.clear()
            connection.disconnect()

    def _follow(self, connection: Any, asked: set[str]) -> bool:
        """Subscribe to what is wanted and not yet asked for; False where nothing is wanted."""
        with self._state:
            wanted = set(self._subscribers.keys())
            # What is not confirmed yet is kept: its confirmation would be taken for that of a
            # later subscription to the same channel.
            new, old = wanted - asked, asked & self._heard - wanted
            self._heard -= old
            asked ^= new | old
            going_on = bool(wanted) and not self._closed
        if new:
            connection.send_command("SUBSCRIBE", *new)
        if old:
            connection.send_command("UNSUBSCRIBE", *old)
        return going_on

    def _take(self, message: list[Any]) -> None:
        sort, channel = message[0], message[1].decode()
        if sort == b"message":
            self._subscribers.wake(channel)
        elif sort == b"subscribe":
            with self._state:
                self._heard.add(channel)
                self._state.notify_all()


_listeners: Final[WeakSet[Listener]] = WeakSet()


def _renew_all() -> None:
    for listener in list(_listeners):
        listener.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
