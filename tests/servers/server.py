"""What every server of a test's own can do."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from tests.servers.guard import Guard, new_folder

if TYPE_CHECKING:
    from typing_extensions import Self

#: Seconds in which a server has to come up or to end.
PATIENCE: Final = 40.0
#: Where ports are taken from: below those that the system gives to outgoing connections, one of
#: which could else take the port of a server that is down, or even connect to itself.
PORTS: Final = range(20_000, 32_000)


class ServerMissing(Exception):
    """Raised when the server is not installed on this machine."""


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on."""
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise AssertionError("no port is free")


class Server(ABC):
    """One server; a context manager that starts it and at the end leaves nothing of it.

    Port and content stay the same from one start to the next. Controls may be used from any
    thread, by one at a time.
    """

    #: What the server's programs are called, and the user they run as where the tests are root's.
    programs: tuple[str, ...]
    user: str | None = None
    #: The signal by which it ends in order.
    ends_by = signal.SIGTERM

    def __init__(self) -> None:
        self._program = find(*self.programs)
        self.port = free_port()
        self.folder = new_folder()
        #: What it printed.
        self.log = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        #: Its process group, until nothing of it is left.
        self._group: int | None = None
        self._guard = Guard(self.folder)
        if os.geteuid() == 0 and self.user:
            shutil.chown(self.folder, self.user)

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients find it."""

    @abstractmethod
    def command(self) -> list[str]:
        """What runs it in the foreground, after having made what it needs at its first start."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it takes commands now; OSError where it cannot be reached."""

    def surroundings(self) -> dict[str, Any]:
        """What its processes are started with, in the words of ``Popen``: user, ``env``, ``cwd``."""
        if os.geteuid() != 0 or self.user is None:
            return {}
        return {"user": self.user, "group": self.user, "extra_groups": []}

    # --- its life -----------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Id of its main process, which leads a process group."""
        assert self._process is not None, "it was never started"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether its main process lives, paused or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """What its main process ended with, below 0 for a signal; None: it has not."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start it and wait until it answers; nothing happens where it runs."""
        if self.running:
            return
        self._process = self._spawn(self.command())
        self._group = self.pid
        deadline = time.monotonic() + PATIENCE
        while True:
            with suppress(OSError):
                if self.answers():
                    return
            if not self.running or time.monotonic() > deadline:
                said = self._said()
                self.kill()
                raise AssertionError(f"{self._program} did not come up:\n{said}")
            time.sleep(0.01)

    def stop(self, seconds: float = PATIENCE) -> None:
        """End it in order, within ``seconds``; nothing happens where it does not run."""
        if self._process is not None and self.running:
            self.resume()
            self._process.send_signal(self.ends_by)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        self.kill()

    def kill(self) -> None:
        """Kill -9 all its processes at once, also those that its main process left behind."""
        if self._process is None or self._group is None:
            return
        if self.running:
            self._signal(signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(self._group, signal.SIGKILL)
        self._process.wait()
        self._group = None

    def restart(self) -> None:
        """End it in order and start it again."""
        self.stop()
        self.start()

    def send_signal(self, number: int) -> None:
        """Send a signal to its main process alone."""
        os.kill(self.pid, number)

    def pause(self) -> None:
        """Stop all its processes where they are: it holds its connections and answers none."""
        self._signal(signal.SIGSTOP)
        # A thread that runs at this moment may still answer.
        while not all(map(_stands_still, family(self.pid))):
            time.sleep(0.001)

    def resume(self) -> None:
        """Let it go on after a pause."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """End it at once and remove its folder; nothing happens the second time."""
        self.kill()
        self._guard.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _signal(self, number: int) -> None:
        # Not the group alone: each of PostgreSQL's processes leads a group of its own.
        for pid in family(self.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _said(self) -> str:
        return self.log.read_text("utf-8", "replace")[-2000:]

    def _make(self, *command: str | Path) -> None:
        made = self._spawn([str(word) for word in command]).wait()
        assert made == 0, f"{command[0]} failed:\n{self._said()}"

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return self._guard.start(command, stdout=log, stderr=log, **self.surroundings())

    def _ask(self, request: bytes = b"") -> bytes:
        """What it says first to ``request``."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
            connection.sendall(request)
            return connection.recv(64)


def find(*names: str) -> str:
    """The path of the first of these programs that is installed.

    Raises:
        ServerMissing: none is.
    """
    # Debian keeps PostgreSQL's programs beside the path, the newest version last, and RabbitMQ's
    # too: what stands on the path in their names changes the user and hides the signals.
    beside = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    path = os.pathsep.join(
        ["/usr/lib/rabbitmq/bin", os.environ.get("PATH", ""), "/usr/sbin", *map(str, beside)]
    )
    for name in names:
        if found := shutil.which(name, path=path):
            return found
    raise ServerMissing(f"{names[0]} is not installed")


def _stands_still(pid: int) -> bool:
    """Whether each of its threads is stopped, or it is gone."""
    states = set()
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):
            states.add(stat.read_text().rpartition(")")[2].split()[0])
    return states <= {"T", "Z", "X"}


def family(pid: int) -> Iterator[int]:
    """The process and its descendants, parents first."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in task.read_text().split():
                yield from family(int(child))
