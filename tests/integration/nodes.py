"""The nodes of this suite: what pytest-celery's lack, the same on every engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import psycopg
from celery import Celery
from pytest_celery import (
    CeleryTestBackend,
    CeleryTestContainer,
    CeleryTestSetup,
    CeleryTestWorker,
    CeleryWorkerContainer,
    RabbitMQTestBroker,
)

from celery_statekit import setup

from .shop import add_tasks

#: Seconds in which what should happen must have happened.
PATIENCE: Final = 45.0


def until(happened: Callable[[], Any]) -> Any:
    """Wait until ``happened`` gives something true, and return that."""
    deadline = time.monotonic() + PATIENCE
    while not (found := happened()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return found


def states_of(result: Any) -> str:
    """What a task went through, by its history."""
    return " ".join(change.to_state for change in result.history())


class Setup(CeleryTestSetup):
    """A set-up whose app, on the tests' side, has this library and the tasks as the workers' has."""

    def __init__(self, *clusters: Any, app: Celery, **named: Any) -> None:
        super().__init__(*clusters, app=app, **named)
        # Upstream makes other apps on its way here (pytest-celery 1.3.0 vendors/worker/volume.py).
        app.set_current()

    @classmethod
    def update_app_config(cls, app: Celery) -> None:
        setup(app)
        add_tasks(app)


class WorkerContainer(CeleryWorkerContainer):
    """A worker that has this library, and starts without asking its neighbours."""

    @classmethod
    def command(cls, *args: str, **options: Any) -> list[str]:
        words = ("--without-mingle", "--without-gossip", "--concurrency=2", *args)
        command: list[str] = super().command(*words, **options)
        return command

    @classmethod
    def app_module(cls) -> ModuleType:
        # Not imported: its app would become the current one of the tests.
        spec = spec_from_file_location("app", Path(__file__).with_name("app.py"))
        assert spec is not None
        return module_from_spec(spec)


class Worker(CeleryTestWorker):
    """A worker that can be waited for, paused, and asked to run a command."""

    def restart(self, reload_container: bool = True, force: bool = False) -> None:
        """As upstream's; return when the new worker is ready.

        Upstream looks for "ready." in logs that still hold the one before (pytest-celery 1.3.0
        api/container.py:145).
        """
        started = self.logs().count(" ready.")
        super().restart(reload_container, force)
        until(lambda: self.logs().count(" ready.") > started)

    def tell(self, command: str, *words: Any) -> None:
        """Have it obey a remote control command, and wait until it has."""
        replies = getattr(self.app.control, command)(
            *words, destination=[self.hostname()], reply=True, timeout=PATIENCE
        )
        assert replies, f"no reply to {command}"

    def pause(self) -> None:
        """Stop it where it is, with everything it holds."""
        self.container._container.pause()

    def unpause(self) -> None:
        """Let it go on as if nothing had been."""
        self.container._container.unpause()

    def ended(self) -> int:
        """Wait until it has ended by itself; its exit code."""

        def exited() -> bool:
            self.container.reload()
            return self.container.status == "exited"

        until(exited)
        code: int = self.container.attrs["State"]["ExitCode"]
        return code

    def run(self, *words: str) -> tuple[int, str]:
        """Exit code and output of a command that is run where the worker runs."""
        code, output = self.container.exec_run(list(words))
        return code, output.decode()

    def open(self, gate: str) -> None:
        """Let go on whoever waits at this gate, now or later."""
        code, output = self.run("touch", gate)
        assert code == 0, output

    def celery(self, *words: str) -> tuple[int, str]:
        """The same of a command of Celery's, for this app."""
        return self.run("celery", "-A", "app", *words)


class RabbitMQ(RabbitMQTestBroker):
    """A RabbitMQ that all tests of a run share, one after the other."""

    def teardown(self) -> None:
        """Leave no message to the next test, and a server that runs."""
        _bring_up(self.container)
        with self.container.client as connection:
            connection.default_channel.queue_delete("celery")


class PostgresContainer(CeleryTestContainer):
    """PostgreSQL; its superuser needs no password."""

    @property
    def celeryconfig(self) -> dict[str, Any]:
        inside = self.attrs["Config"]["Hostname"]
        url = "db+postgresql+psycopg://postgres@{}/postgres"
        return {"url": url.format(inside), "host_url": url.format(f"localhost:{self.port}")}

    @property
    def client(self) -> psycopg.Connection[Any]:
        return psycopg.connect(
            self.celeryconfig["host_url"].removeprefix("db+").replace("+psycopg", ""),
            autocommit=True,
        )

    @property
    def port(self) -> int:
        """Where it is found on this machine."""
        port: int = self._wait_port("5432/tcp")
        return port

    @property
    def ready_prompt(self) -> str:
        return "database system is ready to accept connections"


class Postgres(CeleryTestBackend):
    """A PostgreSQL that all tests of a run share, one after the other."""

    def teardown(self) -> None:
        """Leave no table to the next test, and a server that runs."""
        _bring_up(self.container)
        with self.container.client as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")


def _bring_up(container: CeleryTestContainer) -> None:
    container.reload()
    if container.status != "running":
        container.restart()
