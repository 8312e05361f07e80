"""Checks of the server behind a store: its clock, and what a Redis forgets, when, and why."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Final

from celery_statekit.doctor.finding import Finding
from celery_statekit.stores.base import Diagnoses, Diagnosis, Store

#: Seconds by which two clocks may differ.
_CLOCKS: Final = 1.0
_OLDEST: Final = {"Redis": (6, 2), "PostgreSQL": (12,), "MariaDB": (10, 6), "MySQL": (8, 0)}
#: Part of its memory over which a server is nearly full.
_NEARLY_FULL: Final = 0.9
_UNREAD: Final = "could not be read: the server refuses INFO or CONFIG (managed Redis does)"


def server(store: Store) -> Iterator[Finding]:
    """Version, clock, and of a Redis persistence, memory and replicas."""
    if not isinstance(store, Diagnoses):
        yield Finding.ok("clock", "the store goes by this host's clock")
        return
    before = time.time()
    server = store.diagnose()
    yield from _clock(server, before, time.time())
    yield _version(server)
    if server.product == "Redis":
        yield _persistence(server)
        yield _eviction(server)
        yield from _memory(server)
        yield from _replicas(server)


def _clock(server: Diagnosis, before: float, after: float) -> Iterator[Finding]:
    if server.time is None:
        return
    # The server looked at its clock some time between.
    apart = max(server.time - after, before - server.time, 0.0)
    found = f"{server.product}'s clock and this host's differ by {apart:.1f} s"
    if apart > _CLOCKS:
        found += ": leases go by the server's, due times and histories by the workers'"
        yield Finding.warning("clock", found, "run NTP (chrony, systemd-timesyncd) on both")
    else:
        yield Finding.ok("clock", found)


def _version(server: Diagnosis) -> Finding:
    version = tuple(int(part) for part in re.findall(r"\d+", server.version)[:2])
    oldest = _OLDEST.get(server.product, ())
    needed = f"{server.product} {'.'.join(map(str, oldest))} or newer"
    if not version and oldest:
        return Finding.warning("server", f"its version {_UNREAD}", f"see that it is {needed}")
    found = f"{server.product} {server.version}".strip()
    if version < oldest:
        return Finding.must("server", found, needed)
    return Finding.ok("server", found)


def _persistence(server: Diagnosis) -> Finding:
    name, told = "redis.persistence", server.settings
    change = "redis.conf: appendonly yes"
    aof, save = told.get("aof_enabled"), told.get("save")
    if aof == "1":
        return Finding.ok(name, "append-only file: a crash of its host loses about a second")
    if save:
        found = f"snapshots only (save {save}): a crash loses all that came after the last one"
        return Finding.warning(name, found, change)
    if aof is None or save is None:
        off = "the append-only file is off; snapshots " if aof else ""
        return Finding.warning(name, f"{off}{_UNREAD}", f"see that it has {change[12:]}")
    if told.get("connected_slaves", "0") != "0":
        found = "nothing is kept on disk: when primary and replicas restart, every state is lost"
        return Finding.warning(name, found, change)
    return Finding.must(name, "nothing is kept on disk: a restart loses every state", change)


def _eviction(server: Diagnosis) -> Finding:
    name = "redis.eviction"
    policy = server.settings.get("maxmemory_policy")
    change = "redis.conf: maxmemory-policy noeviction"
    if not policy:
        return Finding.warning(
            name, f"maxmemory-policy {_UNREAD}", f"see that it has {change[12:]}"
        )
    found = f"maxmemory-policy {policy}"
    if policy == "noeviction":
        return Finding.ok(name, f"{found}: a full server refuses writes and forgets nothing")
    if policy.startswith("volatile-"):
        found += ": a full server forgets what expires, so ended and queued tasks become unknown"
        return Finding.warning(name, f"{found}; live runs and clients stay", change)
    found += ": a full server forgets any state, of live runs and of clients too"
    return Finding.must(name, found, change)


def _memory(server: Diagnosis) -> Iterator[Finding]:
    limit, used = (_number(server, each) for each in ("maxmemory", "used_memory"))
    if limit is None or used is None:
        return
    found = f"{used / 2**20:.0f} MB used of {f'{limit / 2**20:.0f} MB' if limit else 'any'}"
    if limit and used > _NEARLY_FULL * limit:
        yield Finding.warning("redis.memory", found, "redis.conf: a higher maxmemory")
    else:
        yield Finding.ok("redis.memory", found)


def _replicas(server: Diagnosis) -> Iterator[Finding]:
    role, replicas = server.settings.get("role"), _number(server, "connected_slaves")
    if role == "slave":
        found = "this is a replica: it takes no writes, and its states come late"
        yield Finding.must("redis.replicas", found, "the URL of the primary, or sentinel://")
    elif replicas:
        found = f"{replicas:.0f} replica(s), written to later: a failover may lose the last writes"
        yield Finding.ok("redis.replicas", f"{found} (StateRegressed says so)")


def _number(server: Diagnosis, name: str) -> float | None:
    try:
        return float(server.settings[name])
    except (KeyError, ValueError):
        return None
