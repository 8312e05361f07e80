"""How connections to a Redis server are made: by redis-py, as Celery's settings and URLs say."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelManagedConnection

from celery_statekit.errors import InvalidSetting, StoreUnavailable, one_line
from celery_statekit.stores.redis.url import Address

logger = logging.getLogger(__name__)

_CERTIFICATES: Final = {
    "required": "required",
    "optional": "optional",
    "none": "none",
    "CERT_REQUIRED": "required",
    "CERT_OPTIONAL": "optional",
    "CERT_NONE": "none",
    ssl.CERT_REQUIRED: "required",
    ssl.CERT_OPTIONAL: "optional",
    ssl.CERT_NONE: "none",
}


class SentinelTLSConnection(SentinelManagedConnection, redis.SSLConnection):
    """A connection by TLS to the server that the Sentinels name."""


class Connections:
    """Makes connections to one database; each is the caller's own.

    Args:
        address: of the database.
        timeout: seconds to connect in, and to wait for a reply.
        options: further arguments of redis-py's connection, and ``master_name``,
            ``min_other_sentinels`` and ``sentinel_kwargs`` where there are Sentinels.

    Raises:
        InvalidSetting: an option cannot be obeyed.
    """

    def __init__(self, address: Address, timeout: float, options: Mapping[str, Any]) -> None:
        self.name = address.name()
        self.timeout = timeout
        self._address = address
        self._options = {**options, **address.options}
        self._sentinel = {
            name: self._options.pop(name, None)
            for name in ("master_name", "min_other_sentinels", "sentinel_kwargs")
        }
        if address.sentinel and not self._sentinel["master_name"]:
            raise InvalidSetting(
                "Sentinels need the name of their server",
                "result_backend_transport_options",
                None,
                '{"master_name": "..."}',
            )
        if "ssl_cert_reqs" in self._options:
            self._options["ssl_cert_reqs"] = _certificates(self._options["ssl_cert_reqs"])
            if self._options["ssl_cert_reqs"] == "none":
                self._options["ssl_check_hostname"] = False
        self._tls = address.tls or any(name.startswith("ssl_") for name in self._options)
        self.renew()

    def renew(self) -> None:
        """Begin anew, as a forked process has to."""
        self._pool: redis.ConnectionPool | None = None

    def connect(self) -> Any:
        """A connected connection, of redis-py's class.

        Raises:
            StoreUnavailable: the server does not answer, or refuses us, or an option is none of
                redis-py's.
        """
        while True:
            connection = None
            try:
                pool = self._pool or self._make_pool()
                connection = pool.connection_class(**pool.connection_kwargs)
                connection.connect()
            except (RedisError, OSError, TypeError) as exc:
                # TypeError and OSError: an option that redis-py does not know, a file that is no key.
                _dropped(connection)
                if not self._leaves_password_away(exc):
                    raise StoreUnavailable(self.name, words(exc)) from exc
            except BaseException:
                _dropped(connection)
                raise
            else:
                return connection

    def _leaves_password_away(self, exc: Exception) -> bool:
        """Whether ``exc`` says that the server asks for no password; then none is sent any more.

        Celery's own backend gets in there: by RESP3's HELLO the server takes any password
        (redis-py 8.1 connection.py), by AUTH it takes none.
        """
        options = {} if self._pool is None else self._pool.connection_kwargs
        if "without any password configured" not in str(exc) or not options.get("password"):
            return False
        logger.warning("%s asks for no password, and the one in its URL is not sent", self.name)
        options.pop("username", None)
        options.pop("password", None)
        return True

    def _make_pool(self) -> redis.ConnectionPool:
        # Only redis-py's way to make connections is used: it keeps none of ours.
        address, options = self._address, self._arguments()
        if address.sentinel:
            self._pool = self._sentinel_pool(options)
        elif address.path:
            self._pool = redis.ConnectionPool(
                connection_class=redis.UnixDomainSocketConnection, path=address.path, **options
            )
        else:
            ((host, port),) = address.hosts
            kind = redis.SSLConnection if self._tls else redis.Connection
            self._pool = redis.ConnectionPool(
                connection_class=kind, host=host, port=port, **options
            )
        return self._pool

    def _arguments(self) -> dict[str, Any]:
        # RESP3 brings messages that nobody asked for; redis-py before 5.0 knows only RESP2.
        protocol = {} if redis.VERSION[0] < 5 else {"protocol": 2}
        return {
            **self._options,
            **protocol,
            "db": self._address.database,
            "socket_timeout": self.timeout,
            "socket_connect_timeout": self.timeout,
            "retry": Retry(NoBackoff(), 0),
            "retry_on_timeout": False,
            "health_check_interval": 0,
        }

    def _sentinel_pool(self, options: dict[str, Any]) -> redis.ConnectionPool:
        each = {
            "socket_timeout": self.timeout,
            "socket_connect_timeout": self.timeout,
            "retry": Retry(NoBackoff(), 0),
            **(self._sentinel["sentinel_kwargs"] or {}),
        }
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            list(self._address.hosts),
            min_other_sentinels=self._sentinel["min_other_sentinels"] or 0,
            sentinel_kwargs=each,
        )
        kind = SentinelTLSConnection if self._tls else SentinelManagedConnection
        master: redis.Redis = sentinel.master_for(  # type: ignore[no-untyped-call]
            self._sentinel["master_name"], connection_class=kind, **options
        )
        return master.connection_pool


def words(exc: BaseException) -> str:
    """What redis-py says of an error, on one line."""
    return one_line(str(exc) or type(exc).__name__, 300)


def _dropped(connection: Any) -> None:
    if connection is not None:
        connection.disconnect()


def _certificates(value: object) -> str:
    try:
        return _CERTIFICATES[value]
    except (KeyError, TypeError):
        raise InvalidSetting(
            "no way to check certificates", "ssl_cert_reqs", value, "required, optional, none"
        ) from None
