"""A broker of files, so that an example needs no server: kombu's own, which may not lose a message.

kombu's consumers may see a message before it is written, which ends the worker (kombu 5.7,
``transport/filesystem.py:262``), and what a dead worker had taken is gone. Here a message appears
whole, and one that was taken comes again if its taker dies before it is acknowledged, as with
RabbitMQ.
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.transport import filesystem
from kombu.utils.json import dumps, loads


class Channel(filesystem.Channel):
    """One consumer or publisher; the messages it has taken stay in a folder that it has locked."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lock: int | None = None
        self._not_acknowledged: set[str] = set()

    def close(self) -> None:
        super().close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def _queued(self) -> Path:
        return Path(self.data_folder_in)

    @cached_property
    def _taken(self) -> Path:
        name = uuid.uuid4().hex
        folder, hidden = self._takers / name, self._takers / f".{name}"
        hidden.mkdir(parents=True)
        self._lock = os.open(hidden, os.O_RDONLY)  # the kernel closes it if the process dies
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return hidden.rename(folder)

    @property
    def _takers(self) -> Path:
        return Path(self.control_folder, "taken")

    # --- publish ------------------------------------------------------------------------------

    def _queue_bind(self, exchange: str, *binding: Any) -> None:
        # Of two that make the table, one would overwrite the other's.
        table = Path(str(self.control_folder), f"{exchange}.exchange")
        empty = table.with_name(uuid.uuid4().hex)
        empty.parent.mkdir(exist_ok=True)
        empty.write_text("[]")
        with suppress(FileExistsError):
            os.link(empty, table)
        empty.unlink()
        super()._queue_bind(exchange, *binding)

    def _put(self, queue: str, payload: dict[str, Any], **_: Any) -> None:  # type: ignore[override]
        tag = payload["properties"]["delivery_tag"]
        self._write(f"{time.time_ns()}_{tag}.{queue}.msg", payload)

    def _write(self, name: str, payload: dict[str, Any]) -> None:
        hidden = self._queued / f".{uuid.uuid4().hex}"
        hidden.write_text(dumps(payload))
        hidden.rename(self._queued / name)

    # --- consume ------------------------------------------------------------------------------

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> None:
        if no_ack:
            self._not_acknowledged.add(queue)
        super().basic_consume(queue, no_ack, *args, **kwargs)

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        del timeout
        self._give_back_of_the_dead()
        for message in sorted(self._queued.glob(f"*.{queue}.msg")):
            if message.name.partition(".")[2] != f"{queue}.msg":
                continue
            taken = self._taken / message.name
            try:
                message.rename(taken)
            except FileNotFoundError:  # another was quicker
                continue
            payload = loads(taken.read_text())
            if queue in self._not_acknowledged:
                taken.unlink()
            return payload
        raise Empty

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        super().basic_ack(delivery_tag, multiple)
        self._drop(delivery_tag)

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        super().basic_reject(delivery_tag, requeue)
        self._drop(delivery_tag)

    def _drop(self, tag: str) -> None:
        for message in self._taken.glob(f"*_{tag}.*"):
            message.unlink()

    # --- redeliver ----------------------------------------------------------------------------

    def _restore(self, message: Any) -> None:
        for taken in self._taken.glob(f"*_{message.delivery_tag}.*"):
            self._give_back(taken)

    def _give_back_of_the_dead(self) -> None:
        for folder in self._takers.glob("[!.]*"):
            with suppress(FileNotFoundError, BlockingIOError):
                lock = os.open(folder, os.O_RDONLY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # else its process lives
                    for taken in folder.iterdir():
                        self._give_back(taken)
                    folder.rmdir()
                finally:
                    os.close(lock)

    def _give_back(self, taken: Path) -> None:
        payload = loads(taken.read_text())
        payload["properties"]["delivery_info"]["redelivered"] = True
        self._write(taken.name, payload)
        taken.unlink()


class Transport(filesystem.Transport):
    """Takes the place of kombu's ``filesystem://``; see ``celeryconfig.py``."""

    Channel = Channel

    def drain_events(  # type: ignore[override]
        self, connection: Any, timeout: float | None = None
    ) -> Any:
        # Before 5.7 Celery acknowledges between two of these calls only, which take two seconds
        # where nothing may come before that (celery 5.6 worker/loops.py:132).
        full = any(not channel.qos.can_consume() for channel in self.channels)
        return super().drain_events(connection, min(timeout, 0.1) if full and timeout else timeout)
