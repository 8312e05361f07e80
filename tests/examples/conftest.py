"""Run an example as a new user does, and compare what it prints with what its README shows.

.. code-block:: python

    def test_the_story_is_as_its_readme_shows_it(story, shown):
        assert story("shop") == shown("shop")

``story`` runs the example once with each broker. Both give lines in which what differs from run to
run is masked: ids, times, process ids, and what else is given as ``varies``, regular expressions.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
import redis

ROOT: Final = Path(__file__).parents[2]
#: Seconds after which a story hangs.
PATIENCE: Final = 150
#: A story takes seconds, and far more where the machine has other work.
SLOW: Final = [pytest.mark.slow, pytest.mark.timeout(PATIENCE + 10)]
#: What stands for what differs from run to run.
MASKS: Final = {
    r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}": "<id>",
    r"\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?": "<time>",
    r"\b\d\d:\d\d:\d\d(\.\d+)?": "<time>",
    r"\b\d+\.\d+ s\b": "<seconds>",
    r"(worker\d@\w+):\d+": r"\1:<pid>",
}
#: What only an extra installs: the brokers' default, files, must do without.
EXTRAS: Final = ("flask", "fastapi", "django", "psycopg", "redis", "rich", "sqlalchemy")

Story = Callable[..., list[str]]


def masked(text: str, varies: tuple[str, ...]) -> list[str]:
    """The lines of ``text``, with what differs from run to run masked."""
    for pattern in varies:
        text = re.sub(pattern, "<varies>", text)
    for pattern, mask in MASKS.items():
        text = re.sub(pattern, mask, text)
    return [line.rstrip() for line in text.strip().splitlines()]


@pytest.fixture
def readme() -> Callable[[str], str]:
    """Read the README of an example."""
    return lambda name: (ROOT / "examples" / name / "README.md").read_text("utf-8")


@pytest.fixture
def shown(readme: Callable[[str], str]) -> Story:
    """What the README of an example says that it prints."""

    def read(name: str, *varies: str) -> list[str]:
        (output,) = re.findall(r"^```text\n(.*?)^```$", readme(name), re.MULTILINE | re.DOTALL)
        return masked(output, varies)

    return read


@pytest.fixture(
    params=[
        pytest.param("files", marks=SLOW),
        pytest.param("redis", marks=[*SLOW, pytest.mark.redis]),
        pytest.param("rabbitmq", marks=[*SLOW, pytest.mark.rabbitmq]),
    ]
)
def server(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Options of an example that choose its broker; nothing of it is left there afterwards."""
    if request.param == "files":
        yield []
        return
    url: str = request.getfixturevalue(f"{request.param}_url")
    yield ["--broker", request.param, "--url", url]
    if request.param == "redis":
        with redis.Redis.from_url(url) as client:
            assert client.keys("*example*") == []


@pytest.fixture
def story(server: list[str], tmp_path: Path) -> Story:
    """Run an example in a process of its own, and return what it prints."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    if not server:
        for extra in EXTRAS:
            (tmp_path / f"{extra}.py").write_text("raise ImportError('not installed')")
        environment["PYTHONPATH"] = str(tmp_path)

    def run(name: str, *varies: str) -> list[str]:
        ended = subprocess.run(
            [sys.executable, "-m", f"examples.{name}", *server],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment,
            timeout=PATIENCE,
            check=False,
        )
        assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout + ended.stderr
        return masked(ended.stdout, varies)

    return run
