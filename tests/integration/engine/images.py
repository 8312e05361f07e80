"""The images: what Docker runs, and which server of this machine stands for each."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import celery
from tests.servers import PostgresServer, RabbitMQServer, RedisServer, Server, find

REDIS: Final = "redis:7.4-bookworm"
RABBITMQ: Final = "rabbitmq:4.2"
POSTGRES: Final = "postgres:17-bookworm"

ROOT: Final = Path(__file__).parents[3]
#: Of the workers' image, as its Dockerfile has it.
WORKDIR: Final = "/app"
#: How the image of the workers is built: the library from these sources, on the Python and with
#: the Celery of this test run.
WORKER: Final[Mapping[str, Any]] = {
    "path": str(ROOT),
    "dockerfile": str(Path(__file__).with_name("Dockerfile").relative_to(ROOT)),
    "tag": "celery-statekit/worker:tests",
    "buildargs": {
        "PYTHON": f"{sys.version_info.major}.{sys.version_info.minor}",
        "CELERY": celery.__version__,
    },
}


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a container was made with."""

    id: str
    image: str
    words: list[str]
    environment: dict[str, str]
    #: Folders of this machine, by where the container has them.
    folders: dict[str, Path] = field(default_factory=dict)
    #: The port in the container that is published; None: none is.
    inner_port: int | None = None
    #: The port of this machine that was asked for; None: any.
    port: int | None = None

    def here(self, text: str) -> str:
        """``text`` with the container's folders as this machine has them."""
        for inside, folder in self.folders.items():
            text = re.sub(rf"(?<![\w./-]){re.escape(inside)}(?![\w.-])", str(folder), text)
        return text

    def surroundings(self) -> dict[str, Any]:
        """What its processes are started with: nothing of the tests' own environment, as in Docker."""
        environment = {name: self.here(value) for name, value in self.environment.items()}
        path = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        environment.setdefault("PATH", os.pathsep.join(path))
        return {"env": environment, "cwd": self.folders.get(WORKDIR)}


class Redis(RedisServer):
    """Redis with the options of the container's command."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self._words = spec.words[1:]

    def command(self) -> list[str]:
        ours = {"port": self.port, "bind": "127.0.0.1", "dir": self.folder}
        options = [word for name, value in ours.items() for word in (f"--{name}", str(value))]
        return [self._program, *self._words, *options]


class Worker(Server):
    """A Celery worker, up when it says so."""

    programs = (sys.executable,)
    url = ""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self._spec = spec
        self._told = 0

    def command(self) -> list[str]:
        # In Docker a worker's host is named after its container.
        words = [
            self._spec.here(word).replace("%h", self._spec.id[:12]) for word in self._spec.words
        ]
        self._told = self.log.stat().st_size if self.log.exists() else 0
        return words

    def surroundings(self) -> dict[str, Any]:
        return self._spec.surroundings()

    def answers(self) -> bool:
        with self.log.open("rb") as log:
            log.seek(self._told)
            return b" ready." in log.read()


#: What runs an image here, by the image's name without its tag; None: nothing, it only has files.
SERVERS: Final[dict[str, Callable[[Spec], Server | None]]] = {
    REDIS.partition(":")[0]: Redis,
    RABBITMQ.partition(":")[0]: lambda _: RabbitMQServer(),
    POSTGRES.partition(":")[0]: lambda _: PostgresServer(),
    WORKER["tag"].partition(":")[0]: Worker,
    "scratch": lambda _: None,
}

PROGRAMS: Final = (
    RedisServer.programs,
    RabbitMQServer.programs,
    ("epmd",),
    PostgresServer.programs,
)


def check_programs() -> None:
    """Return where every server is installed here.

    Raises:
        ServerMissing: one is not.
    """
    for names in PROGRAMS:
        find(*names)
