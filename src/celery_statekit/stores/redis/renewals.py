"""Who works on a record of a Redis server, and until when it counts as alive.

A lease is a key of its own, which expires: the record's, ``|alive:`` and the owner.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from typing import Final

from celery_statekit.stores.redis.lines import record_of, since_of, word_of
from celery_statekit.stores.redis.server import LONGEST, RedisServer, Script, milliseconds

#: Leases that one script renews.
BATCH: Final = 1000

RENEW: Final = Script("renew")
LEFT: Final = Script("left")


class RedisRenewals:
    """The leases of those who work on the records of a server, by its clock.

    Args:
        server: where they are.
        prefix: stands before all keys as it is.
    """

    def __init__(self, server: RedisServer, prefix: str) -> None:
        self._server = server
        self._prefix = prefix

    def renew(self, leases: Collection[tuple[str, str]], seconds: float) -> None:
        """Make each last for ``seconds``; one script for a thousand."""
        length = milliseconds(min(seconds, LONGEST / 1000))
        rest = iter(leases)
        while batch := list(islice(rest, BATCH)):
            names = [self._name(key, owner) for key, owner in batch]
            key = batch[0][0]
            self._server.run(RENEW, key, *names, length, keys=len(names), writes=False)

    def left(self, key: str, owner: str, seconds: float) -> float | None:
        """Seconds for which the lease of ``owner`` still lasts; one script."""
        names = self._prefix + key, self._name(key, owner)
        line, *now, renewed = self._server.run(LEFT, key, *names, keys=2, writes=False)
        if line is None:
            return None
        record_of(key, line)
        labelled = since_of(key, line) + seconds - int(now[0]) - int(now[1]) / 1e6
        return max(labelled, int(renewed) / 1000, 0.0)

    def _name(self, key: str, owner: str) -> str:
        return f"{self._prefix}{key}|alive:{word_of(owner)}"
