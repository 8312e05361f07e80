"""How many commands a task costs, counted by a server of the test's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from celery import Celery

from celery_statekit import States
from celery_statekit.settings import Settings


class Import(States):
    READING = "Reading"
    WRITING = "Writing"


@pytest.fixture
def server_url(own_redis: Any) -> str:
    """URL of a server that nobody else uses."""
    return str(own_redis().url)


@pytest.fixture
def commands(server_url: str) -> Callable[..., Any]:
    """The commands that clients send while a block runs, without those of the scripts."""

    @contextmanager
    def watch() -> Iterator[list[str]]:
        seen: list[str] = []
        with redis.Redis.from_url(server_url) as client, client.monitor() as monitor:
            reader = threading.Thread(target=lambda: read(monitor, seen))
            reader.start()
            yield seen
            with redis.Redis.from_url(server_url) as other:
                other.echo("the end of the test")
            reader.join(10)

    def read(monitor: Any, seen: list[str]) -> None:
        for command in monitor.listen():
            if "the end of the test" in command["command"]:
                return
            if command["client_type"] != "lua":
                seen.append(command["command"])

    return watch


def of(id: str, commands: list[str]) -> list[str]:
    """The names of the commands that are about a task, in order; of two keys with a ``2``."""
    words = [command.split() for command in commands if id in command]
    return [
        each[0] + ("2" if each[0] == "EVALSHA" and each[2] == "2" else "")
        for each in words
        if each[0] not in ("SUBSCRIBE", "UNSUBSCRIBE")
    ]


def warm(app: Celery, work: Any) -> Any:
    """A task that has run once, so that the scripts are there."""

    @app.task(name="one")
    def one() -> int:
        return 1

    work()
    one.delay().get(timeout=10)
    return one


def test_an_end_is_one_write(app: Celery, work: Any, commands: Any, until: Any) -> None:
    """Published, begun, ended: PENDING; read and STARTED; then record and result in one call."""
    one = warm(app, work)
    with commands() as seen:
        result = one.delay()
        # Who looks whether the run is alive asks more.
        until(lambda: Settings.of(app).tracker.read(result.id).final)

    mine = [name for name in of(result.id, seen) if name not in ("GET", "LINDEX", "LRANGE")]
    assert mine == ["EVALSHA", "EVALSHA", "EVALSHA2"]


def test_what_is_entered_is_one_write(app: Celery, work: Any, commands: Any, until: Any) -> None:
    """STARTED where it is tracked, and a declared state; one that follows soon is shown later."""
    app.conf.update(task_track_started=True, statekit_progress_interval=60)

    @app.task(name="load", bind=True, states=Import)
    def load(self: Any) -> None:
        self.enter(Import.READING)
        self.enter(Import.WRITING)

    warm(app, work)
    with commands() as seen:
        result = load.delay()
        until(lambda: Settings.of(app).tracker.read(result.id).final)

    mine = [name for name in of(result.id, seen) if name.startswith("EVALSHA")]
    assert mine == ["EVALSHA", "EVALSHA2", "EVALSHA2", "EVALSHA", "EVALSHA2"]
    assert not any("SET" in command.split()[0] for command in seen if result.id in command)


@pytest.mark.parametrize("kind", ["plain"])
def test_a_plain_result_is_a_read_and_a_write(
    app: Celery, task: Any, work: Any, commands: Any, until: Any
) -> None:
    """As many calls as Celery makes: it reads, then it stores and publishes."""

    @task(name="plain")
    def plain() -> int:
        return 1

    warm(app, work)
    plain.delay().get(timeout=10)
    with commands() as seen:
        result = plain.delay()
        assert result.get(timeout=10) == 1

    mine = of(result.id, seen)
    assert mine.count("EVALSHA") == 1
    assert "SETEX" not in mine
