"""Whether all who need a store can reach it: in one process, on one host, over the network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from celery import Celery

from celery_statekit.derived import broker_url
from celery_statekit.doctor.finding import Finding, line
from celery_statekit.stores.base import Store

#: What Linux has mounted where.
MOUNTS: Final = Path("/proc/mounts")
#: Types of file systems that hosts share, or that cannot share memory.
_NETWORK: Final = re.compile(
    r"9p|afs|beegfs|ceph|cifs|fuse\.(ceph|glusterfs|s3fs|sshfs)|glusterfs|gpfs|lustre|ncpfs|nfs4?"
    r"|ocfs2|smb[23]|smbfs|virtiofs"
)
_LOCAL_BROKERS: Final = ("memory", "filesystem", "sqla", "sqlalchemy")
_HERE: Final = ("localhost", "127.0.0.1", "::1", None)


def shared(app: Celery, store: Store) -> Iterator[Finding]:
    """Nobody who needs the store is out of its reach."""
    scheme, _, place = store.name.partition("://")
    broker = broker_url(app.conf)
    instead = line(app, "statekit_store", "redis://localhost:6379/0")
    if scheme == "memory":
        if broker.startswith("memory:") or (app.conf.task_always_eager and not broker):
            yield Finding.ok("store.reach", "this process alone, as the broker")
        else:
            found = "memory:// is seen by one process alone: workers and callers see no states"
            yield Finding.must("store.reach", found, instead)
    elif scheme == "sqlite":
        yield from _file(Path(place.removeprefix("/")).resolve(), broker, instead)
    else:
        yield Finding.ok("store.reach", "every host that reaches the server")


def _file(path: Path, broker: str, instead: str) -> Iterator[Finding]:
    system = file_system(path)
    if _NETWORK.fullmatch(system):
        found = f"{path} is on a file system of type {system}: SQLite's WAL needs a local one"
        yield Finding.warning("store.reach", found, f"a path on a local disk, or {instead}")
    elif _one_host(broker):
        yield Finding.ok("store.reach", "all processes of this host")
    else:
        found = f"{path} is this host's own: workers on another host would keep other states"
        yield Finding.warning("store.reach", found, f"one host only, or {instead}")


def _one_host(broker: str) -> bool:
    if broker.startswith(_LOCAL_BROKERS):
        return True
    try:
        return urlsplit(broker).hostname in _HERE
    except ValueError:
        return False


def file_system(path: Path) -> str:
    """Type of the file system that ``path`` is on; "" where the system does not say."""
    try:
        mounts = MOUNTS.read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    types = {}
    for mount in mounts:
        _, folder, kind, *_ = mount.split(" ")
        types[Path(folder.replace("\\040", " "))] = kind
    return next((types[each] for each in (path, *path.parents) if each in types), "")
