"""An app whose result backend and store are one Redis database."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis
from celery import Celery, Task

from celery_statekit import setup
from celery_statekit.settings import Settings


@pytest.fixture
def place() -> tuple[str, str]:
    """The worker's pool."""
    return "threads", "redis"


@pytest.fixture
def kind() -> str:
    """Whose tasks ``task`` makes: ``stateful``, ``plain`` of the same app, ``celery`` without us."""
    return "stateful"


@pytest.fixture
def name() -> str:
    """What this test's keys and queue begin with."""
    return f"shop{uuid.uuid4().hex[:8]}"


@pytest.fixture
def server_url(redis_url: str) -> str:
    """URL of the database."""
    return redis_url


@pytest.fixture
def make(name: str, server_url: str) -> Iterator[Callable[[str], Celery]]:
    """Make an app with tasks of some kind; all of a test see the same results."""
    with ExitStack() as stack:

        def make(kind: str) -> Celery:
            app = Celery(name, broker="memory://", backend=server_url, set_as_current=False)
            app.conf.update(
                broker_connection_retry_on_startup=True,
                result_backend_transport_options={"global_keyprefix": f"{name}:"},
                task_default_queue=name,
            )
            if kind != "celery":
                app.conf.update(
                    statekit_store=server_url,
                    statekit_prefix=name,
                    statekit_progress_interval=0.02,
                )
                setup(app)
                stack.callback(close_store, app)

            def get_backend() -> Any:
                backend = Celery._get_backend(app)
                stack.callback(close, backend)
                return backend

            app._get_backend = get_backend
            stack.callback(app.close)
            return app

        yield make


def close(backend: Any) -> None:
    """Close the connections of a backend; Celery leaves them to the end of its thread."""
    consumer = backend.result_consumer
    consumer.stop()
    consumer._pubsub = None  # results that are forgotten later would open it again
    backend.client.connection_pool.disconnect()


def close_store(app: Celery) -> None:
    """Close the connections of the app's store, which is opened when it is first used."""
    Settings.of(app).store.close()


@pytest.fixture
def app(make: Callable[[str], Celery], kind: str) -> Celery:
    """The app; its worker's messages go through memory."""
    app = make(kind)
    app.set_current()
    return app


@pytest.fixture
def task(kind: str, app: Celery) -> Callable[..., Any]:
    """``app.task`` of that kind."""

    def make(*args: Any, **options: Any) -> Any:
        return app.task(*args, **({} if kind == "stateful" else {"base": Task}), **options)

    return make


@pytest.fixture
def client(server_url: str) -> Iterator[Any]:
    """The database itself."""
    with redis.Redis.from_url(server_url) as client:
        yield client
