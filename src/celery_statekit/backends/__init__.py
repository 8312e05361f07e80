"""Celery's result backend as this library uses it: guarded, and one with our record on Redis.

:class:`GuardedBackend` is how a stateful task sees whatever backend its app has.
:class:`RedisBackend` and :class:`SentinelBackend` are Celery's own, but an end stands once it is
stored, of any task of the app, and a result is written together with the task's record.
``setup(app)`` puts them in place; without it they are named in the setting: ``result_backend =
"celery_statekit.backends:RedisBackend+redis://localhost/0"``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from celery_statekit.backends.guard import GuardedBackend

if TYPE_CHECKING:
    from celery_statekit.backends.redis import RedisBackend, SentinelBackend

__all__ = [
    "ONE_WRITE",
    "GuardedBackend",
    "RedisBackend",
    "SentinelBackend",
]

#: Instead of which of Celery's backends, by the scheme of its URL, ours are taken.
ONE_WRITE: Final = {
    "redis": f"{__name__}:RedisBackend",
    "rediss": f"{__name__}:RedisBackend",
    "sentinel": f"{__name__}:SentinelBackend",
}


def __getattr__(name: str) -> Any:
    # Loaded only where an app has one: they need the extra "redis".
    if name in ("RedisBackend", "SentinelBackend"):
        from celery_statekit.backends import redis  # noqa: PLC0415

        return getattr(redis, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
