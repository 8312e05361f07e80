"""``statekit_*`` from ``app.conf``, and what an app has because of them: its store, its tracker.

Settings are read with ``.get`` and never registered with ``add_defaults``, which in Celery 5.7.0
beats a Django user's own value.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from celery import Celery

from celery_statekit.derived import derive_store
from celery_statekit.errors import InvalidSetting, StoreNotConfigured
from celery_statekit.plain import shown
from celery_statekit.record import Change, Limits, TaskState
from celery_statekit.states import ENDS, RESERVED
from celery_statekit.stores import open_store
from celery_statekit.stores.base import Store
from celery_statekit.tracker import Tracker

if TYPE_CHECKING:
    from celery_statekit.watcher import Watcher

PREFIX: Final = "statekit_"
_LIMITS: Final = Limits()
#: In seconds.
DAY: Final = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """The settings of an app, each named ``statekit_`` and the field's name."""

    #: URL of the store; ``auto`` derives it from result backend and broker.
    store: str = "auto"
    #: Seconds that one call of the store may take; a day at most.
    store_timeout: float = 5.0
    #: First part of every key: separates apps that share a store.
    prefix: str = "statekit"
    #: Seconds between two writes of one run's progress, at least.
    progress_interval: float = 0.25
    #: Bytes that a record may have.
    record_bytes: int = _LIMITS.record_bytes
    #: Bytes that a message or reason may have; a longer one is cut.
    message_bytes: int = _LIMITS.message_bytes
    #: Changes kept in the history of one key.
    history: int = _LIMITS.history_changes
    #: Refuse ``update_state`` with SUCCESS or FAILURE inside a task.
    strict: bool = False
    #: State under which declared states are mirrored to Celery's backend; None: their own name.
    status: str | None = None
    #: Seconds in which a client's update is applied or refused.
    update_deadline: float = 5.0
    #: Seconds for which a run counts as alive unless its lease is renewed.
    lease: float = 30.0
    #: Seconds between two renewals; at most a third of the lease.
    lease_renewal: float = 10.0
    #: Seconds for which a task is LOST before it becomes FAILURE, where its message does not come
    #: again; by then a run that only seemed lost may go on.
    lost_grace: float = 30.0

    @property
    def renewal(self) -> float:
        """Seconds between two renewals of a lease, so that one may fail."""
        return min(self.lease_renewal, self.lease / 3)

    @classmethod
    def of(cls, app: Celery) -> Values:
        """Read them.

        Raises:
            InvalidSetting: one is unknown, of the wrong type or out of range.
        """
        for fault in cls.faults(app):
            raise fault
        read = {field.name: app.conf.get(PREFIX + field.name) for field in fields(cls)}
        return cls(
            **{
                name: _RULES[name](PREFIX + name, value)
                for name, value in read.items()
                if value is not None
            }
        )

    @classmethod
    def faults(cls, app: Celery) -> Iterator[InvalidSetting]:
        """Every one of them that cannot be obeyed."""
        names = [field.name for field in fields(cls)]
        spaces = {"", "celery_", f"{app.namespace or ''}_".lower()}
        for key in app.conf:
            space, found, name = str(key).lower().partition(PREFIX)
            if not found or space not in spaces:
                continue
            if name not in names:
                yield _unknown(str(key), name, names)
            elif app.conf.get(PREFIX + name, ...) is ...:
                # Celery looks for lower case, or behind its own namespace (app/base.py:536).
                allowed = f"{app.namespace}_{PREFIX}{name}".upper() if app.namespace else ""
                allowed = f"{PREFIX}{name}" + (f", or {allowed}" if allowed else "")
                yield InvalidSetting("setting that Celery does not read", str(key), key, allowed)
        for name in names:
            value = app.conf.get(PREFIX + name)
            try:
                _ = value is None or _RULES[name](PREFIX + name, value)
            except InvalidSetting as exc:
                yield exc


def _unknown(key: str, name: str, names: list[str]) -> InvalidSetting:
    import difflib  # noqa: PLC0415 - for the message only

    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
    allowed = ", ".join(PREFIX + known for known in names)
    return InvalidSetting(f"unknown setting{hint}", PREFIX + name, key, allowed)


def check_seconds(path: str, value: object) -> float:
    """Return ``value`` if it is a duration in seconds.

    Raises:
        InvalidSetting: it is no finite number over 0.
    """
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0
    if not 0 < number <= sys.float_info.max:
        raise InvalidSetting("no duration", path, value, "seconds, a finite number over 0")
    return float(number)


def _timeout(path: str, value: object) -> float:
    seconds = check_seconds(path, value)
    if seconds > DAY:
        raise InvalidSetting("timeout too long", path, value, "seconds, over 0 and at most a day")
    return seconds


def _amount(path: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidSetting("no amount", path, value, "a whole number over 0")
    return value


def _flag(path: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidSetting("no flag", path, value, "True or False")
    return value


def _name(path: str, value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= 50:
        raise InvalidSetting("no name", path, value, "a printable str of 1 to 50 characters")
    return value


def check_prefix(path: str, value: object) -> str:
    """Return ``value`` if it may be the first part of keys.

    Raises:
        InvalidSetting: it is no name; or it holds the separator, so that it could forge keys.
    """
    name = _name(path, value)
    if ":" in name:
        raise InvalidSetting("prefix with a separator", path, value, 'a name without ":"')
    return name


def _status(path: str, value: object) -> str:
    name = _name(path, value)
    if name in RESERVED - {"PROGRESS"}:
        # Celery would take it for an end, or for an exception that it cannot read.
        raise InvalidSetting("a status with a meaning", path, value, "PROGRESS, or a name of yours")
    return name


def _url(path: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidSetting("no store", path, shown(value), '"auto" or a URL')
    return value


_RULES: Final[dict[str, Callable[[str, object], Any]]] = {
    "store": _url,
    "store_timeout": _timeout,
    "prefix": check_prefix,
    "progress_interval": check_seconds,
    "record_bytes": _amount,
    "message_bytes": _amount,
    "history": _amount,
    "strict": _flag,
    "status": _status,
    "update_deadline": check_seconds,
    "lease": _timeout,
    "lease_renewal": _timeout,
    "lost_grace": _timeout,
}


class Settings:
    """What one app has: its values, its store, its tracker and its watcher; made when first used."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    @classmethod
    def of(cls, app: Celery) -> Settings:
        """The settings of ``app``, always the same."""
        app = unwrapped(app)
        # On the app itself: kept elsewhere, it would keep the app alive.
        found: Settings | None = vars(app).get("_statekit")
        return vars(app).setdefault("_statekit", cls(app)) if found is None else found

    @cached_property
    def values(self) -> Values:
        """The app's ``statekit_*`` values.

        Raises:
            InvalidSetting: one cannot be obeyed.
        """
        return Values.of(self._app)

    @cached_property
    def store(self) -> Store:
        """The app's store.

        Raises:
            StoreNotConfigured: ``auto`` finds none; it says what to set.
            InvalidSetting: ``statekit_store`` is no URL of a store.
        """
        values = self.values
        limits = Limits(
            record_bytes=values.record_bytes,
            message_bytes=values.message_bytes,
            history_changes=values.history,
        )
        if values.store == "auto":
            return derive_store(self._app, limits, values.store_timeout)
        return open_store(values.store, limits=limits, timeout=values.store_timeout)

    @cached_property
    def tracker(self) -> Tracker:
        """The one writer of the app's task records."""
        return Tracker(
            self.store,
            prefix=self.values.prefix,
            expires=expires_after(self._app),
            observe=self._observe,
            lease=self.values.lease,
            renewal=self.values.renewal,
        )

    @cached_property
    def watcher(self) -> Watcher:
        """The one reader that waits."""
        return self._watcher(self.store)

    def tracker_of(self, *, eager: bool) -> Tracker:
        """The tracker; of an eager run in an app without a store, one in this process's memory."""
        try:
            return self.tracker
        except StoreNotConfigured:
            if eager:
                return self._eager_tracker
            raise

    def watcher_of(self, *, eager: bool) -> Watcher:
        """The watcher of what :meth:`tracker_of` writes."""
        return self._watcher(self.tracker_of(eager=eager).store) if eager else self.watcher

    @cached_property
    def _eager_tracker(self) -> Tracker:
        store = open_store(f"memory://eager-{id(self)}")
        values = self.values
        return Tracker(
            store,
            prefix=values.prefix,
            observe=self._observe,
            lease=values.lease,
            renewal=values.renewal,
        )

    def _watcher(self, store: Store) -> Watcher:
        from celery_statekit.watcher import Watcher  # noqa: PLC0415 - workers watch nothing

        return Watcher(store, prefix=self.values.prefix, ask=self._ask)

    def _observe(self, change: Change) -> None:
        task = self._app.tasks.get(change.task)
        hook = getattr(task, "on_state_change", None)
        if hook is not None:
            hook(change)

    def _ask(self, id: str) -> TaskState:
        return celery_state(self._app, id)


def expires_after(app: Celery) -> float | None:
    """Seconds for which Celery keeps results; None: for ever.

    Raises:
        InvalidSetting: ``result_expires`` is no duration.
    """
    given = app.conf.result_expires
    try:
        seconds = given.total_seconds() if isinstance(given, timedelta) else float(given or 0)
    except (TypeError, ValueError, OverflowError):
        seconds = -1.0
    if not 0 <= seconds <= sys.float_info.max:
        allowed = "seconds, a timedelta, or None for ever"
        raise InvalidSetting("no duration", "result_expires", given, allowed)
    return seconds or None


def unwrapped(app: Celery) -> Celery:
    """The app itself, where Celery has bound a task to its ``current_app`` proxy."""
    real = getattr(app, "_get_current_object", None)
    return app if real is None else real()


def celery_state(app: Celery, id: str) -> TaskState:
    """What Celery's result backend says of ``id``; unknown where it says PENDING or nothing.

    Celery says PENDING of every id that it does not know.
    """
    from celery.backends.base import DisabledBackend  # noqa: PLC0415 - a publisher needs none

    backend = app.backend
    if isinstance(backend, DisabledBackend):
        return TaskState(id=id)
    meta = backend.get_task_meta(id)
    status = meta.get("status") or "PENDING"
    if status == "PENDING":
        return TaskState(id=id)
    result = meta.get("result")
    error = None
    if isinstance(result, BaseException):
        error = {"type": type(result).__name__, "message": str(result)}
    return TaskState(
        id=id,
        task=meta.get("name") or "",
        state=status,
        error=error,
        final=status in ENDS,
        source="celery",
    )
