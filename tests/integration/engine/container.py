"""A container that is a process group of this machine."""

from __future__ import annotations

import io
import signal
import subprocess
import tarfile
from contextlib import suppress
from typing import Any, Final

from docker.errors import APIError, NotFound
from tests.servers import Server

from .images import SERVERS, Spec

#: What a process can have of what a container can be given; the rest is refused, not forgotten.
HOST: Final = {"NetworkMode", "Binds", "PortBindings"}
REFUSED: Final = ("Entrypoint", "Healthcheck", "Hostname", "StopSignal", "User", "WorkingDir")
ADDRESS: Final = "127.0.0.1"


class Container:
    """One container: what it was made with, and the server that stands for it.

    Args:
        config: what Docker's API is sent when a container is made.
        spec: what of it a process can have.
        name: what it is called.
    """

    def __init__(self, config: dict[str, Any], spec: Spec, name: str) -> None:
        self.config = config
        self.spec = spec
        self.name = name
        self.paused = False
        self._server = SERVERS[spec.image](spec)
        if self._server is not None and spec.port:
            self._server.port = spec.port
        self._started = False

    @property
    def server(self) -> Server:
        """What runs in it.

        Raises:
            APIError: nothing does, it only holds files.
        """
        if self._server is None:
            raise APIError(f"there is nothing to run in {self.spec.image}")
        return self._server

    @property
    def running(self) -> bool:
        """Whether its main process lives; when that has ended, as in Docker, so has all else."""
        if self._server is None:
            return False
        if not self._server.running:
            self._server.kill()
        return self._server.running

    @property
    def status(self) -> str:
        """As Docker calls it."""
        if not self._started:
            return "created"
        if not self.running:
            return "exited"
        return "paused" if self.paused else "running"

    @property
    def exit_code(self) -> int:
        """As Docker counts: over 128 for a signal; 0 while it runs."""
        code = (self._server and self._server.exit_code) or 0
        return 128 - code if code < 0 else code

    def inspect(self) -> dict[str, Any]:
        """What Docker's API says of it, as far as anybody asks."""
        running, spec = self.running, self.spec
        port = str(self.server.port) if spec.inner_port else ""
        published = {f"{spec.inner_port}/tcp": [{"HostIp": ADDRESS, "HostPort": port}]}
        network = self.config["HostConfig"].get("NetworkMode")
        return {
            "Id": spec.id,
            "Name": f"/{self.name}",
            "Image": self.config["Image"],
            # By its host's name others reach it, on the port that they know it has in there.
            "Config": {
                **self.config,
                "Hostname": f"{ADDRESS}:{port}" if port else spec.id[:12],
            },
            "HostConfig": self.config["HostConfig"],
            "Mounts": [],
            "State": {
                "Status": self.status,
                "Running": running,
                "Paused": self.paused,
                "Pid": self.server.pid if running else 0,
                "ExitCode": self.exit_code,
            },
            "NetworkSettings": {
                "Networks": {network: {"IPAddress": ADDRESS if running else ""}},
                "Ports": published if port and running else {},
            },
        }

    # --- its life -----------------------------------------------------------------------------

    def start(self) -> None:
        """Start it; unlike Docker, return when it is ready."""
        self._started = True
        self.server.start()

    def restart(self, seconds: float) -> None:
        """End it in order within ``seconds``, else kill it, and start it again."""
        self.server.stop(seconds)
        self.paused = False
        self.start()

    def kill(self, number: int) -> None:
        """Send a signal to its main process; SIGKILL to all, for none outlives the main process.

        Raises:
            APIError: it does not run.
        """
        if not self.running:
            raise APIError(f"container {self.spec.id} is not running")
        if number == signal.SIGKILL:
            self.server.kill()
        else:
            self.server.send_signal(number)

    def pause(self) -> None:
        """Stop all its processes where they are."""
        self.server.pause()
        self.paused = True

    def unpause(self) -> None:
        """Let them go on."""
        self.server.resume()
        self.paused = False

    def close(self) -> None:
        """End it at once and remove what it wrote."""
        if self._server is not None:
            self._server.close()

    # --- what is in it ------------------------------------------------------------------------

    def logs(self) -> bytes:
        """What it printed since it was made, over all its starts."""
        with suppress(FileNotFoundError):  # it was never started
            return self.server.log.read_bytes()
        return b""

    def run(self, words: list[str], environment: list[str]) -> tuple[int, bytes]:
        """Exit code and output of a command that is run in it; nobody guards it but its own end.

        Raises:
            APIError: it does not run.
        """
        if not self.running:
            raise APIError(f"container {self.spec.id} is not running")
        if words[:2] == ["cat", "/proc/net/tcp"]:
            return 0, self._sockets()
        surroundings = self.spec.surroundings()
        surroundings["env"] |= dict(pair.split("=", 1) for pair in environment)
        done = subprocess.run(
            [self.spec.here(word) for word in words],
            check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, **surroundings,
        )  # fmt: skip
        return done.returncode, done.stdout

    def unpack(self, path: str, archive: bytes) -> None:
        """Put the files of a tar archive into one of its volumes.

        Raises:
            NotFound: at ``path`` there is none; nothing else of this machine is written to.
        """
        if path not in self.spec.folders:
            raise NotFound(f"no volume at {path}")
        with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
            opened.extractall(self.spec.folders[path], filter="data")

    def _sockets(self) -> bytes:
        """Its published port listens, as /proc/net/tcp would say in a network of its own."""
        with suppress(OSError):
            if self.spec.inner_port and self.server.answers():
                return f"0: 0100007F:{self.spec.inner_port:04X} 00000000:0000 0A\n".encode()
        return b""
