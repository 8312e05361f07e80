"""pytest-celery on Docker or on local processes; no test knows which (``STATEKIT_ENGINE``).

Workers have the app of ``app.py`` and the tasks of ``shop.py``; ``celery_setup.app`` is the same
app on the tests' side. Broker, results and workers are each test's own, but for RabbitMQ and
PostgreSQL, which take seconds to start: all tests of a process share one, one after the other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, Final, NoReturn

import pytest
import pytest_docker_tools.wrappers.container
from celery import Celery, _state
from docker import DockerClient
from pytest_celery import *  # noqa: F403 - its fixtures, for this folder alone
from pytest_celery import (
    DEFAULT_WORKER_VOLUME,
    CeleryTestBackend,
    RabbitMQContainer,
    RedisContainer,
)
from pytest_docker_tools import build, container, fxtr, network
from tests.servers import free_port

from celery_statekit import listeners
from celery_statekit.settings import Settings

from . import shop
from .engine import images, open_engine
from .nodes import PATIENCE, Postgres, PostgresContainer, RabbitMQ, Setup, Worker, WorkerContainer
from .places import REDIS_BROKER, REDIS_RESULTS

# --- the engine ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def docker_client(missing: Callable[[str, object], NoReturn]) -> Iterator[DockerClient]:
    """The engine: all that pytest-celery asks of Docker goes through here."""
    client = open_engine(os.environ.get("STATEKIT_ENGINE", "auto"), missing)
    with pytest.MonkeyPatch.context() as patch:
        # Where the tests run in a container they would dial inner ports on localhost.
        patch.setattr(
            pytest_docker_tools.wrappers.container, "tests_inside_container", lambda: False
        )
        yield client
    client.close()


# --- brokers and results -------------------------------------------------------------------------


@pytest.fixture(params=[REDIS_BROKER])
def celery_broker(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The broker; ``places.py`` has others. Upstream's own are a set, and come in any order."""
    broker = request.getfixturevalue(request.param)
    yield broker
    broker.teardown()


@pytest.fixture(params=[REDIS_RESULTS])
def celery_backend(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Where results are, and records with them."""
    backend = request.getfixturevalue(request.param)
    yield backend
    backend.teardown()


# Ports that stay the same over a restart: an app keeps the connections to those it knows.


@pytest.fixture
def default_redis_broker_ports() -> dict[str, int]:
    return {"6379/tcp": free_port()}


@pytest.fixture
def default_redis_backend_ports() -> dict[str, int]:
    return {"6379/tcp": free_port()}


@pytest.fixture(scope="session")
def rabbitmq_ports() -> dict[str, int]:
    return {"5672/tcp": free_port()}


@pytest.fixture(scope="session")
def postgres_ports() -> dict[str, int]:
    return {"5432/tcp": free_port()}


@pytest.fixture
def default_redis_broker_image() -> str:
    return images.REDIS


@pytest.fixture
def default_redis_backend_image() -> str:
    return images.REDIS


@pytest.fixture
def default_redis_backend_command() -> list[str]:
    """Results are on disk before they are acknowledged: a restart forgets none."""
    return ["redis-server", "--save", "", "--appendonly", "yes", "--appendfsync", "always"]


session_network = network(scope="session")

rabbitmq = container(
    scope="session",
    image=images.RABBITMQ,
    ports=fxtr("rabbitmq_ports"),
    network="{session_network.name}",
    wrapper_class=RabbitMQContainer,
    timeout=120,
)

postgres = container(
    scope="session",
    image=images.POSTGRES,
    ports=fxtr("postgres_ports"),
    environment={"POSTGRES_HOST_AUTH_METHOD": "trust"},
    network="{session_network.name}",
    wrapper_class=PostgresContainer,
    timeout=60,
)


@pytest.fixture
def default_pytest_celery_network(session_network: Any) -> Any:
    """One network for all, for RabbitMQ and PostgreSQL are in it too."""
    return session_network


@pytest.fixture
def celery_rabbitmq_broker(rabbitmq: RabbitMQContainer) -> RabbitMQ:
    return RabbitMQ(rabbitmq)


@pytest.fixture
def celery_redis_backend(default_redis_backend: RedisContainer) -> CeleryTestBackend:
    """Upstream's takes the backend from every result of the process; ours closes the app's."""
    return CeleryTestBackend(default_redis_backend)


@pytest.fixture
def celery_postgres_backend(postgres: PostgresContainer) -> Postgres:
    return Postgres(postgres)


# --- workers -------------------------------------------------------------------------------------

celery_base_worker_image = build(**images.WORKER)


@pytest.fixture
def default_worker_container_cls() -> type[WorkerContainer]:
    return WorkerContainer


@pytest.fixture
def default_worker_cls() -> type[Worker]:
    return Worker


@pytest.fixture
def default_worker_tasks() -> set[Any]:
    return {shop}


@pytest.fixture
def pool() -> str:
    """How the workers run their tasks."""
    return "prefork"


@pytest.fixture
def default_worker_command(pool: str) -> list[str]:
    return WorkerContainer.command("--pool", pool)


second_container = container(
    image="{celery_base_worker_image.id}",
    environment=fxtr("default_worker_env"),
    network="{default_pytest_celery_network.name}",
    volumes={"{default_worker_volume.name}": DEFAULT_WORKER_VOLUME},
    wrapper_class=WorkerContainer,
    timeout=60,
    command=fxtr("default_worker_command"),
)


@pytest.fixture
def second_worker(second_container: WorkerContainer, celery_setup_app: Celery) -> Worker:
    """One more worker of the same app; it sees the same gates."""
    return Worker(second_container, celery_setup_app)


# --- the app -------------------------------------------------------------------------------------


@pytest.fixture
def settings() -> dict[str, Any]:
    """What a test adds to the app's settings, on both sides."""
    return {}


@pytest.fixture
def celery_setup_cls() -> type[Setup]:
    return Setup


@pytest.fixture
def celery_setup_app(
    celery_setup_config: dict[str, Any],
    celery_setup_name: str,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Celery]:
    """The app on the tests' side; upstream never closes it, and leaves it the current one."""
    # However busy the machine is, PENDING is waited for: the tests count on it.
    monkeypatch.setattr(listeners, "PATIENCE", PATIENCE)
    before = _state._tls.current_app, _state.default_app
    app = Setup.create_setup_app(celery_setup_config, celery_setup_name)
    # Workers get what was changed in an app, not what it was configured with.
    app.conf.update(broker_connection_retry_on_startup=True, result_extended=True, **settings)
    backends: list[Any] = []

    def get_backend() -> Any:
        backends.append(Celery._get_backend(app))
        return backends[-1]

    app._get_backend = get_backend
    yield app
    for backend in backends:
        _close(backend)
    Settings.of(app).store.close()
    app.close()
    _state._tls.current_app = before[0]
    _state.set_default_app(before[1])


@pytest.fixture
def tasks(celery_setup: Any) -> SimpleNamespace:
    """The shop's tasks by their names: ``tasks.load.delay(3)``."""
    return SimpleNamespace(
        **{
            function.__name__: celery_setup.app.tasks[f"shop.{function.__name__}"]
            for function in shop.TASKS
        }
    )


#: Lines of a worker's log that have no place in the normal course.
UNUSUAL: Final = re.compile(r"Traceback|: (?:WARNING|ERROR|CRITICAL)/")


@pytest.fixture
def nothing_unusual(celery_setup: Any) -> Iterator[None]:
    """In the log of the worker there is no warning, no error and no traceback."""
    yield
    lines = celery_setup.worker.logs().splitlines()
    assert [line for line in lines if UNUSUAL.search(line)] == []


def _close(backend: Any) -> None:
    """Close the connections of a backend; Celery leaves them to the end of its thread."""
    consumer = getattr(backend, "result_consumer", None)
    if consumer is not None:
        consumer.stop()
        consumer._pubsub = None  # results that are forgotten later would open it again
        backend.client.connection_pool.disconnect()
