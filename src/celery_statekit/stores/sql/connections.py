"""The connections to a SQL server: whose they are, how long they live, and what a fork does."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from select import POLLIN, poll
from typing import Any, ClassVar, Final
from weakref import WeakSet

from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import PoolProxiedConnection

from celery_statekit.errors import InvalidSetting, StoreUnavailable

#: Options of an engine that a store does not leave to others: how its transactions begin and end,
#: what its errors show, and how its connections are opened and found alive.
OWN_OPTIONS: Final = frozenset(
    {
        "creator",
        "hide_parameters",
        "isolation_level",
        "module",
        "pool",
        "pool_pre_ping",
        "pool_reset_on_return",
    }
)


class Connections(ABC):
    """The connections of an engine of ours or of the user's.

    Args:
        engine: an engine, which stays the user's, or the URL for one of ours.
        timeout: seconds in which the pool must have a connection.
        options: what ``create_engine`` is told for an engine of ours, as far as the store does not
            depend on it.

    Raises:
        InvalidSetting: it is no such engine or URL, ``timeout`` is no positive number, or
            SQLAlchemy knows no such option.
    """

    #: Names of the dialect, the first as it is shown.
    dialects: ClassVar[tuple[str, ...]]
    #: What SQLAlchemy calls the dialect, and the driver that is used.
    dialect: ClassVar[str]
    driver: ClassVar[str]
    #: The extra that installs the driver.
    extra: ClassVar[str]

    def __init__(
        self, engine: Engine | URL | str, timeout: float, options: Mapping[str, Any]
    ) -> None:
        self.timeout = _seconds(timeout)
        self.own = not isinstance(engine, Engine)
        self._engine: Engine | None = engine if isinstance(engine, Engine) else None
        url = engine.url if isinstance(engine, Engine) else _url(engine)
        self.name = _shown(url)
        self._url = self._checked(url)
        self._lock = threading.Lock()
        self._closed = False
        #: Called in a child of a fork.
        self.forked: Callable[[], None] = lambda: None
        self._given = {name: options[name] for name in options if name not in OWN_OPTIONS}
        if self.own and self._given:
            self._engine = self._made()  # so that they are refused now, if at all
        _all.add(self)

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """What ``create_engine`` is told for an engine of ours."""

    @abstractmethod
    def prepare(self, engine: Engine) -> None:
        """See to it that an engine of ours has connections of READ COMMITTED and time limits."""

    @abstractmethod
    def socket(self, connection: Any) -> int:
        """The file number of a driver connection's socket."""

    @property
    @abstractmethod
    def errors(self) -> type[Exception]:
        """The root of the driver's errors."""

    def connect(self) -> PoolProxiedConnection:
        """A connection that the server has not closed."""
        engine = self.engine()
        while True:
            connection = engine.raw_connection()
            if self._alive(connection, engine):
                return connection
            connection.invalidate()

    def _alive(self, connection: PoolProxiedConnection, engine: Engine) -> bool:
        """Whether the server has not closed it: else each first write after a restart is in doubt.

        A connection that idles has nothing to read; one that was closed does. This costs no trip.
        """
        driver = connection.driver_connection
        asked = poll()
        try:
            asked.register(self.socket(driver), POLLIN)
            if not asked.poll(0):
                return True
            return bool(engine.dialect.do_ping(driver))  # type: ignore[arg-type]
        except (self.errors, OSError, ValueError, AttributeError):
            return False

    def engine(self) -> Engine:
        """The engine; one of ours is made when it is first needed, anew in each process."""
        if self._closed:
            raise StoreUnavailable(self.name, "it is closed")
        engine = self._engine
        if engine is None:
            with self._lock:
                engine = self._engine = self._engine or self._made()
        return engine

    def close(self) -> None:
        """Close the connections of our engine; those of calls under way close when these end."""
        self._closed = True
        if self.own and self._engine is not None:
            self._engine.dispose()

    def after_fork(self) -> None:
        """Leave the connections to the parent process; this one opens its own."""
        self._lock = threading.Lock()
        self.forked()
        if self._engine is None:
            return
        # Kept, for a connection that is collected may close the parent's.
        _graveyard.append(self._engine.pool)
        if self.own:
            self._engine = None
        else:
            self._engine.dispose(close=False)

    def _made(self) -> Engine:
        own = self.options()
        options = {"pool_timeout": self.timeout, "pool_use_lifo": True, **self._given, **own}
        if "poolclass" in self._given:  # which may know neither
            del options["pool_timeout"], options["pool_use_lifo"]
        options["connect_args"] = {**self._given.get("connect_args", {}), **own["connect_args"]}
        try:
            engine = create_engine(
                self._url,
                pool_reset_on_return=None,  # no call leaves a transaction behind
                hide_parameters=True,
                **options,
            )
        except (TypeError, ArgumentError) as exc:
            raise InvalidSetting(
                f"SQLAlchemy refuses an option of the engine ({exc})",
                "database_engine_options",
                sorted(self._given),
                "options of create_engine",
            ) from exc
        self.prepare(engine)
        return engine

    def _checked(self, url: URL) -> URL:
        named, _, driver = url.drivername.lower().partition("+")
        if named not in self.dialects:
            allowed = " or ".join(self.dialects)
            raise InvalidSetting("no URL of this store", "statekit_store", self.name, allowed)
        if not self.own:
            if driver != self.driver:
                raise InvalidSetting(
                    "no engine of this store", "engine", url.drivername, f"driver {self.driver}"
                )
            return url
        try:
            __import__(self.driver)
        except ImportError as exc:
            raise InvalidSetting(
                f"its driver is not installed ({exc})",
                "statekit_store",
                self.name,
                f"pip install celery-statekit[{self.extra}]",
            ) from None
        return url.set(drivername=f"{self.dialect}+{self.driver}")


def _url(url: URL | str) -> URL:
    try:
        return make_url(url.removeprefix("db+") if isinstance(url, str) else url)
    except (ArgumentError, ValueError):
        # Neither shown nor chained, not even as the context: its text may hold a password.
        pass
    raise InvalidSetting(
        "no URL of a database", "statekit_store", "***", "dialect://user:password@host/database"
    )


def _shown(url: URL) -> str:
    host = f"[{url.host}]" if ":" in (url.host or "") else url.host or ""
    host = f"{host}:{url.port}" if url.port else host
    return f"{url.drivername.partition('+')[0]}://{host}/{url.database or ''}"


def _seconds(timeout: object) -> float:
    rule = "a number of seconds, over 0 and at most a day"
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise InvalidSetting("timeout is no number", "timeout", timeout, rule)
    if not 0 < timeout <= 24 * 60 * 60:
        raise InvalidSetting("timeout is out of range", "timeout", timeout, rule)
    return timeout


_all: Final[WeakSet[Connections]] = WeakSet()
#: Pools of a parent process.
_graveyard: Final[list[Any]] = []


def _after_fork() -> None:
    for connections in list(_all):
        connections.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
