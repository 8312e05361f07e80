"""How writers of one client take turns: at will at first, in order once they are in the way.

A writer reads, and writes if nobody else was quicker. After a few lost races it takes the key's
lease, which the store hands over in the order of asking. That alone would not be enough: others
who do not know of it go on winning. So whoever loses while holding the lease marks the record, and
who reads a mark asks for the lease; and a process remembers for a moment which keys are crowded.
All that is for liveness only: what keeps updates is the version that every write compares.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final
from weakref import WeakKeyDictionary

from celery_statekit.breaker import AWAY
from celery_statekit.chance import chance
from celery_statekit.errors import ContentionTimeout, StateRegressed, StoreError
from celery_statekit.record import Record
from celery_statekit.stores.base import Leases, Store

logger = logging.getLogger(__name__)

#: Races lost before the key's lease is taken.
RACES: Final = 3
#: Seconds for which it is taken: so long others may have to wait for one who was killed.
LEASE: Final = 1.0
#: Seconds for which a key counts as crowded after it was seen to be.
REMEMBERED: Final = 1.0
#: How many keys are remembered; the oldest go first.
KEYS: Final = 1024


class _Crowd:
    """The keys of one store that several wrote at once lately, as this process saw it."""

    def __init__(self) -> None:
        #: Until when, and the version that this process last wrote.
        self._keys: dict[str, tuple[float, int]] = {}

    def __contains__(self, key: str) -> bool:
        return self._keys.get(key, (0.0, 0))[0] > time.monotonic()

    def seen(self, key: str, version: int = 0) -> None:
        """The key is crowded, unless this process itself wrote ``version``."""
        if version and self._keys.get(key, (0.0, 0))[1] == version:
            return
        while len(self._keys) >= KEYS:
            self._keys.pop(next(iter(self._keys), ""), None)
        self._keys[key] = time.monotonic() + REMEMBERED, 0

    def wrote(self, key: str, version: int) -> None:
        """This process wrote ``version``."""
        if key in self._keys:
            self._keys[key] = self._keys[key][0], version


_crowds: Final[WeakKeyDictionary[Store, _Crowd]] = WeakKeyDictionary()


class Race(AbstractContextManager["Race"]):
    """One writer's tries at one key, until its deadline; gives back the lease at the end of them.

    Args:
        store: where the key is.
        key: the record's.
        seconds: until the deadline.
        mark: write ``held`` into the record until a moment; None where another was quicker.
    """

    def __init__(
        self,
        store: Store,
        key: str,
        seconds: float,
        mark: Callable[[Record, str, float], Record | None],
    ) -> None:
        self._store = store
        self._leases = store if isinstance(store, Leases) else None
        self._key = key
        self._seconds = seconds
        #: A moment of ``time.monotonic()``.
        self.deadline = time.monotonic() + seconds
        self._mark = mark
        self._marks = False
        self._losses = 0
        #: How long the lease lasts, and until when; 0: it was not taken.
        self._lease = self._until = 0.0
        #: The newest version that was read.
        self._newest: Record | None = None
        self._crowd = _crowds.setdefault(store, _Crowd())
        self._store_failed = False
        self.owner = os.urandom(8).hex()

    def __exit__(self, _: object, exc: BaseException | None, __: object) -> None:
        if isinstance(exc, AWAY):
            self.store_failed()
        if self._lease and self._leases and not self.is_hopeless:
            try:
                self._leases.release(self._key, self.owner)
            except StoreError as error:
                logger.warning(
                    "the lease of %s was not given back, it ends by itself: %s", self._key, error
                )
                logger.debug("a lease was not given back", exc_info=True)

    @property
    def is_hopeless(self) -> bool:
        """Whether the store is away, and the deadline over: nothing more is asked of it."""
        return self._store_failed and time.monotonic() >= self.deadline

    def store_failed(self) -> None:
        """The store is away, or its reply was lost."""
        self._store_failed = True

    def restart(self) -> None:
        """Begin the time until the deadline anew: what came before was not this writer's."""
        self.deadline = time.monotonic() + self._seconds

    def read(self) -> Record | None:
        """The newest version, when it is this writer's turn.

        Raises:
            ContentionTimeout: the deadline is over.
            StateRegressed: it is older than one that was read before.
        """
        while True:
            record = self._in_turn()
            if not self._marks or record is None:
                return record
            marked = self._mark(record, self.owner, self.deadline)
            if marked is not None:
                self._newest = marked
                return marked
            self._check_deadline()

    def _in_turn(self) -> Record | None:
        crowded = self._key in self._crowd
        if crowded and not self._lease:
            self.take_lease(LEASE)
        record = self._read()
        if crowded and record is not None:
            self._crowd.seen(self._key, record.version)
        while record is not None and record.document.get("held", self.owner) != self.owner:
            before = record
            self._crowd.seen(self._key)
            self.take_lease(self._lease or LEASE)
            record = self._read()
            # No block has begun since: it would have written its own mark.
            if before.same(record):
                break
        return record

    def won(self, record: Record) -> None:
        """``record`` was written."""
        self._crowd.wrote(self._key, record.version)

    def lost(self) -> None:
        """Another was quicker: wait a little, after a few times for the lease.

        Raises:
            ContentionTimeout: the deadline is over.
        """
        self._losses += 1
        self._check_deadline()
        if self._lease:
            # Lost to one who does not ask for it, or because it ended.
            self._marks = True
            if time.monotonic() > self._until:
                self.take_lease(min(self._lease * 2, self._seconds))
        elif self._losses >= RACES and self._leases:
            self._crowd.seen(self._key)
            self.take_lease(LEASE)
        else:
            time.sleep(chance.uniform(0, 0.002 * min(self._losses, 10)))

    def take_lease(self, seconds: float, *, marks: bool = False) -> None:
        """Wait for one's turn, and hold the key's lease for ``seconds``.

        It is taken for :data:`LEASE` at first, and for longer once that is known: where the reply
        is lost nobody holds it for long without knowing.

        Args:
            marks: write the mark with the next ``read``.

        Raises:
            ContentionTimeout: the deadline is over.
        """
        if self._leases is None:
            return
        for length in (LEASE, seconds) if seconds > LEASE else (seconds,):
            left = max(self.deadline - time.monotonic(), 0.0)
            if not self._leases.acquire(self._key, self.owner, length, wait=left):
                raise ContentionTimeout(self._key, max(self._losses, 1), self._seconds)
            self._lease, self._until = length, time.monotonic() + length
        self._marks = self._marks or marks

    def _read(self) -> Record | None:
        record, newest = self._store.read(self._key), self._newest
        older = record and newest and record.version < newest.version
        if record and newest and older and record.incarnation == newest.incarnation:
            raise StateRegressed(self._key, newest.version, record.version)
        self._newest = record
        return record

    def _check_deadline(self) -> None:
        if time.monotonic() > self.deadline:
            raise ContentionTimeout(self._key, self._losses, self._seconds)
