"""Leases on a Redis server, and the queue of those who wait for one."""

from __future__ import annotations

import os
import time
from typing import Final

from celery_statekit.stores.redis.server import RedisServer, Script, milliseconds

#: Seconds without a word after which one who waits for a lease counts as dead.
ALIVE: Final = 0.9
#: Seconds between two words of one who waits.
WORD: Final = 0.3

ACQUIRE: Final = Script("leases", "acquire")
LEAVE: Final = Script("leases", "leave")
RELEASE: Final = Script("leases", "release")


class RedisLeases:
    """The leases that a server keeps, by its clock.

    Args:
        server: where they are.
        prefix: stands before all keys as it is.
    """

    def __init__(self, server: RedisServer, prefix: str) -> None:
        self._server = server
        self._prefix = prefix

    def acquire(self, key: str, owner: str, seconds: float, wait: float = 0.0) -> bool:
        """Make ``owner`` the holder for ``seconds``; the server's clock counts them."""
        name, length = self._prefix + key, milliseconds(seconds)
        alive = milliseconds(ALIVE)
        deadline = time.monotonic() + wait
        ticket = "" if wait <= 0 else os.urandom(8).hex()
        while not self._server.run(ACQUIRE, key, name, owner, length, ticket, alive, writes=False):
            left = deadline - time.monotonic()
            if left <= 0:
                return bool(ticket) and bool(
                    self._server.run(LEAVE, key, name, owner, length, ticket, writes=False)
                )
            pause = max(min(left, WORD, self._server.timeout / 2), 0.001)
            self._server.ask(key, "BLPOP", f"{name}|call:{ticket}", f"{pause:.3f}")
        return True

    def release(self, key: str, owner: str) -> None:
        """Give the lease back, to the first who waits for it."""
        alive = milliseconds(ALIVE)
        self._server.run(RELEASE, key, self._prefix + key, owner, alive, writes=False)
