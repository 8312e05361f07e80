"""The Store protocol and what a store may do beyond it.

A store knows keys, versions and documents, nothing of states. Its one promise: **of two writers
who read the same version exactly one succeeds.** Legality, events, throttling and retry exist
once, above it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from celery_statekit.record import Change, Limits, Record, decode_record


class Labels(NamedTuple):
    """What a record may be found by beside its key; a store gives them no meaning."""

    state: str = ""
    client: str = ""


#: Of a record that is found by its key only.
UNLABELLED: Final = Labels()


def kind_of(key: str) -> str:
    """What sort of record ``key`` names: all of it before the id, ``statekit:task``."""
    return key.rpartition(":")[0]


class Found(NamedTuple):
    """One record of a listing, as it is stored."""

    key: str
    #: Since when it has had its state label, in epoch seconds by the store's clock.
    since: float
    text: str | bytes

    def record(self) -> Record:
        """The record.

        Raises:
            CorruptRecord: the bytes are not what was written.
        """
        return decode_record(self.key, self.text)


class Beside(NamedTuple):
    """A value that is not ours, to be written together with a record: both or neither.

    It is also published on a channel named as its key, which is how Celery's Redis backend tells
    those who wait for a result.
    """

    key: str | bytes
    value: str | bytes
    #: Seconds until it expires; None: never.
    ttl: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What the server behind a store says of itself."""

    #: ``Redis``, ``PostgreSQL``.
    product: str
    #: As it writes it; "" where it does not say.
    version: str = ""
    #: Epoch seconds by its clock; None where it does not say.
    time: float | None = None
    #: Its settings and conditions by its own names; what it refuses to tell is missing.
    settings: Mapping[str, str] = field(default_factory=dict)


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
        labels: Labels = UNLABELLED,
    ) -> bool:
        """Write ``record`` and append ``changes`` to its history, both or neither.

        Args:
            record: the version after ``expect``.
            expect: the record as it was read, compared by version and incarnation; None: there
                is none (an expired one counts as none, and its history is gone with it).
            changes: what moved, oldest first; history keeps the newest
                ``limits.history_changes``.
            ttl: seconds until key and history expire, counted by the store from now; None: never.
            labels: what the record is found by from now on, where the store can find any.

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

    def acquire(self, key: str, owner: str, seconds: float, wait: float = 0.0) -> bool:
        """Make ``owner`` the holder for ``seconds`` if nobody else holds it; renews one's own.

        Args:
            key: what to hold; it need not be the key of a record.
            owner: who asks.
            seconds: how long the lease lasts from when it is given, by the store's clock.
            wait: seconds to wait for it. Those who wait get it in the order in which they came;
                one who comes while others wait goes behind them, and one who is dead is passed
                over within a second.
        """
        ...

    def release(self, key: str, owner: str) -> None:
        """Give the lease back; nothing happens where ``owner`` does not hold it."""
        ...


@runtime_checkable
class Renews(Protocol):
    """A store that can say, by its own clock, for how long one who works on a record is alive.

    A record is leased to whoever works on it from the moment when its state label was last set;
    who works for longer renews. The lease of an owner is its own: that of another one neither
    prolongs nor ends it. It gives liveness only; safety stays with the version that ``write``
    compares.
    """

    def renew(self, leases: Collection[tuple[str, str]], seconds: float) -> None:
        """Make each ``(key, owner)`` count as alive for ``seconds`` from now.

        Args:
            leases: as many as there are: they take one trip to the store, or one for each thousand.
                There need not be a record of a key.
            seconds: by the store's clock. The newest renewal counts, also where it ends sooner.
        """
        ...

    def left(self, key: str, owner: str, seconds: float) -> float | None:
        """Seconds for which the lease of ``owner`` on the record ``key`` still lasts; in one trip.

        Args:
            key: of the record.
            owner: who is asked about.
            seconds: how long it lasts at least from when the state label was last set.

        Returns:
            The time until ``seconds`` after the state label was set, or until the newest renewal by
            ``owner`` ends, whichever is later; 0.0 where it has ended. None where there is no such
            record, or it has expired.
        """
        ...


@runtime_checkable
class Enumerates(Protocol):
    """A store that can say which records it holds; none that has expired, and no lease."""

    def find(
        self,
        kind: str,
        *,
        state: str | None = None,
        client: str | None = None,
        older: float = 0.0,
        newest: bool = False,
        after: tuple[float, str] | None = None,
        limit: int = 100,
    ) -> list[Found]:
        """At most ``limit`` records of a kind, by ``(since, key)``, those that stand longest first.

        Args:
            kind: as :func:`kind_of` says of their keys.
            state: only those with this state label; None: any.
            client: only those with this client label; None: any.
            older: only those that have had their state label for at least so many seconds.
            newest: the other way round, those that stand shortest first.
            after: ``(since, key)`` of the last one of the page before.
            limit: none for 0 or less.
        """
        ...

    def count(self, kind: str) -> dict[str, int]:
        """How many records of a kind have each state label; no label of which there are none."""
        ...


@runtime_checkable
class Notifies(Protocol):
    """A store that can say when something was written, so that nobody need ask again and again."""

    def subscribe(self, key: str, wake: Callable[[], None]) -> Callable[[], None]:
        """From the return on, ``wake`` is called soon after each write and deletion of ``key``.

        It is a hint: it may come twice, for nothing, or (where a connection broke) not at all.
        ``wake`` is called in a thread of the store's and must neither wait nor raise. However
        many subscribe, a process has one connection for it.

        Returns:
            What ends the subscription; calling it twice is allowed.
        """
        ...


@runtime_checkable
class Diagnoses(Protocol):
    """A store with a server that can be asked how it is set up."""

    def diagnose(self) -> Diagnosis:
        """What the server says of itself; of Redis its INFO, and what CONFIG tells of ``save``.

        Raises:
            StoreUnavailable: it does not answer. What it refuses to tell is no error.
        """
        ...


@runtime_checkable
class WritesBeside(Protocol):
    """A store that can write one value of Celery's Redis result backend with the record."""

    def reaches(self, parameters: Mapping[str, Any]) -> bool:
        """Whether a Redis connection of these parameters ends in the database of this store."""
        ...

    def write_beside(
        self,
        record: Record,
        beside: Beside,
        *,
        expect: Record | None,
        changes: Sequence[Change] = (),
        ttl: float | None = None,
        labels: Labels = UNLABELLED,
    ) -> bool:
        """As :meth:`Store.write`, and ``beside`` with it: both or neither."""
        ...


class Posted(Protocol):
    """A new record that was sent to a store, whose answer is still to come."""

    def is_written(self, seconds: float) -> bool:
        """Whether the store has taken it; the answer is waited for at most ``seconds``, once.

        Raises:
            StoreError: as of :meth:`Store.write`; AmbiguousWrite where no answer came.
        """
        ...


@runtime_checkable
class Posts(Protocol):
    """A store that need not be waited for while something else is to be done."""

    def post(
        self,
        record: Record,
        *,
        changes: Sequence[Change] = (),
        ttl: float | None = None,
        labels: Labels = UNLABELLED,
    ) -> Posted | None:
        """Send a record that is to be the first of its key, and do not wait.

        None where that cannot be done at once: no connection is open. Then nothing was sent.
        """
        ...
