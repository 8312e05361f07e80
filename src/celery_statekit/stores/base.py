"""The Store protocol and what a store may do beyond it.

A store knows keys, versions and documents, nothing of states. Its one promise: **of two writers
who read the same version exactly one succeeds.** Legality, events, throttling and retry exist
once, above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from celery_statekit.record import Change, Limits, Record


@runtime_checkable
class Store(Protocol):
    """Keeps records and their changes.

    All methods may be called from any thread, and in a process forked after the store was
    opened. Every one may raise :exc:`~celery_statekit.errors.StoreUnavailable` (nothing was
    written), and those that read :exc:`~celery_statekit.errors.CorruptRecord`.
    """

    #: What the store's URL is, without its password; for messages.
    name: str
    #: Sizes that ``write`` holds records and histories to.
    limits: Limits

    def read(self, key: str) -> Record | None:
        """The newest version of ``key``; None where there is none, or it has expired."""
        ...

    def write(
        self,
        record: Record,
        *,
        expect: Record | None,
        changes: Sequence[Change] = (),
        ttl: float | None = None,
    ) -> bool:
        """Write ``record`` and append ``changes`` to its history, both or neither.

        Args:
            record: the version after ``expect``.
            expect: the record as it was read, compared by version and incarnation; None: there
                is none (an expired one counts as none, and its history is gone with it).
            changes: what moved, oldest first; history keeps the newest
                ``limits.history_changes``.
            ttl: seconds until key and history expire, counted by the store from now; None: never.

        Returns:
            True: written and durable as the store is configured. False: lost, another version
            is there; nothing was changed.

        Raises:
            PayloadTooLarge: before any I/O.
            NewerFormat: before any I/O.
            StoreFull: nothing was changed.
            AmbiguousWrite: the reply was lost; whoever asks again finds out by the write's id.
        """
        ...

    def history(self, key: str, after: int = 0, limit: int = 100) -> list[Change]:
        """At most ``limit`` changes of ``key`` with a number over ``after``, oldest first."""
        ...

    def delete(self, key: str) -> bool:
        """Remove ``key`` and its history; False where there was nothing."""
        ...

    def close(self) -> None:
        """Give back what the store opened. Closing twice is allowed; using it after is not."""
        ...


@runtime_checkable
class Leases(Protocol):
    """A store that can say who may work on a key for a while, by its own clock.

    A lease gives liveness only; safety stays with the version that ``write`` compares.
    """

    def acquire(self, key: str, owner: str, seconds: float) -> bool:
        """Make ``owner`` the holder for ``seconds`` if nobody else holds it; renews one's own."""
        ...

    def release(self, key: str, owner: str) -> None:
        """Give the lease back; nothing happens where ``owner`` does not hold it."""
        ...


@runtime_checkable
class Enumerates(Protocol):
    """A store that can say which keys it holds."""

    def keys(self, prefix: str, after: str = "", limit: int = 1000) -> list[str]:
        """At most ``limit`` keys that begin with ``prefix``, over ``after``, in order of text."""
        ...
