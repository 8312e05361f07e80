"""The store that follows from an app's settings: beside its result backend, else its broker."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from celery import Celery
from kombu.utils.imports import symbol_by_name

from celery_statekit import stores
from celery_statekit.errors import StoreNotConfigured, brief
from celery_statekit.record import Limits
from celery_statekit.stores import Store, extra, open_store, without_password

REDIS: Final = ("redis", "rediss", "redis+socket", "sentinel")
SQL: Final = ("postgresql", "mysql", "mariadb")
SQLITE: Final = ("db+sqlite", "sqla+sqlite", "sqlalchemy+sqlite")


def derive_store(app: Celery, limits: Limits, timeout: float) -> Store:
    """The store beside the app's result backend, or else its broker.

    Raises:
        StoreNotConfigured: every process would have to guess.
        InvalidSetting: a setting of Celery's cannot be obeyed.
    """
    backend, broker = backend_url(app.conf), broker_url(app.conf)
    store = _beside_backend(app.conf, backend, limits, timeout) or _beside_broker(
        app, broker, limits, timeout
    )
    if store is not None:
        return store
    raise StoreNotConfigured(
        "statekit_store",
        f"no store follows from result_backend {brief(_host(backend))} and broker_url "
        f"{brief(_host(broker))}; set it, for example "
        'app.conf.statekit_store = "sqlite:////var/lib/shop/states.db" '
        "(one file for all processes of one machine)",
    )


def _beside_backend(conf: Any, url: str, limits: Limits, timeout: float) -> Store | None:
    if _scheme(url) in REDIS:
        return _redis(url, limits, timeout, *_of_backend(conf))
    dialect = re.match(r"db\+(\w+)", url)
    if dialect and dialect[1] in SQL:
        return _sql(url, dialect[1], limits, timeout, conf.get("database_engine_options") or {})
    return _beside_file(url, limits, timeout)


def _beside_broker(app: Celery, url: str, limits: Limits, timeout: float) -> Store | None:
    conf = app.conf
    if _scheme(url) in REDIS:
        return _redis(url, limits, timeout, *_of_broker(conf))
    if url.startswith("filesystem:"):
        folder = (conf.broker_transport_options or {}).get("data_folder_in", "data_in")
        return open_store(
            f"sqlite:///{str(folder).rstrip('/')}.statekit", limits=limits, timeout=timeout
        )
    if url.startswith("memory:") or (conf.task_always_eager and not url):
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", str(app.main or ""))
        return open_store(f"memory://{name}", limits=limits, timeout=timeout)
    return _beside_file(url, limits, timeout)


def _beside_file(url: str, limits: Limits, timeout: float) -> Store | None:
    scheme, _, rest = url.partition(":")
    if scheme in SQLITE and len(rest) > len("///"):
        return open_store(
            f"sqlite:{rest.partition('?')[0]}.statekit", limits=limits, timeout=timeout
        )
    return None


def backend_url(conf: Any) -> str:
    """Where Celery's results are: a URL or a name without the backend's class; "" for nowhere."""
    url = str(conf.result_backend or "")
    # A backend may be named by its class: celery_statekit.backends:RedisBackend+redis://...
    url = re.sub(r"^[\w.]+:\w+\+", "", url)
    if url == "database":
        return f"db+{conf.database_url or ''}"
    if url.rstrip(":/") in ("redis", "rediss"):
        host, port, database = conf.redis_host, conf.redis_port, conf.redis_db
        return f"{url.rstrip(':/')}://{host or 'localhost'}:{port or 6379}/{database or 0}"
    return url


def broker_url(conf: Any) -> str:
    """The broker's URL, of several the first; of Sentinels all."""
    urls = conf.broker_url or ""
    url = str(urls if isinstance(urls, str) else ";".join(urls))
    # Of several brokers each stands in for the one before; several Sentinels are of one server.
    return url if url.startswith("sentinel:") else url.partition(";")[0]


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower() if "://" in url else ""


def _redis(
    url: str, limits: Limits, timeout: float, options: Mapping[str, Any], prefix: str
) -> Store:
    with extra("redis", url):
        from celery_statekit.stores.redis import RedisStore  # noqa: PLC0415 - only where used
        from celery_statekit.stores.redis.url import Address  # noqa: PLC0415 - the same
    address = Address.of(url, without_password(url))
    return RedisStore(address, limits, timeout, options=options, key_prefix=prefix)


def _sql(
    url: str, dialect: str, limits: Limits, timeout: float, options: Mapping[str, Any]
) -> Store:
    name = "postgresql" if dialect == "postgresql" else "mysql"
    with extra(name, url):  # each is imported where it is asked for
        kind = stores.PostgreSQLStore if name == "postgresql" else stores.MySQLStore
    return kind(url, limits, timeout, options=options)


def _of_backend(conf: Any) -> tuple[dict[str, Any], str]:
    """Connection options and key prefix, as Celery's backend has them (backends/redis.py:520)."""
    transport = conf.get("result_backend_transport_options") or {}
    options = {
        "username": conf.get("redis_username"),
        "password": conf.get("redis_password"),
        "client_name": conf.get("redis_client_name"),
        **_tls(conf.get("redis_backend_use_ssl")),
        **_sentinel(transport),
    }
    provider = conf.get("redis_backend_credential_provider")
    if provider:
        provider = symbol_by_name(provider)() if isinstance(provider, str) else provider
        options |= {"username": None, "password": None, "credential_provider": provider}
    prefix = str(transport.get("global_keyprefix") or "")
    # As Celery parts it from its own (backends/base.py:1205).
    if prefix and prefix[-1] not in ":_-.":
        prefix += "_"
    return _given(options), prefix


def _of_broker(conf: Any) -> tuple[dict[str, Any], str]:
    """The same, as kombu's transport has them (transport/redis.py:1995)."""
    transport = conf.get("broker_transport_options") or {}
    options = {**_tls(conf.get("broker_use_ssl")), **_sentinel(transport)}
    return _given(options), str(transport.get("global_keyprefix") or "")


def _tls(given: Any) -> dict[str, Any]:
    if isinstance(given, Mapping):
        return {str(name): value for name, value in given.items() if str(name).startswith("ssl_")}
    return {}


def _sentinel(transport: Mapping[str, Any]) -> dict[str, Any]:
    names = ("master_name", "min_other_sentinels", "sentinel_kwargs")
    return {name: transport.get(name) for name in names}


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _host(url: object) -> str:
    """What may be shown of a URL: not its password."""
    scheme, colon, rest = str(url or "").partition(":")
    if "@" in scheme:
        return "..."
    return f"{scheme}:{'//' if rest.startswith('//') else ''}..." if colon else scheme
