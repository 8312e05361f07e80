"""Fixtures for every test, and the examples of README, docs and docstrings as tests.

Examples: each ``python`` block and each ``>>>`` is run, in order, one namespace and one empty
folder per document. Pages that start processes are carried out instead (``tests/pages.py``).

Servers: a test that asks for ``redis_url``, ``postgresql_url`` or ``rabbitmq_queue`` is skipped
where the server is missing; with ``CI=true`` it fails. One that asks for ``mariadb_url`` is always
skipped there. A test that stops, fills or kills a server asks for ``own_redis`` and its like.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from doctest import NORMALIZE_WHITESPACE
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import celery.app.builtins  # noqa: F401 - adds Celery's own tasks
import pytest
import redis
from celery import _state
from kombu import Connection
from sybil import Sybil
from sybil.parsers import markdown, myst, rest
from sybil.sybil import SybilCollection
from tests.pages import CARRIED_OUT
from tests.servers import MariaDBServer, PostgresServer, RedisServer, Server, ServerMissing

REDIS: Final = "redis://127.0.0.1:6379"
POSTGRESQL: Final = "postgresql+psycopg://postgres@127.0.0.1:5432"
MARIADB: Final = "mysql+pymysql://root@127.0.0.1:3306"
RABBITMQ: Final = "amqp://guest:guest@127.0.0.1:5672//"
#: Seconds that a server on this machine has to answer.
ANSWER: Final = 2.0
#: Key that marks a Redis database as one of these tests', and key of the run that uses it now.
OURS: Final = "celery-statekit-tests"
CLAIM: Final = "celery-statekit-tests-claim"
#: What the name of a database of these tests begins with, in PostgreSQL and MariaDB.
DATABASE: Final = "celery_statekit_tests"
#: Seconds after which the claim of a run that was killed is void.
CLAIM_ENDS: Final = 3600


# --- apps ----------------------------------------------------------------------------------------

#: What Celery itself adds to each app. ``@app.task`` adds the task of one app to all later ones,
#: so without what follows each test would have the tasks of all others.
BUILT_IN: Final = frozenset(_state._on_app_finalizers)  # noqa: SLF001 - Celery offers no way


def pytest_collection_finish() -> None:
    """Forget the tasks of apps that were made when the tests were imported."""
    _state._on_app_finalizers.intersection_update(BUILT_IN)  # noqa: SLF001


@pytest.fixture(scope="module", autouse=True)
def _tasks_of_a_module() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_state, "_on_app_finalizers", set(BUILT_IN))
        yield


@pytest.fixture(autouse=True)
def _tasks_of_a_test(_tasks_of_a_module: None) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_state, "_on_app_finalizers", set(_state._on_app_finalizers))  # noqa: SLF001
        yield


# --- examples ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def apart(_tasks_of_a_module: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run the examples of one document in an empty folder, as if there were no other app."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("examples"))
        patch.setattr(_state, "default_app", None)
        patch.setattr(_state._tls, "current_app", None)  # noqa: SLF001
        yield


def _name_module(namespace: dict[str, Any]) -> None:
    # Celery names a task after the module that holds it.
    namespace["__name__"] = "shop"


#: Sybil before 10, which Python 3.10 has, minds spaces at the end of a line.
SPACES: Final = NORMALIZE_WHITESPACE
#: The package under test: of the source tree, or where the built wheel is installed.
PACKAGE: Final = Path(str(find_spec("celery_statekit").origin)).parent

EXAMPLES: Final = SybilCollection(
    Sybil(
        parsers,
        path=path,
        pattern=pattern,
        excludes=CARRIED_OUT,
        setup=setup,
        fixtures=["apart"],
    )
    for parsers, path, pattern, setup in (
        (
            [markdown.PythonCodeBlockParser(doctest_optionflags=SPACES), markdown.SkipParser()],
            ".",
            "README.md",
            _name_module,
        ),
        (
            [myst.PythonCodeBlockParser(doctest_optionflags=SPACES), myst.SkipParser()],
            "docs",
            "*.md",
            _name_module,
        ),
        (
            [
                rest.DocTestParser(SPACES),
                rest.PythonCodeBlockParser(),
                rest.SkipParser(),
            ],
            str(PACKAGE),
            "*.py",
            None,
        ),
    )
).pytest()


class Examples:
    """A plugin, for a hook of this file would not see what lies elsewhere: an installed package."""

    pytest_collect_file = staticmethod(EXAMPLES)


def pytest_configure(config: pytest.Config) -> None:
    """Collect the examples."""
    config.pluginmanager.register(Examples())


# --- servers -------------------------------------------------------------------------------------


def _missing(server: str, why: object) -> NoReturn:
    reason = f"{server} does not answer on this machine: {why}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def _skip_mariadb(why: object) -> NoReturn:
    pytest.skip(f"MySQLStore is not tested on MariaDB here: {why}")


@pytest.fixture(scope="session")
def missing() -> Callable[[str, object], NoReturn]:
    """Skips the test, or with ``CI=true`` fails it, for a server is missing."""
    return _missing


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """URL of a Redis database that is empty at first, ours alone, and emptied at the end.

    A database that holds anybody else's keys is never touched; one that a killed run of these
    tests left behind is taken up again.
    """
    for number in range(15, 0, -1):
        url = f"{REDIS}/{number}"
        with redis.Redis.from_url(
            url, socket_timeout=ANSWER, socket_connect_timeout=ANSWER
        ) as client:
            try:
                free = client.dbsize() == 0 or client.exists(OURS)
            except redis.RedisError as exc:
                _missing("Redis", exc)
            if not free or not client.set(CLAIM, uuid.uuid4().hex, nx=True, ex=CLAIM_ENDS):
                continue
            with client.pipeline() as pipeline:  # MULTI: nobody sees it empty and unclaimed
                pipeline.flushdb().set(OURS, 1).set(CLAIM, 1, ex=CLAIM_ENDS).execute()
            yield url
            client.flushdb()
            return
    _missing("Redis", "every database from 1 to 15 is in use")


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """URL of a PostgreSQL database that is empty at first, ours alone, and dropped at the end."""
    name = _database_name()
    try:
        import psycopg  # noqa: PLC0415 - an extra installs it

        server = POSTGRESQL.replace("+psycopg", "")
        connection = psycopg.connect(server, connect_timeout=int(ANSWER), autocommit=True)
    except Exception as exc:  # noqa: BLE001 - not installed, not there, not let in: all mean missing
        _missing("PostgreSQL", exc)
    with closing(connection):
        for (left,) in connection.execute("SELECT datname FROM pg_database").fetchall():
            if _is_void(left):
                connection.execute(f"DROP DATABASE IF EXISTS {left} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {name}")
        yield f"{POSTGRESQL}/{name}"
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def mariadb_url() -> Iterator[str]:
    """URL of a MariaDB database that is empty at first, ours alone, and dropped at the end."""
    name = _database_name()
    try:
        for (left,) in _run_in_mariadb("SHOW DATABASES"):
            if _is_void(left):
                _run_in_mariadb(f"DROP DATABASE IF EXISTS {left}")
        _run_in_mariadb(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    except Exception as exc:  # noqa: BLE001 - not installed, not there, not let in: all mean missing
        _skip_mariadb(f"MariaDB does not answer on this machine: {exc}")
    yield f"{MARIADB}/{name}?charset=utf8mb4"
    _run_in_mariadb(f"DROP DATABASE {name}")


def _run_in_mariadb(statement: str) -> Any:
    import pymysql  # noqa: PLC0415 - an extra installs it

    with closing(
        pymysql.connect(host="127.0.0.1", user="root", connect_timeout=int(ANSWER))
    ) as connection:
        cursor = connection.cursor()
        cursor.execute(statement)
        return cursor.fetchall()


def _database_name() -> str:
    """Name of a database of this run, with when it began; MariaDB allows 64 characters."""
    return f"{DATABASE}_{time.time():.0f}_{uuid.uuid4().hex[:16]}"


def _is_void(name: str) -> bool:
    """Whether it is a database of a run that was killed."""
    claim = re.fullmatch(rf"{DATABASE}_(\d+)_[0-9a-f]{{16}}", name)
    return claim is not None and int(claim[1]) < time.time() - CLAIM_ENDS


AServer = TypeVar("AServer", bound=Server)


def _own(stack: ExitStack, kind: Callable[..., AServer]) -> Callable[..., AServer]:
    def start(**options: Any) -> AServer:
        try:
            return stack.enter_context(kind(**options))
        except ServerMissing as exc:
            if kind is MariaDBServer:
                _skip_mariadb(exc)
            _missing(kind.__name__, exc)

    return start


@pytest.fixture
def own_redis() -> Iterator[Callable[..., RedisServer]]:
    """Starts a Redis server of the test's own, with the options given, and ends it after it."""
    with ExitStack() as stack:
        yield _own(stack, RedisServer)


@pytest.fixture
def own_postgres() -> Iterator[Callable[..., PostgresServer]]:
    """Starts a PostgreSQL server of the test's own, likewise."""
    with ExitStack() as stack:
        yield _own(stack, PostgresServer)


@pytest.fixture
def own_mariadb() -> Iterator[Callable[..., MariaDBServer]]:
    """Starts a MariaDB server of the test's own, likewise."""
    with ExitStack() as stack:
        yield _own(stack, MariaDBServer)


@pytest.fixture(scope="session")
def rabbitmq_url() -> str:
    """URL of a RabbitMQ that answers; ask for ``rabbitmq_queue`` to have a queue of one's own."""
    try:
        with Connection(RABBITMQ, connect_timeout=ANSWER) as connection:
            connection.ensure_connection(max_retries=1, timeout=ANSWER)
    except Exception as exc:  # noqa: BLE001 - each transport has its own errors; all mean missing
        _missing("RabbitMQ", exc)
    return RABBITMQ


@pytest.fixture
def rabbitmq_queue(rabbitmq_url: str) -> Iterator[str]:
    """Name for a queue and its exchange that nobody else uses; both are deleted afterwards."""
    name = f"celery-statekit-tests-{uuid.uuid4().hex}"
    yield name
    with Connection(rabbitmq_url, connect_timeout=ANSWER) as connection:
        channel = connection.default_channel
        channel.queue_delete(name)
        channel.exchange_delete(name)
