"""The servers: Redis, PostgreSQL, RabbitMQ, MariaDB."""

from __future__ import annotations

import os
import signal
import struct
from typing import Any

from tests.servers.server import Server, find, free_port


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


class RabbitMQServer(Server):
    """A RabbitMQ server with its own epmd; on this machine anybody is its user ``guest``."""

    programs = ("rabbitmq-server",)

    def __init__(self) -> None:
        super().__init__()
        self._epmd = find("epmd")
        self._environment = {
            "HOME": str(self.folder),  # there Erlang keeps its cookie
            "PATH": os.environ.get("PATH", os.defpath),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(free_port()),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.folder / "config"),
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_MNESIA_BASE": str(self.folder / "content"),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": "rabbit@localhost",
        }

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def command(self) -> list[str]:
        # The epmd that RabbitMQ starts where there is none is a daemon, which nothing would end.
        return ["/bin/sh", "-c", '"$0" & exec "$@"', self._epmd, self._program]

    def surroundings(self) -> dict[str, Any]:
        environment = {**self._environment, "RABBITMQ_NODE_PORT": str(self.port)}
        return {**super().surroundings(), "env": environment, "cwd": self.folder}

    def answers(self) -> bool:
        # It answers the header of AMQP 0-9-1 with a frame of a method.
        return self._ask(b"AMQP\0\0\x09\x01").startswith(b"\x01")


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
