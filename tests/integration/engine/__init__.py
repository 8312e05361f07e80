"""What runs the containers of pytest-celery: Docker, or local processes that look like it.

``pytest_docker_tools`` has one seam, its fixture ``docker_client``; whatever stands there, nodes,
clusters and tests are the same.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import NoReturn

import docker
from docker.errors import DockerException
from tests.servers import ServerMissing

from .daemon import Daemon
from .images import check_programs

__all__ = ["open_engine"]


def open_engine(kind: str, missing: Callable[[str, object], NoReturn]) -> docker.DockerClient:
    """A client of an engine that answers.

    Args:
        kind: ``docker``; ``process``; ``auto`` for processes where all servers are installed
            here, else Docker where it answers, else processes all the same.
        missing: called with a server's name, and why, where its program is not installed.

    Raises:
        DockerException: ``docker`` is asked for, and does not answer.
        ValueError: ``kind`` is none of these.
    """
    if kind not in ("auto", "docker", "process"):
        raise ValueError(f"STATEKIT_ENGINE={kind!r}: auto, docker or process")
    if kind == "docker" or (kind == "auto" and not _all_installed()):
        client, why = _docker()
        if client is not None:
            return client
        if kind == "docker":
            raise DockerException(why)
    # Its own __init__ would ask Docker.
    client = docker.DockerClient.__new__(docker.DockerClient)
    client.api = Daemon(missing)
    return client


def _docker() -> tuple[docker.DockerClient | None, str]:
    """Docker's own client, or why there is none."""
    with warnings.catch_warnings():
        # The SDK leaves the socket open on which nobody answers (docker 7.2 transport/unixconn.py).
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            return docker.from_env(), ""
        except DockerException as exc:
            why = str(exc)
        gc.collect()
    return None, why


def _all_installed() -> bool:
    try:
        check_programs()
    except ServerMissing:
        return False
    return True
