"""Which store follows from an app that uses Redis or a database."""

from __future__ import annotations

import builtins
import re
import ssl
import sys

import pytest
from celery import Celery

from celery_statekit.errors import InvalidSetting
from celery_statekit.settings import Settings
from celery_statekit.stores import MemoryStore, RedisStore, SQLiteStore, open_store

OURS = "celery_statekit.backends:RedisBackend+"


def store_of(backend: str | None = None, broker: str = "amqp://", **settings: object):
    """The store of an app with these settings."""
    app = Celery("shop", broker=broker, backend=backend)
    app.conf.update(settings)
    return Settings.of(app).store


def connection_of(store: RedisStore):
    """The arguments of the connections that the store makes."""
    pool = store._server._connections._make_pool()
    return pool.connection_class.__name__, pool.connection_kwargs


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("redis://localhost", "redis://localhost:6379/0"),
        ("REDIS://localhost/", "redis://localhost:6379/0"),
        ("redis://:p%40ss@10.0.0.1:7000/3", "redis://10.0.0.1:7000/3"),
        ("redis://[::1]:7000/3", "redis://[::1]:7000/3"),
        ("redis://host?db=4", "redis://host:6379/4"),
        ("redis://host/1?socket_timeout=5&health_check_interval=3", "redis://host:6379/1"),
        ("rediss://host/1?ssl_cert_reqs=required", "rediss://host:6379/1"),
        ("redis+socket:///run/redis.sock", "redis+socket:///run/redis.sock?virtual_host=0"),
        ("unix:///run/redis.sock?db=2", "redis+socket:///run/redis.sock?virtual_host=2"),
        (
            "sentinel://:x@a:26379/1?master_name=m;sentinel://:y@b",
            "sentinel://a:26379/1;sentinel://b:26379/1",
        ),
    ],
)
def test_urls_of_redis(url: str, name: str) -> None:
    """Each names a database; the store's name shows neither password nor option."""
    store = open_store(url)

    assert isinstance(store, RedisStore)
    assert store.name == name


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2@localhost:port/0",
        "redis://:hunter2@localhost:99999/0",
        "redis://:hunter2@localhost/shop",
        "redis://:hunter2@localhost/0?db=x",
        "redis://:hunter2@localhost/0?ssl_ca_cert=/ca.pem",
        "redis://:hunter2@localhost/0;redis://:hunter2@other/0",
        "sentinel://:hunter2@localhost/0",
        "redis+socket://",
        "redis://:hunter2@[localhost",
    ],
)
def test_a_url_that_is_none(url: str) -> None:
    """InvalidSetting says what is wrong and shows no password."""
    with pytest.raises(InvalidSetting) as raised:
        open_store(url)

    assert "hunter2" not in f"{raised.value!r} {raised.value} {raised.value.__cause__!r}"


@pytest.mark.parametrize("url", ["redis://host:7000/3", f"{OURS}redis://host:7000/3"])
def test_beside_a_redis_result_backend(url: str) -> None:
    """The same database, however the backend is named; the broker does not count."""
    store = store_of(url, "redis://elsewhere/1", statekit_prefix="shop")

    assert store.name == "redis://host:7000/3"
    assert store.reaches({"host": "host", "port": 7000, "db": "3"})
    assert not store.reaches({"host": "host", "port": 7000, "db": 2})
    assert not store.reaches({"host": "other", "port": 7000, "db": 3})
    assert not store.reaches({"path": "/run/redis.sock", "db": 3})


def test_credentials_and_tls_of_the_result_backend() -> None:
    """They are those of Celery's settings; what the URL says counts more."""
    tls = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": "/ca.pem"}
    store = store_of(
        "redis://:secret@host", redis_username="u", redis_password="p", redis_backend_use_ssl=tls
    )
    kind, arguments = connection_of(store)

    assert kind == "SSLConnection"
    assert (arguments["username"], arguments["password"]) == ("u", "secret")
    assert (arguments["ssl_cert_reqs"], arguments["ssl_ca_certs"]) == ("required", "/ca.pem")


def test_our_client_repeats_nothing() -> None:
    """Whatever the app says of its own client."""
    store = store_of(
        "redis://host?retry_on_timeout=yes&decode_responses=true", redis_retry_on_timeout=True
    )
    _, arguments = connection_of(store)

    assert arguments["retry"]._retries == 0
    assert not arguments["retry_on_timeout"]
    assert arguments["health_check_interval"] == 0
    assert "decode_responses" not in arguments
    assert arguments["socket_timeout"] == arguments["socket_connect_timeout"] == 5.0


@pytest.mark.parametrize(
    ("given", "prefix"), [("shop", "shop_"), ("shop:", "shop:"), ("shop-", "shop-"), ("", "")]
)
def test_the_global_key_prefix(given: str, prefix: str) -> None:
    """It stands before all keys, parted as Celery parts it."""
    store = store_of("redis://host", result_backend_transport_options={"global_keyprefix": given})

    assert store._prefix == prefix


def test_sentinels() -> None:
    """Their server's name and what they are connected with are Celery's settings too."""
    store = store_of(
        "sentinel://:secret@a:26379/2;sentinel://b:26380/2",
        result_backend_transport_options={
            "master_name": "mine",
            "sentinel_kwargs": {"password": "theirs"},
        },
    )
    kind, arguments = connection_of(store)
    sentinels = store._server._connections._pool.sentinel_manager.sentinels

    assert store.name == "sentinel://a:26379/2;sentinel://b:26380/2"
    assert kind == "SentinelManagedConnection"
    assert (arguments["password"], arguments["db"]) == ("secret", 2)
    assert [each.connection_pool.connection_kwargs["port"] for each in sentinels] == [26379, 26380]
    assert sentinels[0].connection_pool.connection_kwargs["password"] == "theirs"
    assert store.reaches({"hosts": [{"host": "b", "port": 26380}, {"host": "a"}], "db": 2}) is False
    hosts = [{"host": "b", "port": 26380}, {"host": "a", "port": 26379}]
    assert store.reaches({"hosts": hosts, "db": 2})


def test_beside_a_redis_broker() -> None:
    """Where the result backend keeps nothing of ours; the first of several brokers."""
    tls = {"ssl_cert_reqs": ssl.CERT_NONE}
    store = store_of(
        "cache+memory://",
        "redis://:secret@host/5;redis://other",
        broker_use_ssl=tls,
        broker_transport_options={"global_keyprefix": "shop"},
        redis_password="another",
    )
    kind, arguments = connection_of(store)

    assert store.name == "redis://host:6379/5"
    assert kind == "SSLConnection"
    assert (arguments["password"], arguments["ssl_cert_reqs"]) == ("secret", "none")
    assert store._prefix == "shop"


@pytest.mark.parametrize("dialect", ["postgresql", "postgresql+psycopg2", "mysql", "mysql+mysqldb"])
def test_beside_a_database(dialect: str) -> None:
    """A result backend in a database gives a store in it, by our driver."""
    store = store_of(f"db+{dialect}://user:hunter2@host/shop", "redis://elsewhere")

    assert store.name == f"{dialect.partition('+')[0]}://host/shop"


def test_files_and_memory_as_before() -> None:
    """SQLite beside SQLite, memory beside memory."""
    assert isinstance(store_of("db+sqlite:///x.db", "redis://host"), SQLiteStore)
    assert isinstance(store_of(None, "memory://"), MemoryStore)


@pytest.mark.parametrize("url", ["redis://:hunter2@host", "postgresql://u:hunter2@host/x"])
def test_an_extra_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """The error says which one to install."""
    missing = "redis" if url.startswith("redis") else "sqlalchemy"
    for name in list(sys.modules):
        if re.match(r"celery_statekit\.stores\.(redis|sql)(\.|$)", name):
            monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def imported(name, *rest, **more):
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", imported)
    with pytest.raises(InvalidSetting, match=r"pip install celery-statekit\[") as raised:
        open_store(url)

    assert missing in str(raised.value)
    assert "hunter2" not in str(raised.value)
