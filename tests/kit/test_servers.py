"""The servers of a test's own: they keep what they acknowledged, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from tests.servers import PATIENCE, MariaDBServer, PostgresServer, RedisServer, Server, family

KINDS = ("own_redis", "own_postgres", "own_mariadb")


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest) -> Server:
    """A server that runs; each kind in turn."""
    start: Callable[..., Server] = request.getfixturevalue(request.param)
    return start()


def alive(pid: int) -> bool:
    """Whether there is such a process, other than one that only waits to be reaped."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text("latin-1")
    return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def test_it_comes_back_at_the_same_place(server: Server) -> None:
    """After a stop or a kill nobody answers; after the next start it does, under the same URL."""
    url = server.url
    for end in (server.stop, server.kill):
        end()
        assert not server.running
        with pytest.raises(OSError):
            server.answers()
        server.start()
        assert server.answers()
    assert server.url == url


def test_a_paused_server_says_nothing_until_it_is_resumed(server: Server) -> None:
    """Its port takes connections and nobody answers on them."""
    server.pause()
    with pytest.raises(TimeoutError):
        server.answers()
    server.resume()

    assert server.answers()


def test_a_kill_leaves_none_of_its_processes(server: Server) -> None:
    """Nor does the end of the test, which leaves no folder either."""
    members = list(family(server.pid))
    server.kill()
    wait_until(lambda: not any(map(alive, members)))
    server.start()
    members = list(family(server.pid))
    server.close()
    server.close()

    wait_until(lambda: not any(map(alive, members)))
    assert not server.folder.exists()


def test_it_does_not_outlive_a_run_that_is_killed(server: Server) -> None:
    """Who starts it is killed -9: the server ends, and its folder goes."""
    program = (
        f"from tests.servers import {type(server).__name__} as Kind\n"
        "import time\n"
        "with Kind() as server:\n"
        "    print(server.pid, server.folder, flush=True)\n"
        "    time.sleep(60)\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        pid, folder = run.stdout.readline().split()
        members = list(family(int(pid)))
        os.kill(run.pid, signal.SIGKILL)

    wait_until(lambda: not any(map(alive, members)))
    wait_until(lambda: not Path(folder).exists())


@pytest.mark.parametrize(
    ("own", "kind", "outcome"),
    [
        ("own_redis", RedisServer, pytest.fail.Exception),
        ("own_postgres", PostgresServer, pytest.fail.Exception),
        ("own_mariadb", MariaDBServer, pytest.skip.Exception),
    ],
)
def test_where_ci_has_no_such_server(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    own: str,
    kind: type[Server],
    outcome: type[BaseException],
) -> None:
    """Its tests fail; those of MariaDB are skipped, and say what is not tested then."""
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(kind, "programs", ("no-such-server",))

    with pytest.raises(outcome, match="no-such-server is not installed") as missing:
        request.getfixturevalue(own)()

    if kind is MariaDBServer:
        assert "MySQLStore is not tested on MariaDB here" in str(missing.value)
