"""Database servers of a test's own: on a free port, in a folder of their own, to be broken at will.

They end with the test, and within moments of a test run that is killed itself.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from typing_extensions import Self

#: Seconds in which a server has to come up or to end.
PATIENCE: Final = 20.0
#: Where ports are taken from: below those that the system gives to outgoing connections, one of
#: which could else take the port of a server that is down, or even connect to itself.
PORTS: Final = range(20_000, 32_000)
#: Kills the process group it was last told of and removes the folder, as soon as its input ends.
GUARD: Final = """
while read -r line && [ "$line" != end ]; do group=$line; done
[ -n "$group" ] && kill -9 "-$group"
rm -rf -- "$0"
"""


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
        self.folder = Path(tempfile.mkdtemp(prefix="celery-statekit-"))
        self.folder.chmod(0o755)
        #: What it printed.
        self.log = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, self.folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what kills the tests must not kill it
        )
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

    def start(self) -> None:
        """Start it and wait until it answers; nothing happens where it runs."""
        if self.running:
            return
        command = self.command()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, **self._as_user(),
            )  # fmt: skip
        self._tell_guard(str(self.pid))
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

    def stop(self) -> None:
        """End it in order, within ``PATIENCE``; nothing happens where it does not run."""
        if self._process is None or not self.running:
            return
        self.resume()
        self._process.send_signal(self.ends_by)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill -9 all its processes at once; nothing happens where it does not run."""
        if self._process is not None and self.running:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def restart(self) -> None:
        """End it in order and start it again."""
        self.stop()
        self.start()

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
        if self._guard.poll() is None:
            self._tell_guard("", "end")
        self._guard.communicate()

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

    def _tell_guard(self, *lines: str) -> None:
        assert self._guard.stdin is not None
        with suppress(BrokenPipeError):
            self._guard.stdin.write("".join(f"{line}\n" for line in lines).encode())
            self._guard.stdin.flush()

    def _as_user(self) -> dict[str, Any]:
        if os.geteuid() != 0 or self.user is None:
            return {}
        return {"user": self.user, "group": self.user, "extra_groups": []}

    def _said(self) -> str:
        return self.log.read_text("utf-8", "replace")[-2000:]

    def _make(self, *command: str | Path) -> None:
        with self.log.open("ab") as log:
            made = subprocess.run(command, check=False, stdout=log, stderr=log, **self._as_user())
        assert made.returncode == 0, f"{command[0]} failed:\n{self._said()}"

    def _ask(self, request: bytes = b"") -> bytes:
        """What it says first to ``request``."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
            connection.sendall(request)
            return connection.recv(64)


class RedisServer(Server):
    """A Redis server that keeps nothing on disk unless told to.

    Args:
        options: lines of redis.conf, with ``_`` for ``-``: ``maxmemory="3mb"``,
            ``appendonly=True``, ``requirepass="secret"``, ``replicaof="127.0.0.1 6379"``.
    """

    programs = ("redis-server",)

    def __init__(self, **options: str | int | bool) -> None:
        super().__init__()
        self.options: dict[str, str | int | bool] = {
            "bind": "127.0.0.1",
            "port": self.port,
            "dir": str(self.folder),
            "save": '""',
            "enable_debug_command": "local",
            **options,
        }

    @property
    def url(self) -> str:
        password = self.options.get("requirepass")
        return f"redis://{f':{password}@' if password else ''}127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        lines = []
        for name, value in self.options.items():
            word = ("yes" if value else "no") if isinstance(value, bool) else value
            lines.append(f"{name.replace('_', '-')} {word}\n")
        file = self.folder / "redis.conf"
        file.write_text("".join(lines))
        return [self._program, str(file)]

    def answers(self) -> bool:
        return self._ask(b"PING\r\n").startswith((b"+PONG", b"-NOAUTH"))


class PostgresServer(Server):
    """A PostgreSQL server; anybody on this machine is its superuser ``postgres``.

    What it acknowledged survives the death of its processes, though not that of the machine.

    Args:
        options: settings of postgresql.conf: ``lock_timeout="2s"``.
    """

    programs = ("postgres",)
    user = "postgres"
    ends_by = signal.SIGINT  # without waiting for clients to leave

    def __init__(self, **options: str | int) -> None:
        super().__init__()
        self.options: dict[str, str | int] = {"fsync": "off", "shared_buffers": "32MB", **options}

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"

    def command(self) -> list[str]:
        content = self.folder / "content"
        if not content.exists():
            self._make(
                find("initdb"), "-D", content, "-U", "postgres", "-A", "trust", "-N",
                "--no-instructions", "-E", "UTF8", "--locale=C",
            )  # fmt: skip
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", **self.options}
        words = [word for item in settings.items() for word in ("-c", "=".join(map(str, item)))]
        return [self._program, "-D", str(content), "-p", str(self.port), *words]

    def answers(self) -> bool:
        # The start of a session, protocol 3.0; R: the server asks who it is, E: an error.
        body = struct.pack("!I", 196_608) + b"user\0postgres\0database\0postgres\0\0"
        return self._ask(struct.pack("!I", len(body) + 4) + body).startswith(b"R")


class MariaDBServer(Server):
    """A MariaDB server with an empty database ``statekit``; root has no password.

    What it acknowledged survives the death of its processes, though not that of the machine.

    Args:
        options: of mariadbd, with ``_`` for ``-``: ``innodb_lock_wait_timeout=1``.
    """

    programs = ("mariadbd", "mysqld")

    def __init__(self, **options: str | int) -> None:
        super().__init__()
        self.options: dict[str, str | int] = {
            "innodb_flush_log_at_trx_commit": 2,
            "innodb_buffer_pool_size": "32M",
            **options,
        }

    @property
    def url(self) -> str:
        return f"mysql+pymysql://root@127.0.0.1:{self.port}/statekit?charset=utf8mb4"

    def command(self) -> list[str]:
        content = self.folder / "content"
        # A server that starts removes the temporary tables of all others in the same folder.
        own = [f"--tmpdir={self.folder}", *(["--user=root"] if os.geteuid() == 0 else [])]
        if not content.exists():
            self._make(
                find("mariadb-install-db"), "--no-defaults", f"--datadir={content}",
                "--auth-root-authentication-method=normal", "--skip-test-db",
                "--innodb-log-file-size=8M", *own,
            )  # fmt: skip
            (content / "statekit").mkdir()  # a database is a folder
        return [
            self._program, "--no-defaults", f"--datadir={content}", f"--port={self.port}",
            "--bind-address=127.0.0.1", f"--socket={self.folder}/socket",
            f"--pid-file={self.folder}/pid", "--skip-name-resolve",
            "--character-set-server=utf8mb4", *own,
            *(f"--{name.replace('_', '-')}={value}" for name, value in self.options.items()),
        ]  # fmt: skip

    def answers(self) -> bool:
        # Its greeting: length, number, version of the protocol; another version is an error.
        return self._ask()[4:5] == b"\x0a"


def find(*names: str) -> str:
    """The path of the first of these programs that is installed.

    Raises:
        ServerMissing: none is.
    """
    # Debian keeps PostgreSQL's programs beside the path, the newest version last.
    beside = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", *map(str, beside)])
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
