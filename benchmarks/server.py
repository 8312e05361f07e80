"""The Redis that both sides are measured on: a database of its own, empty before and after."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from benchmarks.comparison import Missing

#: Nothing else may use this database while it is measured.
URL: Final = os.environ.get("BENCHMARK_REDIS", "redis://127.0.0.1:6379/13")


def connect(url: str = URL) -> Any:
    """redis-py's client of the database, as it comes.

    Raises:
        Missing: redis-py is not installed.
    """
    try:
        import redis  # noqa: PLC0415 - only an extra installs it
    except ImportError as exc:
        raise Missing(str(exc)) from exc
    return redis.Redis.from_url(url, socket_connect_timeout=1.0)


@contextmanager
def empty_database() -> Iterator[str]:
    """The URL of the database; what was written there is gone afterwards.

    Raises:
        Missing: no Redis answers, or the database is in use.
    """
    client = connect()
    try:
        keys = client.dbsize()
    except Exception as exc:
        raise Missing(f"no Redis answers at {URL}: {exc}") from exc
    if keys:
        raise Missing(f"{URL} is in use: it has {keys} keys")
    try:
        yield URL
    finally:
        client.flushdb()
        client.close()
