"""Checks of ``statekit_*`` and of the store they name."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from celery import Celery

from celery_statekit.backends.onewrite import one_write
from celery_statekit.derived import REDIS, backend_url
from celery_statekit.doctor import places
from celery_statekit.doctor.finding import REACH, Finding, line
from celery_statekit.doctor.server import server
from celery_statekit.errors import InvalidSetting, StatekitError, StoreFull, StoreNotConfigured
from celery_statekit.record import Change, Record, task_key
from celery_statekit.settings import Settings, Values, expires_after
from celery_statekit.states import ENDS, WAITING
from celery_statekit.stores.base import (
    Enumerates,
    Labels,
    Leases,
    Notifies,
    Renews,
    Store,
    WritesBeside,
    kind_of,
)

#: Seconds for which a written key lives on if the doctor is killed before removing it.
_KEPT: Final = 60.0
#: Seconds that a notification may take.
_NOTICE: Final = 2.0
#: How Redis, PostgreSQL and MariaDB refuse what is written to a replica.
_READ_ONLY: Final = re.compile(r"read.?only", re.IGNORECASE)
#: What a store may do beyond reading and writing, in words.
_CAPABILITIES: Final[dict[type, str]] = {
    Leases: "leases of clients",
    Renews: "leases of runs",
    Notifies: "notifications",
    Enumerates: "listings",
    WritesBeside: "one write with Celery's result",
}


def settings(app: Celery) -> Iterator[Finding]:
    """Every ``statekit_*`` setting is known, read, and of its type."""
    faults = list(Values.faults(app))
    for fault in faults:
        yield Finding.fault("settings", fault)
    if not faults:
        yield Finding.ok("settings", "every statekit_* setting can be obeyed")


def store(app: Celery) -> Iterator[Finding]:
    """The app has a store, which answers, keeps what is written, and suits the app."""
    if any(Values.faults(app)):
        yield Finding.warning("store", "not examined before the settings are right")
        return
    example = line(app, "statekit_store", "redis://localhost:6379/0")
    try:
        opened = Settings.of(app).store
    except StoreNotConfigured as exc:
        yield Finding.must("store", str(exc), example)
        return
    except InvalidSetting as exc:
        # What is not installed is not mended by another setting.
        installs = exc.allowed.startswith("pip install ")
        yield Finding.must("store", str(exc), exc.allowed if installs else example)
        return
    try:
        opened.read(_probe(app).key)
    except StatekitError as exc:
        yield Finding.must("store", str(exc), f"{REACH}, or {example}")
        return
    yield Finding.ok("store", f"{opened.name} answers")
    yield from places.shared(app, opened)
    trip = _round_trip(opened, _probe(app))
    yield trip
    yield _capabilities(opened)
    if isinstance(opened, Notifies) and not trip.must_change:
        yield _notices(opened, opened.subscribe, _probe(app))
    yield from server(opened)
    try:
        kept = expires_after(app)
    except InvalidSetting:  # its own check says so; Celery can make no backend with it
        return
    if isinstance(opened, Enumerates) and kept and not trip.must_change:
        yield _long_runs(app, opened, kept)
    if isinstance(opened, WritesBeside):
        yield _one_write(app, opened)


def _probe(app: Celery) -> Record:
    """A record that nobody else writes: of a kind of its own, under an id drawn now."""
    key = f"{Settings.of(app).values.prefix}:doctor:{uuid.uuid4().hex}"
    return Record.first(key, {"written by": "celery statekit doctor"})


def _round_trip(store: Store, first: Record) -> Finding:
    """What is written is read again, once each, and gone when deleted."""
    second = first.next(first.document)
    began = time.perf_counter()
    try:
        faults = list(_trip(store, first, second))
    except StatekitError as exc:
        return Finding.must("store.round_trip", str(exc), _advice(store, exc))
    took = (time.perf_counter() - began) * 1000
    if faults:
        change = "see that no other program writes there"
        return Finding.must("store.round_trip", "; ".join(faults), change)
    found = f"written, read, listed in its history and removed again in {took:.0f} ms"
    return Finding.ok("store.round_trip", found)


def _advice(store: Store, exc: StatekitError) -> str:
    if isinstance(exc, StoreFull):
        return "make room: more memory (Redis: maxmemory) or disk for the server"
    # Of a file it says who may write to it, of a server that it is a replica.
    if _READ_ONLY.search(str(exc)) and not store.name.startswith("sqlite"):
        return "the URL of the primary: this server takes no writes"
    return "give its user the right to write"


def _trip(store: Store, first: Record, second: Record) -> Iterator[str]:
    change = Change(number=1, version=1, from_state="", to_state="WELL", at=time.time())
    changes = [change, replace(change, number=2, version=2, from_state="WELL")]
    labels = Labels("WELL")
    try:
        if not store.write(first, expect=None, changes=changes[:1], ttl=_KEPT, labels=labels):
            yield "a key that nobody has was refused"
        if not store.write(second, expect=first, changes=changes[1:], ttl=_KEPT, labels=labels):
            yield "a second version was refused"
        if store.read(first.key) != second:
            yield "what was read is not what was written"
        if store.history(first.key) != changes:
            yield "its history is not what was written"
    finally:
        deleted = store.delete(first.key)
    if not deleted or store.read(first.key) is not None:
        yield "it could not be removed"


def _capabilities(store: Store) -> Finding:
    able = [name for kind, name in _CAPABILITIES.items() if isinstance(store, kind)]
    lacking = [name for name in _CAPABILITIES.values() if name not in able]
    found = f"it has {', '.join(able) or 'none'}"
    return Finding.ok("store.abilities", found + (f"; not {', '.join(lacking)}" if lacking else ""))


def _notices(
    store: Store,
    subscribe: Callable[[str, Callable[[], None]], Callable[[], None]],
    record: Record,
) -> Finding:
    """Who watches is told of a write."""
    told = threading.Event()
    began = time.perf_counter()
    try:
        end = subscribe(record.key, told.set)
        try:
            store.write(record, expect=None, ttl=_KEPT)
            why = "" if told.wait(_NOTICE) else f"none came within {_NOTICE:g} s"
        finally:
            end()
            store.delete(record.key)
    except StatekitError as exc:
        why = str(exc)
    if why:
        found = f"no notification, so that watchers ask again and again: {why}"
        return Finding.warning("store.notices", found, "let the store's user subscribe (Redis ACL)")
    took = (time.perf_counter() - began) * 1000
    return Finding.ok("store.notices", f"a write was told within {took:.0f} ms")


def _one_write(app: Celery, store: Store) -> Finding:
    """Whether a result and its record can differ."""
    found = "a result and its record are two writes; setup(app) makes them one on Redis"
    # Celery's others connect as they are made (database).
    if backend_url(app.conf).startswith(REDIS) and one_write(app.backend, store):
        found = "a result and its record are one write"
    return Finding.ok("store.one_write", found)


def _long_runs(app: Celery, store: Enumerates, kept: float) -> Finding:
    """No run is known that goes on for longer than results are kept."""
    kind = kind_of(task_key("any", prefix=Settings.of(app).values.prefix))
    long = [
        found
        for state in store.count(kind).keys() - ENDS - WAITING
        for found in store.find(kind, state=state, older=kept, limit=1)
    ]
    if not long:
        return Finding.ok("long_runs", f"no run stands in a state for over {kept:g} s")
    oldest = min(long, key=lambda found: found.since)
    return Finding.warning(
        "long_runs",
        f"{oldest.key} has stood in its state for over result_expires ({kept:g} s): its worker "
        "is dead, or the results of its chord are gone before it ends",
        line(app, "result_expires", int(2 * kept)),
    )
