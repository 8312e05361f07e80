"""An app without ``statekit_store``: its store follows from its result backend or its broker."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery
from celery.result import AsyncResult

from celery_statekit import StatefulTask, States
from celery_statekit.settings import Settings
from celery_statekit.stores import MySQLStore, PostgreSQLStore, RedisStore


class Import(States):
    READING = "Reading"


@pytest.fixture
def place() -> tuple[str, str]:
    """The worker's pool."""
    return "threads", "derived"


@pytest.fixture
def name() -> str:
    """Of the app, its queue, and the keys of its store."""
    return f"shop{uuid.uuid4().hex[:8]}"


@pytest.fixture
def app(name: str) -> Iterator[Celery]:
    """An app whose broker and result backend are the test's to name."""
    app = Celery(name, broker="memory://", set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        statekit_prefix=name,
        statekit_progress_interval=0.02,
        task_default_queue=name,
    )
    app.set_current()
    yield app
    Settings.of(app).store.close()
    app.close()


@pytest.fixture(params=["postgresql", "mysql"])
def database(request: pytest.FixtureRequest) -> str:
    """URL of a result backend in each database."""
    fixture = "mariadb_url" if request.param == "mysql" else "postgresql_url"
    return f"db+{request.getfixturevalue(fixture)}"


@pytest.fixture
def redis_broker(name: str, redis_url: str) -> Iterator[str]:
    """URL of a Redis broker, from which all of the app is removed afterwards."""
    yield redis_url
    with redis.Redis.from_url(redis_url) as client:
        for key in [*client.scan_iter(f"*{name}*"), *client.scan_iter("_kombu.binding.reply*")]:
            client.delete(key)


@pytest.mark.sql
def test_beside_a_result_backend_in_a_database(
    app: Celery, database: str, work: Any, gate: Any, ended: Any, states_of: Any
) -> None:
    """Record, history and Celery's result are in one database, and agree, at both ends."""
    app.conf.result_backend = database
    started, go_on = gate(), gate()

    @app.task(bind=True, base=StatefulTask, states=Import)
    def add(self: Any, x: int, y: int) -> int:
        self.enter(Import.READING)
        started.set()
        go_on.wait()
        if not y:
            raise KeyError("row")
        return x + y

    work()
    added, failed = add.delay(2, 3), add.delay(2, 0)
    started.wait()
    go_on.set()

    kind = PostgreSQLStore if "postgresql" in database else MySQLStore
    assert isinstance(Settings.of(app).store, kind)
    assert ended(added).state == AsyncResult(added.id, app=app).state == "SUCCESS"
    assert added.get(timeout=10) == 5
    assert states_of(added) == ["PENDING", "STARTED", "READING", "SUCCESS"]
    assert ended(failed).state == AsyncResult(failed.id, app=app).state == "FAILURE"
    assert states_of(failed) == ["PENDING", "STARTED", "READING", "FAILURE"]
    with pytest.raises(KeyError):
        failed.get(timeout=10)


@pytest.mark.sql
def test_the_engine_has_the_options_of_the_backends(app: Celery, database: str) -> None:
    """``database_engine_options`` are obeyed, but for how transactions and tests of life go."""
    options = {"pool_recycle": 77, "max_overflow": 3, "pool_pre_ping": True}
    app.conf.update(result_backend=database, database_engine_options=options)

    store: Any = Settings.of(app).store
    engine = store._server.engine()

    assert (engine.pool._recycle, engine.pool._max_overflow) == (77, 3)
    assert not engine.pool._pre_ping
    assert store.read("k") is None


@pytest.mark.redis
@pytest.mark.parametrize("backend", ["rpc://", None])
def test_beside_a_broker_of_redis(
    app: Celery, redis_broker: str, backend: str | None, work: Any, until: Any, states_of: Any
) -> None:
    """Where results are not kept, the store is the broker's Redis."""
    app.conf.update(broker_url=redis_broker, result_backend=backend)

    @app.task(bind=True, base=StatefulTask, states=Import)
    def add(self: Any, x: int, y: int) -> int:
        self.enter(Import.READING)
        return x + y

    work()
    result = add.delay(2, 3)
    state = until(lambda: (now := result.task_state).final and now)

    assert isinstance(Settings.of(app).store, RedisStore)
    assert (state.state, state.source) == ("SUCCESS", "record")
    assert states_of(result) == ["PENDING", "STARTED", "READING", "SUCCESS"]
    if backend:
        assert result.get(timeout=10) == 5


@pytest.mark.parametrize(
    "conf",
    [
        {"statekit_store": "redis://127.0.0.1:1/0"},
        {"statekit_store": "postgresql://127.0.0.1:1/shop"},
        {"statekit_store": "sqlite:///shop.db"},
        {"result_backend": "redis://127.0.0.1:1/0"},
        {"result_backend": "db+postgresql://127.0.0.1:1/shop"},
        {"result_backend": "db+mysql://127.0.0.1:1/shop"},
        {"result_backend": "db+sqlite:///shop.db"},
        {"broker_url": "redis://127.0.0.1:1/0"},
        {"broker_url": "filesystem://"},
    ],
    ids=str,
)
def test_how_long_a_call_of_the_store_may_take(app: Celery, conf: dict[str, str]) -> None:
    """``statekit_store_timeout`` is that of every store, named or derived."""
    app.conf.update(conf, statekit_store_timeout=1.5)
    store: Any = Settings.of(app).store
    server = getattr(store, "_server", None) or store._file

    assert server.timeout == 1.5
