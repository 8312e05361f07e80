"""Stores: where records are kept. :func:`open_store` makes one from a URL."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import urlsplit

from celery_statekit.errors import InvalidSetting
from celery_statekit.plain import shown
from celery_statekit.record import Limits
from celery_statekit.stores.base import Enumerates, Leases, Notifies, Renews, Store

if TYPE_CHECKING:
    from celery_statekit.stores.memory import MemoryStore
    from celery_statekit.stores.redis import RedisStore
    from celery_statekit.stores.sql.mysql import MySQLStore
    from celery_statekit.stores.sql.postgresql import PostgreSQLStore
    from celery_statekit.stores.sql.tables import schema_sql
    from celery_statekit.stores.sqlite import SQLiteStore

__all__ = [
    "Enumerates",
    "Leases",
    "MemoryStore",
    "MySQLStore",
    "Notifies",
    "PostgreSQLStore",
    "RedisStore",
    "Renews",
    "SQLiteStore",
    "Store",
    "open_store",
    "schema_sql",
    "without_password",
]

#: Entry point group of stores of other distributions: a scheme names a
#: ``factory(url, *, limits, timeout) -> Store``.
ENTRY_POINTS: Final = "celery_statekit.stores"

_Factory: TypeAlias = Callable[[str, Limits, float], Store]


def open_store(url: str, *, limits: Limits | None = None, timeout: float = 5.0) -> Store:
    """The store at ``url``; nothing is connected to before the first call.

    ==========================================  ===============================================
    ``memory://name``                           this process only; the same name, the same store
    ``sqlite:///relative.db``                   a file, from the working directory; all processes
                                                of one host
    ``sqlite:////abs/path.db``                  a file, by its absolute path
    ``redis://host:port/db``                    a database of Redis; ``rediss://`` by TLS
    ``redis+socket:///path?virtual_host=db``    the same by a Unix socket
    ``sentinel://host:port/db;sentinel://...``  the same by Sentinels; ``?master_name=...``
    ``postgresql://host/database``              PostgreSQL
    ``mysql://host/database``                   MySQL or MariaDB, also as ``mariadb://``
    ==========================================  ===============================================

    What follows ``sqlite:///`` is the path as it is: nothing in it is decoded. Any other scheme
    is asked of the entry points ``celery_statekit.stores`` of the installed distributions.

    Args:
        url: of the store.
        limits: sizes that writes are held to; None: the defaults.
        timeout: seconds that one call may take before StoreUnavailable.

    Raises:
        InvalidSetting: ``url`` names no store; a password in it is not shown.
    """
    scheme, separator, _ = _text(url).partition("://")
    if not separator:
        raise _invalid("no URL of a store", url)
    scheme = scheme.lower()
    # What stands behind a plus names the driver of a database, which is for the store to choose;
    # before all, "db+" says Celery that a result backend is a database.
    dialect = scheme.removeprefix("db+").partition("+")[0]
    factory = _SCHEMES.get(scheme) or _installed(scheme)
    if factory is None and _SCHEMES.get(dialect) in (_postgresql, _mysql):
        factory = _SCHEMES[dialect]
    if factory is None:
        raise _invalid("no store of this release has the scheme", url)
    return factory(url, limits or Limits(), timeout)


def without_password(url: str) -> str:
    """``url`` as it may be shown: ``***`` for user and password, and for what its query says.

    Of that only the number of a database is shown: no list holds all the names that secrets have.
    """
    head, at, tail = url.rpartition("@")
    if at:
        scheme, separator, _ = head.partition("://")
        url = f"{scheme}://***@{tail}" if separator else f"***@{tail}"
    # What stands for a port and is no number may be a password without its host.
    url = re.sub(r"(://[^/?#]*:)(?!\d+(?:[/?#]|$))[^/?#]+", r"\1***", url)
    url = re.sub(r"#.*", "#***", url, flags=re.DOTALL)
    return re.sub(r"(?<![^?&;])(?!db=\d+(?:[&;#]|$))([^?&;#=]*=)[^&;#]*", r"\1***", url)


def _text(url: object) -> str:
    if not isinstance(url, str) or not url.isprintable():
        raise _invalid("no URL of a store", url)
    return url


def _invalid(what: str, url: object) -> InvalidSetting:
    got = without_password(url) if isinstance(url, str) else shown(url)
    others = [f"{point.name}://" for point in entry_points(group=ENTRY_POINTS)]
    allowed = ", ".join(
        (
            "memory://name",
            "sqlite:///relative.db",
            "sqlite:////abs/path.db",
            "redis://host:port/db",
            "postgresql://host/database",
            "mysql://host/database",
            *sorted(others),
        )
    )
    return InvalidSetting(what, "statekit_store", got, allowed)


def _memory(url: str, limits: Limits, timeout: float) -> Store:  # noqa: ARG001 - it never waits
    name = url.partition("://")[2]
    if re.search(r"[/?#@]", name):
        raise _invalid("memory://name has a name only", url)
    from celery_statekit.stores.memory import MemoryStore  # noqa: PLC0415 - only where used

    return MemoryStore(name, limits)


def _sqlite(url: str, limits: Limits, timeout: float) -> Store:
    from celery_statekit.stores.sqlite import SQLiteStore  # noqa: PLC0415 - only where used

    host, slash, path = url.partition("://")[2].partition("/")
    if host or not slash or not path:
        raise _invalid("sqlite has no host, and needs a path", url)
    if "?" in path:
        raise _invalid("sqlite has no options", url)
    if path == ":memory:":
        raise _invalid("a store in memory is memory://name", url)
    return SQLiteStore(path, limits, timeout)


def _redis(url: str, limits: Limits, timeout: float) -> Store:
    with extra("redis", url):
        from celery_statekit.stores.redis import RedisStore  # noqa: PLC0415 - only where used
        from celery_statekit.stores.redis.url import Address  # noqa: PLC0415 - the same

    return RedisStore(Address.of(url, without_password(url)), limits, timeout)


def _postgresql(url: str, limits: Limits, timeout: float) -> Store:
    with extra("postgresql", url):
        from celery_statekit.stores.sql.postgresql import PostgreSQLStore  # noqa: PLC0415 - likewise

    return PostgreSQLStore(url, limits, timeout)


def _mysql(url: str, limits: Limits, timeout: float) -> Store:
    with extra("mysql", url):
        from celery_statekit.stores.sql.mysql import MySQLStore  # noqa: PLC0415 - likewise

    return MySQLStore(url, limits, timeout)


@contextmanager
def extra(name: str, url: str) -> Iterator[None]:
    """A block that imports what the extra ``name`` installs.

    Raises:
        InvalidSetting: it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        if str(exc.name).startswith(__name__.partition(".")[0]):
            raise
        raise InvalidSetting(
            f"the package {exc.name} is not installed",
            "statekit_store",
            without_password(url),
            f"pip install celery-statekit[{name}]",
        ) from exc


_SCHEMES: Final[dict[str, _Factory]] = {
    "memory": _memory,
    "sqlite": _sqlite,
    "redis": _redis,
    "rediss": _redis,
    "redis+socket": _redis,
    "socket": _redis,
    "unix": _redis,
    "sentinel": _redis,
    "postgresql": _postgresql,
    "postgres": _postgresql,
    "mysql": _mysql,
    "mariadb": _mysql,
}


def _installed(scheme: str) -> _Factory | None:
    points = entry_points(group=ENTRY_POINTS, name=scheme)
    return _foreign(next(iter(points))) if points else None


def _foreign(point: EntryPoint) -> _Factory:
    def factory(url: str, limits: Limits, timeout: float) -> Store:
        try:
            _ = urlsplit(url).port
        except ValueError:
            # Not chained: the text of the error may hold the password.
            raise _invalid("the port is no number from 0 to 65535", url) from None
        try:
            make = point.load()
        except (ImportError, AttributeError) as exc:
            raise _invalid(f"the store of {point.value} cannot be loaded ({exc})", url) from exc
        store = make(url, limits=limits, timeout=timeout)
        if not isinstance(store, Store):
            raise _invalid(f"{point.value} made no Store but {type(store).__name__}", url)
        return store

    return factory


#: Each is loaded only where it is used: its module, and the extra that this needs.
_LATER: Final = {
    "MemoryStore": ("memory", ""),
    "MySQLStore": ("sql.mysql", "mysql"),
    "PostgreSQLStore": ("sql.postgresql", "postgresql"),
    "RedisStore": ("redis", "redis"),
    "SQLiteStore": ("sqlite", ""),
    "schema_sql": ("sql.tables", "sql"),
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, needed = _LATER[name]
    try:
        return getattr(import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as exc:
        if str(exc.name).startswith(__name__.partition(".")[0]):
            raise
        why = f"{name} needs the package {exc.name}: pip install celery-statekit[{needed}]"
        raise ModuleNotFoundError(why, name=exc.name, path=exc.path) from exc
