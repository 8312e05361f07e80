"""Stores that fail on purpose, around a real one: what those above a store are tested with."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from celery_statekit.errors import AmbiguousWrite, StoreUnavailable
from celery_statekit.record import Change, Limits, Record
from celery_statekit.stores.base import Enumerates, Leases, Store


class _Around:
    """A store that is another one, but for what a subclass does about each call."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.name = store.name
        self.limits: Limits = store.limits
        # On the object, so that it is of a protocol exactly where the store is.
        if isinstance(store, Leases):
            self.acquire = self._acquire
            self.release = self._release
        if isinstance(store, Enumerates):
            self.keys = self._keys

    def _called(self) -> None:
        """Told before each call but ``close``."""

    def read(self, key: str) -> Record | None:
        """As the store does."""
        self._called()
        return self.store.read(key)

    def write(
        self,
        record: Record,
        *,
        expect: Record | None,
        changes: Sequence[Change] = (),
        ttl: float | None = None,
    ) -> bool:
        """As the store does."""
        self._called()
        return self.store.write(record, expect=expect, changes=changes, ttl=ttl)

    def history(self, key: str, after: int = 0, limit: int = 100) -> list[Change]:
        """As the store does."""
        self._called()
        return self.store.history(key, after, limit)

    def delete(self, key: str) -> bool:
        """As the store does."""
        self._called()
        return self.store.delete(key)

    def close(self) -> None:
        """As the store does; never fails."""
        self.store.close()

    def _acquire(self, key: str, owner: str, seconds: float) -> bool:
        assert isinstance(self.store, Leases)
        self._called()
        return self.store.acquire(key, owner, seconds)

    def _release(self, key: str, owner: str) -> None:
        assert isinstance(self.store, Leases)
        self._called()
        self.store.release(key, owner)

    def _keys(self, prefix: str, after: str = "", limit: int = 1000) -> list[str]:
        assert isinstance(self.store, Enumerates)
        self._called()
        return self.store.keys(prefix, after, limit)


class LosesReplies(_Around):
    """A store of which some writes end in AmbiguousWrite.

    Args:
        store: the real one; closed with this.
        every: each how-many-th write; 1: all of them.
        applied: whether such a write reaches the store; False: its request is what was lost.
    """

    def __init__(self, store: Store, every: int = 2, *, applied: bool = True) -> None:
        super().__init__(store)
        self.every = every
        self.applied = applied
        #: How many replies were lost so far.
        self.lost = 0
        self._writes = 0
        self._counting = threading.Lock()

    def write(
        self,
        record: Record,
        *,
        expect: Record | None,
        changes: Sequence[Change] = (),
        ttl: float | None = None,
    ) -> bool:
        """As the store does, or AmbiguousWrite."""
        with self._counting:
            self._writes += 1
            loses = self._writes % self.every == 0
            self.lost += loses
        if loses and not self.applied:
            raise AmbiguousWrite(self.name, "the request was lost, on purpose")
        written = super().write(record, expect=expect, changes=changes, ttl=ttl)
        if loses:
            raise AmbiguousWrite(self.name, "the reply was lost, on purpose")
        return written


class FailsAt(_Around):
    """A store of which one call is a StoreUnavailable, before anything is done.

    To fail at each point in turn: count up ``n`` until ``fired`` stays False.

    Args:
        store: the real one; closed with this.
        n: which call, from 1; 0: none.
        until: the last of several calls that fail; 0: ``n`` alone.
    """

    def __init__(self, store: Store, n: int, until: int = 0) -> None:
        super().__init__(store)
        self.n = n
        self.until = until or n
        #: How many calls there were so far.
        self.calls = 0
        #: Whether one has failed.
        self.fired = False
        self._counting = threading.Lock()

    def _called(self) -> None:
        with self._counting:
            self.calls += 1
            if not self.n <= self.calls <= self.until:
                return
            self.fired = True
        raise StoreUnavailable(self.name, f"call {self.calls} fails, on purpose")
