"""The engine of local processes does what the tests expect of Docker, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest
from docker import DockerClient
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from tests.servers import free_port, new_folder

from .engine import images, open_engine
from .nodes import until

pytestmark = pytest.mark.redis

Missing = Callable[[str, object], NoReturn]


@pytest.fixture
def engine(missing: Missing) -> Iterator[DockerClient]:
    """An engine of this test's own."""
    engine = open_engine("process", missing)
    yield engine
    engine.close()


def run_redis(engine: DockerClient, **options: Any) -> Any:
    options = {"ports": {"6379/tcp": None}, **options}
    container = engine.containers.run(images.REDIS, ["redis-server"], detach=True, **options)
    container.reload()
    return container


def processes_of(folder: Path) -> list[str]:
    """The commands of all processes that were started with something in ``folder``."""
    commands = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes()
            if str(folder).encode() in command + (process / "environ").read_bytes():
                commands.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return commands


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_killed_run_leaves_nothing_behind(missing: Missing) -> None:
    """Kill -9 pytest while its servers run: all of them end, and their folders go."""
    root = Path(__file__).parents[2]
    folder = new_folder()
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "canvas and rabbitmq"]
    environment = {**os.environ, "TMPDIR": str(folder), "STATEKIT_ENGINE": "process"}
    try:
        with subprocess.Popen(
            [*words, str(Path(__file__).with_name("test_tasks.py").relative_to(root))],
            cwd=root, env=environment, stdout=subprocess.DEVNULL,
        ) as run:  # fmt: skip
            until(
                lambda: (
                    run.poll() is not None
                    or any("celery -A app worker" in command for command in processes_of(folder))
                )
            )
            if run.poll() is not None:
                missing("a server", "the run ended before its worker was up")
            assert any("beam" in command for command in processes_of(folder))
            assert any("epmd" in command for command in processes_of(folder))
            run.send_signal(signal.SIGKILL)

        until(lambda: not processes_of(folder))
        until(lambda: not list(folder.glob("celery-statekit-*")))
    finally:
        shutil.rmtree(folder)


def test_a_port_outlives_its_server(engine: DockerClient) -> None:
    """After a restart, and after a kill, a container is where it was; its log goes on."""
    port = free_port()
    asked = run_redis(engine, ports={"6379/tcp": port})
    given = run_redis(engine)
    places = [dict(container.ports) for container in (asked, given)]

    asked.restart()
    given.kill()
    given.reload()
    assert (given.status, given.attrs["State"]["ExitCode"], given.ports) == ("exited", 137, {})
    given.restart()

    for container, place in zip((asked, given), places, strict=True):
        container.reload()
        assert (container.status, container.ports) == ("running", place)
        assert container.logs().count(b"Ready to accept connections") == 2
    assert places[0]["6379/tcp"][0]["HostPort"] == str(port)


def test_a_worker_is_up_when_it_says_so(engine: DockerClient) -> None:
    """After its start, and after each further one: what it said before does not count."""
    says = "import time; time.sleep(0.5); print('worker ready.', flush=True); time.sleep(60)"
    words = [sys.executable, "-c", says]

    worker = engine.containers.run(images.WORKER["tag"], words, detach=True)
    assert worker.logs().count(b" ready.") == 1
    worker.restart(timeout=0)
    assert worker.logs().count(b" ready.") == 2


def test_what_docker_refuses_is_refused(engine: DockerClient) -> None:
    """A misspelt argument, an unknown image or container, a signal to what does not run."""
    with pytest.raises(TypeError, match="portz"):
        run_redis(engine, portz={})
    with pytest.raises(ImageNotFound):
        engine.containers.run("mysql:8", detach=True)
    with pytest.raises(NotFound):
        engine.containers.get("nobody")
    with pytest.raises(NotFound):
        run_redis(engine, volumes={"nothing": {"bind": "/there"}})
    ended = run_redis(engine)
    ended.kill()
    with pytest.raises(APIError):
        ended.kill("SIGTERM")


def test_what_a_process_cannot_have_is_refused(engine: DockerClient) -> None:
    """What would be given to a container, and silently not to a process, is an error."""
    for beyond in ({"mem_limit": "1g"}, {"entrypoint": "sh"}, {"user": "nobody"}):
        with pytest.raises(APIError, match="a process cannot have"):
            run_redis(engine, **beyond)


@pytest.mark.parametrize(
    ("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)]
)
def test_a_missing_program(
    engine: DockerClient, monkeypatch: pytest.MonkeyPatch, ci: str, outcome: Any
) -> None:
    """The test that needs it is skipped; where it must be there, it fails."""
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("PATH", "")

    with pytest.raises(outcome, match="redis-server is not installed"):
        run_redis(engine)


def test_which_engine(missing: Missing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker fails where it is asked for and does not answer; ``auto`` takes what there is."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nobody/listens")
    monkeypatch.setenv("PATH", "")

    with pytest.raises(DockerException):
        open_engine("docker", missing)
    with pytest.raises(ValueError, match="auto, docker or process"):
        open_engine("podman", missing)
    open_engine("auto", missing).close()
