"""What answers the Docker SDK in place of Docker's daemon, with processes of this machine."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Final, NoReturn

from docker import APIClient
from docker.errors import APIError, ImageNotFound, NotFound
from tests.servers import Guard, ServerMissing, new_folder

from .container import HOST, REFUSED, Container
from .images import SERVERS, Spec

#: Version of the API that the SDK's arguments are checked against.
VERSION: Final = "1.44"


class Daemon(APIClient):
    """The low-level client of the Docker SDK, that does what it is asked itself.

    The SDK's own classes stand on it unchanged, so that their arguments are checked, and their
    snapshots grow old, as with Docker. What it does not answer fails, for nobody listens where
    the SDK would ask.

    Args:
        missing: called with a server's name, and why, where its program is not installed here.
    """

    def __init__(self, missing: Callable[[str, object], NoReturn]) -> None:
        self._folder = new_folder()
        self._guard = Guard(self._folder)
        super().__init__(base_url=f"unix://{self._folder}/nobody", version=VERSION)
        self._missing = missing
        #: Names of images, by id.
        self._images = {sha256(name.encode()).hexdigest(): name for name in SERVERS}
        self._containers: dict[str, Container] = {}
        self._networks: dict[str, str] = {}
        self._volumes: dict[str, Path] = {}
        #: Commands that were made to be run in a container, and their exit codes.
        self._commands: dict[str, tuple[Container, list[str], list[str]]] = {}
        self._ended: dict[str, int] = {}

    def close(self) -> None:
        """End every container, and leave no file."""
        for container in self._containers.values():
            container.close()
        self._containers.clear()
        self._guard.close()
        super().close()

    # --- containers ---------------------------------------------------------------------------

    def create_container_from_config(
        self, config: dict[str, Any], name: str | None = None, platform: str | None = None
    ) -> dict[str, Any]:
        id, image = _new_id(), self._image_name(config["Image"])
        host = config["HostConfig"] or {}
        config = {**config, "HostConfig": host}
        beyond = {part for part in host if host[part]} - HOST | {p for p in REFUSED if config[p]}
        if beyond or platform:
            raise APIError(f"a process cannot have {sorted(beyond) or platform}")
        inner, port = _published(host.get("PortBindings") or {})
        spec = Spec(
            id=id,
            image=image,
            words=config["Cmd"] or [],
            environment=dict(pair.split("=", 1) for pair in config["Env"] or []),
            folders=self._mounted(host.get("Binds") or []),
            inner_port=inner,
            port=port,
        )
        try:
            self._containers[id] = Container(
                config, spec, name or f"{image.replace('/', '-')}-{id[:6]}"
            )
        except ServerMissing as exc:
            self._missing(image, exc)
        return {"Id": id, "Warnings": []}

    def inspect_container(self, container: str) -> dict[str, Any]:
        return self._container(container).inspect()

    def start(self, container: str) -> None:
        self._container(container).start()

    def restart(self, container: str, timeout: float = 10) -> None:
        self._container(container).restart(timeout)

    def kill(self, container: str, signal: str | int | None = None) -> None:
        self._container(container).kill(_signal_number(signal or "KILL"))

    def pause(self, container: str) -> None:
        self._container(container).pause()

    def unpause(self, container: str) -> None:
        self._container(container).unpause()

    def remove_container(self, container: str, *, force: bool = False) -> None:
        removed = self._container(container)
        if removed.running and not force:
            raise APIError(f"container {container} is running")
        removed.close()
        del self._containers[container]

    def logs(self, container: str) -> bytes:
        return self._container(container).logs()

    def put_archive(self, container: str, path: str, data: bytes | IO[bytes]) -> bool:
        archive = data if isinstance(data, bytes) else data.read()
        self._container(container).unpack(path, archive)
        return True

    # --- commands in a container --------------------------------------------------------------

    def exec_create(
        self,
        container: str,
        cmd: str | list[str],
        environment: Mapping[str, str] | list[str] | None = None,
        **options: Any,
    ) -> dict[str, str]:
        beyond = sorted(
            name for name in options if options[name] and name not in ("stdout", "stderr")
        )
        if beyond:
            raise APIError(f"a command in a process cannot have {beyond}")
        if isinstance(environment, Mapping):
            environment = [f"{name}={value}" for name, value in environment.items()]
        words = shlex.split(cmd) if isinstance(cmd, str) else cmd
        id = _new_id()
        self._commands[id] = self._container(container), words, environment or []
        return {"Id": id}

    def exec_start(self, exec_id: str, **options: Any) -> bytes:
        if any(options.values()):
            raise APIError(f"a command in a process cannot have {options}")
        container, words, environment = self._commands.pop(exec_id)
        self._ended[exec_id], output = container.run(words, environment)
        return output

    def exec_inspect(self, exec_id: str) -> dict[str, int]:
        return {"ExitCode": self._ended.pop(exec_id)}

    # --- images -------------------------------------------------------------------------------

    def inspect_image(self, image: str) -> dict[str, Any]:
        name = self._image_name(image)
        return {"Id": sha256(name.encode()).hexdigest(), "RepoTags": [name]}

    def pull(self, repository: str, **_: Any) -> Iterator[str]:
        raise ImageNotFound(f"no process stands for {repository}")

    def build(self, *, tag: str = "scratch", **_: Any) -> Iterator[bytes]:
        """Say that it is built: what it would hold is installed here.

        The one without a tag is pytest-docker-tools' own, with nothing in it but a volume to fill.
        """
        yield json.dumps({"stream": f"Successfully built {self.inspect_image(tag)['Id']}"}).encode()

    # --- networks and volumes -----------------------------------------------------------------

    def create_network(self, name: str, **_: Any) -> dict[str, str]:
        id = _new_id()
        self._networks[id] = name
        return {"Id": id}

    def inspect_network(self, network: str) -> dict[str, Any]:
        if network not in self._networks:
            raise NotFound(f"no network {network}")
        return {"Id": network, "Name": self._networks[network], "Labels": {}}

    def remove_network(self, network: str) -> None:
        self.inspect_network(network)
        del self._networks[network]

    def create_volume(self, name: str, **_: Any) -> dict[str, Any]:
        self._volumes[name] = self._folder / name
        self._volumes[name].mkdir()
        return {"Name": name, "Labels": {}}

    def remove_volume(self, volume: str, *, force: bool = False) -> None:
        if volume not in self._volumes:
            raise NotFound(f"no volume {volume}")
        shutil.rmtree(self._volumes.pop(volume), ignore_errors=force)

    # --- names --------------------------------------------------------------------------------

    def _container(self, id: str) -> Container:
        if id not in self._containers:
            raise NotFound(f"no container {id}")
        return self._containers[id]

    def _image_name(self, image: str) -> str:
        name = self._images.get(image, image.partition(":")[0])
        if name not in SERVERS:
            raise ImageNotFound(f"no process stands for {image}")
        return name

    def _mounted(self, binds: list[str]) -> dict[str, Path]:
        folders = {}
        for bind in binds:
            volume, inside, *_ = bind.split(":")
            if volume not in self._volumes:
                raise NotFound(f"no volume {volume}")
            folders[inside] = self._volumes[volume]
        return folders


def _new_id() -> str:
    return uuid.uuid4().hex * 2


def _signal_number(name: str | int) -> int:
    if isinstance(name, int):
        return name
    return int(signal.Signals[f"SIG{name.removeprefix('SIG')}"])


def _published(bindings: Mapping[str, list[dict[str, str]]]) -> tuple[int | None, int | None]:
    """The published port as the container has it, and as this machine shall have it."""
    if not bindings:
        return None, None
    ((inner, [asked]),) = bindings.items()
    return int(inner.partition("/")[0]), int(asked["HostPort"] or 0) or None
