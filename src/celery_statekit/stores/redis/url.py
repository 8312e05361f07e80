"""What a URL of Redis means, as Celery and kombu write it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from celery_statekit.errors import InvalidSetting

SCHEMES: Final = ("redis", "rediss", "redis+socket", "socket", "unix", "sentinel")
#: What a query may say of the connection.
OPTIONS: Final = re.compile(
    "username|password|client_name|master_name|ssl_(ca_certs|ca_path|ca_data|certfile|keyfile|cert_reqs"
    "|check_hostname)"
)
#: What tunes another client than ours; our timeouts and retries are our own.
IGNORED: Final = re.compile(
    "socket_.*|retry.*|health_check_interval|max_connections|protocol|decode_responses|encoding"
    "|timeout|visibility_timeout|global_keyprefix|additional_connection_errors"
)
ALLOWED: Final = (
    "redis://[user:password@]host[:port][/db], rediss://..., redis+socket:///path[?virtual_host=db]"
    ", sentinel://host[:port][/db][;sentinel://...]"
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a database of Redis is and how it is connected to."""

    #: Of the server, or of the Sentinels; empty for a Unix socket.
    hosts: tuple[tuple[str, int], ...] = ()
    #: Of a Unix socket.
    path: str = ""
    database: int = 0
    sentinel: bool = False
    tls: bool = False
    #: Further arguments of redis-py's connection.
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, url: str, shown: str = "...") -> Address:
        """The address that ``url`` is.

        Args:
            url: of the database.
            shown: what a message says of it: ``url`` without its passwords.

        Raises:
            InvalidSetting: it is none.
        """
        try:
            return cls._of(url)
        except ValueError as exc:
            # Not chained: the text of a foreign error may hold the password.
            why = str(exc) if type(exc) is _Refused else "no URL of Redis"
        raise InvalidSetting(why, "statekit_store", shown, ALLOWED)

    @classmethod
    def _of(cls, url: str) -> Address:
        parts = [urlsplit(each) for each in url.split(";") if each]
        first = parts[0]
        scheme = first.scheme.lower()
        if scheme not in SCHEMES:
            raise _Refused("no scheme of Redis")
        sentinel = scheme == "sentinel"
        if len(parts) > 1 and not sentinel:
            raise _Refused("only sentinel:// has several servers")
        if any(part.scheme.lower() != scheme for part in parts):
            raise _Refused("the servers have several schemes")
        socket = scheme in ("redis+socket", "socket", "unix")
        query = dict(parse_qsl(first.query))
        path = first.path
        database = query.pop("virtual_host", None) or query.pop("db", None)
        query.pop("db", None)
        if socket and not path.strip("/"):
            raise _Refused("a Unix socket needs a path")
        return cls(
            hosts=()
            if socket
            else tuple((part.hostname or "localhost", _port(part)) for part in parts),
            path=f"/{unquote(path).lstrip('/')}" if socket else "",
            database=_database(database or ("" if socket else path.strip("/"))),
            sentinel=sentinel,
            tls=scheme == "rediss",
            options=_options(first, query),
        )

    def name(self) -> str:
        """The URL without what is secret in it."""
        if self.path:
            return f"redis+socket://{self.path}?virtual_host={self.database}"
        scheme = "sentinel" if self.sentinel else "rediss" if self.tls else "redis"
        hosts = (
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts
        )
        return ";".join(f"{scheme}://{host}/{self.database}" for host in hosts)

    def is_of(self, parameters: Mapping[str, Any]) -> bool:
        """Whether connection ``parameters`` of Celery's backend mean the same database."""
        try:
            database = _database(str(parameters.get("db") or "").strip("/"))
            several = parameters.get("hosts")
            hosts = (
                ()
                if parameters.get("path")
                else tuple(
                    (str(each.get("host") or "localhost"), int(each.get("port") or 6379))
                    for each in (several or (parameters,))
                )
            )
        except (AttributeError, TypeError, ValueError):
            return False
        return (
            database == self.database
            and bool(several) == self.sentinel
            and (parameters.get("path") or "") == self.path
            and sorted(hosts) == sorted(self.hosts)
        )


class _Refused(ValueError):
    """A sentence of ours, without a secret."""


def _port(part: SplitResult) -> int:
    try:
        port = part.port
    except ValueError:
        raise _Refused("the port is no number from 0 to 65535") from None
    return port or (26379 if part.scheme.lower() == "sentinel" else 6379)


def _database(text: str) -> int:
    if not re.fullmatch(r"\d{0,9}", text, re.ASCII):
        raise _Refused("the database is no number")
    return int(text or 0)


def _options(part: SplitResult, query: dict[str, str]) -> dict[str, Any]:
    for name in query:
        if not OPTIONS.fullmatch(name) and not IGNORED.fullmatch(name):
            raise _Refused(f"unknown option {name!r}")
    options: dict[str, Any] = {
        name: value for name, value in query.items() if OPTIONS.fullmatch(name)
    }
    if "ssl_check_hostname" in options:
        options["ssl_check_hostname"] = _flag(options["ssl_check_hostname"])
    if part.username:
        options["username"] = unquote(part.username)
    if part.password:
        options["password"] = unquote(part.password)
    return options


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise _Refused("ssl_check_hostname is no flag")
    return text.lower() in ("true", "1", "yes")
