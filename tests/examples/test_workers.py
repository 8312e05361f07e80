"""``examples/workers.py``: however a story ends, its workers end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
#: Seconds in which workers come up or go down.
PATIENCE: Final = 30.0
#: A story that says which processes it has started, and then does what it is told.
STORY: Final = """
import signal
from examples.classroom.app import app
from examples.workers import arguments, running

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
with running(app, arguments(None), workers=2) as workers:
    print(*(worker.process.pid for worker in workers), flush=True)
    exec(input())
"""

pytestmark = pytest.mark.slow

Tell = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def tell(tmp_path: Path) -> Iterator[Tell]:
    """Begin a story in a process of its own."""
    begun: list[subprocess.Popen[str]] = []

    def begin(story: str, *options: str) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, "-c", story, *options]
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        begun.append(subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def live_in(group: int) -> list[str]:
    """The processes of a group that have not ended; the group of a worker is named by its pid."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "pgid=,stat=,args="], capture_output=True, text=True, check=True
    )
    lines = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    return [args for pgid, stat, *args in lines if int(pgid) == group and not stat.startswith("Z")]


def wait_until_gone(groups: list[int]) -> None:
    deadline = time.monotonic() + PATIENCE
    while any(map(live_in, groups)):
        assert time.monotonic() < deadline, [live_in(group) for group in groups]
        time.sleep(0.05)


def begun(story: subprocess.Popen[str]) -> list[int]:
    """The process groups of the story's workers, once they are ready."""
    groups = [int(pid) for pid in story.stdout.readline().split()]
    assert len(groups) == 2, story.stderr.read()
    assert all(map(live_in, groups))
    return groups


def test_workers_end_with_the_block(tell):
    """A story that comes to its end leaves no process, and says nothing of it."""
    story = tell(STORY)
    groups = begun(story)

    output, errors = story.communicate("pass\n", timeout=PATIENCE)

    assert (story.returncode, output, errors) == (0, "", "")
    wait_until_gone(groups)


def test_workers_end_with_an_exception(tell):
    """A story that fails leaves no process, and shows the workers' logs before the error."""
    story = tell(STORY)
    groups = begun(story)

    _, errors = story.communicate("1 / 0\n", timeout=PATIENCE)

    assert story.returncode == 1
    assert errors.index("worker2@classroom ready") < errors.index("ZeroDivisionError")
    wait_until_gone(groups)


def test_workers_end_with_ctrl_c(tell):
    """A story that is interrupted ends as the shell expects it, and leaves no process."""
    story = tell(STORY)
    groups = begun(story)

    story.send_signal(signal.SIGINT)

    assert (story.wait(PATIENCE), story.stderr.read()) == (130, "")
    wait_until_gone(groups)


def test_workers_end_with_a_story_that_is_killed(tell):
    """A story that cannot end its workers any more leaves no process either."""
    story = tell(STORY)
    groups = begun(story)

    story.kill()

    wait_until_gone(groups)


def test_nobody_else_is_killed_who_has_the_number_of_a_dead_worker(tmp_path, monkeypatch):
    """A number is given away again as soon as its process was waited for."""
    monkeypatch.syspath_prepend(ROOT)
    from examples.workers import Worker

    dead = Worker("worker1@classroom", [sys.executable, "-c", ""], tmp_path / "log")
    dead.wait_until_dead()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE,
                          start_new_session=True) as stranger:  # fmt: skip
        dead.process.pid = stranger.pid

        dead.kill()
        stranger.communicate(b"\n", timeout=PATIENCE)

    assert stranger.returncode == 0


def test_a_worker_that_does_not_come_up_shows_why(tell):
    """The log of a worker that ends before it is ready is shown."""
    story = tell(
        STORY.replace(
            "workers=2) as workers:", 'workers=0) as workers:\n    workers.start(include="nowhere")'
        )
    )

    _, errors = story.communicate(timeout=PATIENCE)

    assert story.returncode == 1
    assert "No module named 'nowhere'" in errors
    assert "worker1@classroom did not come up" in errors


@pytest.mark.parametrize(
    ("broker", "url", "shown"),
    [
        ("redis", "redis://:secret@127.0.0.1:1/0", "redis://:**@127.0.0.1:1/0"),
        ("rabbitmq", "amqp://me:secret@127.0.0.1:1//", "amqp://me:**@127.0.0.1:1//"),
    ],
)
def test_a_server_that_is_not_there_is_named(tell, broker, url, shown):
    """A story without its server ends at once, and says where it has looked; no password."""
    story = tell(STORY, "--broker", broker, "--url", url)

    output, errors = story.communicate(timeout=PATIENCE)

    assert (story.returncode, output) == (1, "")
    assert errors.startswith(f"no broker answers at {shown}: ")
    assert "secret" not in errors
