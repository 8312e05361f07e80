"""The one writer of client records.

An update reads the client, calls the function, and writes if nobody else was quicker; else it
does so again. Who comes first where many do is said in :mod:`celery_statekit.contention`.
"""

from __future__ import annotations

import builtins
import inspect
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, Generic, TypeVar

from celery import Celery

from celery_statekit import signals
from celery_statekit.breaker import AWAY
from celery_statekit.client import ClientState
from celery_statekit.contention import Race
from celery_statekit.errors import (
    ClientExists,
    CorruptRecord,
    InvalidClientState,
    InvalidInput,
    InvalidSetting,
    LeaseLost,
    NoSuchClient,
    StoreError,
    WatchTimeout,
)
from celery_statekit.record import Change, Record, check_id, client_key, cut_text
from celery_statekit.settings import Settings, check_prefix, unwrapped
from celery_statekit.settling import write_settled
from celery_statekit.stores.base import Enumerates, Labels, Leases, Store, kind_of
from celery_statekit.watcher import Follow, apace, check_timeout, check_whole, pace

logger = logging.getLogger(__name__)

Client = TypeVar("Client", bound=ClientState)

#: How many names of ``once`` a client keeps; the oldest go first.
ONCE_KEPT: Final = 256
#: Records read at once by ``list``.
PAGE: Final = 500
#: Seconds between two reads of a watched client.
POLL: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """The run that updates a client; empty outside a task."""

    task: str = ""
    task_id: str = ""
    attempt: int = 0
    worker: str = ""


@dataclass(frozen=True, slots=True)
class _Document:
    """A client's record, opened."""

    client: dict[str, Any]
    #: ``[task id, name]`` of the updates named by ``once``, oldest first.
    once: tuple[tuple[str, str], ...] = ()
    #: Token of the ``exclusive`` block that works on it; "" if none does.
    held: str = ""
    changes: int = 0
    extra: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, record: Record) -> _Document:
        document = dict(record.document)
        try:
            client, held = document.pop("client"), document.pop("held", "")
            once, changes = document.pop("once", []), document.pop("changes", 0)
            if (
                not isinstance(client, dict)
                or not isinstance(held, str)
                or not all(isinstance(part, str) for task, name in once for part in (task, name))
                or not all(isinstance(pair, list) for pair in once)
                or type(changes) is not int
                or changes < 0
            ):
                raise TypeError("client, once, held or changes is of another type")
            return cls(
                client=client,
                once=tuple((task, name) for task, name in once),
                held=held,
                changes=changes,
                extra=document,
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise CorruptRecord(record.key, f"not a client's document: {exc!r}") from exc

    def to_dict(self) -> dict[str, Any]:
        document: dict[str, Any] = {**(self.extra or {}), "client": self.client}
        if self.once:
            document["once"] = [list(name) for name in self.once[-ONCE_KEPT:]]
        if self.held:
            document["held"] = self.held
        document["changes"] = self.changes
        return document


class Clients(Generic[Client]):
    """The stored clients of one class, by id.

    Args:
        home: the app, whose store they are kept in; or a store.
        client: their class.
        actor: the run that updates them; a task's ``self.clients(Order)`` gives its own.
        ttl: seconds after its last write that a client is kept; None: until it is deleted.
        prefix: first part of every key; an app's own setting if None.
        deadline: seconds in which an update is applied or refused; the app's setting if None.
        now: the writer's clock in epoch seconds, for what people read.
    """

    def __init__(
        self,
        home: Celery | Store,
        client: type[Client],
        *,
        actor: Actor | None = None,
        ttl: float | None = None,
        prefix: str | None = None,
        deadline: float | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        given: object = client
        if not (isinstance(given, type) and issubclass(given, ClientState)):
            raise InvalidInput("no client class", "client", client, "a ClientState class")
        self.store: Store
        if isinstance(home, Store):
            self.store = home
        else:
            if not isinstance(unwrapped(home), Celery):
                # Not what it is: it may be a URL with a password.
                raise InvalidInput("no home of clients", "home", type(home), "an app or a store")
            settings = Settings.of(home)
            self.store = settings.store
            prefix = settings.values.prefix if prefix is None else prefix
            deadline = deadline or settings.values.update_deadline
        for path, value in (("deadline", deadline), ("ttl", ttl)):
            if value is not None:
                _check_seconds(path, value)
        self.client = client
        self.actor = actor or Actor()
        self.ttl = ttl
        self.prefix = "statekit" if prefix is None else _checked_prefix(prefix)
        self.deadline = deadline or 5.0
        self.now = now

    def key(self, id: str) -> str:
        """The key of the client's record.

        Raises:
            InvalidId: ``id`` may not name a client.
        """
        return client_key(self.client.kind, check_id(id), prefix=self.prefix)

    # --- reading ------------------------------------------------------------------------------

    def get(self, id: str) -> Client:
        """The client as stored now; a copy.

        Raises:
            NoSuchClient: none is stored under ``id``.
            CorruptRecord, StoreUnavailable: it cannot be read.
            InvalidClientState: it is stored, but no such client (a newer version of its class).
        """
        record = self.store.read(self.key(id))
        if record is None:
            raise NoSuchClient(self.client.kind, id)
        return self._open(record)

    def history(self, id: str, after: int = 0, limit: int = 100) -> builtins.list[Change]:
        """The client's moves numbered over ``after``, oldest first."""
        check_whole(after, "after")
        check_whole(limit, "limit")
        return self.store.history(self.key(id), after, limit)

    def list(self, state: Enum | str | None = None, *, limit: int = 1000) -> builtins.list[Client]:
        """The stored clients of this class, at most ``limit``, those that stand longest first.

        Of those that move meanwhile some may be missing, or be as they were before.

        Args:
            state: only those in it; None: in any.
            limit: none for 0 or less.

        Raises:
            StoreError: the store does not know which records it holds.
            CorruptRecord: one of them is not what was written.
        """
        if not isinstance(self.store, Enumerates):
            raise StoreError(self.store.name, "it cannot list its records")
        check_whole(limit, "limit")
        wanted = None if state is None else self.client.flow().name_of(state)
        kind = kind_of(client_key(self.client.kind, "", prefix=self.prefix))
        clients: dict[str, Client] = {}
        after: tuple[float, str] | None = None
        while len(clients) < limit:
            page = self.store.find(kind, state=wanted, after=after, limit=min(limit, PAGE))
            new = [found for found in page if found.key not in clients][: limit - len(clients)]
            # What comes again has moved since the listing began, and so has all that comes behind
            # it: a page of nothing else ends a listing that clients who go on moving would not.
            if not new:
                break
            clients |= {found.key: self._open(found.record()) for found in new}
            after = (page[-1].since, page[-1].key)
        return [*clients.values()]

    def watch(self, id: str, *, timeout: float | None = None) -> Iterator[Client]:
        """The client now, then every newer version; the newest only, for a slow reader.

        Raises:
            WatchTimeout: after ``timeout`` seconds; None: it goes on for ever.
        """
        self.key(id)
        check_timeout(timeout)
        return pace(self._steps(id, timeout), POLL)

    def awatch(self, id: str, *, timeout: float | None = None) -> AsyncIterator[Client]:
        """As :meth:`watch`; reads in a thread, so the event loop is never blocked."""
        self.key(id)
        check_timeout(timeout)
        return apace(self._steps(id, timeout), POLL)

    def _steps(self, id: str, timeout: float | None) -> Iterator[Client | None]:
        follow = Follow(self.store, self.key(id), self._open)
        began = time.monotonic()
        last = "UNKNOWN"
        while True:
            client = follow.news()
            if client is not None:
                last = client.state
                yield client
            if timeout is not None and time.monotonic() - began > timeout:
                raise WatchTimeout(id, timeout, last)
            if client is None:
                yield None

    # --- writing ------------------------------------------------------------------------------

    def create(self, id: str, **fields: Any) -> Client:
        """Store a new client and return it.

        Raises:
            ClientExists: one is stored under ``id``.
            InvalidClientState, PayloadTooLarge: the fields cannot be stored.
        """
        client = self.client(id, **fields)
        document = _Document(client=client.to_dict())
        until = time.monotonic() + self.deadline
        if self._write(client, None, document, until) is None:
            raise ClientExists(self.client.kind, id)
        return client

    def update(
        self,
        id: str,
        change: Callable[[Client], object],
        once: str | None = None,
        *,
        create: bool = False,
    ) -> Client:
        """Apply ``change`` to the client and store it; returns the client as stored.

        ``change`` gets the client and alters it. It may be called several times, each time with
        what is stored by then, so it must do nothing else. If it raises, nothing is stored. Where
        the store hangs this takes until the deadline, and one call of the store.

        Args:
            once: a name for this update: within one task id (across deliveries and retries) it is
                applied once, later calls return the client as it is; outside a task it is applied
                once in all, whoever calls. A client keeps the newest 256 names.
            create: begin a client that is not stored yet.

        Raises:
            NoSuchClient: none is stored under ``id``.
            ContentionTimeout: others kept winning until the deadline; nothing was applied.
            AmbiguousWrite: a reply was lost and what became of it cannot be told; with ``once`` the
                update may be repeated, and is applied once.
            StateRegressed: the store went back to an older version; nothing was applied.
            IllegalTransition, InvalidClientState, PayloadTooLarge: nothing was applied.
        """
        given: object = change
        if not callable(given) or inspect.iscoroutinefunction(given):
            raise InvalidInput("not called", "change", change, "a function that is not async")
        name = None if once is None else (self.actor.task_id, _once_name(once))
        with Race(self.store, self.key(id), self.deadline, self._mark) as race:
            while True:
                record = race.read()
                if record is None and not create:
                    raise NoSuchClient(self.client.kind, id)
                client = self.client(id) if record is None else self._open(record)
                document = _Document(client={}) if record is None else _Document.of(record)
                if name is not None and name in document.once:
                    return client
                change(client)
                self._same_id(client, id)
                once_names = document.once if name is None else (*document.once, name)
                written = self._write(
                    client, record, replace(document, once=once_names, held=""), race.deadline
                )
                if written is not None:
                    race.won(written)
                    return client
                race.lost()

    @contextmanager
    def exclusive(self, id: str, seconds: float = 30.0) -> Iterator[Client]:
        """Work on the client for a while with nobody else writing it; stored at the block's end.

        Updates by others wait. If the block raises, nothing of it is stored. What follows the
        block takes at most a deadline, and one call of the store.

        Args:
            seconds: how long the lease lasts: so long others may have to wait for one who was
                killed. A block that takes longer is still stored, unless somebody wrote after the
                lease's end.

        Raises:
            NoSuchClient: none is stored under ``id``.
            ContentionTimeout: another holds it until the deadline.
            LeaseLost: the lease ended and another wrote; nothing of the block was stored.
            AmbiguousWrite, StateRegressed: as :meth:`update`.
        """
        if not isinstance(self.store, Leases):
            raise StoreError(self.store.name, "it keeps no leases")
        _check_seconds("seconds", seconds)
        with Race(self.store, self.key(id), self.deadline, self._mark) as race:
            race.take_lease(seconds, marks=True)
            marked = race.read()
            if marked is None:
                raise NoSuchClient(self.client.kind, id)
            client, document = self._open(marked), _Document.of(marked)
            try:
                try:
                    yield client
                finally:
                    race.restart()
                self._same_id(client, id)
                written = self._write(client, marked, replace(document, held=""), race.deadline)
            except BaseException as exc:
                if isinstance(exc, AWAY):
                    race.store_failed()
                self._unmark(race, marked, document)
                raise
            if written is None:
                raise LeaseLost(self.key(id), seconds)

    def delete(self, id: str) -> bool:
        """Remove the client and its history; False where there was none."""
        deleted = self.store.delete(self.key(id))
        if deleted:
            self._tell(id, 0, "", ())
        return deleted

    def _open(self, record: Record) -> Client:
        return self.client.from_dict(_Document.of(record).client)

    def _mark(self, record: Record, held: str, until: float) -> Record | None:
        """Have everybody who reads the record wait for the lease of ``held``."""
        marked = record.next(replace(_Document.of(record), held=held).to_dict())
        written = self._settled_write(marked, record, (), self._open(record), until)
        return marked if written else None

    def _unmark(self, race: Race, marked: Record, document: _Document) -> None:
        """Take the mark back, unless the store is away: it ends with its lease."""
        if race.is_hopeless:
            return
        free = marked.next(replace(document, held="").to_dict())
        try:
            self._settled_write(free, marked, (), self._open(free), race.deadline)
        except StoreError as exc:
            race.store_failed()
            logger.warning("a mark was not taken back, it ends with its lease: %s", exc)
            logger.debug("a mark was not taken back", exc_info=True)

    def _same_id(self, client: Client, id: str) -> None:
        if client.client_id != id:
            raise InvalidClientState("another client's id", "$.client_id", client.client_id, id)

    def _write(
        self, client: Client, expect: Record | None, document: _Document, until: float
    ) -> Record | None:
        """Write ``client``; None where another was quicker."""
        version = 1 if expect is None else expect.version + 1
        changes = self._changes(client, document.changes, version)
        document = replace(
            document, client=client.to_dict(), changes=document.changes + len(changes)
        )
        body = document.to_dict()
        key = self.key(client.client_id)
        record = Record.first(key, body) if expect is None else expect.next(body)
        if not self._settled_write(record, expect, changes, client, until):
            return None
        self._tell(client.client_id, record.version, client.state, changes)
        return record

    def _settled_write(
        self,
        record: Record,
        expect: Record | None,
        changes: tuple[Change, ...],
        client: Client,
        until: float,
    ) -> bool:
        return write_settled(
            self.store,
            record,
            expect=expect,
            changes=changes,
            ttl=self.ttl,
            labels=Labels(client.state, client.client_id),
            until=until,
        )

    def _changes(self, client: Client, before: int, version: int) -> tuple[Change, ...]:
        at = self.now()
        return tuple(
            Change(
                number=number,
                version=version,
                from_state=move.from_state,
                to_state=move.to_state,
                at=at,
                reason=cut_text(move.reason, self.store.limits.message_bytes),
                task=self.actor.task,
                task_id=self.actor.task_id,
                client_id=client.client_id,
                attempt=self.actor.attempt,
                worker=self.actor.worker,
            )
            for number, move in enumerate(client.moves, before + 1)
        )

    def _tell(self, id: str, version: int, state: str, changes: tuple[Change, ...]) -> None:
        kind = self.client.kind
        changed = signals.ClientChanged(
            kind=kind, id=id, version=version, state=state, changes=changes
        )
        signals.client_changed.send(sender=kind, changed=changed)


def _check_seconds(path: str, value: object) -> None:
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0
    if not 0 < number <= sys.float_info.max:
        raise InvalidInput("no duration", path, value, "seconds, a finite number over 0")


def _checked_prefix(prefix: object) -> str:
    try:
        return check_prefix("prefix", prefix)
    except InvalidSetting as exc:
        raise InvalidInput(exc.what, exc.path, exc.got, exc.allowed) from exc


def _once_name(once: object) -> str:
    if not isinstance(once, str) or not once.isprintable() or not 0 < len(once) <= 100:
        raise InvalidInput("no name", "once", once, "a printable str of 1 to 100 characters")
    return once
